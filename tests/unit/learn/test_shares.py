"""Who sends one pair again and again does not speak for all."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from building import settings_of
from feeding import COUNT, clean, error, feed, ratings, table
from hypothesis import given
from hypothesis import strategies as st

from sparkml_sgdals.arrays.ratings import Ratings, encode_ratings
from sparkml_sgdals.learn.shares import capped_items, counts_for_all
from sparkml_sgdals.learn.whole_table import fit_ratings
from sparkml_sgdals.state.model_state import ModelState


def again(count: int, high: float, low: float) -> pa.Table:
    """One pair, again and again."""
    values = np.where(np.arange(count) % 2, high, low).astype(np.float32)
    return pa.table(
        {
            "user": np.full(count, 5), "item": np.full(count, 7), "rating": values,
            "time": np.arange(count) + 5000, "weight": np.ones(count, np.float32),
        }
    )  # fmt: skip


def stated(state: ModelState) -> float:
    """Median of the stated deviations of held-out ratings."""
    held = {name: ratings()[name][COUNT:] for name in ("user", "item")}
    rows = [
        side.index.find(pa.array(held[name]))
        for name, side in (("user", state.users), ("item", state.items))
    ]
    _, variances = state.predict(*rows)
    units = state.scale.spread**2
    return float(np.sqrt(np.median(variances + state.noise * state.noise_factors(*rows) * units)))


def learned(*batches: pa.Table) -> ModelState:
    state = ModelState.empty(settings_of(rank=4), "int", "int")
    for batch in batches:
        feed(state, batch, len(batch), len(batch))
    return state


@pytest.mark.long
@given(
    st.sampled_from([0.5, 3.0, 5.0]), st.sampled_from([0.5, 4.9, 5.0]),
    st.sampled_from([(20_000, 1), (10, 100)]),
)  # fmt: skip
def test_stated_deviations_of_others_stay(high, low, size) -> None:
    count, times = size
    state = learned(table(slice(COUNT)), *[again(count, high, low)] * times)
    usual = stated(learned(table(slice(COUNT))))
    assert 0.8 * usual < stated(state) < 1.3 * usual
    assert error(state) < 1.05 * clean(1000, 1000)


@pytest.mark.parametrize("low", [4.9, 5.0])
def test_the_scale_and_the_range_are_not_one_pairs(low: float) -> None:
    """It comes first, more often than a scale takes to settle."""
    state = learned(again(1500, 5.0, low), table(slice(COUNT)))
    assert state.scale.spread > 0.5
    assert state.counters.ratings == COUNT + 1500
    assert state.ranges.rating.range() == learned(table(slice(COUNT))).ranges.rating.range()
    assert error(state) < 1.05 * clean(1000, 1000)


def test_a_table_that_holds_one_pair_too_often() -> None:
    usual, spoilt = (ModelState.empty(settings_of(rank=4), "int", "int") for _ in range(2))
    fit_ratings(encode_ratings(table(slice(COUNT))), usual)
    fit_ratings(
        encode_ratings(pa.concat_tables([table(slice(COUNT)), again(50_000, 5, 5)])), spoilt
    )
    assert 0.7 * stated(usual) < stated(spoilt) < 1.3 * stated(usual)
    assert error(spoilt) < 1.05 * error(usual)


PAIRS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), max_size=80)
TIMES = 5


def encoded(pairs: list[tuple[int, int]]) -> Ratings:
    users, items = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    ones = np.ones(len(pairs), np.float32)
    return encode_ratings(pa.table({"user": users, "item": items, "rating": ones}))


@given(st.lists(PAIRS, max_size=4))
def test_a_pair_and_an_id_count_a_few_times(batches) -> None:
    state = ModelState.empty(settings_of(rank=1), "int", "int")
    for pairs in batches:
        batch = encoded(pairs)
        counted = counts_for_all(state, batch)
        chosen = np.ones(len(batch), bool) if counted is None else counted
        users, items = batch.user_ids.to_numpy(), batch.item_ids.to_numpy()
        found = Counter(zip(users[batch.users[chosen]], items[batch.items[chosen]], strict=True))
        sent = Counter(pairs)
        assert all(times <= min(TIMES, sent[pair]) for pair, times in found.items())
        ids, counts = state.users.index.ids().to_pylist(), state.users.count.tolist()
        seen = dict(zip(ids, counts, strict=True))
        partners = len({*state.items.index.ids().to_pylist(), *items.tolist()})
        for user in set(users.tolist()):
            mine = sum(times for (u, _), times in found.items() if u == user)
            assert mine <= max(2 * partners - seen.get(user, 0), 0)
        if not state.users.size and max(sent.values(), default=0) <= 2:
            assert counted is None
        user_rows, _ = state.users.ensure(batch.user_ids)
        item_rows, _ = state.items.ensure(batch.item_ids)
        state.users.count[user_rows] += np.bincount(batch.users, minlength=user_rows.size)
        state.items.count[item_rows] += np.bincount(batch.items, minlength=item_rows.size)


def test_items_of_a_table() -> None:
    assert capped_items(np.array([3, 20, 0]), 4) is None
    shares = capped_items(np.array([3, 40, 0]), 4)
    assert shares is not None
    assert shares.tolist() == [1.0, 0.5, 1.0]
