"""Rows counted and grouped by a code, against NumPy's sorts."""

from __future__ import annotations

import numpy as np
import pytest

from sparkml_sgdals.arrays import grouping
from sparkml_sgdals.arrays.grouping import count_codes, group_rows, starts_of


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("codes", [1, 30, 1024, 1025, 70_000])
@pytest.mark.parametrize("weighted", [False, True])
def test_rows_of_a_code_lie_together(
    threads: int, codes: int, weighted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one step and in two, on any threads: as a stable sort has them."""
    rng = np.random.default_rng(codes)
    size = 5000
    own = (rng.random(size) ** 3 * codes).astype(np.int32)
    columns = [
        rng.integers(0, 99, size).astype(np.int32),
        rng.normal(0, 1, size).astype(np.float32),
        rng.random(size).astype(np.float32) if weighted else np.empty(0, np.float32),
    ]
    order = np.argsort(own, kind="stable")
    for large in (10_000, 1):
        monkeypatch.setattr(grouping, "_LARGE", large)
        counts = count_codes(own, codes, threads)
        np.testing.assert_array_equal(counts, np.bincount(own, minlength=codes))
        found = group_rows(own, columns, counts, threads)
        for column, grouped in zip(columns, found, strict=True):
            assert grouped.dtype == column.dtype
            np.testing.assert_array_equal(grouped, column[order] if column.size else column)


def test_starts_by_hand() -> None:
    assert starts_of(np.array([2, 0, 3])).tolist() == [0, 2, 2, 5]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("bad", [-1, 3, 2**31 - 1])
def test_codes_outside_are_refused(bad: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts has no bounds of its own."""
    monkeypatch.setattr(grouping, "_LARGE", 1)
    codes = np.array([0, 1, 2, 2, 1, bad, 0], np.int32)
    with pytest.raises(IndexError, match="3 ids"):
        count_codes(codes, 3, threads)
