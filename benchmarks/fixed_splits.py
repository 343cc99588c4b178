"""Held-out RMSE on splits that stay, defaults only: with features where a set has some.

python benchmarks/fixed_splits.py [SET ...]. Sets of the folder in SPARKML_SGDALS_DATA: douban (the
split that graph models report on), insteval, movielens (random), movielens-cold (a tenth of all
items held out whole), both -noise (50 random columns in place of what is known), movielens-stream
(the second half in time order, a thousand ratings a batch), movielens-nothing (all of it so, from
nothing, as `fitStream` learns it, over arrays), movielens-events and movietweetings-events (a
tenth of the items of events held out whole). Writes out/fixed_splits.json. All held-out rows are
scored.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import harness
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from event_splits import EVENTS, judge_events
from pyspark.sql import DataFrame, SparkSession

from sparkml_sgdals import StreamingBiasedALS
from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.arrays.sparse_rows import SparseRows, vector_schema
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.state.feature_values import start_featured
from sparkml_sgdals.state.model_state import ModelState

BATCH = 1000
FIRST = 5


@dataclass
class Split:
    """Ratings, which of them are held out, and features of users and items."""

    ratings: pd.DataFrame
    test: npt.NDArray[np.bool_]
    users: pd.DataFrame | None = None
    items: pd.DataFrame | None = None


def rmse(scored: pd.DataFrame) -> float:
    """Root of the mean squared error of predictions."""
    return float(np.sqrt(np.mean((scored.prediction - scored.rating) ** 2)))


def dummies(ids: pd.Series, values: pd.Series) -> pd.DataFrame:
    """One column a value, as vectors by id."""
    table = pd.get_dummies(values.groupby(ids.to_numpy()).first(), dtype=float)
    return pd.DataFrame({"id": table.index, "vector": table.to_numpy().tolist()})


def films(folder: Path) -> pd.DataFrame:
    """Genres, decade and year of each film, as vectors by id."""
    movies = pd.read_csv(folder / "ml-latest-small" / "movies.csv")
    genres = movies.genres.str.get_dummies("|")
    year = movies.title.str.extract(r"\((\d{4})\)\s*$")[0].astype(float)
    decades = pd.get_dummies(year // 10 * 10, dtype=float)
    table = pd.concat([genres, decades, year.fillna(year.mean())], axis=1).to_numpy(float)
    return pd.DataFrame({"id": movies.movieId, "vector": table.tolist()})


def movielens(folder: Path) -> pd.DataFrame:
    """Ratings in the order of the file."""
    names = ["user", "item", "rating", "time"]
    return pd.read_csv(folder / "ml-latest-small" / "ratings.csv", header=0, names=names)


def douban(folder: Path) -> Split:
    """The split of Monti, Bronstein and Bresson (2017)."""
    table = pd.read_parquet(folder / "douban" / "ratings.parquet")
    return Split(table[["user", "item", "rating"]], (table.part == "test").to_numpy())


def insteval(folder: Path) -> Split:
    """Lectures: age of a student, department of a lecturer."""
    table = pd.read_parquet(folder / "insteval" / "ratings.parquet")
    ratings = table.rename(columns={"student": "user", "lecturer": "item"}).astype(
        {"user": "int64", "item": "int64", "rating": "float64"}
    )
    return Split(
        ratings[["user", "item", "rating"]],
        np.random.default_rng(42).random(len(table)) < 0.2,
        dummies(ratings.user, ratings.studage),
        dummies(ratings["item"], ratings.department),
    )


def random_films(folder: Path) -> Split:
    """A fifth of all ratings."""
    ratings = movielens(folder)
    return Split(ratings, np.random.default_rng(42).random(len(ratings)) < 0.2, None, films(folder))


def cold_films(folder: Path) -> Split:
    """All ratings of a tenth of the films."""
    ratings = movielens(folder)
    items = ratings["item"].unique()
    held = np.random.default_rng(7).choice(items, len(items) // 10, replace=False)
    return Split(ratings, ratings["item"].isin(held).to_numpy(), None, films(folder))


def noisy(split: Split) -> Split:
    """Return the same rows with 50 columns of noise as what is known of items."""
    assert split.items is not None
    columns = np.random.default_rng(0).normal(0, 1, (len(split.items), 50))
    return replace(split, items=split.items[["id"]].assign(vector=columns.tolist()))


SETS: dict[str, Callable[[Path], Split]] = {
    "douban": douban, "insteval": insteval, "movielens": random_films,
    "movielens-cold": cold_films, "movielens-noise": lambda folder: noisy(random_films(folder)),
    "movielens-cold-noise": lambda folder: noisy(cold_films(folder)),
}  # fmt: skip


def estimator(spark: SparkSession, split: Split, featured: bool) -> StreamingBiasedALS:
    """Return the estimator with its defaults, and the features where asked."""
    als = StreamingBiasedALS(timestampCol="time" if "time" in split.ratings else "")
    for table, set_table, column in (
        (split.users, als.setUserFeatures, "user"), (split.items, als.setItemFeatures, "item"),
    ):  # fmt: skip
        if featured and table is not None:
            set_table(spark.createDataFrame(table.rename(columns={"id": column})))
    return als


def joined(spark: SparkSession, split: Split, rows: pd.DataFrame) -> DataFrame:
    """Return ratings with the vectors of their users and items."""
    frame = spark.createDataFrame(rows)
    for table, column in ((split.users, "user"), (split.items, "item")):
        if table is not None:
            vectors = table.rename(columns={"id": column, "vector": f"{column}_vector"})
            frame = frame.join(spark.createDataFrame(vectors), column, "left")
    return frame


def judge(spark: SparkSession, name: str, split: Split) -> list[harness.Row]:
    """Held-out RMSE with and without features: of all rows, and of those with rare items."""
    train, held = split.ratings[~split.test], split.ratings[split.test]
    seen = held["item"].map(train["item"].value_counts()).fillna(0).to_numpy()
    known = held.user.isin(train.user).to_numpy() & (seen > 0)
    rows = []
    for featured in (False, True):
        if featured and split.users is None and split.items is None:
            continue
        als = estimator(spark, split, featured)
        model = als.fit(spark.createDataFrame(train))
        pairs = spark.createDataFrame(held.assign(place=np.arange(len(held))))
        if featured:
            pairs = joined(spark, split, held.assign(place=np.arange(len(held))))
            model.setUserFeaturesCol("user_vector" if split.users is not None else "")
            model.setItemFeaturesCol("item_vector" if split.items is not None else "")
        scored = model.transform(pairs).toPandas().sort_values("place", ignore_index=True)
        label = f"{name}, {'with' if featured else 'without'} features"
        parts = {
            "all": np.ones(len(held), bool), "known": known, "few": known & (seen < FIRST),
            "unknown items": seen == 0,
        }  # fmt: skip
        found = {part: rmse(scored[of]) for part, of in parts.items() if of.any()}
        print(label, json.dumps(found), flush=True)
        counts = {part: int(of.sum()) for part, of in parts.items()}
        rows.append({"label": label, "rmse": found, "rows": counts})
    return rows


def stream(spark: SparkSession, folder: Path) -> list[harness.Row]:
    """Fit on the first half in time order, stream the second: the first five of new items."""
    split = random_films(folder)
    ratings = split.ratings.sort_values(["time", "user", "item"], ignore_index=True)
    half = len(ratings) // 2
    assert split.items is not None
    vectors = split.items.set_index("id").vector
    rest = ratings[half:].copy()
    rest["number"] = rest.groupby("item").cumcount()
    new = ~rest["item"].isin(ratings["item"][:half])
    rows = []
    for featured in (False, True):
        model = estimator(spark, split, featured).fit(spark.createDataFrame(ratings[:half]))
        if featured:
            model.setItemFeaturesCol("item_vector")
        errors = []
        for begin in range(0, len(rest), BATCH):
            batch = rest.iloc[begin : begin + BATCH].assign(
                place=np.arange(begin, min(begin + BATCH, len(rest)))
            )
            given = batch[["user", "item", "rating", "time", "place"]]
            if featured:
                given = given.assign(item_vector=batch["item"].map(vectors))
            frame = spark.createDataFrame(given)
            scored = model.transform(frame).toPandas().sort_values("place")
            errors.append((scored.prediction - scored.rating).to_numpy())
            model.update(frame.drop("place"))
        apart = np.concatenate(errors)
        first = (new & (rest["number"] < FIRST)).to_numpy()
        found = {
            "all": float(np.sqrt(np.mean(apart**2))),
            "first five of new items": float(np.sqrt(np.mean(apart[first] ** 2))),
        }
        label = f"movielens-stream, {'with' if featured else 'without'} features"
        print(label, json.dumps(found), flush=True)
        rows.append(
            {"label": label, "rmse": found, "rows": {"all": len(rest), "first": int(first.sum())}}
        )
    return rows


def from_nothing(folder: Path) -> list[harness.Row]:
    """Learn all batches in time order from nothing: the first five ratings of each item."""
    split = random_films(folder)
    assert split.items is not None
    ratings = split.ratings.sort_values(["time", "user", "item"], ignore_index=True)
    number = ratings.groupby("item").cumcount().to_numpy()
    vectors = split.items.vector.tolist()
    noise = np.random.default_rng(0).normal(0, 1, (len(vectors), 50)).tolist()
    rows = []
    for label, own in (("without features", None), ("with features", vectors), ("noise", noise)):
        state = ModelState.empty(
            replace(StreamingBiasedALS().settings(), featured=own is not None), "int", "int"
        )
        state.learns_features = False, own is not None
        known = None
        if own is not None:
            columns = {"id": split.items["id"], "size": [len(own[0])] * len(own)}
            columns |= {"indices": [None] * len(own), "values": own}
            known = SparseRows.of(pa.table(columns, schema=vector_schema("int")))[0]
        errors = []
        for begin in range(0, len(ratings), BATCH):
            batch = ratings[begin : begin + BATCH]
            encoded = encode_ratings(pa.Table.from_pandas(batch, preserve_index=False))
            start_featured(state.items, encoded.item_ids, known, state.features[1])
            users, items = (
                table.index.find(pa.array(batch[name].to_numpy()))
                for table, name in ((state.users, "user"), (state.items, "item"))
            )
            told = state.clip(state.predict(users, items)[0]) if begin else np.nan
            errors.append(told - batch.rating.to_numpy())
            learn_batch(state, encoded, (None, known))
        apart = np.concatenate(errors)[BATCH:]
        first = number[BATCH:] < FIRST
        found = {
            "all": float(np.sqrt(np.mean(apart**2))),
            "first five of items": float(np.sqrt(np.mean(apart[first] ** 2))),
        }
        print(f"movielens-nothing, {label}", json.dumps(found), flush=True)
        counts = {"all": apart.size, "first": int(first.sum())}
        rows.append({"label": f"movielens-nothing, {label}", "rmse": found, "rows": counts})
    return rows


def main() -> None:
    """Judge the sets that are asked for, or all."""
    folder = Path(os.environ.get("SPARKML_SGDALS_DATA", ""))
    if not (folder / "ml-latest-small" / "ratings.csv").is_file():
        sys.exit("Set SPARKML_SGDALS_DATA to a folder that holds ml-latest-small/ratings.csv.")
    asked = sys.argv[1:] or [*SETS, "movielens-stream", "movielens-nothing", *EVENTS]
    spark = harness.session()
    rows: list[harness.Row] = []
    for name in asked:
        if name == "movielens-nothing":
            rows += from_nothing(folder)
        elif name == "movielens-stream":
            rows += stream(spark, folder)
        elif name in EVENTS:
            rows += judge_events(spark, name, folder)
        else:
            rows += judge(spark, name, SETS[name](folder))
    harness.write("fixed_splits", rows, {})
    spark.stop()


if __name__ == "__main__":
    main()
