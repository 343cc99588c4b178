"""Learning a table of events onto a model in memory: fitted as a whole, and filtered where timed.

The table's judgement is what users like; the filter's, which needs to know what came when, what
they do next. Driver and executors, no Spark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.hashing import id_keys, pair_hash, start_factors
from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.arrays.ratings import Ratings
from sparkml_sgdals.arrays.sparse_rows import SparseRows
from sparkml_sgdals.arrays.threads import run_all
from sparkml_sgdals.kernels.events.least_squares import solve_nonnegative
from sparkml_sgdals.kernels.lanes import padded_rows
from sparkml_sgdals.learn.event_ranks import weigh_at_rest
from sparkml_sgdals.learn.events import confidences, learn_events
from sparkml_sgdals.learn.features.tables_of_events import learn_event_features
from sparkml_sgdals.learn.least_squares import (
    EventTable,
    Factors,
    choose_regularisation,
    fit_table,
    gram_of,
    id_weights,
    shrinkage,
    start_deviation,
    unpadded,
    weight_and_ids,
    weights_beside,
)
from sparkml_sgdals.learn.rated_lists import lists_after
from sparkml_sgdals.learn.shares import events_that_count, some_of
from sparkml_sgdals.learn.solvers import not_finite, sweeps_settled
from sparkml_sgdals.state.event_scores import known_done, memories_of, table_alone
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.feature_values import start_featured
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.partners import PartnerWeight
from sparkml_sgdals.state.settings import CHOSEN, Settings

__all__ = [
    "caught_up",
    "chosen_lambdas",
    "fit_events",
    "folded_in",
    "lambda_of_sample",
    "note_table",
    "said_by_events",
    "start_features",
    "user_system",
]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Progress = Callable[[int, float], None]

_ENDS: Final = 10
"""a table with times ends in one in so many of its events"""
_SWEEPS_OF_ENDS: Final = 8
"""of the table without its end: nearly all of what sixteen give"""


def fit_events(
    state: ModelState, ratings: Ratings, stops: Iterable[int], threads: int, progress: Progress,
    features: tuple[SparseRows | None, SparseRows | None] = (None, None),
) -> list[tuple[ModelState, list[float]]]:  # fmt: skip
    """Learn a table of events, as `whole_table.fit_stops` learns one of ratings.

    A pass of the filter goes with it where the table is in the order of times, or the filter has
    learned before, or no sweep is asked for.

    Parameters
    ----------
    state : ModelState
        the model that the table is added to; what is learned goes to copies
    ratings : Ratings
        the table, in the order of learning
    stops : Iterable[int]
        sweeps after which to keep a model
    threads : int
        at most so many at once; they change no result
    progress : Progress
        called after each sweep with its number and the root of the mean squared error of an event
    features : tuple[SparseRows | None, SparseRows | None]
        what is known of users, and of items, beside their events

    Returns
    -------
    for each stop the state and these roots
    """
    wanted = sorted(stops)
    kept: list[tuple[ModelState, list[float]]] = []
    fresh = state.blank
    for _ in range(wanted.count(0)):
        filtered = caught_up(state)
        learn_events(filtered, ratings)
        kept.append((filtered, []))
        progress(1, math.nan)
    if wanted[-1] == 0:
        return _each_with_its_stop(kept, wanted) if fresh else kept
    own = caught_up(state) if ratings.timed else state.copy()
    ids = ratings.user_ids, ratings.item_ids
    for side, some, rows, weights in zip(
        (own.users, own.items), ids, features, own.features, strict=True
    ):
        start_featured(side, some, rows, weights)
    fit = _Fit.of(own, some_of(ratings, events_that_count(own, ratings)))
    some = [stop for stop in wanted if stop]
    weighed: list[tuple[float, PartnerWeight]] = []
    if fresh and ratings.timed and len(ratings) >= _ENDS:
        results, weighed = _fitted_with_times(own, fit, ratings, some, threads, progress)
    else:
        sweeps = partial(fit.sweep, some, threads, progress)
        filters = ratings.timed or own.events_learned > 0
        results, _ = run_all([sweeps, partial(_filter, own, ratings, filters)], threads)
    for number, (factors, history) in enumerate(results, 1):
        target = own if number == len(results) else own.copy()
        fit.put_into(target, factors)
        if weighed:
            target.filter_share, target.partners = weighed[number - 1]
        if fresh:
            learn_event_features(target, features, threads)
        kept.append((target, history))
    return _each_with_its_stop(kept, wanted) if fresh else kept


def _fitted_with_times(
    state: ModelState, fit: _Fit, ratings: Ratings, stops: list[int], threads: int,
    progress: Progress,
) -> tuple[list[tuple[Factors, list[float]]], list[tuple[float, PartnerWeight]]]:  # fmt: skip
    """Fit a first table while the filter goes over it, and weigh both by how the table ends.

    All judges have to say what users did in the last tenth, from what came before it: how far the
    filter is believed, and partners, for each stop.
    """
    ends = np.arange(len(ratings)) >= len(ratings) - len(ratings) // _ENDS
    earlier, later = some_of(ratings, ~ends), some_of(ratings, ends)
    counted = some_of(earlier, events_that_count(state, earlier))

    def sweeps() -> tuple[list[tuple[Factors, list[float]]], _Fit, list[Factors]]:
        found = fit.sweep(stops, threads, progress)
        without = _Fit.of(replace(state), counted)
        some = [min(stop, _SWEEPS_OF_ENDS) for stop in stops]
        tried = without.sweep(some, threads, lambda *_: None, state.regularisation)
        return found, without, [factors for factors, _ in tried]

    def filters() -> ModelState:
        learn_events(state, earlier)
        before = state.copy()
        learn_events(state, later)
        return before

    (found, without, tried), before = run_all([sweeps, filters], threads)
    weighed = []
    for factors in tried:
        without.put_into(before, factors)
        share, at_rest = weigh_at_rest(before, later)
        until = state.events_learned
        partners = replace(state.partners, at_rest=at_rest, rest_until=until)
        weighed.append((share, partners))
    return found, weighed


def _each_with_its_stop(
    kept: list[tuple[ModelState, list[float]]], stops: list[int]
) -> list[tuple[ModelState, list[float]]]:
    for (state, _), stop in zip(kept, stops, strict=True):
        state.settings = replace(state.settings, max_iter=stop)
    return kept


def _filter(state: ModelState, ratings: Ratings, filters: bool) -> None:
    if filters:
        learn_events(state, ratings)
    else:
        note_table(state, ratings)


def note_table(state: ModelState, ratings: Ratings) -> None:
    """Count the events of a table and note who did what, without learning any; in place."""
    counted = some_of(ratings, events_that_count(state, ratings))
    user_rows, _ = state.users.ensure(ratings.user_ids)
    item_rows, _ = state.items.ensure(ratings.item_ids)
    memories_of(state)[0].replace(user_rows, lists_after(state.users, user_rows, ratings))
    for table, rows, positions in (
        (state.users, user_rows, ratings.users), (state.items, item_rows, counted.items)
    ):  # fmt: skip
        table.count[rows] += np.bincount(positions, minlength=rows.size)
    state.counters = state.counters.with_ratings(len(ratings), ratings.value_range())


def caught_up(state: ModelState) -> ModelState:
    """Return a copy whose filter has learned what the table held, where it has learned nothing.

    Each pair that the model remembers is an event of weight 1, in the order of a hash: a table
    without times has no other.
    """
    twin = state.copy()
    if not table_alone(state) or not state.users.size:
        return twin
    item_ids = state.items.index.ids()
    item_keys = state.items.index.keys()
    rows = np.arange(state.users.size)
    lengths, done = known_done(memories_of(state)[0], rows, item_keys, state.items.index.by_key())
    users, items = np.repeat(rows, lengths).astype(np.int32), done.astype(np.int32)
    user_ids = state.users.index.ids()
    order = np.argsort(pair_hash(id_keys(user_ids), item_keys, users, items), kind="stable")
    settings = replace(state.settings, table_rank=0)
    scratch = ModelState.empty(settings, state.users.index.kind, state.items.index.kind)
    learn_events(
        scratch,
        Ratings(
            user_ids, item_ids, users[order], items[order], np.ones(users.size, np.float32),
            np.empty(0, np.float32),
        ),
    )  # fmt: skip
    for table, learned in ((twin.users, scratch.users), (twin.items, scratch.items)):
        # rows of the scratch model are those of the ids as they were given
        table.mean, table.var = learned.mean, learned.var
    twin.items.memory = memories_of(scratch)[1]
    # when an event was is not known, and so no gap between two of them
    memories_of(twin)[0].last[:] = scratch.events_learned
    twin.partners = replace(scratch.partners, by_gap=state.partners.by_gap)
    twin.repeats = scratch.repeats
    twin.events_learned, twin.popularity_parts = scratch.events_learned, scratch.popularity_parts
    return twin


def user_system(
    settings: Settings, lam: float, features: F32, weights: F32, squares: F64, beside: float
) -> F64:
    """Return what a user's features times are the right side, with the items' fixed.

    Their equations are (sum_t c_t P_t P_t' + a0 G + l I) U = sum_t c_t p_t P_t.

    Parameters
    ----------
    settings : Settings
        a0
    lam : float
        lambda of users
    features : F32
        float32, shape (n, table rank), of the user's events
    weights : F32
        float32, shape (n,), of the events
    squares : F64
        float64, shape (table rank, table rank), G: the sum of P P' over all items
    beside : float
        what is put beside the weight of a user's events: `beside_user`
    """
    own, unobserved = features.astype(np.float64), settings.unobserved_weight
    ridge = float(shrinkage(weights.sum(dtype=np.float64, keepdims=True), beside, lam)[0])
    system: F64 = (own.T * weights) @ own + unobserved * squares + ridge * np.eye(own.shape[1])
    return system


def folded_in(
    settings: Settings, lam: float, tastes: F32, ratings: Ratings, squares: F64, beside: float
) -> F32:
    """Return the `taste` of a user that the table would have with these events, items fixed.

    Parameters
    ----------
    settings : Settings
        of a model that was fitted
    lam : float
        lambda of users
    tastes : F32
        float32, shape (n, table rank + 1), of the items of the events
    ratings : Ratings
        the events of one user, shape (n,)
    squares, beside
        as `user_system`

    Returns float32, shape (table rank + 1,).
    """
    taste = np.zeros(tastes.shape[1], np.float32)
    # of items that no table held nothing is known
    there = tastes[:, 0] > 0
    done = ratings.values > 0
    weights, features = confidences(settings, ratings)[there], tastes[there, 1:]
    if not np.any(done & there):
        return taste
    system = user_system(settings, lam, features, weights, squares, beside)
    right = features[done[there]].astype(np.float64).T @ weights[done[there]]
    solve = solve_nonnegative if settings.nonnegative else np.linalg.solve
    taste[0], taste[1:] = np.log1p(np.count_nonzero(done & there)), solve(system, right)
    if not np.isfinite(taste).all():
        raise not_finite(settings)
    return taste


def chosen_lambdas(
    state: ModelState, settings: Settings, choose: Callable[[], float], again: bool = False
) -> tuple[float, float]:
    """Lambda of users and of items: what is set, else that of the model, else what is chosen.

    With `again` it is chosen though the model has one.
    """
    lams = settings.regs[2], settings.regs[3]
    if CHOSEN not in lams:
        return lams
    kept = any(state.regularisation) and not again
    found = state.regularisation if kept else (choose(),) * 2
    return (
        found[0] if lams[0] == CHOSEN else lams[0],
        found[1] if lams[1] == CHOSEN else lams[1],
    )


def lambda_of_sample(
    settings: Settings, kinds: tuple[IdKind, IdKind], sample: Ratings, item_ids: pa.Array,
    threads: int,
) -> float:  # fmt: skip
    """Return the lambda that is chosen for a table, from all events of some of its users.

    Parameters
    ----------
    settings : Settings
        of the model to be fitted
    kinds : tuple[IdKind, IdKind]
        of the ids of users and of items
    sample : Ratings
        the events of these users; it may be the whole table
    item_ids : pa.Array
        all items of the table, sorted
    threads : int
        at most so many at once; they change no result
    """
    state = ModelState.empty(settings, *kinds)
    state.items.ensure(item_ids)
    return _Fit.of(state, sample).chosen(threads)


def said_by_events(settings: Settings, ratings: Ratings) -> tuple[F32, F32]:
    """Targets and weights of events, as those of an `EventTable`.

    Raises DivergenceError where a weight is not a number above 0.
    """
    weights = confidences(settings, ratings)
    nothing = np.empty(0, np.float32)
    done = ratings.values > 0
    return (
        nothing if done.all() else done.astype(np.float32),
        nothing if np.all(weights == np.float32(1.0)) else weights,
    )


@dataclass(frozen=True)
class _Fit:
    """A table to be fitted onto all ids of a model.

    Attributes
    ----------
    table : EventTable
        events by rows of the model
    start : Factors
        of all ids: the model's own, or those of new ids
    counts : tuple[F64, F64]
        events of each user and each item that earlier tables held
    """

    state: ModelState
    settings: Settings
    table: EventTable
    start: Factors
    counts: tuple[F64, F64]
    user_keys: npt.NDArray[np.uint64]

    @classmethod
    def of(cls, state: ModelState, ratings: Ratings) -> _Fit:
        """Make room for the table's ids in the state, and start."""
        settings = state.settings
        rows = state.users.ensure(ratings.user_ids)[0], state.items.ensure(ratings.item_ids)[0]
        keys = id_keys(ratings.user_ids), id_keys(ratings.item_ids)
        table = EventTable(
            rows[0][ratings.users].astype(np.int32),
            rows[1][ratings.items].astype(np.int32),
            (state.users.size, state.items.size),
            *said_by_events(settings, ratings),
            pair_hash(*keys, ratings.users, ratings.items),
        )
        start = Factors.start(*(_start(side, settings) for side in (state.users, state.items)))
        counts = (_events_in_tables(state.users), _events_in_tables(state.items))
        return cls(state, settings, table, start, counts, id_keys(state.users.index.ids()))

    def sweep(
        self, stops: list[int], threads: int, progress: Progress,
        lams: tuple[float, float] | None = None,
    ) -> list[tuple[Factors, list[float]]]:  # fmt: skip
        """Fit; the factors and the roots of mean squared errors at each stop.

        `lams` are lambda of users and of items where these are known.
        """
        settings, table = self.settings, self.table
        state = self.state
        # what a smaller table said of lambda is worth less than what this one says
        again = len(table) > self.counts[0].sum()
        if lams is None:
            lams = chosen_lambdas(state, settings, lambda: self.chosen(threads), again)
        layouts = table.layouts(threads)
        state.regularisation = lams
        counts = weight_and_ids((id_weights(layouts[0]), id_weights(layouts[1])))
        state.weights_beside = weights_beside(*counts)
        total = float(table.weights.sum(dtype=np.float64)) if table.weights.size else len(table)
        priors = self._priors()
        # a large model is not held twice
        factors = self.start if priors is None else self.start.copy()
        losses: list[float] = []
        history: list[float] = []
        found: list[tuple[Factors, list[float]]] = []
        steps = fit_table(
            layouts, factors, lams, settings.unobserved_weight, stops[-1], threads,
            priors, settings.lowest,
        )  # fmt: skip
        for number, (loss, errors) in enumerate(steps, 1):
            losses.append(loss)
            history.append(math.sqrt(errors / total))
            progress(number, history[-1])
            if number in stops[:-1]:
                found.append((factors.copy(), list(history)))
            if sweeps_settled(losses, settings.tol):
                break
        found += [(factors, history)] * (len(stops) - len(found))
        if not all(np.isfinite(side).all() for side in (factors.users, factors.items)):
            raise not_finite(settings)
        return found

    def chosen(self, threads: int) -> float:
        """Return the lambda that the events held out speak for."""
        settings = self.settings
        return choose_regularisation(
            self.table, self.start, self.user_keys, settings.unobserved_weight, threads,
            settings.lowest,
        )  # fmt: skip

    def put_into(self, target: ModelState, factors: Factors) -> None:
        """Give a copy of the state that this was made of what is fitted."""
        target.regularisation = self.state.regularisation
        target.weights_beside = self.state.weights_beside
        rank, targets = self.settings.table_rank, self.table.targets
        done = targets > 0 if targets.size else slice(None)
        for side, learned, before, own in zip(
            (target.users, target.items), (factors.users, factors.items), self.counts,
            (self.table.users, self.table.items), strict=True,
        ):  # fmt: skip
            taste = side.taste
            events = before + np.bincount(own[done], minlength=side.size)
            # of other ids that no table held nothing is known
            told = np.flatnonzero(_by_features(side) & (events == 0.0))
            known_by_features = taste[told]
            taste[:, 1:] = unpadded(learned, rank)
            taste[:, 0] = np.log1p(events)
            taste[taste[:, 0] <= 0.0] = 0.0
            taste[told] = known_by_features
            side.featured[events > 0.0] = 0.0

    def _priors(self) -> tuple[tuple[F32, F32], tuple[F32, F32]] | None:
        """Return what ids of earlier tables are drawn to, as strongly as their events then."""
        if not any(counts.any() for counts in self.counts):
            return None
        sides = self.start.users, self.start.items
        rank = self.settings.table_rank
        strengths = [
            float(np.trace(gram_of(other))) / max(1, other.shape[0]) / rank for other in sides[::-1]
        ]
        users, items = (
            (padded_rows(side), (counts * strength).astype(np.float32))
            for side, counts, strength in zip(sides, self.counts, strengths, strict=True)
        )
        return users, items


def start_features(keys: npt.NDArray[np.uint64], side: int, settings: Settings) -> F32:
    """Features of ids before the first sweep, float32, shape (ids, table_rank)."""
    rank = settings.table_rank
    start = start_factors(keys, side, rank, settings.seed, start_deviation(rank), settings.lowest)
    features: F32 = start[:, 1:]
    return features


def _start(side: FactorTable, settings: Settings) -> F32:
    features = start_features(id_keys(side.index.ids()), side.side, settings)
    known = _events_in_tables(side) > 0
    features[known] = side.taste[known, 1:]
    return features


def _events_in_tables(side: FactorTable) -> F64:
    counts: F64 = np.rint(np.expm1(side.taste[:, 0].astype(np.float64)))
    counts[_by_features(side)] = 0.0
    return counts


def _by_features(side: FactorTable) -> npt.NDArray[np.bool_]:
    """Whether the taste of an id is what its features say, as no table held it."""
    known: npt.NDArray[np.bool_] = np.logical_or.reduce(side.featured > 0.0, axis=1)
    return known
