"""Test, then learn, for ranks: where each item stood among all others before it was learned.

Every event of a user and an item that were known before the batch, and that the user had not done,
is ranked among the known items that its user has not done. A rating is an event, whatever its
value. Ranked items, draws and ties do not depend on the order of rows in memory, nor on the
candidate of a race that ranks. Compiled kernel; arrays, no Spark.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from sparkml_sgdals.arrays.hashing import id_keys
from sparkml_sgdals.kernels.event_ranks import _EVENT, _GOLDEN, _chain, rank_events
from sparkml_sgdals.learn.prequential import BatchSums, rank_sums
from sparkml_sgdals.state.event_scores import log_shares, memories_of
from sparkml_sgdals.state.model_state import ModelState

__all__ = ["EventsToRank", "judge_ranks"]

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

_SCORES: Final = 1 << 24
"""Scores of a batch at most: of a batch with more, events are chosen by a hash."""


@dataclass(frozen=True)
class EventsToRank:
    """A batch of events, and what its users had done before.

    Attributes
    ----------
    users : I32
        int32, shape (n,), positions in `user_rows`, `starts` and `lengths`
    items : I32
        int32, shape (n,), rows of items
    does : npt.NDArray[np.bool_]
        bool, shape (n,): whether the row is an event; else its user does not want the item
    pairs : U64
        uint64, shape (n,), hashes of the pairs
    user_rows : I64
        int64, rows of the distinct users
    starts, lengths : I64
        int64, of each distinct user: where its items begin in `done`, and how many they are
    done : I32
        int32, rows of items: those that user x has done, the last one last, lie at
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
    state : ModelState
        the model, left as it is
    events : EventsToRank
        the batch
    known_users, known_items : int
        rows that the model had before the batch

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
    if settings.learns_events and settings.solver == "bayes":
        memory = memories_of(state)[1]
        context = memory.context
        logs, _ = log_shares(memory, state.events_learned, state.popularity_parts, known_items)
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
