"""Time our fit against Spark's ALS: `make bench`, or python benchmarks/small_fit.py [RUNS].

80% of MovieLens latest-small (from the folder in SPARKML_SGDALS_DATA), cached; rank 10; ALS with
10 iterations at its best regParam, ours with its default of a filter pass and 5 sweeps. ALS runs
twice: as it comes, and with as many blocks as there are cores, which suits so few ratings better.
All are warm, and take turns, so that a busy moment of the machine hits each of them.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyspark
from pyspark.ml.recommendation import ALS
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from sparkml_sgdals import StreamingBiasedALS

OUT = Path(__file__).resolve().parent.parent / "out" / "small_fit.json"


def main() -> None:
    """Measure, print a table and write it as JSON."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    folder = os.environ.get("SPARKML_SGDALS_DATA", "")
    file = Path(folder, "ml-latest-small", "ratings.csv")
    if not file.is_file():
        sys.exit("Set SPARKML_SGDALS_DATA to a folder that holds ml-latest-small/ratings.csv.")
    ratings = pd.read_csv(file)
    held_out = np.random.default_rng(42).random(len(ratings)) < 0.2
    train, test = ratings[~held_out], ratings[held_out]
    test = test[test.userId.isin(train.userId) & test.movieId.isin(train.movieId)]

    # else workers start whatever python3 the PATH has
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    cores = min(4, os.cpu_count() or 1)
    spark = (
        SparkSession.builder.master(f"local[{cores}]")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.driver.memory", "2g")
        .config("spark.sql.shuffle.partitions", cores)
        .config("spark.sql.execution.arrow.pyspark.enabled", "true")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    schema = "userId int, movieId int, rating double, timestamp long"
    train_table = spark.createDataFrame(train, schema).cache()
    test_table = spark.createDataFrame(test, schema).cache()
    print(
        f"{train_table.count():,} ratings to learn, {test_table.count():,} held out, {cores} cores"
    )

    columns = {"userCol": "userId", "itemCol": "movieId"}
    als = ALS(rank=10, maxIter=10, regParam=0.15, seed=1, **columns)
    ours = StreamingBiasedALS(rank=10, timestampCol="timestamp", **columns)
    ways = {
        "ALS": als,
        f"ALS, {cores} blocks": als.copy().setNumBlocks(cores),
        "StreamingBiasedALS": ours,
    }

    rmse = {}
    clipped = F.greatest(F.lit(0.5), F.least(F.lit(5.0), F.col("prediction")))
    for name, way in ways.items():
        predictions = way.fit(train_table).transform(test_table)
        row = predictions.select(F.sqrt(F.avg((clipped - F.col("rating")) ** 2))).first()
        rmse[name] = float(row[0])
        way.fit(train_table)

    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, way in ways.items():
            clock = time.perf_counter()
            way.fit(train_table)
            seconds[name].append(time.perf_counter() - clock)
    spark.stop()

    median = {name: statistics.median(times) for name, times in seconds.items()}
    ratio = {name: median[name] / median["StreamingBiasedALS"] for name in ways}
    print(f"\n{'':<20} {'median s':>9} {'range s':>13} {'ratio':>7} {'RMSE':>8}")
    for name, times in seconds.items():
        spread = f"{min(times):.2f} to {max(times):.2f}"
        print(
            f"{name:<20} {median[name]:>9.2f} {spread:>13} {ratio[name]:>7.2f} {rmse[name]:>8.4f}"
        )
    print("\nratio: how many times as long as StreamingBiasedALS")

    result = {
        "ratings": len(train),
        "cores": cores,
        "python": platform.python_version(),
        "pyspark": pyspark.__version__,
        "ways": {
            name: {
                "seconds": seconds[name],
                "median": median[name],
                "ratio": ratio[name],
                "rmse": rmse[name],
            }
            for name in ways
        },
    }
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"written to {OUT}")


if __name__ == "__main__":
    main()
