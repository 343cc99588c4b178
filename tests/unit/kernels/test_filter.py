"""The filter against the equations written as plain loops."""

from __future__ import annotations

import numpy as np
import reference
from building import CLOSE, F32, Problem, problems
from hypothesis import given
from hypothesis import strategies as st

from sparkml_sgdals.kernels.filter import filter_ratings


def run_filter(p: Problem, noise: float, drift: float) -> tuple[np.ndarray, list[np.ndarray]]:
    """Errors and factors after the kernel."""
    found = p.factors()
    errors = np.full(p.ratings.size, np.nan, F32)
    user_mean, user_var, item_mean, item_var = found
    filter_ratings(
        p.users, p.items, p.ratings, p.weights, user_mean, user_var, item_mean, item_var,
        F32(noise), F32(drift), F32(-np.inf), errors,
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
    names = ("user means", "user variances", "item means", "item variances")
    for name, got, wanted in zip(names, found, expected, strict=True):
        np.testing.assert_allclose(got, wanted, **CLOSE, err_msg=name)


def test_filter_ends_where_no_variance_is_left() -> None:
    """The rating of ids that are sure, without noise, is predicted; those before it are learned."""
    mean = np.zeros((2, 2), F32), np.zeros((2, 2), F32)
    var = np.array([[0.5, 0.5], [0.0, 0.0]], F32), np.array([[0.5, 0.5], [0.0, 0.0]], F32)
    rows, errors = np.array([0, 1, 0], np.int32), np.full(3, np.nan, F32)
    ratings, none = np.array([1.0, 2.0, 3.0], F32), np.empty(0, F32)
    factors = mean[0], var[0], mean[1], var[1]
    learned = filter_ratings(
        rows, rows, ratings, none, *factors, F32(0.0), F32(0.0), F32(-np.inf), errors
    )
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
