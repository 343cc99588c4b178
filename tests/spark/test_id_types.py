"""Ids of every type, user and item apart; other types at transform: cast safely, or refused."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import ONCE, assert_same_bits, long_after, predictions, rmse
from pyspark.sql import functions as F

from sparkml_sgdals import StreamingBiasedALS, StreamingBiasedALSModel

WHOLE = ["byte", "short", "int", "long", "decimal(10,0)", "decimal(12,3)", "float", "double"]
GIVEN_BACK = {"byte": "tinyint", "short": "smallint", "int": "int", "string": "string"}
"""Spark's name of the type in which ids come back; bigint for the others"""


@pytest.fixture(scope="module")
def als():
    return StreamingBiasedALS(rank=2, maxIter=1)


@pytest.fixture(scope="module")
def table(spark):
    """40 ratings of 8 users and 7 items, ids -3 to 99 as ints; a number to sort by."""
    rng = np.random.default_rng(3)
    users, items = [-3, 0, 1, 5, 20, 77, 98, 99], [-1, 0, 2, 3, 50, 60, 99]
    rows = [
        (n, users[rng.integers(8)], items[rng.integers(7)], float(rng.integers(1, 6)))
        for n in range(40)
    ]
    return spark.createDataFrame(rows, "n int, user int, item int, rating double").cache()


@pytest.fixture(scope="module")
def model(als, table):
    return als.fit(table)


@pytest.fixture(scope="module")
def named(als, table):
    """Users as strings, items as ints."""
    return als.fit(with_type(table, "user", "string"))


def with_type(frame, column, kind):
    return frame.withColumn(column, F.col(column).cast(kind))


@pytest.mark.parametrize(("user", "item"), long_after(2, zip(WHOLE, reversed(WHOLE), strict=True)))
def test_integers_of_any_type_are_the_same_model(als, table, model, user, item):
    typed = with_type(with_type(table, "user", user), "item", item)
    found = als.fit(typed)
    assert_same_bits(found, model)
    expected = tuple(GIVEN_BACK.get(kind, "bigint") for kind in (user, item))
    assert found.idTypes == expected
    assert tuple(dict(f.dtypes)["id"] for f in (found.userFactors, found.itemFactors)) == expected
    best = found.recommendForAllUsers(2)
    assert dict(best.dtypes) == {
        "user": expected[0],
        "recommendations": f"array<struct<item:{expected[1]},rating:float>>",
    }
    assert best.count() == model.state.users.size
    np.testing.assert_array_equal(
        predictions(found.transform(typed), ["n"]), predictions(model.transform(table), ["n"])
    )


@pytest.mark.parametrize("side", long_after(1, ["user", "item"]))
def test_strings_on_one_side_alone(als, table, side):
    other = "item" if side == "user" else "user"
    found = als.fit(with_type(table, side, "string"))
    assert sorted(found.idTypes) == ["int", "string"]
    sides = {"user": found.state.users.index, "item": found.state.items.index}
    assert (sides[side].kind, sides[other].kind) == ("str", "int")
    ids = {row[0] for row in table.select(side).distinct().collect()}
    assert set(sides[side].ids().to_pylist()) == {str(i) for i in ids}
    scored = found.transform(with_type(table, side, "string"))
    assert np.std(predictions(scored, ["n"])) > 0.1


@pytest.mark.parametrize("column", ["user", pytest.param("item", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("kind", long_after(2, WHOLE))
def test_another_type_at_transform_is_cast(table, model, column, kind):
    np.testing.assert_array_equal(
        predictions(model.transform(with_type(table, column, kind)), ["n"]),
        predictions(model.transform(table), ["n"]),
    )


@pytest.mark.parametrize(
    ("value", "kind"),
    long_after(2, [
        ("7.5", "double"), ("4294967295", "long"), ("nan", "double"), ("inf", "double"),
        ("1e300", "double"), ("99999999999999999999999", "decimal(38,0)"), (None, "int"),
        ("7.5", "decimal(5,2)"),
    ]),
)  # fmt: skip
def test_what_is_no_known_id_is_an_unknown_one(spark, model, value, kind):
    """Never taken for another id by rounding or overflow: -1 is one, and so would 7 be for 7.5."""
    pairs = spark.createDataFrame([(value,)], "text string").select(
        F.lit(99).alias("user"), F.col("text").cast(kind).alias("item")
    )
    nowhere = spark.createDataFrame([(99, 12345)], "user int, item int")
    (expected,) = predictions(model.transform(nowhere), ["user"])
    (found,) = predictions(model.transform(pairs), ["user"])
    assert found == expected
    cold = model.copy({model.coldStartStrategy: "drop"})
    assert cold.transform(pairs).count() == 0


@pytest.mark.parametrize("column", ["user", "item"])
@pytest.mark.parametrize("kind", ["string", "boolean", "date", "binary", "array<int>"])
def test_other_types_are_refused_by_name(table, model, column, kind):
    value = F.lit(None).cast(kind) if kind != "string" else F.col(column).cast(kind)
    wrong = table.withColumn(column, value)
    message = rf"{column}Col '{column}' .*{kind}.*(Cast it|Convert it)"
    for refused in (model.transform, model.copy().update):
        with pytest.raises(TypeError, match=message):
            refused(wrong)


def test_integers_for_strings_are_refused_by_name(table, named):
    message = r"userCol 'user' has type int, the model was learned from strings.*Cast it to string"
    for refused in (
        named.transform,
        named.copy().update,
        lambda frame: named.recommendForUserSubset(frame, 2),
        lambda frame: named.recommendForAllUsers(2, excludeSeen=frame),
        lambda frame: named.recommendForAllItems(2, excludeSeen=frame),
        lambda frame: named.similarUsers(frame, 2),
        named.diagnose,
    ):
        with pytest.raises(TypeError, match=message):
            refused(table)


@pytest.mark.parametrize("kind", ["long", "decimal(10,0)", "double"])
def test_update_with_another_type(table, model, kind):
    batch = with_type(table.where("n < 10"), "user", kind)
    found = model.copy().update(batch)
    assert_same_bits(found, model.copy().update(table.where("n < 10")))
    assert found.idTypes == ("int", "int")


@pytest.mark.long
def test_longs_learned_after_ints(spark, table, model, tmp_path):
    """Regression: an id beyond the first table's type could not be given back."""
    wide = spark.createDataFrame(
        [(2**40, 3, 4.0), (1, -(2**35), 2.0)], "user long, item long, rating double"
    )
    found = model.copy().update(wide)
    found.save(str(tmp_path / "m"))
    for grown in (found, StreamingBiasedALSModel.load(str(tmp_path / "m"))):
        for factors, new in ((grown.userFactors, 2**40), (grown.itemFactors, -(2**35))):
            assert dict(factors.dtypes)["id"] == "bigint"
            assert new in {row.id for row in factors.collect()}
        best = {
            r.user: [i.item for i in r.recommendations]
            for r in grown.recommendForAllUsers(99).collect()
        }
        assert -(2**35) in best[2**40]
        assert -(2**35) in {r.item for r in grown.recommendForAllItems(1).collect()}
        subset = wide.select("item").where("item < 0")
        assert [r.item for r in grown.similarItems(subset, 2).collect()] == [-(2**35)]
    assert dict(model.userFactors.dtypes)["id"] == "int"


def test_a_stream_of_longs_after_a_table_of_ints(table, model, files, stream, tmp_path):
    wide = table.limit(4).withColumn("user", F.col("user").cast("long") + F.lit(2**40))
    rows = wide.drop("n").toPandas()
    incoming = stream(files(rows, 4), "user long, item long, rating double")
    job = model.updateStream(incoming, str(tmp_path / "m"), trigger=ONCE)
    job.awaitTermination()
    users = {row.id for row in job.model.userFactors.collect()}
    assert set(rows.user) < users
    assert np.isfinite(predictions(job.model.transform(table), ["n"])).all()


@pytest.mark.slow
def test_any_ids_learn_alike(real, spark):
    """Longs beyond 2^32 and strings give the RMSE of small integers to 0.5%."""
    train, held = real("ml-latest-small")
    als = StreamingBiasedALS(timestampCol="time")

    def score(change):
        one, other = change(train), change(held)
        return rmse(als.fit(spark.createDataFrame(one)), other, spark)

    small = score(lambda d: d)
    large = score(lambda d: d.assign(user=d.user + 2**33, item=d.item * 2**34))
    text = score(lambda d: d.assign(user="u" + d.user.astype(str), item=d.item.astype(str) + "ü"))
    print({"small integers": small, "beyond 2^32": large, "strings": text})
    assert abs(large / small - 1) < 0.005
    assert abs(text / small - 1) < 0.005
