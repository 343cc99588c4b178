"""What one pair, user or item may do to what all share: scale, noise and range (no Spark).

A rating is learned as often as it comes, by its own user and item. But who sends one pair again and
again says nothing new of how ratings spread about their predictions; so for that a pair counts a
few times a batch, and an id a few times as often as there are partners for it.

Nearly all that events teach is shared: what is popular, what is drawn as not done, what stands
together, how much time has gone by. So an event that is its user's last one once more, and was so
for long, teaches nothing; nor does a pair beyond a small part of a batch or table, nor a user who
has done many times as much as users do and more than a twentieth of everything.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from sparkml_sgdals.arrays.hashing import id_keys
from sparkml_sgdals.arrays.ratings import Ratings
from sparkml_sgdals.state.event_scores import memories_of
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.model_state import ModelState

__all__ = ["capped_items", "counts_for_all", "events_that_count", "pairs_that_count", "some_of"]

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_TIMES: Final = 5
"""How often a pair counts in a batch."""
_A_PARTNER: Final = 2
"""How often an id counts for each partner that there is."""
_LEAST: Final = 10_000
"""Ratings of an id that count in any case, where there are as many partners."""
_RUN: Final = 20
"""How often in a row a user may do the same item. Of a million clicks in a shop two go beyond."""
_A_HUNDREDTH: Final = 100
"""The part of a batch or table that a pair may be, beyond _RUN events."""
_A_TWENTIETH: Final = 20
"""The part of all events that a user may be, beyond _OF_A_USER and _USERS."""
_OF_A_USER: Final = 1000
"""Events of a user that are learned in any case."""
_USERS: Final = 20
"""Of how many users one may have done as much as they do in the mean."""
_SHARE: Final = 0.1
"""Of the ratings behind the noise an id may be so large a part, beyond _LEAST."""


def counts_for_all(state: ModelState, ratings: Ratings) -> Mask | None:
    """Say which ratings of a batch, not learned yet, move what all ids share; None for all.

    Parameters
    ----------
    state : ModelState
        the model before the batch
    ratings : Ratings
        the batch, in the order of learning
    """
    counted = np.ones(len(ratings), bool)
    code = ratings.users.astype(np.int64) * len(ratings.item_ids) + ratings.items
    _, position, times = np.unique(code, return_inverse=True, return_counts=True)
    if times.max(initial=0) > _TIMES:
        counted = _number(position, counted) < _TIMES
    sides = (
        (state.users, ratings.user_ids, ratings.users),
        (state.items, ratings.item_ids, ratings.items),
    )
    known = [table.index.find(ids) for table, ids, _ in sides]
    sizes = [
        size + int(np.count_nonzero(rows < 0)) for size, rows in zip(state.ids, known, strict=True)
    ]
    for own, other in ((0, 1), (1, 0)):
        table, _, positions = sides[own]
        most = min(_A_PARTNER * sizes[other], max(_LEAST, int(_SHARE * state.noise_weight)))
        _cap(table, known[own], positions, most, counted)
    return None if counted.all() else counted


def _cap(table: FactorTable, rows: I64, positions: I32, most: int, counted: Mask) -> None:
    """Let ids count up to their `most`-th rating, in place."""
    before = np.where(rows < 0, 0, table.count[rows]) if table.size else np.zeros(rows.size, int)
    after = before + np.bincount(positions[counted], minlength=rows.size)
    if not np.any(after > most):
        return
    counted &= _number(positions, counted) + before[positions] < most


def _number(positions: I32 | I64, counted: Mask) -> I64:
    """How many of the ratings before each, of those counted, have the same position."""
    number = np.zeros(positions.size, np.int64)
    order = np.argsort(positions, kind="stable")
    order = order[counted[order]]
    sorted_positions = positions[order]
    number[order] = np.arange(order.size) - np.searchsorted(sorted_positions, sorted_positions)
    return number


def some_of(ratings: Ratings, chosen: Mask | None) -> Ratings:
    """Return the chosen ratings, all of them for None."""
    if chosen is None:
        return ratings
    weights = ratings.weights[chosen] if ratings.weights.size else ratings.weights
    times = ratings.times[chosen] if ratings.times.size else ratings.times
    return replace(
        ratings, users=ratings.users[chosen], items=ratings.items[chosen],
        values=ratings.values[chosen], weights=weights, times=times,
    )  # fmt: skip


def events_that_count(state: ModelState, events: Ratings) -> Mask | None:
    """Say which events of a batch or table, not learned yet, are learned; None for all.

    Parameters
    ----------
    state : ModelState
        the model before them
    events : Ratings
        in the order of learning
    """
    most = max(_RUN, len(events) // _A_HUNDREDTH)
    own = np.bincount(events.users, minlength=len(events.user_ids))
    before = _again_before(state, events)
    counted = np.ones(len(events), bool)
    if own.max(initial=0) > _RUN or before.any():
        # without times all events of a pair are in a row, because they have one hash
        counted = _run_numbers(events, before) < (_RUN if events.timed else most)
        if own.max(initial=0) > most:
            code = events.users.astype(np.int64) * len(events.item_ids) + events.items
            _, position = np.unique(code, return_inverse=True)
            counted &= _number(position, np.ones(len(events), bool)) < most
    _users_that_count(state, events, own, counted)
    return None if counted.all() else counted


def _users_that_count(state: ModelState, events: Ratings, own: I64, counted: Mask) -> None:
    """Leave out what users do beyond the part of all events that one user may be, in place."""
    rows = state.users.index.find(events.user_ids)
    known = rows >= 0
    before = np.where(known, state.users.count[rows], 0) if state.users.size else np.zeros_like(own)
    if (before + own).max(initial=0) <= _OF_A_USER:
        return
    # of items all are counted that were learned, by whom ever
    total = int(state.items.count.sum()) + len(events)
    users = state.users.size + int(np.count_nonzero(~known))
    most = max(_OF_A_USER, total // _A_TWENTIETH, _USERS * total // users)
    _cap(state.users, rows, events.users, most, counted)


def pairs_that_count(events: Ratings, total: int) -> Mask | None:
    """Say which events of a cell of a table without times are learned; None for all.

    Parameters
    ----------
    events : Ratings
        all of the pairs that they are of, in the order of learning
    total : int
        events of the whole table
    """
    most = max(_RUN, total // _A_HUNDREDTH)
    if np.bincount(events.users).max(initial=0) <= most:
        return None
    code = events.users.astype(np.int64) * len(events.item_ids) + events.items
    _, position = np.unique(code, return_inverse=True)
    counted = _number(position, np.ones(len(events), bool)) < most
    return None if counted.all() else counted


def _run_numbers(events: Ratings, before: I64) -> I64:
    """How many events of its user just before each are of the same item."""
    order = np.argsort(events.users, kind="stable")
    users, items = events.users[order], events.items[order]
    new_user = np.diff(users, prepend=-1) != 0
    begins = np.flatnonzero(new_user | (np.diff(items, prepend=-1) != 0))
    lengths = np.diff(begins, append=users.size)
    # the first run of a user goes on with the one before the batch
    earlier = np.where(new_user[begins], before[users[begins]], 0)
    numbers = np.empty(users.size, np.int64)
    numbers[order] = np.arange(users.size) - np.repeat(begins - earlier, lengths)
    return numbers


def _again_before(state: ModelState, events: Ratings) -> I64:
    """How often each user may have done its first item in a row before the batch.

    A model knows how many events of a user were repeats, not of what: so it is as many where that
    item is the one that its user did last, else 0.
    """
    found = np.zeros(len(events.user_ids), np.int64)
    rows = state.users.index.find(events.user_ids)
    known = np.flatnonzero(rows >= 0)
    if not known.size:
        return found
    done = memories_of(state)[0].done
    held = [done[row] for row in rows[known].tolist()]
    again = state.users.count[rows[known]] - [keys.size for keys in held]
    last = np.array([keys[-1] if keys.size else 0 for keys in held], np.int64)
    users, firsts = np.unique(events.users, return_index=True)
    first = np.zeros(found.size, np.int64)
    first[users] = id_keys(events.item_ids).view(np.int64)[events.items[firsts]]
    goes_on = (first[known] == last) & (again > 0)
    found[known[goes_on]] = np.minimum(again[goes_on], _RUN)
    return found


def capped_items(counts: I64, users: int) -> npt.NDArray[np.float64] | None:
    """By how much each item of a table counts in its noise, None where all count in full.

    Less than in full count those with many more ratings than there are users.
    """
    most = _TIMES * users
    if counts.max(initial=0) <= most:
        return None
    shares: npt.NDArray[np.float64] = most / np.maximum(counts, most)
    return shares
