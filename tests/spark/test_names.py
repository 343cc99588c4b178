"""Names of columns as joins and producers leave them, and streams where a table is needed."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import assert_same_bits, predictions
from pyspark.ml.recommendation import ALS
from pyspark.sql import functions as F

from sparkml_sgdals import (
    RankingValidationSplit,
    StreamingBiasedALS,
    parseRatings,
)
from sparkml_sgdals.ingest.bad_rows import invalid_rows

AWKWARD = ["a`b", "with space ", "dot.ted", "select", "`", "Ünïcode", "a`.`b", "__user"]


@pytest.fixture(scope="module")
def als():
    return StreamingBiasedALS(timestampCol="time", rank=2, maxIter=1)


@pytest.fixture(scope="module")
def fitted(als, ratings):
    return als.fit(ratings)


@pytest.fixture
def joined(spark, ratings):
    """A table with two columns "note" and two "weight`", as a join leaves them."""
    titles = ratings.select(F.col("item").alias("i2")).distinct()
    titles = titles.withColumn("note", F.lit("b")).withColumn("weight`", F.lit(2))
    noted = ratings.withColumn("note", F.lit("a")).withColumn("weight`", F.lit(1))
    return noted.join(titles, F.col("item") == F.col("i2"))


class TestTwoColumnsOfOneName:
    @pytest.mark.long
    def test_are_scored_as_spark_scores_them(self, spark, fitted, ratings, joined, small):
        found = fitted.transform(joined)
        theirs = ALS(rank=2, maxIter=1, seed=1).fit(ratings).transform(joined)
        assert found.columns == theirs.columns == [*joined.columns, "prediction"]
        assert found.count() == len(small)
        table = found.toArrow()
        assert [set(table.column(n).to_pylist()) for n in (4, 7)] == [{"a"}, {"b"}]
        alone = predictions(fitted.transform(ratings), ["user", "item", "time", "rating"])
        np.testing.assert_array_equal(
            predictions(found.select("user", "item", "time", "rating", "prediction"),
                        ["user", "item", "time", "rating"]), alone,
        )  # fmt: skip

    def test_are_learned_and_ranked_with(self, als, fitted, joined):
        assert_same_bits(als.fit(joined), fitted)
        rows = fitted.recommendForUserSubset(joined, 2, excludeSeen=joined)
        assert rows.count() == fitted.state.users.size

    @pytest.mark.long
    def test_are_set_aside_whole(self, als, joined, small):
        bad = joined.withColumn("rating", F.when(F.col("item") > 100, F.col("rating")))
        model = als.copy({als.handleInvalid: "skip"}).fit(joined.limit(100))
        model.update(bad)
        rows = invalid_rows(bad, als.ratingColumns(), ("int", "int"), False)
        assert len(rows) == (small["item"] <= 100).sum()
        assert all('"note":"a"' in row and '"note":"b"' in row for row in rows)

    def test_that_hold_ids_are_told_apart_by_the_user(self, als, fitted, ratings):
        twice = ratings.alias("a").join(ratings.alias("b"), F.expr("a.item = b.item"))
        message = "'user' is the name of 2 columns of the DataFrame, as after a join"
        for ask in (als.fit, fitted.transform, lambda t: fitted.recommendForUserSubset(t, 2)):
            with pytest.raises(ValueError, match=f"userCol {message}"):
                ask(twice)


class TestAwkwardNames:
    def test_of_any_column(self, fitted, ratings):
        table = ratings.select("*", *[F.lit(n).alias(name) for n, name in enumerate(AWKWARD)])
        found = fitted.transform(table.limit(5))
        assert found.columns == [*ratings.columns, *AWKWARD, "prediction"]
        for n in range(len(AWKWARD)):
            assert found.toArrow().column(4 + n).to_pylist() == [n] * 5

    @pytest.mark.parametrize("name", ["a`b", pytest.param("dot.ted", marks=pytest.mark.long)])
    def test_of_ids_and_ratings(self, ratings, name):
        names = {"userCol": f"u{name}", "itemCol": f"i{name}", "ratingCol": f"r{name}"}
        als = StreamingBiasedALS(timestampCol="time", rank=2, maxIter=1, **names)
        table = ratings.toDF(*names.values(), "time")
        model = als.fit(table)
        assert model.transform(table.limit(5)).columns[-1] == "prediction"
        (row,) = model.recommendForUserSubset(table.limit(1), 2, excludeSeen=table).collect()
        assert row.recommendations[0].asDict().keys() == {f"i{name}", "rating"}
        assert model.recommendOne(1, 1)[0].asDict().keys() == {f"i{name}", "rating"}
        assert model.similarItems(table.limit(1), 2).columns[0] == f"i{name}"
        judged = model.evaluateRanking(table, 2)
        assert judged.users == model.state.users.size

    def test_of_messages(self, spark):
        sent = spark.createDataFrame([('{"a`b": 1, "c.d": 2}',)], "value string")
        read = parseRatings(sent, "json", "`a``b` int, `c.d` int")
        assert read.columns[:2] == ["a`b", "c.d"]
        assert read.toArrow().column(0).to_pylist() == [1]


def test_a_stream_where_a_table_is_needed(als, fitted, ratings, files, stream, small, tmp_path):
    source = stream(files(small[:100], 50))
    model = fitted.copy()
    asked = {
        "call fitStream": lambda: als.fit(source),
        "call updateStream": lambda: model.update(source),
        "diagnose judges on a table": lambda: model.diagnose(source),
        "collect its users": lambda: model.recommendForUserSubset(source, 2),
        "collect its items": lambda: model.similarItems(source, 2),
        "excludeSeen is a table": lambda: model.recommendForAllUsers(2, excludeSeen=source),
        "rankings are judged on a table": lambda: model.evaluateRanking(source, 2),
        "validation is a table": lambda: als.fitStream(source, tmp_path / "m", validation=source),
        "StreamingGridSearch": lambda: RankingValidationSplit(
            estimator=als, estimatorParamMaps=[{als.rank: 2}]
        ).fit(source),
    }
    for remedy, ask in asked.items():
        with pytest.raises(ValueError, match=rf"is a stream: .*{remedy}"):
            ask()
    assert model.transform(source).isStreaming
