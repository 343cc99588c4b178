"""Fit few ratings in many partitions, as a shuffle, a union or small files leave them, beside ALS.

    python benchmarks/partitions.py [repeats]

The same 20,000 ratings in 2, 200, 1,000 and 10,000 partitions; ours and Spark's ALS by turns, both
warm, rank 8, 5 sweeps or iterations. Medians; seconds of the processors of this tree of processes
(driver, JVM and workers) beside them.
"""

from __future__ import annotations

import statistics
import sys
import time

import psutil
from pyspark.ml.recommendation import ALS
from pyspark.sql import SparkSession

from sparkml_sgdals import StreamingBiasedALS

PARTITIONS = (2, 200, 1_000, 10_000)
RATINGS = 20_000


def processor_seconds() -> float:
    """Seconds that this process and its children, ended ones too, have had of processors."""
    own = psutil.Process()
    total = 0.0
    for process in (own, *own.children(recursive=True)):
        try:
            spent = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += spent.user + spent.system + spent.children_user + spent.children_system
    return total


def main(repeats: int) -> None:
    """Print a line for each number of partitions."""
    spark = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.driver.memory", "4g")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    ways = {
        "ours": StreamingBiasedALS(rank=8, maxIter=5, tol=0.0),
        "ALS": ALS(rank=8, maxIter=5, seed=1),
    }
    print("partitions  ours s (cpu)   ALS s (cpu)   ours / ALS")
    for partitions in PARTITIONS:
        ratings = spark.range(0, RATINGS, 1, partitions).selectExpr(
            "CAST(id % 500 AS int) AS user", "CAST(id * 7 % 300 AS int) AS item",
            "CAST(id % 5 + 1 AS double) AS rating",
        )  # fmt: skip
        took: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for turn in range(repeats + 1):
            for name, way in ways.items():
                began, spent = time.perf_counter(), processor_seconds()
                way.fit(ratings)
                if turn:
                    seconds = time.perf_counter() - began
                    took[name].append((seconds, processor_seconds() - spent))
        medians = {
            n: [statistics.median(part) for part in zip(*t, strict=True)] for n, t in took.items()
        }
        ours, als = medians["ours"], medians["ALS"]
        print(
            f"{partitions:10,}  {ours[0]:6.2f} ({ours[1]:5.1f})  {als[0]:6.2f} ({als[1]:5.1f})  "
            f"{ours[0] / als[0]:6.2f}",
            flush=True,
        )
    spark.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
