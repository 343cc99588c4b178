"""On Spark standalone, whose executors are sent the package: what local[2] does, to the bit."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
import time
from pathlib import Path

import pyspark
import pytest
from applications import application, ship
from spark_cluster import Cluster
from ways import Ways, write_sources

from sparkml_sgdals import StreamingBiasedALS
from sparkml_sgdals._compiling import kernel_folder

pytestmark = pytest.mark.cluster

SHORT = ["one_task", "blocks", "recommend", "streaming"]
OTHER = [
    "parquet", "minibatch", "blocks_to_path", "events_in_blocks", "update", "transform", "events",
    "repeats", "large", "race", "grid", "from_als", "saved", "candidates", "new_users", "newest",
    "vectors", "features", "features_in_blocks", "nonnegative",
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
        ways.cluster = cluster
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


SUBMITTED = """
import json, sys
import sparkml_sgdals
from pyspark.sql import SparkSession
from sparkml_sgdals import StreamingBiasedALS
from sparkml_sgdals._compiling import kernel_folder

spark = SparkSession.builder.getOrCreate()
model = StreamingBiasedALS(timestampCol="time", rank=4, maxIter=3).fit(
    spark.read.parquet(sys.argv[1])
)
print("SAID", json.dumps([sparkml_sgdals.__file__, model.state.fingerprint()]))
"""


@pytest.mark.long
def test_spark_submit_ships_it_and_compiled_kernels_are_found_again(ways, tmp_path):
    """An application of its own, whose driver has no other package than the zip's."""
    cluster = ways.cluster
    cluster.add_worker()
    wanted = ways.one_task()
    before = {path.name for path in Path(kernel_folder()).iterdir()}
    program = tmp_path / "application.py"
    program.write_text(SUBMITTED)
    home = Path(pyspark.__file__).parent
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SPARK", "PYSPARK", "PYTHON"))}
    done = subprocess.run(
        [home / "bin" / "spark-submit", "--master", cluster.address, "--py-files", cluster.package,
         "--conf", "spark.ui.enabled=false", "--conf", "spark.executor.memory=640m",
         "--conf", "spark.cores.max=1", "--conf", "spark.driver.host=127.0.0.1", program,
         ways.folder / "table.parquet"],
        env=kept | {"PYSPARK_PYTHON": cluster.python, "SPARK_LOCAL_IP": "127.0.0.1",
                    "PYTHONPATH": sysconfig.get_paths()["purelib"], "SPARK_HOME": str(home)},
        cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert "SAID" in done.stdout, done.stderr[-3000:]
    file, found = json.loads(done.stdout.partition("SAID ")[2])
    assert "sparkml_sgdals.zip" in file
    assert found == wanted
    assert {path.name for path in Path(kernel_folder()).iterdir()} == before
