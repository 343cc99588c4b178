"""Rows counted and grouped by a code, at size: counting sorts shared out over threads (no Spark).

Rows move in two steps, first to buckets of neighbouring codes and then, in a core's own cache, to
their places: to write straight to a hundred thousand places costs a miss a row. What comes out is
the same for any number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sparkml_sgdals import _compiling as nb
from sparkml_sgdals.arrays.threads import ranges, run_all

__all__ = ["count_codes", "group_rows", "starts_of"]

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Column = npt.NDArray[Any]

_BUCKET_BITS: Final = 10
"""Rows are written to 2^10 places at a time, about as many as a core can keep at hand."""
_LARGE: Final = 200_000
"""Rows from which on two steps are faster than one."""


@nb.njit(cache=True, nogil=True)
def _count(codes, counts):  # type: ignore[no-untyped-def]
    """Count codes; whether all lie within."""
    for n in range(codes.size):
        if codes[n] < 0 or codes[n] >= counts.size:
            return False
        counts[codes[n]] += 1
    return True


def count_codes(codes: npt.NDArray[np.integer], size: int, threads: int = 1) -> I64:
    """Count how often each code, 0 to `size` - 1, comes.

    Raises IndexError where a code lies outside.
    """
    parts = ranges(codes.size, threads if codes.size >= _LARGE else 1)
    counts = np.zeros((max(len(parts), 1), size), np.int32)
    jobs = [partial(_count, codes[part], own) for part, own in zip(parts, counts, strict=False)]
    if not all(run_all(jobs, threads)):
        raise IndexError(
            f"positions reach from {codes.min()} to {codes.max()}, the side has {size} ids"
        )
    total: I64 = counts.sum(axis=0, dtype=np.int64)
    return total


def starts_of(counts: I64) -> I64:
    """Where the rows of each code begin, and the last ones end: int64, shape (codes + 1,)."""
    starts = np.zeros(counts.size + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts


@nb.njit(cache=True, nogil=True)
def _count_buckets(codes, shift, counts):  # type: ignore[no-untyped-def]
    for n in range(codes.size):
        counts[codes[n] >> shift] += 1


@nb.njit(cache=True, nogil=True)
def _scatter(codes, one, two, three, shift, places, held):  # type: ignore[no-untyped-def]
    """Put rows to where the next one of their bucket lies, code and columns side by side."""
    third = three.size > 0
    for n in range(codes.size):
        bucket = codes[n] >> shift
        place = places[bucket]
        places[bucket] = place + 1
        held[place, 0] = codes[n]
        held[place, 1] = one[n]
        held[place, 2] = two[n]
        if third:
            held[place, 3] = three[n]


@nb.njit(cache=True, nogil=True)
def _place_held(first, last, starts, held, one, two, three):  # type: ignore[no-untyped-def]
    """Put the rows of codes first..last-1 from their bucket to their places."""
    third = three.size > 0
    places = starts[first:last].copy()
    for n in range(starts[first], starts[last]):
        code = held[n, 0] - first
        place = places[code]
        places[code] = place + 1
        one[place] = held[n, 1]
        two[place] = held[n, 2]
        if third:
            three[place] = held[n, 3]


@nb.njit(cache=True, nogil=True)
def _place(codes, one, two, three, starts, out_one, out_two, out_three):  # type: ignore[no-untyped-def]
    places = starts[:-1].copy()
    third = three.size > 0
    for n in range(codes.size):
        place = places[codes[n]]
        places[codes[n]] = place + 1
        out_one[place] = one[n]
        out_two[place] = two[n]
        if third:
            out_three[place] = three[n]


def group_rows(codes: I32, columns: Sequence[Column], counts: I64, threads: int = 1) -> list[Any]:
    """Columns with the rows of each code side by side, in the order of the codes, else as before.

    Parameters
    ----------
    codes : I32
        int32, shape (n,), as `count_codes` has counted them
    columns : Sequence[Column]
        three, of four bytes a number, each of shape (n,); the last one perhaps (0,), for none
    counts : I64
        of each code
    threads : int
        at most so many at once; they change no result
    """
    starts = starts_of(counts)
    given = [column.view(np.int32) for column in columns]
    found = [np.empty(column.size, np.int32) for column in columns]
    if codes.size < _LARGE:
        (one, two, three), (to_one, to_two, to_three) = given, found
        _place(codes, one, two, three, starts, to_one, to_two, to_three)
    else:
        _group_in_buckets(codes, given, starts, found, threads)
    return [place.view(column.dtype) for place, column in zip(found, columns, strict=True)]


def _group_in_buckets(
    codes: I32, given: Sequence[I32], starts: I64, found: Sequence[I32], threads: int
) -> None:
    size = starts.size - 1
    shift = max((size - 1).bit_length() - _BUCKET_BITS, 0)
    lows = np.minimum(np.arange(0, size + (1 << shift), 1 << shift), size)
    parts = ranges(codes.size, threads)
    counted = np.zeros((len(parts), lows.size - 1), np.int64)
    run_all(
        [
            partial(_count_buckets, codes[part], shift, own)
            for part, own in zip(parts, counted, strict=True)
        ],
        threads,
    )
    places = starts[lows[:-1]] + np.cumsum(counted, axis=0) - counted
    one, two, three = given
    held = np.empty((codes.size, 4 if three.size else 3), np.int32)
    run_all(
        [
            partial(_scatter, codes[part], one[part], two[part], three[part], shift, own, held)
            for part, own in zip(parts, places, strict=True)
        ],
        threads,
    )
    run_all(
        [
            partial(_place_held, first, last, starts, held, *found)
            for first, last in pairwise(lows.tolist())
        ],
        threads,
    )
