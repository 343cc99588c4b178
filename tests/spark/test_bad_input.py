"""Bad input: each is named with column or param, value and remedy; nothing goes in silence."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from helpers import assert_same_bits
from pyspark.sql import Window
from pyspark.sql import functions as F

from sparkml_sgdals import StreamingBiasedALS


@pytest.fixture(scope="module")
def als():
    return StreamingBiasedALS(timestampCol="time", rank=2, maxIter=1)


@pytest.mark.parametrize(
    ("param", "name"),
    [("userCol", "usr"), ("itemCol", "itm"), ("ratingCol", "stars"), ("timestampCol", "when"),
     ("weightCol", "w")],
)  # fmt: skip
def test_missing_column(als, ratings, param, name):
    wrong = als.copy({als.getParam(param): name})
    with pytest.raises(ValueError, match=rf"{param} '{name}' is not a column.*user, item, rating"):
        wrong.fit(ratings)


@pytest.mark.parametrize(
    ("column", "to", "message"),
    [
        ("user", "date", "userCol 'user' must hold integers or strings, got date"),
        ("item", "boolean", "itemCol 'item' must hold integers or strings, got boolean"),
        ("rating", "string", "ratingCol 'rating' must be numeric, got string"),
        ("time", "string", "timestampCol 'time' must be a number, a date or a timestamp"),
    ],
)
def test_wrong_type(als, ratings, column, to, message):
    value = F.lit(None).cast(to) if to == "date" else F.col(column).cast(to)
    with pytest.raises(TypeError, match=message):
        als.fit(ratings.withColumn(column, value))


def test_wrong_type_of_weight(als, ratings):
    weighted = als.copy({als.weightCol: "w"})
    with pytest.raises(TypeError, match="weightCol 'w' must be numeric"):
        weighted.fit(ratings.withColumn("w", F.lit("x")))


FAULTS = [
    ("user", "null", "userCol 'user' is null or no whole number in 3 rows"),
    ("item", "null", "itemCol 'item' is null or no whole number in 3 rows"),
    ("rating", "null", "ratingCol 'rating' is null, NaN or infinite in 3 rows"),
    ("rating", "nan", "ratingCol 'rating' is null, NaN or infinite in 3 rows"),
    ("rating", "inf", "ratingCol 'rating' is null, NaN or infinite in 3 rows"),
    ("time", "null", "timestampCol 'time' is null in 3 rows"),
    ("weight", "null", "weightCol 'weight' is null, NaN, infinite or negative in 3 rows"),
    ("weight", "-1", "weightCol 'weight' is null, NaN, infinite or negative in 3 rows"),
    ("weight", "nan", "weightCol 'weight' is null, NaN, infinite or negative in 3 rows"),
]


def spoilt(ratings, column, fault, rows=3):
    """Ratings with weights, and a fault in some rows of one column."""
    value = {
        "null": F.lit(None),
        "nan": F.lit(float("nan")),
        "inf": F.lit(float("-inf")),
        "-1": F.lit(-1.0),
    }[fault]
    numbered = ratings.withColumn("weight", F.lit(1.0)).withColumn(
        "n", F.row_number().over(Window.orderBy("time", "user", "item"))
    )
    kind = dict(numbered.dtypes)[column]
    bad = F.when(F.col("n") <= rows, value.cast(kind)).otherwise(F.col(column))
    return numbered.withColumn(column, bad), numbered.where(F.col("n") > rows)


@pytest.mark.parametrize(("column", "fault", "message"), FAULTS)
def test_invalid_rows_are_an_error_or_set_aside(als, ratings, caplog, column, fault, message):
    weighted = als.copy({als.weightCol: "weight"})
    bad, rest = spoilt(ratings.limit(300), column, fault)
    with pytest.raises(ValueError, match=message + r".*handleInvalid='skip'"):
        weighted.fit(bad)
    with caplog.at_level(logging.WARNING, "sparkml_sgdals"):
        skipping = weighted.copy({als.handleInvalid: "skip"}).fit(bad)
    assert "rows not learned" in caplog.text
    assert_same_bits(skipping, weighted.fit(rest))
    model = skipping.copy({als.handleInvalid: "error"})
    mark = model.state.fingerprint()
    with pytest.raises(ValueError, match=message):
        model.update(bad)
    assert (model.version, model.state.fingerprint()) == (0, mark)


def test_keep_where_it_makes_sense(als, ratings):
    keeping = als.copy({als.weightCol: "weight", als.handleInvalid: "keep"})
    for column, fault in (("time", "null"), ("weight", "-1")):
        bad, _ = spoilt(ratings.limit(300), column, fault)
        assert keeping.fit(bad).state.counters.ratings == 300
    bad, _ = spoilt(ratings.limit(300), "user", "null")
    assert keeping.fit(bad).state.counters.ratings == 297


def test_ids_with_a_fraction(als, spark):
    frame = spark.createDataFrame(
        [(1.0, 2, 3.0, 1), (1.5, 2, 3.0, 1)], "user double, item long, rating double, time long"
    )
    with pytest.raises(ValueError, match="userCol 'user' is null or no whole number in 1 row"):
        als.fit(frame)
    model = als.copy({als.handleInvalid: "skip"}).fit(frame)
    assert model.state.users.index.ids().to_pylist() == [1]


def test_empty_table(als, ratings):
    with pytest.raises(ValueError, match="no ratings to learn from"):
        als.fit(ratings.limit(0))
    bad, _ = spoilt(ratings.limit(2), "user", "null")
    with pytest.raises(
        ValueError, match=r"no ratings to learn from.*user: null or no whole number"
    ):
        als.copy({als.handleInvalid: "skip"}).fit(bad)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rank", 0, "rank must be at least 1, got 0"),
        ("maxIter", -1, "maxIter must be at least 0"),
        ("stepSize", 0.0, "stepSize must be greater than 0"),
        ("regParam", -0.1, "regParam must be at least 0"),
        ("factorPriorVariance", float("nan"), "factorPriorVariance must be greater than 0"),
        ("solver", "als", "solver must be one of bayes, sgd, minibatch, isgd, got 'als'"),
        ("coldStartStrategy", "zero", "coldStartStrategy must be one of bias, nan, drop"),
        ("handleInvalid", "ignore", "handleInvalid must be one of error, skip, keep"),
        ("blockSize", 0, "blockSize must be at least 1"),
    ],
)
def test_bad_params_fail_when_set(name, value, message):
    with pytest.raises(ValueError, match=message):
        StreamingBiasedALS(**{name: value})


def test_unknown_param():
    with pytest.raises(TypeError, match="ranks"):
        StreamingBiasedALS(ranks=3)


def test_a_stream_is_no_table(als, spark):
    with pytest.raises(ValueError, match="is a stream: call fitStream"):
        als.fit(spark.readStream.format("rate").load())


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("timestamp", "timestamp_seconds(time)"),
        ("timestamp_ntz", "cast(timestamp_seconds(time) as timestamp_ntz)"),
        ("date", "date_from_unix_date(cast(time / 100 as int))"),
        ("double", "cast(time as double) / 7"),
        ("int", "cast(time as int)"),
    ],
)
def test_times_of_every_type(als, ratings, kind, value):
    frame = ratings.withColumn("time", F.expr(value))
    assert dict(frame.dtypes)["time"] == kind
    model = als.fit(frame)
    if kind != "date":
        assert_same_bits(model, als.fit(ratings))
    assert np.isfinite(model.state.users.mean).all()
