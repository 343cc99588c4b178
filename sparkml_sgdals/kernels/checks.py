"""What kernels have in common: which rows they may touch, how sums may be reordered (no Spark)."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["FAST", "MIN_VARIANCE", "check_reach", "check_rows"]

FAST: Final = {"reassoc", "contract", "arcp", "nsz"}
"""Sums may be reordered for vector units, but NaN and infinity keep their meaning: divergence must
stay visible. Such a kernel calls no other that is not inlined: see tests/unit/test_compiling.py."""
MIN_VARIANCE: Final = np.float32(1e-9)
"""Keeps a variance positive where float32 rounds c - c^2 P^2 / S to zero or just below."""


def check_rows(rows: npt.NDArray[np.integer], size: int, side: str) -> None:
    """Raise IndexError unless every row lies in 0..size-1: a kernel would corrupt memory."""
    if rows.size:
        check_reach((int(rows.min()), int(rows.max())), size, side)


def check_reach(reach: tuple[int, int], size: int, side: str) -> None:
    """`check_rows` of rows of which the least and the greatest are known."""
    if reach[0] < 0 or reach[1] >= size:
        raise IndexError(
            f"{side} rows reach from {reach[0]} to {reach[1]}, the factors have {size}"
        )
