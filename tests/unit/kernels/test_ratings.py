"""The kernels against the equations written as plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from building import F32, Problem, problems
from hypothesis import given
from hypothesis import strategies as st

from sparkml_sgdals.kernels.checks import check_rows
from sparkml_sgdals.kernels.filter import filter_ratings
from sparkml_sgdals.kernels.predict import clipped_squares, predict_rows
from sparkml_sgdals.kernels.sgd import rating_gradients, sgd_ratings

CLOSE = {"rtol": 1e-4, "atol": 2e-5}
REGS = st.tuples(*[st.sampled_from([0.0, 0.02, 0.3, 1.5])] * 4)


def run_filter(p: Problem, noise: float, drift: float) -> tuple[np.ndarray, list[np.ndarray]]:
    """Errors and factors after the kernel."""
    found = p.factors()
    errors = np.full(p.ratings.size, np.nan, F32)
    user_mean, user_var, item_mean, item_var = found
    filter_ratings(
        p.users, p.items, p.ratings, p.weights, user_mean, user_var, item_mean, item_var,
        F32(noise), F32(drift), errors,
    )  # fmt: skip
    return errors, found


@given(problems(), st.sampled_from([0.05, 0.5, 2.0]), st.sampled_from([0.0, 0.01]))
def test_filter_follows_the_equations(p: Problem, noise: float, drift: float) -> None:
    """Means, variances and errors of every rating, pairs and ids repeated, weights, drift."""
    errors, found = run_filter(p, noise, drift)
    expected = p.factors(float)
    expected_errors = reference.learn_filter(
        p.users, p.items, p.ratings.astype(float), p.all_weights(), *expected, noise, drift
    )
    np.testing.assert_allclose(errors, expected_errors, **CLOSE)
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, wanted, **CLOSE)


def test_filter_ends_where_no_variance_is_left() -> None:
    """The rating of ids that are sure, without noise, is predicted; those before it are learned."""
    mean = np.zeros((2, 2), F32), np.zeros((2, 2), F32)
    var = np.array([[0.5, 0.5], [0.0, 0.0]], F32), np.array([[0.5, 0.5], [0.0, 0.0]], F32)
    rows, errors = np.array([0, 1, 0], np.int32), np.full(3, np.nan, F32)
    ratings, none = np.array([1.0, 2.0, 3.0], F32), np.empty(0, F32)
    factors = mean[0], var[0], mean[1], var[1]
    learned = filter_ratings(rows, rows, ratings, none, *factors, F32(0.0), F32(0.0), errors)
    assert not learned
    assert errors[:2].tolist() == [1.0, 2.0]
    assert np.isnan(errors[2])
    assert mean[0][:, 0].tolist() == [0.5, 0.0]


def test_filter_of_one_rating_by_hand() -> None:
    """Numbers small enough to check on paper."""
    mean, var = np.array([[0.0, 1.0]], F32), np.array([[0.5, 0.25]], F32)
    p = Problem(
        np.zeros(1, np.int32), np.zeros(1, np.int32), np.array([3.0], F32), np.empty(0, F32),
        mean, var, np.array([[0.0, 2.0]], F32), np.array([[0.5, 0.5]], F32),
    )  # fmt: skip
    errors, (user_mean, user_var, item_mean, item_var) = run_filter(p, 0.5, 0.0)
    # S = 0.5 + 0.5 + 0.5 + 0.25 * 4 + 0.5 * 1 = 3 and e = 3 - 2 = 1
    assert errors[0] == 1.0
    np.testing.assert_allclose(user_mean, [[0.5 / 3, 1 + 0.5 / 3]], rtol=1e-6)
    np.testing.assert_allclose(user_var, [[0.5 - 0.25 / 3, 0.25 - 0.25 / 3]], rtol=1e-6)
    np.testing.assert_allclose(item_mean, [[0.5 / 3, 2 + 0.5 / 3]], rtol=1e-6)
    np.testing.assert_allclose(item_var, [[0.5 - 0.25 / 3, 0.5 - 0.25 / 3]], rtol=1e-6)


@given(problems(weighted=True))
def test_zero_weight_is_predicted_and_not_learned(p: Problem) -> None:
    """Without learning every error is from the factors given, and these stay to the bit."""
    p.weights[:] = 0.0
    errors, found = run_filter(p, 0.5, 0.1)
    expected = [
        r - reference.predict(p.user_mean[x], p.item_mean[y])
        for x, y, r in zip(p.users, p.items, p.ratings, strict=True)
    ]
    np.testing.assert_allclose(errors, expected, **CLOSE)
    for got, before in zip(found, p.factors(), strict=True):
        np.testing.assert_array_equal(got, before)


@given(problems(weighted=True))
def test_rows_of_weight_zero_change_nothing_for_the_others(p: Problem) -> None:
    """The filter with rows of weight 0 ends where it ends without them."""
    _, found = run_filter(p, 0.5, 0.0)
    kept = p.weights > 0
    fewer = Problem(
        p.users[kept], p.items[kept], p.ratings[kept], p.weights[kept], *p.factors()
    )  # fmt: skip
    _, expected = run_filter(fewer, 0.5, 0.0)
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_variances_stay_positive() -> None:
    """Float32 must not round a variance to zero, however sure the filter gets."""
    count = 20_000
    zeros = np.zeros(count, np.int32)
    p = Problem(
        zeros, zeros, np.ones(count, F32), np.full(count, 1e6, F32),
        np.ones((1, 3), F32), np.full((1, 3), 1e3, F32),
        np.ones((1, 3), F32), np.full((1, 3), 1e-9, F32),
    )  # fmt: skip
    errors, (user_mean, user_var, item_mean, item_var) = run_filter(p, 1e-6, 0.0)
    assert (user_var > 0).all()
    assert (item_var > 0).all()
    for values in (errors, user_mean, item_mean):
        assert np.isfinite(values).all()


@given(problems(), st.sampled_from([0.001, 0.05]), REGS)
def test_sgd_follows_the_equations(
    p: Problem, step: float, regs: tuple[float, float, float, float]
) -> None:
    """Every lambda acts on its own coordinate, a weight scales the step."""
    user_mean, item_mean = p.means()
    errors = np.full(p.ratings.size, np.nan, F32)
    sgd_ratings(
        p.users, p.items, p.ratings, p.weights, user_mean, item_mean,
        F32(step), np.array(regs, F32), errors,
    )  # fmt: skip
    expected = p.means(float)
    expected_errors = reference.learn_sgd(
        p.users, p.items, p.ratings.astype(float), p.all_weights(), *expected, step, regs
    )
    np.testing.assert_allclose(errors, expected_errors, **CLOSE)
    np.testing.assert_allclose(user_mean, expected[0], **CLOSE)
    np.testing.assert_allclose(item_mean, expected[1], **CLOSE)


@given(problems(), REGS)
def test_gradients_are_those_of_the_loss(
    p: Problem, regs: tuple[float, float, float, float]
) -> None:
    """Summed by id they are minus the derivative of 1/2 sum w (e^2 + lambda . squares)."""
    means = p.means(float)
    user_gradients, item_gradients, _ = rating_gradients(
        p.ratings, p.weights, means[0][p.users], means[1][p.items], np.array(regs)
    )
    given_ratings, weights = p.ratings.astype(float), p.all_weights()
    h = 1e-5
    for rows, gradients, mean in zip(
        (p.users, p.items), (user_gradients, item_gradients), means, strict=True
    ):
        sums = np.zeros_like(mean)
        np.add.at(sums, rows, gradients)
        # one id is enough: all others stand still in its derivative
        for f in range(mean.shape[1]):
            around = []
            for shift in (h, -2 * h):
                mean[0, f] += shift
                around.append(
                    reference.loss(p.users, p.items, given_ratings, weights, *means, regs)
                )
            mean[0, f] += h
            assert -(around[0] - around[1]) / (2 * h) == pytest.approx(
                sums[0, f], rel=1e-6, abs=1e-6
            )


@given(problems(), REGS)
def test_gradients_are_one_sgd_step_each(
    p: Problem, regs: tuple[float, float, float, float]
) -> None:
    """Unsummed, a gradient times the step is what sgd adds for that rating alone."""
    user_gradients, item_gradients, errors = rating_gradients(
        p.ratings, p.weights, p.user_mean[p.users], p.item_mean[p.items], np.array(regs)
    )
    for n in range(p.ratings.size):
        one = slice(n, n + 1)
        means = p.means(float)
        found = reference.learn_sgd(
            p.users[one], p.items[one], p.ratings[one].astype(float), p.all_weights()[one],
            *means, 1.0, regs,
        )  # fmt: skip
        assert errors[n] == pytest.approx(found[0], rel=1e-6, abs=1e-6)
        x, y = p.users[n], p.items[n]
        np.testing.assert_allclose(user_gradients[n], means[0][x] - p.user_mean[x], atol=1e-6)
        np.testing.assert_allclose(item_gradients[n], means[1][y] - p.item_mean[y], atol=1e-6)


@given(problems(), st.booleans(), st.integers(0, 2**32))
def test_predictions_and_their_variances(p: Problem, with_variance: bool, seed: int) -> None:
    """An unknown id stands at mean 0 with the prior variance; no variances give variance 0."""
    rng = np.random.default_rng(seed)
    users = np.where(rng.random(p.users.size) < 0.3, -1, p.users).astype(np.int64)
    items = np.where(rng.random(p.items.size) < 0.3, -1, p.items).astype(np.int64)
    user_mean, user_var, item_mean, item_var = p.factors()
    if not with_variance:
        user_var, item_var = user_var[:, :0], item_var[:, :0]
    width = user_mean.shape[1]
    prior = rng.uniform(0.05, 0.5, width).astype(F32)
    predictions = np.full(users.size, np.nan, F32)
    variances = np.full(users.size, np.nan, F32)
    predict_rows(
        users, items, user_mean, np.ascontiguousarray(user_var), item_mean,
        np.ascontiguousarray(item_var), prior, predictions, variances,
    )  # fmt: skip
    nothing = np.zeros(width)
    for n, (x, y) in enumerate(zip(users, items, strict=True)):
        um, uv = (p.user_mean[x], p.user_var[x]) if x >= 0 else (nothing, prior)
        im, iv = (p.item_mean[y], p.item_var[y]) if y >= 0 else (nothing, prior)
        assert predictions[n] == pytest.approx(reference.predict(um, im), rel=1e-4, abs=1e-5)
        expected = reference.variance(um, uv, im, iv) if with_variance else 0.0
        assert variances[n] == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("rows", [[-1], [0, 3], [2, -2147483648], [2147483647]])
def test_rows_outside_are_refused(rows: list[int]) -> None:
    """A row below 0 or past the factors never reaches a kernel."""
    with pytest.raises(IndexError, match=r"user rows reach from -?\d+ to -?\d+, .* have 3"):
        check_rows(np.array(rows, np.int32), 3, "user")


@pytest.mark.parametrize("rows", [[], [0], [2, 0, 1]])
def test_rows_inside_pass(rows: list[int]) -> None:
    """Nothing, the first and the last row are fine."""
    check_rows(np.array(rows, np.int64), 3, "item")


@given(st.lists(st.tuples(st.floats(-9, 9, width=32), st.floats(-3, 3, width=32)), max_size=50))
def test_clipped_squares_are_those_of_clipped_predictions(pairs: list[tuple[float, float]]) -> None:
    """Predictions outside of the ratings' range count as its ends; spread in rating units."""
    ratings, errors = np.array(pairs, F32).reshape(-1, 2).T.copy()
    found = clipped_squares(ratings, errors, 1.5, -2.0, 4.0)
    expected = sum((r - min(max(r - 1.5 * e, -2.0), 4.0)) ** 2 for r, e in pairs)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
