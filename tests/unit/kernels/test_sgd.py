"""Gradient steps against the equations written as plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from building import CLOSE, F32, Problem, problems
from hypothesis import given
from hypothesis import strategies as st

from sparkml_sgdals.kernels.sgd import rating_gradients, sgd_ratings

REGS = st.tuples(*[st.sampled_from([0.0, 0.02, 0.3, 1.5])] * 4)


@given(problems(), st.sampled_from([0.001, 0.05]), REGS)
def test_sgd_follows_the_equations(
    p: Problem, step: float, regs: tuple[float, float, float, float]
) -> None:
    """Every lambda acts on its own coordinate, a weight scales the step."""
    user_mean, item_mean = p.means()
    errors = np.full(p.ratings.size, np.nan, F32)
    sgd_ratings(
        p.users, p.items, p.ratings, p.weights, user_mean, item_mean,
        F32(step), np.array(regs, F32), F32(-np.inf), errors,
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
