"""Learning in memory: a table at once, or one batch onto a model (driver and executor, no Spark).

The one-task form of `fit` calls `fit_ratings` inside its task; `update` and the streams call
`learn_batch` on the driver. Both only arrange calls of the kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from sparkml_sgdals.factors import prior_variances
from sparkml_sgdals.implicit import (
    FilterSide,
    ImplicitPrior,
    run_implicit_filter,
)
from sparkml_sgdals.kernels import (
    check_rows,
)
from sparkml_sgdals.noise import (
    expected_after_learning,
    expected_squares,
    learn_noise_factors,
)
from sparkml_sgdals.ratings import Ratings, layout_by
from sparkml_sgdals.settings import Settings
from sparkml_sgdals.smoothing import Before, smooth_batch
from sparkml_sgdals.solvers import (
    DivergenceError,
    Side,
    half_sweep,
    run_filter,
    run_minibatches,
    run_sgd,
    settled,
)
from sparkml_sgdals.state import SETTLING_RATINGS, Counters, ModelState, Scale

__all__ = ["BatchReport", "check_finite", "fit_ratings", "learn_batch", "settle_scale"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Rows = I32 | I64


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


def fit_ratings(
    ratings: Ratings,
    state: ModelState,
    threads: int = 1,
    progress: Callable[[int, float], None] = lambda sweep, rmse: None,
) -> list[float]:
    """Learn a whole table onto `state`, in place, and return the training RMSE of each pass.

    A state that has seen nothing gets its scale from the table and learns prior and noise
    variances; for one that has learned these stay as set, its scale is kept, and what it knows of
    an id is that id's prior.

    Raises
    ------
    DivergenceError : where a pass leaves factors that are not finite, or predictions far worse
        than the mean
    """
    fresh = state.blank
    known = state.users.size, state.items.size
    settings = state.settings
    if fresh:
        scale = Scale.of(ratings.moments(), len(ratings), settings.solver == "bayes")
        state.scale = replace(scale, frozen=True)
    else:
        settle_scale(state, ratings.moments(), len(ratings), freeze=True)
    values = state.scale.standardise(ratings.values)
    user_rows, _ = state.users.ensure(ratings.user_ids)
    item_rows, _ = state.items.ensure(ratings.item_ids)
    work = _Work(ratings, values, state, (user_rows, item_rows), known)
    work.learn_baseline(fresh)
    if settings.solver == "bayes":
        history = work.filter_and_sweep(fresh, threads, progress)
    else:
        history = work.descend(settings.max_iter if fresh else 1, progress)
    check_finite(state, user_rows, item_rows)
    state.users.count[user_rows] += np.bincount(ratings.users, minlength=user_rows.size)
    state.items.count[item_rows] += np.bincount(ratings.items, minlength=item_rows.size)
    low, high = ratings.value_range()
    state.counters = replace(
        state.counters,
        ratings=state.counters.ratings + len(ratings),
        low=min(low, state.counters.low),
        high=max(high, state.counters.high),
    )
    return history


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
    except DivergenceError:
        if whole is None:
            users.put_arrow(before_rows[0])
            items.put_arrow(before_rows[1])
            users.truncate(sizes[0])
            items.truncate(sizes[1])
            state.noise, state.noise_weight = noise
        else:
            vars(state).update(vars(whole))
        raise
    if surprises is not None:
        learn_noise_factors((users, items), (user_rows, item_rows), ratings, surprises)
    users.count[user_rows] += np.bincount(ratings.users, minlength=user_rows.size)
    items.count[item_rows] += np.bincount(ratings.items, minlength=item_rows.size)

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


class _Work:
    """A table being learned, with the factors of its ids gathered in the table's own order."""

    def __init__(
        self,
        ratings: Ratings,
        values: F32,
        state: ModelState,
        rows: tuple[I64, I64],
        known: tuple[int, int],
    ) -> None:
        self.ratings = ratings
        self.values = values
        self.state = state
        self.rows = rows
        # rows up to there were known before this table
        self.known = known
        self.sides = (state.users, state.items)
        self.settings = state.settings
        self.total_weight = (
            float(ratings.weights.astype(np.float64).sum())
            if ratings.weights.size
            else float(len(ratings))
        )
        check_rows(ratings.users, rows[0].size, "user")
        check_rows(ratings.items, rows[1].size, "item")

    def learn_baseline(self, fresh: bool) -> None:
        """Filter, then sweep once, a model of rank 0: what features have to beat."""
        users, items = (
            Side(
                table.base_mean[rows],
                table.base_var[rows],
                _zero_row(1) if fresh else table.base_mean[rows],
                _bias_row(self.settings) if fresh else table.base_var[rows],
            )
            for table, rows in zip(self.sides, self.rows, strict=True)
        )
        r = self.ratings
        self.baseline_errors = run_filter(
            r.users, r.items, self.values, r.weights, self.settings,
            users.mean, users.var, items.mean, items.var,
        )  # fmt: skip
        for table, rows, side in zip(self.sides, self.rows, (users, items), strict=True):
            table.base_mean[rows] = side.mean
            table.base_var[rows] = side.var

    def filter_and_sweep(
        self, fresh: bool, threads: int, progress: Callable[[int, float], None]
    ) -> list[float]:
        settings, r = self.settings, self.ratings
        gathered = []
        for table, rows, size in zip(self.sides, self.rows, self.known, strict=True):
            mean, var = table.mean[rows], table.var[rows]
            if fresh:
                prior = prior_variances(settings)[None, :]
                gathered.append(Side(mean, var, _zero_row(prior.shape[1]), prior))
            else:
                known = (rows < size)[:, None]
                gathered.append(Side(mean, var, np.where(known, mean, np.float32(0.0)), var.copy()))
        users, items = gathered
        implicit = ImplicitPrior(r, self.sides, self.rows) if settings.implicit else None
        if implicit is None or fresh:
            errors = run_filter(
                r.users, r.items, self.values, r.weights, settings,
                users.mean, users.var, items.mean, items.var,
            )  # fmt: skip
        else:
            errors = implicit.filter(self.values, settings, users, items)
        self._count_prequential(errors)
        noise = settings.noise
        history: list[float] = []
        if settings.max_iter > 0:
            by_user = layout_by(r.users, r.items, self.values, r.weights, users.mean.shape[0])
            by_item = layout_by(r.items, r.users, self.values, r.weights, items.mean.shape[0])
            rated_users, rated_items = by_user.counts() > 0, by_item.counts() > 0
            if implicit is not None and fresh:
                implicit.start(by_user, by_item, users, items)
        for sweep in range(settings.max_iter):
            half_sweep(by_user, users, items.mean, items.var, noise, threads)
            if implicit is not None and fresh:
                implicit.learn_items(by_item, users, threads)
            squares, variances = half_sweep(by_item, items, users.mean, users.var, noise, threads)
            if implicit is not None and fresh:
                implicit.learn_users(by_user, items, threads)
            if fresh:
                noise = (squares + variances) / self.total_weight
                users.learn_prior(rated_users)
                items.learn_prior(rated_items)
            history.append(math.sqrt(squares / self.total_weight) * self.state.scale.spread)
            progress(sweep + 1, history[-1])
            if settled(history, settings.tol):
                break
        for table, rows, side in zip(self.sides, self.rows, gathered, strict=True):
            table.mean[rows] = side.mean
            table.var[rows] = side.var
        if implicit is not None:
            implicit.put(self.sides, self.rows)
        if fresh and history:
            self.state.noise, self.state.noise_weight = noise, self.total_weight
            surprises = expected_after_learning(
                r, self.values, (users.mean, users.var), (items.mean, items.var),
                prior_variances(settings), noise, threads,
            )  # fmt: skip
            learn_noise_factors(self.sides, self.rows, r, surprises, rounds=2)
        return history

    def descend(self, passes: int, progress: Callable[[int, float], None]) -> list[float]:
        r = self.ratings
        solve = run_sgd if self.settings.solver == "sgd" else run_minibatches
        means = [table.mean[rows] for table, rows in zip(self.sides, self.rows, strict=True)]
        history: list[float] = []
        for number in range(passes):
            errors = solve(r.users, r.items, self.values, r.weights, self.settings, *means)
            if number == 0:
                self._count_prequential(errors)
            history.append(self._rmse_of(errors))
            if not math.isfinite(history[-1]):
                raise DivergenceError(
                    f"{self.settings.solver} diverged in pass {number + 1}: the errors are no "
                    f"longer finite. Lower stepSize (now {self.settings.step_size})."
                )
            progress(number + 1, history[-1])
            if settled(history, self.settings.tol):
                break
        for table, rows, mean in zip(self.sides, self.rows, means, strict=True):
            table.mean[rows] = mean
        return history

    def _rmse_of(self, errors: F32) -> float:
        squares = errors.astype(np.float64) ** 2
        if self.ratings.weights.size:
            squares *= self.ratings.weights
        return math.sqrt(float(squares.sum()) / self.total_weight) * self.state.scale.spread

    def _count_prequential(self, errors: F32) -> None:
        """Errors of the first pass, each from before its rating was learned: its later half."""
        half = slice(len(self.ratings) // 2, None)
        scale = self.state.scale
        low, high = self.ratings.value_range()
        truth = self.ratings.values[half].astype(np.float64)

        def squares(standardised: F32) -> float:
            predictions = truth - standardised[half].astype(np.float64) * scale.spread
            return float(np.sum((truth - np.clip(predictions, low, high)) ** 2))

        counters = self.state.counters
        self.state.counters = replace(
            counters,
            prequential_ratings=counters.prequential_ratings + truth.size,
            prequential_squares=counters.prequential_squares + squares(errors),
            baseline_squares=counters.baseline_squares + squares(self.baseline_errors),
        )


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


def settle_scale(
    state: ModelState, moments: tuple[float, float, float], seen: int, freeze: bool = False
) -> None:
    """Let the first ratings of a stream move mean and spread, in place, with predictions kept.

    Parameters
    ----------
    moments, seen : weight, mean and squares of the ratings, and how many they are
    freeze : whether these settle it for good; else it freezes after SETTLING_RATINGS
    """
    old = state.scale
    if old.frozen:
        return
    new = old.merged(moments, seen, state.settings.solver == "bayes")
    if old.weight > 0.0:
        # the mean moves by a shift that the two biases of a pair take back, half each
        shift = (old.mean - new.mean) / old.spread / 2.0
        for side in (state.users, state.items):
            side.rescale(shift, old.spread / new.spread)
        ratio = (old.spread / new.spread) ** 2
        state.noise = max(state.noise * ratio, 0.01)
    state.scale = replace(new, frozen=freeze or new.seen >= SETTLING_RATINGS)


def check_finite(state: ModelState, user_rows: I64, item_rows: I64) -> None:
    """Raise DivergenceError where factors in these rows are not finite."""
    if not (state.users.finite(user_rows) and state.items.finite(item_rows)):
        raise DivergenceError(
            f"{state.settings.solver} left factors that are not finite. Lower stepSize (now "
            f"{state.settings.step_size}), or look for ratings of an absurd size."
        )


def _zero_row(width: int) -> F32:
    return np.zeros((1, width), np.float32)


def _bias_row(settings: Settings) -> F32:
    return np.full((1, 1), settings.bias_prior, np.float32)
