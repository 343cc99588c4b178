"""Encoding, canonical order and layouts of ratings against naive versions."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import reference
from building import F32, assert_same, ratings_of, table_of
from hypothesis import given
from hypothesis import strategies as st

from sparkml_sgdals.arrays.ratings import Ratings, encode_ratings, layout_by

WEIGHTS = st.sampled_from([0.5, 1.0, 3.0])
SMALL_IDS = st.one_of(st.integers(-3, 3), st.sampled_from([2**62, -(2**63)]))
NAMES = st.sampled_from(["", "a", "b", "B", "é", "user 10", "user 9"])


@st.composite
def rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Rows of a table of ratings, pairs and times repeated; one of the four forms."""
    columns = {
        "user": draw(st.sampled_from([SMALL_IDS, NAMES])),
        "item": draw(st.sampled_from([SMALL_IDS, NAMES])),
        "rating": st.sampled_from([-0.5, 2.0, 3.5]),
    }
    if draw(st.booleans()):
        columns["time"] = st.one_of(st.integers(-2, 2), st.sampled_from([2**63 - 1, -(2**63)]))
    if draw(st.booleans()):
        columns["weight"] = WEIGHTS
    return draw(st.lists(st.fixed_dictionaries(columns), min_size=1, max_size=25))


def as_table(found: list[dict[str, Any]]) -> pa.Table:
    """Rows as a table."""
    columns = {name: [row[name] for row in found] for name in found[0]}
    return table_of(
        columns["user"],
        columns["item"],
        columns["rating"],
        columns.get("weight"),
        columns.get("time"),
    )


def decoded(ratings: Ratings) -> list[tuple[Any, ...]]:
    """(user, item, rating, weight) in the order of learning."""
    users, items = ratings.user_ids.to_pylist(), ratings.item_ids.to_pylist()
    weights = ratings.weights if ratings.weights.size else np.ones(len(ratings), F32)
    return [
        (users[u], items[i], v, w)
        for u, i, v, w in zip(
            ratings.users.tolist(), ratings.items.tolist(), ratings.values.tolist(),
            weights.tolist(), strict=True,
        )
    ]  # fmt: skip


def utf8_order(ids: set[Any]) -> list[Any]:
    """Ids sorted as numbers, or as their UTF-8 bytes."""
    return sorted(ids, key=lambda i: i.encode() if isinstance(i, str) else i)


@given(rows())
def test_canonical_order(found: list[dict[str, Any]]) -> None:
    """By time, hash of the pair, user, item, rating, weight; ids sorted; types as promised."""
    ratings = encode_ratings(as_table(found))
    expected = sorted(
        found,
        key=lambda row: (
            row.get("time", 0), reference.pair_key(row["user"], row["item"]), row["rating"],
            row.get("weight", 1.0),
        ),
    )  # fmt: skip
    assert decoded(ratings) == [
        (row["user"], row["item"], row["rating"], row.get("weight", 1.0)) for row in expected
    ]
    assert ratings.user_ids.to_pylist() == utf8_order({row["user"] for row in found})
    assert ratings.item_ids.to_pylist() == utf8_order({row["item"] for row in found})
    assert ratings.users.dtype == ratings.items.dtype == np.int32
    assert ratings.values.dtype == ratings.weights.dtype == F32
    assert ratings.weights.size == (len(found) if "weight" in found[0] else 0)
    assert len(ratings) == len(found)


@given(rows(), st.randoms(use_true_random=False), st.integers(0, 25))
def test_order_of_rows_does_not_matter(found: list[dict[str, Any]], random: Any, cut: int) -> None:
    """Shuffled, and in other chunks, a table encodes to the same bits."""
    shuffled = list(found)
    random.shuffle(shuffled)
    table = as_table(shuffled)
    table = pa.concat_tables([table[:cut], table[cut:]])
    assert_same(encode_ratings(table), encode_ratings(as_table(found)))


@pytest.mark.parametrize("times", [None, [5] * 8])
def test_rows_that_differ_in_one_number_only(times: list[int] | None) -> None:
    """Real data repeats user, item and time: rating and then weight decide."""
    values, weights = [2.0, 1.0] * 4, [4.0, 3.0, 1.0, 2.0, 2.0, 1.0, 3.0, 4.0]
    for shift in range(8):
        ratings = ratings_of(
            [7] * 8, [7] * 8, np.roll(values, shift), weights=np.roll(weights, shift), times=times
        )
        assert ratings.values.tolist() == [1.0] * 4 + [2.0] * 4
        assert ratings.weights.tolist() == [1.0, 2.0, 3.0, 4.0] * 2


def test_ids_beyond_16_bits() -> None:
    """Many distinct ids, in several chunks with dictionaries of their own."""
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 70_000, 150_000), rng.integers(-100, 100, 150_000)
    values = rng.normal(0, 1, 150_000).astype(F32)
    table = table_of(users, items, values)
    chunked = pa.concat_tables([table[:1000], table[1000:80_000], table[80_000:]])
    ratings = encode_ratings(chunked)
    found = np.stack(
        [
            ratings.user_ids.to_numpy()[ratings.users],
            ratings.item_ids.to_numpy()[ratings.items],
            ratings.values,
        ]
    )
    expected = np.stack([users, items, values])
    np.testing.assert_array_equal(found[:, np.lexsort(found)], expected[:, np.lexsort(expected)])


@pytest.mark.parametrize("names", [False, True])
@pytest.mark.parametrize("columns", [(), ("time",), ("time", "weight")])
def test_empty_table(names: bool, columns: tuple[str, ...]) -> None:
    """No rows encode to no ratings, with ids of the right type."""
    table = table_of([], [], [], times=[], weights=[])
    kind = pa.string() if names else pa.int64()
    table = table.set_column(0, "user", pa.array([], kind)).set_column(
        1, "item", pa.array([], kind)
    )
    ratings = encode_ratings(table.select(["user", "item", "rating", *columns]))
    assert len(ratings) == 0
    assert ratings.user_ids.type == ratings.item_ids.type == kind
    assert ratings.users.shape == ratings.weights.shape == (0,)
    assert ratings.users.dtype == np.int32
    assert ratings.moments() == (0.0, 0.0, 0.0)
    assert ratings.value_range() == (math.inf, -math.inf)


def test_arrays_can_be_written() -> None:
    """Numba compiles a second version of each kernel for read-only arrays."""
    ratings = ratings_of([1, 2], [3, 3], [1.0, 2.0], weights=[1, 2], times=[1, 1])
    for name in ("users", "items", "values", "weights"):
        assert getattr(ratings, name).flags.writeable, name


@given(rows(), st.integers(0, 30))
def test_moments(found: list[dict[str, Any]], first: int) -> None:
    """Weight, mean and squares about it, of all ratings or of those learned first."""
    ratings = encode_ratings(as_table(found))
    for count, moments in ((first, ratings.moments(first)), (len(found), ratings.moments())):
        part = decoded(ratings)[:count]
        weight = sum(row[3] for row in part)
        mean = sum(row[2] * row[3] for row in part) / weight if part else 0.0
        squares = sum(row[3] * (row[2] - mean) ** 2 for row in part)
        assert moments == pytest.approx((weight, mean, squares))


@pytest.mark.parametrize("weighted", [False, True])
def test_moments_of_many_ratings(weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Part by part, to the same bits on any threads."""
    rng = np.random.default_rng(1)
    weights = rng.uniform(0.5, 2, 1000) if weighted else None
    ratings = ratings_of(range(1000), range(1000), rng.normal(3, 1, 1000), weights=weights)
    whole = ratings.moments(700)
    monkeypatch.setattr("sparkml_sgdals.arrays.ratings._TOGETHER", 64)
    found = {ratings.moments(700, threads) for threads in (1, 2, 7)}
    assert len(found) == 1
    assert found.pop() == pytest.approx(whole, rel=1e-12)


def test_range_is_that_of_rows_with_a_weight() -> None:
    """A rating that is not learned does not widen the range."""
    ratings = ratings_of([1, 2, 3], [1, 1, 1], [-9.0, 2.0, 4.0], weights=[0.0, 1.0, 2.0])
    assert ratings.value_range() == (2.0, 4.0)
    assert ratings_of([1, 2], [1, 1], [-9.0, 2.0]).value_range() == (-9.0, 2.0)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9))), st.booleans())
def test_layout_groups_in_order(pairs: list[tuple[int, int]], weighted: bool) -> None:
    """Ratings of an id lie together, in the order in which they came."""
    own, other = np.array(pairs, np.int32).reshape(-1, 2).T
    values = np.arange(len(pairs), dtype=F32)
    weights = values + 100 if weighted else np.empty(0, F32)
    layout = layout_by(own.copy(), other.copy(), values, weights, 7)
    groups = defaultdict(list)
    for n, (x, y) in enumerate(pairs):
        groups[x].append((y, float(n)))
    assert layout.counts().tolist() == [len(groups[x]) for x in range(7)]
    for x in range(7):
        mine = slice(layout.starts[x], layout.starts[x + 1])
        found = list(zip(layout.partners[mine].tolist(), layout.values[mine].tolist(), strict=True))
        assert found == groups[x]
        if weighted:
            assert layout.weights[mine].tolist() == [n + 100 for _, n in groups[x]]
    assert layout.weights.size == weights.size
    assert layout.starts.dtype == np.int64


@pytest.mark.parametrize("own", [[-1, 0], [0, 3], [2**31 - 1, 0]])
def test_layout_refuses_positions_outside(own: list[int]) -> None:
    """A counting sort without bounds would write past its arrays."""
    with pytest.raises(IndexError, match="3 ids"):
        layout_by(np.array(own, np.int32), np.zeros(2, np.int32), np.ones(2, F32), np.empty(0), 3)
