"""Learning one batch onto a model in memory: rank, predict, filter, smooth (driver; no Spark).

`update` and the streams call this; it only arranges calls of the kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.hashing import ITEM_SIDE, USER_SIDE
from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.arrays.ratings import Ratings, layout_by
from sparkml_sgdals.kernels.checks import check_rows
from sparkml_sgdals.kernels.fold_in import filter_new_users
from sparkml_sgdals.kernels.lanes import padded_rows
from sparkml_sgdals.learn.event_tables import caught_up
from sparkml_sgdals.learn.events import forget_idle, learn_events
from sparkml_sgdals.learn.features.streams import begin_features, learn_features
from sparkml_sgdals.learn.influences import FilterSide, moved_prior, run_influence_filter
from sparkml_sgdals.learn.noise import expected_squares, learn_noise_factors
from sparkml_sgdals.learn.prequential import BatchSums, judge_batch
from sparkml_sgdals.learn.rated_lists import lists_after, memory_of_users, rank_ratings
from sparkml_sgdals.learn.shares import counts_for_all, some_of
from sparkml_sgdals.learn.smoothing import smooth_batch, smooth_new_users
from sparkml_sgdals.learn.solvers import (
    not_finite,
    run_filter,
    run_minibatches,
    run_sgd,
    without_variance,
)
from sparkml_sgdals.learn.whole_table import NO_FEATURES, Features, settle_scale
from sparkml_sgdals.state.columns import prior_variances
from sparkml_sgdals.state.event_scores import table_alone
from sparkml_sgdals.state.factors import FactorRows, FactorTable
from sparkml_sgdals.state.feature_values import start_featured
from sparkml_sgdals.state.model_state import SETTLING_RATINGS, ModelState, Scale
from sparkml_sgdals.state.settings import Settings

__all__ = ["BatchReport", "HeldItems", "check_folds_in", "fold_in", "learn_batch"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

_SURPRISING: Final = 100.0
"""What one rating says of noise, at most, in units of it; of real ones 25 was the most seen."""


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
    sums: BatchSums = field(default_factory=BatchSums)
    forgotten_users: int = 0

    @property
    def rows(self) -> tuple[I64, I64] | None:
        """Rows of users and items that changed; None where users were forgotten, for all."""
        return None if self.forgotten_users else (self.user_rows, self.item_rows)


def learn_batch(
    state: ModelState, ratings: Ratings, features: Features = NO_FEATURES
) -> BatchReport:
    """Predict a batch, rank its items where the settings say so, then learn it once, in place.

    An id that is new and of which `features` knows something is predicted from where that says.

    Raises
    ------
    DivergenceError
        what was known stands again as it was before the batch
    """
    if not len(ratings):
        nothing = np.empty(0, np.int64)
        return BatchReport(0, 0, 0, nothing, nothing, math.nan, math.nan)
    if state.settings.learns_events:
        begun, known = state, state.users
        if table_alone(state):
            # the first batch after a table without times: the filter learns that table before
            begun = caught_up(state)
        forgotten = forget_idle(begun, ratings)
        try:
            done = learn_events(begun, ratings, judge=True, features=features)
        except BaseException:
            state.users = known
            raise
        user_rows, item_rows = done.user_rows, done.item_rows
        if begun is not state:
            state.restore(begun)
            user_rows, item_rows = np.arange(state.users.size), np.arange(state.items.size)
        return BatchReport(
            len(ratings), done.new_users, done.new_items, user_rows, item_rows, math.nan,
            math.nan, done.sums, forgotten,
        )  # fmt: skip
    noise = state.noise, state.noise_weight
    predicted = not state.blank
    # while the scale settles every row may change, and there are few
    whole = None if state.scale.frozen else state.copy()
    sizes = state.users.size, state.items.size
    users, items = state.users, state.items
    ranks = state.settings.ranks_ratings
    ids = ratings.user_ids, ratings.item_ids
    weights_before = state.features
    try:
        begin_features(state, features)
        for table, own, given, weights in zip(
            (users, items), ids, features, state.features, strict=True
        ):
            start_featured(table, own, given, weights)
        # while the scale settles factors move as a whole, which may part or join equal scores
        ranked = rank_ratings(state, ratings) if ranks else BatchSums()
        shared = counts_for_all(state, ratings)
        sums, surprises = _score_before(state, ratings, shared)
        sums = sums.with_ranks(ranked)
        some = some_of(ratings, shared)
        first = min(SETTLING_RATINGS - state.scale.seen, len(some))
        settle_scale(state, some.moments(max(first, 0)), first)
        user_rows, _ = state.users.ensure(ratings.user_ids)
        item_rows, _ = state.items.ensure(ratings.item_ids)
        new_users, new_items = users.size - sizes[0], items.size - sizes[1]
        values = state.scale.standardise(ratings.values)
        check_rows(ratings.users, user_rows.size, "user")
        check_rows(ratings.items, item_rows.size, "item")
        learned = users.take(user_rows), items.take(item_rows)
        before = learned[0].copy(), learned[1].copy()
        _learn_rows(state.settings, ratings, values, learned)
        if state.settings.solver == "bayes":
            smooth_batch(ratings, values, state.settings, learned, before)
        if surprises is not None:
            rows = np.arange(user_rows.size), np.arange(item_rows.size)
            learn_noise_factors(learned, rows, ratings, surprises)
        if not all(side.finite() for side in learned):
            raise not_finite(state.settings)
        if any(state.learns_features) and state.scale.frozen:
            # before that a unit of the weights is not settled
            learn_features(state, features, ids, before, learned)
        rated = lists_after(users, user_rows, ratings) if ranks else []
    except BaseException:
        if whole is None:
            users.truncate(sizes[0])
            items.truncate(sizes[1])
            state.noise, state.noise_weight = noise
            state.features = weights_before
        else:
            state.restore(whole)
        raise
    learned[0].count += np.bincount(ratings.users, minlength=user_rows.size)
    learned[1].count += np.bincount(ratings.items, minlength=item_rows.size)
    users.put_rows(learned[0])
    items.put_rows(learned[1])
    if ranks:
        memory_of_users(users).replace(user_rows, rated)

    squares, baseline_squares = sums.squares, sums.baseline_squares
    count = len(ratings)
    counted = state.counters
    state.counters = replace(
        counted.with_ratings(count, ratings.value_range()),
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
        sums if predicted else BatchSums(),
    )


@dataclass(frozen=True)
class HeldItems:
    """Items as they are while users are folded in: what a new user's ratings are learned by.

    Attributes
    ----------
    settings : Settings
        of a model of ratings, of solver 'bayes'
    scale : Scale
        mean and spread of the ratings
    mean, var, influence : F32
        float32, as the columns of `FactorColumns`
    """

    settings: Settings
    scale: Scale
    mean: F32
    var: F32
    influence: F32

    @classmethod
    def of(cls, state: ModelState, rows: I64 | slice = slice(None)) -> HeldItems:
        """Return some items of a model, or all.

        Raises
        ------
        ValueError
            users cannot be folded in
        """
        settings = state.settings
        check_folds_in(settings)
        items = state.items
        return cls(settings, state.scale, items.mean[rows], items.var[rows], items.influence[rows])

    def with_new(self, ids: pa.Array) -> HeldItems:
        """Return these and, after them, distinct ids that the model does not know as they start."""
        if not len(ids):
            return self
        table = FactorTable(
            ITEM_SIDE, "str" if pa.types.is_string(ids.type) else "int", self.settings
        )
        table.ensure(ids)
        mean, var = np.vstack([self.mean, table.mean]), np.vstack([self.var, table.var])
        return replace(
            self, mean=mean, var=var, influence=np.vstack([self.influence, table.influence])
        )


def check_folds_in(settings: Settings) -> None:
    """Raise ValueError for a model that cannot fold new users in, with what to do instead."""
    if not settings.learns_events and settings.solver == "bayes":
        return
    learned = "from events" if settings.learns_events else f"by {settings.solver!r}"
    raise ValueError(
        "New users are folded in by models of ratings of solver 'bayes', and this one was learned "
        f"{learned}. Learn what they did instead: "
        "model.copy().update(ratings).recommendForUserSubset(ratings, n)."
    )


def fold_in(held: HeldItems, ratings: Ratings, item_rows: I64, kind: IdKind) -> tuple[F32, F32]:
    """Return users as the stream would learn each of them new and alone, with items held.

    Parameters
    ----------
    held : HeldItems
        the items
    ratings : Ratings
        of the users, in the order of learning
    item_rows : I64
        int64, rows of the ratings' distinct items
    kind : IdKind
        of users' ids: where a new one starts follows from it

    Returns
    -------
    means and variances of the ratings' distinct users, float32, shape (users, rank + 1)

    Raises
    ------
    DivergenceError
        ratings of an absurd size
    """
    settings = held.settings
    users = FactorTable(USER_SIDE, kind, settings)
    users.ensure(ratings.user_ids)
    mean, var, drawn = users.mean.copy(), users.var.copy(), users.drawn.copy()
    check_rows(item_rows, held.mean.shape[0], "item")
    check_rows(ratings.items, item_rows.size, "item")
    layout = layout_by(
        ratings.users, item_rows[ratings.items].astype(np.int32),
        held.scale.standardise(ratings.values), ratings.weights, users.size,
    )  # fmt: skip
    learned = filter_new_users(
        layout.starts, layout.partners, layout.values, layout.weights, mean, var, drawn,
        held.mean, held.var, held.influence, prior_variances(settings),
        np.float32(settings.noise), np.float32(settings.drift), np.float32(settings.lowest),
    )  # fmt: skip
    if not learned:
        raise without_variance(settings)
    before = users.mean
    if settings.draws_prior:
        before = moved_prior(before, users.var, users.drawn, drawn, settings)
    # of all items few are rated by some users
    some, places = np.unique(layout.partners, return_inverse=True)
    layout = replace(layout, partners=places.astype(np.int32))
    sides = padded_rows(held.mean[some], 1), padded_rows(held.var[some], 1)
    smooth_new_users(layout, settings, mean, (before, users.var), sides)
    if not (np.isfinite(mean).all() and np.isfinite(var).all()):
        raise not_finite(settings)
    return mean, var


def _learn_rows(
    settings: Settings, ratings: Ratings, values: F32, sides: tuple[FactorRows, FactorRows]
) -> None:
    """Learn standardised ratings by the solver, and the baseline, in place."""
    u, i = sides
    what = (ratings.users, ratings.items, values, ratings.weights, settings)
    run_filter(*what, u.base_mean, u.base_var, i.base_mean, i.base_var)
    if settings.draws_prior:
        seen = (side.count.astype(np.float32) for side in sides)
        run_influence_filter(*what, *map(FilterSide.of, (u.arrays, i.arrays), seen))
    elif settings.solver == "bayes":
        run_filter(*what, u.mean, u.var, i.mean, i.var)
    elif settings.solver == "sgd":
        run_sgd(*what, u.mean, i.mean)
    else:
        run_minibatches(*what, u.mean, i.mean)


def _score_before(
    state: ModelState, ratings: Ratings, counted: npt.NDArray[np.bool_] | None
) -> tuple[BatchSums, npt.NDArray[np.float64] | None]:
    """Return what the model and its baseline say of ratings not yet learned, against what they are.

    Under `bayes` the noise variance, which only stated deviations use, learns from those `counted`;
    and the squared noise expected behind each, in its units, is the second, None where unknown.
    """
    users = state.users.index.find(ratings.user_ids)[ratings.users]
    items = state.items.index.find(ratings.item_ids)[ratings.items]
    predictions, variances = state.predict(users, items)
    truth = ratings.values.astype(np.float64)
    clipped = state.clip(predictions)
    baseline = state.clip(state.predict_baseline(users, items))
    if state.settings.solver != "bayes" or state.blank:
        return judge_batch(truth, clipped, baseline, None), None
    noise = state.noise * state.noise_factors(users, items)
    units = state.scale.spread**2
    known = variances.astype(np.float64)
    sums = judge_batch(truth, clipped, baseline, known + noise * units)
    expected = expected_squares(truth - predictions, known, noise * units)
    most = _SURPRISING * max(state.noise, 0.1) * units
    surprises = np.minimum(expected, most) / (state.noise * units)
    surplus = np.minimum((truth - predictions) ** 2 - variances, most)
    weights = ratings.weights if ratings.weights.size else np.ones(truth.size, np.float32)
    known_weight = state.noise_weight
    if counted is not None:
        surplus, weights = surplus[counted], weights[counted]
        # little is known of others' noise yet, and what somebody repeats is not to stand for it
        known_weight = max(known_weight, SETTLING_RATINGS)
    weight = float(weights.sum(dtype=np.float64))
    total = known_weight + weight
    seen = float(np.sum(surplus * weights)) / state.scale.spread**2
    if total > 0.0:
        state.noise = max((state.noise * known_weight + seen) / total, 0.01)
    state.noise_weight += weight
    return sums, surprises
