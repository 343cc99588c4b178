"""Put, append and add up by row: no equations, but too slow without compiling (no Spark)."""

from __future__ import annotations

import numpy as np

from sparkml_sgdals import _compiling as nb

__all__ = [
    "add_relative",
    "add_relative_by_id",
    "append_lists",
    "drop_listed",
    "put_columns",
    "put_rows",
]


@nb.njit(cache=True, nogil=True)
def add_relative(own, other, squares, factors, sums):  # type: ignore[no-untyped-def]
    """Add up each id's squares in units of its partners' factors, in the order of the ratings."""
    for n in range(own.size):
        sums[own[n]] += squares[n] / factors[other[n]]


@nb.njit(cache=True, nogil=True)
def add_relative_by_id(first, last, starts, partners, squares, factors, sums):  # type: ignore[no-untyped-def]
    """`add_relative` of ids first..last-1, to the same bits, of ratings that a layout groups."""
    for x in range(first, last):
        total = 0.0
        for t in range(starts[x], starts[x + 1]):
            total += squares[t] / factors[partners[t]]
        sums[x] = total


# Without the interpreter's lock: a page that the system is writing out may hold up who writes to
# it for as long as a disk takes, and no request must wait for that.
@nb.njit(cache=True, nogil=True)
def put_rows(to, rows, values):  # type: ignore[no-untyped-def]
    """Assign to[rows[n]] = values[n] for each n."""
    for n in range(rows.size):
        for f in range(to.shape[1]):
            to[rows[n], f] = values[n, f]


@nb.njit(cache=True, nogil=True)
def put_columns(to, columns, values):  # type: ignore[no-untyped-def]
    """Assign to[:, columns[n]] = values[n] for each n: rows of values become columns."""
    for f in range(values.shape[1]):
        for n in range(columns.size):
            to[f, columns[n]] = values[n, f]


@nb.njit(cache=True, nogil=True)
def append_lists(places, lengths, values, ends, keys):  # type: ignore[no-untyped-def]
    """Put lists, which lie in `values` one after another, behind those that places hold."""
    begin = 0
    for n in range(places.size):
        end = ends[places[n]]
        for j in range(lengths[n]):
            keys[end + j] = values[begin + j]
        ends[places[n]] = end + lengths[n]
        begin += lengths[n]


@nb.njit(cache=True, nogil=True)
def drop_listed(starts, known, keys, sizes):  # type: ignore[no-untyped-def]
    """Leave of each list its first `known` keys and what else is in it, once and rising."""
    for x in range(known.size):
        begin = starts[x]
        first = begin + known[x]
        old = np.sort(keys[begin:first])
        new = np.sort(keys[first : starts[x + 1]])
        size = known[x]
        j = 0
        for n in range(new.size):
            if n > 0 and new[n] == new[n - 1]:
                continue
            while j < old.size and old[j] < new[n]:
                j += 1
            if j == old.size or old[j] != new[n]:
                keys[begin + size] = new[n]
                size += 1
        sizes[x] = size
