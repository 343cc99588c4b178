"""Fixtures shared by all tests: one Spark session, small ratings, the real ratings where found."""

from __future__ import annotations

import glob
import os
import re
import shutil
import socket
import sys
import zipfile
from collections.abc import Callable, Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any

import jvm
import numpy as np
import pandas as pd
import pytest
from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("ci")

os.environ["PYSPARK_PYTHON"] = sys.executable
os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable


# model paths are synced to disk commit by commit: where memory has room for them nothing waits
SHARED_MEMORY = Path("/dev/shm")
if (
    "TMPDIR" not in os.environ
    and os.access(SHARED_MEMORY, os.W_OK)
    and shutil.disk_usage(SHARED_MEMORY).free > 2 << 30
):
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(SHARED_MEMORY))

# programs that tests start and that start a Spark of their own
os.environ.setdefault("SPARK_SUBMIT_OPTS", " ".join(jvm.options()))

PRELOADED = Path(__file__).parent / "preloaded"

WAYS = ["classic", pytest.param("connect", marks=pytest.mark.connect)]


@pytest.fixture(scope="session", params=WAYS)
def spark(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """The session of the whole run: a classic one, then (marker `connect`) one on Spark Connect."""
    from pyspark.sql import SparkSession

    scratch = tmp_path_factory.mktemp("spark")
    options = {
        # tiny tables: more partitions only cost tasks
        "spark.sql.shuffle.partitions": "3",
        "spark.default.parallelism": "3",
        "spark.ui.enabled": "false",
        "spark.driver.memory": "3g",
        # what a task sorts or hashes fits into less than the 64 MB that it would be given at once
        "spark.buffer.pageSize": "1m",
        # the usual one runs a dozen commands a file (readlink, chmod) where Hadoop's library is
        # missing; the programs of tests/kills, tests/cli and examples/ have the usual one
        "spark.sql.streaming.checkpointFileManagerClass": _checkpoint_files(),
        "spark.driver.extraJavaOptions": " ".join((*jvm.options(), "-Xmn1g")),
        "spark.sql.warehouse.dir": str(scratch / "warehouse"),
        "spark.ui.showConsoleProgress": "false",
        # an error in a task is a failure of the test, not something to try again
        "spark.task.maxFailures": "1",
        "spark.sql.session.timeZone": "UTC",
    }
    builder = SparkSession.builder.appName("sparkml-sgdals-tests")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "classic":
            builder = builder.master("local[2]")
        else:
            builder = builder.remote("local[2]")
            options["spark.connect.grpc.binding.port"] = _own_port(patch)
            options["spark.log.level"] = "ERROR"
        if sys.platform == "linux":
            # elsewhere a process that has loaded as much may not fork
            options["spark.python.daemon.module"] = "preloaded_daemon"
        for name, value in options.items():
            builder = builder.config(name, value)
        with pytest.MonkeyPatch.context() as of_the_jvm:
            of_the_jvm.setenv("PYTHONPATH", str(PRELOADED), prepend=os.pathsep)
            session = builder.getOrCreate()
        if request.param == "classic":
            session.sparkContext.setLogLevel("ERROR")
        yield session
        session.stop()


def _checkpoint_files() -> str:
    """The name of the class that writes checkpoints by plain renames, which Spark 4.1 moved."""
    import pyspark

    (jar,) = glob.glob(str(Path(pyspark.__file__).parent / "jars" / "spark-sql_*.jar"))
    with zipfile.ZipFile(jar) as packed:
        (name,) = (
            name
            for name in packed.namelist()
            if name.endswith("/FileSystemBasedCheckpointFileManager.class")
        )
    return name.removesuffix(".class").replace("/", ".")


def _own_port(patch: pytest.MonkeyPatch) -> str:
    """A port that is free now, for server and client: the usual one may be another run's."""
    from pyspark.sql.connect.client import DefaultChannelBuilder

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    patch.setattr(DefaultChannelBuilder, "default_port", staticmethod(lambda: port))
    return str(port)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave further cases of long tests, and of those on Connect, to the night.

    Pages of the documentation are no cases of one thing. Names of tests that are others in each
    process are refused: then `-n` runs none.
    """
    if moved := [item.nodeid for item in items if re.search(r" at 0x[0-9a-f]{6}", item.nodeid)]:
        raise pytest.UsageError(f"Name the cases of {moved[0]} by what they are: ids=...")
    tried: set[tuple[str, str]] = set()
    for item in items:
        test = item.nodeid.partition("[")[0]
        for part in ("long", "connect"):
            if item.get_closest_marker(part) and not item.get_closest_marker("nightly"):
                if (part, test) in tried and not test.endswith("docs.py::test_page"):
                    item.add_marker(pytest.mark.nightly)
                tried.add((part, test))


FIRST = ["whole", pytest.param("in runs", marks=pytest.mark.long)]


@pytest.fixture(params=FIRST)
def first_version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How version 0 of model paths lies: in files of all rows, or in runs as `fitPath` makes it.

    Paths that other processes make are not changed by it. Tests that take long have it in runs each
    night alone, by `helpers.IN_RUNS_NIGHTLY`.
    """
    if request.param == "in runs":
        from sparkml_sgdals.store.version_store import VersionStore

        monkeypatch.setattr(
            VersionStore, "create", partialmethod(create_in_runs, whole=VersionStore.create)
        )
    given: str = request.param
    return given


def create_in_runs(store: Any, state: Any, meta: dict[str, Any], whole: Callable[..., Any]) -> Any:
    """Make a model path as `fitPath` does, in two blocks, what its tasks do done here.

    Models that `fitPath` refuses are made as a `whole`.
    """
    from sparkml_sgdals.arrays.hashing import block_of, id_keys
    from sparkml_sgdals.store.large.in_runs import RunSink, commit_in_runs

    settings = state.settings
    if settings.learns_events or settings.ranks_ratings or settings.featured:
        return whole(store, state, meta)
    sink = RunSink(store.path)
    runs: dict[str, Any] = {"users": [], "items": [], "metrics": None}
    for side, table in (("users", state.users), ("items", state.items)):
        blocks = block_of(id_keys(table.index.ids()), 2)
        for rows in (np.flatnonzero(blocks == number) for number in range(2)):
            ids, arrays = table.index.ids(rows), table.take(rows).arrays
            runs[side].append(sink.write(side, table.index.kind, state.settings, ids, arrays))
    digest = store.put_meta(meta)
    return commit_in_runs(store, state, runs, state.ids, None, meta=digest)


@pytest.fixture
def classic_only(spark: Any) -> None:
    """For tests that reach into the process of the stream or into Spark's own JVM."""
    from pyspark.sql.utils import is_remote

    if is_remote():
        pytest.skip("looks into a process that Spark Connect keeps to itself")


@pytest.fixture(scope="session")
def small() -> pd.DataFrame:
    """4,000 ratings of 120 users and 90 items with taste, bias and noise; times with ties."""
    rng = np.random.default_rng(7)
    users, items = 120, 90
    taste = rng.normal(0, 0.6, (users, 3)), rng.normal(0, 0.6, (items, 3))
    user_bias, item_bias = rng.normal(0, 0.4, users), rng.normal(0, 0.5, items)
    popularity = 1.0 / np.arange(2, items + 2)
    u = rng.integers(0, users, 4000)
    i = rng.choice(items, 4000, p=popularity / popularity.sum())
    values = 3.5 + user_bias[u] + item_bias[i] + np.sum(taste[0][u] * taste[1][i], axis=1)
    values = np.clip(np.round((values + rng.normal(0, 0.5, 4000)) * 2) / 2, 0.5, 5.0)
    return pd.DataFrame(
        {
            "user": u.astype(np.int64) * 7 + 1,
            "item": i.astype(np.int64) * 11 + 5,
            "rating": values,
            "time": rng.integers(1_000_000, 1_002_000, 4000),
        }
    )


@pytest.fixture(scope="session")
def ratings(spark: Any, small: pd.DataFrame) -> Any:
    """`small` as a cached DataFrame."""
    frame = spark.createDataFrame(small).cache()
    frame.count()
    return frame


def data_folder() -> Path | None:
    """The folder of real ratings, from the environment."""
    folder = os.environ.get("SPARKML_SGDALS_DATA")
    return Path(folder) if folder and Path(folder).is_dir() else None


@pytest.fixture(scope="session")
def real() -> Callable[[str], tuple[pd.DataFrame, pd.DataFrame]]:
    """Real ratings by name, split as everywhere: training part, test part of seen ids."""
    folder = data_folder()
    if folder is None:
        pytest.skip("SPARKML_SGDALS_DATA does not name a folder of ratings")

    def load(name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        names = ["user", "item", "rating", "time"]
        if name == "movietweetings":
            path = folder / name / "ratings.dat"
            found = pd.read_csv(path, sep="::", engine="python", header=None, names=names)
        else:
            found = pd.read_csv(folder / name / "ratings.csv", header=0, names=names)
        test = np.random.default_rng(42).random(len(found)) < 0.2
        train, held = found[~test], found[test]
        seen = held.user.isin(train.user.unique()) & held.item.isin(train.item.unique())
        return train.reset_index(drop=True), held[seen].reset_index(drop=True)

    return load


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., str]:
    """Write ratings as CSV files that a stream reads one by one, in order; returns the folder."""

    def write(frame: pd.DataFrame, size: int, name: str = "in", first: int = 0) -> str:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for number, start in enumerate(range(0, len(frame), size), first):
            path = folder / f"{number:06d}.csv"
            frame.iloc[start : start + size].to_csv(path, index=False)
            # the file source goes by modification time
            os.utime(path, (1_000_000_000 + number, 1_000_000_000 + number))
        return str(folder)

    return write


@pytest.fixture(scope="session")
def stream(spark: Any) -> Callable[..., Any]:
    """Read a folder of ratings as a stream, one file a micro-batch."""

    def read(folder: str, schema: str = "user long, item long, rating double, time long") -> Any:
        reader = spark.readStream.schema(schema).option("header", True)
        return reader.option("maxFilesPerTrigger", 1).csv(folder)

    return read
