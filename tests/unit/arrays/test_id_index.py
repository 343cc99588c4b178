"""The index of ids against a dict."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import time
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from building import id_array
from hypothesis import given
from hypothesis import strategies as st

from sparkml_sgdals.arrays.hashing import find_keys, id_keys
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


def unmixed(keys: np.ndarray) -> np.ndarray:
    """Ids whose keys these are: the hash of integers turned round."""
    z = keys.copy()
    with np.errstate(over="ignore"):
        for shift, factor in ((31, 0x94D049BB133111EB), (27, 0xBF58476D1CE4E5B9), (30, None)):
            mixed = z
            for _ in range(64 // shift + 1):
                z = mixed ^ (z >> np.uint64(shift))
            if factor is not None:
                z = z * np.uint64(pow(factor, -1, 1 << 64))
        return (z - np.uint64(0x9E3779B97F4A7C15)).view(np.int64)


@pytest.mark.parametrize("bits", ["low", "high", "both"])
def test_chosen_ids_take_no_longer(bits: str) -> None:
    """Ids whose keys agree in many bits: in a table by these bits each would try them all."""
    count = 100_000
    numbers = np.arange(count, dtype=np.uint64)
    keys = {
        "low": numbers << np.uint64(40), "high": numbers,
        "both": (numbers << np.uint64(24)) ^ np.uint64(0xABC),
    }[bits]  # fmt: skip
    ids = unmixed(keys)
    assert id_keys(pa.array(ids)).tolist() == keys.tolist()
    index, even = IdIndex("int"), IdIndex("int")
    times = []
    for some, known in ((even, pa.array(numbers.view(np.int64))), (index, pa.array(ids))):
        start = time.perf_counter()
        some.add(known)
        assert some.find(known).tolist() == list(range(count))
        times.append(time.perf_counter() - start)
    # with some room for a busy machine; by the keys' own bits it is 40 seconds
    assert times[1] < 20 * times[0] + 1
    start = time.perf_counter()
    assert find_keys(keys, np.argsort(keys), keys).tolist() == list(range(count))
    assert time.perf_counter() - start < 5


def test_slots_go_with_the_index_to_another_process() -> None:
    index = IdIndex("int")
    index.add(pa.array(range(100)))
    program = (
        "import pickle, sys, pyarrow as pa; index = pickle.load(sys.stdin.buffer); "
        "index.add(pa.array(range(100, 300))); print(index.find(pa.array(range(300))).tolist())"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], input=pickle.dumps(index), capture_output=True, check=True
    )
    assert json.loads(found.stdout) == list(range(300))


@pytest.mark.parametrize("kind", ["int", "str"])
@given(st.data())
def test_keys_are_those_of_the_ids_however_they_came(kind: str, data: st.DataObject) -> None:
    index, count = IdIndex(kind), 0
    for more in data.draw(st.lists(st.integers(-30, 40), max_size=5)):
        if more < 0:
            # what was forgotten may come again
            index.truncate(max(index.size + more, 0))
        else:
            names = [f"{n * 7919 % 1009}-{n}" for n in range(count, count + more)]
            ids = names if kind == "str" else [n * 7919 - 500 for n in range(count, count + more)]
            index.add(pa.array(ids, pa.string() if kind == "str" else pa.int64()))
            count += more
        if data.draw(st.booleans()):
            keys = id_keys(index.ids())
            twin = index.copy()
            for one in (index, twin):
                assert one.keys().tolist() == keys.tolist()
                assert one.by_key().tolist() == np.argsort(keys).tolist()
