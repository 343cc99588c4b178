"""Learn from files as they arrive: python examples/stream_from_files.py INBOX MODEL

INBOX is a folder of CSV files userId,movieId,rating,timestamp with a header; MODEL is the folder
for the model and its progress. Each run learns the files that are new since the last one, each
exactly once, and ends; run it from cron, or again after a crash. To try it:

    mkdir inbox && cp .../ml-latest-small/ratings.csv inbox/
    python examples/stream_from_files.py inbox model      # learns them
    head -500 inbox/ratings.csv > inbox/more.csv
    python examples/stream_from_files.py inbox model      # learns the 499 new ones
"""

import os
import sys
from pathlib import Path

from pyspark.sql import SparkSession

from sparkml_sgdals import StreamingBiasedALS, StreamingBiasedALSModel

# else workers start whatever python3 the PATH has
os.environ.setdefault("PYSPARK_PYTHON", sys.executable)


def main(inbox: str, model_path: str) -> None:
    """Learn what is new in the inbox."""
    spark = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.shuffle.partitions", 2)
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    schema = "userId int, movieId int, rating double, timestamp long"
    stream = (
        spark.readStream.schema(schema)
        .option("header", True)
        .option("maxFilesPerTrigger", 10)
        .csv(inbox)
    )

    before = 0
    if Path(model_path).exists():
        model = StreamingBiasedALSModel.load(model_path)
        before = model.version
        print(f"resumes   {model}")
    als = StreamingBiasedALS(userCol="userId", itemCol="movieId", timestampCol="timestamp")
    # {"processingTime": "10 seconds"} would go on watching the inbox instead
    job = als.fitStream(stream, model_path, trigger={"availableNow": True})
    job.awaitTermination()

    metrics = job.metrics()
    new = metrics[metrics.version > before]
    print(f"learned   {new.ratings.sum():,} new ratings in {len(new)} batches")
    print(f"now       {job.model}")
    if len(new):
        print(new[["batch", "ratings", "newUsers", "newItems", "rmse", "seconds"]].to_string())
    spark.stop()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2])
