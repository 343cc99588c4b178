"""Users that do not come back are forgotten, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from building import settings_of
from hypothesis import given
from hypothesis import strategies as st

from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.errors import DivergenceError
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.parts import state_from_parts, state_parts
from sparkml_sgdals.state.settings import Settings
from sparkml_sgdals.store.version_store import VersionStore

FILTER = settings_of(
    learns_events=True, rank=3, num_negatives=4, factor_prior=0.5, bias_prior=0.1, init_std=0.3,
    ranking_size=0, num_partners=4, repeat_items=False, forget_after=60,
)  # fmt: skip
DESCENT = replace(FILTER, solver="isgd", num_partners=0, num_negatives=0)
BARE = replace(FILTER, num_partners=0)
TIMED = replace(FILTER, forget_after=0, forget_after_micros=60)
SIZE = 20


def batch(users, items, first=0):
    return encode_ratings(
        pa.table(
            {
                "user": pa.array(users, pa.int64()), "item": pa.array(items, pa.int64()),
                "rating": pa.array(np.ones(len(users), np.float32)),
                "time": pa.array(np.arange(first, first + len(users))),
            }
        )
    )  # fmt: skip


def timed(users, items, times):
    return encode_ratings(
        pa.table(
            {
                "user": pa.array(users, pa.int64()), "item": pa.array(items, pa.int64()),
                "rating": pa.array(np.ones(len(users), np.float32)),
                "time": pa.array(times, pa.int64()),
            }
        ),
        keep_times=True,
    )  # fmt: skip


def known(state):
    return set(state.users.index.ids().to_pylist())


def sessions(seed, count):
    """Sessions of four events, three of them at a time; user 7 comes in every batch."""
    rng = np.random.default_rng(seed)
    users = (np.arange(count) // 12) * 3 + np.arange(count) % 3 + 1000
    users[::SIZE] = 7
    return users, rng.integers(0, 30, count)


@pytest.mark.long
@pytest.mark.parametrize("settings", [FILTER, BARE, DESCENT])
@given(seed=st.integers(0, 2**32))
def test_state_does_not_grow_by_every_session(settings, seed):
    users, items = sessions(seed, 600)
    state = ModelState.empty(settings, "int", "int")
    last, forgotten = {}, 0
    for first in range(0, 600, SIZE):
        part = slice(first, first + SIZE)
        before = set(state.users.index.ids().to_pylist())
        report = learn_batch(state, batch(users[part], items[part], first))
        for n, user in enumerate(users[part].tolist(), first + 1):
            last[user] = n
        kept = set(state.users.index.ids().to_pylist())
        gone = before - kept
        idle = {user for user in before if first - last_before(users, user, first) > 60}
        # all who are idle go, once they are a quarter
        assert gone <= idle
        assert len(gone) == report.forgotten_users
        assert (report.rows is None) == bool(gone)
        if len(idle) * 4 >= len(before) and idle:
            # one who comes back in this very batch starts anew
            assert idle - set(users[part].tolist()) == gone
        forgotten += len(gone)
    assert forgotten > 60
    assert 7 in kept
    assert len(kept) < 45
    assert state.users.memory.last[state.users.index.find(pa.array([7]))[0]] == last[7]
    assert state.items.size == len(set(items.tolist()))


def last_before(users, user, first):
    """Number of a user's last event before a batch."""
    return int(np.flatnonzero(users[:first] == user)[-1]) + 1


def test_who_comes_back_in_the_batch_that_forgets_is_new():
    state = ModelState.empty(FILTER, "int", "int")
    learn_batch(state, batch([1, 1], [1, 2]))
    learn_batch(state, batch(range(10, 13), [1, 2, 3], 2))
    learn_batch(state, batch([10] * 61, range(61), 5))
    assert len(state.users.memory.done[state.users.index.find(pa.array([1]))[0]]) == 2
    report = learn_batch(state, batch([1], [5], 66))
    assert (report.forgotten_users, report.new_users) == (3, 1)
    assert len(state.users.memory.done[state.users.index.find(pa.array([1]))[0]]) == 1


def test_versions_and_states_that_travelled_go_on_to_the_same_bits(tmp_path):
    users, items = sessions(1, 400)
    store = VersionStore(str(tmp_path / "model"))
    state, moved = (ModelState.empty(FILTER, "int", "int") for _ in range(2))
    meta = {"settings": FILTER.to_json(), "kinds": ["int", "int"]}
    commit = store.create(state, meta)
    for number, first in enumerate(range(0, 400, SIZE)):
        part = slice(first, first + SIZE)
        report = learn_batch(state, batch(users[part], items[part], first))
        learn_batch(moved, batch(users[part], items[part], first))
        moved, _ = state_from_parts(reversed(list(state_parts(moved))))
        commit = store.commit(state, report.rows, number, commit, None)
        loaded, _ = store.load()
        assert loaded.fingerprint() == state.fingerprint() == moved.fingerprint()


def test_an_error_forgets_nobody():
    users, items = sessions(2, 200)
    state = ModelState.empty(replace(FILTER, forget_after=0), "int", "int")
    for first in range(0, 200, SIZE):
        learn_batch(state, batch(users[first : first + SIZE], items[first : first + SIZE], first))
    state.settings = FILTER
    state.users.mean[state.users.index.find(pa.array([7]))[0]] = np.nan
    before = state.fingerprint()
    with pytest.raises(DivergenceError):
        learn_batch(state, batch([7, 5], [1, 2], 200))
    assert state.fingerprint() == before
    report = learn_batch(state, batch([5, 6], [1, 2], 200))
    assert report.forgotten_users > 0


@pytest.mark.parametrize(
    "settings",
    [
        TIMED,
        pytest.param(
            replace(DESCENT, forget_after=0, forget_after_micros=9), marks=pytest.mark.long
        ),
    ],
)
@given(data=st.data())
def test_who_has_not_come_for_a_time_is_forgotten(settings, data):
    """Batches of any times: old ones, far ones, those before 1970, in any order."""
    after = settings.forget_after_micros
    state, last, users = ModelState.empty(settings, "int", "int"), {}, st.integers(0, 12)
    for _ in range(data.draw(st.integers(1, 8))):
        size, middle = data.draw(st.integers(1, 9)), data.draw(st.integers(-300, 300))
        far = st.sampled_from([-(2**63), -(2**40), 2**40, 2**62])
        near = st.integers(-80, 80).map(lambda n, middle=middle: middle + n)
        times = [data.draw(near | near | near | far) for _ in range(size)]
        rows = [data.draw(users) for _ in range(size)]
        before, now = known(state), sorted(times)[(size - 1) // 2]
        came = {u: min(t for v, t in zip(rows, times, strict=True) if v == u) for u in rows}
        idle = {u for u in before if last[u] < came.get(u, now) - after}
        report = learn_batch(state, timed(rows, range(size), times))
        gone = idle if len(idle) * 4 >= len(before) else set()
        assert report.forgotten_users == len(gone)
        assert known(state) == (before - gone) | set(rows)
        last = {u: t for u, t in last.items() if u not in gone}
        for user, time in zip(rows, times, strict=True):
            last[user] = max(time, last.get(user, -(2**63)))
    ids = state.users.index.ids().to_pylist()
    assert dict(zip(ids, state.users.memory.moment.tolist(), strict=True)) == last


def test_one_event_of_the_far_future_forgets_nobody():
    state = ModelState.empty(TIMED, "int", "int")
    learn_batch(state, timed([1, 2, 3], [1, 2, 3], [0, 1, 2]))
    assert learn_batch(state, timed([1, 4, 5], [4, 5, 6], [3, 4, 2**62])).forgotten_users == 0
    assert known(state) == {1, 2, 3, 4, 5}


def test_times_survive_versions_and_travel(tmp_path):
    users, items = sessions(3, 400)
    store = VersionStore(str(tmp_path / "model"))
    state, moved = (ModelState.empty(TIMED, "int", "int") for _ in range(2))
    meta = {"settings": TIMED.to_json(), "kinds": ["int", "int"]}
    commit, forgotten = store.create(state, meta), 0
    for number, first in enumerate(range(0, 400, SIZE)):
        part = slice(first, first + SIZE)
        rows = timed(users[part], items[part], np.arange(first, first + SIZE))
        report = learn_batch(state, rows)
        learn_batch(moved, rows)
        moved, _ = state_from_parts(reversed(list(state_parts(moved))))
        commit = store.commit(state, report.rows, number, commit, None)
        loaded, _ = store.load()
        assert loaded.fingerprint() == state.fingerprint() == moved.fingerprint()
        assert loaded.users.memory.moment.max() == first + SIZE - 1
        forgotten += report.forgotten_users
    assert forgotten > 40
    assert Settings.from_json(store.meta()["settings"]) == TIMED
