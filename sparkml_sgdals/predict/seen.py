"""What a model itself remembers of who has rated, or done, what (driver)."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from sparkml_sgdals.arrays.hashing import id_keys
from sparkml_sgdals.state.event_memory import UserMemory
from sparkml_sgdals.state.model_state import ModelState

__all__ = ["remembered_pairs"]


def remembered_pairs(state: ModelState, users: pa.Array | None = None) -> pa.Table:
    """Return pairs that the model has learned: user and item, int64 or string.

    Parameters
    ----------
    state : ModelState
        the model
    users : pa.Array | None
        those asked for, of the users' kind and without nulls; None: all

    Raises
    ------
    ValueError
        it does not remember them
    """
    memory = state.users.memory
    if not isinstance(memory, UserMemory):
        raise ValueError(
            "excludeSeen=True leaves out what the model remembers of each user, and this one "
            "remembers nothing: give the table of pairs, excludeSeen=ratings, or set rankingSize "
            "(e.g. 10) before it learns."
        )
    rows = np.arange(state.users.size) if users is None else state.users.index.find(users)
    rows = rows[rows >= 0]
    starts, keys = memory.ragged(rows)
    owners = np.repeat(rows, np.diff(starts))
    item_keys = id_keys(state.items.index.ids()).view(np.int64)
    order = np.argsort(item_keys)
    places = np.searchsorted(item_keys, keys, sorter=order)
    places = order[np.minimum(places, max(order.size - 1, 0))] if order.size else places
    known = np.zeros(keys.size, bool) if not order.size else item_keys[places] == keys
    return pa.table(
        {
            "user": state.users.index.ids(owners[known]),
            "item": state.items.index.ids(places[known]),
        }
    )
