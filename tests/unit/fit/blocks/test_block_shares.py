"""One pair that comes again and again in a fit in blocks does not speak for all."""

from __future__ import annotations

from functools import cache

import numpy as np
import pyarrow as pa
import pytest
from building import settings_of
from clusters import Cluster, packed_in
from feeding import COUNT, error, ratings, table
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.learn.whole_table import fit_ratings
from sparkml_sgdals.state.model_state import ModelState

SETTINGS = settings_of(rank=4)


def again(count: int, user: int, item: int, values: tuple[float, float]) -> pa.Table:
    """One pair, again and again, with two ratings by turns."""
    return pa.table(
        {
            "user": np.full(count, user), "item": np.full(count, item),
            "rating": np.resize(np.array(values, np.float32), count),
            "time": np.arange(count) + 5000, "weight": np.ones(count, np.float32),
        }
    )  # fmt: skip


def fitted(rows: pa.Table, blocks: int) -> ModelState:
    state, _ = Cluster.of(packed_in(rows, 3), blocks, SETTINGS, "int").fit_ratings()
    return state


def stated(state: ModelState) -> float:
    """Median of the stated deviations of held-out ratings."""
    user, item = (ratings()[name][COUNT:] for name in ("user", "item"))
    rows = state.users.index.find(pa.array(user)), state.items.index.find(pa.array(item))
    _, variances = state.predict(*rows)
    noise = state.noise * state.noise_factors(*rows)
    return float(np.sqrt(np.median(variances + noise * state.scale.spread**2)))


@cache
def usual(blocks: int) -> tuple[float, float]:
    state = fitted(table(slice(COUNT)), blocks)
    return stated(state), error(state)


@given(
    st.sampled_from([(0, 0), (5, 7), (901, 7), (5, 951), (901, 951)]),
    st.sampled_from([(5.0, 5.0), (0.5, 0.5), (5.0, 0.5)]), st.sampled_from([1000, 20_000]),
)  # fmt: skip
@settings(deadline=None, max_examples=6)
def test_a_table_that_holds_one_pair_too_often(
    pair: tuple[int, int], values: tuple[float, float], count: int
) -> None:
    """What is stated of others, and how well they are predicted, is as in one task."""
    rows = pa.concat_tables([table(slice(COUNT)), again(count, *pair, values)])
    spoilt = fitted(rows, 3)
    deviation, rmse = usual(3)
    assert 0.9 * deviation < stated(spoilt) < 1.6 * deviation
    assert error(spoilt) < 1.1 * rmse
    one = ModelState.empty(SETTINGS, "int", "int")
    fit_ratings(encode_ratings(rows), one)
    assert stated(spoilt) == pytest.approx(stated(one), rel=0.25)
    assert spoilt.noise_weight == pytest.approx(one.noise_weight)
