"""What kernels have in common: which rows they may touch, how sums may be reordered (no Spark)."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["FAST", "MIN_VARIANCE", "check_rows"]

FAST: Final = {"reassoc", "contract", "arcp", "nsz"}
"""Sums may be reordered for vector units, but NaN and infinity keep their meaning: divergence must
stay visible. Such a kernel calls no other that is not inlined: see tests/unit/test_compiling.py."""
MIN_VARIANCE: Final = np.float32(1e-9)
"""Keeps a variance positive where float32 rounds c - c^2 P^2 / S to zero or just below."""


def check_rows(rows: npt.NDArray[np.integer], size: int, side: str) -> None:
    """Raise IndexError unless every row lies in 0..size-1: a kernel would corrupt memory."""
    if rows.size and (int(rows.min()) < 0 or int(rows.max()) >= size):
        raise IndexError(
            f"{side} rows reach from {rows.min()} to {rows.max()}, the factors have {size}"
        )
