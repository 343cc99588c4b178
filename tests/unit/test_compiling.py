"""Kernels are compiled once a machine and user, wherever the package lies, and safely."""

import ast
import os
import shutil
import stat
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import pytest

import sparkml_sgdals
from sparkml_sgdals import _compiling
from sparkml_sgdals.kernels import filter as filters
from sparkml_sgdals.kernels import vectors

PACKAGE = Path(sparkml_sgdals.__file__).parent
# packages that hold compiled functions
ROOMS = ("arrays", "kernels", "kernels/events", "store")
# numbers of overloads that were loaded and that were compiled
COUNT = """
import pyarrow as pa
from sparkml_sgdals.arrays import hashing
import sparkml_sgdals
hashing.id_keys(pa.array([1, 2, 3]))
found = [f for f in vars(hashing).values() if hasattr(f, "stats")]
print(sum(sum(f.stats.cache_hits.values()) for f in found),
      sum(sum(f.stats.cache_misses.values()) for f in found), sparkml_sgdals.__file__)
"""


def run_fresh(code: str, site: Path, **env: str) -> str:
    """What a fresh process prints that imports the package from `site`."""
    clean = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=clean | {"PYTHONPATH": str(site)} | env,
        cwd="/",
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


def counts(site: Path, **env: str) -> tuple[int, int]:
    """Loaded and compiled, in a fresh process that imports the package from `site`."""
    hits, misses, file = run_fresh(COUNT, site, **env).split()
    assert file.startswith(str(site))
    return int(hits), int(misses)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A copy of the package, as pip installs it."""
    shutil.copytree(PACKAGE, tmp_path / "site" / "sparkml_sgdals",
                    ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    return tmp_path / "site"


def zipped(site: Path, to: Path) -> Path:
    """The package as Spark ships it, with times of its own."""
    with zipfile.ZipFile(to, "w") as packed:
        for file in sorted((site / "sparkml_sgdals").rglob("*.py")):
            packed.write(file, file.relative_to(site))
    os.utime(to, (1_600_000_000, 1_600_000_000))
    return to


@pytest.mark.long
def test_what_one_process_compiled_others_load_from_wherever_they_have_it(
    site: Path, tmp_path: Path
) -> None:
    caches = {"XDG_CACHE_HOME": str(tmp_path / "caches")}
    first, second = counts(site, **caches), counts(site, **caches)
    assert first[1] > 0
    assert second == (first[1], 0)
    # two applications, each with a zip of its own
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        shipped = zipped(site, tmp_path / name / "sparkml_sgdals.zip")
        assert counts(shipped, **caches) == (first[1], 0)
    # of another source everything that takes it in is compiled again
    changed = site / "sparkml_sgdals" / "arrays" / "hashing.py"
    changed.write_text(changed.read_text() + "\nCHANGED = True\n")
    assert counts(site, **caches) == (0, first[1])


@pytest.mark.long
def test_without_home_they_lie_in_a_folder_of_their_own(site: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    env = {"HOME": os.devnull, "TMPDIR": str(scratch)}
    first, second = counts(site, **env), counts(site, **env)
    assert first[1] > 0
    assert second == (first[1], 0)
    (kept,) = scratch.iterdir()
    assert kept.stat().st_mode & 0o777 == 0o700


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Choose a folder anew, with these names in the environment."""

    def folder(cache_dir: str = "", **env: str) -> str | None:
        monkeypatch.setattr(numba.config, "CACHE_DIR", cache_dir)
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
        return _compiling.kernel_folder.__wrapped__()

    return folder


def test_a_choice_already_made_stands(tmp_path: Path, choose) -> None:
    assert choose(str(tmp_path / "chosen")) == str(tmp_path / "chosen" / "sparkml_sgdals")


def test_a_folder_that_others_can_write_is_not_trusted(tmp_path: Path, choose) -> None:
    """What lies there is run."""
    caches = tmp_path / "caches"
    own = tmp_path / f"sparkml_sgdals-kernels-{os.getuid()}"
    found = choose(XDG_CACHE_HOME=str(caches))
    assert found == str(caches / "sparkml_sgdals" / "kernels")
    assert stat.S_IMODE(os.stat(found).st_mode) == 0o700
    os.chmod(found, 0o777)
    assert choose(XDG_CACHE_HOME=str(caches)) == str(own)
    # somebody else has the name, or leads it elsewhere
    os.chmod(own, 0o777)
    assert choose(XDG_CACHE_HOME=str(caches)) is None
    own.rmdir()
    own.symlink_to(tmp_path)
    assert choose(XDG_CACHE_HOME=str(caches)) is None


@pytest.fixture
def files(tmp_path: Path) -> _compiling._Files:
    return _compiling._Files(tmp_path, "kernels.some.kernel", "of this source")


def test_a_file_is_whole_and_what_was_written_or_is_not_there(files) -> None:
    assert files.load("a key") is None
    files.save("a key", {"some": "code"})
    assert files.load("a key") == {"some": "code"}
    assert files.load("another key") is None
    path = files.path("a key")
    whole = path.read_bytes()
    for torn in (whole[:-1], whole[:10], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(torn)
        assert files.load("a key") is None
    files.save("a key", {"some": "code"})
    assert files.load("a key") == {"some": "code"}
    other = _compiling._Files(files.folder, "kernels.some.kernel", "of another source")
    assert other.load("a key") is None


def test_many_who_write_at_once_leave_each_its_own_code(files) -> None:
    """Types that two processes compile at once must not stand for each other's code."""

    def write(n: int) -> None:
        _compiling._Files(files.folder, files.name, files.digest).save(f"types {n % 7}", n % 7)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(200)))
    assert [files.load(f"types {n}") for n in range(7)] == list(range(7))
    assert len(list(files.folder.iterdir())) == 7


def test_a_folder_that_cannot_be_written_is_no_reason_to_fail(files, tmp_path: Path) -> None:
    nowhere = _compiling._Files(tmp_path / "nowhere", files.name, files.digest)
    nowhere.save("a key", 1)
    assert nowhere.load("a key") is None


def test_what_nobody_has_used_for_long_goes(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    files = _compiling._Files(folder, "kernels.some.kernel", "of this source")
    long_ago = time.time() - 100 * 86_400
    for name in ("kernels.gone.kernel-1.nbc", "kernels.gone.kernel-1.abc.tmp", "not ours"):
        (folder / name).touch()
        os.utime(folder / name, (long_ago, long_ago))
    files.save("a key", 1)
    assert {path.name for path in folder.iterdir()} == {files.path("a key").name, "not ours"}
    # one that is used stays
    os.utime(files.path("a key"), (long_ago, long_ago))
    assert files.load("a key") == 1
    assert files.path("a key").stat().st_mtime > time.time() - 86_400


@pytest.mark.long
def test_a_kernel_is_made_of_all_that_it_takes_in(site: Path) -> None:
    def digest(module: str) -> str:
        code = f"from sparkml_sgdals import _compiling as c; print(c.source_digest({module!r}))"
        return run_fresh(code, site)

    names = [f"sparkml_sgdals.{name}" for name in ("kernels.filter", "kernels.sgd", "errors")]
    before = [digest(name) for name in names]
    assert len(set(before)) == 3
    taken_in = site / "sparkml_sgdals" / "kernels" / "prefetch.py"
    taken_in.write_text(taken_in.read_text() + "# other\n")
    after = [digest(name) for name in names]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, False, True]


def test_kernels_of_the_package_are_kept_by_what_they_are() -> None:
    for file in sorted(PACKAGE.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if "njit(" in text and file.name != "_compiling.py":
            assert "from sparkml_sgdals import _compiling as nb" in text, file
    assert isinstance(filters.filter_ratings._cache, _compiling._Kept)


LEARN = """
import hashlib
import numpy as np
import pyarrow as pa
from sparkml_sgdals import StreamingBiasedALS
from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.learn.one_batch import learn_batch
rng = np.random.default_rng(1)
state = ModelState.empty(StreamingBiasedALS().settings(), "int", "int")
for size in (500, 500, 500, 30_000, 500):
    columns = {"user": rng.integers(0, 120, size), "item": rng.integers(0, 90, size)}
    columns["rating"] = rng.integers(1, 6, size).astype(np.float32)
    learn_batch(state, encode_ratings(pa.table(columns)))
held = [(t.mean, t.var, t.base_mean, t.drawn, t.noise_factor)
        for t in (state.users, state.items)]
print(hashlib.sha1(b"".join(a.tobytes() for side in held for a in side)).hexdigest())
"""


@pytest.mark.long
def test_what_is_learned_does_not_depend_on_who_compiled(site: Path) -> None:
    caches = site.parent / "caches"
    first, second = (run_fresh(LEARN, site, XDG_CACHE_HOME=str(caches)) for _ in range(2))
    assert list(caches.rglob("*.nbc"))
    assert len(first) > 40
    assert first == second


@pytest.mark.long
def test_kernels_that_reorder_sums_call_no_kernel_that_is_compiled_by_itself() -> None:
    """There would be two copies of it, optimised in two ways, and it depends on what was loaded
    which one runs: sums would differ in their last bits."""
    kernels = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                how = " ".join(ast.unparse(d) for d in node.decorator_list)
                if "njit" in how:
                    # where their compiled forms are looked for and kept
                    assert file.parent.relative_to(PACKAGE).as_posix() in ROOMS
                    kernels[node.name] = how, node
    reordering = {name: node for name, (how, node) in kernels.items() if "fastmath" in how}
    assert {"smooth_ids", "sweep_ids"} <= reordering.keys()
    # vectors reorder sums whatever the kernel says, and so does who takes such a kernel in
    found = 0
    while found < len(reordering):
        found = len(reordering)
        sources = {*vectors.__all__, *(n for n in reordering if "inline" in kernels[n][0])}
        for name, (_, node) in kernels.items():
            if sources & {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}:
                reordering[name] = node
    assert {"filter_events", "filter_ratings"} <= reordering.keys()
    for name, node in reordering.items():
        for call in ast.walk(node):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
                how, _ = kernels.get(call.func.id, ("inline", None))
                assert "inline" in how, f"{name} calls {call.func.id}"
