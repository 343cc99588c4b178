"""Streams from every source that Spark has at hand: the same ratings give the same model."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import numpy as np
import pyspark
import pytest
from helpers import ONCE, assert_same_bits, long_after
from pyspark.sql import functions as F

from sparkml_sgdals import StreamingBiasedALS
from sparkml_sgdals.serving.intake.folder import FolderIntake
from sparkml_sgdals.serving.intake.history import IntakeColumns
from sparkml_sgdals.serving.intake.posts import Posted

DDL = "user long, item long, rating double, time long"


@pytest.fixture
def als():
    return StreamingBiasedALS(timestampCol="time", rank=3)


@pytest.mark.parametrize("format", long_after(1, ["json", "csv", "parquet"]))
def test_files(als, spark, small, files, stream, tmp_path, format):
    part = small.iloc[:2000]
    folder = tmp_path / format
    folder.mkdir()
    for number, start in enumerate(range(0, 2000, 500)):
        path = folder / f"{number}.{format}"
        rows = part.iloc[start : start + 500]
        if format == "csv":
            rows.to_csv(path, index=False, header=False)
        elif format == "json":
            rows.to_json(path, orient="records", lines=True)
        else:
            rows.to_parquet(path, index=False)
        os.utime(path, (1_000_000_000 + number, 1_000_000_000 + number))
    reader = spark.readStream.schema(DDL).option("maxFilesPerTrigger", 1).format(format)
    job = als.fitStream(reader.load(str(folder)), str(tmp_path / "m"), trigger=ONCE)
    job.awaitTermination()
    assert job.metrics().ratings.tolist() == [500] * 4
    same = als.fitStream(stream(files(part, 500)), str(tmp_path / "n"), trigger=ONCE)
    same.awaitTermination()
    assert_same_bits(job.model, same.model)


@pytest.mark.parametrize("trigger", long_after(1, ["0 seconds", "1 second"]))
def test_the_rate_source(als, spark, tmp_path, trigger):
    """It never ends: batches follow one another until the job is stopped."""
    source = spark.readStream.format("rate-micro-batch").option("rowsPerBatch", 200).load()
    ratings = source.select(
        (F.col("value") % 17).alias("user"),
        (F.col("value") * 7 % 31).alias("item"),
        (F.col("value") % 5 + 1).cast("double").alias("rating"),
        F.col("value").alias("time"),
    )
    job = als.fitStream(ratings, str(tmp_path / "m"), trigger={"processingTime": trigger})
    try:
        while len(job.metrics()) < 4:
            assert not job.awaitTermination(0.2)
    finally:
        job.stop(drain=True)
    metrics = job.metrics()
    assert (metrics.ratings == 200).all()
    assert metrics.batch.tolist() == list(range(len(metrics)))
    assert (job.model.userFactors.count(), job.model.itemFactors.count()) == (17, 31)


def test_rate_per_second(als, spark, tmp_path):
    source = spark.readStream.format("rate").option("rowsPerSecond", 500).load()
    ratings = source.select(
        (F.col("value") % 17).alias("user"),
        (F.col("value") % 13).alias("item"),
        F.lit(3.5).alias("rating"),
        F.col("timestamp").alias("time"),
    )
    job = als.fitStream(ratings, str(tmp_path / "m"))
    try:
        while job.metrics().ratings.sum() < 1000:
            assert not job.awaitTermination(0.2)
    finally:
        job.stop(drain=True)
    assert np.isfinite(job.model.state.users.mean).all()


@pytest.mark.timeout(600)
def test_delta(small, tmp_path):
    """A Delta table as a stream, in a session of its own, which brings Delta's jars."""
    pytest.importorskip(
        "delta",
        reason=f"no delta-spark, which has to be one for PySpark {pyspark.__version__}",
    )
    small.iloc[:1000].to_csv(tmp_path / "ratings.csv", index=False)
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            f"""
            from delta import configure_spark_with_delta_pip
            from pyspark.sql import SparkSession
            from sparkml_sgdals import StreamingBiasedALS
            builder = SparkSession.builder.master("local[2]").config(map={{
                "spark.ui.enabled": "false", "spark.sql.shuffle.partitions": "2",
                "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
                "spark.sql.catalog.spark_catalog":
                    "org.apache.spark.sql.delta.catalog.DeltaCatalog"}})
            spark = configure_spark_with_delta_pip(builder).getOrCreate()
            ratings = spark.read.csv({str(tmp_path / "ratings.csv")!r}, header=True, schema={DDL!r})
            table = {str(tmp_path / "delta")!r}
            ratings.coalesce(1).write.format("delta").save(table)
            als = StreamingBiasedALS(timestampCol="time", rank=3)
            once = {{"availableNow": True}}
            def learn():
                stream = spark.readStream.format("delta").load(table)
                job = als.fitStream(stream, {str(tmp_path / "m")!r}, trigger=once)
                job.awaitTermination()
                return job
            learn()
            ratings.limit(100).write.format("delta").mode("append").save(table)
            print(learn().metrics().ratings.tolist())
            spark.stop()
            """
        )
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYSPARK_SUBMIT_ARGS"}
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=560, check=False,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "[1000, 100]" in done.stdout


def test_an_inbox_of_ids_of_any_letters(spark, tmp_path):
    """What the service writes is what Spark reads, also where a letter ends a line elsewhere."""
    odd = [
        "\u2028",
        "\u2029",
        "\x85",
        "\x0b",
        "\x0c",
        "\x1c",
        "\r",
        "\n",
        '"',
        "\\",
        "\0",
        "é",
        "🎬",
    ]
    ids = [f"a{one}b" for one in odd]
    intake = FolderIntake(str(tmp_path), IntakeColumns())
    posts = [(f"k{n}", [Posted(one, one, 3.0, n)]) for n, one in enumerate(ids)]
    assert intake.put(posts).result(10)
    intake.close()
    rows = spark.read.schema("user string, item string, timestamp long").json(str(tmp_path))
    found = {row.timestamp: (row.user, row.item) for row in rows.collect()}
    assert found == {n: (one, one) for n, one in enumerate(ids)}


def test_an_inbox_whose_files_are_archived_once_learned(spark, tmp_path):
    """Each rating is learned once, and the service still knows keys and ratings of all files."""
    inbox, archive, path = tmp_path / "inbox", tmp_path / "learned", str(tmp_path / "m")
    columns = IntakeColumns()
    als = StreamingBiasedALS(userCol="user", itemCol="item", rank=2)
    ddl = "user int, item int, rating double, timestamp long, eventId string"
    posts = [(f"k{n}", [Posted(n % 7, n % 5, 3.0, n)]) for n in range(60)]
    for part in range(3):
        intake = FolderIntake(str(inbox), columns, every=0.0, archive=str(archive))
        assert len(intake.found) == 20 * part
        # a client that heard nothing sends all of it again
        sent = posts[: 20 * (part + 1)]
        receipts = [receipt for one in sent for receipt in intake.put([one]).result(10)]
        assert [one.repeated for one in receipts] == [True] * 20 * part + [False] * 20
        intake.close()
        reader = (
            spark.readStream.schema(ddl)
            .option("maxFilesPerTrigger", 7)
            .option("cleanSource", "archive")
            .option("sourceArchiveDir", str(archive))
        )
        # what is being written has a hidden name
        (inbox / ".ratings-9-9.json.tmp").write_bytes(b'{"user": 1, "item": 1, "rating": 5}\n')
        job = als.fitStream(reader.json(str(inbox)), path, trigger=ONCE)
        job.awaitTermination()
        (inbox / ".ratings-9-9.json.tmp").unlink()
        assert job.model.state.counters.ratings == 20 * (part + 1)
    moved = list(archive.rglob("ratings-*.json"))
    assert moved
    assert len(moved) + len(list(inbox.glob("ratings-*.json"))) == 60
