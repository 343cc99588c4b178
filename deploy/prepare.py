"""Run while the image is built: put Spark's connectors among its jars, and compile the kernels.

python prepare.py connectors | kernels
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyspark

CONNECTORS = ("spark-sql-kafka-0-10",)
SERVE = """
import os, signal, sys
from sparkml_sgdals.serving import serve
serve(sys.argv[1], port=0, started=lambda address: os.kill(os.getpid(), signal.SIGTERM))
"""


def put_connectors() -> None:
    """Copy the connectors of this PySpark, and what they need, to its own jars."""
    from registry import connectors

    with tempfile.TemporaryDirectory() as cache:
        os.environ["SPARKML_SGDALS_CACHE"] = cache
        for jar in connectors(*CONNECTORS):
            shutil.copy(jar, Path(pyspark.__file__).parent / "jars" / jar.name)
            print(jar.name)


def compile_kernels() -> None:
    """Learn ratings and events from tables and streams, rank and serve: what the parts will do."""
    from pyspark.sql import SparkSession

    from sparkml_sgdals import Predictor, StreamingBiasedALS

    spark = (
        SparkSession.builder.master("local[1]")
        .config("spark.ui.enabled", "false")
        .config("spark.log.level", "ERROR")
        .config("spark.sql.shuffle.partitions", "1")
        .getOrCreate()
    )
    rng = np.random.default_rng(1)
    table = pd.DataFrame(
        {
            "user": rng.integers(0, 40, 2000),
            "item": rng.integers(0, 60, 2000),
            "rating": rng.integers(1, 11, 2000) / 2,
            "time": rng.integers(1_700_000_000, 1_700_900_000, 2000),
        }
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "in")
        folder.mkdir()
        for number in range(2):
            part = table.iloc[number::2]
            part.to_json(folder / f"{number}.json", orient="records", lines=True)
        read = spark.readStream.schema("user long, item long, rating double, time long")
        # two batches: the second changes rows of the first
        read = read.option("maxFilesPerTrigger", 1)
        for events in (False, True):
            als = StreamingBiasedALS(timestampCol="time", implicitPrefs=events)
            model = als.fit(spark.createDataFrame(table))
            path = Path(scratch, f"model-{events}")
            model.write().save(str(path))
            Predictor.load(path).recommend([1, 2], 5)
            model.evaluateRanking(spark.createDataFrame(table.head(50)), 5)
            streamed = Path(scratch, f"stream-{events}")
            job = als.fitStream(read.json(str(folder)), streamed, trigger="availableNow")
            job.awaitTermination()
            Predictor.load(streamed).recommend([1, 2], 5)
            subprocess.run([sys.executable, "-c", SERVE, str(streamed)], check=True)
    spark.stop()


if __name__ == "__main__":
    {"connectors": put_connectors, "kernels": compile_kernels}[sys.argv[1]]()
