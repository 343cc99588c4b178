"""The kernel of smoothing against loops: ids with few ratings side by side, and with many."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkml_sgdals.arrays.ratings import Layout
from sparkml_sgdals.kernels import smoothing
from sparkml_sgdals.kernels.lanes import padded_rows
from sparkml_sgdals.kernels.smoothing import smooth_ids

PARTNERS, NOISE = 30, np.float32(0.4)


def made(counts: list[int], width: int, weighted: bool, seed: int):
    """A layout of ids with so many ratings, and mean, prior mean and variance of each side."""
    rng = np.random.default_rng(seed)
    total, ids = sum(counts), len(counts)
    layout = Layout(
        starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        partners=rng.integers(0, PARTNERS, total).astype(np.int32),
        values=rng.normal(0, 1, total).astype(np.float32),
        weights=rng.choice([0.0, 0.5, 2.0], total).astype(np.float32)
        if weighted
        else np.empty(0, np.float32),
    )
    mean, prior_mean = rng.normal(0, 0.5, (2, ids, width)).astype(np.float32)
    prior_var = rng.uniform(0.02, 0.5, (ids, width)).astype(np.float32)
    partner_mean = rng.normal(0, 0.5, (PARTNERS, width)).astype(np.float32)
    partner_var = rng.uniform(0.01, 0.3, (PARTNERS, width)).astype(np.float32)
    return layout, mean, prior_mean, prior_var, partner_mean, partner_var


def smoothed(parts, ranges):
    layout, mean, prior_mean, prior_var, *partner = parts
    own = [padded_rows(part, 1) for part in (mean, prior_mean, NOISE / prior_var)]
    partner = [padded_rows(part, 1) for part in partner]
    for first, last in ranges:
        smooth_ids(
            first, last, layout.starts, layout.partners, layout.values, layout.weights, *own,
            *partner, mean.shape[1], NOISE, np.float32(-np.inf),
        )  # fmt: skip
    assert not own[0][-1].any()
    return own[0][:-1, : mean.shape[1]]


def by_loops(parts):
    """Each rating's weight discounted for its partner, then one sweep of the side."""
    layout, mean, prior_mean, prior_var, partner_mean, partner_var = parts
    ids = np.repeat(np.arange(mean.shape[0]), np.diff(layout.starts))
    weights = layout.weights if layout.weights.size else np.ones(ids.size)
    less = np.array([
        1 / (1 / w + (v[0] + sum(v[1:] * mean[x, 1:] ** 2)) / NOISE) if w else 0.0
        for x, w, v in zip(ids, weights, partner_var[layout.partners], strict=True)
    ])  # fmt: skip
    expected = mean.astype(np.float64)
    reference.sweep(
        ids, layout.partners, layout.values, less, expected, np.ones(mean.shape),
        prior_mean.astype(float), prior_var.astype(float), partner_mean.astype(float),
        partner_var.astype(float), NOISE,
    )  # fmt: skip
    return expected


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(0, 7), min_size=1, max_size=80),
    width=st.sampled_from([2, 8, 9, 11, 17]),
    weighted=st.booleans(),
    seed=st.integers(0, 99),
)
def test_few_ratings(counts, width, weighted, seed):
    parts = made(counts, width, weighted, seed)
    np.testing.assert_allclose(smoothed(parts, [(0, len(counts))]), by_loops(parts), atol=2e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_around_the_number_that_is_many(weighted):
    few = smoothing._FEW
    counts = [1, few + 1, 0, few, 3 * few, few - 1, 2]
    parts = made(counts, 11, weighted, 5)
    np.testing.assert_allclose(smoothed(parts, [(0, 7)]), by_loops(parts), atol=1e-4)


def test_ranges_change_no_bit():
    """Which ids lie side by side does not matter."""
    counts = np.random.default_rng(2).integers(0, 90, 200).tolist()
    parts = made(counts, 11, True, 3)
    whole = smoothed(parts, [(0, 200)])
    assert not np.array_equal(whole, parts[1])
    np.testing.assert_array_equal(smoothed(parts, [(150, 200), (0, 1), (1, 150)]), whole)


def test_one_that_is_not_finite_spoils_no_other():
    parts = made([2] * 40, 11, False, 4)
    sound = smoothed(parts, [(0, 40)])
    parts[1][3, 2] = math.nan
    found = smoothed(parts, [(0, 40)])
    assert np.isnan(found[3]).any()
    np.testing.assert_array_equal(np.delete(found, 3, axis=0), np.delete(sound, 3, axis=0))


def test_ids_without_weight_stay():
    parts = made([0, 3, 2], 5, True, 1)
    parts[0].weights[:] = [0, 0, 0, 1, 2]
    found = smoothed(parts, [(0, 3)])
    np.testing.assert_array_equal(found[:2], parts[1][:2])
    assert not np.array_equal(found[2], parts[1][2])
