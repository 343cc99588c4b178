"""Ratings as columns: encoded ids, one canonical order, layouts by id (driver and executor).

A table of ratings comes in as Arrow with the columns `user`, `item` (int64 or string), `rating`
(float32) and, where the user named them, `time` (int64) and `weight` (float32). Nothing here
depends on the order or the partitioning in which the rows arrived.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals import _compiling as nb
from sparkml_sgdals.arrays.hashing import id_keys, pair_hash
from sparkml_sgdals.arrays.sorting import encode_ids, sort_by_key
from sparkml_sgdals.arrays.threads import run_all

__all__ = ["Layout", "Ratings", "encode_ratings", "layout_by"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
_SIGN: Final = np.uint64(1 << 63)


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
    """

    user_ids: pa.Array
    item_ids: pa.Array
    users: I32
    items: I32
    values: F32
    weights: F32
    timed: bool = False

    def __len__(self) -> int:
        """Return the number of ratings."""
        return int(self.values.size)

    def moments(self, first: int | None = None) -> tuple[float, float, float]:
        """Weight, mean and sum of weighted squares about it, of the `first` ratings or of all."""
        values = self.values[:first].astype(np.float64)
        weights = self.weights[:first].astype(np.float64) if self.weights.size else None
        total = float(values.size) if weights is None else float(weights.sum())
        if total <= 0.0:
            return 0.0, 0.0, 0.0
        mean = float(np.sum(values if weights is None else values * weights)) / total
        squares = (values - mean) ** 2
        return total, mean, float(np.sum(squares if weights is None else squares * weights))

    def value_range(self) -> tuple[float, float]:
        """Smallest and largest rating that has a weight; (inf, -inf) without one."""
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


def encode_ratings(table: pa.Table, threads: int = 1) -> Ratings:
    """Encode the ids of a table of ratings and put it into its canonical order.

    The order is total: by time where there is a column `time`, then a hash of (user, item), the
    two ids, the rating and the weight, so that equal keys mean equal rows.

    Parameters
    ----------
    table : pa.Table
        as above; ids and time may be int32 as well
    threads : int
        at most so many at once; they change no result
    """
    user_ids, users = encode_ids(table.column("user"), threads)
    item_ids, items = encode_ids(table.column("item"), threads)
    values = _numpy(table.column("rating"), np.float32)
    weights = (
        _numpy(table.column("weight"), np.float32)
        if "weight" in table.column_names
        else np.empty(0, np.float32)
    )
    time = _numpy(table.column("time"), np.int64) if "time" in table.column_names else None
    user_keys, item_keys = id_keys(user_ids), id_keys(item_ids)
    if time is None:
        primary = pair_hash(user_keys, item_keys, users, items)
    else:
        primary = time.view(np.uint64) ^ _SIGN
    in_order, order = sort_by_key(primary, threads)
    tied, found = _tied(in_order)
    if found:
        rows = order[tied]
        hashes = pair_hash(user_keys, item_keys, users[rows], items[rows])
        keys = [values[rows], items[rows], users[rows], hashes, in_order[tied]]
        if weights.size:
            keys.insert(0, weights[rows])
        order[tied] = rows[np.lexsort(keys)]
    columns = [users, items, values, *([weights] if weights.size else [])]
    ordered = run_all([partial(_take, column, order) for column in columns], threads)
    users, items, values = ordered[:3]
    return Ratings(
        user_ids, item_ids, users, items, values, ordered[3] if weights.size else weights,
        time is not None,
    )  # fmt: skip


@nb.njit(cache=True, nogil=True)
def _take(column, order):  # type: ignore[no-untyped-def]
    # np.take widens the order to int64 first
    taken = np.empty(order.size, column.dtype)
    for n in range(order.size):
        taken[n] = column[order[n]]
    return taken


@nb.njit(cache=True, nogil=True)
def _tied(keys):  # type: ignore[no-untyped-def]
    """Places whose key, of sorted ones, is that of a neighbour."""
    tied = np.zeros(keys.size, np.bool_)
    found = 0
    for n in range(1, keys.size):
        if keys[n] == keys[n - 1]:
            found += 2 if not tied[n - 1] else 1
            tied[n] = tied[n - 1] = True
    return tied, found


@nb.njit(cache=True, nogil=True)
def _place(own, other, values, weights, starts, partners, grouped, grouped_weights):  # type: ignore[no-untyped-def]
    next_place = starts[:-1].copy()
    for n in range(own.size):
        place = next_place[own[n]]
        next_place[own[n]] = place + 1
        partners[place] = other[n]
        grouped[place] = values[n]
        if weights.size > 0:
            grouped_weights[place] = weights[n]


def layout_by(own: I32, other: I32, values: F32, weights: F32, num_ids: int) -> Layout:
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
    """
    if own.size and (int(own.min()) < 0 or int(own.max()) >= num_ids):
        raise IndexError(f"positions reach to {own.max()}, the side has {num_ids} ids")
    starts = np.zeros(num_ids + 1, np.int64)
    np.cumsum(np.bincount(own, minlength=num_ids), out=starts[1:])
    partners = np.empty(own.size, np.int32)
    grouped = np.empty(own.size, np.float32)
    grouped_weights = np.empty(weights.size, np.float32)
    _place(own, other, values, weights, starts, partners, grouped, grouped_weights)
    return Layout(starts, partners, grouped, grouped_weights)


def _numpy(column: pa.ChunkedArray, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = column.to_numpy()
    return values.astype(dtype, copy=not values.flags.writeable)
