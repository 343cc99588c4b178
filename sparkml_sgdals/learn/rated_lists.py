"""What users have rated: what a rated item is ranked without, and how it is noted (no Spark).

Models of ratings with a ranking size remember it, and those of events what users have done. Arrays;
ranks by `learn.event_ranks`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.hashing import id_keys, pair_hash
from sparkml_sgdals.arrays.ratings import Ratings
from sparkml_sgdals.kernels.events.draws import note_done
from sparkml_sgdals.kernels.scatter import append_lists, drop_listed
from sparkml_sgdals.learn.event_ranks import EventsToRank, judge_ranks
from sparkml_sgdals.learn.prequential import BatchSums
from sparkml_sgdals.state.event_memory import UserMemory, with_room
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.model_state import ModelState

__all__ = ["copy_lists", "lists_after", "memory_of_users", "note_lists", "rank_ratings"]

I64 = npt.NDArray[np.int64]


def memory_of_users(users: FactorTable) -> UserMemory:
    """Return what a model that ranks ratings remembers of its users."""
    assert isinstance(users.memory, UserMemory)
    return users.memory


def rank_ratings(state: ModelState, ratings: Ratings) -> BatchSums:
    """How the items of a batch stood, by a model that has not learned it, among all others.

    Each pair counts at its first rating, where the model knew its user and its item.

    Returns
    -------
    sums over the ranked ratings, by `ranking_size` and `ranking_sample` of the settings
    """
    users = state.users.index.find(ratings.user_ids)[ratings.users]
    items = state.items.index.find(ratings.item_ids)[ratings.items]
    known = np.flatnonzero((users >= 0) & (items >= 0))
    if not known.size:
        return BatchSums()
    user_rows, positions = np.unique(users[known], return_inverse=True)
    pairs = pair_hash(
        id_keys(ratings.user_ids), id_keys(ratings.item_ids), ratings.users, ratings.items
    )
    events = EventsToRank.of(
        memory_of_users(state.users), state.items.index, user_rows, positions.astype(np.int32),
        items[known].astype(np.int32), np.ones(known.size, np.bool_), pairs[known],
    )  # fmt: skip
    return judge_ranks(state, events, state.users.size, state.items.size)


def lists_after(users: FactorTable, user_rows: I64, ratings: Ratings) -> list[I64]:
    """Return what the users of a batch have done once it is learned, the last item last.

    A rating is something done whatever its value, an event only above 0.

    Parameters
    ----------
    users : FactorTable
        the model's users, which has rows for those of the batch already
    user_rows : I64
        int64, rows of `ratings.user_ids`
    ratings : Ratings
        the batch, in the order of learning

    Returns
    -------
    keys of items, int64, for each of `user_rows`; what `users` holds is left as it is
    """
    starts, held = memory_of_users(users).ragged(user_rows)
    lengths = np.diff(starts)
    more = np.bincount(ratings.users, minlength=user_rows.size)
    begins, done = with_room(held, lengths, more)
    keys = id_keys(ratings.item_ids).view(np.int64)[ratings.items]
    does = ratings.values
    if not users.settings.learns_events:
        does = np.ones(len(ratings), np.float32)
    note_done(ratings.users, keys, does, done, begins, lengths)
    return [
        done[begin : begin + length].copy()
        for begin, length in zip(begins.tolist(), lengths.tolist(), strict=True)
    ]


def copy_lists(source: FactorTable, target: FactorTable) -> None:
    """Let users of one table, which the other knows too, have rated there what they have here."""
    rows = target.index.find(source.index.ids())
    memory_of_users(target).replace(rows, memory_of_users(source).done)


def note_lists(users: FactorTable, table: pa.Table) -> None:
    """Note what users have rated from lists in any order, one user in several of them perhaps.

    New keys are appended to what is held of a user, rising.

    Parameters
    ----------
    users : FactorTable
        the model's users, changed in place
    table : pa.Table
        user, ids that `users` knows, and done, lists of int64 keys of items
    """
    memory = memory_of_users(users)
    batches = [batch for batch in table.to_batches() if batch.num_rows]
    if not batches:
        return
    rows = [users.index.find(batch.column("user")) for batch in batches]
    touched = np.unique(np.concatenate(rows))
    old, held = memory.ragged(touched)
    known = np.diff(old)
    # twice, so that what all lists hold is there once besides the table itself
    more = np.zeros_like(known)
    for own, batch in zip(rows, batches, strict=True):
        lengths = pa.compute.list_value_length(batch.column("done")).to_numpy()
        np.add.at(more, np.searchsorted(touched, own), lengths)
    begins, keys = with_room(held, known, more)
    starts = np.append(begins, keys.size)
    ends = begins + known
    for own, batch in zip(rows, batches, strict=True):
        column = batch.column("done")
        lengths = pa.compute.list_value_length(column).to_numpy()
        values = column.flatten().to_numpy()
        append_lists(np.searchsorted(touched, own), lengths.astype(np.int64), values, ends, keys)
    sizes = np.empty(touched.size, np.int64)
    drop_listed(starts, known, keys, sizes)
    places = zip(begins.tolist(), sizes.tolist(), strict=True)
    memory.replace(touched, (keys[begin : begin + size].copy() for begin, size in places))
