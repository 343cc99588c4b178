"""Rows of factors laid out for vectors of eight values: padded, or turned into columns. No Spark.

Rows padded with zeros to a multiple of eight values, each at the start of a cache line or half-way
of one, are taken by whole vectors, without a rest.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import types

from sparkml_sgdals import _compiling as nb
from sparkml_sgdals.kernels.vectors import LANES, code_of, lanes_at, load, store

__all__ = [
    "last_columns",
    "padded_rows",
    "padded_width",
    "transpose_lanes",
    "weigh_columns",
]

F32 = npt.NDArray[np.float32]

_LINE: Final = 64
"""bytes of a cache line"""
_EXCHANGES: Final = (
    (1, (0, 8, 1, 9, 4, 12, 5, 13), (2, 10, 3, 11, 6, 14, 7, 15)),
    (2, (0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15)),
    (4, (0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15)),
)
"""Which vectors of a square of 8 x 8 exchange values, and which, until rows are columns."""
_COLUMNS: Final = (0, 2, 1, 3, 4, 6, 5, 7)
"""Where the exchanges leave column 0, 1 and so on."""


def padded_width(width: int) -> int:
    """Return the next multiple of `LANES`."""
    return -(-width // LANES) * LANES


def padded_rows(matrix: F32, spare: int = 0) -> F32:
    """Return a copy of a matrix, aligned to a cache line, its columns a multiple of eight.

    Parameters
    ----------
    matrix : F32
        float32, shape (rows, width)
    spare : int
        rows of zeros after the others

    Returns
    -------
    float32, shape (rows + spare, padded_width(width)), C-contiguous, zeros beyond the matrix
    """
    rows, width = matrix.shape
    wide = padded_width(width)
    held = np.empty((rows + spare) * wide + _LINE // 4, np.float32)
    first = -held.ctypes.data % _LINE // 4
    padded = held[first : first + (rows + spare) * wide].reshape(rows + spare, wide)
    padded[:rows, :width] = matrix
    padded[:rows, width:] = 0.0
    padded[rows:] = 0.0
    return padded


def _shuffled(builder: Any, one: Any, two: Any, places: tuple[int, ...]) -> Any:
    mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), list(places))
    return builder.shuffle_vector(one, two, mask)


@code_of
def transpose_lanes(_typing, columns, at, stride, source, width, column, rows, first):  # type: ignore[no-untyped-def]
    """Put eight columns of eight rows of a matrix in lanes, one column after another.

    columns[at + k stride + n] = source[rows[first + n] width + column + k], as if flat, for n and k
    in 0..7. Nothing checks that the places lie inside.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kinds, word = signature.args, ir.IntType(64)
        begin, step, wide, offset, start = (
            context.cast(builder, given[n], kinds[n], types.int64) for n in (1, 2, 4, 5, 7)
        )
        named = context.make_array(kinds[6])(context, builder, given[6])
        vectors = []
        for n in range(LANES):
            row = builder.load(builder.gep(named.data, [builder.add(start, word(n))]))
            row = context.cast(builder, row, kinds[6].dtype, types.int64)
            place = builder.add(builder.mul(row, wide), offset)
            pointer = lanes_at(context, builder, given[3], kinds[3], place, types.int64)
            vectors.append(builder.load(pointer, align=4))
        for apart, low, high in _EXCHANGES:
            for n in range(LANES):
                if not n & apart:
                    pair = vectors[n], vectors[n + apart]
                    vectors[n] = _shuffled(builder, *pair, low)
                    vectors[n + apart] = _shuffled(builder, *pair, high)
        for k, vector in enumerate(_COLUMNS):
            place = builder.add(begin, builder.mul(step, word(k)))
            target = lanes_at(context, builder, given[0], kinds[0], place, types.int64)
            builder.store(vectors[vector], target, align=4)
        return context.get_dummy_value()

    return types.void(columns, at, stride, source, width, column, rows, first), generate


@nb.njit(cache=True, nogil=True, inline="always")
def last_columns(columns, stride, source, partners, begin, count, some):  # type: ignore[no-untyped-def]
    """Put in lanes the rows that are left of `count` rows, once `transpose_lanes` has had the rest.

    Parameters
    ----------
    columns
        float32, as flat: column f of the rows begins at f stride, with room for a whole vector
    stride
        int64
    source
        float32, `padded_rows`
    partners
        integers, rows of `source`: those at begin..begin+count-1
    begin, count
        int64
    some
        int64, shape (LANES,), work space
    """
    wide = source.shape[1]
    rest = count % LANES
    if rest:
        for n in range(LANES):
            some[n] = partners[begin + count - rest + (n if n < rest else 0)]
        for f in range(0, wide, LANES):
            transpose_lanes(columns, f * stride + count - rest, stride, source, wide, f, some, 0)


@nb.njit(cache=True, nogil=True, inline="always")
def weigh_columns(columns, stride, roots, width, count, weighted):  # type: ignore[no-untyped-def]
    """Multiply the first `width` columns with the roots of the rows' weights, in place.

    Parameters
    ----------
    columns, stride, count
        as `last_columns`
    roots
        float32, zeros from `count` to the end of the last vector
    width
        int64
    weighted
        whether any root is not 1: else only the last vector is, where it goes beyond the rows
    """
    rest = count % LANES
    if weighted or rest:
        for f in range(width):
            for t in range(0 if weighted else count - rest, count, LANES):
                place = f * stride + t
                store(columns, place, load(roots, t) * load(columns, place))
