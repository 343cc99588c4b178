"""From ids to rows of the factor arrays: exact, growing, fast (driver and executor, no Spark)."""

from __future__ import annotations

import secrets
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals import _compiling as nb
from sparkml_sgdals.arrays.hashing import id_keys
from sparkml_sgdals.arrays.id_kinds import IdKind, id_array_type

__all__ = ["IdIndex"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
_EMPTY: Final = -1
_BITS: Final = {"tinyint": 8, "smallint": 16, "int": 32}
_SALT: Final = np.uint64(secrets.randbits(64) | 1)
"""Of this process. Keys of integers follow from them, so that somebody could choose ids that share
their slots: multiplied by an odd number that he does not know, two of them do only by chance
(Dietzfelbinger et al. 1997)."""


@nb.njit(cache=True, nogil=True)
def _shift_of(slots):  # type: ignore[no-untyped-def]
    bits = 0
    while (1 << bits) < slots.size:
        bits += 1
    return np.uint64(64 - bits)


@nb.njit(cache=True, nogil=True)
def _find(slots, salt, ids, keys, wanted, rows):  # type: ignore[no-untyped-def]
    mask, shift = np.uint64(slots.size - 1), _shift_of(slots)
    for n in range(wanted.size):
        slot = (keys[n] * salt) >> shift
        rows[n] = -1
        while slots[slot] != -1:
            if ids[slots[slot]] == wanted[n]:
                rows[n] = slots[slot]
                break
            slot = (slot + np.uint64(1)) & mask


@nb.njit(cache=True, nogil=True)
def _insert(slots, salt, keys, first_row):  # type: ignore[no-untyped-def]
    mask, shift = np.uint64(slots.size - 1), _shift_of(slots)
    for n in range(keys.size):
        slot = (keys[n] * salt) >> shift
        while slots[slot] != -1:
            slot = (slot + np.uint64(1)) & mask
        slots[slot] = first_row + n


class IdIndex:
    """A growing set of ids of one kind, each with the row at which it was added.

    Integers live in an open-addressing table over their 64-bit keys, strings in a dict; neither
    can confuse two ids, and which slots ids share is not for those who choose them to know.
    """

    def __init__(self, kind: IdKind) -> None:
        self.kind: IdKind = kind
        self.size = 0
        # kept with the slots, which another process may be given
        self._salt = _SALT
        self._ids: I64 = np.empty(0, np.int64)
        self._slots: I64 = np.full(16, _EMPTY, np.int64)
        self._names: list[str] = []
        self._rows: dict[str, int] = {}
        self._keys: U64 = np.empty(0, np.uint64)
        self._by_key: I64 = np.empty(0, np.int64)

    def keys(self) -> U64:
        """Return the 64-bit keys of all ids; not to be changed."""
        self._know_keys()
        return self._keys

    def by_key(self) -> I64:
        """Return what sorts all ids by their keys; not to be changed."""
        self._know_keys()
        return self._by_key

    def _know_keys(self) -> None:
        known = self._keys.size
        if known == self.size:
            return
        keys = id_keys(self.ids(np.arange(known, self.size)))
        rows = np.argsort(keys)
        if known:
            # few are new at a time
            places = np.searchsorted(self._keys[self._by_key], keys[rows])
            self._by_key = np.insert(self._by_key, places, rows + known)
        else:
            self._by_key = rows
        self._keys = np.concatenate([self._keys, keys])

    def find(self, ids: pa.Array) -> I64:
        """Rows of `ids`, -1 where an id is not known; shape (n,), int64."""
        if self.kind == "str":
            get = self._rows.get
            return np.fromiter((get(i, _EMPTY) for i in ids.to_pylist()), np.int64, len(ids))
        wanted = _int64(ids)
        rows = np.empty(wanted.size, np.int64)
        _find(self._slots, self._salt, self._ids, id_keys(ids), wanted, rows)
        return rows

    def add(self, ids: pa.Array) -> I64:
        """Append `ids`, which must be distinct and unknown; their new rows, in that order."""
        first = self.size
        self.size += len(ids)
        if self.kind == "str":
            names = ids.to_pylist()
            self._rows.update(zip(names, range(first, self.size), strict=True))
            self._names.extend(names)
        else:
            if self.size > self._ids.size:
                grown = np.empty(max(2 * self._ids.size, self.size), np.int64)
                grown[:first] = self._ids[:first]
                self._ids = grown
            self._ids[first : self.size] = _int64(ids)
            if 2 * self.size > self._slots.size:
                slots = 1 << (2 * self.size - 1).bit_length()
                self._slots = np.full(slots, _EMPTY, np.int64)
                _insert(self._slots, self._salt, id_keys(self.ids()), 0)
            else:
                _insert(self._slots, self._salt, id_keys(ids), first)
        return np.arange(first, self.size)

    def truncate(self, size: int) -> None:
        """Forget the ids that were added last, down to `size` of them."""
        if size >= self.size:
            return
        if self.kind == "str":
            for name in self._names[size:]:
                del self._rows[name]
            del self._names[size:]
        self.size = size
        self._keys, self._by_key = self._keys[:size], self._by_key[self._by_key < size]
        if self.kind == "int":
            self._slots[:] = _EMPTY
            _insert(self._slots, self._salt, id_keys(self.ids()), 0)

    def ids(self, rows: I64 | None = None) -> pa.Array:
        """Return the ids of `rows`, by default of all, as an Arrow array of int64 or string."""
        if self.kind == "str":
            names = self._names if rows is None else [self._names[r] for r in rows.tolist()]
            return pa.array(names, pa.string())
        known = self._ids[: self.size]
        return pa.array(known if rows is None else known[rows])

    def type_name(self, learned: str) -> str:
        """Spark's name of a type that holds all ids: `learned`, bigint where one outgrew it."""
        bits = _BITS.get(learned)
        if bits is None or not self.size:
            return learned
        known, limit = self._ids[: self.size], 1 << (bits - 1)
        return learned if -limit <= known.min() and known.max() < limit else "bigint"

    def copy(self) -> IdIndex:
        """Return an independent copy."""
        twin = IdIndex(self.kind)
        twin.size, twin._salt = self.size, self._salt
        twin._ids = self._ids.copy()
        twin._slots = self._slots.copy()
        twin._names = list(self._names)
        twin._rows = dict(self._rows)
        twin._keys, twin._by_key = self._keys, self._by_key
        return twin

    def __contains__(self, an_id: Any) -> bool:
        """Whether an id is known."""
        return bool(self.find(pa.array([an_id], id_array_type(self.kind)))[0] >= 0)


def _int64(ids: pa.Array) -> I64:
    values: I64 = ids.cast(pa.int64()).to_numpy(zero_copy_only=False)
    # Arrow's buffers are read-only, and Numba would compile every kernel a second time for them
    return values if values.flags.writeable else values.copy()
