"""The index of ids against a dict."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from building import id_array
from hypothesis import given
from hypothesis import strategies as st

from sparkml_sgdals.arrays.id_index import IdIndex
from sparkml_sgdals.arrays.id_kinds import IdKind, id_array_type

EDGES = [0, -1, 1, 2**63 - 1, -(2**63), 2**31, -(2**31), 2**53 + 1]
IDS = {
    "int": st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-5, 5), st.sampled_from(EDGES)),
    "str": st.one_of(st.text(max_size=4), st.sampled_from(["", "a", "A", "é", "a\0"])),
}
KINDS = pytest.mark.parametrize("kind", ["int", "str"])


def array(ids: list[Any], kind: IdKind) -> pa.Array:
    """Ids of a kind, also where there are none."""
    return pa.array(ids, id_array_type(kind))


@KINDS
@given(data=st.data())
def test_index_is_a_dict(kind: IdKind, data: st.DataObject) -> None:
    """Batches are added and looked up in turns; ids come back in the order of their rows."""
    index, expected = IdIndex(kind), {}
    for batch in data.draw(st.lists(st.lists(IDS[kind], max_size=30), max_size=6)):
        found = index.find(array(batch, kind))
        assert found.dtype == np.int64
        assert found.tolist() == [expected.get(i, -1) for i in batch]
        new = list(dict.fromkeys(i for i in batch if i not in expected))
        rows = index.add(array(new, kind))
        assert rows.tolist() == list(range(len(expected), len(expected) + len(new)))
        expected |= {i: len(expected) + n for n, i in enumerate(new)}
        assert index.size == len(expected)
    known = index.ids()
    assert known.type == id_array_type(kind)
    assert known.to_pylist() == list(expected)
    assert index.find(known).tolist() == list(range(len(expected)))
    picked = np.array(data.draw(st.permutations(range(len(expected)))), np.int64)
    assert index.ids(picked).to_pylist() == [list(expected)[row] for row in picked]
    for probe in data.draw(st.lists(IDS[kind], max_size=5)):
        assert (probe in index) == (probe in expected)


@KINDS
def test_many_ids(kind: IdKind) -> None:
    """Growth loses none of 200,000 ids and finds none that was not added."""
    rng = np.random.default_rng(1)
    numbers = np.unique(
        np.concatenate(
            [EDGES, rng.integers(-(2**63), 2**63 - 1, 100_000), np.arange(100_000) << 32]
        )
    )
    rng.shuffle(numbers)
    ids = array(numbers.tolist() if kind == "int" else [str(n) for n in numbers], kind)
    known, unknown = ids[: len(ids) // 2], ids[len(ids) // 2 :]
    index = IdIndex(kind)
    bounds = [0, 1, 8, 9, 16, 17, 1000, 30_000, len(known)]
    for first, last in pairwise(bounds):
        index.add(known[first:last])
    assert index.size == len(known)
    np.testing.assert_array_equal(index.find(known), np.arange(len(known)))
    assert (index.find(unknown) == -1).all()
    assert index.ids().equals(known)


@KINDS
def test_copy_is_independent(kind: IdKind) -> None:
    """What one of the two learns the other does not know."""
    ids = array([1, 2, 3, 4] if kind == "int" else list("abcd"), kind)
    index = IdIndex(kind)
    index.add(ids[:2])
    twin = index.copy()
    twin.add(ids[2:3])
    index.add(ids[3:])
    assert index.find(ids).tolist() == [0, 1, -1, 2]
    assert twin.find(ids).tolist() == [0, 1, 2, -1]
    assert twin.ids().equals(ids[:3])
    assert twin.kind == kind
    # with shared slots each would find rows that it does not have, past the end of its ids
    assert not np.shares_memory(index._slots, twin._slots)


def test_ids_given_out_stay_as_they_are() -> None:
    """An array of ids does not change under its holder when the index grows."""
    index = IdIndex("int")
    index.add(id_array([5, 6]))
    held = index.ids()
    index.add(id_array(list(range(100, 200))))
    assert held.to_pylist() == [5, 6]


def test_narrow_integers_are_the_same_ids() -> None:
    """An id is a number, whatever the width of its column."""
    index = IdIndex("int")
    index.add(pa.array([1, -2], pa.int32()))
    assert index.find(pa.array([-2, 1], pa.int8())).tolist() == [1, 0]
    assert index.find(pa.array([-2, 3], pa.int64())).tolist() == [1, -1]


@KINDS
def test_empty(kind: IdKind) -> None:
    """No ids to find or add are fine, before and after some are there."""
    index, nothing = IdIndex(kind), array([], kind)
    for _ in range(2):
        assert index.find(nothing).shape == (0,)
        assert index.add(nothing).shape == (0,)
        assert index.ids(np.empty(0, np.int64)).equals(nothing)
        index.add(array([index.size] if kind == "int" else [str(index.size)], kind))
    assert index.size == 2
