"""Dense positions of ids and sorted keys of ratings, at size (driver and executor; no Spark).

Counting sorts, shared out over threads: a comparison sort of 24 million ratings takes longer than
learning them. What comes out is the same for any number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sparkml_sgdals import _compiling as nb
from sparkml_sgdals.arrays.threads import ranges, run_all

__all__ = ["encode_ids", "sort_by_key", "sort_columns"]

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
_TOGETHER: Final = 1_000_000
"""Rows of a column that a thread takes at a time."""
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
        # zero-copy views are read-only all of them, which spares Numba a second version
        views = [
            chunk.to_numpy()[part]
            for chunk in column.chunks
            for part in ranges(len(chunk), -(-len(chunk) // _TOGETHER))
        ]
        bounds = run_all([partial(_bounds, view) for view in views], threads)
        low = min(least for least, _ in bounds)
        width = max(greatest for _, greatest in bounds) - low + 1
        if width <= 4 * len(column) + 65_536:
            return _encode_dense(views, low, width, threads)
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


def _bounds(view: npt.NDArray[np.integer]) -> tuple[int, int]:
    return int(view.min()), int(view.max())


def _encode_dense(
    views: list[npt.NDArray[np.integer]], low: int, width: int, threads: int
) -> tuple[pa.Array, I32]:
    """`encode_ids` by a table of all values from the least to the greatest."""
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
def _scatter_columns(keys, one, two, three, four, low, shift, places, out_keys, held):  # type: ignore[no-untyped-def]
    """`_scatter` that takes the columns along, side by side: in a bucket they are at hand."""
    fourth = four.size > 0
    for n in range(keys.size):
        bucket = (keys[n] - low) >> shift
        place = places[bucket]
        places[bucket] = place + 1
        out_keys[place] = keys[n]
        held[place, 0] = one[n]
        held[place, 1] = two[n]
        held[place, 2] = three[n]
        if fourth:
            held[place, 3] = four[n]


@nb.njit(cache=True, nogil=True)
def _take_held(begin, rows, held, one, two, three, four):  # type: ignore[no-untyped-def]
    fourth = four.size > 0
    for n in range(rows.size):
        row = rows[n]
        one[begin + n] = held[row, 0]
        two[begin + n] = held[row, 1]
        three[begin + n] = held[row, 2]
        if fourth:
            four[begin + n] = held[row, 3]


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
    _check_size(keys.size)
    if keys.size < _LARGE:
        order = np.argsort(keys, kind="stable").astype(np.int32)
        return keys[order], order
    cut = _Buckets.of(keys, threads)
    sorted_keys, rows = np.empty(keys.size, np.uint64), np.empty(keys.size, np.int32)
    run_all(
        [
            partial(
                _scatter, part.start, keys[part], cut.low, cut.shift, own, sorted_keys, rows
            )
            for part, own in zip(cut.parts, cut.places, strict=True)
        ],
        threads,
    )  # fmt: skip
    run_all(
        [
            partial(_sort_buckets, cut.starts[a : b + 1], cut.low, cut.shift, sorted_keys, rows)
            for a, b in cut.bucket_ranges(4 * threads)
        ],
        threads,
    )
    return sorted_keys, rows


def sort_columns(
    keys: U64, columns: Sequence[npt.NDArray[Any]], threads: int = 1
) -> tuple[U64, list[npt.NDArray[Any]]]:
    """`sort_by_key`, and columns in the order of their keys.

    Parameters
    ----------
    keys : U64
        as there
    columns : Sequence[npt.NDArray[Any]]
        four, of four bytes a number, each of shape (n,); the last one perhaps (0,), for none
    threads : int
        at most so many at once; they change no result
    """
    _check_size(keys.size)
    if keys.size < _LARGE:
        order = np.argsort(keys, kind="stable")
        return keys[order], [column[order] if column.size else column for column in columns]
    given = [column.view(np.int32) for column in columns]
    found = [np.empty(column.size, np.int32) for column in columns]
    cut = _Buckets.of(keys, threads)
    sorted_keys = np.empty(keys.size, np.uint64)
    held = np.empty((keys.size, 4 if given[3].size else 3), np.int32)

    def scatter(part: slice, own: I64) -> None:
        one, two, three, four = (column[part] for column in given)
        _scatter_columns(
            keys[part], one, two, three, four, cut.low, cut.shift, own, sorted_keys, held
        )

    run_all(
        [partial(scatter, part, own) for part, own in zip(cut.parts, cut.places, strict=True)],
        threads,
    )

    def sort(first: int, last: int) -> None:
        begin, end = cut.starts[first], cut.starts[last]
        rows = np.arange(begin, end, dtype=np.int32)
        starts = cut.starts[first : last + 1] - begin
        _sort_buckets(starts, cut.low, cut.shift, sorted_keys[begin:end], rows)
        _take_held(begin, rows, held, *found)

    # few buckets at a time, so that their rows are still in the core's own cache
    run_all([partial(sort, *some) for some in cut.bucket_ranges(cut.starts.size // 8)], threads)
    return sorted_keys, [out.view(column.dtype) for out, column in zip(found, columns, strict=True)]


def _check_size(size: int) -> None:
    if size >= 2**31:
        raise ValueError(f"{size} ratings are more than one task can hold: lower maxRatingsPerTask")


@dataclass(frozen=True)
class _Buckets:
    """Where keys go by their first bits.

    Attributes
    ----------
    low, shift : np.uint64
        a key's bucket is (key - low) >> shift
    starts : I64
        int64, where each bucket begins, and the last one ends
    parts : list[slice]
        keys that a thread moves
    places : I64
        int64, shape (parts, buckets), where those of a part begin in a bucket
    """

    low: np.uint64
    shift: np.uint64
    starts: I64
    parts: list[slice]
    places: I64

    @classmethod
    def of(cls, keys: U64, threads: int) -> _Buckets:
        """Count keys."""
        parts = ranges(keys.size, max(threads, 1))
        bounds = run_all([partial(_bounds, keys[part]) for part in parts], threads)
        low = np.uint64(min(least for least, _ in bounds))
        bits = (max(greatest for _, greatest in bounds) - int(low)).bit_length()
        # two at least, as a shift by all 64 bits is none
        depth = min(max(keys.size // _BUCKET, 2), _MAX_BUCKETS).bit_length() - 1
        buckets: int = 1 << depth
        shift = np.uint64(bits - depth if bits > depth else 0)
        counts = np.zeros((len(parts), buckets), np.int64)
        run_all(
            [
                partial(_count_buckets, keys[part], low, shift, own)
                for part, own in zip(parts, counts, strict=True)
            ],
            threads,
        )
        starts = np.zeros(buckets + 1, np.int64)
        np.cumsum(counts.sum(axis=0), out=starts[1:])
        return cls(low, shift, starts, parts, starts[:-1] + np.cumsum(counts, axis=0) - counts)

    def bucket_ranges(self, wanted: int) -> list[tuple[int, int]]:
        """Cut the buckets into about so many ranges, first to before last, of about equal keys."""
        shares = np.linspace(0, self.starts[-1], max(wanted, 1) + 1)[1:-1]
        cuts = np.searchsorted(self.starts, shares).tolist()
        return [some for some in pairwise([0, *cuts, self.starts.size - 1]) if some[0] < some[1]]
