"""Noise by id in blocks: all steps of all blocks in one process against a fit in one task."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from building import rows_of, settings_of, table_of
from clusters import Cluster, packed_in

from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.learn.noise import fitted_factors
from sparkml_sgdals.learn.whole_table import fit_ratings
from sparkml_sgdals.state.model_state import ModelState


def uneven() -> pa.Table:
    """Ratings whose noise is a product of what user and item are like, from 0.3 to 1.2."""
    rng = np.random.default_rng(8)
    users, items = rng.integers(0, 90, 9000), rng.integers(0, 60, 9000)
    noise = np.where(users % 3, 0.5, 1.0) * np.where(items % 2, 0.6, 1.2)
    bias = rng.normal(0, 0.5, 60)
    values = 3.5 + bias[items] + noise * rng.normal(0, 1, users.size)
    return table_of(users, items, values, times=range(users.size))


@pytest.fixture(scope="module")
def ratings() -> pa.Table:
    return uneven()


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("sweeps", [2, 6])
def test_noise_is_that_of_one_task(ratings: pa.Table, blocks: int, sweeps: int) -> None:
    """That of each rating is near what one task finds, where one noise for all is not."""
    settings = settings_of(rank=2, max_iter=sweeps, tol=0.0)
    one = ModelState.empty(settings, "int", "int")
    encoded = encode_ratings(ratings)
    fit_ratings(encoded, one)
    state, _ = Cluster.of(packed_in(ratings, 3), blocks, settings, "int").fit_ratings()
    ours, theirs = (
        np.log(some.noise * some.noise_factors(*rows_of(some, encoded))) for some in (state, one)
    )
    assert np.std(theirs) > 0.6
    assert np.std(ours - theirs) < 0.04
    assert np.median(ours - theirs) == pytest.approx(0.0, abs=0.005)


def test_noise_of_many_sweeps_is_that_of_the_equation(ratings: pa.Table) -> None:
    """From e^2 + V of all ratings, in units of their partners' noise."""
    settings = settings_of(rank=2, max_iter=30, tol=0.0)
    state, _ = Cluster.of(packed_in(ratings, 2), 2, settings, "int").fit_ratings()
    encoded = encode_ratings(ratings)
    rows = rows_of(state, encoded)
    predictions, variances = state.predict(*rows)
    units = state.scale.spread**2
    squares = ((encoded.values - predictions) ** 2 + variances) / units
    tables = state.users, state.items
    for own, other, rtol in ((0, 1, 5e-3), (1, 0, 5e-4)):
        relative = squares / tables[other].noise_factor[rows[other]]
        sums = np.bincount(rows[own], relative, tables[own].size)
        expected = fitted_factors(sums, tables[own].count, state.noise)
        np.testing.assert_allclose(tables[own].noise_factor, expected, rtol=rtol)


def test_what_a_model_knows_of_noise_stays(ratings: pa.Table) -> None:
    """Nothing is learned where there are no sweeps, as in one task."""
    settings = settings_of(rank=2, max_iter=0)
    state, _ = Cluster.of(packed_in(ratings, 2), 2, settings, "int").fit_ratings()
    assert np.all(state.users.noise_factor == 1.0)
