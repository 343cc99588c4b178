"""A model beside tables of Delta: learned from one as it grows, and its vectors in another.

    pip install "pyspark==4.2.*" delta-spark
    python examples/delta_tables.py [--folder out/delta]

Spark fetches Delta itself from Maven Central. The steps are those of docs/how-to/delta.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkml_sgdals import StreamingBiasedALS, StreamingBiasedALSModel, VectorChanges, VectorFeed

DELTA = "io.delta:delta-spark_4.2_2.13:4.4.0"
NEW = "_change_type IN ('insert', 'update_postimage')"
KNOWN = "side string, id bigint, vector array<float>, version int, position string"


def session() -> SparkSession:
    """A local session that knows Delta."""
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    return (
        SparkSession.builder.master("local[2]")
        .config("spark.jars.packages", DELTA)
        .config("spark.sql.extensions", "io.delta.sql.DeltaSparkSessionExtension")
        .config(
            "spark.sql.catalog.spark_catalog", "org.apache.spark.sql.delta.catalog.DeltaCatalog"
        )
        .config("spark.sql.shuffle.partitions", "2")
        .config("spark.ui.enabled", "false")
        .getOrCreate()
    )


def made_up(spark: SparkSession, first: int, count: int) -> DataFrame:
    """Ratings of 200 users and 100 items, each pair at most once."""
    number = F.col("id")
    return spark.range(first, first + count).select(
        (number % 200).alias("user"),
        (number * 37 % 100 + number / 20000).cast("long").alias("item"),
        (1 + F.pmod(F.hash(number % 200, number * 37 % 100), F.lit(5)))
        .cast("float")
        .alias("rating"),
        number.alias("time"),
    )


def take_up(spark: SparkSession, path: str, changes: VectorChanges) -> None:
    """Put changed vectors into a table of Delta, in one commit of its own."""
    parts = [
        spark.createDataFrame(table).select(
            F.lit(side).alias("side"),
            "id",
            "vector",
            F.lit(changes.version).alias("version"),
            F.lit(changes.position).alias("position"),
        )
        for side, table in (("user", changes.users), ("item", changes.items))
        if table.num_rows
    ]
    rows = parts[0] if len(parts) == 1 else parts[0].unionByName(parts[1])
    if changes.complete:
        rows.write.format("delta").mode("overwrite").save(path)
        return
    rows.createOrReplaceTempView("changed")
    spark.sql(
        f"MERGE INTO delta.`{path}` AS held USING changed "
        "ON held.side = changed.side AND held.id = changed.id "
        "WHEN MATCHED THEN UPDATE SET * WHEN NOT MATCHED THEN INSERT *"
    )


def follow(spark: SparkSession, model_path: str, path: str) -> int:
    """Bring the table of vectors up to the newest version; what it holds says where it stands."""
    spark.sql(f"CREATE TABLE IF NOT EXISTS delta.`{path}` ({KNOWN}) USING delta")
    table = spark.read.format("delta").load(path)
    newest = table.agg(F.max(F.struct("version", "position")).alias("newest")).first()["newest"]
    changes = VectorFeed(model_path).changes(newest and newest.position)
    if changes is None:
        return int(newest.version)
    take_up(spark, path, changes)
    return changes.version


def main() -> None:
    """Learn, change, learn on, and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", default="")
    given = parser.parse_args()
    folder = given.folder or tempfile.mkdtemp(prefix="delta-")
    ratings, path, vectors = (f"{folder}/{name}" for name in ("ratings", "model", "vectors"))
    spark = session()
    spark.sparkContext.setLogLevel("ERROR")
    spark.sql(
        f"CREATE TABLE delta.`{ratings}` (user bigint, item bigint, rating float, time bigint) "
        "USING delta TBLPROPERTIES (delta.enableChangeDataFeed = true)"
    )
    made_up(spark, 0, 3000).write.format("delta").mode("append").save(ratings)

    # the change feed from the table's first version: what was inserted, and what rows became
    als = StreamingBiasedALS(rank=4, timestampCol="time")
    reader = spark.readStream.format("delta").option("readChangeFeed", "true")
    feed = reader.option("startingVersion", 0).load(ratings).where(NEW)
    als.fitStream(feed, path, trigger="availableNow").awaitTermination()
    print("version", follow(spark, path, vectors), "of the vectors is in the table")

    made_up(spark, 3000, 500).write.format("delta").mode("append").save(ratings)
    spark.sql(f"UPDATE delta.`{ratings}` SET rating = 5 WHERE user = 7")
    spark.sql(f"DELETE FROM delta.`{ratings}` WHERE user = 8")
    job = StreamingBiasedALSModel.resumeStream(feed, path, trigger="availableNow")
    job.awaitTermination()
    learned = int(job.metrics().ratings.sum())
    changed = spark.read.format("delta").load(ratings).where("user = 7").count()
    print(f"{learned} ratings learned, {changed} of them changed ones")
    assert learned == 3500 + changed

    print("version", follow(spark, path, vectors), "of the vectors is in the table")
    job.model.exportVectors(f"{folder}/exported")
    table = spark.read.format("delta").load(vectors)
    for side in ("user", "item"):
        held = table.where(F.col("side") == side).select("id", "vector").orderBy("id").toArrow()
        exported = spark.read.parquet(f"{folder}/exported/{side}s.parquet").orderBy("id").toArrow()
        assert held.equals(exported), side
    print("the table holds the model's vectors, to the bit")

    # a table, not a stream, into a model in memory
    model = job.model.update(spark.read.format("delta").load(ratings).where("user < 3"))
    print("version", model.version, "in memory")
    spark.stop()


if __name__ == "__main__":
    main()
