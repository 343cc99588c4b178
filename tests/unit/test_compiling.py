"""Kernels are compiled once for an installation, also for one that is read-only."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sparkml_sgdals
from sparkml_sgdals.compiling import keep_kernels

PACKAGE = Path(sparkml_sgdals.__file__).parent
# numbers of overloads that were loaded and that were compiled
COUNT = """
import pyarrow as pa
from sparkml_sgdals import hashing, compiling
import sparkml_sgdals
hashing.id_keys(pa.array([1, 2, 3]))
found = [f for f in vars(hashing).values() if hasattr(f, "stats")]
print(sum(sum(f.stats.cache_hits.values()) for f in found),
      sum(sum(f.stats.cache_misses.values()) for f in found), sparkml_sgdals.__file__)
"""


def counts(site: Path, **env: str) -> tuple[int, int]:
    """Loaded and compiled, in a fresh process that imports the package from `site`."""
    clean = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", COUNT],
        env=clean | {"PYTHONPATH": str(site)} | env,
        cwd="/",
        check=True,
        capture_output=True,
        text=True,
    )
    hits, misses, file = done.stdout.split()
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
    assert list((site / "sparkml_sgdals" / "__pycache__").glob("*.nbc"))


@pytest.mark.long
def test_without_home_and_beside_read_only_modules_too(site: Path, tmp_path: Path) -> None:
    # files where folders are wanted: root, who runs containers, may write to read-only folders
    (site / "sparkml_sgdals" / "__pycache__").touch()
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
    monkeypatch.setattr("sparkml_sgdals.compiling._writable", lambda folder: False)
    # so that what is set here is taken back
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    taken = tmp_path / f"sparkml_sgdals-kernels-{os.getuid()}"
    taken.mkdir()
    taken.chmod(0o777)
    found = keep_kernels(tmp_path / "package")
    assert found is not None
    assert Path(found) != taken
    shutil.rmtree(found)
