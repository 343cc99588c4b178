"""Predictions, their variances and their errors against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from building import F32, Problem, problems
from hypothesis import given
from hypothesis import strategies as st

from sparkml_sgdals.kernels.predict import clipped_squares, predict_rows


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


@given(st.lists(st.tuples(st.floats(-9, 9, width=32), st.floats(-3, 3, width=32)), max_size=50))
def test_clipped_squares_are_those_of_clipped_predictions(pairs: list[tuple[float, float]]) -> None:
    """Predictions outside of the ratings' range count as its ends; spread in rating units."""
    ratings, errors = np.array(pairs, F32).reshape(-1, 2).T.copy()
    found = clipped_squares(ratings, errors, 1.5, -2.0, 4.0)
    expected = sum((r - min(max(r - 1.5 * e, -2.0), 4.0)) ** 2 for r, e in pairs)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
