"""Ratings as columns: encoded ids, one canonical order, layouts by id (driver and executor).

A table of ratings comes in as Arrow with the columns `user`, `item` (int64 or string), `rating`
(float32) and, where the user named them, `time` (int64) and `weight` (float32). Nothing here
depends on the order or the partitioning in which the rows arrived.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals import _compiling as nb
from sparkml_sgdals.arrays.grouping import count_codes, group_rows, starts_of
from sparkml_sgdals.arrays.hashing import id_keys, pair_hash
from sparkml_sgdals.arrays.sorting import encode_ids, sort_columns
from sparkml_sgdals.arrays.threads import ranges, run_all

__all__ = ["Layout", "Ratings", "encode_ratings", "layout_by"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
_SIGN: Final = np.uint64(1 << 63)
_TOGETHER: Final = 1_000_000
"""ratings that a thread takes at a time, and whose sums are taken in one order"""


@dataclass(frozen=True)
class Ratings:
    """Ratings in the order of learning.

    Attributes
    ----------
    user_ids, item_ids : pa.Array
        the distinct ids, sorted; Arrow arrays of int64 or string
    users, items : I32
        int32, shape (n,), positions in the two arrays
    values : F32
        float32, shape (n,), the ratings
    weights : F32
        float32, shape (n,), or (0,) where every weight is one
    timed : bool
        whether the order is that of times, not of a hash
    times : I64
        int64, shape (n,), times that were to be kept, rising; else (0,)
    """

    user_ids: pa.Array
    item_ids: pa.Array
    users: I32
    items: I32
    values: F32
    weights: F32
    timed: bool = False
    times: I64 = field(default_factory=lambda: np.empty(0, np.int64))

    def __len__(self) -> int:
        """Return the number of ratings."""
        return int(self.values.size)

    def moments(self, first: int | None = None, threads: int = 1) -> tuple[float, float, float]:
        """Weight, mean and sum of weighted squares about it, of the `first` ratings or of all.

        At most `threads` at once; they change no result.
        """
        size = len(self) if first is None else min(first, len(self))
        parts = _parts(size)
        sums = run_all([partial(self._sums, part) for part in parts], threads)
        total = math.fsum(weight for weight, _ in sums)
        if total <= 0.0:
            return 0.0, 0.0, 0.0
        mean = math.fsum(sum_ for _, sum_ in sums) / total
        squares = run_all([partial(self._squares, part, mean) for part in parts], threads)
        return total, mean, math.fsum(squares)

    def _sums(self, part: slice) -> tuple[float, float]:
        values = self.values[part].astype(np.float64)
        if not self.weights.size:
            return float(values.size), float(np.sum(values))
        weights = self.weights[part].astype(np.float64)
        return float(weights.sum()), float(np.sum(values * weights))

    def _squares(self, part: slice, mean: float) -> float:
        squares = (self.values[part].astype(np.float64) - mean) ** 2
        if self.weights.size:
            squares *= self.weights[part].astype(np.float64)
        return float(np.sum(squares))

    def value_range(self) -> tuple[float, float]:
        """Smallest and largest rating that has a weight; (inf, -inf) without one."""
        return self._value_range

    @cached_property
    def _value_range(self) -> tuple[float, float]:
        values = self.values[self.weights > 0] if self.weights.size else self.values
        if not values.size:
            return float("inf"), float("-inf")
        return float(values.min()), float(values.max())


@dataclass(frozen=True)
class Layout:
    """Ratings grouped by the id of one side (CSR), in the order of learning within an id.

    Attributes
    ----------
    starts : I64
        int64, shape (ids + 1,): ratings of id x lie at starts[x]..starts[x+1]-1
    partners : I32
        int32, shape (n,), the other side's positions
    values, weights : F32
        float32, as in `Ratings`
    """

    starts: I64
    partners: I32
    values: F32
    weights: F32

    def counts(self) -> I64:
        """Ratings of each id, int64."""
        return np.diff(self.starts)

    @cached_property
    def reach(self) -> tuple[int, int]:
        """Least and greatest partner, looked for once; (0, -1) without ratings."""
        if not self.partners.size:
            return 0, -1
        return int(self.partners.min()), int(self.partners.max())


def encode_ratings(table: pa.Table, threads: int = 1, keep_times: bool = False) -> Ratings:
    """Encode the ids of a table of ratings and put it into its canonical order.

    The order is total: by time where there is a column `time`, then a hash of (user, item), the
    two ids, the rating and the weight, so that equal keys mean equal rows.

    Parameters
    ----------
    table : pa.Table
        as above; ids and time may be int32 as well
    threads : int
        at most so many at once; they change no result
    keep_times : bool
        whether times, where there are any, are told besides their order
    """
    user_ids, users = encode_ids(table.column("user"), threads)
    item_ids, items = encode_ids(table.column("item"), threads)
    values = _numpy(table.column("rating"), np.float32, threads)
    weights = (
        _numpy(table.column("weight"), np.float32, threads)
        if "weight" in table.column_names
        else np.empty(0, np.float32)
    )
    user_keys, item_keys = id_keys(user_ids), id_keys(item_ids)
    timed = "time" in table.column_names
    in_order, (users, items, values, weights) = sort_columns(
        _numpy(table.column("time"), np.int64, threads).view(np.uint64) ^ _SIGN
        if timed
        else _pair_hashes(user_keys, item_keys, users, items, threads),
        (users, items, values, weights), threads,
    )  # fmt: skip
    tied = np.zeros(in_order.size, np.bool_)
    marks = [partial(_mark_tied, in_order, p.start, p.stop, tied) for p in _parts(in_order.size)]
    if any(run_all(marks, threads)):
        rows = np.flatnonzero(tied)
        hashes = pair_hash(user_keys, item_keys, users[rows], items[rows])
        keys = [values[rows], items[rows], users[rows], hashes, in_order[rows]]
        if weights.size:
            keys.insert(0, weights[rows])
        order = rows[np.lexsort(keys)]
        for column in (users, items, values, weights):
            if column.size:
                column[rows] = column[order]
    found = Ratings(user_ids, item_ids, users, items, values, weights, timed)
    if timed and keep_times:
        return replace(found, times=(in_order ^ _SIGN).view(np.int64))
    return found


def _pair_hashes(user_keys: U64, item_keys: U64, users: I32, items: I32, threads: int) -> U64:
    hashes = np.empty(users.size, np.uint64)

    def add(part: slice) -> None:
        hashes[part] = pair_hash(user_keys, item_keys, users[part], items[part])

    run_all([partial(add, part) for part in _parts(users.size)], threads)
    return hashes


@nb.njit(cache=True, nogil=True)
def _mark_tied(keys, first, last, tied):  # type: ignore[no-untyped-def]
    """Mark places, of sorted keys, whose key is that of a neighbour; whether there are any."""
    found = False
    # the one before `first` may be marked by two threads, to the same end
    for n in range(max(first, 1), last):
        if keys[n] == keys[n - 1]:
            tied[n] = tied[n - 1] = True
            found = True
    return found


def layout_by(
    own: I32, other: I32, values: F32, weights: F32, num_ids: int, threads: int = 1
) -> Layout:
    """Group ratings by `own` with a counting sort, which keeps the order within an id.

    Parameters
    ----------
    own, other : I32
        int32, shape (n,), positions 0..num_ids-1 on the side to group by, and partners' positions
        on the other
    values, weights : F32
        float32, shape (n,), of the ratings; weights of shape (0,) where every one is 1
    num_ids : int
        ids of the side to group by, those without ratings included
    threads : int
        at most so many at once; they change no result
    """
    counts = count_codes(own, num_ids, threads)
    grouped = group_rows(own, (other, values, weights), counts, threads)
    return Layout(starts_of(counts), *grouped)


def _parts(size: int) -> list[slice]:
    """Ranges of a column, as many as threads may take one after another."""
    return ranges(size, -(-size // _TOGETHER))


def _numpy(column: pa.ChunkedArray, dtype: npt.DTypeLike, threads: int) -> npt.NDArray[Any]:
    """Return a copy of a column, which can be written."""
    values = np.empty(len(column), dtype)

    def copy(chunk: pa.Array, first: int, part: slice) -> None:
        values[first + part.start : first + part.stop] = chunk[part].to_numpy(zero_copy_only=False)

    jobs, first = [], 0
    for chunk in column.chunks:
        jobs += [partial(copy, chunk, first, part) for part in _parts(len(chunk))]
        first += len(chunk)
    run_all(jobs, threads)
    return values
