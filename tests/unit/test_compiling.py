"""Kernels are compiled once for an installation, also for one that is read-only."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sparkml_sgdals
from sparkml_sgdals._compiling import ROOMS, keep_kernels
from sparkml_sgdals.kernels import vectors

PACKAGE = Path(sparkml_sgdals.__file__).parent
# numbers of overloads that were loaded and that were compiled
COUNT = """
import pyarrow as pa
from sparkml_sgdals import _compiling as compiling
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
    assert Path(file).is_relative_to(site)
    return int(hits), int(misses)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A copy of the package, as pip installs it."""
    shutil.copytree(PACKAGE, tmp_path / "site" / "sparkml_sgdals",
                    ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
    return tmp_path / "site"


@pytest.mark.long
def test_a_second_process_loads_what_the_first_compiled(site: Path) -> None:
    first, second = counts(site), counts(site)
    assert first[1] > 0
    assert second[0] > 0
    assert second[1] == 0
    assert list((site / "sparkml_sgdals").rglob("*.nbc"))


@pytest.mark.long
def test_without_home_and_beside_read_only_modules_too(site: Path, tmp_path: Path) -> None:
    # files where folders are wanted: root, who runs containers, may write to read-only folders
    for room in ROOMS:
        (site / "sparkml_sgdals" / room / "__pycache__").touch()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    env = {"HOME": os.devnull, "TMPDIR": str(scratch)}
    first, second = counts(site, **env), counts(site, **env)
    assert first[1] > 0
    assert second[0] > 0
    assert second[1] == 0
    (kept,) = scratch.iterdir()
    assert kept.stat().st_mode & 0o777 == 0o700


def test_a_choice_already_made_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert keep_kernels(tmp_path / "nowhere") is None
    assert os.environ["NUMBA_CACHE_DIR"] == str(tmp_path)


def test_a_folder_of_somebody_else_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr("sparkml_sgdals._compiling._writable", lambda folder: False)
    # so that what is set here is taken back
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    taken = tmp_path / f"sparkml_sgdals-kernels-{os.getuid()}"
    taken.mkdir()
    taken.chmod(0o777)
    found = keep_kernels(tmp_path / "package")
    assert found is not None
    assert Path(found) != taken
    shutil.rmtree(found)


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
    first, second = run_fresh(LEARN, site), run_fresh(LEARN, site)
    assert list((site / "sparkml_sgdals").rglob("*.nbc"))
    assert len(first) > 40
    assert first == second


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
