"""Time a grid in CrossValidator against Spark's ALS: python benchmarks/grid.py [RUNS].

MovieLens latest-small (from the folder in SPARKML_SGDALS_DATA), 3 folds, rank in (8, 16, 32) and
maxIter in (2, 5), parallelism 1. ALS has regParam 0.15, its best on this set, and runs twice: as
it comes (10 blocks), and with as many blocks as there are cores, which suits so few ratings
better. Cold pairs are dropped by all. All are warm and take turns.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pandas as pd
from harness import cores as cores_used
from harness import row, session, write
from pyspark.ml.evaluation import RegressionEvaluator
from pyspark.ml.recommendation import ALS
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder

from sparkml_sgdals import StreamingBiasedALS


def main() -> None:
    """Measure, print a table and write it as JSON."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    folder = os.environ.get("SPARKML_SGDALS_DATA", "")
    file = Path(folder, "ml-latest-small", "ratings.csv")
    if not file.is_file():
        sys.exit("Set SPARKML_SGDALS_DATA to a folder that holds ml-latest-small/ratings.csv.")
    cores = cores_used()
    spark = session()
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
    rows = [row(name, took, rmse=best[name]) for name, took in seconds.items()]
    median = {one["label"]: one["median"] for one in rows}
    ratios = {name: median[name] / median["StreamingBiasedALS"] for name in list(ways)[:-1]}
    write("grid", rows, ratios)


if __name__ == "__main__":
    main()
