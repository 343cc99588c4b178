"""Applications on a cluster of this machine; their driver is this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jvm
import pytest
from spark_cluster import Cluster


@contextmanager
def application(cluster: Cluster, **options: str) -> Iterator[Any]:
    """A session on a cluster, without the package on its executors."""
    from pyspark.sql import SparkSession

    conf = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.executor.memory": "640m",
        "spark.executor.extraJavaOptions": " ".join(jvm.options()),
        "spark.driver.extraJavaOptions": " ".join(jvm.options()),
        "spark.driver.host": "127.0.0.1",
        "spark.sql.shuffle.partitions": "3",
        # a worker more is another application's
        "spark.cores.max": "2",
        # executors of two workers: with the first alone all tasks would lie with it
        "spark.scheduler.minRegisteredResourcesRatio": "1.0",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_PYTHON", cluster.python)
        patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        builder = SparkSession.builder.appName("sparkml-sgdals-cluster").master(cluster.address)
        for name, value in (conf | options).items():
            builder = builder.config(name, value)
        session = builder.getOrCreate()
        session.sparkContext.setLogLevel("ERROR")
        try:
            yield session
        finally:
            session.stop()


def ship(session: Any, cluster: Cluster) -> None:
    """Ship the package, as docs/how-to/cluster.md says."""
    session.addArtifacts(str(cluster.package), pyfile=True)
