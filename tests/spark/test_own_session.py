"""A session that is started for somebody who never asked for one, and those that are there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import threading
from pyspark.sql import SparkSession
from sparkml_sgdals.cli.command import Invocation
from sparkml_sgdals.cli.output import Output
from sparkml_sgdals.spark_jobs import active_session

found = []
def note(session):
    found.append(session.conf.get("spark.sql.shuffle.partitions"))

session = active_session()
cores = session.sparkContext.defaultParallelism
note(session)
session.stop()
for conf in ({}, {"spark.sql.shuffle.partitions": "5"}):
    with Invocation(Output(False), "local[3]", conf).spark() as session:
        note(session)
session = SparkSession.builder.master("local[3]").getOrCreate()
note(active_session())
# no session is a new thread's own, and this one is there all the same
thread = threading.Thread(target=lambda: note(active_session()))
thread.start()
thread.join()
note(session)
print("found", cores, *found)
"""


@pytest.mark.parametrize("asked", ["", pytest.param("7", marks=pytest.mark.long)])
def test_a_session_of_its_own_shuffles_among_its_cores(classic_only, tmp_path, asked):
    """Spark's 200 partitions cost a minute where there are two cores and few rows."""
    names = {k: v for k, v in os.environ.items() if not k.startswith(("SPARK_", "PYSPARK_"))}
    names |= {"SPARK_LOCAL_IP": "127.0.0.1"}
    if asked:
        (tmp_path / "spark-defaults.conf").write_text(f"spark.sql.shuffle.partitions {asked}\n")
        names |= {"SPARK_CONF_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=names, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (told,) = (line for line in done.stdout.splitlines() if line.startswith("found"))
    cores, *found = told.split()[1:]
    others = asked or "200"
    assert found == [asked or cores, asked or "3", "5", others, others, others]
