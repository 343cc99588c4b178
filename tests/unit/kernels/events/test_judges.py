"""Two judgements put together, against the formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkml_sgdals.kernels.events.judges import (
    FLOOR,
    LEAST_SHARE,
    NEVER,
    SHARE_RATE,
    at_rest,
    believed,
    judge_sums,
    mix_pairs,
    mixed,
    pair_probabilities,
    soft,
)
from sparkml_sgdals.kernels.topn import Tastes, candidate_products, query_products, top_n

F32 = np.float32


def exact_soft(t: float) -> float:
    return (t + math.sqrt(t * t + 4 * float(FLOOR) ** 2)) / 2


@given(st.floats(-3, 3), st.floats(-3, 3))
def test_soft_rises_and_stays_above_zero(one, two):
    """Below 0, where a logarithm of max(t, 0) would tie, the order is that of t."""
    low, high = sorted((F32(one), F32(two)))
    assert soft(low) > 0
    assert soft(low) == pytest.approx(exact_soft(float(low)), rel=1e-3)
    assert soft(high) >= soft(low)
    if high - low > 1e-4:
        assert soft(high) > soft(low)


def test_either_judge_may_be_silent():
    assert mixed(F32(NEVER), F32(0.5), F32(0.0)) == soft(F32(0.5))
    assert mixed(F32(1.5), F32(0.5), F32(NEVER)) == pytest.approx(math.exp(1.5), rel=1e-6)
    assert mixed(F32(NEVER), F32(0.5), F32(NEVER)) == 0.0


@st.composite
def models(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    users, items = draw(st.integers(1, 5)), draw(st.integers(1, 30))
    rank, table_rank = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    mean = [rng.normal(0, 0.7, (n, rank + 1)).astype(F32) for n in (users, items)]
    taste = [rng.normal(0, 0.5, (n, table_rank + 1)).astype(F32) for n in (users, items)]
    taste[0][rng.random(users) < 0.3, 0] = NEVER
    mean[0][rng.random(users) < 0.3, 0] = NEVER
    return mean, taste


def exact(mean, taste, x, y):
    score = float(mean[0][x, 0]) + float(mean[1][y, 0])
    score += mean[0][x, 1:].astype(float) @ mean[1][y, 1:].astype(float)
    product = taste[0][x, 1:].astype(float) @ taste[1][y, 1:].astype(float)
    offset = float(taste[0][x, 0]) + float(taste[1][y, 0])
    both = math.exp(max(score, -700)) + math.exp(max(offset, -700)) * exact_soft(product)
    return math.log(max(both, 1e-37))


@given(models())
def test_pairs_and_lists_have_one_score(model):
    """What `transform` gives is what lists are ordered by."""
    mean, taste = model
    users, items = (np.arange(len(side)) for side in mean)
    pairs = np.repeat(users, items.size), np.tile(items, users.size)
    scores = np.empty(pairs[0].size, F32)
    mix_pairs(*pairs, *mean, *taste, scores)
    wanted = [exact(mean, taste, x, y) for x, y in zip(*pairs, strict=True)]
    np.testing.assert_allclose(scores, wanted, atol=2e-3, rtol=2e-3)
    best, values = top_n(
        query_products(mean[0], None)[0], candidate_products(mean[1], None)[0], items.size,
        tastes=Tastes.of(*taste),
    )  # fmt: skip
    grid = scores.reshape(users.size, items.size)
    for x in users:
        np.testing.assert_allclose(values[x], grid[x, best[x]], atol=2e-3, rtol=2e-3)
        assert (np.diff(values[x]) <= 0).all()
        assert sorted(best[x]) == items.tolist()


@given(models())
def test_sums_make_probabilities(model):
    """Over all items each judge's probabilities sum up to 1."""
    mean, taste = model
    n = len(mean[1])
    sums = np.empty((2, len(mean[0])))
    biases, bases = mean[1][:, 0].copy(), taste[1][:, 0].copy()
    sides = [np.ascontiguousarray(side[:, 1:]) for side in (mean[0], taste[0], mean[1], taste[1])]
    judge_sums(*sides, biases, bases, sums)
    for x in range(len(mean[0])):
        scores = biases + sides[2] @ sides[0][x]
        products = sides[3] @ sides[1][x]
        found = pair_probabilities(
            scores.astype(F32),
            products.astype(F32),
            bases,
            np.repeat(sums[:, x : x + 1], n, axis=1),
        )
        np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-3)


@given(st.floats(0.01, 0.99), st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=20))
def test_the_share_follows_who_predicted(share, told):
    ours, theirs = (np.array([t[n] for t in told]) for n in (0, 1))
    wanted = share
    for a, b in told:
        both = wanted * a + (1 - wanted) * b
        if both > 0:
            wanted += SHARE_RATE * (wanted * a / both - wanted)
            wanted = min(max(wanted, LEAST_SHARE), 1 - LEAST_SHARE)
    found = believed(share, ours, theirs)
    assert found == pytest.approx(wanted)
    assert LEAST_SHARE <= found <= 1 - LEAST_SHARE


def test_a_judge_that_was_wrong_for_long_is_heard_again():
    long = np.full(100_000, 0.5)
    share = believed(0.4, long * 0.01, long)
    assert share == pytest.approx(LEAST_SHARE)
    assert believed(share, long[:2_000], long[:2_000] * 0.25) > 0.9


def test_scores_that_a_float32_has_no_exponential_of():
    """Sums stay finite, so that nobody is left without a list."""
    features, items = np.full((2, 1), 10.0, F32), np.array([[30.0], [29.0]], F32)
    nothing, none = np.zeros((2, 1), F32), np.zeros(2, F32)
    sums = np.empty((2, 2))
    judge_sums(features, nothing, items, nothing, none, none, sums)
    np.testing.assert_allclose(sums[0], 300.0, rtol=1e-4)
    assert np.isfinite(mixed(F32(300.0), F32(0.5), F32(0.0)))


def posterior(said, shares, gaps, lengths, counts, first, believed, moved):
    """Logarithm of what `at_rest` makes as large as it can, event by event."""
    found = 0.0
    for n, share in enumerate(shares):
        odds = share / (1.0 - share) * math.exp(moved[gaps[n]])
        partners, own = odds / (1.0 + odds), believed[lengths[n]]
        taste = own * said[0, n] + (1.0 - own) * said[1, n]
        found += counts[n] * math.log((1.0 - partners) * taste + partners * said[2, n])
    for own, by in zip(believed, moved, strict=True):
        found += 10.0 * (first * math.log(own) + (1.0 - first) * math.log(1.0 - own))
        found -= by * by / 8.0
    return found


@given(st.integers(0, 2**32), st.integers(1, 60))
def test_at_rest_is_where_the_posterior_is_highest(seed, size):
    rng = np.random.default_rng(seed)
    said = rng.uniform(1e-4, 0.2, (3, size))
    shares, counts = rng.uniform(0.02, 0.6, size), rng.uniform(0.1, 1.0, size)
    gaps, lengths = rng.integers(0, 10, (2, size))
    given_ = said, shares, gaps, lengths, counts, 0.4
    believed_, moved = at_rest(*given_)
    seen = np.isin(np.arange(10), lengths)
    assert np.all(believed_[~seen] == pytest.approx(0.4))
    assert np.all(moved[~np.isin(np.arange(10), gaps)] == 0.0)
    best = posterior(*given_, believed_, moved)
    for place in range(10):
        for step in (-0.02, 0.02):
            other, further = believed_.copy(), moved.copy()
            other[place] = min(max(other[place] + step, 1e-3), 1 - 1e-3)
            further[place] += step
            assert posterior(*given_, other, moved) <= best + 1e-6
            assert posterior(*given_, believed_, further) <= best + 1e-6


def test_at_rest_without_partners_or_with_nothing_said():
    """No partners: the filter alone is weighed. What nobody foresaw says nothing."""
    said = np.array([[0.2, 0.2, 0.0], [0.1, 0.1, 0.0], [0.0, 0.0, 0.0]])
    none, zeros = np.zeros(3), np.zeros(3, np.int64)
    believed_, moved = at_rest(said, none, zeros, zeros, np.ones(3), 0.4)
    assert believed_[0] > 0.4
    assert not moved.any()
    same, _ = at_rest(said[:, :2], none[:2], zeros[:2], zeros[:2], np.ones(2), 0.4)
    assert same == pytest.approx(believed_)
