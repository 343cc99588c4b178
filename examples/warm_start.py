"""Fit on the past, go on from a stream: python examples/warm_start.py FOLDER

FOLDER holds MovieLens' ratings.csv; without it, ml-latest-small in the folder that
SPARKML_SGDALS_DATA names. The older half of the ratings is a table, the newer half a stream.
"""

import os
import sys
import tempfile
from pathlib import Path

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from sparkml_sgdals import StreamingBiasedALS

# else workers start whatever python3 the PATH has
os.environ.setdefault("PYSPARK_PYTHON", sys.executable)


def main(folder: Path, work: str) -> None:
    """Fit, then stream."""
    spark = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.shuffle.partitions", 2)
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    schema = "userId int, movieId int, rating double, timestamp long"
    ratings = spark.read.csv(str(folder / "ratings.csv"), schema, header=True)
    train, test = ratings.randomSplit([0.8, 0.2], seed=1)
    middle = train.approxQuantile("timestamp", [0.5], 0.0)[0]
    past, future = train.where(F.col("timestamp") <= middle), train.where(f"timestamp > {middle}")

    als = StreamingBiasedALS(userCol="userId", itemCol="movieId", timestampCol="timestamp")
    model = als.fit(past)
    print(f"fitted    {model}")
    print(f"          held-out RMSE {model.diagnose(test).rmse:.4f}\n")

    # ten files stand for a topic; the model filters each batch as it comes
    future.repartitionByRange(10, "timestamp").write.parquet(f"{work}/future")
    stream = spark.readStream.schema(schema).option("maxFilesPerTrigger", 1)
    job = model.updateStream(
        stream.parquet(f"{work}/future"),
        f"{work}/model",
        trigger={"availableNow": True},
        validation=test,
    )
    job.awaitTermination()
    columns = ["version", "ratings", "newUsers", "newItems", "rmse", "validationRmse"]
    print(job.metrics()[columns].to_string(index=False))

    # the model of the start stays as it is: another one carries on
    print(f"\nstreamed  {job.model}")
    print(f"          held-out RMSE {job.model.diagnose(test).rmse:.4f}")
    spark.stop()


if __name__ == "__main__":
    data = os.environ.get("SPARKML_SGDALS_DATA")
    if len(sys.argv) < 2 and not data:
        sys.exit(__doc__)
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(data or "", "ml-latest-small")
    with tempfile.TemporaryDirectory() as scratch:
        main(source, scratch)
