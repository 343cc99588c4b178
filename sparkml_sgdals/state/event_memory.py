"""What a model of events remembers of an id besides its factors (driver and executor, no Spark).

Of a user: which items it has done, in their order, as 64-bit keys (`hashing.id_keys`), because
rows of items differ from process to process. That is 8 bytes an event and some 100 a user in
memory, and a user's whole list in each version that it has a part in: exact, not the smallest.
A model of ratings that ranks remembers that as well: to rate an item is to have done it.
Of an item: how it colours a user's next event, its popularity, and when it was last done.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.hashing import USER_SIDE
from sparkml_sgdals.state.settings import Settings

__all__ = [
    "CONTEXT_PRIOR",
    "HALF_LIVES",
    "EventMemory",
    "ItemMemory",
    "UserMemory",
    "memory_for",
    "with_room",
]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

HALF_LIVES: Final = (125.0, 500.0, 2000.0, 8000.0, 32000.0, np.inf)
"""events after which an event counts half for popularity, one for each of its parts"""
CONTEXT_PRIOR: Final = 0.4
"""prior variance of what an item adds to its users' next features, in factorPriorVariance"""


class EventMemory(Protocol):
    """A part of a `FactorTable`, in the order of its rows."""

    def resize(self, size: int) -> None:
        """Have so many rows, new ones empty."""

    def columns(self, rows: I64) -> dict[str, pa.Array]:
        """State of rows as Arrow columns."""

    def put(self, rows: I64, table: pa.Table) -> None:
        """Set the state of rows from what `columns` gave; absent columns stand for empty ones."""

    def finite(self, rows: I64) -> bool:
        """Whether all numbers in rows are finite."""

    def copy(self) -> EventMemory:
        """An independent copy."""


class UserMemory:
    """Items that users have done.

    Attributes
    ----------
    done : one int64 array of item keys a user, no key twice; the last done last, but for what
        a model of ratings has from tables; an array is replaced and never changed
    """

    def __init__(self) -> None:
        self.done: list[I64] = []

    def resize(self, size: int) -> None:
        """Have so many rows, new ones empty."""
        del self.done[size:]
        self.done.extend([_NOTHING] * (size - len(self.done)))

    def ragged(self, rows: I64) -> tuple[I64, I64]:
        """Starts, shape (n + 1,), and the keys of these rows one after another."""
        held = [self.done[row] for row in rows.tolist()]
        starts = np.zeros(len(held) + 1, np.int64)
        np.cumsum([keys.size for keys in held], out=starts[1:])
        return starts, np.concatenate([_NOTHING, *held])

    def replace(self, rows: I64, lists: Iterable[I64]) -> None:
        """Set what these rows have done; the arrays are kept, not copied."""
        for row, done in zip(rows.tolist(), lists, strict=True):
            self.done[row] = done

    def columns(self, rows: I64) -> dict[str, pa.Array]:
        """State of rows as Arrow columns."""
        starts, keys = self.ragged(rows)
        lists = pa.LargeListArray.from_arrays(pa.array(starts), pa.array(keys))
        return {"done": lists.cast(pa.list_(pa.int64()))}

    def put(self, rows: I64, table: pa.Table) -> None:
        """Set the state of rows from what `columns` gave; absent columns stand for empty ones."""
        if "done" not in table.column_names or not rows.size:
            return
        lists = table.column("done").combine_chunks()
        lengths = pa.compute.fill_null(pa.compute.list_value_length(lists), 0)
        ends = np.cumsum(lengths.to_numpy(zero_copy_only=False))
        keys = lists.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
        self.replace(rows, (own.copy() for own in np.split(keys, ends[:-1])))

    def finite(self, rows: I64) -> bool:
        """Whether all numbers in rows are finite."""
        return True

    def copy(self) -> UserMemory:
        """An independent copy."""
        twin = UserMemory()
        twin.done = list(self.done)
        return twin


class ItemMemory:
    """What events have left with the items.

    Attributes
    ----------
    context, context_var : float32, shape (size, rank): mean and variance of what having done the
        item adds to a user's features; width 0 but under solver 'bayes'
    popularity : float32, shape (size, parts): events of the item, each faded by one of the
        HALF_LIVES, as they stood when it was last done; width 0 but under solver 'bayes'
    last : int64, shape (size,), when it was last done, in events; under solver 'isgd' in touches:
        the event's own and those of its negatives; 0 for never
    """

    NAMES: Final = ("context", "context_var", "popularity", "last")

    def __init__(self, settings: Settings) -> None:
        bayes = settings.solver == "bayes"
        rank, parts = (settings.rank, len(HALF_LIVES)) if bayes else (0, 0)
        self.prior = np.float32(CONTEXT_PRIOR * settings.factor_prior)
        self.context: F32 = np.empty((0, rank), np.float32)
        self.context_var: F32 = np.empty((0, rank), np.float32)
        self.popularity: F32 = np.empty((0, parts), np.float32)
        self.last: I64 = np.empty(0, np.int64)

    def resize(self, size: int) -> None:
        """Have so many rows, new ones empty."""
        held = self.last.size
        for name in self.NAMES:
            old = getattr(self, name)
            grown = np.zeros((size, *old.shape[1:]), old.dtype)
            grown[: min(held, size)] = old[:size]
            setattr(self, name, grown)
        self.context_var[held:] = self.prior

    def columns(self, rows: I64) -> dict[str, pa.Array]:
        """State of rows as Arrow columns."""
        lists = {name: _lists(getattr(self, name)[rows]) for name in self.NAMES[:3]}
        return lists | {"last": pa.array(self.last[rows])}

    def put(self, rows: I64, table: pa.Table) -> None:
        """Set the state of rows from what `columns` gave; absent columns stand for empty ones."""
        if "last" not in table.column_names:
            return
        for name in self.NAMES:
            column = table.column(name).combine_chunks()
            flat = column.flatten() if pa.types.is_list(column.type) else column
            values = flat.to_numpy(zero_copy_only=False)
            held = getattr(self, name)
            held[rows] = values.reshape(rows.size, *held.shape[1:])

    def finite(self, rows: I64) -> bool:
        """Whether all numbers in rows are finite."""
        held = (self.context, self.context_var, self.popularity)
        return all(bool(np.isfinite(array[rows]).all()) for array in held)

    def copy(self) -> ItemMemory:
        """An independent copy."""
        twin = object.__new__(ItemMemory)
        twin.prior = self.prior
        for name in self.NAMES:
            setattr(twin, name, getattr(self, name).copy())
        return twin


def with_room(held: npt.NDArray[Any], lengths: I64, more: I64) -> tuple[I64, npt.NDArray[Any]]:
    """Lists with room at their ends for so many more.

    Parameters
    ----------
    held : lists one after another, of these lengths

    Returns
    -------
    begins : int64, shape (lists,), where each list begins
    lists : of the dtype of `held`, -1 where there is room
    """
    room = lengths + more
    begins = np.cumsum(room) - room
    lists = np.full(int(room.sum()), -1, held.dtype)
    apart = begins - (np.cumsum(lengths) - lengths)
    lists[np.arange(held.size) + np.repeat(apart, lengths)] = held
    return begins, lists


def memory_for(side: int, settings: Settings) -> EventMemory | None:
    """What one side of a model with these settings remembers, of no ids yet; None for nothing."""
    if side == USER_SIDE:
        return UserMemory() if settings.learns_events or settings.ranks_ratings else None
    return ItemMemory(settings) if settings.learns_events else None


_NOTHING: Final[I64] = np.empty(0, np.int64)


def _lists(matrix: F32) -> pa.ListArray:
    rows, width = matrix.shape
    offsets = np.arange(rows + 1, dtype=np.int32) * np.int32(width)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(matrix.reshape(-1)))
