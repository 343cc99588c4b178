"""Time recommendForUserSubset against Spark's ALSModel: python benchmarks/recommend.py [RUNS].

27,000 users by 45,000 items at rank 10, ten items each: ours starts from the ALSModel's own
factors, so that both rank the same numbers. Both warm, in turns; the results are written to
Spark's noop sink.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path

from pyspark.ml.recommendation import ALS
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkml_sgdals import StreamingBiasedALSModel

OUT = Path(__file__).resolve().parent.parent / "out" / "recommend.json"
USERS, ITEMS, RANK = 27_000, 45_000, 10


def main() -> None:
    """Measure, print a table and write it as JSON."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    cores = min(4, os.cpu_count() or 1)
    spark = (
        SparkSession.builder.master(f"local[{cores}]")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.driver.memory", "4g")
        .config("spark.sql.shuffle.partitions", 2 * cores)
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    # every user and every item has a few ratings: only the sizes matter here
    ratings = spark.range(4 * ITEMS).select(
        (F.col("id") % USERS).cast("int").alias("user"),
        (F.col("id") % ITEMS).cast("int").alias("item"),
        (1 + 4 * F.rand(seed=1)).alias("rating"),
    )
    theirs = ALS(userCol="user", itemCol="item", rank=RANK, maxIter=2, seed=1).fit(ratings)
    ours = StreamingBiasedALSModel.fromALS(theirs)
    users = ratings.select("user").distinct().cache()
    print(f"{users.count():,} users x {ours.state.items.size:,} items, rank {RANK}, {cores} cores")

    def seconds(ranked: DataFrame) -> float:
        start = time.perf_counter()
        ranked.write.format("noop").mode("overwrite").save()
        return time.perf_counter() - start

    ways = {
        "ALSModel": lambda: seconds(theirs.recommendForUserSubset(users, 10)),
        "ours": lambda: seconds(ours.recommendForUserSubset(users, 10)),
    }
    for way in ways.values():
        way()
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, way in ways.items():
            times[name].append(way())
    medians = {name: statistics.median(found) for name, found in times.items()}
    for name, found in times.items():
        print(f"{name:10s} {medians[name]:7.2f} s   {min(found):.2f} to {max(found):.2f}")
    ratio = medians["ALSModel"] / medians["ours"]
    print(f"ours is {ratio:.1f} times as fast")
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"seconds": times, "medians": medians, "ratio": ratio}, indent=1))
    spark.stop()


if __name__ == "__main__":
    main()
