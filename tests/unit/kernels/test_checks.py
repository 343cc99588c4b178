"""Rows outside of the factors never reach a kernel."""

from __future__ import annotations

import numpy as np
import pytest

from sparkml_sgdals.kernels.checks import check_rows


@pytest.mark.parametrize("rows", [[-1], [0, 3], [2, -2147483648], [2147483647]])
def test_rows_outside_are_refused(rows: list[int]) -> None:
    """A row below 0 or past the factors never reaches a kernel."""
    with pytest.raises(IndexError, match=r"user rows reach from -?\d+ to -?\d+, .* have 3"):
        check_rows(np.array(rows, np.int32), 3, "user")


@pytest.mark.parametrize("rows", [[], [0], [2, 0, 1]])
def test_rows_inside_pass(rows: list[int]) -> None:
    """Nothing, the first and the last row are fine."""
    check_rows(np.array(rows, np.int64), 3, "item")
