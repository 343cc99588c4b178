"""Which Python the workers run: found out before the first real job, and said in a sentence."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyspark
import pytest

import sparkml_sgdals
from sparkml_sgdals import StreamingBiasedALS, __version__, spark_workers

PACKAGE = Path(__file__).parents[2]
# the package is importable in this process alone, as in a notebook that changes sys.path
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from pyspark.sql import SparkSession

way, where = sys.argv[2:]
spark = getattr(SparkSession.builder, way)(where).config("spark.ui.enabled", "false").getOrCreate()
rows = spark.range(60).selectExpr("id % 6 AS user", "id % 5 AS item", "id % 4 AS rating")
from sparkml_sgdals import StreamingBiasedALS
try:
    model = StreamingBiasedALS(rank=2, maxIter=1).fit(rows)
    print("SAID", model.recommendForAllUsers(2).count())
except RuntimeError as failure:
    print("SAID", failure)
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A Python of the same version with nothing installed."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder / "bin"


def said(tmp_path, bare, way, where, **names):
    # another folder than the checkout, which workers would find the package in
    left_out = ("PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON", "PYTHONPATH", "SPARK_LOCAL_IP")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(PACKAGE), way, where],
        env=kept | {"PATH": f"{bare}{os.pathsep}{os.environ['PATH']}"} | names,
        cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert "SAID" in found.stdout, found.stderr[-3000:]
    return found.stdout.partition("SAID ")[2].strip(), found.stderr


@pytest.fixture
def rows(spark, monkeypatch):
    """What is fitted in the session of the other tests, whose workers are asked once more."""
    monkeypatch.setattr(spark_workers, "_asked", set())
    return spark.range(60).selectExpr("id % 6 AS user", "id % 5 AS item", "id % 4 AS rating")


def test_what_workers_lack_is_named(rows, monkeypatch):
    monkeypatch.setattr(spark_workers, "_NEEDED", ("sparkml_sgdals", "numpy", "no_such_package"))
    with pytest.raises(
        RuntimeError, match=r"Python workers run .*, which has no no_such_package: "
    ):
        StreamingBiasedALS(rank=2, maxIter=1).fit(rows)


def test_another_release_than_the_workers_is_named(rows, monkeypatch):
    monkeypatch.setattr(sparkml_sgdals, "__version__", "0.0.1")
    said = f"workers have sparkml_sgdals {__version__} in .*, and this process has 0.0.1: install"
    with pytest.raises(RuntimeError, match=said):
        StreamingBiasedALS(rank=2, maxIter=1).fit(rows)


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        ('java.io.IOException: Cannot run program "/no/python": error=2', "program '/no/python'"),
        ("ModuleNotFoundError: No module named 'pyspark'", "their Python has no pyspark"),
        ("Error from python worker:\n  no such version\nPYTHONPATH was:", "'no such version' is"),
        ("Python in worker has\n[PYTHON_VERSION_MISMATCH] 3.9", "run another Python than this"),
    ],
)
def test_why_workers_cannot_start(spark, failure, said):
    fault = spark_workers._CANNOT_START.search(failure)
    told = spark_workers._cannot_start(fault, spark)
    assert said in told
    assert f"PYSPARK_PYTHON={sys.executable}" in told


@pytest.mark.long
def test_a_program_without_an_activated_environment_runs(tmp_path, bare):
    answer, _ = said(tmp_path, bare, "master", "local[2]", PYTHONPATH=str(PACKAGE))
    assert answer == "6"


@pytest.mark.long
def test_a_python_without_the_package_is_named_before_a_task_fails(tmp_path, bare):
    # a folder of its name is not the package, though Python takes it for one
    (tmp_path / "other" / "sparkml_sgdals" / "cli").mkdir(parents=True)
    names = {"PYSPARK_PYTHON": str(bare / "python"), "PYTHONPATH": str(tmp_path / "other")}
    answer, log = said(tmp_path, bare, "master", "local[2]", **names)
    assert answer == (
        f"Spark's Python workers run {bare / 'python'}, which has no sparkml_sgdals, numpy, "
        "pandas, pyarrow, numba: set the environment variable "
        f"PYSPARK_PYTHON={sys.executable} before the Spark session starts."
    )
    assert "Traceback" not in log
    assert "ERROR" not in log


@pytest.mark.nightly
def test_a_python_that_is_not_there_is_named(tmp_path, bare):
    answer, _ = said(tmp_path, bare, "master", "local[2]", PYSPARK_PYTHON="/nowhere/python")
    assert "there is no program '/nowhere/python'" in answer
    assert f"PYSPARK_PYTHON={sys.executable}" in answer


@pytest.mark.nightly
def test_a_cluster_is_told_the_same(tmp_path, bare):
    home = {"SPARK_HOME": str(Path(pyspark.__file__).parent)}
    answer, log = said(tmp_path, bare, "master", "local-cluster[1,1,1024]", **home)
    assert answer.startswith(f"Spark's Python workers run {bare / 'python3'}, which has no")
    assert "install sparkml_sgdals on every executor, or set" in answer
    assert "Traceback" not in log


@pytest.mark.connect
def test_connect_is_told_the_same(tmp_path, bare):
    answer, log = said(tmp_path, bare, "remote", "local[2]")
    assert f"{bare / 'python3'}, which has no sparkml_sgdals" in answer
    assert "ModuleNotFoundError" not in log


@pytest.mark.nightly
def test_another_release_in_the_workers_is_told(tmp_path, bare):
    """The same package, copied with another number, first where the workers look."""
    copied = tmp_path / "other"
    shutil.copytree(PACKAGE / "sparkml_sgdals", copied / "sparkml_sgdals")
    module = copied / "sparkml_sgdals" / "__init__.py"
    text = module.read_text().replace(f'__version__ = "{__version__}"', '__version__ = "0.0.1"')
    module.write_text(text)
    answer, _ = said(tmp_path, bare, "master", "local[2]", PYTHONPATH=str(copied))
    assert answer.startswith("Spark's Python workers have sparkml_sgdals 0.0.1 in")
    assert f"and this process has {__version__}: install the same release" in answer


@pytest.mark.long
def test_another_python_in_the_workers_is_told(tmp_path, bare):
    versions = {f"python3.{n}" for n in range(10, 15)} - {f"python3.{sys.version_info.minor}"}
    named = [found for name in sorted(versions) if (found := shutil.which(name))]
    # one that stands for what is not installed does not run
    others = [one for one in named if not subprocess.run([one, "-V"], check=False).returncode]
    if not others:
        pytest.skip("there is no other Python here")
    answer, _ = said(tmp_path, bare, "master", "local[2]", PYSPARK_PYTHON=others[0])
    assert f"run another Python than this process's 3.{sys.version_info.minor}: set" in answer


@pytest.mark.nightly
def test_a_python_that_does_not_run_is_told_with_what_it_says(tmp_path, bare):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho no such version >&2\nexit 127\n")
    program.chmod(0o755)
    answer, _ = said(tmp_path, bare, "master", "local[2]", PYSPARK_PYTHON=str(program))
    assert "cannot be started: 'no such version' is all that they say: set" in answer
