"""Who does one item again and again does not say what others like, or what is popular."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from building import settings_of
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkml_sgdals.arrays.ratings import Ratings, encode_ratings
from sparkml_sgdals.learn import event_tables, events, shares
from sparkml_sgdals.learn.event_tables import fit_events
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.learn.shares import events_that_count
from sparkml_sgdals.state.model_state import ModelState

EVENTS = settings_of(learns_events=True, rank=4, num_negatives=8, max_iter=4, table_rank=8)
STREAM = replace(EVENTS, table_rank=0)
USERS, ITEMS, COUNT, TOP = 80, 60, 1000, 10
USER, ITEM = 900, 950
"""of the pair that comes again and again"""
MOST = 20


def good(seed: int = 1, count: int = COUNT) -> tuple[np.ndarray, np.ndarray]:
    """Users and items of events: each user likes every fifth item, early ones more."""
    rng = np.random.default_rng(seed)
    users = rng.integers(0, USERS, count)
    items = (5 * np.minimum(rng.geometric(0.25, count) - 1, ITEMS // 5 - 1) + users % 5) % ITEMS
    return users, items


def again(times: int, at: int) -> pa.Table:
    """The good events, and the pair in their midst."""
    users, items = good()
    pair = np.full(times, USER), np.full(times, ITEM)
    return table(np.insert(users, at, pair[0]), np.insert(items, at, pair[1]))


def table(users: np.ndarray, items: np.ndarray, timed: bool = True, first: int = 0) -> pa.Table:
    columns = {"user": users, "item": items, "rating": np.ones(len(users), np.float32)}
    if timed:
        columns["time"] = np.arange(first, first + len(users))
    return pa.table(columns)


def streamed(rows: pa.Table, size: int) -> ModelState:
    state = ModelState.empty(STREAM, "int", "int")
    for first in range(0, len(rows), size):
        learn_batch(state, encode_ratings(rows.slice(first, size)))
    return state


def fitted(rows: pa.Table) -> ModelState:
    state = ModelState.empty(EVENTS, "int", "int")
    return fit_events(state, encode_ratings(rows), [4], 1, lambda *_: None)[0][0]


def shared(state: ModelState) -> list[np.ndarray]:
    """What all users and items have in common, and what is kept of items."""
    memory = state.items.memory
    return [
        *(getattr(memory, name) for name in ("popularity", "context", "strength", "last")),
        state.items.mean, state.items.count, np.array(state.popularity_parts),
        np.array([state.partners.share, state.events_learned, state.repeats]),
    ]  # fmt: skip


@given(st.integers(MOST + 1, 3000), st.integers(0, COUNT))
@settings(deadline=None, max_examples=8)
def test_in_a_row_more_than_twenty_change_nothing(times: int, at: int) -> None:
    few, many = (streamed(again(number, at), 10_000) for number in (MOST, times))
    for own, other in zip(shared(few), shared(many), strict=True):
        np.testing.assert_array_equal(own, other)
    row = many.users.index.find(pa.array([USER]))
    # it is known how often it came
    assert many.users.count[row] == times
    assert many.counters.ratings == COUNT + times


@given(st.integers(1, 60), st.integers(0, 2**32))
@settings(deadline=None, max_examples=10)
def test_however_batches_are_cut(size: int, seed: int) -> None:
    """So also a pair alone in its batches, one after another."""
    times = int(np.random.default_rng(seed).integers(100, 300))
    state = ModelState.empty(STREAM, "int", "int")
    learn_batch(state, encode_ratings(again(MOST, 500)))
    before = shared(state)
    for first in range(0, times, size):
        count = min(size, times - first)
        rows = table(np.full(count, USER), np.full(count, ITEM), first=9_000 + first)
        learn_batch(state, encode_ratings(rows))
    # nineteen of the first twenty were repeats: one more counts
    assert state.events_learned <= COUNT + MOST + 1
    assert abs(before[0] - shared(state)[0]).max() <= 1
    assert state.users.count[state.users.index.find(pa.array([USER]))] == MOST + times


def test_recall_of_others_stays() -> None:
    """Now and then comes a batch of the pair alone."""
    usual, found = recalled(0), recalled(400)
    assert usual[1] == found[1]
    assert 0.97 < found[0] / usual[0] < 1.03


def recalled(times: int) -> tuple[int, int]:
    """Of good events, batch by batch, how many were among the best before, and how many ranked."""
    ranking = replace(STREAM, ranking_size=TOP, num_partners=8)
    hits = ranked = 0
    state = ModelState.empty(ranking, "int", "int")
    users, items = good(2, 6000)
    first = np.sort(np.unique(users * ITEMS + items, return_index=True)[1])
    users, items = users[first], items[first]
    for number, begin in enumerate(range(0, users.size, 50)):
        some = slice(begin, begin + 50)
        rows = table(users[some], items[some], first=10_000 * number)
        sums = learn_batch(state, encode_ratings(rows)).sums
        hits, ranked = hits + sums.hits, ranked + sums.ranked
        if times and number % 4 == 3:
            pair = np.full(times, USER), np.full(times, ITEM)
            learn_batch(state, encode_ratings(table(*pair, first=10_000 * number + 5_000)))
    return hits, ranked


@given(st.integers(60, 500), st.integers(1100, 20_000), st.integers(100, 2000), st.booleans())
@settings(deadline=None, max_examples=8)
def test_a_user_who_goes_round_is_a_part_of_all(
    around: int, times: int, size: int, table_first: bool
) -> None:
    users, items = good(3, 6000)
    state = fitted(table(users, items)) if table_first else streamed(table(users, items), 1000)
    before, uncounted = int(state.items.count.sum()), 0
    for first in range(0, times, size):
        own = np.arange(first, min(first + size, times))
        rows = table(np.full(own.size, USER), 100_000 + own % around, first=10_000 + first)
        uncounted += learn_batch(state, encode_ratings(rows)).sums.uncounted
    learned = int(state.items.count.sum()) - before
    assert learned == times - uncounted
    # twenty times the mean of all 81 users
    assert 1000 <= learned <= 20 * (before + learned + size) / (USERS + 1)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 40)), min_size=1, max_size=150),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 40)), max_size=150),
    st.integers(5, 60), st.integers(2, 20), st.integers(1, 4),
)  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_what_counts_of_users_equals_a_slow_count(
    first: list[tuple[int, int]], then: list[tuple[int, int]], least: int, part: int, mean: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("_OF_A_USER", least), ("_A_TWENTIETH", part), ("_USERS", mean)):
            patch.setattr(shares, name, value)
        state = ModelState.empty(STREAM, "int", "int")
        done: dict[int, int] = {}
        learned = 0
        for number, drawn in enumerate((first, then)):
            if not drawn:
                continue
            # each pair once, so that no bound on pairs leaves any out
            pairs = [(user, 100 * n + item) for n, (user, item) in enumerate(drawn)]
            users, items = map(np.array, zip(*pairs, strict=True))
            rows = encode_ratings(table(users, items, first=1000 * number))
            found = events_that_count(state, rows)
            total = learned + len(pairs)
            most = max(least, total // part, mean * total // len({*done, *users.tolist()}))
            expected = []
            for user in users.tolist():
                expected.append(done.get(user, 0) < most)
                done[user] = done.get(user, 0) + 1
            mask = np.ones(len(rows), bool) if found is None else found
            np.testing.assert_array_equal(mask, expected)
            assert learn_batch(state, rows).sums.uncounted == expected.count(False)
            learned += sum(expected)


@pytest.mark.parametrize("timed", [True, False])
def test_a_table_that_holds_one_pair_too_often(timed: bool) -> None:
    rows = again(50_000, 400)
    usual, found = table(*good(), timed), rows if timed else rows.drop_columns("time")
    states = [fitted(usual), fitted(found)]
    products = []
    for state in states:
        own = [side.index.find(pa.array(range(count))) for side, count in
               ((state.users, USERS), (state.items, ITEMS))]  # fmt: skip
        known = own[1] >= 0
        tastes = state.users.taste[own[0], 1:], state.items.taste[own[1][known], 1:]
        products.append(tastes[0] @ tastes[1].T)
    tops = [np.argsort(-some, axis=1)[:, :TOP] for some in products]
    alike = np.mean([len(set(a) & set(b)) for a, b in zip(*tops, strict=True)]) / TOP
    assert alike > 0.8
    row = states[1].items.index.find(pa.array([ITEM]))
    assert states[1].items.count[row] <= max(MOST, len(rows) // 100)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=200),
    st.booleans(),
)
def test_what_counts_equals_a_slow_count(pairs: list[tuple[int, int]], timed: bool) -> None:
    users, items = map(np.array, zip(*pairs, strict=True))
    rows = encode_ratings(table(users, items, timed))
    state = ModelState.empty(STREAM, "int", "int")
    found = events_that_count(state, rows)
    last: dict[int, tuple[int, int]] = {}
    came: dict[tuple[int, int], int] = {}
    expected = []
    for user, item in zip(rows.users.tolist(), rows.items.tolist(), strict=True):
        run = last[user][1] + 1 if user in last and last[user][0] == item else 0
        last[user] = item, run
        number = came[user, item] = came.get((user, item), -1) + 1
        expected.append(run < MOST and number < MOST)
    np.testing.assert_array_equal(np.ones(len(rows), bool) if found is None else found, expected)


def test_without_repeats_all_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bits are those that there were before."""
    users, items = good()
    first = np.unique(users * ITEMS + items, return_index=True)[1]
    rows = table(users[np.sort(first)], items[np.sort(first)])
    states = [streamed(rows, 100), fitted(rows)]

    def all_of_them(_: ModelState, ratings: Ratings) -> None:
        assert len(ratings)

    for module in (events, event_tables):
        monkeypatch.setattr(module, "events_that_count", all_of_them)
    assert [state.fingerprint() for state in (streamed(rows, 100), fitted(rows))] == [
        state.fingerprint() for state in states
    ]
