"""Plain columns as features: numbers, categories, lists; and how later tables are read."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sparkml_sgdals import Predictor, StreamingBiasedALS
from sparkml_sgdals.ingest.side_vectors import side_table
from sparkml_sgdals.state.feature_values import FeatureNames, told

GENRES = ("Action", "Comedy", "Drama", "War")
ITEMS = 60
RNG = np.random.default_rng(8)
HAS = RNG.random((ITEMS, 4)) < 0.4
HAS[HAS.sum(axis=1) == 0, 2] = True
YEARS = RNG.integers(1950, 2020, ITEMS).astype(float)
YEARS[7] = np.nan


def films(**more) -> pd.DataFrame:
    genres = ["|".join(g for g, has in zip(GENRES, row, strict=True) if has) for row in HAS]
    return pd.DataFrame({"item": np.arange(ITEMS), "genres": genres, "year": YEARS} | more)


def dense(rows) -> np.ndarray:
    full = np.zeros((len(rows), rows.size))
    full[rows.row_of(), rows.columns] = rows.values
    return full


@pytest.fixture(scope="module")
def rows(spark):
    """The films' vectors; titles, which are all different, say nothing."""
    titles = films(title=[f"Film {n}" + ", The" * (n % 4 == 0) for n in range(ITEMS)])
    with pytest.warns(UserWarning, match="Of the features of items 'title' is left out"):
        return side_table(spark.createDataFrame(titles), "item", "int", True)


@pytest.fixture(scope="module")
def model(spark):
    frame = pd.DataFrame(
        {
            "user": RNG.integers(0, 30, 900),
            "item": RNG.integers(0, ITEMS, 900),
        }
    )
    frame["rating"] = 3 + HAS[frame.item, 1] * 1.0 + RNG.normal(0, 0.3, 900)
    als = StreamingBiasedALS(rank=2).setItemFeatures(spark.createDataFrame(films()))
    return als.fit(spark.createDataFrame(frame))


class TestTables:
    """A table of a fit."""

    def test_numbers_and_categories(self, rows):
        """A number where one is, its mean where none is; a column for each of several genres."""
        assert rows.names == ("year", *(f"genres={g}" for g in GENRES))
        full = dense(rows)
        np.testing.assert_array_equal(full[:, 1:], HAS)
        years = np.where(np.isnan(YEARS), np.nanmean(YEARS), YEARS)
        np.testing.assert_allclose(full[:, 0], years, rtol=1e-6)

    def test_lists_and_a_row_a_genre(self, spark, rows):
        """Say the same as text; what only one item has says nothing, and null says nothing."""
        listed = films(genres=[[g for g, has in zip(GENRES, r, strict=True) if has] for r in HAS])
        long = listed.explode("genres")
        long.loc[long.item == 3, "year"] = np.nan
        again = pd.DataFrame(
            {"item": [3, 900], "genres": ["Western", None], "year": [YEARS[3]] * 2}
        )
        again.loc[1, "year"] = np.nan
        for frame in (listed, pd.concat([long, again])):
            found = side_table(spark.createDataFrame(frame), "item", "int", True)
            assert found.names == rows.names
            np.testing.assert_array_equal(found.ids.to_pylist(), np.arange(ITEMS))
            np.testing.assert_allclose(dense(found), dense(rows))

    def test_a_table_that_says_nothing(self, spark):
        frame = pd.DataFrame({"item": range(30), "title": [f"Film {n}" for n in range(30)]})
        with (
            pytest.warns(UserWarning, match="'title' is left out"),
            pytest.raises(ValueError, match="none of its columns 'title' holds numbers"),
        ):
            side_table(spark.createDataFrame(frame), "item", "int", True)


class TestLaterTables:
    """Tables for a model that there is."""

    NEW = pd.DataFrame(
        {
            "item": [900, 901, 902, 903],
            "genres": ["Comedy", "War|Comedy", "Western", None],
            "year": [1999.0, np.nan, np.nan, np.nan],
        }
    )

    def test_are_read_by_the_names_of_the_fit(self, spark, model):
        """As one item's are that is posted; of what is not known nothing is said."""
        weights = model.state.features[1]
        found = side_table(spark.createDataFrame(self.NEW), "item", "int", True, weights)
        assert found.ids.to_pylist() == [900, 901]
        names = FeatureNames(weights)
        for row, (_, given) in zip(dense(found), self.NEW.iterrows(), strict=False):
            vector, unknown = names.vector(given[["genres", "year"]].dropna().to_dict())
            assert not unknown
            np.testing.assert_array_equal(row[list(vector)], list(vector.values()))
            assert np.count_nonzero(row) == len(vector)
        assert names.vector({"genres": "Western"}) == ({}, ["genres=Western"])
        with pytest.raises(ValueError, match="year is a number, got 'old'"):
            names.vector({"year": "old"})

    def test_items_join_by_them(self, spark, model):
        """A comedy is predicted higher; the weights tell why."""
        more = model.withItems(spark.createDataFrame(self.NEW))
        assert more.state.items.size == ITEMS + 2
        table = more.itemFactors.toPandas().set_index("id")
        weights = model.featureWeights.toPandas().set_index("feature")
        assert weights.loc["genres=Comedy", "bias"] > 0.5
        assert told("genres=Comedy") == "Comedy"
        assert table.loc[901, "bias"] > 0.3
        with pytest.raises(
            ValueError, match=r"knows none of the columns 'colour'.*knows genres, year"
        ):
            model.withItems(spark.createDataFrame(pd.DataFrame({"item": [1], "colour": ["red"]})))

    def test_a_process_without_spark_knows_them_too(self, spark, model, tmp_path):
        """By the names of the fit, to the bits of withItems; and what it cannot read is told."""
        model.write().save(str(tmp_path / "model"))
        given = {
            row["item"]: row[["genres", "year"]].dropna().to_dict()
            for _, row in self.NEW.iterrows()
        }
        predictor = Predictor.load(str(tmp_path / "model"))
        knows = predictor.with_items(given)
        more = model.withItems(spark.createDataFrame(self.NEW))
        assert knows._state.fingerprint() == more.state.fingerprint()
        pairs = [1, 1, 1], [900, 901, 902]
        found, before = knows.predict(*pairs), predictor.predict(*pairs)
        assert found.prediction[0] > before.prediction[0] + 0.3
        assert found.prediction[2] == before.prediction[2]
        with pytest.raises(ValueError, match="without features of users"):
            predictor.with_users({7: {"country": "AT"}})
        with pytest.raises(TypeError, match="item"):
            predictor.with_items({"nine": {"year": 1999}})
