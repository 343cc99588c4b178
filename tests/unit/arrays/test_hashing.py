"""Hashes of ids and the start that follows from them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import reference
from building import id_array
from hypothesis import given
from hypothesis import strategies as st

from sparkml_sgdals.arrays.hashing import (
    ITEM_SIDE,
    USER_SIDE,
    block_of,
    find_keys,
    id_keys,
    pair_hash,
    start_factors,
)

INTS = st.integers(-(2**63), 2**63 - 1)
EDGES = [0, 1, -1, 2**31, 2**53 + 1, 2**63 - 1, -(2**63)]
NAMES = ["", "a", "b", "ab", "ba", "é", "日本", "😀", "a\0b", "x" * 300]


@given(st.lists(INTS))
def test_keys_of_integers(ids: list[int]) -> None:
    """SplitMix64 of each id, to the bit."""
    assert id_keys(id_array(ids)).tolist() == [reference.key(i) for i in ids]


@given(st.lists(st.text()))
def test_keys_of_strings(ids: list[str]) -> None:
    """A hash of the UTF-8 bytes, to the bit."""
    assert id_keys(pa.array(ids, pa.string())).tolist() == [reference.key(i) for i in ids]


def test_keys_of_integers_are_distinct() -> None:
    """A bijection has no collisions, whatever the pattern of the ids."""
    rng = np.random.default_rng(0)
    ids = np.unique(
        np.concatenate(
            [
                EDGES,
                np.arange(-100_000, 100_000),
                np.arange(100_000) << 40,
                rng.integers(-(2**63), 2**63 - 1, 100_000),
            ]
        )
    )
    assert np.unique(id_keys(pa.array(ids))).size == ids.size


@pytest.mark.parametrize("kind", [pa.int8(), pa.int16(), pa.int32(), pa.int64()])
def test_width_of_integers_does_not_matter(kind: pa.DataType) -> None:
    """The same number has the same key in any integer type."""
    ids = [0, 1, -1, 100, -128]
    assert id_keys(pa.array(ids, kind)).tolist() == [reference.key(i) for i in ids]


@pytest.mark.parametrize("ids", [EDGES, NAMES])
def test_keys_do_not_depend_on_the_slice(ids: list[int] | list[str]) -> None:
    """A slice, a slice of a slice and an array of its own give the same keys."""
    whole = id_array(ids)
    keys = id_keys(whole)
    for first in range(len(ids) + 1):
        for last in range(first, len(ids) + 1):
            np.testing.assert_array_equal(id_keys(whole[first:last]), keys[first:last])
    np.testing.assert_array_equal(id_keys(whole[2:][1:4]), keys[3:6])
    chunked = pa.chunked_array([whole[:3], whole[3:4], whole[4:]])
    found = np.concatenate([id_keys(chunk) for chunk in chunked.chunks])
    np.testing.assert_array_equal(found, keys)
    np.testing.assert_array_equal(id_keys(chunked.combine_chunks()), keys)


def test_large_strings_have_the_same_keys() -> None:
    """64-bit offsets change nothing."""
    np.testing.assert_array_equal(
        id_keys(pa.array(NAMES, pa.large_string())), id_keys(pa.array(NAMES))
    )


@pytest.mark.parametrize("kind", [pa.int64(), pa.string()])
def test_no_ids_no_keys(kind: pa.DataType) -> None:
    """An empty array gives an empty array of keys."""
    keys = id_keys(pa.array([], kind))
    assert keys.shape == (0,)
    assert keys.dtype == np.uint64


@given(st.lists(st.tuples(INTS, st.text()), min_size=1, max_size=20))
def test_pair_hash(pairs: list[tuple[int, str]]) -> None:
    """A function of both ids, and not the same with the sides exchanged."""
    users, items = (id_array(list(side)) for side in zip(*pairs, strict=True))
    rows = np.arange(len(pairs), dtype=np.int32)
    found = pair_hash(id_keys(users), id_keys(items), rows, rows)
    assert found.tolist() == [reference.pair_key(u, i) for u, i in pairs]
    exchanged = pair_hash(id_keys(items), id_keys(users), rows, rows)
    assert (exchanged != found).all()


@pytest.mark.parametrize(("rows", "what"), [([-1], "users"), ([3], "users"), ([0, 2, 3], "users")])
@pytest.mark.parametrize("swap", [False, True])
def test_pair_hash_refuses_rows_outside(rows: list[int], what: str, swap: bool) -> None:
    """Rows below 0 or past the keys raise on either side."""
    keys = id_keys(id_array([5, 6, 7]))
    good, bad = np.zeros(len(rows), np.int32), np.array(rows, np.int32)
    with pytest.raises(IndexError, match="items" if swap else what):
        pair_hash(keys, keys, *((good, bad) if swap else (bad, good)))


@pytest.mark.parametrize("num_blocks", [1, 2, 3, 7, 16, 64])
@pytest.mark.parametrize("pattern", ["dense", "even", "high bits", "names"])
def test_blocks_are_balanced(num_blocks: int, pattern: str) -> None:
    """Blocks lie in 0..B-1 and are filled as by chance, whatever the pattern of the ids."""
    count = 20_000
    ids = {
        "dense": list(range(count)),
        "even": [2**20 * i for i in range(count)],
        "high bits": [i << 44 for i in range(-count // 2, count // 2)],
        "names": [f"user-{i}" for i in range(count)],
    }[pattern]
    blocks = block_of(id_keys(id_array(ids)), num_blocks)
    assert blocks.dtype == np.int32
    filled = np.bincount(blocks, minlength=num_blocks)
    assert filled.size == num_blocks
    expected = count / num_blocks
    # five standard deviations of a binomial count
    assert np.abs(filled - expected).max() <= 5 * np.sqrt(expected)


def test_blocks_depend_on_the_key_alone() -> None:
    """The block of an id is the same in any company."""
    keys = id_keys(id_array(list(range(1000))))
    blocks = block_of(keys, 7)
    order = np.random.default_rng(0).permutation(1000)
    np.testing.assert_array_equal(block_of(keys[order], 7), blocks[order])
    assert [block_of(keys[n : n + 1], 7)[0] for n in range(50)] == blocks[:50].tolist()


@pytest.mark.parametrize("side", [USER_SIDE, ITEM_SIDE])
@pytest.mark.parametrize("seed", [0, 42, -1, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("ids", [EDGES, NAMES])
def test_start_is_what_it_always_was(side: int, seed: int, ids: list[int] | list[str]) -> None:
    """Box-Muller on SplitMix64, from (seed, side, id)."""
    found = start_factors(id_keys(id_array(ids)), side, 5, seed, 0.05)
    expected = [reference.start(i, side, 5, seed, 0.05) for i in ids]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("an_id", "side", "expected"),
    [
        (1, USER_SIDE, [0.0, -0.02849859, 0.037473571, -0.013884135]),
        (1, ITEM_SIDE, [0.0, 0.056383964, 0.0025063031, 0.046373542]),
        (-7, USER_SIDE, [0.0, 0.011057667, 0.01240283, -0.034232169]),
        ("tt0111161", ITEM_SIDE, [0.0, -0.013021645, -0.094264664, -0.041691445]),
    ],
)
def test_frozen_starts(an_id: int | str, side: int, expected: list[float]) -> None:
    """Numbers written down once: a change would break models that resume."""
    found = start_factors(id_keys(id_array([an_id])), side, 3, 42, 0.05)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)


def test_frozen_keys() -> None:
    """Keys route ids and order ratings, so they are frozen too."""
    assert id_keys(id_array([0, 1, -1])).tolist() == [
        16294208416658607535,
        10451216379200822465,
        16490336266968443936,
    ]
    assert id_keys(id_array(["", "a", "é"])).tolist() == [
        17665956581633026203,
        198367012849983736,
        2536656207217688990,
    ]


def test_frozen_blocks() -> None:
    """Blocks decide the order of learning of a large table."""
    assert block_of(id_keys(id_array([0, 1, -1, 2**40])), 7).tolist() == [2, 1, 5, 1]
    assert block_of(id_keys(id_array(["a", "b"])), 16).tolist() == [8, 9]


def test_start_depends_on_neither_order_nor_batch() -> None:
    """Any order and any batching of the ids gives the same bits."""
    keys = id_keys(id_array(list(range(500))))
    whole = start_factors(keys, USER_SIDE, 8, 1, 0.05)
    order = np.random.default_rng(0).permutation(500)
    np.testing.assert_array_equal(start_factors(keys[order], USER_SIDE, 8, 1, 0.05), whole[order])
    for size in (1, 7, 100):
        parts = [
            start_factors(keys[n : n + size], USER_SIDE, 8, 1, 0.05) for n in range(0, 500, size)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_start_is_normal() -> None:
    """Bias 0; features of the given deviation, independent between features, ids and sides."""
    count, rank, std = 20_000, 4, 0.05
    keys = id_keys(id_array(list(range(count))))
    users = start_factors(keys, USER_SIDE, rank, 42, std)
    items = start_factors(keys, ITEM_SIDE, rank, 42, std)
    assert not users[:, 0].any()
    z = users[:, 1:].astype(float) / std
    sampling = 5 / np.sqrt(count)
    assert np.abs(z.mean(axis=0)).max() < sampling
    assert np.abs(z.std(axis=0) - 1).max() < sampling
    for quantile, share in ((-1.6449, 0.05), (-0.6745, 0.25), (0.6745, 0.75), (1.6449, 0.95)):
        assert np.abs((z < quantile).mean(axis=0) - share).max() < sampling
    others = [items[:, 1:], np.roll(users[:, 1:], 1, axis=0), np.roll(users[:, 1:], 1, axis=1)]
    others.append(start_factors(keys, USER_SIDE, rank, 43, std)[:, 1:])
    for other in others:
        correlation = np.mean(z * other.astype(float) / std, axis=0)
        assert np.abs(correlation).max() < sampling


@pytest.mark.parametrize("rank", [0, 1, 16])
def test_shape_of_a_start(rank: int) -> None:
    """Bias and features; a larger rank keeps the first features of a smaller one."""
    keys = id_keys(id_array([3, 4]))
    found = start_factors(keys, USER_SIDE, rank, 42, 0.05)
    assert found.shape == (2, rank + 1)
    larger = start_factors(keys, USER_SIDE, rank + 2, 42, 0.05)
    np.testing.assert_array_equal(larger[:, : rank + 1], found)
    assert start_factors(keys[:0], USER_SIDE, rank, 42, 0.05).shape == (0, rank + 1)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, unique=True), st.data())
def test_rows_of_keys_are_found(keys: list[int], data: st.DataObject) -> None:
    """Also of such that are not even, as those of a hash are; -1 for keys that are not there."""
    held = np.array(keys, np.uint64)
    wanted = data.draw(st.lists(st.sampled_from(keys) | st.integers(0, 2**64 - 1)))
    rows = find_keys(held, np.argsort(held), np.array(wanted, np.uint64))
    assert rows.tolist() == [keys.index(key) if key in keys else -1 for key in wanted]
