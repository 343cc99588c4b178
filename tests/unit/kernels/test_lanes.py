"""Rows padded and turned into columns, against NumPy."""

from __future__ import annotations

import numba as nb
import numpy as np
import pytest

from sparkml_sgdals.kernels.lanes import padded_rows, padded_width, transpose_lanes
from sparkml_sgdals.kernels.vectors import LANES

F32 = np.float32


@nb.njit
def turn(source, rows, stride):  # type: ignore[no-untyped-def]
    """The rows named, as columns `stride` apart, of which one more is left free at either end."""
    wide = source.shape[1]
    columns = np.zeros(wide * stride + 2, np.float32)
    for first in range(0, rows.size, LANES):
        for f in range(0, wide, LANES):
            transpose_lanes(
                columns, 1 + f * stride + first, stride, source, wide, f, rows, first
            )  # fmt: skip
    return columns


@pytest.mark.parametrize("width", [1, 8, 11, 17])
def test_rows_are_padded_with_zeros_on_cache_lines(width: int) -> None:
    """Whatever the padding was before; the values stay."""
    matrix = np.random.default_rng(1).normal(size=(5, width)).astype(F32)
    padded = padded_rows(matrix)
    assert padded.shape == (5, padded_width(width))
    assert padded.flags.c_contiguous
    assert padded.ctypes.data % 64 == 0
    assert (padded[:, :width] == matrix).all()
    assert not padded[:, width:].any()


def test_spare_rows_are_zeros() -> None:
    """Below the others."""
    padded = padded_rows(np.ones((3, 5), F32), spare=2)
    assert padded.shape == (5, 8)
    assert padded[:3, :5].all()
    assert not padded[3:].any()


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_rows_become_columns(dtype: type[np.integer]) -> None:
    """Every value at its place, and nothing written besides."""
    rng = np.random.default_rng(3)
    source = rng.normal(size=(30, 16)).astype(F32)
    rows = rng.integers(0, 30, 24).astype(dtype)
    columns = turn(source, rows, 27)
    inside = columns[1:-1].reshape(16, 27)
    assert (inside[:, :24] == source[rows].T).all()
    assert not inside[:, 24:].any()
    assert columns[0] == columns[-1] == 0.0
