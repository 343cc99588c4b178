"""On Spark standalone, whose executors are sent the package: what local[2] does, to the bit."""

from __future__ import annotations

import time

import pytest
from applications import application, ship
from spark_cluster import Cluster
from ways import Ways, write_sources

from sparkml_sgdals import StreamingBiasedALS

pytestmark = pytest.mark.cluster

SHORT = ["one_task", "blocks", "recommend", "streaming"]
OTHER = [
    "parquet", "minibatch", "events_in_blocks", "update", "transform", "events", "repeats",
    "large", "race", "grid", "from_als", "saved",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    write_sources(folder / "sources")
    return folder


@pytest.fixture(scope="module")
def wanted(request, folder, locally):
    """What local[2] gives, of the tests that are asked for; begun now, waited for when used."""
    asked = {item.callspec.params.get("way") for item in request.session.items
             if hasattr(item, "callspec")}  # fmt: skip
    ended = locally(folder, [way for way in [*SHORT, *OTHER] if way in asked])
    given = {}

    def of(way):
        given.update(given or ended())
        return given[way]

    return of


@pytest.fixture(scope="module")
def told():
    """What was said before the package was shipped, and how many seconds the first fit took."""
    return {}


@pytest.fixture(scope="module")
def ways(folder, told, wanted):
    with Cluster() as cluster, application(cluster) as session:
        ways = Ways(session, folder / "sources", folder / "cluster")
        # the executors' Pythons have been started
        assert session.range(8, numPartitions=4).mapInArrow(lambda rows: rows, "id long").count()
        clock = time.perf_counter()
        with pytest.raises(RuntimeError) as refused:
            StreamingBiasedALS().fit(ways.ratings)
        told["refused"], told["after"] = str(refused.value), time.perf_counter() - clock
        ship(session, cluster)
        told["python"] = cluster.python
        yield ways


def found(ways, way):
    if "blocks" not in way:
        return getattr(ways, way)()
    # slow, and said so before it begins
    with pytest.warns(UserWarning, match="moved by Spark.*spark.checkpoint.dir is not set"):
        return getattr(ways, way)()


@pytest.mark.parametrize("way", SHORT)
def test_the_same_bits_as_local(way, ways, wanted):
    assert found(ways, way) == wanted(way)


@pytest.mark.long
@pytest.mark.parametrize("way", OTHER)
def test_all_else_gives_the_same_bits_as_local(way, ways, wanted):
    assert found(ways, way) == wanted(way)


def test_a_package_that_was_not_shipped_is_told_in_a_sentence(ways, told):
    assert told["refused"] == (
        f"Spark's Python workers run {told['python']}, which has no sparkml_sgdals: ship it, "
        "spark.addArtifacts('sparkml_sgdals.zip', pyfile=True), or install it on every executor: "
        "docs/how-to/cluster.md."
    )
    # nothing was tried four times
    assert told["after"] < 10
