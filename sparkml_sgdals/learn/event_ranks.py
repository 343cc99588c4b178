"""Test, then learn, for ranks: where each item stood among all others before it was learned.

Every event of a user and an item that were known before the batch, and that the user had not done,
is ranked among the known items that its user has not done. A rating is an event, whatever its
value. Ranked items, draws and ties do not depend on the order of rows in memory, nor on the
candidate of a race that ranks. Compiled kernel; arrays, no Spark.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from sparkml_sgdals.arrays.hashing import id_keys
from sparkml_sgdals.kernels.events.judges import believed, pair_probabilities
from sparkml_sgdals.kernels.events.ranks import _EVENT, _GOLDEN, _chain, rank_events
from sparkml_sgdals.learn.prequential import BatchSums, rank_sums
from sparkml_sgdals.state.event_scores import (
    Anchors,
    log_shares,
    memories_of,
    popularity_logs,
    recent_context,
    table_biases,
)
from sparkml_sgdals.state.model_state import ModelState

__all__ = ["EventsToRank", "believed_share", "judge_ranks"]

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

_SCORES: Final = 1 << 24
"""Scores of a batch at most: of a batch with more, events are chosen by a hash."""
_JUDGED: Final = 256
"""events of a batch at most by which filter and table are weighed, chosen by a hash"""


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
    # a score of two judges costs as much as its features are more
    room = _SCORES * (settings.rank + 1) // (settings.rank + 1 + state.users.taste.shape[1])
    room = max(1, room // max(1, min(sample, known_items) if sample else known_items))
    if chosen.size > room:
        kept = np.sort(np.argsort(draws * _GOLDEN, kind="stable")[:room])
        chosen, draws = chosen[kept], draws[kept]
    if not chosen.size:
        return BatchSums()
    known = slice(known_items)
    products = state.items.mean[known].copy()
    own = state.users.mean[events.user_rows]
    own[:, 0] = 0.0
    user_table, table = state.users.taste[events.user_rows], state.items.taste[known].copy()
    context = np.zeros((0, settings.rank), np.float32)
    if settings.learns_events and settings.solver == "bayes":
        memory = memories_of(state)[1]
        context = memory.context
        logs, _ = log_shares(memory, state.events_learned, state.popularity_parts, known_items)
        products[:, 0] += logs
    if settings.fits_events:
        judges = _Judges.of(state, events)
        products[:, 0] = judges.biases[known]
        table[:, 0] = table_biases(state, judges.biases, state.items.taste[:, 0])[known]
        own[:, 0], user_table[:, 0] = judges.weights()
    order = np.empty(0, np.int64)
    if sample:
        order = np.argsort(id_keys(state.items.index.ids())[known])
    ranks = np.empty((2, chosen.size), np.int64)
    rank_events(
        chosen, events.users, events.items, earlier, own, products,
        np.ascontiguousarray(products.T), user_table, table, np.ascontiguousarray(table.T),
        state.items.count[known].copy(), context, events.starts,
        events.lengths, events.done, draws, sample, order, np.zeros(known_items, np.int64), ranks,
    )  # fmt: skip
    return rank_sums(ranks[0], ranks[1], settings.ranking_size)


@dataclass(frozen=True)
class _Judges:
    """Filter and table of the users of a batch, brought to one unit."""

    state: ModelState
    rows: I64
    features: npt.NDArray[np.float32]
    biases: npt.NDArray[np.float32]
    anchors: Anchors

    @classmethod
    def of(cls, state: ModelState, events: EventsToRank) -> _Judges:
        users, items = memories_of(state)
        rows = events.user_rows
        keys = id_keys(state.items.index.ids())
        features = state.users.mean[rows, 1:] + recent_context(users, items, rows, keys)
        popularity = popularity_logs(state, items, state.items.count)
        biases = state.items.mean[:, 0] + popularity[0]
        return cls(state, rows, features, biases, Anchors.of(state, biases, popularity))

    def weights(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return what both judgements of each user are multiplied with, as logarithms."""
        return self.anchors.weights(self.state.users.taste[self.rows], self.features)

    def probabilities(self, users: I64, items: I64) -> npt.NDArray[np.float64]:
        """Return what filter and table say of pairs: places of users, rows of items; (2, n)."""
        state = self.state
        sides = state.users.taste[self.rows[users], 1:], state.items.taste[items, 1:]
        distinct, places = np.unique(users, return_inverse=True)
        sums = self.anchors.sums(state.users.taste[self.rows[distinct]], self.features[distinct])
        scores = self.biases[items] + np.einsum(
            "nf,nf->n", self.features[users], state.items.mean[items, 1:]
        )
        products = np.einsum("nf,nf->n", *sides)
        bases = table_biases(state, self.biases, state.items.taste[:, 0])[items]
        found: npt.NDArray[np.float64] = pair_probabilities(
            scores, products, bases, sums[:, places]
        )
        return found


def believed_share(
    state: ModelState, events: EventsToRank, known_users: int, known_items: int
) -> float:
    """Return how far the filter is believed once a batch has been seen, before it is learned.

    Parameters
    ----------
    state : ModelState
        the model, fitted to a table, which has rows for the batch's new ids
    events : EventsToRank
        the batch
    known_users, known_items : int
        rows that the model had before the batch
    """
    chosen, _ = _eligible(events, known_users, known_items)
    users = events.users[chosen].astype(np.int64)
    fitted = state.users.taste[events.user_rows[users], 0] > 0
    chosen, users = chosen[fitted], users[fitted]
    if not chosen.size:
        return state.filter_share
    if chosen.size > _JUDGED:
        kept = np.sort(np.argsort(events.pairs[chosen] * _GOLDEN, kind="stable")[:_JUDGED])
        chosen, users = chosen[kept], users[kept]
    places, users = np.unique(users, return_inverse=True)
    judged = replace(events, user_rows=events.user_rows[places])
    found = _Judges.of(state, judged).probabilities(users, events.items[chosen].astype(np.int64))
    return float(believed(state.filter_share, found[0], found[1]))


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
