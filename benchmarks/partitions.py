"""Few ratings in many partitions, as a shuffle, a union or small files leave them, beside ALS.

    python benchmarks/partitions.py [repeats]

The same 20,000 ratings in 2, 200, 1,000 and 10,000 partitions: `fit` and Spark's ALS, rank 8, 5
sweeps or iterations; `update` onto a model of them; `recommendForAllUsers` without them;
`transform` by a model of events, which runs Python. By turns, all warm; medians, with seconds of
the processors of this tree of processes (driver, JVM and workers) beside them. ALS is left out of
10,000 partitions, where it takes minutes.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil
from pyspark.ml.recommendation import ALS
from pyspark.sql import DataFrame, SparkSession

from sparkml_sgdals import StreamingBiasedALS

PARTITIONS = (2, 200, 1_000, 10_000)
RATINGS = 20_000
MOST_OF_ALS = 1_000


def made(spark: SparkSession, partitions: int) -> DataFrame:
    """The ratings in so many partitions."""
    return spark.range(0, RATINGS, 1, partitions).selectExpr(
        "CAST(id % 500 AS int) AS user", "CAST(id * 7 % 300 AS int) AS item",
        "CAST(id % 5 + 1 AS double) AS rating", "id AS time",
    )  # fmt: skip


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
    ours = StreamingBiasedALS(rank=8, maxIter=5, tol=0.0)
    events = StreamingBiasedALS(implicitPrefs=True, ratingCol="", timestampCol="time", rank=8)
    model = ours.fit(made(spark, 2))
    heard = events.fit(made(spark, 2))
    ways: dict[str, Callable[[DataFrame], Any]] = {
        "fit": ours.fit,
        "ALS": ALS(rank=8, maxIter=5, seed=1).fit,
        "update": lambda ratings: model.copy().update(ratings),
        "recommend": lambda ratings: model.recommendForAllUsers(5, excludeSeen=ratings).count(),
        "transform": lambda ratings: heard.transform(ratings).agg({"prediction": "sum"}).collect(),
    }
    print(f"partitions {''.join(f'{name:>16}' for name in ways)}  fit / ALS")
    for partitions in PARTITIONS:
        ratings = made(spark, partitions)
        took: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for turn in range(repeats + 1):
            for name, way in ways.items():
                if name == "ALS" and partitions > MOST_OF_ALS:
                    continue
                began, spent = time.perf_counter(), processor_seconds()
                way(ratings)
                if turn:
                    seconds = time.perf_counter() - began
                    took[name].append((seconds, processor_seconds() - spent))
        medians = {
            name: [statistics.median(part) for part in zip(*times, strict=True)]
            for name, times in took.items()
            if times
        }
        cells = [
            f"{medians[name][0]:8.2f} ({medians[name][1]:5.1f})" if name in medians else f"{'':>16}"
            for name in ways
        ]
        ratio = medians["fit"][0] / medians["ALS"][0] if "ALS" in medians else float("nan")
        print(f"{partitions:10,} {''.join(cells)}  {ratio:9.2f}", flush=True)
    spark.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
