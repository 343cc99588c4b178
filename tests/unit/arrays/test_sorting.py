"""Sorts by counting against NumPy's, on keys spread evenly and not, for any number of threads."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pytest

from sparkml_sgdals.arrays import sorting
from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.arrays.sorting import encode_ids, sort_by_key

KEYS = {
    "hashes": lambda rng, n: rng.integers(0, 2**63, n, dtype=np.uint64) * np.uint64(2),
    "few": lambda rng, n: rng.integers(0, 3, n).astype(np.uint64),
    "one": lambda _, n: np.full(n, 7, np.uint64),
    "crowded": lambda rng, n: np.where(
        rng.random(n) < 0.9, rng.integers(5, 5_000, n), rng.integers(0, 2**62, n)
    ).astype(np.uint64),
    "ends": lambda rng, n: rng.choice(np.array([0, 1, 2**64 - 1], np.uint64), n),
    "sorted": lambda _, n: np.arange(n, dtype=np.uint64) * np.uint64(86_400),
}


@pytest.fixture(autouse=True)
def small_tables_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it only tables that take long would go through the counting sorts."""
    monkeypatch.setattr(sorting, "_LARGE", 1)


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("count", [1, 2, 100, 70_000])
@pytest.mark.parametrize("threads", [1, 3])
def test_keys_are_sorted_and_rows_follow(kind: str, count: int, threads: int) -> None:
    keys = KEYS[kind](np.random.default_rng(count), count)
    found, rows = sort_by_key(keys, threads)
    np.testing.assert_array_equal(found, np.sort(keys))
    np.testing.assert_array_equal(keys[rows], found)
    np.testing.assert_array_equal(np.sort(rows), np.arange(count))


@pytest.mark.long
def test_many_equal_keys_take_no_longer_for_each() -> None:
    """A bucket that holds half of all rows may not cost the other buckets anything."""

    def seconds(keys: np.ndarray) -> float:
        taken = []
        for _ in range(3):
            start = time.process_time()
            found, rows = sort_by_key(keys)
            taken.append(time.process_time() - start)
        assert (found[1:] >= found[:-1]).all()
        np.testing.assert_array_equal(keys[rows], found)
        return min(taken)

    rng = np.random.default_rng(2)
    spread = rng.integers(1_000_000_000, 1_700_000_000, 8_000_000).astype(np.uint64)
    half = np.where(rng.random(spread.size) < 0.5, np.uint64(1_650_000_000), spread)
    # clearing as many places as the largest bucket has rows for every bucket took 6 times as long
    assert seconds(half) < 4 * seconds(spread)


def test_no_keys() -> None:
    found, rows = sort_by_key(np.empty(0, np.uint64))
    assert found.size == rows.size == 0


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("low", [-(2**31), 0, 2**31 - 300])
@pytest.mark.parametrize("width", [200, 2**31 - 1])
@pytest.mark.parametrize("kind", [pa.int32(), pa.int64()])
def test_codes_of_ids(threads: int, low: int, width: int, kind: pa.DataType) -> None:
    """Dense ranges go by a table, wide ones by a dictionary: both as np.unique has it."""
    rng = np.random.default_rng(3)
    ids = np.minimum(low + rng.integers(0, width, 5_000), 2**31 - 1)
    column = pa.chunked_array([pa.array(part, kind) for part in np.array_split(ids, 3)], kind)
    found, codes = encode_ids(column, threads)
    expected, positions = np.unique(ids, return_inverse=True)
    assert found.type == pa.int64()
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(codes, positions)
    assert codes.dtype == np.int32
    assert codes.flags.writeable


@pytest.mark.parametrize("with_time", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_order_of_a_large_table(
    with_time: bool, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counting sorts change nothing about the canonical order, repeated ratings included."""
    rng = np.random.default_rng(8)
    columns = {
        "user": rng.integers(0, 40, 20_000),
        "item": rng.integers(0, 30, 20_000),
        "rating": rng.integers(1, 6, 20_000).astype(np.float32),
        "weight": rng.integers(1, 4, 20_000).astype(np.float32),
    }
    if with_time:
        columns["time"] = rng.integers(-50, 50, 20_000)
    table = pa.table(columns)
    counted = encode_ratings(table, threads)
    monkeypatch.setattr(sorting, "_LARGE", 1_000_000)
    compared = encode_ratings(table)
    for name in ("users", "items", "values", "weights"):
        np.testing.assert_array_equal(getattr(counted, name), getattr(compared, name))
