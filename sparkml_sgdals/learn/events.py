"""Learning events onto a model in memory (driver, executor; no Spark).

A table and a micro-batch are learned alike: each event once, in its order. It only arranges calls
of the kernels in `kernels.events`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sparkml_sgdals.arrays.hashing import USER_SIDE, id_keys, pair_hash
from sparkml_sgdals.arrays.ratings import Ratings
from sparkml_sgdals.arrays.sparse_rows import SparseRows
from sparkml_sgdals.kernels.checks import check_rows
from sparkml_sgdals.kernels.events.draws import (
    cumulate,
    draw_events,
    draw_pool,
    guide_draws,
    note_done,
)
from sparkml_sgdals.kernels.events.filter import CONTEXT_ITEMS, filter_events, finite_rows
from sparkml_sgdals.kernels.events.isgd import descend_events
from sparkml_sgdals.kernels.events.partners import weigh_partners
from sparkml_sgdals.learn.event_ranks import EventsToRank, judge_events
from sparkml_sgdals.learn.features.streams import (
    begin_features,
    learn_features_of_events,
    need_room,
)
from sparkml_sgdals.learn.prequential import BatchSums
from sparkml_sgdals.learn.shares import events_that_count, some_of
from sparkml_sgdals.learn.solvers import not_finite
from sparkml_sgdals.state.columns import FactorColumns
from sparkml_sgdals.state.event_memory import HALF_LIVES, ItemMemory, with_room
from sparkml_sgdals.state.event_scores import even_parts, known_done, memories_of, rows_of_keys
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.feature_values import start_featured
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.partners import last_of_lists
from sparkml_sgdals.state.settings import Settings

__all__ = [
    "EventDraws",
    "LearnedEvents",
    "confidences",
    "fold_in_events",
    "forget_idle",
    "learn_events",
]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_EVENT: Final = np.uint64(0xA0761D6478BD642F)
_IDLE: Final = 4
"""users are forgotten once one in so many is idle, as a version then holds all rows anew"""
_FADES: Final = 0.5 ** (1.0 / np.array(HALF_LIVES))
_NO_POOL: Final = (np.zeros(len(HALF_LIVES) + 1, np.int64), np.empty(0, np.int32))
_POOL: Final = 2_000
"""items at least that the rows of a batch draw from; each draws alone where all draw fewer"""
_SHARING: Final = 10
"""draws of a batch for each item that they are drawn from"""
_BATCH: Final = 0xE7037ED1A0B428DB
_CHUNK: Final = 4096
"""Rows whose draws are kept at once: they stay in the cache of a core."""


@dataclass(frozen=True)
class LearnedEvents:
    """Rows of users and items whose state has changed, how many ids are new, and ranks before."""

    user_rows: I64
    item_rows: I64
    new_users: int
    new_items: int
    sums: BatchSums


def learn_events(
    state: ModelState, ratings: Ratings, judge: bool = False,
    features: tuple[SparseRows | None, SparseRows | None] = (None, None),
) -> LearnedEvents:  # fmt: skip
    """Learn each row of a table of events once, in place.

    A rating r counts as (1 + alpha r) / (1 + alpha) events; one of 0 or less says that the user
    does not like the item, as in ALS. What comes again too often is counted for its user alone:
    `events_that_count`. With `judge`, and a ranking size in the settings, the items
    are ranked before any row is learned: `learn.event_ranks`. Ids that are new start where
    `features` say, of users and of items.

    Raises
    ------
    DivergenceError
        the state is then as it was before, as after any other error
    """
    sizes = state.users.size, state.items.size
    weights_before = state.features
    work = None
    everything, ratings = ratings, some_of(ratings, events_that_count(state, ratings))
    try:
        begin_features(state, features)
        need_room(state, features)
        ids = ratings.user_ids, ratings.item_ids
        for table, own, rows, weights in zip(
            (state.users, state.items), ids, features, state.features, strict=True
        ):
            start_featured(table, own, rows, weights)
        user_rows, _ = state.users.ensure(ratings.user_ids)
        item_rows, _ = state.items.ensure(ratings.item_ids)
        new_users, new_items = state.users.size - sizes[0], state.items.size - sizes[1]
        check_rows(ratings.users, user_rows.size, "user")
        check_rows(ratings.items, item_rows.size, "item")
        work = _Work(state, ratings, user_rows, item_rows)
        sums, share = work.judged(*sizes) if judge else (BatchSums(), state.filter_share)
        learn = work.filter if state.settings.solver == "bayes" else work.descend
        touched, counted = learn()
        if not work.finite(touched):
            raise not_finite(state.settings)
    except BaseException:
        if work is not None:
            work.restore()
        state.users.truncate(sizes[0])
        state.items.truncate(sizes[1])
        state.features = weights_before
        raise
    work.put(everything)
    if any(state.learns_features):
        learn_features_of_events(state, features, ids)
    state.counters = state.counters.with_ratings(len(everything), everything.value_range())
    state.events_learned += counted
    state.filter_share = share
    sums = replace(sums, uncounted=len(everything) - len(ratings))
    return LearnedEvents(user_rows, np.flatnonzero(touched), new_users, new_items, sums)


def forget_idle(state: ModelState, ratings: Ratings) -> int:
    """Forget the users of a model of events that have done nothing for as long as settings say.

    What items have learned of them stays. Nothing is done as long as few are idle.

    Parameters
    ----------
    state : ModelState
        the model before a batch
    ratings : Ratings
        the batch; who comes in it is idle by its own first event there, others by the median of
        the batch's times, which single times far off do not move

    Returns
    -------
    how many were forgotten
    """
    settings, size = state.settings, state.users.size
    memory = memories_of(state)[0]
    if settings.forget_after:
        idle = np.flatnonzero(state.events_learned - memory.last > settings.forget_after)
    elif settings.forget_after_micros and ratings.times.size:
        least, after = int(np.iinfo(np.int64).min), settings.forget_after_micros
        moments, times = memory.moment.copy(), ratings.times
        own, first = np.unique(ratings.users, return_index=True)
        rows = state.users.index.find(ratings.user_ids)[own]
        now = np.full(size, times[(times.size - 1) // 2])
        now[rows[rows >= 0]] = times[first[rows >= 0]]
        idle = np.flatnonzero(moments < np.maximum(now, least + after) - after)
    else:
        return 0
    if not idle.size or idle.size * _IDLE < size:
        return 0
    state.users = state.users.without(state.users.index.ids(idle))
    return int(idle.size)


def confidences(settings: Settings, ratings: Ratings) -> F32:
    """How much each row counts, float32: (1 + alpha |r|) / (1 + alpha), times its weight.

    Raises DivergenceError where that is not a number above 0, which 'bayes' has no step for.
    """
    alpha = np.float32(settings.alpha)
    confidence = (1.0 + alpha * np.abs(ratings.values)) / (1.0 + alpha)
    weighted = confidence * ratings.weights if ratings.weights.size else confidence
    found = weighted.astype(np.float32)
    if settings.solver == "bayes" and not np.all(found > 0.0):
        # fell below what a float32 holds, or is not a number
        raise not_finite(settings)
    return found


@dataclass(frozen=True)
class EventDraws:
    """What negatives are drawn from, as a model has it: made once for many who are folded in.

    Attributes
    ----------
    order : npt.NDArray[np.int32]
        int32, shape (items,), what sorts the items by their keys
    cumulative : F64
        float64, shape (parts, items), `cumulate`
    guide : npt.NDArray[np.int32]
        int32, `guide_draws`
    """

    order: npt.NDArray[np.int32]
    cumulative: F64
    guide: npt.NDArray[np.int32]

    @classmethod
    def of(cls, memory: ItemMemory, now: int, by_key: I64) -> EventDraws:
        """Cumulate what items were popular by after `now` events; `by_key` sorts them."""
        order = by_key.astype(np.int32)
        cumulative = cumulate(memory.popularity, memory.last, now, _FADES, order)
        buckets = 1 << max(order.size.bit_length() - 3, 0)
        return cls(order, cumulative, guide_draws(cumulative, buckets))


def fold_in_events(
    state: ModelState, items: FactorColumns, memory: ItemMemory, draws: EventDraws,
    ratings: Ratings, item_rows: I64,
) -> tuple[FactorTable, npt.NDArray[np.int32]]:  # fmt: skip
    """Learn the events of one user whom the model does not know, as `learn_events`, of 'bayes'.

    Nothing but the user's state is kept, and of items only those are copied that it depends on.

    Parameters
    ----------
    state : ModelState
        the model; its ids are not looked at
    items, memory : FactorColumns, ItemMemory
        its items, and what is remembered of them; left as they are
    draws : EventDraws
        of these items
    ratings : Ratings
        the events, of one user, in the order of learning
    item_rows : I64
        int64, rows of the items that `ratings` names

    Returns
    -------
    the user as a table of one row, and int32 rows of the items done, the last one last

    Raises
    ------
    DivergenceError
        weights that are no numbers, or too large
    """
    settings, count = state.settings, len(ratings)
    size = draws.order.size
    check_rows(item_rows, size, "item")
    rows = item_rows[ratings.items].astype(np.int32)
    pairs = pair_hash(
        id_keys(ratings.user_ids), id_keys(ratings.item_ids), ratings.users, ratings.items
    )
    done, lengths = np.full(count, -1, np.int32), np.zeros(1, np.int64)
    recent = np.empty((count, CONTEXT_ITEMS), np.int32)
    drawn = np.empty((count, settings.num_negatives), np.int32)
    touched = np.zeros(size, np.bool_)
    draw_events(
        ratings.users, rows, ratings.values, _draw_keys(state, pairs), 0, count,
        state.events_learned, 0, settings.implicit_prior, done, np.zeros(1, np.int64), lengths,
        draws.order, draws.cumulative, draws.guide, _NO_POOL, _FADES,
        draws.cumulative[:, -1].copy(),
        np.ones(_FADES.size), np.empty(count, np.int32), memory.popularity.copy(),
        memory.last.copy(), np.array(state.popularity_parts or even_parts()),
        np.zeros(size, np.int64), _no_partners(size), False, 0.0, np.zeros(1, np.int64), recent,
        drawn, touched, np.empty((count, 5)),
    )  # fmt: skip
    wanted = np.flatnonzero(touched)
    places = np.full(size + 1, -1, np.int32)
    places[wanted] = np.arange(wanted.size)
    user = FactorTable(USER_SIDE, state.users.index.kind, settings)
    user.ensure(ratings.user_ids)
    mean, var = user.mean.copy(), user.var.copy()
    filter_events(
        ratings.users, places[rows], ratings.values, confidences(settings, ratings), 0, count,
        places[recent], places[drawn], np.float32(settings.drift), np.float32(settings.lowest),
        mean, var,
        items.mean[wanted], items.var[wanted], memory.context[wanted],
        memory.context_var[wanted], np.empty((count, 2)),
    )  # fmt: skip
    user.mean, user.var = mean, var
    if not user.finite():
        raise not_finite(settings)
    return user, done[: lengths[0]]


def _draw_keys(state: ModelState, pairs: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return what the draws of a batch's rows follow from."""
    seed = np.uint64(state.settings.seed & 0xFFFFFFFFFFFFFFFF)
    numbers = np.arange(pairs.size, dtype=np.uint64) + np.uint64(state.counters.ratings)
    found: npt.NDArray[np.uint64] = pairs ^ ((numbers + seed) * _EVENT)
    return found


def _no_partners(size: int) -> tuple[npt.NDArray[Any], ...]:
    """Return what `draw_events` wants of partners where items keep none."""
    rows, numbers = np.empty((size, 0), np.int32), np.zeros(size, np.int64)
    strengths = np.empty((size, 0), np.float32), np.zeros(size, np.float32)
    return rows, rows.astype(np.int64), *strengths, numbers, numbers


class _Kept:
    """Rows of arrays as they were before they were learned in place."""

    def __init__(self, *arrays: npt.NDArray[Any]) -> None:
        self.arrays = arrays
        self.held: list[tuple[I64, list[npt.NDArray[Any]]]] = []

    def keep(self, rows: I64) -> None:
        """Copy rows, none of which is kept yet."""
        self.held.append((rows, [array[rows] for array in self.arrays]))

    def restore(self) -> None:
        """Put all of them back."""
        for rows, copies in self.held:
            for array, before in zip(self.arrays, copies, strict=True):
                array[rows] = before


class _Work:
    """A batch: users on compact copies, items in place because draws may reach any of them."""

    def __init__(self, state: ModelState, ratings: Ratings, user_rows: I64, item_rows: I64) -> None:
        self.state, self.ratings, self.user_rows = state, ratings, user_rows
        self.item_rows = item_rows
        self.users = state.users.take(user_rows)
        self.items = item_rows[ratings.items].astype(np.int32)
        self.user_memory, self.item_memory = memories_of(state)
        self.weights = confidences(state.settings, ratings)
        memory = self.item_memory
        self.factors = _Kept(state.items.mean, state.items.var, memory.context, memory.context_var)
        self.times = _Kept(memory.popularity, memory.last)
        self.pairs_kept = _Kept(
            memory.partner, memory.strength, memory.strengths, memory.paired, memory.partner_rows
        )
        self.believed = state.partners
        self.parts = np.array(state.popularity_parts or even_parts())
        self.keys, self.order = state.items.index.keys(), state.items.index.by_key()
        self.starts, self.lengths, self.done = self._done_rows()
        self.places = int(self.lengths.sum())
        known = self.user_memory.last
        self.last = known[user_rows] if known.size else np.zeros(user_rows.size, np.int64)
        self.moments = self.user_memory.moment[user_rows] if ratings.times.size else None
        self.pairs = pair_hash(
            id_keys(ratings.user_ids), id_keys(ratings.item_ids), ratings.users, ratings.items
        )

    def judged(self, known_users: int, known_items: int) -> tuple[BatchSums, float]:
        """How the items stood, and how far the filter is believed: `judge_events`."""
        events = EventsToRank(
            self.ratings.users, self.items, self.ratings.values > 0, self.pairs, self.user_rows,
            self.starts, self.lengths, self.done,
        )  # fmt: skip
        return judge_events(self.state, events, known_users, known_items)

    def filter(self) -> tuple[npt.NDArray[np.bool_], int]:
        """Learn by the logistic filter; which items have changed, and how many events there are."""
        state, r, settings = self.state, self.ratings, self.state.settings
        memory, order = self.item_memory, self.order.astype(np.int32)
        fades = _FADES
        cumulative = cumulate(memory.popularity, memory.last, state.events_learned, fades, order)
        size = len(r) * settings.num_negatives
        # a guide is worth making where more is drawn than it holds; it changes no draw
        pooled, many = size > _POOL, 4 * size >= state.items.size
        guide = guide_draws(
            cumulative,
            1 << (max(state.items.size.bit_length() - 3, 0) if many and not pooled else 0),
        )
        pool = draw_pool(
            cumulative,
            order,
            self.parts,
            max(_POOL, size // _SHARING) if pooled else 0,
            np.uint64((state.counters.ratings + settings.seed) * _BATCH & 0xFFFFFFFFFFFFFFFF),
        )
        draw_keys = _draw_keys(state, self.pairs)
        self.times.keep(self.item_rows)
        totals, left = cumulative[:, -1].copy(), np.ones(fades.size)
        counted, marks = np.empty(len(r), np.int32), np.zeros(state.items.size, np.int64)
        recent = np.empty((min(_CHUNK, len(r)), CONTEXT_ITEMS), np.int32)
        drawn = np.empty((len(recent), settings.num_negatives), np.int32)
        touched, kept = np.zeros((2, state.items.size), bool)
        said, odds = np.empty((len(recent), 5)), np.empty((len(recent), 2))
        by_gap, by_length = np.array(self.believed.by_gap), np.array(self.believed.by_length)
        partners = self._partners()
        events = 0
        for begin in range(0, len(r), _CHUNK):
            end = min(begin + _CHUNK, len(r))
            events = draw_events(
                r.users, self.items, r.values, draw_keys, begin, end, state.events_learned, events,
                settings.implicit_prior, self.done, self.starts, self.lengths, order, cumulative,
                guide, pool, fades, totals, left, counted, memory.popularity, memory.last,
                self.parts, marks, partners, state.repeats_items, state.again, self.last,
                recent[: end - begin], drawn[: end - begin], touched, said[: end - begin],
            )  # fmt: skip
            self.factors.keep(np.flatnonzero(touched & ~kept))
            kept |= touched
            filter_events(
                r.users, self.items, r.values, self.weights, begin, end, recent, drawn,
                np.float32(settings.drift), np.float32(settings.lowest), self.users.mean,
                self.users.var, state.items.mean, state.items.var, memory.context,
                memory.context_var, odds[: end - begin],
            )  # fmt: skip
            if settings.pairs_items:
                b = self.believed
                share, filter_sum, partner_sum, typical = weigh_partners(
                    said[: end - begin], odds[: end - begin], b.share, b.filter_sum,
                    b.partner_sum, b.typical, by_gap, by_length,
                )  # fmt: skip
                self.believed = replace(
                    b, share=share, filter_sum=filter_sum, partner_sum=partner_sum,
                    typical=typical, by_gap=tuple(by_gap.tolist()),
                    by_length=tuple(by_length.tolist()),
                )  # fmt: skip
        return touched, int(events)

    def _partners(self) -> tuple[npt.NDArray[Any], ...]:
        """Return what `draw_events` wants of partners, and keep those that it may change."""
        memory, item_keys = self.item_memory, self.keys.view(np.int64)
        if not self.state.settings.pairs_items:
            return _no_partners(self.keys.size)
        memory.look_up(lambda keys: rows_of_keys(keys, self.keys, self.order))
        latest = last_of_lists(self.done, self.starts, self.lengths)
        self.pairs_kept.keep(np.union1d(latest[latest >= 0], self.item_rows))
        return (
            memory.partner_rows, memory.partner, memory.strength, memory.strengths[:, 0],
            memory.paired[:, 0], item_keys,
        )  # fmt: skip

    def descend(self) -> tuple[npt.NDArray[np.bool_], int]:
        """Learn by ISGD; as `filter`."""
        state, r, settings = self.state, self.ratings, self.state.settings
        last = self.item_memory.last
        known = np.flatnonzero(last > 0)
        touched = np.zeros(state.items.size, bool)
        everything = np.arange(state.items.size)
        self.factors.keep(everything)
        self.times.keep(everything)
        counted = descend_events(
            r.users, self.items, r.values, self.weights, state.events_learned,
            settings.num_negatives, np.float32(settings.step_size), np.float32(settings.regs[2]),
            np.float32(settings.regs[3]), np.float32(settings.lowest), self.users.mean,
            state.items.mean,
            known[np.argsort(last[known])].astype(np.int32), last, touched,
        )  # fmt: skip
        note_done(r.users, self.items, r.values, self.done, self.starts, self.lengths)
        done = np.flatnonzero(r.values > 0)
        np.maximum.at(self.last, r.users[done], state.events_learned + 1 + np.arange(done.size))
        return touched, int(counted)

    def restore(self) -> None:
        """Give the state back the items as they were."""
        for kept in (self.factors, self.times, self.pairs_kept):
            kept.restore()

    def finite(self, touched: npt.NDArray[np.bool_]) -> bool:
        """Whether what was learned is finite."""
        rows = np.flatnonzero(touched)
        return self.users.finite() and all(
            finite_rows(array, rows)
            for array in (
                *self.factors.arrays,
                self.item_memory.popularity,
                self.item_memory.strength,
            )
        )

    def put(self, everything: Ratings) -> None:
        """Give the state what was learned of users, and counts; those of users of all rows."""
        state, r = self.state, self.ratings
        state.users.put_rows(self.users)
        done = self.keys.view(np.int64)[self.done]
        places = zip(self.starts.tolist(), self.lengths.tolist(), strict=True)
        self.user_memory.replace(
            self.user_rows, (done[begin : begin + length].copy() for begin, length in places)
        )
        if self.user_memory.last.size:
            self.user_memory.last[self.user_rows] = self.last
        if self.moments is not None:
            events = everything.values > 0
            np.maximum.at(self.moments, everything.users[events], everything.times[events])
            self.user_memory.moment[self.user_rows] = self.moments
        state.users.count[self.user_rows] += np.bincount(
            everything.users, minlength=self.user_rows.size
        )
        state.items.count[self.item_rows] += np.bincount(r.items, minlength=self.item_rows.size)
        state.popularity_parts = tuple(self.parts.tolist())
        state.partners = self.believed
        # a pair that came before takes no new place
        new = int(self.lengths.sum()) - self.places
        state.repeats += int(np.count_nonzero(r.values > 0)) - new

    def _done_rows(self) -> tuple[I64, I64, npt.NDArray[np.int32]]:
        """Return what the batch's users have done, as rows of items, with room for its events."""
        lengths, rows = known_done(self.user_memory, self.user_rows, self.keys, self.order)
        events = np.bincount(self.ratings.users, minlength=self.user_rows.size)
        begins, done = with_room(rows.astype(np.int32), lengths, events)
        return begins, lengths, done
