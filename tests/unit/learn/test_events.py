"""Learning events: the kernels against slow references, and what a state keeps of events."""

from __future__ import annotations

import math
from dataclasses import replace

import hypothesis
import numpy as np
import pyarrow as pa
import pytest
import reference
from building import id_array, settings_of
from hypothesis import given
from hypothesis import strategies as st
from reference_events import LogisticFilter, isgd

from sparkml_sgdals.arrays.hashing import ITEM_SIDE, USER_SIDE
from sparkml_sgdals.arrays.ipc import to_bytes
from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.errors import DivergenceError
from sparkml_sgdals.fit.one_task import _Train
from sparkml_sgdals.kernels.events.draws import SHARES_RATE, draw_pool, guide_draws
from sparkml_sgdals.kernels.events.filter import (
    CONTEXT_DECAY,
    CONTEXT_ITEMS,
    MIN_INFORMATION,
    filter_events,
)
from sparkml_sgdals.learn import events
from sparkml_sgdals.learn.events import learn_events
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.state.event_scores import serving_state
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.parts import part_batch, state_from_parts, state_parts
from sparkml_sgdals.store.forgetting import forget_users
from sparkml_sgdals.store.version_store import VersionStore

EVENTS = settings_of(
    learns_events=True, rank=3, num_negatives=4, factor_prior=0.5, bias_prior=0.1, init_std=0.3,
    seed=7, ranking_size=0,
)  # fmt: skip
DESCENT = replace(
    EVENTS, solver="isgd", num_negatives=0, step_size=0.1, regs=(0.0, 0.0, 0.02, 0.01)
)


def table(users, items, values=None, first=0, weights=None):
    """A batch in this order."""
    columns = {
        "user": id_array(users),
        "item": id_array(items),
        "rating": pa.array(np.ones(len(users)) if values is None else values, pa.float32()),
        "time": pa.array(np.arange(first, first + len(users)), pa.int64()),
    }
    if weights is not None:
        columns["weight"] = pa.array(weights, pa.float32())
    return pa.table(columns)


def empty(settings=EVENTS, kinds=("int", "int")):
    return ModelState.empty(settings, *kinds)


@st.composite
def streams(draw):
    """Batches of events of few ids, so that pairs repeat; some rows say that nothing was liked."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    values = [rng.choice([1.0, 1.0, 3.0, 0.0, -2.0], size) for size in sizes]
    users = [rng.integers(0, 5, size).tolist() for size in sizes]
    items = [rng.integers(0, 7, size).tolist() for size in sizes]
    return users, items, values


def learned_by_reference(settings, users, items, values):
    """The state after the batches, by item and by user, from loops in float64."""
    u, i = range(5), range(7)

    def start(ids, side):
        starts = [reference.start(n, side, settings.rank, settings.seed, 0.3) for n in ids]
        return np.array(starts)

    prior = np.full(settings.rank + 1, settings.factor_prior)
    prior[0] = settings.bias_prior
    slow = LogisticFilter(
        start(u, USER_SIDE), np.tile(prior, (5, 1)), start(i, ITEM_SIDE), np.tile(prior, (7, 1)),
        np.zeros((7, settings.rank)), np.full((7, settings.rank), 0.4 * settings.factor_prior),
        sorted(i, key=reference.key),
    )  # fmt: skip
    number = 0
    for some_users, some_items, some_values in zip(users, items, values, strict=True):
        before = len(slow.events)
        for x, y, value in zip(some_users, some_items, some_values, strict=True):
            weight = (1.0 + settings.alpha * abs(value)) / (1.0 + settings.alpha)
            salt = (number + settings.seed) * 0xA0761D6478BD642F & reference.MASK
            key = reference.pair_key(x, y) ^ salt
            slow.learn(
                x, y, value, weight, key, settings.num_negatives, settings.drift,
                settings.implicit_prior, before,
            )  # fmt: skip
            number += 1
    return slow


def by_id(table_of_side):
    return {n: row for row, n in enumerate(table_of_side.index.ids().to_pylist())}


def learn_all(settings, users, items, values):
    state = empty(settings)
    first = 0
    for batch in zip(users, items, values, strict=True):
        learn_events(state, encode_ratings(table(*batch, first=first)))
        first += len(batch[0])
    return state


def test_constants_are_those_of_the_reference():
    assert (CONTEXT_ITEMS, CONTEXT_DECAY, MIN_INFORMATION, SHARES_RATE) == (8, 0.7, 0.05, 0.001)


@given(streams(), st.booleans(), st.sampled_from([0.0, 0.01]))
def test_filter_equals_the_reference(batches, with_context, drift):
    settings = replace(EVENTS, implicit_prior=with_context, drift=drift)
    fast, slow = learn_all(settings, *batches), learned_by_reference(settings, *batches)
    memory = fast.items.memory
    for n, row in by_id(fast.items).items():
        np.testing.assert_allclose(fast.items.mean[row], slow.item_mean[n], rtol=2e-3, atol=2e-4)
        np.testing.assert_allclose(fast.items.var[row], slow.item_var[n], rtol=2e-3, atol=1e-5)
        np.testing.assert_allclose(memory.context[row], slow.context[n], rtol=2e-3, atol=2e-4)
        np.testing.assert_allclose(memory.context_var[row], slow.context_var[n], rtol=2e-3)
    keys = {reference.key(n): n for n in range(7)}
    for n, row in by_id(fast.users).items():
        np.testing.assert_allclose(
            fast.users.mean[row, 1:], slow.user_mean[n, 1:], rtol=2e-3, atol=2e-4
        )
        np.testing.assert_allclose(fast.users.var[row, 1:], slow.user_var[n, 1:], rtol=2e-3)
        done = fast.users.memory.done[row].view(np.uint64).tolist()
        assert [keys[key] for key in done] == slow.done.get(n, [])
    assert fast.events_learned == len(slow.events)
    if fast.popularity_parts:
        np.testing.assert_allclose(fast.popularity_parts, slow.parts, rtol=1e-5)


@given(streams())
def test_popularity_and_scores_equal_the_reference(batches):
    fast, slow = learn_all(EVENTS, *batches), learned_by_reference(EVENTS, *batches)
    if not slow.events:
        return
    served = serving_state(fast)
    items, users = by_id(fast.items), by_id(fast.users)
    shares = np.zeros(7)
    for part, half_life in zip(slow.parts, (125.0, 500, 2000, 8000, 32000, math.inf), strict=True):
        faded = slow.faded(slow.events, half_life)
        shares += part * faded / faded.sum()
    for x, row in users.items():
        # the context of the event to come: nothing is left out of it
        recent = slow.shares(x, -1, True)
        taste = slow.user_mean[x, 1:] + sum(a * slow.context[i] for i, a in recent)
        for y, at in items.items():
            score = math.log(0.99 * shares[y] + 0.01 / (len(items) + 1))
            score += slow.item_mean[y, 0] + taste @ slow.item_mean[y, 1:]
            found = served.predict(np.array([row]), np.array([at]))[0][0]
            assert found == pytest.approx(score, rel=5e-3, abs=5e-3)


@given(streams(), st.integers(0, 3))
def test_isgd_equals_the_reference(batches, negatives):
    users, items, values = batches
    likes = [np.ones(len(some)) for some in values]
    settings = replace(DESCENT, num_negatives=negatives)
    fast = learn_all(settings, users, items, likes)
    mean = [
        np.array([reference.start(n, side, 3, 7, 0.3)[1:] for n in range(size)])
        for side, size in ((USER_SIDE, 5), (ITEM_SIDE, 7))
    ]
    flat = [[n for some in side for n in some] for side in (users, items)]
    isgd(*flat, *mean, 0.1, (0.02, 0.01), negatives)
    for side, slow in zip((fast.users, fast.items), mean, strict=True):
        assert not side.mean[:, 0].any()
        for n, row in by_id(side).items():
            np.testing.assert_allclose(side.mean[row, 1:], slow[n], rtol=1e-4, atol=1e-5)


def test_isgd_by_hand():
    """One event, one feature: U = 0.5, P = 0.4, error 0.8."""
    state = empty(replace(DESCENT, rank=1))
    state.users.ensure(id_array([1]))
    state.items.ensure(id_array([2]))
    state.users.mean[0, 1], state.items.mean[0, 1] = 0.5, 0.4
    learn_events(state, encode_ratings(table([1], [2])))
    assert state.users.mean[0, 1] == pytest.approx(0.5 + 0.1 * (0.8 * 0.4 - 0.02 * 0.5))
    assert state.items.mean[0, 1] == pytest.approx(0.4 + 0.1 * (0.8 * 0.5 - 0.01 * 0.4))


@pytest.mark.parametrize(("weight", "step"), [(3.0, 0.3), (1e4, 1 / 1.02), (1e30, 1 / 1.02)])
def test_a_weight_takes_isgd_no_farther_than_to_the_target(weight, step):
    state = empty(replace(DESCENT, rank=1))
    state.users.ensure(id_array([1]))
    state.items.ensure(id_array([2]))
    state.users.mean[0, 1], state.items.mean[0, 1] = 0.5, 0.4
    learn_events(state, encode_ratings(table([1], [2], weights=[weight])))
    assert state.users.mean[0, 1] == pytest.approx(0.5 + step * (0.8 * 0.4 - 0.02 * 0.5))
    assert state.items.mean[0, 1] == pytest.approx(0.4 + step * (0.8 * 0.5 - 0.01 * 0.4))


@given(
    st.lists(st.tuples(st.integers(0, 299), st.floats(1, 1e30)), min_size=1, max_size=5),
    st.integers(0, 1000),
)
@hypothesis.settings(deadline=None, max_examples=50)
def test_no_weight_poisons_isgd(heavy, seed):
    """Neither the events that come with it nor those that come after it."""
    users, items = some_events(seed=seed)
    weights = np.ones(len(users))
    for place, weight in heavy:
        weights[place] = weight
    state = empty(replace(DESCENT, num_negatives=2))
    learn_events(state, encode_ratings(table(users, items, weights=weights)))
    learn_events(state, encode_ratings(table(users, items, first=300)))
    for side in (state.users, state.items):
        assert np.abs(side.mean).max() < 10


def some_events(count=300, seed=1, names=False):
    rng = np.random.default_rng(seed)
    users, items = rng.integers(0, 20, count).tolist(), (rng.integers(0, 30, count) ** 2).tolist()
    if names:
        return [f"u{n}" for n in users], [f"i{n}" for n in items]
    return users, items


@pytest.mark.parametrize("settings", [EVENTS, replace(DESCENT, num_negatives=2)])
@pytest.mark.parametrize(("names", "pool"), [(False, 2000), (True, 2000), (True, 30)])
def test_a_state_that_travelled_learns_on_to_the_same_bits(settings, names, pool, monkeypatch):
    """Rows lie in another order then: nothing may depend on it."""
    monkeypatch.setattr(events, "_POOL", pool)
    users, items = some_events(names=names)
    kinds = ("str", "str") if names else ("int", "int")
    whole, moved = empty(settings, kinds), empty(settings, kinds)
    for first in range(0, 300, 100):
        part = slice(first, first + 100)
        batch = table(users[part], items[part], first=first)
        learn_events(whole, encode_ratings(batch))
        learn_events(moved, encode_ratings(batch))
        moved, _ = state_from_parts(reversed(list(state_parts(moved))))
    assert whole.fingerprint() == moved.fingerprint()
    served = [serving_state(state).items.to_arrow() for state in (whole, moved)]
    assert served[0].equals(served[1])


def test_the_order_of_rows_does_not_matter():
    users, items = some_events()
    batch = table(users, items)
    shuffled = batch.take(pa.array(np.random.default_rng(3).permutation(300)))
    one, other = empty(), empty()
    learn_events(one, encode_ratings(batch))
    learn_events(other, encode_ratings(shuffled))
    assert one.fingerprint() == other.fingerprint()


def test_rows_that_are_reported_are_all_that_changed():
    """A version is its base and the rows of every batch since."""
    users, items = some_events()
    state, kept = empty(), empty()
    for first in range(0, 300, 50):
        part = slice(first, first + 50)
        report = learn_batch(state, encode_ratings(table(users[part], items[part], first=first)))
        kept.users.put_arrow(state.users.to_arrow(report.user_rows))
        kept.items.put_arrow(state.items.to_arrow(report.item_rows))
        kept.set_scalars(state.scalars())
    assert kept.fingerprint() == state.fingerprint()


def test_how_many_draws_are_kept_at_once_does_not_matter(monkeypatch):
    users, items = some_events()
    whole, chunked = empty(), empty()
    learn_events(whole, encode_ratings(table(users, items)))
    monkeypatch.setattr(events, "_CHUNK", 7)
    learn_events(chunked, encode_ratings(table(users, items)))
    assert whole.fingerprint() == chunked.fingerprint()


def test_what_is_broken_off_in_a_later_chunk_leaves_the_state_as_it_was(monkeypatch):
    users, items = some_events()
    state = empty()
    learn_events(state, encode_ratings(table(users, items)))
    before, calls = state.fingerprint(), []

    def break_off(*given):
        calls.append(given)
        filter_events(*given)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(events, "_CHUNK", 7)
    monkeypatch.setattr(events, "filter_events", break_off)
    with pytest.raises(KeyboardInterrupt):
        learn_events(state, encode_ratings(table(users, items, first=300)))
    assert state.fingerprint() == before


@pytest.mark.parametrize("number", [1, 2, 3, 1000])
@pytest.mark.parametrize("buckets", [1, 4, 2048])
def test_the_guide_of_draws_holds_the_item_sought(number, buckets):
    """As a search of all of them finds it, also at the ends of buckets."""
    rng = np.random.default_rng(number)
    weights = rng.random((6, number)) * (rng.random((6, number)) < 0.6)
    cumulative = np.cumsum(weights, axis=1)
    guide = guide_draws(cumulative, buckets)
    share = np.concatenate([rng.random(2000), np.arange(buckets) / buckets, [np.nextafter(1, 0)]])
    bucket = (share * buckets).astype(int)
    for part in range(6):
        sought = np.searchsorted(cumulative[part], share * cumulative[part, -1], side="right")
        sought = np.minimum(sought, number - 1)
        assert (guide[part, bucket] <= sought).all()
        assert (sought <= guide[part, bucket + 1]).all()


@given(st.integers(1, 60), st.integers(1, 300), st.integers(0, 2**32))
def test_a_pool_holds_each_item_as_often_as_it_is_drawn(number, size, seed):
    """But for one item at either end of its share; a part that nothing is in holds none."""
    rng = np.random.default_rng(seed)
    weights = rng.random((6, number)) * (rng.random((6, number)) < 0.6)
    weights[rng.integers(6)] = 0.0
    order, parts = rng.permutation(number).astype(np.int32), rng.dirichlet(np.ones(6))
    cumulative = np.cumsum(weights[:, order], axis=1)
    begins, pool = draw_pool(cumulative, order, parts, size, np.uint64(seed))
    again = draw_pool(cumulative, order, parts, size, np.uint64(seed))
    assert pool.tolist() == again[1].tolist()
    assert begins.tolist() == again[0].tolist()
    for part in range(6):
        own = pool[begins[part] : begins[part + 1]]
        total = weights[part].sum()
        assert own.size == (max(int(size * parts[part] + 0.5), 1) if total else 0)
        found = np.bincount(own, minlength=number)
        if total:
            assert (np.abs(found - own.size * weights[part] / total) < 2.0).all()
            assert not found[weights[part] == 0.0].any()
    nothing = draw_pool(cumulative, order, parts, 0, np.uint64(seed))
    assert not nothing[0].any()
    assert not nothing[1].size


def test_rows_of_a_large_batch_share_what_they_draw_from(monkeypatch):
    """A batch that draws more than the pool holds reaches fewer items."""
    settings = replace(EVENTS, implicit_prior=False, num_partners=0)
    rng = np.random.default_rng(2)
    users, items = rng.integers(0, 500, 6000).tolist(), rng.integers(0, 3000, 6000).tolist()
    reached = {}
    for pool in (40, 10**9):
        monkeypatch.setattr(events, "_POOL", pool)
        state = empty(settings)
        learn_events(state, encode_ratings(table(users, items)))
        again = state.copy()
        batch = encode_ratings(table(users[:200], items[:200], first=6000))
        reached[pool] = learn_events(state, batch).item_rows
        learn_events(again, batch)
        assert again.fingerprint() == state.fingerprint()
    # 800 draws of 80 items, beside those of the batch
    assert len(reached[40]) < 200 + 90
    assert len(reached[10**9]) > 200 + 300


def test_many_draws_at_once_find_the_items_that_few_find():
    """Batches that make a guide, and such that do not, onto the same model."""
    users, items = some_events(2000)
    one, other = empty(), empty()
    for state in (one, other):
        learn_events(state, encode_ratings(table(users, (np.array(items) * 7).tolist())))
    assert one.items.size < 4 * 4 * 20
    for state, monkeyed in ((one, False), (other, True)):
        with pytest.MonkeyPatch.context() as patch:
            if monkeyed:
                patch.setattr(events, "guide_draws", lambda sums, _: guide_draws(sums, 1))
            learn_events(state, encode_ratings(table(users[:20], items[:20], first=2000)))
    assert one.fingerprint() == other.fingerprint()


def test_an_event_says_more_the_higher_its_rating():
    """As ALS's confidence; with alpha 0 every rating counts the same."""

    def moved(alpha, rating):
        state = empty(replace(EVENTS, alpha=alpha))
        learn_events(state, encode_ratings(table([1], [2], [rating])))
        return float(state.items.mean[0, 0])

    assert moved(1.0, 5.0) > moved(1.0, 1.0) > 0
    assert moved(0.0, 5.0) == moved(0.0, 1.0) == moved(3.0, 1.0)
    assert moved(1.0, -1.0) < 0


def test_items_done_are_never_drawn():
    """A user who has done everything gets no step towards 0."""
    state = empty(replace(EVENTS, implicit_prior=False, num_partners=0))
    learn_events(state, encode_ratings(table([1] * 6, [1, 2, 3, 4, 5, 6])))
    before = state.items.mean.copy()
    report = learn_events(state, encode_ratings(table([1], [3], first=6)))
    assert report.item_rows.tolist() == state.items.index.find(id_array([3])).tolist()
    assert (state.items.mean != before).any(axis=1).sum() == 1


def test_a_forgotten_item_is_passed_over():
    users, items = some_events()
    state = empty()
    learn_events(state, encode_ratings(table(users, items)))
    state.items = state.items.without(id_array([items[0], items[1]]))
    learn_events(state, encode_ratings(table(users[:50], items[2:52], first=300)))
    assert np.isfinite(serving_state(state).users.mean).all()


@pytest.mark.parametrize("settings", [EVENTS, DESCENT])
def test_tables_without_rows_are_read(settings, tmp_path):
    """A stream from nothing starts by writing and reading one."""
    state = empty(settings)
    state.users.put_arrow(state.users.to_arrow())
    state.items.put_arrow(state.items.to_arrow())
    store = VersionStore(str(tmp_path / "m"))
    made = store.create(state, {"settings": settings.to_json(), "kinds": ["int", "int"]})
    loaded, _ = store.load(made.version)
    assert loaded.fingerprint() == state.fingerprint()


@pytest.mark.parametrize("settings", [EVENTS, DESCENT])
def test_all_users_can_be_forgotten(settings):
    users, items = some_events()
    state = empty(settings)
    learn_events(state, encode_ratings(table(users, items)))
    state.users = state.users.without(id_array(sorted(set(users))))
    assert state.users.size == 0
    learn_events(state, encode_ratings(table([5], [items[0]], first=300)))
    assert state.users.size == 1


def test_the_only_user_of_a_version_can_be_forgotten(tmp_path):
    state = empty()
    store = VersionStore(str(tmp_path / "m"))
    meta = {"settings": EVENTS.to_json(), "kinds": ["int", "int"], "origin": "nothing"}
    newest = store.create(state, meta | {"pathId": "a", "params": {}})
    for batch, (users, items) in enumerate(
        [([1, 1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 1, 2, 3, 4, 5]), ([9], [2]), ([3], [4])]
    ):
        report = learn_batch(state, encode_ratings(table(users, items, first=9 * batch)))
        rows = report.user_rows, report.item_rows
        newest = store.commit(state, rows, batch, newest, {}, check=lambda: None)
    forget_users(store, id_array([9]))
    for version in VersionStore(str(tmp_path / "m")).numbers():
        loaded, _ = VersionStore(str(tmp_path / "m")).load(version)
        assert loaded.users.index.find(id_array([9])).tolist() == [-1]


@pytest.mark.parametrize("settings", [EVENTS, replace(DESCENT, num_negatives=2)])
def test_a_fit_learns_in_the_order_of_time_as_update_does(settings):
    """The task of a fit, with times against the order of the pairs' hashes."""
    users, items = some_events()
    batch = table(users, items)
    task = _Train(settings.to_json(), ("int", "int"), 1, (1,), "")
    sent = list(task(iter([part_batch("ratings", to_bytes(batch))])))
    parts = [
        (part.column("kind")[0].as_py().partition(":")[2], part.column("payload")[0].as_py())
        for part in sent
    ]
    fitted, _ = state_from_parts(parts)
    updated = empty(settings)
    learn_batch(updated, encode_ratings(batch))
    assert fitted.fingerprint() == updated.fingerprint()


def test_divergence_leaves_the_state_as_it_was():
    users, items = some_events()
    state = empty(replace(DESCENT, step_size=1e6))
    learn_events(state, encode_ratings(table([1], [2])))
    before = state.fingerprint()
    with pytest.raises(DivergenceError, match="isgd left factors that are not finite"):
        learn_events(state, encode_ratings(table(users, items)))
    assert state.fingerprint() == before


def test_weights_below_what_a_number_holds_leave_the_state_as_it_was():
    state = empty(replace(EVENTS, alpha=1e9))
    learn_events(state, encode_ratings(table([1, 1, 2], [1, 2, 3])))
    before = state.fingerprint()
    with pytest.raises(DivergenceError, match="weights of an absurd size"):
        learn_events(state, encode_ratings(table([9], [9], [0.0], 3, [1e-37])))
    assert state.fingerprint() == before


@pytest.mark.parametrize("name", ["ensure", "filter_events", "check_rows"])
def test_what_is_broken_off_leaves_the_state_as_it_was(monkeypatch, name):
    state = empty()
    learn_events(state, encode_ratings(table([1, 1, 2], [1, 2, 3])))
    before = state.fingerprint()

    def break_off(*_):
        raise KeyboardInterrupt

    place = state.items if name == "ensure" else events
    monkeypatch.setattr(place, name, break_off)
    with pytest.raises(KeyboardInterrupt):
        learn_events(state, encode_ratings(table([9, 1], [9, 1], first=3)))
    assert state.fingerprint() == before


def test_copies_learn_apart():
    users, items = some_events()
    state = empty()
    learn_events(state, encode_ratings(table(users, items)))
    twin, before = state.copy(), state.fingerprint()
    learn_events(twin, encode_ratings(table(users, items[::-1], first=300)))
    assert state.fingerprint() == before != twin.fingerprint()


def test_models_of_ratings_are_stored_as_before():
    state = empty(settings_of(rank=3))
    state.users.ensure(id_array([1]))
    assert "done" not in state.users.to_arrow().column_names
    assert "events" not in state.scalars()
