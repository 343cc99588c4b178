"""Rows of eight values at a time against NumPy."""

from __future__ import annotations

import numba as nb
import numpy as np
import pytest

from sparkml_sgdals.lanes import (
    LANES,
    add_lanes,
    add_products,
    multiply_lanes,
    padded_rows,
    padded_width,
    transpose_lanes,
)

F32 = np.float32


@nb.njit
def add(sums, source, factors, wide):  # type: ignore[no-untyped-def]
    """sums += factors @ source, whatever the number of whole lanes."""
    for row in range(factors.size):
        for f in range(0, wide, LANES):
            add_lanes(sums, f, source, row * wide + f, factors[row])


@nb.njit
def multiply(sums, one, two):  # type: ignore[no-untyped-def]
    """sums += one * two, then one *= two, but for one value at either end."""
    for n in range(1, sums.size - 1, LANES):
        add_products(sums, n, one, n, two, n - 1)
        multiply_lanes(one, n, two, n - 1)


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


def test_products() -> None:
    """Value by value, and nothing written besides."""
    sums, one = np.random.default_rng(3).normal(size=(2, 18)).astype(F32)
    two = np.random.default_rng(4).normal(size=16).astype(F32)
    expected, product = sums.copy(), one.copy()
    expected[1:-1] += one[1:-1] * two
    product[1:-1] *= two
    multiply(sums, one, two)
    np.testing.assert_allclose(sums, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(one, product)


@pytest.mark.parametrize("width", [3, 8, 20])
def test_lanes_are_added(width: int) -> None:
    """A weighted sum of rows."""
    rng = np.random.default_rng(2)
    source = padded_rows(rng.normal(size=(6, width)).astype(F32))
    factors = rng.normal(size=6).astype(F32)
    sums = np.ones(source.shape[1], F32)
    add(sums, source, factors, source.shape[1])
    np.testing.assert_allclose(sums, 1.0 + factors @ source, rtol=1e-5, atol=1e-6)


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
