"""Items of events held out whole: what features say of them, by Recall@20. Run by fixed_splits.py.

Events are those of ranking_protocols.py, features genres, decade and year. A tenth of the items is
held out with all their events, and a fifth of the events of the rest.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from harness import Row
from pyspark.sql import DataFrame, SparkSession
from ranking_protocols import COLUMNS, SETS, TOP, with_enough

from sparkml_sgdals import StreamingBiasedALS, StreamingBiasedALSModel

EVENTS = {"movielens-events": "ml-latest-small", "movietweetings-events": "movietweetings"}
NOISE = 50


def liked(folder: Path, name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Events, and genres, decade and year by item."""
    source, films = SETS[name], ["item", "title", "genres"]
    read: dict[str, Any] = {"header": 0}
    if name == "movietweetings":
        read = {"sep": "::", "engine": "python", "header": None}
    ratings = pd.read_csv(folder / source.file, names=COLUMNS, **read)
    kind = "dat" if name == "movietweetings" else "csv"
    movies = pd.read_csv(folder / name / f"movies.{kind}", names=films, **read)
    events = with_enough(ratings[ratings.rating >= source.least])
    movies = movies[movies["item"].isin(events["item"])].drop_duplicates("item")
    year = movies.title.str.extract(r"\((\d{4})\)\s*$")[0].astype(float)
    decade = (year // 10 * 10).map(lambda one: None if np.isnan(one) else f"{one:.0f}s")
    table = movies[["item", "genres"]].assign(decade=decade, year=year).sort_values("item")
    return events[events["item"].isin(table["item"])].reset_index(drop=True), table


def recall(
    model: StreamingBiasedALSModel, seen: DataFrame, held: pd.DataFrame,
    among: pd.DataFrame | None = None,
) -> npt.NDArray[np.float64]:  # fmt: skip
    """Recall@20 of each user that has anything held out, of all items or of some."""
    spark = seen.sparkSession
    wanted = held.groupby("user")["item"].apply(set)
    users = spark.createDataFrame(pd.DataFrame({"user": wanted.index}))
    candidates = None if among is None else spark.createDataFrame(among)
    lists = model.recommendForUserSubset(users, TOP, excludeSeen=seen, candidates=candidates)
    found = {row.user: {one["item"] for one in row.recommendations} for row in lists.collect()}
    hits = [len(found.get(user, set()) & own) / min(TOP, len(own)) for user, own in wanted.items()]
    return np.array(hits)


def popular(train: pd.DataFrame, held: pd.DataFrame) -> float:
    """Recall@20 of what is popular."""
    order, done = train["item"].value_counts().index, train.groupby("user")["item"].apply(set)
    hits = []
    for user, own in held.groupby("user")["item"]:
        best = [one for one in order[: TOP + len(done[user])] if one not in done[user]][:TOP]
        hits.append(len(set(best) & set(own)) / min(TOP, len(own)))
    return float(np.mean(hits))


def judge_events(spark: SparkSession, name: str, folder: Path) -> list[Row]:
    """Held-out items among themselves, all items with them, and ordinary events."""
    events, films = liked(folder, EVENTS[name])
    held = np.random.default_rng(7).choice(films["item"], len(films) // 10, replace=False)
    cold = events["item"].isin(held).to_numpy()
    known = events[~cold]
    part = np.random.default_rng(42).random(len(known)) < 0.2
    train, rest = known[~part], known[part]
    rest = rest[rest["item"].isin(train["item"]) & rest.user.isin(train.user)]
    new = events[cold]
    new = new[new.user.isin(train.user)]
    both = pd.concat([rest, new])
    seen = spark.createDataFrame(train[["user", "item"]])
    columns = {f"n{k}": np.random.default_rng(k).normal(size=len(films)) for k in range(NOISE)}
    tables = {"without": None, "with": films, "noise": films[["item"]].assign(**columns)}
    shown = {"both": popular(train, both), "chance among": TOP / len(held)}
    rows: list[Row] = [{"label": f"{name}, most popular", "recall": shown}]
    print(rows[-1], len(train), len(rest), len(new), len(held), flush=True)
    for label, table in tables.items():
        als = StreamingBiasedALS(implicitPrefs=True)
        if table is not None:
            als = als.setItemFeatures(spark.createDataFrame(table))
        model = als.fit(seen)
        found = {"ordinary": recall(model, seen, rest)}
        if table is not None:
            more = table[table["item"].isin(held)]
            model = model.withItems(spark.createDataFrame(more))
            found["among"] = recall(model, seen, new, more[["item"]])
        found["both"] = recall(model, seen, both)
        means = {key: float(one.mean()) for key, one in found.items()}
        errors = {key: float(one.std() / np.sqrt(len(one))) for key, one in found.items()}
        print(f"{name}, {label}", json.dumps(means), json.dumps(errors), flush=True)
        rows.append({"label": f"{name}, {label} features", "recall": means, "errors": errors})
    return rows
