"""One rating of any size, in any place of a stream, leaves the others as well predicted."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from building import settings_of
from feeding import COUNT, clean, error, feed, table
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.arrays.screening import Limits, is_far, set_far_aside
from sparkml_sgdals.errors import DivergenceError
from sparkml_sgdals.learn.far_values import learn_without_extremes, limits_for
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.state.model_state import ModelState


@pytest.mark.long
@given(
    value=st.floats(width=32, allow_nan=False, allow_infinity=False),
    at=st.sampled_from([0, 0, 1, 2, 19, 500, COUNT]),
    sizes=st.sampled_from([(1000, 1000), (1, 1000), (5, 300), (1, 1), (30, 30)]),
)
@settings(max_examples=30, deadline=None)
@example(1e4, 0, (1, 1000))
@example(1e6, 0, (1, 1))
@example(1e20, 1, (1, 1))
@example(49.0, 0, (5, 300))
def test_a_rating_of_any_size(value: float, at: int, sizes: tuple[int, int]) -> None:
    state = ModelState.empty(settings_of(rank=4), "int", "int")
    aside, _ = feed(state, table(slice(COUNT), at, rating=value), *sizes)
    assert error(state) < 1.01 * clean(*sizes)
    # far outside it is set aside, in first place too
    if abs(value) > 200:
        assert aside == 1
    assert state.counters.ratings == COUNT + 1 - aside


@given(
    value=st.floats(0, width=32, allow_nan=False, allow_infinity=False),
    at=st.sampled_from([0, 3, 500]),
    sizes=st.sampled_from([(1000, 1000), (30, 100)]),
)
@settings(max_examples=12, deadline=None)
@example(1e20, 500, (30, 100))
def test_a_weight_of_any_size(value: float, at: int, sizes: tuple[int, int]) -> None:
    state = ModelState.empty(settings_of(rank=4), "int", "int")
    aside, _ = feed(state, table(slice(COUNT), at, weight=value), *sizes)
    assert error(state) < 1.01 * clean(*sizes)
    if value > 12:
        assert aside == 1


def test_a_row_of_an_earlier_batch_is_found() -> None:
    state = ModelState.empty(settings_of(rank=4), "int", "int")
    aside, rows = feed(state, table(slice(COUNT), 0, rating=1e4), 1, 100)
    assert aside == 1
    assert rows == ['{"user": 5, "item": 7, "rating": 10000.0, "time": 0, "weight": 1.0}']


def test_without_it_nothing_is_otherwise() -> None:
    """The bits are those of a stream that looks at nothing."""
    looked, plain = (ModelState.empty(settings_of(rank=4), "int", "int") for _ in range(2))
    rows = table(slice(COUNT))
    feed(looked, rows, 7, 7)
    for start in range(0, COUNT, 7):
        learn_batch(plain, encode_ratings(rows.slice(start, 7)))
    assert looked.fingerprint() == plain.fingerprint()
    assert looked.ranges != plain.ranges


def test_a_given_range_is_the_range() -> None:
    state = ModelState.empty(settings_of(rank=4), "int", "int")
    limits = limits_for(state, (1.0, 5.0))
    rows = pa.table({"rating": pa.array([0.99, 1.0, 5.0, 5.01], pa.float32())})
    kept, far, problems = set_far_aside(rows, limits)
    assert kept.column("rating").to_pylist() == [1.0, 5.0]
    assert far.tolist() == [True, False, False, True]
    assert problems == {"rating: outside ratingRange 1 to 5": 2}
    assert all(map(is_far, problems))
    # a heavy weight is not far where it counts as one
    heavy = pa.table({"rating": [1.0], "weight": pa.array([99.0], pa.float32())})
    kept, far, problems = set_far_aside(heavy, Limits(weight=9.0, why=("", "beyond")), keep=True)
    assert (kept.column("weight").to_pylist(), far.any(), problems) == ([1.0], False, {})


class TestDivergence:
    @given(st.integers(1, 5), st.integers(0, 99))
    @settings(deadline=None)
    def test_what_diverges_is_left_out(self, bad: int, start: int) -> None:
        places = (start + np.arange(bad)) % 100
        rating = np.linspace(1, 5, 100).astype(np.float32)
        rating[places] = 1e9
        rows = pa.table({"rating": rating})

        def learn(some: pa.Table) -> int:
            if max(some.column("rating").to_pylist()) > 10:
                raise DivergenceError("ran away")
            return some.num_rows

        learned, out = learn_without_extremes(rows, learn)
        assert set(places) <= set(np.flatnonzero(out))
        assert learned == 100 - out.sum() >= 95

    def test_a_solver_that_always_does_is_not_hidden(self) -> None:
        def learn(some: pa.Table) -> None:
            raise DivergenceError("lower stepSize")

        with pytest.raises(DivergenceError, match="stepSize"):
            learn_without_extremes(pa.table({"rating": [1.0] * 100}), learn)
