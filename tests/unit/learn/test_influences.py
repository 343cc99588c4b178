"""Influences, and the prior drawn from them, against the plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from building import F32, Problem, id_array, problems, ratings_of, settings_of
from hypothesis import given
from hypothesis import strategies as st

from sparkml_sgdals.arrays.hashing import ITEM_SIDE, USER_SIDE
from sparkml_sgdals.arrays.ratings import layout_by
from sparkml_sgdals.learn import influences
from sparkml_sgdals.learn.influences import (
    FilterSide,
    concentration,
    drawn_means,
    influence_shares,
    learn_influence,
    roots,
    run_influence_filter,
)
from sparkml_sgdals.learn.solvers import Side
from sparkml_sgdals.learn.whole_table import fit_ratings
from sparkml_sgdals.state.columns import prior_variances
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.model_state import ModelState

CLOSE = {"rtol": 2e-3, "atol": 2e-4}
ARRAYS = ("mean", "var", "drawn", "influence", "evidence", "seen", "featured")


def taking_side(users: int, rank: int, seed: int) -> Side:
    """A side with a prior mean an id and one prior variance for all."""
    rng = np.random.default_rng(seed)
    shape = users, rank + 1
    prior_var = rng.uniform(0.2, 0.5, (1, rank + 1)).astype(F32)
    return Side(
        rng.normal(0, 0.5, shape).astype(F32), rng.uniform(0.01, 0.1, shape).astype(F32),
        rng.normal(0, 0.3, shape).astype(F32), prior_var,
    )  # fmt: skip


@given(st.integers(0, 20), st.integers(1, 300), st.sampled_from([1, 3]))
def test_drawn_means_are_those_of_the_loops(rank: int, ratings: int, threads: int) -> None:
    """Sums of partners' influences, a pair that repeats as often as it comes; 0 without ratings."""
    rng = np.random.default_rng(ratings)
    users, items = (rng.integers(0, n, ratings).astype(np.int32) for n in (9, 40))
    influence, root = rng.normal(0, 0.3, (40, rank + 1)).astype(F32), rng.random(10).astype(F32)
    layout = layout_by(users, items, np.zeros(ratings, F32), np.empty(0, F32), 10)
    expected = np.zeros((10, rank + 1))
    np.add.at(expected, users, influence[items])
    found = drawn_means(layout, influence, root, threads)
    np.testing.assert_allclose(found, root[:, None] * expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found, drawn_means(layout, influence, root, 1))


# from one group of coordinates to three; the last group may be narrower
@pytest.mark.parametrize("rank", [0, 3, 8, 9, 20])
@pytest.mark.parametrize("threads", [1, 3])
def test_influences_are_those_of_the_loops(rank: int, threads: int) -> None:
    """Influences, and the prior means and means that move with them; a pair may repeat."""
    rng = np.random.default_rng(rank)
    users, items = rng.integers(0, 7, 40).astype(np.int32), rng.integers(0, 5, 40).astype(np.int32)
    side, influence = taking_side(7, rank, 3), rng.normal(0, 0.1, (5, rank + 1)).astype(F32)
    expected = [
        array.astype(float)
        for array in (influence, side.mean, side.var, side.prior_mean, side.prior_var)
    ]
    reference.learn_influence(items, users, expected[0], 0.02, *expected[1:])
    layout = layout_by(items, users, np.zeros(40, F32), np.empty(0, F32), 5)
    root = roots(np.bincount(users))
    shares = influence_shares(layout, root)
    before = influence.copy(), side.prior_mean.copy()
    learn_influence(layout, influence, 0.02, side, root, shares, threads)
    np.testing.assert_allclose(influence, expected[0], **CLOSE)
    np.testing.assert_allclose(side.mean, expected[1], **CLOSE)
    np.testing.assert_allclose(side.prior_mean, expected[3], **CLOSE)
    assert not np.allclose(influence, before[0])
    # the prior mean is what it was, and n^(-1/2) times the sum of the changes
    moved = np.zeros_like(side.prior_mean)
    np.add.at(moved, users, (influence - before[0])[items])
    moved *= root[:, None]
    np.testing.assert_allclose(side.prior_mean, before[1] + moved, **CLOSE)


@pytest.mark.parametrize(
    ("rank", "threads", "together"),
    [(10, 1, 8), (10, 2, 8), (10, 3, 2), (10, 16, 2), (16, 2, 8), (3, 2, 2), (0, 4, 2)],
)
def test_many_threads_share_out_pairs_of_coordinates(
    rank: int, threads: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many at once as keep the cores busy, and the same bits as eight at once."""
    rng = np.random.default_rng(rank)
    users = rng.integers(0, 90, 2000).astype(np.int32)
    items = (rng.random(2000) ** 3 * 50).astype(np.int32)
    layout = layout_by(items, users, np.zeros(2000, F32), np.empty(0, F32), 50)
    root = roots(np.bincount(users))
    jobs: list[int] = []
    run = influences.run_all
    monkeypatch.setattr(
        influences, "run_all", lambda some, at_once: (jobs.append(len(some)), run(some, at_once))
    )
    found = []
    for at_once in (1, threads):
        side, influence = taking_side(90, rank, 3), np.full((50, rank + 1), 0.1, F32)
        shares = influence_shares(layout, root, at_once)
        for damping in (1.0, 1.5):
            learn_influence(layout, influence, 0.02, side, root, shares, at_once, damping)
        found.append((shares, influence, side.mean, side.prior_mean))
    assert jobs[-1] == -(-(rank + 1) // together)
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_id_without_ratings_keeps_its_influence() -> None:
    side, influence = taking_side(2, 2, 1), np.ones((3, 3), F32)
    own = np.array([0, 2], np.int32)
    layout = layout_by(own, np.array([0, 1], np.int32), np.zeros(2, F32), np.empty(0, F32), 3)
    root = np.ones(2, F32)
    learn_influence(layout, influence, 0.05, side, root, influence_shares(layout, root), 1)
    assert influence[1].tolist() == [1.0, 1.0, 1.0]
    assert not np.allclose(influence[0], 1.0)


def filter_side(mean: np.ndarray, var: np.ndarray, seed: int, featured: bool) -> FilterSide:
    rng = np.random.default_rng(seed)
    ids = len(mean)
    return FilterSide(
        mean.astype(F32), var.astype(F32), rng.normal(0, 0.3, mean.shape).astype(F32),
        rng.normal(0, 0.2, mean.shape).astype(F32), rng.uniform(0, 3, ids).astype(F32),
        rng.integers(0, 9, ids).astype(F32),
        rng.normal(0, 0.3, mean.shape if featured else (ids, 0)).astype(F32),
    )  # fmt: skip


@given(problems(), st.booleans())
def test_filter_is_that_of_the_loops(problem: Problem, featured: bool) -> None:
    """Means, variances, prior means, influences, evidence, counts and errors."""
    settings = settings_of(rank=problem.user_mean.shape[1] - 1, noise=0.6, drift=0.001)
    user = filter_side(problem.user_mean, problem.user_var, 1, featured)
    item = filter_side(problem.item_mean, problem.item_var, 2, featured)
    expected = [
        {name: getattr(side, name).astype(float) for name in ARRAYS} for side in (user, item)
    ]
    what = problem.users, problem.items, problem.ratings
    wanted = reference.learn_with_influences(
        *what, problem.all_weights(), *expected, prior_variances(settings).astype(float), 0.6, 0.001
    )
    errors = run_influence_filter(*what, problem.weights, settings, user, item)
    np.testing.assert_allclose(errors, wanted, **CLOSE)
    for side, arrays in zip((user, item), expected, strict=True):
        for name in ARRAYS:
            np.testing.assert_allclose(getattr(side, name), arrays[name], err_msg=name, **CLOSE)


def test_concentration_by_hand() -> None:
    """Three ratings of one user and one of another: (3 * 3 + 1) / 4, more than the items have."""
    assert concentration(np.array([5, 5, 5, 7]), np.array([1, 2, 3, 4])) == 2.5
    assert concentration(np.array([1, 2, 3, 4]), np.array([5, 5, 5, 7])) == 2.5


def test_shares_by_hand() -> None:
    """A user's share in an item with n ratings, k of them its own: k^2 / n."""
    users, items = np.array([0, 0, 1, 1, 0], np.int32), np.array([0, 1, 1, 1, 0], np.int32)
    layout = layout_by(users, items, np.zeros(5, F32), np.empty(0, F32), 3)
    shares = influence_shares(layout, roots(np.bincount(items)))
    np.testing.assert_allclose(shares, [4 / 2 + 1 / 3, 4 / 3, 0.0], rtol=1e-6)


def test_ratings_that_repeat_do_not_run_away() -> None:
    """Where every user rates every item many times the sweeps settle."""
    rng = np.random.default_rng(3)
    users, items = rng.integers(0, 40, 6000), rng.integers(0, 30, 6000)
    bias = rng.normal(0, 0.5, 30)
    values = 3.5 + bias[items] + rng.normal(0, 1, 6000)
    state = ModelState.empty(settings_of(rank=2, max_iter=30, tol=0.0), "int", "int")
    history = fit_ratings(ratings_of(users, items, values), state)
    assert max(history) < 1.1
    assert np.abs(state.users.influence).max() < 1.0


def test_new_user_follows_the_items() -> None:
    """After a fit a new user stands, before its rating counts, where its items' influences say."""
    settings = settings_of(rank=2, noise=1e9)
    tables = [FactorTable(side, "int", settings) for side in (USER_SIDE, ITEM_SIDE)]
    for table in tables:
        table.ensure(id_array([1, 2, 3, 4]))
    users, items = (
        FilterSide.of(table.take(np.arange(4)).arrays, np.zeros(4, F32)) for table in tables
    )
    items.influence[:] = np.arange(12).reshape(4, 3) / 10
    start = users.mean[0].copy()
    rows = np.zeros(4, np.int32), np.arange(4, dtype=np.int32)
    run_influence_filter(*rows, np.zeros(4, F32), np.empty(0, F32), settings, users, items)
    np.testing.assert_allclose(users.drawn[0], items.influence.sum(axis=0) / 2, rtol=1e-5)
    # the noise is so large that the ratings say nothing: the variance stays that of the prior
    np.testing.assert_allclose(users.mean[0], start + users.drawn[0], rtol=1e-3, atol=1e-5)
    assert users.seen.tolist() == [4.0, 0.0, 0.0, 0.0]
