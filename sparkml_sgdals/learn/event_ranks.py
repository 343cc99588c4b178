"""Test, then learn, for ranks: where each item stood among all others before it was learned.

Every event of a user and an item that were known before the batch, and that the user had not done,
is ranked among the known items that its user has not done. A rating is an event, whatever its
value. Ranked items, draws and ties do not depend on the order of rows in memory, nor on the
candidate of a race that ranks. Compiled kernel; arrays, no Spark.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numba as nb
import numpy as np
import numpy.typing as npt

from sparkml_sgdals.arrays.hashing import id_keys, mix64
from sparkml_sgdals.kernels.events import CONTEXT_DECAY, CONTEXT_ITEMS
from sparkml_sgdals.learn.prequential import BatchSums, rank_sums
from sparkml_sgdals.state.event_scores import log_shares, memories_of
from sparkml_sgdals.state.model_state import ModelState

__all__ = ["EventsToRank", "judge_ranks", "rank_events"]

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

_SCORES: Final = 1 << 24
"""Scores of a batch at most: of a batch with more, events are chosen by a hash."""
_TILE: Final = 1024
"""items scored at once: their scores and factors stay in the cache of a core"""
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_EVENT: Final = np.uint64(0x8CB92BA72F3D8DD7)


@dataclass(frozen=True)
class EventsToRank:
    """A batch of events, and what its users had done before.

    Attributes
    ----------
    users : int32, shape (n,), positions in `user_rows`, `starts` and `lengths`
    items : int32, shape (n,), rows of items
    does : bool, shape (n,): whether the row is an event; else its user does not want the item
    pairs : uint64, shape (n,), hashes of the pairs
    user_rows : int64, rows of the distinct users
    done : int32, rows of items: those that user x has done, the last one last, lie at
        starts[x]..starts[x]+lengths[x]-1
    """

    users: I32
    items: I32
    does: npt.NDArray[np.bool_]
    pairs: U64
    user_rows: I64
    starts: I64
    lengths: I64
    done: I32


def judge_ranks(
    state: ModelState, events: EventsToRank, known_users: int, known_items: int
) -> BatchSums:
    """Rank a batch by a model that has not learned it, but has rows for its new ids.

    Parameters
    ----------
    known_users, known_items : rows that the model had before the batch

    Returns
    -------
    sums over the ranked events, by `ranking_size` and `ranking_sample` of the settings
    """
    settings = state.settings
    sample = settings.ranking_sample
    chosen, earlier = _eligible(events, known_users, known_items)
    number = np.uint64(state.counters.ratings) + chosen.astype(np.uint64)
    draws = events.pairs[chosen] ^ (number * _EVENT)
    room = max(1, _SCORES // max(1, min(sample, known_items) if sample else known_items))
    if chosen.size > room:
        kept = np.sort(np.argsort(draws * _GOLDEN, kind="stable")[:room])
        chosen, draws = chosen[kept], draws[kept]
    if not chosen.size:
        return BatchSums()
    known = slice(known_items)
    products = state.items.mean[known].copy()
    context = np.zeros((0, settings.rank), np.float32)
    if settings.positive and settings.solver == "bayes":
        memory = memories_of(state)[1]
        context = memory.context
        logs, _ = log_shares(memory, state.events, state.popularity_parts, known_items)
        products[:, 0] += logs
    order = np.empty(0, np.int64)
    if sample:
        order = np.argsort(id_keys(state.items.index.ids())[known])
    ranks = np.empty((2, chosen.size), np.int64)
    rank_events(
        chosen, events.users, events.items, earlier, state.users.mean[events.user_rows], products,
        np.ascontiguousarray(products.T), state.items.count[known].copy(), context, events.starts,
        events.lengths, events.done, draws, sample, order, np.zeros(known_items, np.int64), ranks,
    )  # fmt: skip
    return rank_sums(ranks[0], ranks[1], settings.ranking_size)


def _eligible(events: EventsToRank, known_users: int, known_items: int) -> tuple[I64, I64]:
    """Places of the events to rank; of each first event of a pair the one of its user before it.

    The latter is -1 where there is none.
    """
    first = np.zeros(events.users.size, np.bool_)
    done = np.flatnonzero(events.does)
    pairs = (events.users[done].astype(np.int64) << 32) + events.items[done]
    first[done[np.unique(pairs, return_index=True)[1]]] = True
    earlier = np.full(first.size, -1, np.int64)
    _chain(
        events.users, events.items, events.starts, events.lengths, events.done,
        np.full(events.user_rows.size, -1, np.int64), earlier, first,
    )  # fmt: skip
    known = (events.user_rows[events.users] < known_users) & (events.items < known_items)
    return np.flatnonzero(first & known), earlier


@nb.njit(cache=True, nogil=True)
def _chain(users, items, starts, lengths, done, newest, earlier, first):  # type: ignore[no-untyped-def]
    """Take out of `first` what was done before the batch, and chain the others of a user."""
    for n in range(users.size):
        x = users[n]
        for j in range(starts[x], starts[x] + lengths[x]):
            if not first[n]:
                break
            first[n] = done[j] != items[n]
        if first[n]:
            earlier[n] = newest[x]
            newest[x] = n


@nb.njit(cache=True, nogil=True)
def _score(taste, products, item):  # type: ignore[no-untyped-def]
    """One score, by the operations of a tile in their order, so that equal items tie."""
    total = products[item, 0]
    for f in range(1, products.shape[1]):
        total += taste[f] * products[item, f]
    return total


@nb.njit(cache=True, nogil=True)
def rank_events(  # type: ignore[no-untyped-def]
    chosen, users, items, earlier, user_mean, products, columns, popular, context, starts, lengths,
    done, draws, sample, order, marks, ranks,
):  # fmt: skip
    """Rank the item of each chosen event, by the model and by popularity; an equal one is better.

    Parameters
    ----------
    chosen : int64, shape (m,), places of the events
    users, items, starts, lengths, done : as in `EventsToRank`
    earlier : int64, shape (n,), the place of the event of its user before, -1 for none; each of
        those is an item that its user had not done before
    user_mean : float32, shape (users, rank + 1); column 0 is not used
    products : float32, shape (items, rank + 1), of the known items: bias, then features
    columns : float32, shape (rank + 1, items), the same transposed
    popular : int64, shape (items,), what the baseline ranks by
    context : float32, shape (rows, rank), what having done an item adds to features; 0 rows for
        none
    draws : uint64, shape (m,), what the sample of an event follows from
    sample : items drawn, uniformly and with replacement, that an item is ranked among; 0 for all
    order : int64, shape (items,), items in an order that does not depend on the process
    marks : int64, shape (items,), zeros: work space
    ranks : int64, shape (2, m), out: 1 for the best; by the model, and by popularity
    """
    known, width = products.shape
    taste = np.empty(width, np.float32)
    tile = np.empty(_TILE, np.float32)
    for e in range(chosen.size):
        n = chosen[e]
        x = users[n]
        y = items[n]
        taste[0] = np.float32(0.0)
        for f in range(1, width):
            taste[f] = user_mean[x, f]
        if context.shape[0] > 0:
            count = min(lengths[x], CONTEXT_ITEMS)
            squares = 0.0
            for k in range(count):
                squares += CONTEXT_DECAY ** (2 * k)
            for k in range(count):
                share = np.float32(CONTEXT_DECAY**k / math.sqrt(squares))
                item = done[starts[x] + lengths[x] - 1 - k]
                for f in range(1, width):
                    taste[f] += share * context[item, f - 1]
        own = _score(taste, products, y)
        own_popular = popular[y]
        marks[y] = e + 1
        better = 0
        favoured = 0
        if sample > 0:
            for j in range(starts[x], starts[x] + lengths[x]):
                if done[j] < known:
                    marks[done[j]] = e + 1
            before = earlier[n]
            while before >= 0:
                if items[before] < known:
                    marks[items[before]] = e + 1
                before = earlier[before]
            state = draws[e]
            for _ in range(sample):
                state += _GOLDEN
                item = order[np.int64(mix64(state) % np.uint64(known))]
                if marks[item] != e + 1:
                    marks[item] = e + 1
                    better += _score(taste, products, item) >= own
                    favoured += popular[item] >= own_popular
        else:
            for begin in range(0, known, _TILE):
                size = min(_TILE, known - begin)
                for j in range(size):
                    tile[j] = columns[0, begin + j]
                for f in range(1, width):
                    factor = taste[f]
                    row = columns[f, begin : begin + size]
                    for j in range(size):
                        tile[j] += factor * row[j]
                for j in range(size):
                    better += tile[j] >= own
                    favoured += popular[begin + j] >= own_popular
            # the item itself, and what its user has done, do not compete
            better -= 1
            favoured -= 1
            for j in range(starts[x], starts[x] + lengths[x]):
                item = done[j]
                if item < known:
                    better -= _score(taste, products, item) >= own
                    favoured -= popular[item] >= own_popular
            before = earlier[n]
            while before >= 0:
                item = items[before]
                if item < known:
                    better -= _score(taste, products, item) >= own
                    favoured -= popular[item] >= own_popular
                before = earlier[before]
        ranks[0, e] = 1 + better
        ranks[1, e] = 1 + favoured
