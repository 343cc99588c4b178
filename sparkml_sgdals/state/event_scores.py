"""What a model of events ranks by: popularity, what a user did last, and tastes (no Spark)."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from sparkml_sgdals.arrays.hashing import find_keys, id_keys
from sparkml_sgdals.kernels.events import CONTEXT_DECAY, CONTEXT_ITEMS
from sparkml_sgdals.state.event_memory import HALF_LIVES, ItemMemory, UserMemory
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.model_state import ModelState, Scale

__all__ = [
    "even_parts",
    "faded_popularity",
    "log_shares",
    "memories_of",
    "rows_of_keys",
    "serving_state",
]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_UNSEEN: Final = 0.01
"""share of all events that popularity keeps for items without any"""


def serving_state(state: ModelState) -> ModelState:
    """Return the model that scores pairs: score = scale.mean + bias of the item + U . P.

    Under 'bayes' an item's bias holds the logarithm of its share of events and a user's features
    what it did last: the score is the logarithm of the probability that the user's next event is
    this item, but for a constant of the user's. Under 'isgd' it is U . P. Nothing is clipped.
    """
    settings = replace(state.settings, learns_events=False, implicit_prior=False)
    served = ModelState.empty(settings, state.users.index.kind, state.items.index.kind)
    served.users, served.items = (_bare(table) for table in (state.users, state.items))
    served.scale = Scale(frozen=True)
    if settings.solver == "bayes" and state.items.size:
        user_memory, item_memory = memories_of(state)
        keys = id_keys(state.items.index.ids())
        users = np.arange(state.users.size)
        served.users.mean[:, 1:] += _recent_context(user_memory, item_memory, users, keys)
        logs, least = log_shares(
            item_memory, state.events_learned, state.popularity_parts, state.items.size
        )
        served.items.mean[:, 0] += logs
        served.scale = Scale(mean=least, frozen=True)
    return served


def log_shares(
    memory: ItemMemory, now: int, parts: tuple[float, ...], known: int
) -> tuple[F32, float]:
    """Logarithms of the items' shares of events, equation (4), above that of an item without any.

    Parameters
    ----------
    memory : ItemMemory
        the items' memory, left as it is
    now : int
        events learned
    parts : tuple[float, ...]
        share of each part of popularity; empty before the first event
    known : int
        items that share, the first rows

    Returns
    -------
    float32, shape (known,), and the logarithm for an item without events
    """
    fades = 0.5 ** (1.0 / np.array(HALF_LIVES))
    faded = faded_popularity(memory, now, fades)[:known]
    shares = (faded / np.maximum(faded.sum(axis=0), 1e-300)) @ np.array(parts or even_parts())
    floor = _UNSEEN / (known + 1)
    logs = np.log((1.0 - _UNSEEN) * shares + floor)
    return (logs - np.log(floor)).astype(np.float32), float(np.log(floor))


def memories_of(state: ModelState) -> tuple[UserMemory, ItemMemory]:
    """Return the memories of a model of events: of users, and of items."""
    users, items = state.users.memory, state.items.memory
    assert isinstance(users, UserMemory)
    assert isinstance(items, ItemMemory)
    return users, items


def even_parts() -> tuple[float, ...]:
    """Shares of the parts of popularity before the first event."""
    return (1.0 / len(HALF_LIVES),) * len(HALF_LIVES)


def faded_popularity(memory: ItemMemory, now: int, fades: F64) -> F64:
    """Faded events of each item as they stand now, shape (items, parts)."""
    age = (now - memory.last).astype(np.float64)[:, None]
    return memory.popularity * fades[None, :] ** age


def rows_of_keys(held: I64, keys: npt.NDArray[np.uint64], order: I64) -> I64:
    """Rows of item keys, -1 where the item is not known any more."""
    if not keys.size:
        return np.full(held.size, -1, np.int64)
    wanted = held.view(np.uint64)
    if wanted.size * 8 > keys.size:
        # worth a pass over all keys
        found: I64 = find_keys(keys, order, wanted)
        return found
    places = np.minimum(np.searchsorted(keys, wanted, sorter=order), keys.size - 1)
    rows = order[places]
    return np.where(keys[rows] == wanted, rows, -1)


def known_done(
    users: UserMemory, rows: I64, keys: npt.NDArray[np.uint64], order: I64
) -> tuple[I64, I64]:
    """Return how many of the known items each user has done, and the rows of these items.

    Parameters
    ----------
    users : UserMemory
        what they have done
    rows : I64
        int64, shape (n,), rows of users
    keys : npt.NDArray[np.uint64]
        uint64, shape (items,), keys of the known items
    order : I64
        int64, of the same shape: what sorts the keys
    """
    starts, held = users.ragged(rows)
    found = rows_of_keys(held, keys, order)
    owner = np.repeat(np.arange(rows.size), np.diff(starts))[found >= 0]
    return np.bincount(owner, minlength=rows.size).astype(np.int64), found[found >= 0]


def _recent_context(
    users: UserMemory, items: ItemMemory, rows: I64, keys: npt.NDArray[np.uint64]
) -> F32:
    """Return what the items that users did last add to their features, shape (users, rank)."""
    order = np.argsort(keys)
    total = np.zeros((rows.size, items.context.shape[1]), np.float32)
    squares = np.zeros(rows.size)
    recent = np.full((rows.size, CONTEXT_ITEMS), -1, np.int64)
    starts, held = users.ragged(rows)
    found = rows_of_keys(held, keys, order)
    for x in range(rows.size):
        own = found[starts[x] : starts[x + 1]]
        own = own[own >= 0][: -CONTEXT_ITEMS - 1 : -1]
        recent[x, : own.size] = own
    for k in range(CONTEXT_ITEMS):
        there = np.flatnonzero(recent[:, k] >= 0)
        squares[there] += CONTEXT_DECAY ** (2 * k)
        share = np.float32(CONTEXT_DECAY**k)
        total[there] += share * items.context[recent[there, k]]
    norms = np.sqrt(np.where(squares > 0, squares, 1.0)).astype(np.float32)
    return total / norms[:, None]


def _bare(table: FactorTable) -> FactorTable:
    """Return a copy of means and variances, without what only learning needs."""
    twin = table.copy()
    twin.memory = None
    return twin
