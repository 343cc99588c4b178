"""Bad input: each is named with column or param, value and remedy; nothing goes in silence."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from helpers import assert_same_bits, long_after
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
    with pytest.raises(
        ValueError, match=rf"{param} '{name}' is not a column.*'user', 'item', 'rating'"
    ):
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
    *long_after(
        2,
        [
            ("user", "null", "userCol 'user' is null in 3 rows"),
            ("weight", "-1", r"weightCol 'weight' is negative in 3 rows \(such as -1.0\)"),
            ("rating", "nan", "ratingCol 'rating' is NaN or infinite in 3 rows"),
            ("rating", "inf", "ratingCol 'rating' is NaN or infinite in 3 rows"),
            ("time", "null", "timestampCol 'time' is null in 3 rows"),
            ("weight", "nan", "weightCol 'weight' is NaN or infinite in 3 rows"),
        ],
    ),
    *long_after(
        0,
        [
            ("item", "null", "itemCol 'item' is null in 3 rows"),
            ("rating", "null", "ratingCol 'rating' is null in 3 rows"),
            ("weight", "null", "weightCol 'weight' is null in 3 rows"),
        ],
    ),
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
    assert f"rows not learned: {message.partition(' is ')[0]} is " in caplog.text
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
    with pytest.raises(
        ValueError, match=r"userCol 'user' is no whole number in 1 row \(such as 1\.5\)"
    ):
        als.fit(frame)
    model = als.copy({als.handleInvalid: "skip"}).fit(frame)
    assert model.state.users.index.ids().to_pylist() == [1]


WRONG = {
    "a time in microseconds as a double": (
        "time", "cast(1.5e15 as double)",
        r"is too large a time, .* cast one of .* microseconds to 'bigint'; it is so in 2 rows "
        r"\(such as 1\.5E15\)",
    ),
    "a decimal time": (
        "time", "cast(1500000000000000 as decimal(20,3))", "too large a time.*2 rows",
    ),
    "an id over 64 bits": (
        "user", "cast('36893488147419103232' as decimal(38,0))",
        r"does not fit into 64 bits; .*cast to 'string'.* 2 rows \(such as 36893488147419103232\)",
    ),
    "a double that is no id": (
        "item", "cast(1e30 as double)", "does not fit into 64 bits.* 2 rows",
    ),
    "an infinite id": ("item", "cast('Infinity' as double)", "is NaN or infinite in 2 rows"),
    "a fraction": (
        "item", "cast(2.5 as decimal(5,1))", r"no whole number in 2 rows \(such as 2\.5\)",
    ),
    "no text": ("user", "cast(null as string)", "userCol 'user' is null in 2 rows"),
    "a rating beyond floats": (
        "rating", "cast(1e300 as double)", r"32-bit float in 2 rows \(such as 1\.0E300\)",
    ),
}  # fmt: skip


FIRST = {"an id over 64 bits", "a rating beyond floats"}
"""of the above what the default suite tries"""


@pytest.mark.parametrize(
    "case", [c if c in FIRST else pytest.param(c, marks=pytest.mark.long) for c in WRONG]
)
def test_what_a_bad_row_really_is(als, ratings, case):
    column, value, message = WRONG[case]
    kind = f"typeof({value})"
    (to,) = ratings.limit(1).selectExpr(f"{kind} AS to").collect()[0]
    own = F.col(column).cast(to)
    first = F.row_number().over(Window.orderBy("time", "user", "item")) <= 2
    bad = ratings.limit(50).withColumn(column, F.when(first, F.expr(value)).otherwise(own))
    with pytest.raises(ValueError, match=message):
        als.fit(bad)
    skipping = als.copy({als.handleInvalid: "skip"}).fit(bad)
    assert skipping.state.counters.ratings == 48
    strict = skipping.copy({als.handleInvalid: "error"})
    with pytest.raises(ValueError, match=message):
        strict.update(bad)


def test_rows_with_different_faults_count_for_their_own(als, spark):
    rows = [(1.5, 2, 3.0, 1), (None, 2, 3.0, 1), (float("nan"), None, 3.0, 1), (1e20, 2, None, 1)]
    bad = spark.createDataFrame(rows, "user double, item long, rating double, time long")
    with pytest.raises(ValueError, match="userCol 'user' is null in 1 row, is NaN") as raised:
        als.fit(bad)
    for part in ("is NaN or infinite in 1 row, is no whole number in 1 row (such as 1.5), does not",
                 "such as 1.0E20). ", "itemCol 'item' is null in 1 row",
                 "ratingCol 'rating' is null in 1 row"):  # fmt: skip
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("names", "remedy"),
    [
        (
            [" user", "item ", "rating"],
            r"'\ user', 'item ', 'rating'. Take what cannot be seen out",
        ),
        (["\ufeffuser", "item", "rating"], r"which has '\\ufeffuser'.*df.toDF\("),
        (["User_", "item", "rating"], "Set userCol to one of them, such as 'User_'"),
        (["usr", "item", "rating"], "such as 'usr'"),
        (["a", "b", "c"], r"Set userCol to one of them\."),
    ],
)
def test_names_that_look_alike(spark, names, remedy):
    table = spark.createDataFrame([(1, 2, 3.0)], names)
    with pytest.raises(ValueError, match=rf"userCol 'user' is not a column.*{remedy}"):
        StreamingBiasedALS().fit(table)
    if "cannot be seen" in remedy:
        stripped = table.toDF(*[name.strip("\ufeff \t") for name in table.columns])
        assert StreamingBiasedALS(rank=1, maxIter=1).fit(stripped).state.users.size == 1


def test_a_deviation_needs_a_column_of_its_own(als, ratings):
    model = als.fit(ratings)
    for name in ("prediction", "Prediction"):
        twice = model.copy({model.predictionStdCol: name})
        with pytest.raises(
            ValueError, match=f"predictionStdCol and predictionCol are both '{name}'"
        ):
            twice.transform(ratings)


def test_empty_table(als, ratings):
    with pytest.raises(ValueError, match="no ratings to learn from"):
        als.fit(ratings.limit(0))
    bad, _ = spoilt(ratings.limit(2), "user", "null")
    with pytest.raises(
        ValueError,
        match=r"no ratings to learn from.*userCol 'user' is null or no 64-bit whole number",
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
    long_after(
        2,
        [
            ("timestamp", "timestamp_seconds(time)"),
            ("double", "cast(time as double) / 7"),
            ("timestamp_ntz", "cast(timestamp_seconds(time) as timestamp_ntz)"),
            ("date", "date_from_unix_date(cast(time / 100 as int))"),
            ("int", "cast(time as int)"),
        ],
    ),
)
def test_times_of_every_type(als, ratings, kind, value):
    frame = ratings.withColumn("time", F.expr(value))
    assert dict(frame.dtypes)["time"] == kind
    model = als.fit(frame)
    if kind != "date":
        assert_same_bits(model, als.fit(ratings))
    assert np.isfinite(model.state.users.mean).all()
