"""Write an archive of the classes that Spark loads, which a JVM that starts later maps.

    python scripts/archive_spark.py .venv/spark.jsa

Loading and checking them is half of what a session costs until its first answers. The JVM keeps
what a program like the tests has made it load; one of another Java, or with other jars, does not
use it. tests/jvm.py looks for it where this Python's environment lies.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAM = """
import sys
import numpy as np
import pandas as pd
from pyspark.ml.recommendation import ALS
from pyspark.sql import SparkSession, Window
from pyspark.sql import functions as F
from sparkml_sgdals import StreamingBiasedALS, StreamingBiasedALSModel

archive, folder, options = sys.argv[1:]
spark = (
    SparkSession.builder.master("local[2]")
    .config("spark.ui.enabled", "false").config("spark.sql.shuffle.partitions", "2")
    .config("spark.sql.warehouse.dir", f"{folder}/warehouse")
    .config("spark.ui.showConsoleProgress", "false").config("spark.log.level", "ERROR")
    .config("spark.driver.extraJavaOptions", f"{options} -XX:ArchiveClassesAtExit={archive}")
    .getOrCreate()
)
rng = np.random.default_rng(0)
table = pd.DataFrame({
    "user": rng.integers(0, 30, 400), "item": rng.integers(0, 30, 400),
    "rating": rng.integers(1, 6, 400).astype(float), "time": np.arange(400),
})
ratings = spark.createDataFrame(table).cache()
model = StreamingBiasedALS(rank=2, maxIter=1, timestampCol="time").fit(ratings)
model.transform(ratings).groupBy("user").agg(F.avg("prediction")).orderBy("user").collect()
model.recommendForAllUsers(2, excludeSeen=ratings).toPandas()
model.copy().update(ratings.where("user > 3").withColumn("user", F.col("user") + 100))
model.save(f"{folder}/model")
StreamingBiasedALSModel.load(f"{folder}/model").evaluateRanking(ratings.limit(50), 5)
for kind in ("csv", "json", "parquet"):
    ratings.write.option("header", True).format(kind).save(f"{folder}/{kind}")
read = spark.read.csv(f"{folder}/csv", header=True, inferSchema=True)
first = F.row_number().over(Window.partitionBy("user").orderBy("time", "item")) <= 2
parsed = spark.read.json(f"{folder}/json").withColumn("first", first).where("first")
read.join(parsed, ["user", "item", "time"]).count()
spark.read.parquet(f"{folder}/parquet").unionByName(read.select(*ratings.columns)).distinct().count()
stream = spark.readStream.schema(ratings.schema).parquet(f"{folder}/parquet")
model.updateStream(stream, f"{folder}/path", trigger={"availableNow": True}).awaitTermination()
als = ALS(rank=2, maxIter=1, seed=1)
als.fit(ratings).transform(ratings).count()
spark.stop()
"""


def write(path: Path) -> None:
    """Run the program with a JVM that writes the archive as it ends."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from jvm import OPTIONS

    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "spark.jsa"
        done = subprocess.run(
            # the output ends with the JVM, which has written it by then
            [sys.executable, "-c", PROGRAM, str(made), folder, " ".join(OPTIONS)],
            capture_output=True, text=True, check=False, timeout=600,
            env=os.environ | {"PYSPARK_PYTHON": sys.executable},
        )  # fmt: skip
        if done.returncode or not made.exists():
            raise RuntimeError(f"Spark's classes are not archived: {done.stderr[-2000:]}")
        beside = path.with_suffix(f".{os.getpid()}.tmp")
        beside.write_bytes(made.read_bytes())
        os.replace(beside, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("path", type=Path)
    write(parser.parse_args().path)
