"""Noise by user and by item against sums by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import reference
from building import F32, ratings_of, rows_of, settings_of, table_of

from sparkml_sgdals.arrays.ratings import Ratings, encode_ratings, layout_by
from sparkml_sgdals.kernels.predict import predict_rows
from sparkml_sgdals.learn.noise import (
    expected_squares,
    fitted_factors,
    in_units,
    learn_noise_factors,
    learn_noise_of_table,
)
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.learn.solvers import Side
from sparkml_sgdals.learn.whole_table import fit_ratings
from sparkml_sgdals.state.model_state import ModelState


def two_kinds(count: int = 6000, seed: int = 3) -> Ratings:
    """Ratings of 40 users, the odd ones four times as noisy, and 30 items."""
    rng = np.random.default_rng(seed)
    users, items = rng.integers(0, 40, count), rng.integers(0, 30, count)
    bias = rng.normal(0, 0.5, 30)
    noise = np.where(users % 2, 1.2, 0.3) * rng.normal(0, 1, count)
    return ratings_of(users, items, 3.5 + bias[items] + noise, times=range(count))


def test_factors_by_hand() -> None:
    """A gamma posterior of shape 2 and mean 1; items see the users' new factors."""
    state = ModelState.empty(settings_of(rank=1), "int", "int")
    ratings = ratings_of([1, 1, 2], [5, 6, 6], [1.0, 2.0, 3.0], times=[0, 1, 2])
    rows = state.users.ensure(ratings.user_ids)[0], state.items.ensure(ratings.item_ids)[0]
    state.users.count[0], state.users.noise_factor[0] = 4, 0.5
    learn_noise_factors((state.users, state.items), rows, ratings, np.array([4.0, 2.0, 1.0]))
    first = (0.5 * (2 + 2) + (4 + 2) / 2) / (2 + 2 + 1)
    second = (2 + 1 / 2) / (2 + 1 / 2)
    assert state.users.noise_factor.tolist() == pytest.approx([first, second])
    assert state.items.noise_factor.tolist() == pytest.approx(
        [(2 + 4 / first / 2) / 2.5, (2 + (2 / first + 1 / second) / 2) / 3]
    )


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_noise_of_a_table_is_that_of_the_loops(threads: int) -> None:
    """From e^2 + V of all its ratings, in two rounds, to the same bits on any threads."""
    rng = np.random.default_rng(4)
    n, sizes, rank = 300, (21, 9), 3
    state = ModelState.empty(settings_of(rank=rank), "int", "int")
    tables = state.users, state.items
    rows = tuple(
        table.ensure(pa.array(np.arange(size)))[0]
        for table, size in zip(tables, sizes, strict=True)
    )
    for table, size in zip(tables, sizes, strict=True):
        table.count[:] = rng.integers(0, 9, size)
        table.noise_factor[:] = rng.uniform(0.5, 2, size)
    users, items = (rng.integers(0, size, n).astype(np.int32) for size in sizes)
    values, none = rng.normal(0, 1, n).astype(F32), np.empty(0, F32)
    layouts = (
        layout_by(users, items, values, none, sizes[0]),
        layout_by(items, users, values, none, sizes[1]),
    )
    sides = tuple(
        Side(
            rng.normal(0, 0.5, (size, rank + 1)).astype(F32),
            rng.uniform(0.01, 0.1, (size, rank + 1)).astype(F32), none, none,
        )
        for size in sizes
    )  # fmt: skip
    squares = [
        (v - reference.predict(sides[0].mean[x], sides[1].mean[y])) ** 2
        + reference.variance(sides[0].mean[x], sides[0].var[x], sides[1].mean[y], sides[1].var[y])
        for x, y, v in zip(users, items, values, strict=True)
    ]
    expected = [table.noise_factor.astype(float) for table in tables]
    known = [table.count.copy() for table in tables]
    reference.learn_noise(users, items, np.array(squares) / 0.4, *expected, *known, rounds=2)
    twin = state.copy()
    learn_noise_of_table(
        tables, rows, layouts, sides, np.ones(rank + 1, F32), 0.4, threads
    )  # fmt: skip
    for table, factors in zip(tables, expected, strict=True):
        np.testing.assert_allclose(table.noise_factor, factors, rtol=1e-5)
    # as rating by rating
    predicted = np.empty(n, F32), np.empty(n, F32)
    where = users.astype(np.int64), items.astype(np.int64)
    factors = (array for side in sides for array in (side.mean, side.var))
    predict_rows(*where, *factors, np.ones(rank + 1, F32), *predicted)
    each = ((values.astype(float) - predicted[0]) ** 2 + predicted[1]) / 0.4
    ratings = ratings_of(range(n), range(n), values)
    ratings = replace(ratings, users=users, items=items)
    learn_noise_factors((twin.users, twin.items), rows, ratings, each, rounds=2)
    for one, other in ((state.users, twin.users), (state.items, twin.items)):
        np.testing.assert_array_equal(one.noise_factor, other.noise_factor)


def test_noise_in_other_units() -> None:
    """What was learned before the noise of all is known is brought to it."""
    rng = np.random.default_rng(2)
    sums, counts = rng.uniform(0, 90, 50), rng.integers(0, 99, 50)
    before, now = (fitted_factors(sums, counts, noise) for noise in (0.7, 0.4))
    np.testing.assert_allclose(in_units(before, counts, 0.7, 0.4), now, rtol=1e-5)
    by_hand = (2 + sums / 2 / 0.4) / (2 + counts / 2)
    np.testing.assert_allclose(now, by_hand, rtol=1e-5)


def test_expected_square_is_that_of_a_normal() -> None:
    """Of noise given noise + error of the prediction, both normal: by a million draws."""
    rng = np.random.default_rng(0)
    noise, apart = rng.normal(0, 0.8, 10**6), rng.normal(0, 0.5, 10**6)
    near = np.abs(noise + apart - 0.9) < 0.02
    expected = expected_squares(np.array([0.9]), np.array([0.25]), np.array([0.64]))
    assert float(np.mean(noise[near] ** 2)) == pytest.approx(float(expected[0]), rel=0.03)


@pytest.mark.parametrize("streamed", [False, True])
def test_noisy_users_are_told_from_steady_ones(streamed: bool) -> None:
    """Stated deviations follow each user's own noise, learned from a table or a stream."""
    settings = settings_of(rank=2, max_iter=5, tol=0.0)
    state, ratings = ModelState.empty(settings, "int", "int"), two_kinds()
    if streamed:
        for start in range(0, len(ratings), 500):
            part = slice(start, start + 500)
            batch = ratings_of(
                ratings.users[part], ratings.items[part], ratings.values[part], times=range(500)
            )
            learn_batch(state, batch)
    else:
        fit_ratings(ratings, state)
    held = two_kinds(2000, seed=3)
    users, items = rows_of(state, held)
    _, variances = state.predict(users, items)
    noise = state.noise * state.scale.spread**2 * state.noise_factors(users, items)
    stated = np.sqrt(noise + variances)
    ids = held.user_ids.to_numpy()[held.users]
    even, odd = (math.sqrt(np.mean(stated[ids % 2 == kind] ** 2)) for kind in (0, 1))
    # one noise for all would state 0.87 for both; the steady ones are approached from there
    assert 0.3 < even < 0.45
    assert odd == pytest.approx(1.2, rel=0.1)


def test_unknown_ids_have_the_common_noise() -> None:
    state = ModelState.empty(settings_of(rank=1), "int", "int")
    learn_batch(state, encode_ratings(table_of([1, 2], [3, 4], [1.0, 2.0])))
    state.users.noise_factor[0] = 3.0
    found = state.noise_factors(np.array([0, -1]), np.array([-1, -1]))
    assert found.tolist() == [3.0, 1.0]
