"""The N best of many candidates, against sorting all of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkml_sgdals.kernels.events.judges import FLOOR, NEVER
from sparkml_sgdals.kernels.topn import Tastes, positions_of, top_n


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 5),
    st.integers(0, 2500),
    st.integers(1, 4),
    st.integers(1, 30),
    st.sampled_from([-1, 0, 1]),
    st.booleans(),
)
def test_equals_a_full_sort(seed, queries, total, width, count, sign, exclude):
    """Scores are of few distinct values, so that many are equal and ids have to decide."""
    rng = np.random.default_rng(seed)
    left = rng.integers(-2, 3, (queries, width)).astype(np.float32)
    right = rng.integers(-2, 3, (width, total)).astype(np.float32)
    left_var = rng.integers(0, 3, (queries, 2)).astype(np.float32)
    right_var = rng.integers(0, 3, (2, total)).astype(np.float32)
    gone = rng.random((queries, total)) < (0.4 if exclude else 0.0)
    starts = np.concatenate([[0], np.cumsum(gone.sum(axis=1))]).astype(np.int64)
    excluded = (starts, np.nonzero(gone)[1].astype(np.int32))
    best, scores = top_n(left, right, count, excluded, (left_var, right_var), sign)

    expected = left @ right + sign * np.sqrt(left_var @ right_var)
    for q in range(queries):
        order = [j for j in np.argsort(-expected[q], kind="stable") if not gone[q, j]]
        found = best[q][best[q] >= 0]
        assert found.tolist() == order[: min(count, total)]
        np.testing.assert_allclose(scores[q, : found.size], expected[q, found], rtol=1e-6)
        assert np.isneginf(scores[q, found.size :]).all()


@pytest.mark.parametrize("what", ["excluded", "among"])
def test_positions_outside_the_candidates_are_refused(what):
    outside = (np.array([0, 1]), np.array([3], np.int32))
    with pytest.raises(IndexError, match="outside the 3 candidates"):
        top_n(np.ones((1, 1), np.float32), np.ones((1, 3), np.float32), 1, **{what: outside})


@given(st.integers(0, 2**32 - 1), st.integers(0, 60))
def test_pairs_by_query(seed, count):
    rng = np.random.default_rng(seed)
    rows, positions = rng.integers(0, 5, count), rng.integers(0, 9, count)
    starts, found = positions_of(rows, positions, 5)
    own = [found[starts[q] : starts[q + 1]].tolist() for q in range(5)]
    assert own == [sorted({*positions[rows == q].tolist()}) for q in range(5)]


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 2500),
    st.integers(1, 30),
    st.sampled_from([-1, 0, 1]),
    st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    st.booleans(),
)
def test_some_candidates_are_all_but_the_others(seed, total, count, sign, share, events):
    """To the bit, whatever else orders candidates."""
    rng = np.random.default_rng(seed)

    def pairs(share):
        rows, columns = np.nonzero(rng.random((3, total)) < share)
        return positions_of(rows, columns, 3)

    def numbers(*shape):
        return rng.integers(-2, 3, shape).astype(np.float32)

    left, right = numbers(3, 4), numbers(4, total)
    bounds = abs(numbers(3, 2)), abs(numbers(2, total))
    excluded, risen = pairs(0.3), pairs(0.1)
    more = {}
    if events:
        taste = rng.normal(0, 1, (3, 3)).astype(np.float32)
        more["tastes"] = Tastes(taste, rng.normal(0, 1, (3, total)).astype(np.float32))
        more["boosts"] = (*risen, rng.random(risen[1].size).astype(np.float32))
        sign = 0
    among = pairs(share)
    out = np.ones((3, total), bool)
    out[np.repeat(np.arange(3), np.diff(among[0])), among[1]] = False
    out[np.repeat(np.arange(3), np.diff(excluded[0])), excluded[1]] = True
    others = positions_of(*np.nonzero(out), 3)
    best, scores = top_n(left, right, count, excluded, bounds, sign, **more, among=among)
    expected, expected_scores = top_n(left, right, count, others, bounds, sign, **more)
    width = best.shape[1]
    assert width == min(count, np.diff(among[0]).max())
    np.testing.assert_array_equal(best, expected[:, :width])
    np.testing.assert_array_equal(scores, expected_scores[:, :width])
    assert (expected[:, width:] == -1).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 1500), st.integers(0, 40), st.booleans())
def test_two_judges_and_candidates_that_are_none(seed, total, padding, known):
    """The logarithm of both judgements orders them; a score of -inf is padding, never found."""
    rng = np.random.default_rng(seed)
    left, right = rng.normal(0, 1, (2, 3)), rng.normal(0, 1, (3, total + padding))
    left, right = left.astype(np.float32), right.astype(np.float32)
    left[:, 2] = 1.0
    right[2, total:] = -np.inf
    right[:2, total:] = 0.0
    queries = rng.normal(0, 1, (2, 4)).astype(np.float32)
    queries[:, 0] = 0.3 if known else NEVER
    table = rng.normal(0, 1, (4, total + padding)).astype(np.float32)
    best, scores = top_n(left, right, total + padding, tastes=Tastes(queries, table))
    products = queries[:, 1:].astype(float) @ table[1:, :total]
    soft = (products + np.sqrt(products**2 + 4 * float(FLOOR) ** 2)) / 2
    weights = np.exp(queries[:, :1].astype(float) + table[0, :total])
    expected = np.log(np.exp(left.astype(float) @ right[:, :total]) + weights * soft)
    for q in range(2):
        found = best[q][best[q] >= 0]
        assert sorted(found.tolist()) == list(range(total))
        np.testing.assert_allclose(scores[q, :total], expected[q, found], atol=1e-4)
        assert (np.diff(scores[q, :total]) <= 0).all()
