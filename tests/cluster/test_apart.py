"""Workers with disks of their own: what works, what is slow and what is refused, said before."""

from __future__ import annotations

import pytest
from applications import application, ship
from spark_cluster import Cluster, can_be_apart
from ways import ONCE, Ways, write_sources

from sparkml_sgdals import StorageError, StreamingBiasedALSModel

pytestmark = [pytest.mark.cluster, pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    folder = tmp_path_factory.mktemp("apart")
    if not can_be_apart(folder):
        pytest.skip("this system lets no process have a disk of its own (unshare)")
    return folder


@pytest.fixture(scope="module")
def session(apart):
    """A checkpoint folder, too, that the driver can use and executors do not see."""
    options = {"spark.checkpoint.dir": f"file://{apart}/checkpoints"}
    with Cluster(own_disk=apart) as cluster, application(cluster, **options) as session:
        ship(session, cluster)
        yield session


@pytest.fixture(scope="module")
def ways(session, apart, tmp_path_factory):
    """The table and the stream's files lie where all see them, and what is made does not."""
    sources = tmp_path_factory.mktemp("seen") / "sources"
    write_sources(sources)
    return Ways(session, sources, apart)


def test_blocks_travel_as_rows_to_the_same_bits(ways, locally, tmp_path):
    write_sources(tmp_path / "sources")
    ended = locally(tmp_path, ["blocks"])
    with pytest.warns(UserWarning, match="executors do not see what is written into"):
        found = ways.blocks()
    assert found == ended()["blocks"]


def test_a_stream_keeps_its_model_on_the_drivers_disk(ways, apart):
    assert (
        ways.streaming() == StreamingBiasedALSModel.load(f"{apart}/streaming").state.fingerprint()
    )


def test_ids_of_events_are_refused_before_the_stream_starts(ways, apart):
    with pytest.raises(ValueError, match="not all of them share with the driver"):
        ways.repeats()
    assert not (apart / "repeats" / "model.json").exists()


def test_a_saved_model_that_nobody_could_load_is_told(ways, apart):
    with pytest.raises(StorageError, match="Nothing usable was saved at"):
        ways.saved()


def test_a_model_path_that_executors_do_not_share_is_told_before_anything_is_learned(ways, apart):
    with pytest.raises(StorageError, match=r"executor on .* does not see modelPath .*/to_path"):
        ways.blocks_to_path()
    assert not (apart / "to_path").exists()


def test_parquet_files_of_the_drivers_disk_are_told(ways, apart):
    write_sources(apart / "own")
    with pytest.raises(StorageError, match=r"table.parquet is on the driver's disk"):
        Ways(ways.spark, apart / "own", apart).parquet()


def test_validation_and_more_of_a_stream_need_no_shared_disk(ways, apart):
    job = ways.als(maxResidentIds=50).fitStream(
        ways.stream(), f"{apart}/more", trigger=ONCE,
        validation=ways.ratings.where("time > 13000"), prometheusPath=f"{apart}/prometheus",
    )  # fmt: skip
    job.awaitTermination()
    assert len(job.metrics()) == 4
    assert job.model.state.counters.ratings == 2000
