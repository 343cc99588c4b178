"""Fit, judge, predict, save, load: python examples/quickstart.py FOLDER

FOLDER holds MovieLens' ratings.csv and movies.csv; without it, ml-latest-small in the folder that
SPARKML_SGDALS_DATA names.
"""

import os
import sys
import tempfile
from pathlib import Path

from pyspark.sql import SparkSession

from sparkml_sgdals import StreamingBiasedALS, StreamingBiasedALSModel

# else workers start whatever python3 the PATH has
os.environ.setdefault("PYSPARK_PYTHON", sys.executable)


def main(folder: Path) -> None:
    """Show the model's life on one machine."""
    spark = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.shuffle.partitions", 2)
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    schema = "userId int, movieId int, rating double, timestamp long"
    ratings = spark.read.csv(str(folder / "ratings.csv"), schema, header=True)
    movies = spark.read.csv(str(folder / "movies.csv"), header=True, inferSchema=True)
    train, test = ratings.randomSplit([0.8, 0.2], seed=1)

    als = StreamingBiasedALS(
        userCol="userId", itemCol="movieId", timestampCol="timestamp", predictionStdCol="std"
    )
    model = als.fit(train)
    print(model)
    print("\nMay it be served?\n")
    print(model.diagnose(validation=test))

    print("\nThe films that user 1 has not rated and will probably like best:")
    seen = ratings.where("userId = 1").select("movieId")
    pairs = movies.join(seen, "movieId", "left_anti").selectExpr("1 AS userId", "movieId", "title")
    # clipped, the best would all be 5 stars
    best = model.transform(pairs, {model.clipPredictions: False}).orderBy(
        "prediction", ascending=False
    )
    best.selectExpr("title", "round(prediction, 2) AS stars", "round(std, 2) AS give_or_take").show(
        5, truncate=False
    )

    with tempfile.TemporaryDirectory() as path:
        model.write().overwrite().save(path)
        loaded = StreamingBiasedALSModel.load(path)
        print(f"Saved, and loaded again:\n{loaded}")
    spark.stop()


if __name__ == "__main__":
    data = os.environ.get("SPARKML_SGDALS_DATA")
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    elif data:
        main(Path(data, "ml-latest-small"))
    else:
        sys.exit(__doc__)
