"""Mini-batches, half-sweeps and their checks against plain loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import reference
from building import F32, Problem, problems, settings_of
from hypothesis import given
from hypothesis import strategies as st

from sparkml_sgdals.arrays.ratings import Layout, layout_by
from sparkml_sgdals.errors import DivergenceError
from sparkml_sgdals.learn.solvers import (
    Side,
    check_mini_batch,
    half_sweep,
    run_filter,
    run_minibatches,
    run_sgd,
    settled,
)

CLOSE = {"rtol": 2e-4, "atol": 2e-5}


@st.composite
def sides(draw: st.DrawFn, p: Problem) -> Side:
    """The users of a problem with one prior for all, or one each."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    ids, width = p.user_mean.shape
    rows = ids if draw(st.booleans()) else 1
    return Side(
        p.user_mean.copy(),
        p.user_var.copy(),
        rng.normal(0, 0.5, (rows, width)).astype(F32),
        rng.uniform(0.02, 1.0, (rows, width)).astype(F32),
    )


def by_user(p: Problem) -> Layout:
    """The ratings of a problem grouped by user."""
    return layout_by(p.users, p.items, p.ratings, p.weights, len(p.user_mean))


def swept(p: Problem, side: Side, noise: float) -> tuple[np.ndarray, ...]:
    """Means, variances and both sums by id from the plain loops."""
    ids, width = p.user_mean.shape
    mean, var = side.mean.astype(float), side.var.astype(float)
    priors = [
        np.broadcast_to(a.astype(float), (ids, width)) for a in (side.prior_mean, side.prior_var)
    ]
    sums = reference.sweep(
        p.users, p.items, p.ratings.astype(float), p.all_weights(), mean, var, *priors,
        p.item_mean.astype(float), p.item_var.astype(float), noise,
    )  # fmt: skip
    return mean, var, *sums


@given(st.data(), problems(), st.sampled_from([0.1, 0.5, 2.0]))
def test_half_sweep_is_coordinate_ascent(data: st.DataObject, p: Problem, noise: float) -> None:
    """Posteriors and the sums of e^2 and V, with priors shared or one an id."""
    side = data.draw(sides(p))
    mean, var, squares, variances = swept(p, side, noise)
    found = half_sweep(by_user(p), side, p.item_mean, p.item_var, noise, 1)
    np.testing.assert_allclose(side.mean, mean, **CLOSE)
    np.testing.assert_allclose(side.var, var, **CLOSE)
    np.testing.assert_allclose(found, (squares.sum(), variances.sum()), rtol=1e-3, atol=1e-4)


@given(st.data(), problems(), st.sampled_from([1, 3]))
def test_squares_relative_to_partners(data: st.DataObject, p: Problem, threads: int) -> None:
    """The sums that noise by id is learned from, of posteriors that do not depend on them."""
    side = data.draw(sides(p))
    twin = replace(side, mean=side.mean.copy(), var=side.var.copy())
    sums = half_sweep(by_user(p), twin, p.item_mean, p.item_var, 0.5, 1)
    factors = np.random.default_rng(len(p.ratings)).uniform(0.3, 3, len(p.item_mean)).astype(F32)
    found = np.full(len(p.user_mean), np.nan)
    same = half_sweep(
        by_user(p), side, p.item_mean, p.item_var, 0.5, threads, relative=(factors, found)
    )
    assert same == sums
    np.testing.assert_array_equal(side.mean, twin.mean)
    np.testing.assert_array_equal(side.var, twin.var)
    expected = np.zeros(len(found))
    for x, y, rating, weight in zip(p.users, p.items, p.ratings, p.all_weights(), strict=True):
        ids = side.mean[x], side.var[x], p.item_mean[y], p.item_var[y]
        mean = reference.predict(ids[0], ids[2])
        # nothing is learned of a rating without weight, and it says nothing
        square = (rating - mean) ** 2 + reference.variance(*ids)
        expected[x] += square / factors[y] if weight > 0 else 0.5
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@given(st.data(), problems())
def test_ids_without_ratings_stay(data: st.DataObject, p: Problem) -> None:
    """Their posteriors stay to the bit, and so do those of ids with weights of 0 only."""
    side = data.draw(sides(p))
    before = side.mean.copy(), side.var.copy()
    half_sweep(by_user(p), side, p.item_mean, p.item_var, 0.5, 1)
    weight = np.bincount(p.users, p.all_weights(), minlength=len(p.user_mean))
    np.testing.assert_array_equal(side.mean[weight == 0], before[0][weight == 0])
    np.testing.assert_array_equal(side.var[weight == 0], before[1][weight == 0])
    assert (side.var[weight > 0] != before[1][weight > 0]).any(axis=1).all()


def test_sweep_of_one_rating_by_hand() -> None:
    """The bias first, and the error that it leaves is what the feature sees."""
    layout = layout_by(
        np.zeros(1, np.int32), np.zeros(1, np.int32), np.array([2.0], F32), np.empty(0, F32), 1
    )
    prior = np.array([[1.0, 0.5]], F32)
    side = Side(np.zeros((1, 2), F32), np.ones((1, 2), F32), np.zeros((1, 2), F32), prior)
    partner = np.array([[0.0, 1.0]], F32), np.array([[0.25, 0.5]], F32)
    squares, variances = half_sweep(layout, side, *partner, 1.0, 1)
    # bias: c = 1 / (1 + 1), m = c * 2 = 1, e = 1
    # feature: c = 1 / (1 / 0.5 + 1 + 0.5), m = c * 1
    c = 1 / 3.5
    np.testing.assert_allclose(side.mean, [[1.0, c]], rtol=1e-6)
    np.testing.assert_allclose(side.var, [[0.5, c]], rtol=1e-6)
    assert squares == pytest.approx((1 - c) ** 2, rel=1e-6)
    assert variances == pytest.approx(0.5 + 0.25 + c * 1.5 + c * c * 0.5, rel=1e-6)


@given(st.data(), problems(weighted=False, max_ratings=25))
def test_weight_two_is_the_row_twice(data: st.DataObject, p: Problem) -> None:
    """A weight counts observations: in a sweep from one state both ways agree."""
    side = data.draw(sides(p))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    times = rng.integers(1, 4, p.ratings.size)
    repeated = Problem(
        *(np.repeat(a, times) for a in (p.users, p.items, p.ratings)), p.weights, *p.factors()
    )
    weighted = replace(p, weights=times.astype(F32))
    twin = replace(side, mean=side.mean.copy(), var=side.var.copy())
    sums = half_sweep(by_user(weighted), side, p.item_mean, p.item_var, 0.5, 1)
    twin_sums = half_sweep(by_user(repeated), twin, p.item_mean, p.item_var, 0.5, 1)
    np.testing.assert_allclose(side.mean, twin.mean, **CLOSE)
    np.testing.assert_allclose(side.var, twin.var, **CLOSE)
    np.testing.assert_allclose(sums, twin_sums, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("popularity", [0.0, 1.5])
def test_threads_do_not_change_bits(weighted: bool, popularity: float) -> None:
    """Any number of threads gives the same bits, ids of one rating and of thousands mixed."""
    rng = np.random.default_rng(3)
    ids, partners, count, width = 700, 300, 20_000, 9
    chance = 1.0 / np.arange(1, ids + 1) ** popularity
    users = rng.choice(ids, count, p=chance / chance.sum()).astype(np.int32)
    items = rng.integers(0, partners, count).astype(np.int32)
    weights = rng.uniform(0, 3, count).astype(F32) if weighted else np.empty(0, F32)
    layout = layout_by(users, items, rng.normal(0, 1, count).astype(F32), weights, ids)
    partner = (
        rng.normal(0, 0.5, (partners, width)).astype(F32),
        rng.uniform(0.01, 0.5, (partners, width)).astype(F32),
    )
    start = rng.normal(0, 0.5, (ids, width)).astype(F32)
    results = []
    for threads in (0, 1, 2, 5):
        side = Side(
            start.copy(), np.ones((ids, width), F32),
            np.zeros((1, width), F32), np.full((1, width), 0.1, F32),
        )  # fmt: skip
        sums = half_sweep(layout, side, *partner, 0.5, threads)
        results.append((side.mean, side.var, np.array(sums)))
    for result in results[1:]:
        for got, wanted in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_half_sweep_refuses_partners_outside() -> None:
    """A partner past the other side's factors raises instead of reading memory."""
    layout = layout_by(
        np.zeros(2, np.int32), np.array([0, 2], np.int32), np.ones(2, F32), np.empty(0, F32), 1
    )
    side = Side(*(np.ones((1, 2), F32) for _ in range(4)))
    with pytest.raises(IndexError, match="partner"):
        half_sweep(layout, side, np.ones((2, 2), F32), np.ones((2, 2), F32), 0.5, 1)
    partners = np.ones((3, 2), F32), np.ones((3, 2), F32)
    with pytest.raises(ValueError, match="2 noises for 3 partners"):
        half_sweep(layout, side, *partners, 0.5, 1, relative=(np.ones(2, F32), np.zeros(1)))


@given(problems(), st.integers(1, 6))
def test_prior_is_the_mean_spread_of_rated_ids(p: Problem, rated_count: int) -> None:
    """v_f becomes the mean of (m - a)^2 + c over the rated ids."""
    rated = np.zeros(len(p.user_mean), bool)
    rated[:rated_count] = True
    side = Side(p.user_mean, p.user_var, np.full((1, p.user_mean.shape[1]), 0.2, F32), p.user_var)
    side.learn_prior(rated)
    expected = [
        np.mean([(float(m) - 0.2) ** 2 + float(c) for m, c in zip(means, variances, strict=True)])
        for means, variances in zip(p.user_mean[rated].T, p.user_var[rated].T, strict=True)
    ]
    assert side.prior_var.shape == (1, p.user_mean.shape[1])
    assert side.prior_var.dtype == F32
    np.testing.assert_allclose(side.prior_var[0], expected, rtol=1e-5)


@given(problems(), st.integers(1, 50))
def test_minibatches_sum_by_id(p: Problem, block_size: int) -> None:
    """Every gradient is from before its mini-batch; sums over an id are added once."""
    settings = settings_of(
        solver="minibatch", step_size=0.03, regs=(0.1, 0.2, 0.3, 0.4), block_size=block_size
    )
    means = p.means()
    errors = run_minibatches(p.users, p.items, p.ratings, p.weights, settings, *means)
    expected = p.means(float)
    expected_errors = reference.learn_minibatches(
        p.users, p.items, p.ratings.astype(float), p.all_weights(), *expected, 0.03,
        settings.regs, block_size,
    )  # fmt: skip
    np.testing.assert_allclose(errors, expected_errors, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(means[0], expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(means[1], expected[1], rtol=1e-5, atol=1e-5)


@given(problems())
def test_minibatches_of_one_rating_are_sgd(p: Problem) -> None:
    """With blockSize 1 both solvers take the same steps."""
    settings = settings_of(step_size=0.05, regs=(0.1, 0.2, 0.3, 0.4), block_size=1)
    one, other = p.means(), p.means()
    errors = run_minibatches(p.users, p.items, p.ratings, p.weights, settings, *one)
    expected = run_sgd(p.users, p.items, p.ratings, p.weights, settings, *other)
    np.testing.assert_allclose(errors, expected, **CLOSE)
    for got, wanted in zip(one, other, strict=True):
        np.testing.assert_allclose(got, wanted, **CLOSE)


@given(problems())
def test_rows_of_any_integer_type(p: Problem) -> None:
    """Rows as int64, as an index gives them, learn what int32 rows learn."""
    settings = settings_of(noise=0.7, drift=0.02)
    one, other = p.factors(), p.factors()
    errors = run_filter(p.users, p.items, p.ratings, p.weights, settings, *one)
    wide = p.users.astype(np.int64), p.items.astype(np.int64)
    np.testing.assert_array_equal(errors, run_filter(*wide, p.ratings, p.weights, settings, *other))
    for got, wanted in zip(one, other, strict=True):
        np.testing.assert_array_equal(got, wanted)


def popular(count: int, factor: float = 1.0) -> Problem:
    """One user who rates one item again and again: the plain sum overshoots."""
    zeros = np.zeros(count, np.int32)
    ones = np.full((1, 3), factor, F32)
    return Problem(
        zeros, zeros, np.linspace(-1, 1, count, dtype=F32), np.empty(0, F32), ones, ones, ones, ones
    )


def test_divergence_names_what_to_change() -> None:
    """The message says stepSize and blockSize with their values."""
    settings = settings_of(solver="minibatch", step_size=3.0, block_size=50)
    p = popular(1000)
    with pytest.raises(DivergenceError, match=r"stepSize \(now 3.0\) or blockSize \(now 50\)"):
        run_minibatches(p.users, p.items, p.ratings, p.weights, settings, *p.means())


def test_a_gentle_step_does_not_diverge() -> None:
    """The same ratings with a small step learn."""
    settings = settings_of(solver="minibatch", step_size=0.001, block_size=50)
    p = popular(1000)
    means = p.means()
    errors = run_minibatches(p.users, p.items, p.ratings, p.weights, settings, *means)
    assert np.abs(errors[-50:]).mean() < np.abs(errors[:50]).mean()


@pytest.mark.parametrize(
    ("squares", "ratings", "raises"),
    [
        (0.0, 0.0, False),
        (999.0, 0.0, False),
        (1001.0, 0.0, True),
        (1999.0, 10.0, False),
        (2001.0, 10.0, True),
        (float("inf"), 10.0, True),
        (float("nan"), 10.0, True),
    ],
)
def test_the_limit_of_divergence(squares: float, ratings: float, raises: bool) -> None:
    """A hundred times the spread of the ratings, and one each; never a silent NaN."""
    if raises:
        with pytest.raises(DivergenceError, match="minibatch diverged"):
            check_mini_batch(squares, ratings, 10, settings_of())
    else:
        check_mini_batch(squares, ratings, 10, settings_of())


@pytest.mark.parametrize(
    ("history", "tol", "expected"),
    [
        ([], 0.1, False),
        ([1.0], 0.1, False),
        ([1.0, 0.95], 0.1, True),
        ([1.0, 0.85], 0.1, False),
        ([1.0, 1.05], 0.1, True),
        ([2.0, 1.0, 0.95], 0.1, True),
        ([1.0, 1.0], 0.0, False),
    ],
)
def test_settled(history: list[float], tol: float, expected: bool) -> None:
    """The last two passes decide; a tolerance of 0 never stops."""
    assert settled(history, tol) is expected
