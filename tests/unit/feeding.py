"""A stream of batches without Spark: 1,000 ratings, odd rows among them, and 1,000 held out."""

from __future__ import annotations

from functools import cache

import numpy as np
import pyarrow as pa
from building import settings_of

from sparkml_sgdals.arrays.screening import screen, set_far_aside
from sparkml_sgdals.fit.plan import FitOptions
from sparkml_sgdals.ingest.collecting import Collected
from sparkml_sgdals.ingest.columns import RatingColumns
from sparkml_sgdals.learn.far_values import limits_for
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.stream.micro_batch import learn_collected

COLUMNS = RatingColumns("user", "item", "rating", "time", "weight")
OPTIONS = FitOptions(COLUMNS, ("int", "int"), "skip", 0, 1, 10, 10)
COUNT, USERS, ITEMS = 1000, 60, 40


@cache
def ratings() -> dict[str, np.ndarray]:
    """2,000 ratings of distinct pairs: 1,000 to learn, 1,000 held out."""
    rng = np.random.default_rng(7)
    pairs = rng.permutation(USERS * ITEMS)[: 2 * COUNT]
    user, item = pairs // ITEMS, pairs % ITEMS
    bias = rng.normal(0, 0.4, USERS)[user] + rng.normal(0, 0.5, ITEMS)[item]
    value = np.clip(np.round(2 * (3.5 + bias + rng.normal(0, 0.6, user.size))) / 2, 0.5, 5)
    return {
        "user": user, "item": item, "rating": value.astype(np.float32),
        "time": np.arange(user.size), "weight": np.ones(user.size, np.float32),
    }  # fmt: skip


def table(rows: slice, at: int | None = None, **odd: float) -> pa.Table:
    """Some of the ratings, with one row more at a place."""
    columns = {name: column[rows] for name, column in ratings().items()}
    if at is not None:
        row = {"user": 5, "item": 7, "rating": 3.0, "time": at, "weight": 1.0} | odd
        columns = {name: np.insert(column, at, row[name]) for name, column in columns.items()}
    return pa.table(columns)


def feed(state: ModelState, rows: pa.Table, first: int, size: int) -> tuple[int, list[str]]:
    """Learn batches as a stream does; how many rows were set aside, and which."""
    count, found, start = 0, [], 0
    while start < rows.num_rows:
        end = start + (size if start else first)
        good, _, _ = screen(rows.slice(start, end - start))
        limits = limits_for(state, None, good)
        kept, far, problems = set_far_aside(good, limits)
        batch = Collected(kept, len(good), int(far.sum()), problems, [])
        learned = learn_collected(state, batch, OPTIONS)
        count += learned.bad_rows
        found += learned.invalid
        start = end
    return count, found


def error(state: ModelState) -> float:
    held = {name: column[COUNT:] for name, column in ratings().items()}
    user, item = (
        side.index.find(pa.array(held[name]))
        for name, side in (("user", state.users), ("item", state.items))
    )
    predictions = state.clip(state.predict(user, item)[0])
    return float(np.sqrt(np.mean((predictions - held["rating"]) ** 2)))


@cache
def clean(first: int, size: int) -> float:
    state = ModelState.empty(settings_of(rank=4), "int", "int")
    assert feed(state, table(slice(COUNT)), first, size) == (0, [])
    return error(state)
