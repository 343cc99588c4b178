"""Random inputs and small models that several test modules start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from sparkml_sgdals.arrays.ratings import Ratings, encode_ratings
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.ml.params import default_settings
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.settings import Settings

CLOSE = {"rtol": 1e-4, "atol": 2e-5}


F32 = np.float32


@dataclass
class Problem:
    """Ratings by row, and factors of both sides, float32 as the kernels take them."""

    users: np.ndarray
    items: np.ndarray
    ratings: np.ndarray
    weights: np.ndarray
    user_mean: np.ndarray
    user_var: np.ndarray
    item_mean: np.ndarray
    item_var: np.ndarray

    def all_weights(self) -> np.ndarray:
        """One weight a rating, float64."""
        if self.weights.size:
            return self.weights.astype(float)
        return np.ones(self.ratings.size)

    def factors(self, dtype: type = F32) -> list[np.ndarray]:
        """Copies of the four factor arrays."""
        sides = (self.user_mean, self.user_var, self.item_mean, self.item_var)
        return [side.astype(dtype) for side in sides]

    def means(self, dtype: type = F32) -> list[np.ndarray]:
        """Copies of both means."""
        return [self.user_mean.astype(dtype), self.item_mean.astype(dtype)]


@st.composite
def problems(draw: st.DrawFn, weighted: bool | None = None, max_ratings: int = 40) -> Problem:
    """Few ids, so that pairs repeat; some ids without ratings; some weights zero."""
    num_users, num_items = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    count, rank = draw(st.integers(1, max_ratings)), draw(st.integers(0, 5))
    if weighted is None:
        weighted = draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    weights = rng.choice([0.0, 0.5, 1.0, 2.0, 3.7], count) if weighted else np.empty(0)
    return Problem(
        rng.integers(0, num_users, count).astype(np.int32),
        rng.integers(0, num_items, count).astype(np.int32),
        rng.normal(0, 1, count).astype(F32),
        weights.astype(F32),
        rng.normal(0, 0.5, (num_users, rank + 1)).astype(F32),
        rng.uniform(0.01, 0.5, (num_users, rank + 1)).astype(F32),
        rng.normal(0, 0.5, (num_items, rank + 1)).astype(F32),
        rng.uniform(0.01, 0.5, (num_items, rank + 1)).astype(F32),
    )


def settings_of(**fields: Any) -> Settings:
    """Settings from the Params' defaults, but for these fields."""
    return default_settings(**fields)


def id_array(ids: Sequence[Any]) -> pa.Array:
    """Ids as Arrow, int64 unless the first is a string."""
    return pa.array(ids, pa.string() if len(ids) and isinstance(ids[0], str) else pa.int64())


def table_of(
    users: Sequence[Any],
    items: Sequence[Any],
    ratings: Sequence[float],
    weights: Sequence[float] | None = None,
    times: Sequence[int] | None = None,
) -> pa.Table:
    """A table of ratings as the modules take it."""
    columns = {
        "user": id_array(users),
        "item": id_array(items),
        "rating": pa.array(ratings, pa.float32()),
    }
    if times is not None:
        columns["time"] = pa.array(times, pa.int64())
    if weights is not None:
        columns["weight"] = pa.array(weights, pa.float32())
    return pa.table(columns)


def ratings_of(*columns: Any, **more: Any) -> Ratings:
    """The same, encoded."""
    return encode_ratings(table_of(*columns, **more))


def low_rank(
    count: int = 3000, users: int = 80, items: int = 60, rank: int = 3, noise: float = 0.3,
    seed: int = 5,
) -> tuple[pa.Table, np.ndarray]:  # fmt: skip
    """Ratings about 3.5 with biases, taste and noise; and their values without the noise."""
    rng = np.random.default_rng(seed)
    left, right = rng.normal(0, 0.7, (users, rank)), rng.normal(0, 0.7, (items, rank))
    user_bias, item_bias = rng.normal(0, 0.3, users), rng.normal(0, 0.3, items)
    u, i = rng.integers(0, users, count), rng.integers(0, items, count)
    clean = 3.5 + user_bias[u] + item_bias[i] + (left[u] * right[i]).sum(axis=1)
    table = table_of(u * 7 - 100, i * 3, clean + rng.normal(0, noise, count), times=range(count))
    return table, clean


def seen_state(settings: Settings, count: int = 1500, seed: int = 5) -> ModelState:
    """A model that has learned so many ratings that its scale is frozen."""
    state = ModelState.empty(settings, "int", "int")
    learn_batch(state, encode_ratings(low_rank(count, seed=seed)[0]))
    assert state.scale.frozen
    return state


def filled_table(settings: Settings, ids: Sequence[Any], side: int = 1, seed: int = 0) -> Any:
    """A factor table of these ids with random contents."""
    rng = np.random.default_rng(seed)
    table = FactorTable(side, "str" if isinstance(ids[0], str) else "int", settings)
    width = settings.rank + 1
    variances = width if settings.solver == "bayes" else 0
    table.put(
        id_array(ids),
        {
            "mean": rng.normal(0, 1, (len(ids), width)).astype(F32),
            "var": rng.uniform(0.01, 1, (len(ids), variances)).astype(F32),
            "base_mean": rng.normal(0, 1, (len(ids), 1)).astype(F32),
            "base_var": rng.uniform(0.01, 1, (len(ids), 1)).astype(F32),
            "count": rng.integers(0, 100, len(ids)),
            "drawn": rng.normal(0, 1, (len(ids), width if settings.draws_prior else 0)).astype(F32),
            "influence": rng.normal(0, 1, (len(ids), width if settings.draws_prior else 0)).astype(
                F32
            ),
            "evidence": rng.uniform(0, 9, len(ids)).astype(F32),
            "noise_factor": rng.uniform(0.5, 2, len(ids)).astype(F32),
        },
    )
    return table


def rows_of(state: ModelState, ratings: Ratings) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the user and the item of each rating, -1 where unknown."""
    return (
        state.users.index.find(ratings.user_ids)[ratings.users],
        state.items.index.find(ratings.item_ids)[ratings.items],
    )


def contents(table: Any) -> dict[Any, tuple[Any, ...]]:
    """All that a factor table holds, by id."""
    return {
        row["id"]: (
            tuple(row["mean"]), tuple(row["variance"]), row["base_mean"], row["base_variance"],
            row["count"], tuple(row["prior_mean"]), tuple(row["influence"]), row["evidence"],
            row["noise_factor"],
        )
        for row in table.to_arrow().to_pylist()
    }  # fmt: skip


def assert_same(one: Ratings, other: Ratings) -> None:
    """Both hold the same ids, codes and numbers in the same order."""
    assert one.user_ids.equals(other.user_ids)
    assert one.item_ids.equals(other.item_ids)
    for name in ("users", "items", "values", "weights"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
