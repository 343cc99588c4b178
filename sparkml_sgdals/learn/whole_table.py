"""Learning a table in memory: filter and sweeps, or descent (executor; no Spark).

The one-task form of `fit` calls this inside its task. It only arranges calls of the kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt

from sparkml_sgdals.arrays.grouping import count_codes
from sparkml_sgdals.arrays.ratings import Layout, Ratings, layout_by
from sparkml_sgdals.arrays.sparse_rows import SparseRows
from sparkml_sgdals.arrays.strata import STRATA_FROM, Strata, cut_strata
from sparkml_sgdals.arrays.threads import run_all
from sparkml_sgdals.errors import DivergenceError
from sparkml_sgdals.kernels.checks import check_rows
from sparkml_sgdals.learn.event_tables import fit_events
from sparkml_sgdals.learn.events import learn_events
from sparkml_sgdals.learn.features.prior import FeaturePrior
from sparkml_sgdals.learn.influences import InfluencePrior
from sparkml_sgdals.learn.noise import learn_noise_of_table
from sparkml_sgdals.learn.prequential import sum_squares
from sparkml_sgdals.learn.shares import capped_items
from sparkml_sgdals.learn.solvers import (
    CellFilter,
    Side,
    filter_cells,
    half_sweep,
    not_finite,
    run_filter,
    run_minibatches,
    run_sgd,
    settled,
    sweeps_settled,
)
from sparkml_sgdals.state.columns import prior_variances
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.feature_values import start_featured
from sparkml_sgdals.state.feature_weights import FeatureWeights
from sparkml_sgdals.state.model_state import SETTLING_RATINGS, ModelState, Scale

__all__ = [
    "NO_FEATURES",
    "Features",
    "Progress",
    "check_finite",
    "fit_ratings",
    "fit_stops",
    "settle_scale",
]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Rows = I32 | I64
Progress = Callable[[int, float], None]
"""Called with the number of a pass and the training RMSE after it, NaN where it has none."""
Features = tuple[SparseRows | None, SparseRows | None]
"""What is known of users, and of items, beside their ratings."""
NO_FEATURES: Features = (None, None)


def fit_ratings(
    ratings: Ratings,
    state: ModelState,
    threads: int = 1,
    progress: Progress = lambda sweep, rmse: None,
    features: Features = NO_FEATURES,
) -> list[float]:
    """Learn a whole table onto `state`, in place, and return the training RMSE of each pass.

    A state that has seen nothing gets its scale from the table and learns prior and noise
    variances; for one that has learned these stay as set, its scale is kept, and what it knows of
    an id is that id's prior.

    Raises
    ------
    DivergenceError
        where a pass leaves factors that are not finite, or predictions far worse than the mean
    """
    if state.settings.learns_events:
        ((learned, history),) = fit_stops(
            ratings, state, [state.settings.max_iter], threads, progress, features
        )
        state.restore(learned)
        return history
    work = _Work.start(ratings, state, threads, progress, features)
    for _ in work.passes():
        pass
    work.put_into(state)
    return work.history


def fit_stops(
    ratings: Ratings,
    state: ModelState,
    stops: Iterable[int],
    threads: int = 1,
    progress: Progress = lambda sweep, rmse: None,
    features: Features = NO_FEATURES,
) -> list[tuple[ModelState, list[float]]]:
    """Learn a table once, up to the settings' `max_iter`, and keep the states on the way.

    Parameters
    ----------
    ratings : Ratings
        the table, in the order of learning
    state : ModelState
        the model that it is added to, empty for a fresh fit; it may get the table's scale and ids,
        not what is learned of ratings
    stops : Iterable[int]
        passes after which to keep the state, each at most `max_iter`
    threads : int
        at most so many at once; they change no result
    progress : Progress
        called after each pass with its number and its training RMSE, NaN for events
    features : Features
        of ratings, where the settings say that there are any

    Returns
    -------
    for each stop what a `fit_ratings` of so many passes gives: state and training RMSE by pass

    Raises
    ------
    DivergenceError
        as `fit_ratings`
    """
    wanted = sorted(stops)
    if state.settings.fits_events:
        return fit_events(state, ratings, wanted, threads, progress, features)
    if state.settings.learns_events:
        # one pass, whatever max_iter: an event counts once
        learn_events(state, ratings)
        progress(1, math.nan)
        return [(state, []) for _ in wanted]
    kept: dict[int, tuple[ModelState, list[float]]] = {}
    work = _Work.start(ratings, state, threads, progress, features)

    def keep(stop: int) -> None:
        own = state.copy()
        work.put_into(own)
        if work.fresh:
            own.settings = replace(own.settings, max_iter=stop)
        kept[stop] = (own, list(work.history))

    for done in work.passes():
        # onto a model descent takes its one pass, whatever max_iter
        if done in wanted and (work.fresh or state.settings.solver == "bayes"):
            keep(done)
    for stop in wanted:
        if stop not in kept:
            # learning settled before it
            keep(stop)
    return [kept[stop] for stop in wanted]


class _Work:
    """A table being learned, with the factors of its ids gathered in the table's own order.

    The state that it was made for gets the table's ids, scale and prequential errors; what is
    learned goes where `put_into` is told.
    """

    def __init__(
        self,
        ratings: Ratings,
        values: F32,
        state: ModelState,
        rows: tuple[I64, I64],
        known: tuple[int, int],
        fresh: bool,
        threads: int,
        progress: Progress,
        features: Features,
    ) -> None:
        self.ratings = ratings
        self.values = values
        self.state = state
        self.rows = rows
        # rows up to there were known before this table
        self.known = known
        self.fresh = fresh
        self.threads = threads
        self.progress = progress
        self.history: list[float] = []
        self.settings = state.settings
        self.noise = state.settings.noise
        self.influences: InfluencePrior | None = None
        self.layouts: tuple[Layout, Layout] | None = None
        ids = ratings.user_ids, ratings.item_ids
        # the weights of a model stay as they were fitted
        self.features = tuple(
            FeaturePrior(some, own) if fresh and some is not None and len(some) else None
            for some, own in zip(features, ids, strict=True)
        )
        tables = (state.users, state.items)
        self.sides = [self._gather(t, r, k) for t, r, k in zip(tables, rows, known, strict=True)]
        self.total_weight = (
            float(ratings.weights.astype(np.float64).sum())
            if ratings.weights.size
            else float(len(ratings))
        )

    @classmethod
    def start(
        cls, ratings: Ratings, state: ModelState, threads: int, progress: Progress,
        features: Features,
    ) -> _Work:  # fmt: skip
        """Settle the scale and make room for the table's ids."""
        fresh = state.blank
        known = state.users.size, state.items.size
        if fresh:
            scale = Scale.of(
                ratings.moments(threads=threads), len(ratings), state.settings.solver == "bayes"
            )
            state.scale = replace(scale, frozen=True)
        else:
            settle_scale(state, ratings.moments(threads=threads), len(ratings), freeze=True)
        values = state.scale.standardise(ratings.values, threads)
        tables, ids = (state.users, state.items), (ratings.user_ids, ratings.item_ids)
        for table, own, some, weights in zip(tables, ids, features, state.features, strict=True):
            start_featured(table, own, some, weights)
        rows = state.users.ensure(ratings.user_ids)[0], state.items.ensure(ratings.item_ids)[0]
        return cls(ratings, values, state, rows, known, fresh, threads, progress, features)

    def passes(self) -> Iterator[int]:
        """Learn pass by pass; give how many are done, before the first one and after each."""
        if self.settings.solver == "bayes":
            return self._filter_and_sweep()
        return self._descend(self.settings.max_iter if self.fresh else 1)

    def put_into(self, target: ModelState) -> None:
        """Give a state, the one that this was started with or a copy of it, what is learned.

        Raises DivergenceError where it is not finite.
        """
        r = self.ratings
        tables = (target.users, target.items)
        for table, rows, side in zip(tables, self.rows, self.sides, strict=True):
            table.mean[rows] = side.mean
            if table.var.shape[1]:
                table.var[rows] = side.var
        self._put_priors(target, tables)
        if self.layouts is not None and self.fresh and self.history:
            target.noise, target.noise_weight = self.noise, self.total_weight
            users, items = self.sides
            learn_noise_of_table(
                tables,
                self.rows,
                self.layouts,
                (users, items),
                prior_variances(self.settings),
                self.noise,
                self.threads,
            )
        check_finite(target, *self.rows)
        for table, rows, counts in zip(tables, self.rows, self._counts(), strict=True):
            table.count[rows] += counts
        target.counters = target.counters.with_ratings(len(r), r.value_range())

    def _counts(self) -> tuple[I64, I64]:
        """Ratings of each id of the table, by side."""
        if self.layouts is not None:
            return self.layouts[0].counts(), self.layouts[1].counts()
        users, items = (
            count_codes(codes, rows.size, self.threads)
            for codes, rows in zip((self.ratings.users, self.ratings.items), self.rows, strict=True)
        )
        return users, items

    def _check_rows(self) -> None:
        check_rows(self.ratings.users, self.rows[0].size, "user")
        check_rows(self.ratings.items, self.rows[1].size, "item")

    def _put_priors(self, target: ModelState, tables: tuple[FactorTable, FactorTable]) -> None:
        """Give a state the parts of prior means, and the weights of features."""
        if self.influences is not None:
            own = (self.influences.user.drawn, self.influences.item.drawn)
            drawn = tuple(
                means if prior is None or not self.history else side.prior_mean - prior.given
                for means, prior, side in zip(own, self.features, self.sides, strict=True)
            )
            self.influences.put(tables, self.rows, (drawn[0], drawn[1]))
        if not self.fresh or not self.settings.featured:
            return
        weights: list[FeatureWeights | None] = [None, None]
        for place, (table, rows, side, prior) in enumerate(
            zip(tables, self.rows, self.sides, self.features, strict=True)
        ):
            if prior is not None and self.history:
                table.featured[rows] = prior.given
                weights[place] = prior.finish(side, self.threads)
        target.features = weights[0], weights[1]

    def _gather(self, table: FactorTable, rows: I64, known: int) -> Side:
        mean, lowest = table.mean[rows], self.settings.lowest
        if self.settings.solver != "bayes":
            return Side(mean, _zero_row(0), _zero_row(0), _zero_row(0), lowest)
        var = table.var[rows]
        if self.fresh:
            prior = prior_variances(self.settings)[None, :]
            return Side(mean, var, _zero_row(prior.shape[1]), prior, lowest)
        own = (rows < known)[:, None]
        if self.settings.featured:
            own = own | (table.featured[rows] != 0.0).any(axis=1)[:, None]
        return Side(mean, var, np.where(own, mean, np.float32(0.0)), var.copy(), lowest)

    def _baseline(self) -> tuple[Side, Side]:
        """Return a model of rank 0, which is filtered too: what features have to beat."""
        users, items = (
            Side(table.base_mean[rows], table.base_var[rows], _zero_row(0), _zero_row(0))
            for table, rows in zip((self.state.users, self.state.items), self.rows, strict=True)
        )
        return users, items

    def _put_baseline(self, sides: tuple[Side, Side]) -> None:
        tables = self.state.users, self.state.items
        for table, rows, side in zip(tables, self.rows, sides, strict=True):
            table.base_mean[rows] = side.mean
            table.base_var[rows] = side.var

    def _learn_baseline(self) -> F32:
        """Filter it; errors from before each rating was learned."""
        users, items = sides = self._baseline()
        r = self.ratings
        errors = run_filter(
            r.users, r.items, self.values, r.weights, self.settings,
            users.mean, users.var, items.mean, items.var,
        )  # fmt: skip
        self._put_baseline(sides)
        return errors

    def _filter_and_sweep(self) -> Iterator[int]:
        settings, r, threads = self.settings, self.ratings, self.threads
        users, items = self.sides
        if settings.draws_prior:
            self.influences = InfluencePrior(r, (self.state.users, self.state.items), self.rows)
        if len(r) >= STRATA_FROM:
            if settings.max_iter:
                self.layouts = self._layout(0, threads), self._layout(1, threads)
            strata = cut_strata(r, self._counts(), threads)
            self._count_prequential(*self._filter_cells(strata), strata.values)
        else:
            self._check_rows()
            # a filter is one rating after another: other threads prepare the sweeps meanwhile
            sides = (0, 1) if settings.max_iter else ()
            errors, baseline, *layouts = run_all(
                [self._filter, self._learn_baseline, *(partial(self._layout, n) for n in sides)],
                threads,
            )
            self._count_prequential(errors, baseline, r.values)
            if layouts:
                self.layouts = layouts[0], layouts[1]
        yield 0
        if self.layouts is None:
            return
        by_user, by_item = self.layouts
        rated_users, rated_items = by_user.counts() > 0, by_item.counts() > 0
        shares = capped_items(by_item.counts(), users.mean.shape[0])
        if shares is not None:
            r_weights = r.weights if r.weights.size else None
            by_id = np.bincount(r.items, r_weights, minlength=shares.size)
            self.total_weight = float(by_id @ shares)
        influences = self.influences if self.fresh else None
        if influences is not None:
            influences.start(by_user, by_item, users, items, threads)
        of_users, of_items = self.features
        for prior, side in ((of_users, users), (of_items, items)):
            if prior is not None:
                prior.start(side)
        expected: list[float] = []
        for sweep in range(settings.max_iter):
            half_sweep(by_user, users, items.mean, items.var, self.noise, threads)
            if influences is not None:
                influences.learn_items(by_item, users, threads)
            if of_users is not None:
                of_users.learn(users, threads)
            squares, variances = half_sweep(
                by_item, items, users.mean, users.var, self.noise, threads, shares
            )
            if influences is not None:
                influences.learn_users(by_user, items, threads)
            if of_items is not None:
                of_items.learn(items, threads)
            expected.append((squares + variances) / self.total_weight)
            if self.fresh:
                self.noise = expected[-1]
                users.learn_prior(rated_users)
                items.learn_prior(rated_items)
            rmse = math.sqrt(squares / self.total_weight) * self.state.scale.spread
            self.history.append(rmse)
            self.progress(sweep + 1, rmse)
            yield sweep + 1
            if sweeps_settled(expected, settings.tol):
                break

    def _filter(self) -> F32:
        """One pass; errors from before each rating was learned."""
        r, (users, items) = self.ratings, self.sides
        if self.influences is not None and not self.fresh:
            return self.influences.filter(self.values, self.settings, users, items)
        return run_filter(
            r.users, r.items, self.values, r.weights, self.settings,
            users.mean, users.var, items.mean, items.var,
        )  # fmt: skip

    def _filter_cells(self, strata: Strata) -> tuple[F32, F32]:
        """One pass of model and baseline, cell by cell; errors from before each rating."""
        values = self.state.scale.standardise(strata.values, self.threads)
        users, items = self.sides
        baseline = self._baseline()
        own = CellFilter(strata, values, self.settings, (users, items))
        if self.influences is not None and not self.fresh:
            own = self.influences.cell_filter(strata, values, self.settings, (users, items))
        apart = CellFilter(strata, values, self.settings, baseline)
        errors = filter_cells(strata, [own, apart], self.threads)
        self._put_baseline(baseline)
        return errors[0], errors[1]

    def _layout(self, own: int, threads: int = 1) -> Layout:
        """Ratings by user, or by item."""
        r = self.ratings
        rows = (r.users, r.items) if own == 0 else (r.items, r.users)
        return layout_by(*rows, self.values, r.weights, self.rows[own].size, threads)

    def _descend(self, passes: int) -> Iterator[int]:
        r = self.ratings
        solve = run_sgd if self.settings.solver == "sgd" else run_minibatches
        means = [side.mean for side in self.sides]
        self._check_rows()
        baseline = self._learn_baseline()
        yield 0
        for number in range(passes):
            errors = solve(r.users, r.items, self.values, r.weights, self.settings, *means)
            if number == 0:
                self._count_prequential(errors, baseline, r.values)
            self.history.append(self._rmse_of(errors))
            if not math.isfinite(self.history[-1]):
                raise DivergenceError(
                    f"{self.settings.solver} diverged in pass {number + 1}: the errors are no "
                    f"longer finite. Lower stepSize (now {self.settings.step_size})."
                )
            self.progress(number + 1, self.history[-1])
            yield number + 1
            if settled(self.history, self.settings.tol):
                break

    def _rmse_of(self, errors: F32) -> float:
        squares = errors.astype(np.float64) ** 2
        if self.ratings.weights.size:
            squares *= self.ratings.weights
        return math.sqrt(float(squares.sum()) / self.total_weight) * self.state.scale.spread

    def _count_prequential(self, errors: F32, baseline: F32, truth: F32) -> None:
        """Errors of the first pass, each from before its rating was learned: its later half.

        All three are in the order in which the ratings were learned.
        """
        half = slice(truth.size // 2, None)
        own, apart = (
            sum_squares(
                truth[half], some[half], self.state.scale.spread, self.ratings.value_range(),
                self.threads,
            )
            for some in (errors, baseline)
        )  # fmt: skip
        counters = self.state.counters
        self.state.counters = replace(
            counters,
            prequential_ratings=counters.prequential_ratings + truth.size - truth.size // 2,
            prequential_squares=counters.prequential_squares + own,
            baseline_squares=counters.baseline_squares + apart,
        )


def settle_scale(
    state: ModelState, moments: tuple[float, float, float], seen: int, freeze: bool = False
) -> None:
    """Let the first ratings of a stream move mean and spread, in place, with predictions kept.

    Parameters
    ----------
    state : ModelState
        the model, changed in place
    moments : tuple[float, float, float]
        weight, mean and squares about the mean of the ratings, as `Ratings.moments` gives them
    seen : int
        how many ratings they are
    freeze : bool
        whether these settle it for good; else it freezes after SETTLING_RATINGS
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
        raise not_finite(state.settings)


def _zero_row(width: int) -> F32:
    return np.zeros((1, width), np.float32)
