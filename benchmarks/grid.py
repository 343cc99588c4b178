"""Time a grid in CrossValidator against Spark's ALS: python benchmarks/grid.py [RUNS].

MovieLens latest-small (from the folder in SPARKML_SGDALS_DATA), 3 folds, rank in (8, 16, 32) and
maxIter in (2, 5), parallelism 1. ALS has regParam 0.15, its best on this set, and runs twice: as
it comes (10 blocks), and with as many blocks as there are cores, which suits so few ratings
better. Cold pairs are dropped by all. All are warm and take turns.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path

import pandas as pd
import pyspark
from pyspark.ml.evaluation import RegressionEvaluator
from pyspark.ml.recommendation import ALS
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder
from pyspark.sql import SparkSession

from sparkml_sgdals import StreamingBiasedALS

OUT = Path(__file__).resolve().parent.parent / "out" / "grid.json"


def main() -> None:
    """Measure, print a table and write it as JSON."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    folder = os.environ.get("SPARKML_SGDALS_DATA", "")
    file = Path(folder, "ml-latest-small", "ratings.csv")
    if not file.is_file():
        sys.exit("Set SPARKML_SGDALS_DATA to a folder that holds ml-latest-small/ratings.csv.")
    # else workers start whatever python3 the PATH has
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    cores = min(4, os.cpu_count() or 1)
    spark = (
        SparkSession.builder.master(f"local[{cores}]")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.driver.memory", "2g")
        .config("spark.sql.shuffle.partitions", cores)
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    schema = "userId int, movieId int, rating double, timestamp long"
    ratings = spark.createDataFrame(pd.read_csv(file), schema).cache()
    ratings.count()
    columns = {"userCol": "userId", "itemCol": "movieId", "coldStartStrategy": "drop"}
    als = ALS(regParam=0.15, seed=1, **columns)
    ours = StreamingBiasedALS(timestampCol="timestamp", **columns)

    def grid(way: ALS | StreamingBiasedALS) -> list[float]:
        maps = ParamGridBuilder().addGrid(way.rank, [8, 16, 32]).addGrid(way.maxIter, [2, 5])
        validator = CrossValidator(
            estimator=way, estimatorParamMaps=maps.build(), numFolds=3, seed=1,
            evaluator=RegressionEvaluator(labelCol="rating"),
        )  # fmt: skip
        return [float(metric) for metric in validator.fit(ratings).avgMetrics]

    ways = {
        "ALS": als,
        f"ALS, {cores} blocks": als.copy().setNumBlocks(cores),
        "StreamingBiasedALS": ours,
    }
    best = {name: min(grid(way)) for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, way in ways.items():
            clock = time.perf_counter()
            grid(way)
            seconds[name].append(time.perf_counter() - clock)
    spark.stop()
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name in ways:
        print(f"{name:20} {medians[name]:7.2f} s, best RMSE of the grid {best[name]:.4f}")
    ratio = {name: medians["StreamingBiasedALS"] / median for name, median in medians.items()}
    for name in list(ways)[:-1]:
        print(f"ours takes {ratio[name]:.2f} of the time of {name}")
    OUT.parent.mkdir(exist_ok=True)
    result = {
        "benchmark": "grid", "seconds": seconds, "median": medians, "bestRmse": best,
        "ratio": ratio, "cores": cores, "spark": pyspark.__version__,
        "python": platform.python_version(), "machine": platform.machine(),
    }  # fmt: skip
    OUT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
