"""Tables of other libraries, lists of ids, paths and triggers as people write them first."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from helpers import assert_same_bits, long_after
from pyspark.sql import DataFrame, Row

from sparkml_sgdals import Predictor, StreamingBiasedALS, StreamingBiasedALSModel

COLUMNS = ["user", "item", "rating", "time"]


@pytest.fixture(scope="module")
def als():
    return StreamingBiasedALS(timestampCol="time", rank=3, maxIter=2)


@pytest.fixture(scope="module")
def fitted(als, ratings):
    return als.fit(ratings)


@pytest.fixture(scope="module")
def remembering(als, ratings):
    return als.copy({als.rankingSize: 5}).fit(ratings)


@pytest.fixture
def model(fitted):
    return fitted.copy()


def polars_frame(table):
    polars = pytest.importorskip("polars")
    return polars.from_pandas(table)


def matrix(table):
    return table[COLUMNS].to_numpy()


OTHERS = {
    "pandas": lambda table: table,
    "numbers for names": lambda table: table.assign(**{"7": 1}).rename(columns={"7": 7}),
    "two columns of one name": lambda table: pd.concat(
        [table, *[table["time"].rename("n")] * 2], axis=1
    ),
    "short floats": lambda table: table.astype({"rating": "float32"}),
    "narrow types": lambda table: table.astype({"user": "uint16", "item": "Int32"}),
    "arrow": pa.Table.from_pandas,
    "polars": polars_frame,
    "pandas on Spark": lambda table: pytest.importorskip("pyspark.pandas").from_pandas(table),
    "array": matrix,
    "named array": lambda table: table.to_records(index=False),
    "tuples": lambda table: list(table[COLUMNS].itertuples(index=False, name=None)),
    "named tuples": lambda table: list(table.itertuples(index=False)),
    "dicts": lambda table: table.to_dict("records"),
    "rows": lambda table: [Row(**row) for row in table.to_dict("records")],
    "columns": lambda table: {name: table[name].to_list() for name in table},
    "ids as an index": lambda table: table.set_index(["user", "item"]),
    "ids as an index on Spark": lambda table: pytest.importorskip("pyspark.pandas").from_pandas(
        table.set_index("user")
    ),
    "a generator": lambda table: (row for row in table[COLUMNS].to_numpy()),
}


class TestFit:
    @pytest.mark.parametrize("kind", long_after(8, OTHERS))
    def test_gives_the_bits_of_the_same_table_in_spark(self, als, fitted, small, kind):
        found = als.fit(OTHERS[kind](small))
        assert_same_bits(found, fitted)

    def test_update_grid_and_validation_take_them_too(self, als, model, small):
        assert model.update(small[:10]).state.counters.ratings == len(small) + 10
        assert model.diagnose(small[:50]).predicted == 50
        two = als.fit(small, [{als.rank: 2}, {als.rank: 3}])
        assert [one.rank for one in two] == [2, 3]

    def test_string_ids_and_missing_values(self, small):
        table = small.assign(user=small["user"].map("u{}".format).astype("category"))
        table.loc[3, "item"] = None
        als = StreamingBiasedALS(rank=2, maxIter=1, handleInvalid="skip")
        found = als.fit(table)
        assert found.state.counters.ratings == len(small) - 1
        assert found.idTypes == ("string", "bigint")


class TestTransform:
    @pytest.mark.parametrize("strategy", ["bias", "drop"])
    def test_pandas_comes_back_in_its_order_with_its_index(self, model, spark, small, strategy):
        given = small[["item", "user"]].sample(40, random_state=1).assign(note=[{1, "a"}] * 40)
        given.iloc[3, 0] = -5
        model = model.copy({model.coldStartStrategy: strategy})
        found = model.transform(given.drop(columns="note"))
        assert isinstance(found, pd.DataFrame)
        expected = given[given["item"] > 0] if strategy == "drop" else given
        assert found.index.tolist() == expected.index.tolist()
        assert found[["item", "user"]].equals(expected[["item", "user"]])
        one = [model.predictOne(u, i) for u, i in zip(found["user"], found["item"], strict=True)]
        np.testing.assert_allclose(found["prediction"], one, atol=1e-5)

    def test_the_other_kinds_come_back_as_they_are(self, model, small):
        pairs = small[["user", "item"]][:5]
        expected = model.transform(pairs)["prediction"].to_numpy()
        arrow = model.transform(pa.Table.from_pandas(pairs))
        assert isinstance(arrow, pa.Table)
        np.testing.assert_array_equal(arrow["prediction"].to_numpy(), expected)
        for rows in (pairs.to_numpy(), list(pairs.itertuples(index=False, name=None))):
            back = model.transform(rows)
            assert back.columns.tolist() == ["user", "item", "prediction"]
            np.testing.assert_array_equal(back["prediction"], expected)
        assert model.transform(pairs[:0]).columns.tolist() == ["user", "item", "prediction"]

    def test_polars_comes_back(self, model, small):
        given = polars_frame(small[["user", "item"]][:5])
        found = model.transform(given)
        assert type(found) is type(given)
        assert found.columns == ["user", "item", "prediction"]

    def test_pandas_on_spark_comes_back_with_its_index(self, model, small):
        pandas_on_spark = pytest.importorskip("pyspark.pandas")
        pairs = small[["user", "item"]][:5].set_index(pd.Index([9, 7, 5, 3, 1], name="place"))
        found = model.transform(pandas_on_spark.from_pandas(pairs))
        assert type(found) is pandas_on_spark.DataFrame
        back = found.to_pandas().loc[pairs.index]
        np.testing.assert_array_equal(back["prediction"], model.transform(pairs)["prediction"])


class TestNoTable:
    @pytest.mark.parametrize(
        ("given", "line"),
        [
            (None, "spark.createDataFrame"),
            (7, "got 7"),
            ([], "got an empty list"),
            ([1, 2], "give the whole table"),
            ([(1,), (2,)], "rows of 1 values"),
            ([(1, 2, 3.0, 4, 5)], "rows of 5 values"),
            ([(1, 2, 3.0), (1, 2)], "name its columns"),
            (np.zeros(3), r"NumPy array of shape \(3,\)"),
            ("ratings.csv", r"spark.read.csv\('ratings.csv', header=True, inferSchema=True\)"),
            (Path("in/r.parquet"), r"spark.read.parquet\('in/r.parquet'\)"),
            (pd.Series([1.0]), "pandas's Series"),
            (
                pd.DataFrame({"user": [1, "a"], "item": [1, 2], "rating": [1.0, 2.0]}),
                "Column 'user' of dataset is not all of one type",
            ),
        ],
        ids=repr,
    )
    def test_shows_the_line_to_write(self, als, given, line):
        with pytest.raises(TypeError, match=line):
            als.fit(given)

    def test_a_table_too_large_to_send(self, als, small, monkeypatch):
        monkeypatch.setattr("sparkml_sgdals.ingest.frames._MOST_BYTES", 2**16)
        with pytest.raises(TypeError, match=r"4,000 rows.*give spark.read.parquet\(path\)"):
            als.fit(small)

    def test_a_sparse_matrix_is_told_its_columns(self, als):
        sparse = pytest.importorskip("scipy.sparse")
        with pytest.raises(TypeError, match=r"'user': m.row, 'item': m.col, 'rating': m.data"):
            als.fit(sparse.csr_matrix(np.eye(3)))

    def test_a_table_is_no_stream(self, als, small, tmp_path):
        with pytest.raises(TypeError, match=r"got pandas's DataFrame: call fit for a table"):
            als.fitStream(small, tmp_path / "model")


class TestIds:
    @pytest.mark.parametrize(
        "ids",
        [[1, 8], np.array([1, 8]), pd.Series([1.0, 8.0, None]), pa.array([8, 1]),
         pd.DataFrame({"user": [1, 8]}), [Row(user=1), Row(user=8)],
         *(pytest.param(one, marks=pytest.mark.long) for one in (
             (8, 1, 1), {1, 8}, range(1, 9, 7), {8: "x", 1: "y"}.keys(), pd.Categorical([1, 8]),
             np.array([[1], [8]]), [[8], [1]],
             pd.DataFrame({"n": [2, 3]}, index=pd.Index([1, 8], name="user")),
         ))],
        ids=lambda given: type(given).__name__,
    )  # fmt: skip
    def test_recommend_takes_lists_of_them(self, spark, model, ids):
        found = model.recommendForUserSubset(ids, 3)
        assert isinstance(found, DataFrame)
        expected = model.recommendForUserSubset(spark.createDataFrame([(1,), (8,)], ["user"]), 3)
        assert sorted(found.collect()) == sorted(expected.collect())

    def test_columns_of_pandas_on_spark_and_what_ends(self, model, small):
        pandas_on_spark = pytest.importorskip("pyspark.pandas")
        users = pandas_on_spark.Series([1, 8], name="user")
        expected = model.recommendForUserSubset([1, 8], 3, candidates=[5, 16]).collect()
        found = model.recommendForUserSubset(users, 3, candidates=(n for n in (5, 16)))
        assert sorted(found.collect()) == sorted(expected)
        seen = model.recommendOne(1, 3, excludeSeen=[5, 16])
        assert model.recommendOne(1, 3, excludeSeen=iter([5, 16])) == seen

    def test_similar_and_forget_too(self, model, small):
        item = int(small["item"][0])
        (row,) = model.similarItems([item], 3).collect()
        assert row.item == item
        assert len(row.similar) == 3
        before = model.state.users.size
        assert model.forget([1]).state.users.size == before - 1

    def test_one_id_alone_is_told_what_to_write(self, model):
        with pytest.raises(TypeError, match=r"got 1: write \[1\], or recommendOne\(1, n\)"):
            model.recommendForUserSubset(1, 3)
        with pytest.raises(TypeError, match=r"got 1: write \[1\]"):
            model.recommendForUserSubset(np.int64(1), 3)
        with pytest.raises(ValueError, match=r"DataFrame, which has 'n'\. Set userCol"):
            model.transform(pd.DataFrame({"n": [1]}))
        with pytest.raises(TypeError, match="users are whole numbers in this model, got string"):
            model.recommendForUserSubset(["1"], 3)

    @pytest.mark.parametrize("count", ["3", 2.5, None, True])
    def test_numbers_are_numbers(self, model, count):
        with pytest.raises(TypeError, match=f"must be a whole number, got {count!r}"):
            model.recommendForAllUsers(count)
        assert model.recommendForAllUsers(np.int64(2)).count() == model.state.users.size

    def test_a_param_in_quotes_is_told_so(self):
        with pytest.raises(TypeError, match="rank must be a whole number, got '16'"):
            StreamingBiasedALS(rank="16")
        with pytest.raises(TypeError, match=r"tol must be a number, got '0\.1'"):
            StreamingBiasedALS(tol="0.1")


class TestSeen:
    def lists(self, frame, query, candidate):
        return {row[query]: [r[candidate] for r in row.recommendations] for row in frame.collect()}

    @pytest.mark.long
    def test_true_is_what_the_model_remembers(self, remembering, ratings, small):
        for way in ("Users", "Items"):
            recommend = getattr(remembering, f"recommendForAll{way}")
            ours, theirs = recommend(90, excludeSeen=True), recommend(90, excludeSeen=small)
            names = ("user", "item") if way == "Users" else ("item", "user")
            assert self.lists(ours, *names) == self.lists(theirs, *names)
        judged = remembering.evaluateRanking(ratings, 5, excludeSeen=True)
        assert judged.heldOut == 0

    def test_of_events(self, ratings, small):
        events = StreamingBiasedALS(implicitPrefs=True, rank=3).fit(ratings)
        user = int(small["user"][0])
        done = set(small.loc[small["user"] == user, "item"])
        (row,) = events.recommendForUserSubset([user], 90, excludeSeen=True).collect()
        assert {r["item"] for r in row.recommendations} == set(small["item"]) - done
        assert {r["item"] for r in events.recommendOne(user, 90, excludeSeen=True)}.isdisjoint(done)

    def test_a_model_that_does_not_remember_says_so(self, model):
        for ask in (lambda: model.recommendForAllUsers(3, excludeSeen=True),
                    lambda: model.recommendOne(1, 3, excludeSeen=True)):  # fmt: skip
            with pytest.raises(ValueError, match=r"excludeSeen=ratings, or set rankingSize"):
                ask()
        every = model.recommendForAllUsers(3, excludeSeen=False).collect()
        assert every == model.recommendForAllUsers(3).collect()


class TestOne:
    def test_gives_what_the_tables_give(self, model):
        (row,) = model.recommendForUserSubset([8], 4).collect()
        found = model.recommendOne(8, 4)
        assert [one["item"] for one in found] == [one["item"] for one in row.recommendations]
        for ours, theirs in zip(found, row.recommendations, strict=True):
            assert ours.rating == pytest.approx(theirs.rating, abs=1e-5)
        item = found[0]["item"]
        assert model.predictOne(8, item) == pytest.approx(found[0].rating, abs=1e-5)
        assert item not in [one["item"] for one in model.recommendOne(8, 4, excludeSeen=[item])]

    def test_follows_the_model_and_its_params(self, model, small):
        item = int(small["item"][0])
        before = model.predictOne(-9, item)
        model.update([(-9, item, 0.5, 1_100_000)] * 3)
        assert model.predictOne(-9, item) < before
        assert np.isnan(model.copy({model.coldStartStrategy: "nan"}).predictOne(-8, item))
        model.setColdStartStrategy("nan")
        assert np.isnan(model.predictOne(-8, item))

    def test_unknown_ids_and_wrong_ones(self, model, ratings):
        assert len(model.recommendOne(-1, 3)) == 3
        with pytest.raises(TypeError, match="users are whole numbers in this model, got string"):
            model.predictOne("1", 5)
        with pytest.raises(TypeError, match="n must be a whole number, got '3'"):
            model.recommendOne(1, "3")
        with pytest.raises(ValueError, match="n must be at least 1, got 0"):
            model.recommendOne(1, 0)
        with pytest.raises(TypeError, match=r"a table of Spark.*recommendForUserSubset\(\[1\], n"):
            model.recommendOne(1, 3, excludeSeen=ratings)

    def test_what_was_seen_may_be_a_table_in_memory(self, model, small):
        seen = small.loc[small["user"] == 8, "item"].tolist()
        expected = model.recommendOne(8, 4, excludeSeen=seen)
        pairs = small[["user", "item"]]
        for given in (small, polars_frame(pairs), pairs.set_index("user"), pairs.to_numpy()):
            assert model.recommendOne(8, 4, excludeSeen=given) == expected
        with pytest.raises(ValueError, match="itemCol 'item' is not a column of excludeSeen"):
            model.recommendOne(8, 4, excludeSeen=small[["user"]])


class TestPaths:
    def test_pathlib_wherever_a_path_is_taken(
        self, als, model, ratings, files, stream, small, tmp_path
    ):
        saved = tmp_path / "saved"
        model.write().overwrite().save(saved)
        als.write().overwrite().save(tmp_path / "als")
        assert StreamingBiasedALS.load(tmp_path / "als").getRank() == 3
        assert StreamingBiasedALSModel.load(saved).state.fingerprint() == model.state.fingerprint()
        assert Predictor.load(saved).version == model.version
        ratings.write.parquet(str(tmp_path / "table"))
        assert als.fitParquet(tmp_path / "table").state.counters.ratings == len(small)
        path = tmp_path / "model"
        source = stream(files(small[:200], 100))
        als.fitStream(
            source, path, "availableNow", prometheusPath=tmp_path / "told"
        ).awaitTermination()
        assert (tmp_path / "told" / "metrics.prom").is_file()
        assert StreamingBiasedALSModel.versions(path)["version"].max() == 2
        assert StreamingBiasedALSModel.rollback(path, 1).version == 3
        again = StreamingBiasedALSModel.resumeStream(source, path, trigger=timedelta(seconds=1))
        again.stop()
        newest = StreamingBiasedALSModel.load(path)
        newest.forget([int(small["user"][0])], path)
        assert als.setProgressPath(tmp_path / "bar").getProgressPath() == str(tmp_path / "bar")
