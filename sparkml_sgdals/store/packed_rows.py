"""Factor rows as fixed-width words, sorted by a 64-bit key: what sorted runs hold (no Spark).

A row is `width` little-endian 64-bit words: key, count, floats two a word, checksum; for string
ids also where the name lies. The key of an integer is its value with the sign bit flipped, so
that keys sort as ids do; that of a string is its hash, and the name decides between equal ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals import _compiling as nb
from sparkml_sgdals.arrays.hashing import id_keys
from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.state.columns import FactorColumns
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.settings import Settings

__all__ = [
    "Packed", "RowShape", "drop_older", "pack_arrays", "pack_rows", "search_keys", "unpack_rows",
]  # fmt: skip

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

_SIGN: Final = np.uint64(1 << 63)
_SEED: Final = np.uint64(0x9E3779B97F4A7C15)
_ODD: Final = np.uint64(0xD6E8FEB86659FD93)


@nb.njit(cache=True, nogil=True)
def row_checks(words, covered, salt):  # type: ignore[no-untyped-def]
    """Return a checksum of each row's first words; every step is a bijection of what it changes."""
    out = np.empty(words.shape[0], np.uint64)
    for n in range(words.shape[0]):
        h = _SEED ^ salt
        for j in range(covered):
            h = (h ^ words[n, j]) * _ODD
            h ^= h >> np.uint64(29)
        out[n] = h
    return out


@dataclass(frozen=True)
class RowShape:
    """Where what lies in a row, from the settings of a model and the kind of its ids."""

    kind: IdKind
    columns: tuple[tuple[str, int], ...]
    """each column but the count, by the name of `FactorColumns`: its numbers in float32"""

    @classmethod
    def of(cls, kind: IdKind, settings: Settings) -> RowShape:
        """Return the shape of the rows of one side."""
        columns = tuple(
            (column.name, column.numbers(settings) * column.dtype.itemsize // 4)
            for column in FactorColumns.registry()
            if column.name != "count"
        )
        return cls(kind, columns)

    @property
    def check(self) -> int:
        """The word that holds the checksum of those before it."""
        return 2 + (sum(width for _, width in self.columns) + 1) // 2

    @property
    def width(self) -> int:
        """Words of a row."""
        return self.check + (3 if self.kind == "str" else 1)


@dataclass(frozen=True)
class Packed:
    """Rows sorted by key.

    Attributes
    ----------
    words : U64
        uint64, shape (n, width)
    names : pa.Array | None
        LargeBinaryArray of the ids, shape (n,), None for integers
    """

    shape: RowShape
    words: U64
    names: pa.Array | None

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self.words.shape[0])

    @property
    def keys(self) -> U64:
        """uint64, shape (n,), rising."""
        return self.words[:, 0]

    def ids(self) -> pa.Array:
        """Return the ids, int64 or string."""
        if self.names is None:
            return pa.array((self.keys ^ _SIGN).view(np.int64))
        return self.names.cast(pa.string())

    def column(self, name: str) -> npt.NDArray[np.float32]:
        """Return a column of numbers by its name, float32, shape (n, numbers of it)."""
        place = 0
        for other, width in self.shape.columns:
            if other == name:
                floats = np.ascontiguousarray(self.words[:, 2 : self.shape.check])
                return floats.view(np.float32)[:, place : place + width]
            place += width
        raise KeyError(name)

    def take(self, rows: I64 | npt.NDArray[np.bool_]) -> Packed:
        """Return some rows, by place or by a mask."""
        places = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        names = None if self.names is None else self.names.take(pa.array(places))
        return Packed(self.shape, self.words[places], names)

    def part(self, first: int, last: int) -> Packed:
        """Rows from `first` to before `last`."""
        names = None if self.names is None else self.names.slice(first, last - first)
        return Packed(self.shape, self.words[first:last], names)

    def sealed(self, salt: int) -> Packed:
        """Return the rows with checksums that fit one place alone: see `whole`."""
        words = np.ascontiguousarray(self.words).copy()
        words[:, self.shape.check] = row_checks(words, self.shape.check, np.uint64(salt))
        return Packed(self.shape, words, self.names)

    def whole(self, salt: int) -> bool:
        """Whether every row is as it was sealed: checksums, and names against their keys.

        Parameters
        ----------
        salt : int
            of the place where the rows were put: rows of another one do not fit
        """
        shape = self.shape
        checks = row_checks(np.ascontiguousarray(self.words), shape.check, np.uint64(salt))
        if not np.array_equal(checks, self.words[:, shape.check]):
            return False
        return self.names is None or np.array_equal(id_keys(self.names), self.keys)

    @classmethod
    def together(cls, parts: list[Packed]) -> Packed:
        """One after the other, not sorted."""
        first = parts[0]
        words = np.concatenate([part.words for part in parts])
        if first.names is None:
            return cls(first.shape, words, None)
        return cls(first.shape, words, pa.concat_arrays([part.names for part in parts]))


def search_keys(ids: pa.Array) -> U64:
    """Keys of ids, int64 or string, as rows are sorted by; uint64, shape (n,)."""
    if not pa.types.is_integer(ids.type):
        return id_keys(ids)
    values = ids.cast(pa.int64()).to_numpy(zero_copy_only=False)
    return np.asarray(values.astype(np.int64).view(np.uint64) ^ _SIGN)


def pack_rows(table: FactorTable, rows: I64 | None = None) -> Packed:
    """Return the state of some rows of a table (all by default)."""
    shape = RowShape.of(table.index.kind, table.settings)
    if rows is None:
        rows = np.arange(table.size)
    names = ("count", *(name for name, _ in shape.columns))
    arrays = {name: table.array(name)[rows] for name in names}
    return drop_older(pack_arrays(shape, table.index.ids(rows), arrays))


def pack_arrays(shape: RowShape, ids: pa.Array, arrays: Mapping[str, npt.NDArray[Any]]) -> Packed:
    """Return rows in the order given, which is to be that of `search_keys`.

    Parameters
    ----------
    shape : RowShape
        of the rows
    ids : pa.Array
        int64 or string, shape (n,)
    arrays : Mapping[str, npt.NDArray[Any]]
        by the names of `FactorColumns`, a row an id
    """
    size = len(ids)
    words = np.zeros((size, shape.width), np.uint64)
    words[:, 0] = search_keys(ids)
    words[:, 1] = arrays["count"].view(np.uint64)
    # a view of the room for floats, two a word
    floats = words.view(np.float32)[:, 4:]
    place = 0
    for name, width in shape.columns:
        array = np.ascontiguousarray(arrays[name]).view(np.float32)
        floats[:, place : place + width] = array.reshape(size, width)
        place += width
    return Packed(shape, words, None if shape.kind == "int" else ids.cast(pa.large_binary()))


def unpack_rows(packed: Packed, table: FactorTable) -> None:
    """Set the state of the packed ids in a table of the same settings and kind."""
    shape = packed.shape
    floats = np.ascontiguousarray(packed.words[:, 2 : shape.check]).view(np.float32)
    arrays: dict[str, npt.NDArray[Any]] = {"count": packed.words[:, 1].view(np.int64)}
    place = 0
    for name, width in shape.columns:
        part = np.ascontiguousarray(floats[:, place : place + width])
        old = table.arrays[name]
        arrays[name] = part.view(old.dtype).reshape(len(packed), *old.shape[1:])
        place += width
    table.put(packed.ids(), arrays)


def drop_older(packed: Packed) -> Packed:
    """Sort by key, and of several rows of an id keep the last one."""
    order = np.argsort(packed.keys, kind="stable")
    keys = packed.keys[order]
    codes = np.zeros(order.size, np.int64)
    equal = keys[1:] == keys[:-1]
    if packed.names is not None and equal.any():
        # names tell hashes that collide from ids that come twice
        tied = np.zeros(order.size, bool)
        tied[1:] |= equal
        tied[:-1] |= equal
        found = packed.names.take(pa.array(order[tied])).dictionary_encode()
        codes[tied] = found.indices.to_numpy(zero_copy_only=False)
        again = np.lexsort((codes, keys))
        order, codes = order[again], codes[again]
        equal &= codes[1:] == codes[:-1]
    return packed.take(order[np.append(~equal, True)] if order.size else order)
