"""A range says where most values lie, whatever a few of them are and however they are cut."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sparkml_sgdals.arrays.value_range import LEARNED_FROM, Tally, ValueRange, width_of

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
STARS = np.arange(0.5, 5.5, 0.5, np.float32)


def tally(values) -> Tally:
    return Tally.of(np.array(values, np.float32))


@given(st.lists(FLOATS, max_size=60), st.integers(0, 60))
def test_parts_add_up_to_the_whole(values, cut) -> None:
    whole = tally(values)
    assert tally(values[:cut]).plus(tally(values[cut:])) == whole
    assert whole.size == len(values)
    for _, least, greatest in whole.buckets:
        assert {np.float32(least), np.float32(greatest)} <= set(np.array(values, np.float32))


@given(FLOATS, st.integers(19, 900), st.integers(0, 5))
def test_one_value_of_any_size_moves_a_range_by_a_width_at_most(value, others, seed) -> None:
    stars = np.random.default_rng(seed).choice(STARS, others)
    low, high = tally([*stars, value]).range()
    assert 0.5 - 4.5 <= low <= 1.5
    assert 4.0 <= high <= 5.0 + 4.5
    assert width_of(low, high) <= 9.0


def test_what_is_often_there_counts() -> None:
    """Zero or a hundred, and few hundreds among them: both are ratings."""
    assert tally([0.0] * 970 + [100.0] * 30).range() == (0.0, 100.0)
    assert tally([0.0] * 999 + [100.0]).range() == (0.0, 0.0)
    assert width_of(0.0, 0.0) == 1.0
    assert width_of(5.0, 5.0) == 5.0


def test_too_few_say_nothing() -> None:
    assert tally([1.0] * 19).range() is None
    assert Tally().range() is None


@given(st.lists(FLOATS, max_size=30))
def test_a_range_settles_and_is_read_again(values) -> None:
    known = ValueRange().after(tally(values))
    assert ValueRange.from_json(known.to_json()) == known
    settled = known.after(tally(np.resize(STARS, LEARNED_FROM)))
    assert settled.settled is not None
    assert settled.after(tally([1e6] * 5000)) == settled
    assert ValueRange.from_json(settled.to_json()) == settled
