"""What a model of events remembers of an id besides its factors (driver and executor, no Spark).

Of a user: which items it has done, in their order, as 64-bit keys (`hashing.id_keys`), because
rows of items differ from process to process. That is 8 bytes an event and some 100 a user in
memory, and a user's whole list in each version that it has a part in: exact, not the smallest.
A model of ratings that ranks remembers that as well: to rate an item is to have done it.
Of an item: how it colours a user's next event, its popularity, and when it was last done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.hashing import ITEM_SIDE, USER_SIDE
from sparkml_sgdals.state.columns import Column, ColumnSet, grown
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
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

HALF_LIVES: Final = (125.0, 500.0, 2000.0, 8000.0, 32000.0, np.inf)
"""events after which an event counts half for popularity, one for each of its parts"""
CONTEXT_PRIOR: Final = 0.4
"""prior variance of what an item adds to its users' next features, in factorPriorVariance"""


class EventMemory(Protocol):
    """A part of a `FactorTable`, in the order of its rows."""

    def resize(self, size: int) -> None:
        """Have so many rows, new ones empty."""

    def to_columns(self, rows: I64) -> dict[str, pa.Array]:
        """State of rows as Arrow columns."""

    def put(self, rows: I64, table: pa.Table) -> None:
        """Set the state of rows from what `to_columns` gave; what is absent stands as empty."""

    def finite(self, rows: Any = slice(None)) -> bool:
        """Whether all numbers in rows are finite."""

    def copy(self) -> EventMemory:
        """Return an independent copy."""


class UserMemory:
    """Items that users have done.

    Attributes
    ----------
    done
        one int64 array of item keys a user, no key twice; the last done last, but for what a model
        of ratings has from tables; an array is replaced and never changed
    last
        int64, number of each user's last event, as the model counts them, 0 where it is not known;
        (0,) where none are counted
    moment
        int64, time of each user's last event in microseconds, the earliest of all where it is not
        known; (0,) where none are kept

    Parameters
    ----------
    kept : tuple[str, ...]
        which of "last" and "moment" are kept
    """

    def __init__(self, kept: tuple[str, ...] = ()) -> None:
        self.done: list[I64] = []
        self._numbers = {name: np.empty(0, np.int64) for name in kept}

    @property
    def last(self) -> I64:
        """Numbers of the users' last events."""
        return self._numbers.get("last", _NOTHING)[: len(self.done)]

    @property
    def moment(self) -> I64:
        """Times of the users' last events."""
        return self._numbers.get("moment", _NOTHING)[: len(self.done)]

    def resize(self, size: int) -> None:
        """Have so many rows, new ones empty."""
        held = len(self.done)
        del self.done[size:]
        self.done.extend([_NOTHING] * (size - held))
        for name, numbers in self._numbers.items():
            if size > numbers.size:
                self._numbers[name] = np.resize(numbers[:held], 2 * size)
            self._numbers[name][min(held, size) : max(held, size)] = _UNKNOWN[name]

    def ragged(self, rows: I64) -> tuple[I64, I64]:
        """Return starts, shape (n + 1,), and the keys of these rows one after another."""
        held = [self.done[row] for row in rows.tolist()]
        starts = np.zeros(len(held) + 1, np.int64)
        np.cumsum([keys.size for keys in held], out=starts[1:])
        return starts, np.concatenate([_NOTHING, *held])

    def replace(self, rows: I64, lists: Iterable[I64]) -> None:
        """Set what these rows have done; the arrays are kept, not copied."""
        for row, done in zip(rows.tolist(), lists, strict=True):
            self.done[row] = done

    def to_columns(self, rows: I64) -> dict[str, pa.Array]:
        """State of rows as Arrow columns."""
        starts, keys = self.ragged(rows)
        lists = pa.LargeListArray.from_arrays(pa.array(starts), pa.array(keys))
        columns = {"done": lists.cast(pa.list_(pa.int64()))}
        return columns | {name: pa.array(own[rows]) for name, own in self._numbers.items()}

    def put(self, rows: I64, table: pa.Table) -> None:
        """Set the state of rows from what `to_columns` gave; what is absent stands as empty."""
        if "done" not in table.column_names or not rows.size:
            return
        lists = table.column("done").combine_chunks()
        lengths = pa.compute.fill_null(pa.compute.list_value_length(lists), 0)
        ends = np.cumsum(lengths.to_numpy(zero_copy_only=False))
        keys = lists.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
        self.replace(rows, (own.copy() for own in np.split(keys, ends[:-1])))
        for name, own in self._numbers.items():
            told = name in table.column_names
            own[rows] = table.column(name).to_numpy() if told else _UNKNOWN[name]

    def finite(self, rows: Any = slice(None)) -> bool:
        """Whether all numbers in rows are finite."""
        return True

    def copy(self) -> UserMemory:
        """Return an independent copy."""
        twin = UserMemory()
        twin.done = list(self.done)
        twin._numbers = {name: own.copy() for name, own in self._numbers.items()}
        return twin


def _parts(settings: Settings) -> int:
    return len(HALF_LIVES) if settings.solver == "bayes" else 0


def _features(settings: Settings) -> int:
    return settings.rank if settings.solver == "bayes" else 0


def _partners(settings: Settings) -> int:
    return settings.num_partners if settings.pairs_items else 0


def _paired(settings: Settings) -> int:
    return min(1, _partners(settings))


def _start_variance(settings: Settings, _side: int, _ids: pa.Array) -> np.float32:
    return np.float32(CONTEXT_PRIOR * settings.factor_prior)


class ItemMemory(ColumnSet):
    """What events have left with the items; n items.

    Attributes
    ----------
    context, context_var
        float32, shape (n, rank): mean and variance of what having done the item adds to a user's
        features; width 0 but under solver 'bayes'
    popularity
        float32, shape (n, parts): events of the item, each faded by one of the HALF_LIVES, as they
        stood when it was last done; width 0 but under solver 'bayes'
    last
        int64, shape (n,), when it was last done, in events; under solver 'isgd' in touches: the
        event's own and those of its negatives; 0 for never
    partner, strength
        int64 and float32, shape (n, partners): keys of the items that are done about when this one
        is, and how strongly so, as it stood at `paired`; 0 where there is none; width 0 but under
        solver 'bayes'
    strengths
        float32, shape (n, 1), sum of all strengths, those of partners that made room included
    paired
        int64, shape (n, 1), when they last changed, in events
    partner_rows
        int32, shape (n, partners): rows of the partners, -1 where they have not been looked up;
        not stored
    """

    context = Column[F32](_features)
    context_var = Column[F32](_features, start=_start_variance)
    popularity = Column[F32](_parts)
    last = Column[I64](None, dtype=np.int64)
    partner = Column[I64](_partners, dtype=np.int64)
    strength = Column[F32](_partners)
    strengths = Column[F32](_paired)
    paired = Column[I64](_paired, dtype=np.int64)

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.arrays = {column.name: column.zeros(settings) for column in self.registry()}
        self.partner_rows = np.full(self.partner.shape, -1, np.int32)
        self._looked_up = False

    def resize(self, size: int) -> None:
        """Have so many rows, new ones empty."""
        held = self.last.shape[0]
        self.arrays = grown(self.arrays, size)
        for column in self.registry():
            self.arrays[column.name][held:] = column.start(self.settings, ITEM_SIDE, None)
        rows = np.full(self.partner.shape, -1, np.int32)
        rows[: min(held, size)] = self.partner_rows[:size]
        self.partner_rows = rows

    def put(self, rows: I64, table: pa.Table) -> None:
        """Set the state of rows from what `to_columns` gave; what is absent stands as empty."""
        for column in self.registry():
            if column.stored in table.column_names:
                self.arrays[column.name][rows] = column.from_arrow(table, self.settings)
        self.partner_rows[rows] = -1
        self._looked_up = False

    def take_over(self, other: ColumnSet, rows: I64, settings: tuple[Settings, Settings]) -> None:
        """As of any `ColumnSet`; rows of partners are to be looked up again."""
        super().take_over(other, rows, settings)
        self.partner_rows[:] = -1
        self._looked_up = False

    def look_up(self, rows_of: Callable[[I64], I64]) -> I32:
        """Return `partner_rows` once those that are not known have been looked up.

        Parameters
        ----------
        rows_of : Callable[[I64], I64]
            rows of items by their keys, -1 for one that is not known
        """
        if self._looked_up:
            return self.partner_rows
        self._looked_up = True
        places = np.nonzero((self.partner_rows < 0) & (self.strength > 0.0))
        if places[0].size:
            keys, back = np.unique(self.partner[places], return_inverse=True)
            self.partner_rows[places] = rows_of(keys)[back]
        return self.partner_rows

    def paired_strengths(self, rows: I64 | slice = slice(None)) -> tuple[F32, F32, I64]:
        """Return copies of strengths of rows, of their sums, and when they changed."""
        strengths = self.strength[rows].copy()
        return strengths, self.strengths[rows, 0].copy(), self.paired[rows, 0].copy()

    def copy(self) -> ItemMemory:
        """Return an independent copy."""
        twin = ItemMemory(self.settings)
        twin.arrays = grown(self.arrays, self.last.shape[0])
        twin.partner_rows, twin._looked_up = self.partner_rows.copy(), self._looked_up
        return twin


def with_room(held: npt.NDArray[Any], lengths: I64, more: I64) -> tuple[I64, npt.NDArray[Any]]:
    """Return lists with room at their ends for so many more.

    Parameters
    ----------
    held : npt.NDArray[Any]
        lists one after another, of these lengths
    lengths, more : I64
        int64, shape (lists,): length of each list, and how many places to add at its end

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
    """Return what one side remembers under these settings, of no ids yet; None for nothing."""
    if side == USER_SIDE:
        if settings.learns_events or settings.ranks_ratings:
            kept = {
                "last": settings.pairs_items or settings.forget_after > 0,
                "moment": settings.forget_after_micros > 0,
            }
            return UserMemory(tuple(name for name, needed in kept.items() if needed))
        return None
    return ItemMemory(settings) if settings.learns_events else None


_NOTHING: Final[I64] = np.empty(0, np.int64)
_UNKNOWN: Final = {"last": 0, "moment": np.iinfo(np.int64).min}
