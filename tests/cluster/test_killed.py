"""Executors and workers killed in the middle of a fit in blocks and of a stream: the same bits."""

from __future__ import annotations

import threading
import time
import warnings

import pytest
from applications import application, ship
from pyspark.sql import functions as F
from spark_cluster import Cluster
from ways import ONCE, Ways, write_sources

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(900)]


def slowly():
    """A function that takes its time, by value: executors have no module of these tests."""

    def slow(value):
        import time

        time.sleep(0.003)
        return value

    return slow


@pytest.fixture(scope="module", params=["files", "rows"])
def running(request, tmp_path_factory):
    """A cluster, what is done on it, and what was so without a kill, with its seconds.

    Blocks lie in files that executors share, or travel as rows that the killed one has some of.
    """
    folder = tmp_path_factory.mktemp("killed")
    write_sources(folder / "sources")
    shared = {"spark.checkpoint.dir": f"file://{folder}/checkpoints"}
    options = shared if request.param == "files" else {}
    with Cluster() as cluster, application(cluster, **options) as session:
        ship(session, cluster)
        ways = Ways(session, folder / "sources", folder / "out")
        with warnings.catch_warnings():
            # of rows, which are slow
            warnings.simplefilter("ignore", UserWarning)
            ways.blocks()
            clock = time.perf_counter()
            blocks = ways.blocks()
            yield cluster, ways, blocks, time.perf_counter() - clock


def killed(cluster, how):
    """Kill an executor, or a worker, for which another starts."""
    before = {process.pid for process in cluster.executors()}
    getattr(cluster, f"kill_{how}")()
    assert before - {process.pid for process in cluster.executors()}
    if how == "worker":
        cluster.add_worker()


@pytest.mark.parametrize(
    ("how", "share"), [("executor", 0.35), ("executor", 0.7), ("worker", 0.55)]
)
def test_a_fit_in_blocks_ends_with_the_same_bits(running, how, share):
    cluster, ways, wanted, seconds = running
    found = []
    fit = threading.Thread(target=lambda: found.append(ways.blocks()))
    fit.start()
    time.sleep(share * seconds)
    assert fit.is_alive()
    killed(cluster, how)
    fit.join()
    assert found == [wanted]


@pytest.mark.parametrize("how", ["executor", "worker"])
def test_a_stream_ends_with_the_same_bits(running, how):
    """Each batch takes a second or two in the executors, and the second meets the kill."""
    cluster, ways, *_ = running
    wanted = ways.streaming()
    stream = ways.stream().withColumn("rating", F.udf(slowly(), "double")("rating"))
    begun = threading.Event()
    job = ways.als().fitStream(
        stream, ways.path(f"killed-{how}"), trigger=ONCE, onBatch=lambda metrics: begun.set()
    )
    assert begun.wait(120)
    time.sleep(0.5)
    killed(cluster, how)
    job.awaitTermination()
    assert str(job.model.state.fingerprint()) == wanted
