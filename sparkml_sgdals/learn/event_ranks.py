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

from sparkml_sgdals.arrays.hashing import id_keys, pair_hash
from sparkml_sgdals.arrays.id_index import IdIndex
from sparkml_sgdals.arrays.ratings import Ratings
from sparkml_sgdals.kernels.events.judges import at_rest, believed, pair_probabilities
from sparkml_sgdals.kernels.events.partners import gaps_of, lengths_of
from sparkml_sgdals.kernels.events.ranks import _EVENT, _GOLDEN, _chain, rank_events
from sparkml_sgdals.learn.prequential import BatchSums, rank_sums
from sparkml_sgdals.state.event_memory import UserMemory
from sparkml_sgdals.state.event_scores import (
    Anchors,
    heard_partners,
    known_done,
    log_shares,
    memories_of,
    partner_shares_of,
    popularity_logs,
    recent_context,
    table_biases,
)
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.partners import last_of_lists

__all__ = ["EventsToRank", "judge_events", "judge_ranks", "weigh_at_rest"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

_SCORES: Final = 1 << 24
"""Scores of a batch at most: of a batch with more, events are chosen by a hash."""
_JUDGED: Final = 256
"""events of a batch at most by which filter and table are weighed, chosen by a hash"""
_WEIGHED: Final = 65_536
"""events at the end of a table at most by which its judges are weighed, chosen by a hash"""
_OF_A_USER: Final = 20
"""events that one user counts as at most there"""


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

    @classmethod
    def of(
        cls, memory: UserMemory, items_known: IdIndex, user_rows: I64, users: I32, items: I32,
        does: npt.NDArray[np.bool_], pairs: U64,
    ) -> EventsToRank:  # fmt: skip
        """Look up what the users of these events have done, in a memory and an index of items."""
        lengths, done = known_done(memory, user_rows, items_known.keys(), items_known.by_key())
        starts = np.cumsum(lengths) - lengths
        return cls(users, items, does, pairs, user_rows, starts, lengths, done.astype(np.int32))


def judge_ranks(
    state: ModelState, events: EventsToRank, known_users: int, known_items: int
) -> BatchSums:
    """Rank a batch of ratings by a model that has not learned it, but has rows for its new ids.

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
    first, earlier = _eligible(events, known_users, known_items)
    return _ranked(state, events, _to_rank(state, events, first, known_items), earlier, known_items)


def judge_events(
    state: ModelState, events: EventsToRank, known_users: int, known_items: int
) -> tuple[BatchSums, float]:
    """Rank a batch of events, as `judge_ranks`, and weigh filter and table by it.

    Parameters
    ----------
    state, events, known_users, known_items
        as `judge_ranks`

    Returns
    -------
    sums over the ranked events, none without a ranking size; how far the filter is believed once
    the batch has been seen, which is as far as before but for a model that was fitted to a table
    """
    settings = state.settings
    first, earlier = _eligible(events, known_users, known_items, state.repeats_items)
    nothing = first[:0]
    ranked = _to_rank(state, events, first, known_items) if settings.ranking_size else nothing
    weighed = _to_weigh(state, events, first) if settings.fits_events else nothing
    judges = None
    if settings.fits_events and (ranked.size or weighed.size):
        judges = _Judges.of(state, events, np.concatenate([ranked, weighed]))
    sums = BatchSums()
    if settings.ranking_size:
        sums = _ranked(state, events, ranked, earlier, known_items, judges)
    share = state.filter_share
    if weighed.size and judges is not None:
        users, items = events.users[weighed], events.items[weighed].astype(np.int64)
        share = float(believed(share, *judges.probabilities(users, items)))
    return sums, share


def weigh_at_rest(state: ModelState, later: Ratings) -> tuple[float, tuple[float, ...]]:
    """Weigh filter, table and partners by what users did after a model of them was made.

    Parameters
    ----------
    state : ModelState
        a model that was fitted to a table with times, left as it is; it has rows for all ids
    later : Ratings
        events that it has not learned, after all that it has

    Returns
    -------
    how far the filter is believed, and what is added to the log-odds of the partners' share by
    the time since a user's last event: `kernels.events.judges.at_rest`
    """
    rows = state.users.index.find(later.user_ids), state.items.index.find(later.item_ids)
    users, items = later.users, rows[1][later.items].astype(np.int32)
    memory = memories_of(state)[0]
    pairs = pair_hash(id_keys(later.user_ids), id_keys(later.item_ids), users, later.items)
    events = EventsToRank.of(
        memory, state.items.index, rows[0], users, items, later.values > 0, pairs
    )
    first, _ = _eligible(events, state.users.size, state.items.size, state.repeats_items)
    known = state.users.taste[rows[0][users[first]], 0] > 0
    known &= state.items.count[items[first]] > 0
    chosen = _some(first[known], pairs[first[known]], _WEIGHED)
    if not chosen.size:
        return state.filter_share, state.partners.at_rest
    judges = _Judges.of(state, events, chosen)
    who, what = users[chosen], items[chosen].astype(np.int64)
    said = np.zeros((3, chosen.size))
    said[:2] = judges.probabilities(who, what)
    lengths = events.lengths
    shares = partner_shares_of(state, rows[0], lengths)
    latest = last_of_lists(events.done, events.starts, lengths)
    tastes = state.users.taste[rows[0]]
    heard = heard_partners(state, latest, shares, tastes, judges.least)
    of_pairs = np.zeros(chosen.size)
    if heard is not None and shares is not None:
        of_pairs = shares[who]
        said[2] = heard.of_pairs(who.astype(np.int64), what) * np.exp(judges.least) / of_pairs
    counts = np.minimum(1.0, _OF_A_USER / np.bincount(who)[who])
    last = memory.last if memory.last.size else np.zeros(state.users.size, np.int64)
    gaps = gaps_of(state.events_learned + 1, last[rows[0][who]])
    by_length, moved = at_rest(
        said, of_pairs, gaps, lengths_of(lengths[who]), counts, state.filter_share
    )
    # a list is made for all users, and of who comes back are more that have done much
    everyone = np.flatnonzero(state.users.taste[:, 0] > 0)
    parts = np.bincount(lengths_of(np.diff(memory.ragged(everyone)[0])), minlength=by_length.size)
    return float(parts @ by_length / everyone.size), tuple(moved.tolist())


def _to_rank(state: ModelState, events: EventsToRank, first: I64, known_items: int) -> I64:
    """Return the places of as many of these events as a batch's scores have room for."""
    settings = state.settings
    sample = settings.ranking_sample
    # a score of two judges costs as much as its features are more
    room = _SCORES * (settings.rank + 1) // (settings.rank + 1 + state.users.taste.shape[1])
    room = max(1, room // max(1, min(sample, known_items) if sample else known_items))
    return _some(first, _draws(state, events, first), room)


def _to_weigh(state: ModelState, events: EventsToRank, first: I64) -> I64:
    """Return the places of some of these events, of users whom the table knew."""
    known = state.users.taste[events.user_rows[events.users[first]], 0] > 0
    return _some(first[known], events.pairs[first[known]], _JUDGED)


def _some(places: I64, hashes: U64, most: int) -> I64:
    """Return as many of these places, chosen by a hash, in their order."""
    if places.size <= most:
        return places
    kept: I64 = np.sort(np.argsort(hashes * _GOLDEN, kind="stable")[:most])
    return places[kept]


def _draws(state: ModelState, events: EventsToRank, chosen: I64) -> U64:
    """Return what the sample of each of these events follows from."""
    number = np.uint64(state.counters.ratings) + chosen.astype(np.uint64)
    return events.pairs[chosen] ^ (number * _EVENT)


def _ranked(
    state: ModelState, events: EventsToRank, chosen: I64, earlier: I64, known_items: int,
    judges: _Judges | None = None,
) -> BatchSums:  # fmt: skip
    if not chosen.size:
        return BatchSums()
    settings, known = state.settings, slice(known_items)
    biases = state.items.mean[known, 0]
    own = state.users.mean[events.user_rows]
    own[:, 0] = 0.0
    user_table = state.users.taste[events.user_rows]
    bases = np.empty(0, np.float32)
    context = np.zeros((0, settings.rank), np.float32)
    least = 0.0
    if settings.learns_events and settings.solver == "bayes":
        context = memories_of(state)[1].context
    if judges is not None:
        biases = judges.biases[known]
        bases = table_biases(state, judges.biases, state.items.taste[:, 0])[known]
        own[judges.places, 0], user_table[judges.places, 0] = judges.weights()
        least = judges.least
    elif settings.learns_events and settings.solver == "bayes":
        memory = memories_of(state)[1]
        logs, least = log_shares(memory, state.events_learned, state.popularity_parts, known_items)
        biases = biases + logs
    biases = np.ascontiguousarray(biases)
    if settings.ranking_sample:
        order = state.items.index.by_key()
        order = order[order < known_items]
    else:
        order = np.argsort(-biases)
    popular = state.items.count[known].copy()
    ranks = np.empty((2, chosen.size), np.int64)
    rank_events(
        chosen, events.users, events.items, earlier, settings.ranking_size, own, biases,
        state.items.mean, user_table, bases, state.items.taste, popular, np.sort(popular), context,
        events.starts, events.lengths, events.done, _boosts(state, events, least, known_items),
        state.repeats_items, _draws(state, events, chosen), settings.ranking_sample, order,
        np.zeros(known_items, np.int64), ranks,
    )  # fmt: skip
    return rank_sums(ranks[0], ranks[1], settings.ranking_size)


def _boosts(
    state: ModelState, events: EventsToRank, least: float, known_items: int
) -> tuple[I64, I32, F32]:
    """Return what partners add to the known items of each user of the batch."""
    if state.settings.learns_events:
        latest = last_of_lists(events.done, events.starts, events.lengths)
        tastes = state.users.taste[events.user_rows]
        shares = partner_shares_of(state, events.user_rows, events.lengths)
        heard = heard_partners(state, latest, shares, tastes, least)
        if heard is not None:
            places = np.arange(state.items.size, dtype=np.int32)
            places[known_items:] = -1
            return heard.of_users(places, known_items)
    nothing = np.zeros(events.user_rows.size + 1, np.int64)
    return nothing, np.empty(0, np.int32), np.empty(0, np.float32)


@dataclass(frozen=True)
class _Judges:
    """Filter and table of some users of a batch, brought to one unit.

    Attributes
    ----------
    places : I64
        int64, of these users among those of the batch, rising
    features : F32
        float32, shape (users, rank), what they did last added
    biases : F32
        float32, shape (items,), as `serving_state` has them
    lengths : I64
        int64, how many items these users have done
    """

    state: ModelState
    places: I64
    rows: I64
    features: F32
    lengths: I64
    biases: F32
    anchors: Anchors
    least: float

    @classmethod
    def of(cls, state: ModelState, events: EventsToRank, chosen: I64) -> _Judges:
        """Bring those of the chosen events to one unit."""
        users, items = memories_of(state)
        places = np.unique(events.users[chosen]).astype(np.int64)
        rows = events.user_rows[places]
        keys, order = state.items.index.keys(), state.items.index.by_key()
        features = state.users.mean[rows, 1:] + recent_context(users, items, rows, keys, order)
        popularity = popularity_logs(state, items, state.items.count)
        biases = state.items.mean[:, 0] + popularity[0]
        anchors = Anchors(state, state.items, biases, popularity, lambda: order)
        lengths = events.lengths[places]
        return cls(state, places, rows, features, lengths, biases, anchors, popularity[1])

    def weights(self) -> tuple[F32, F32]:
        """Return what both judgements of each user are multiplied with, as logarithms."""
        shares = partner_shares_of(self.state, self.rows, self.lengths)
        return self.anchors.weights(self.state.users.taste[self.rows], self.features, shares)

    def probabilities(self, users: I32, items: I64) -> npt.NDArray[np.float64]:
        """Return what filter and table say of pairs: users by place, rows of items; (2, n)."""
        state = self.state
        own, places = np.unique(np.searchsorted(self.places, users), return_inverse=True)
        rows, features = self.rows[own], self.features[own]
        tastes = state.users.taste[rows]
        sums = self.anchors.sums(tastes, features)[:, places]
        scores = self.biases[items] + np.einsum(
            "nf,nf->n", features[places], state.items.mean[items, 1:]
        )
        products = np.einsum("nf,nf->n", tastes[places, 1:], state.items.taste[items, 1:])
        bases = table_biases(state, self.biases, state.items.taste[:, 0])[items]
        found: npt.NDArray[np.float64] = pair_probabilities(scores, products, bases, sums)
        return found


def _eligible(
    events: EventsToRank, known_users: int, known_items: int, repeats: bool = False
) -> tuple[I64, I64]:
    """Places of the events to rank; of each first event of a pair the one of its user before it.

    The latter is -1 where there is none, and for all where what was done may come again: any
    event of such a stream is ranked.
    """
    known = (events.user_rows[events.users] < known_users) & (events.items < known_items)
    if repeats:
        return np.flatnonzero(events.does & known), np.full(known.size, -1, np.int64)
    first = np.zeros(events.users.size, np.bool_)
    done = np.flatnonzero(events.does)
    pairs = (events.users[done].astype(np.int64) << 32) + events.items[done]
    first[done[np.unique(pairs, return_index=True)[1]]] = True
    earlier = np.full(first.size, -1, np.int64)
    _chain(
        events.users, events.items, events.starts, events.lengths, events.done,
        np.full(events.user_rows.size, -1, np.int64), earlier, first,
    )  # fmt: skip
    return np.flatnonzero(first & known), earlier
