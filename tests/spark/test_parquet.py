"""fitParquet: the bits of fit, from files of every kind that it reads itself or leaves to Spark."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import assert_same_bits
from pyspark.sql import functions as F

from sparkml_sgdals import StreamingBiasedALS
from sparkml_sgdals.ingest.parquet import pack_parquet


def estimator(**params):
    return StreamingBiasedALS(timestampCol="time", rank=4, maxIter=2, **params)


def read_by_tasks(spark, path, als):
    """Whether tasks read these files themselves."""
    df = spark.read.parquet(str(path))
    kinds, _ = als._ids_of(df)
    return pack_parquet(df, str(path), als.ratingColumns(), kinds, False) is not None


@pytest.mark.long
def test_a_pattern_is_left_to_spark(spark, small: pd.DataFrame, tmp_path: Path, monkeypatch):
    for number, part in enumerate(np.array_split(np.arange(len(small)), 3)):
        table = pa.Table.from_pandas(small.iloc[part], preserve_index=False)
        pq.write_table(table, tmp_path / f"part-{number}.parquet")
    als = estimator()
    monkeypatch.chdir(tmp_path)
    expected = als.fit(spark.read.parquet(f"{tmp_path}/part-[01].parquet"))
    for path in (tmp_path / "part-[01].parquet", "part-{0,1}.parquet", "*-[!2].parquet"):
        assert_same_bits(als.fitParquet(path), expected)
    assert als.fitParquet("*.parquet").state.counters.ratings == len(small)
    with pytest.raises(TypeError, match=r"fit\(spark.read.parquet\(\*paths\)\)"):
        als.fitParquet(["part-0.parquet", "part-1.parquet"])


@pytest.mark.long
@pytest.mark.parametrize("blocks", [1, 2])
def test_folder_of_files_and_row_groups(spark, small: pd.DataFrame, tmp_path: Path, blocks):
    for number, part in enumerate(np.array_split(np.arange(len(small)), 3)):
        table = pa.Table.from_pandas(small.iloc[part], preserve_index=False)
        pq.write_table(table, tmp_path / f"part-{number}.parquet", row_group_size=50)
    (tmp_path / "_SUCCESS").touch()
    als = estimator(numBlocks=blocks)
    assert read_by_tasks(spark, tmp_path, als)
    expected = als.fit(spark.read.parquet(str(tmp_path)))
    found = als.fitParquet(str(tmp_path))
    assert_same_bits(expected, found)
    assert found.summary.ratings == len(small)
    assert_same_bits(expected, als.fitParquet(f"file://{tmp_path}"))


def test_what_spark_wrote_with_strings_and_weights(spark, ratings, tmp_path: Path):
    table = ratings.select(
        F.concat(F.lit("u"), "user").alias("user"), "item", "rating", "time",
        (1 + F.col("item") % 3).cast("double").alias("weight"),
    )  # fmt: skip
    table.write.parquet(str(tmp_path / "written"))
    als = estimator(weightCol="weight")
    assert read_by_tasks(spark, tmp_path / "written", als)
    assert_same_bits(als.fit(table), als.fitParquet(str(tmp_path / "written")))


@pytest.mark.long
def test_what_has_to_be_converted_is_left_to_spark(spark, ratings, tmp_path: Path):
    table = ratings.withColumn("time", F.timestamp_micros("time"))
    table.withColumn("item", F.col("item").cast("decimal(9,0)")).write.parquet(str(tmp_path / "a"))
    ratings.write.partitionBy("item").parquet(str(tmp_path / "b"))
    als = estimator()
    for folder in ("a", "b"):
        path = str(tmp_path / folder)
        assert not read_by_tasks(spark, path, als)
        assert_same_bits(als.fit(spark.read.parquet(path)), als.fitParquet(path))


def test_rows_that_cannot_be_learned(spark, tmp_path: Path):
    rows = pa.table(
        {
            "user": pa.array([1, None, 2, 3], pa.int32()),
            "item": [1, 1, 2, 2],
            "rating": [1.0, 2.0, float("nan"), 4.0],
            "time": [1, 2, 3, 4],
        }
    )
    pq.write_table(rows, tmp_path / "bad.parquet")
    with pytest.raises(
        ValueError, match=r"ratingCol 'rating' is .* in 1 row; userCol 'user' is null"
    ):
        estimator().fitParquet(str(tmp_path))
    assert estimator(handleInvalid="skip").fitParquet(str(tmp_path)).summary.ratings == 2


def test_missing_column_and_no_rows(spark, small: pd.DataFrame, tmp_path: Path):
    empty = pa.Table.from_pandas(small.iloc[:0], preserve_index=False)
    pq.write_table(empty, tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match="no ratings to learn from"):
        estimator().fitParquet(str(tmp_path))
    with pytest.raises(ValueError, match="userCol 'who' is not a column"):
        estimator(userCol="who").fitParquet(str(tmp_path))
