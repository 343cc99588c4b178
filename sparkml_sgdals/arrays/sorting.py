"""Dense positions of ids and sorted keys of ratings, at size (driver and executor; no Spark).

Counting sorts, shared out over threads: a comparison sort of 24 million ratings takes longer than
learning them. What comes out is the same for any number of threads.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sparkml_sgdals import _compiling as nb
from sparkml_sgdals.arrays.threads import run_all

__all__ = ["encode_ids", "sort_by_key"]

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

_BUCKET: Final = 8192
"""Ratings of a bucket, about: keys and positions of so many stay in a core's own cache."""
_FINE_BITS: Final = 13
"""A bucket is counted into at most 2^13 places, which are as large as a core's own cache too."""
_LARGE: Final = 50_000
"""Rows from which on these sorts are worth their start."""
_MAX_BUCKETS: Final = 4096
_CROWD: Final = 64
"""Rows that share a counting bucket, from which on a comparison sort is faster than insertion."""


@nb.njit(cache=True, nogil=True)
def _mark(values, low, seen):  # type: ignore[no-untyped-def]
    for n in range(values.size):
        seen[np.int64(values[n]) - low] = True


@nb.njit(cache=True, nogil=True)
def _look_up(values, low, rank, codes):  # type: ignore[no-untyped-def]
    for n in range(values.size):
        codes[n] = rank[np.int64(values[n]) - low]


def encode_ids(column: pa.ChunkedArray, threads: int = 1) -> tuple[pa.Array, I32]:
    """Distinct values in sorted order, and each row's position among them.

    Parameters
    ----------
    column : pa.ChunkedArray
        int32, int64 or string, without nulls
    threads : int
        at most so many at once; they change no result

    Returns
    -------
    ids : int64 or string
    codes : int32, shape (n,), can be written
    """
    if pa.types.is_integer(column.type) and len(column) >= _LARGE:
        bounds = pc.min_max(column).as_py()
        low, width = bounds["min"], bounds["max"] - bounds["min"] + 1
        if width <= 4 * len(column) + 65_536:
            return _encode_dense(column, low, width, threads)
    if pa.types.is_integer(column.type):
        column = column.cast(pa.int64())
    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.unify_dictionaries().combine_chunks()
    found = encoded.dictionary
    order = pc.array_sort_indices(found).to_numpy(zero_copy_only=False)
    rank = np.empty(len(found), np.int32)
    rank[order] = np.arange(len(found), dtype=np.int32)
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    return found.take(pa.array(order)), rank[codes] if len(found) else np.empty(0, np.int32)


def _encode_dense(
    column: pa.ChunkedArray, low: int, width: int, threads: int
) -> tuple[pa.Array, I32]:
    """`encode_ids` by a table of all values from the least to the greatest."""
    # zero-copy views are read-only all of them, which spares Numba a second version
    views = [chunk.to_numpy() for chunk in column.chunks if len(chunk)]
    seen = np.zeros(width, np.bool_)
    run_all([partial(_mark, view, low, seen) for view in views], threads)
    found = np.flatnonzero(seen)
    rank = np.empty(width, np.int32)
    rank[found] = np.arange(found.size, dtype=np.int32)
    ends = np.cumsum([0, *(view.size for view in views)])
    codes = np.empty(int(ends[-1]), np.int32)
    run_all(
        [
            partial(_look_up, view, low, rank, codes[a:b])
            for view, (a, b) in zip(views, pairwise(ends), strict=True)
        ],
        threads,
    )
    return pa.array(found + low, pa.int64()), codes


@nb.njit(cache=True, nogil=True)
def _count_buckets(keys, low, shift, counts):  # type: ignore[no-untyped-def]
    for n in range(keys.size):
        counts[(keys[n] - low) >> shift] += 1


@nb.njit(cache=True, nogil=True)
def _scatter(first, keys, low, shift, places, out_keys, out_rows):  # type: ignore[no-untyped-def]
    for n in range(keys.size):
        bucket = (keys[n] - low) >> shift
        place = places[bucket]
        places[bucket] = place + 1
        out_keys[place] = keys[n]
        out_rows[place] = first + n


@nb.njit(cache=True, nogil=True)
def _sort_buckets(starts, low, shift, keys, rows):  # type: ignore[no-untyped-def]
    """Sort each bucket by key in place; a bucket's keys agree in what is above `shift`."""
    longest = np.int64(0)
    for b in range(starts.size - 1):
        longest = max(longest, starts[b + 1] - starts[b])
    held_keys = np.empty(longest, np.uint64)
    held_rows = np.empty(longest, np.int32)
    room = np.empty((1 << _FINE_BITS) + 1, np.int64)
    for b in range(starts.size - 1):
        begin, size = starts[b], starts[b + 1] - starts[b]
        if size < 2:
            continue
        # as many places as keys: to clear more would cost more than to sort
        bits = 0
        while bits < _FINE_BITS and (np.int64(1) << bits) < size:
            bits += 1
        fine = np.uint64(0)
        if shift > np.uint64(bits):
            fine = shift - np.uint64(bits)
        mask = (np.uint64(1) << np.uint64(bits)) - np.uint64(1)
        places = room[: (np.int64(1) << bits) + 1]
        places[:] = 0
        for n in range(size):
            places[(((keys[begin + n] - low) >> fine) & mask) + np.uint64(1)] += 1
        for p in range(1, places.size):
            places[p] += places[p - 1]
        for n in range(size):
            p = ((keys[begin + n] - low) >> fine) & mask
            place = places[p]
            places[p] = place + 1
            held_keys[place] = keys[begin + n]
            held_rows[place] = rows[begin + n]
        # places[p] is now where the rows of p end
        first = np.int64(0)
        for p in range(places.size - 1):
            last = places[p]
            if last - first > _CROWD:
                order = np.argsort(held_keys[first:last], kind="mergesort")
                for n in range(last - first):
                    keys[begin + first + n] = held_keys[first + order[n]]
                    rows[begin + first + n] = held_rows[first + order[n]]
            else:
                for n in range(first, last):
                    key, row = held_keys[n], held_rows[n]
                    m = n
                    while m > first and keys[begin + m - 1] > key:
                        keys[begin + m] = keys[begin + m - 1]
                        rows[begin + m] = rows[begin + m - 1]
                        m -= 1
                    keys[begin + m] = key
                    rows[begin + m] = row
            first = last


def sort_by_key(keys: U64, threads: int = 1) -> tuple[U64, I32]:
    """Sort keys; fastest where they are spread evenly, as hashes are.

    Parameters
    ----------
    keys : U64
        uint64, shape (n,), n below 2^31
    threads : int
        at most so many at once; they change no result

    Returns
    -------
    keys : in ascending order
    rows : int32, shape (n,), where each came from; rows of equal keys in any order
    """
    size = keys.size
    if size >= 2**31:
        raise ValueError(f"{size} ratings are more than one task can hold: lower maxRatingsPerTask")
    if size < _LARGE:
        order = np.argsort(keys, kind="stable").astype(np.int32)
        return keys[order], order
    sorted_keys, rows = np.empty(size, np.uint64), np.empty(size, np.int32)
    low = keys.min()
    bits = int(keys.max() - low).bit_length()
    # two at least, as a shift by all 64 bits is none
    depth = min(max(size // _BUCKET, 2), _MAX_BUCKETS).bit_length() - 1
    buckets: int = 1 << depth
    shift = np.uint64(bits - depth if bits > depth else 0)
    parts = list(pairwise(np.linspace(0, size, threads + 1).astype(np.int64).tolist()))
    counts = np.zeros((len(parts), buckets), np.int64)
    run_all(
        [
            partial(_count_buckets, keys[a:b], low, shift, own)
            for (a, b), own in zip(parts, counts, strict=True)
        ],
        threads,
    )
    starts = np.zeros(buckets + 1, np.int64)
    np.cumsum(counts.sum(axis=0), out=starts[1:])
    places = starts[:-1] + np.cumsum(counts, axis=0) - counts
    run_all(
        [
            partial(_scatter, a, keys[a:b], low, shift, own, sorted_keys, rows)
            for (a, b), own in zip(parts, places, strict=True)
        ],
        threads,
    )
    cuts = np.searchsorted(starts, np.linspace(0, size, 4 * threads + 1)[1:-1])
    run_all(
        [
            partial(_sort_buckets, starts[a : b + 1], low, shift, sorted_keys, rows)
            for a, b in pairwise([0, *cuts.tolist(), buckets])
        ],
        threads,
    )
    return sorted_keys, rows
