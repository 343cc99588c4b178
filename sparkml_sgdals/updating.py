"""Learning one batch onto a model in memory: predict, filter, smooth (driver; no Spark).

`update` and the streams call this; it only arranges calls of the kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparkml_sgdals.implicit import FilterSide, run_implicit_filter
from sparkml_sgdals.kernels import check_rows
from sparkml_sgdals.learning import check_finite, settle_scale
from sparkml_sgdals.noise import expected_squares, learn_noise_factors
from sparkml_sgdals.ratings import Ratings
from sparkml_sgdals.smoothing import Before, smooth_batch
from sparkml_sgdals.solvers import DivergenceError, run_filter, run_minibatches, run_sgd
from sparkml_sgdals.state import SETTLING_RATINGS, Counters, ModelState

__all__ = ["BatchReport", "learn_batch"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BatchReport:
    """What one batch did, errors being from before it was learned; NaN where unknown."""

    ratings: int
    new_users: int
    new_items: int
    user_rows: I64
    item_rows: I64
    rmse: float
    baseline_rmse: float


def learn_batch(state: ModelState, ratings: Ratings) -> BatchReport:
    """Predict a batch, then learn each of its ratings once, in place.

    Raises
    ------
    DivergenceError : what was known stands again as it was before the batch
    """
    if not len(ratings):
        nothing = np.empty(0, np.int64)
        return BatchReport(0, 0, 0, nothing, nothing, math.nan, math.nan)
    noise = state.noise, state.noise_weight
    predicted = not state.blank
    # while the scale settles every row may change, and there are few
    whole = None if state.scale.frozen else state.copy()
    squares, baseline_squares, surprises = _score_before(state, ratings)
    first = min(SETTLING_RATINGS - state.scale.seen, len(ratings))
    settle_scale(state, ratings.moments(max(first, 0)), first)
    sizes = state.users.size, state.items.size
    user_rows, new_users = state.users.ensure(ratings.user_ids)
    item_rows, new_items = state.items.ensure(ratings.item_ids)
    users, items = state.users, state.items
    values = state.scale.standardise(ratings.values)
    rows_u, rows_i = user_rows[ratings.users], item_rows[ratings.items]
    check_rows(rows_u, users.size, "user")
    check_rows(rows_i, items.size, "item")
    before_rows = users.to_arrow(user_rows), items.to_arrow(item_rows)
    smoothed = state.settings.solver == "bayes"
    before = (Before.of(users, user_rows), Before.of(items, item_rows)) if smoothed else None
    try:
        _learn_rows(state, rows_u, rows_i, values, ratings.weights)
        if before is not None:
            smooth_batch(ratings, values, state.settings, (users, items), before)
        check_finite(state, user_rows, item_rows)
        if surprises is not None:
            learn_noise_factors((users, items), (user_rows, item_rows), ratings, surprises)
        users.count[user_rows] += np.bincount(ratings.users, minlength=user_rows.size)
        items.count[item_rows] += np.bincount(ratings.items, minlength=item_rows.size)
    except BaseException as failure:
        if whole is None:
            users.put_arrow(before_rows[0])
            items.put_arrow(before_rows[1])
            users.truncate(sizes[0])
            items.truncate(sizes[1])
            state.noise, state.noise_weight = noise
        else:
            vars(state).update(vars(whole))
        if isinstance(failure, ZeroDivisionError):
            # a variance fell below what a float32 holds
            raise DivergenceError(
                "The variances left the range of numbers: look for ratings of an absurd size."
            ) from failure
        raise

    count = len(ratings)
    counted = state.counters
    low, high = ratings.value_range()
    state.counters = Counters(
        ratings=counted.ratings + count,
        low=min(low, counted.low),
        high=max(high, counted.high),
        prequential_ratings=counted.prequential_ratings + (count if predicted else 0),
        prequential_squares=counted.prequential_squares + (squares if predicted else 0.0),
        baseline_squares=counted.baseline_squares + (baseline_squares if predicted else 0.0),
    )
    if whole is not None:
        # new units changed the ids that the batch does not name as well
        user_rows, item_rows = np.arange(users.size), np.arange(items.size)
    return BatchReport(
        count,
        new_users,
        new_items,
        user_rows,
        item_rows,
        math.sqrt(squares / count) if predicted else math.nan,
        math.sqrt(baseline_squares / count) if predicted else math.nan,
    )


def _learn_rows(state: ModelState, users: I64, items: I64, values: F32, weights: F32) -> None:
    """Learn standardised ratings by the state's solver, and its baseline, in place."""
    u, i, settings = state.users, state.items, state.settings
    what = (users, items, values, weights, settings)
    run_filter(*what, u.base_mean, u.base_var, i.base_mean, i.base_var)
    if settings.implicit:
        run_implicit_filter(*what, FilterSide.of(u), FilterSide.of(i))
    elif settings.solver == "bayes":
        run_filter(*what, u.mean, u.var, i.mean, i.var)
    elif settings.solver == "sgd":
        run_sgd(*what, u.mean, i.mean)
    else:
        run_minibatches(*what, u.mean, i.mean)


def _score_before(
    state: ModelState, ratings: Ratings
) -> tuple[float, float, npt.NDArray[np.float64] | None]:
    """Sums of squared errors of the model and its baseline on ratings not yet learned.

    Under `bayes` the noise variance, which only stated deviations use, learns from them too; and
    the squared noise expected behind each, in its units, is the third, None where unknown.
    """
    users = state.users.index.find(ratings.user_ids)[ratings.users]
    items = state.items.index.find(ratings.item_ids)[ratings.items]
    predictions, variances = state.predict(users, items)
    truth = ratings.values.astype(np.float64)
    squares = float(np.sum((truth - state.clip(predictions)) ** 2))
    baseline = float(np.sum((truth - state.clip(state.predict_baseline(users, items))) ** 2))
    surprises = None
    if state.settings.solver == "bayes" and not state.blank:
        noise = state.noise * state.noise_factors(users, items)
        units = state.scale.spread**2
        expected = expected_squares(
            truth - predictions, variances.astype(np.float64), noise * units
        )
        surprises = expected / (state.noise * units)
        surplus = (truth - predictions) ** 2 - variances
        weights = ratings.weights if ratings.weights.size else np.ones(truth.size, np.float32)
        weight = float(weights.sum(dtype=np.float64))
        total = state.noise_weight + weight
        seen = float(np.sum(surplus * weights)) / state.scale.spread**2
        state.noise = max((state.noise * state.noise_weight + seen) / total, 0.01)
        state.noise_weight = total
    return squares, baseline, surprises
