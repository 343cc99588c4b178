"""Tables of events fitted as a whole, and what a stream makes of such a model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from building import id_array, settings_of
from hypothesis import given
from hypothesis import strategies as st

from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.errors import DivergenceError
from sparkml_sgdals.learn.event_tables import caught_up
from sparkml_sgdals.learn.events import learn_events
from sparkml_sgdals.learn.least_squares import beside_user, means_beside, weights_beside
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.learn.shares import some_of
from sparkml_sgdals.learn.whole_table import fit_ratings, fit_stops
from sparkml_sgdals.predictor import Predictor
from sparkml_sgdals.state.event_scores import serving_state, table_alone
from sparkml_sgdals.state.model_state import FIRST_SHARE, ModelState
from sparkml_sgdals.state.parts import state_from_parts, state_parts
from sparkml_sgdals.state.settings import CHOSEN

SETTINGS = settings_of(
    learns_events=True, rank=4, table_rank=6, max_iter=6, regs=(0.1, 0.1, 0.05, 0.05), seed=3
)


def table(users, items, values=None, times=None, weights=None):
    columns = {
        "user": id_array(users),
        "item": id_array(items),
        "rating": pa.array(np.ones(len(users)) if values is None else values, pa.float32()),
    }
    if times is not None:
        columns["time"] = pa.array(times, pa.int64())
    if weights is not None:
        columns["weight"] = pa.array(weights, pa.float32())
    return pa.table(columns)


def tastes(seed=1, users=60, blocks=3, each=10):
    """Users of one block of items each, in an order of their own."""
    rng = np.random.default_rng(seed)
    who = np.repeat(np.arange(users), 8)
    what = (who % blocks) * each + rng.integers(0, each, who.size)
    pairs = np.unique(np.stack([who, what + 1000]), axis=1)
    return tuple(pairs[:, rng.permutation(pairs.shape[1])].tolist())


def fitted(given, settings=SETTINGS, threads=1):
    state = ModelState.empty(settings, "int", "int")
    ratings = encode_ratings(given)
    ((model, history),) = fit_stops(ratings, state, [settings.max_iter], threads)
    assert len(history) <= settings.max_iter
    return model


def timed(users, items):
    return table(users, items, times=range(len(users)))


@pytest.mark.parametrize("times", [False, True])
def test_it_finds_what_users_like(times):
    users, items = tastes()
    model = fitted((timed if times else table)(users, items))
    assert table_alone(model) is not times
    ranked = Predictor(model, {}, 0).recommend(range(60), 5)
    own = (ranked.item - 1000) // 10 == ranked.user % 3
    assert own.mean() > 0.95


@given(st.integers(0, 2**31), st.integers(1, 3), st.booleans())
def test_order_and_threads_change_nothing(seed, threads, times):
    users, items = tastes(seed % 5, users=12)
    given = (timed if times else table)(users, items)
    shuffled = given.take(pa.array(np.random.default_rng(seed).permutation(given.num_rows)))
    settings = replace(SETTINGS, regs=(0.1, 0.1, CHOSEN, CHOSEN))
    one, other = fitted(given, settings), fitted(shuffled, settings, threads)
    assert one.fingerprint() == other.fingerprint()
    assert one.regularisation == other.regularisation
    assert one.regularisation[0] > 0


def test_the_filter_of_a_timed_table_is_that_of_a_stream():
    """The table's judgement is beside it."""
    users, items = tastes()
    model = fitted(timed(users, items))
    alone = ModelState.empty(replace(SETTINGS, table_rank=0), "int", "int")
    # the end of the table is what its judges are weighed by
    ratings = encode_ratings(timed(users, items))
    ends = np.arange(len(ratings)) >= len(ratings) - len(ratings) // 10
    for part in (~ends, ends):
        learn_events(alone, some_of(ratings, part))
    for side, other in ((model.users, alone.users), (model.items, alone.items)):
        rows = other.index.find(side.index.ids())
        assert np.array_equal(side.mean, other.mean[rows])
        assert np.array_equal(side.count, other.count[rows])
    assert model.events_learned == alone.events_learned


@pytest.mark.parametrize("times", [False, True])
def test_each_stop_is_a_fit_of_so_many_sweeps(times):
    users, items = tastes()
    ratings = encode_ratings((timed if times else table)(users, items))
    kept = fit_stops(ratings, ModelState.empty(SETTINGS, "int", "int"), [0, 2, 5], 1)
    for stop, (state, history) in zip([0, 2, 5], kept, strict=True):
        own = replace(SETTINGS, max_iter=stop)
        ((alone, single),) = fit_stops(ratings, ModelState.empty(own, "int", "int"), [stop], 1)
        assert history == single
        assert state.settings == alone.settings == own
        assert state.fingerprint() == alone.fingerprint()


def test_without_sweeps_the_filter_learns():
    users, items = tastes()
    model = fitted(table(users, items), replace(SETTINGS, max_iter=0))
    assert model.events_learned == len(users)
    assert not model.users.taste.any()


def test_what_is_not_wanted_stands_below_what_is_not_known():
    """A rating of 0 or less is preference 0, with its weight."""
    users, items = tastes()
    dislikes = [1000 + (u % 3) * 10 for u in range(60)]
    kept = [(u, i) for u, i in zip(users, items, strict=True) if i != dislikes[u]]
    users = [u for u, _ in kept] + list(range(60))
    items = [i for _, i in kept] + dislikes
    values = [1.0] * len(kept) + [-9.0] * 60
    model = fitted(table(users, items, values))
    said = Predictor(model, {}, 0).predict(range(60), dislikes).prediction
    block = [
        Predictor(model, {}, 0).predict([u] * 9, [i + k for k in range(1, 10)]).prediction.mean()
        for u, i in zip(range(60), dislikes, strict=True)
    ]
    assert (said.to_numpy() < np.array(block)).mean() > 0.95


@given(st.floats(0.25, 8), st.floats(0, 4))
def test_confidence_is_that_of_als(rating, alpha):
    """An event of rating r counts as (1 + alpha r) / (1 + alpha) of weight 1."""
    users, items = tastes(users=9)
    settings = replace(SETTINGS, alpha=alpha)
    rated = fitted(table(users, items, [rating] * len(users)), settings)
    factor = np.float32((1 + np.float32(alpha) * np.float32(rating)) / (1 + np.float32(alpha)))
    weighted = fitted(table(users, items, weights=[factor] * len(users)), settings)
    np.testing.assert_allclose(rated.users.taste, weighted.users.taste, atol=1e-5)


def test_users_that_are_not_known_get_what_is_popular():
    users, items = tastes()
    users, items = [*users, *range(100, 120)], [*items, *[1007] * 20]
    for given_table in (table(users, items), timed(users, items)):
        ranked = Predictor(fitted(given_table), {}, 0).recommend([-1], 3)
        assert ranked.item[0] == 1007


def test_an_item_that_is_not_known_says_nothing():
    users, items = tastes()
    for given_table in (table(users, items), timed(users, items)):
        predictor = Predictor(fitted(given_table), {}, 0)
        found = predictor.predict([0, 0, -1], [-1, 1000, -1]).prediction
        assert np.isfinite(found).all()
        assert found[0] < found[1]


def test_judges_are_weighed_by_how_a_table_ends():
    """Who follows its taste to the end, what was done last aside, has the table believed."""
    rng = np.random.default_rng(4)
    who, what = np.divmod(rng.permutation(60 * 12), 12)
    own = (who % 3) * 30 + rng.permuted(np.tile(np.arange(30), (60, 1)), axis=1)[who, what]
    by_taste = fitted(timed(who.tolist(), own.tolist()), replace(SETTINGS, rank=2))
    together = np.repeat(rng.permutation(60 * 4), 3)
    chains = (rng.integers(0, 30, 240)[together] * 3 + np.tile(np.arange(3), 240)).tolist()
    by_last = fitted(timed((together % 60).tolist(), chains), replace(SETTINGS, rank=2))
    assert by_taste.filter_share < by_last.filter_share
    for model in (by_taste, by_last):
        assert model.partners.rest_until == model.events_learned > 0
        assert any(model.partners.at_rest)
    plain = replace(by_taste, partners=replace(by_taste.partners, rest_until=0))
    assert plain.fingerprint() != by_taste.fingerprint()


def test_a_table_of_few_events_has_no_end():
    model = fitted(timed([1, 2, 3], [7, 8, 7]))
    assert (model.filter_share, model.partners.rest_until) == (FIRST_SHARE, 0)


@pytest.mark.parametrize("times", [False, True])
def test_a_stream_goes_on_to_the_same_bits_from_a_copy(times):
    """The first batch after a table without times brings the filter up to date, once."""
    users, items = tastes()
    model = fitted((timed if times else table)(users, items))
    batches = [encode_ratings(timed(*tastes(seed, users=9))) for seed in (7, 8)]
    kept = state_from_parts(list(state_parts(model)))[0]
    reports = [learn_batch(model, batch) for batch in batches]
    for batch in batches:
        kept = state_from_parts(list(state_parts(kept)))[0]
        learn_batch(kept, batch)
    assert kept.fingerprint() == model.fingerprint()
    changed = reports[0].user_rows.size, reports[0].item_rows.size
    assert changed == ((60, 30) if not times else changed)
    assert reports[1].user_rows.size == 9
    assert not table_alone(model)
    assert model.filter_share != FIRST_SHARE
    assert reports[0].sums.ranked > 0


def test_a_batch_that_fails_leaves_a_table_as_it_was(monkeypatch):
    users, items = tastes()
    model = fitted(table(users, items))
    before = model.fingerprint()
    bad = encode_ratings(table([0], [1000], weights=[1e-45]))
    with pytest.raises(DivergenceError):
        learn_batch(model, replace(bad, weights=np.zeros(1, np.float32)))
    assert model.fingerprint() == before
    assert table_alone(model)


def test_catching_up_is_what_the_filter_learns_from_the_table():
    users, items = tastes()
    model = fitted(table(users, items))
    twin = caught_up(model)
    alone = ModelState.empty(replace(SETTINGS, table_rank=0), "int", "int")
    learn_events(alone, encode_ratings(table(users, items)))
    rows = alone.users.index.find(twin.users.index.ids())
    assert np.array_equal(twin.users.mean, alone.users.mean[rows])
    assert twin.events_learned == alone.events_learned
    # what was counted once is not counted again
    assert twin.counters == model.counters
    assert np.array_equal(twin.users.count, model.users.count)
    assert np.array_equal(twin.users.taste, model.users.taste)


def test_a_further_table_does_not_forget_the_first():
    users, items = tastes(users=90)
    half = len(users) // 2
    model = fitted(table(users[:half], items[:half]))
    more = encode_ratings(table(users[half:], items[half:]))
    ((both, _),) = fit_stops(more, model, [6], 1)
    assert both.counters.ratings == len(users)
    ranked = Predictor(both, {}, 0).recommend(range(90), 5)
    assert ((ranked.item - 1000) // 10 == ranked.user % 3).mean() > 0.95
    events = np.rint(np.expm1(both.users.taste[:, 0])).sum()
    assert events == len(users)


def test_one_event_more_of_each_user_leaves_what_they_like():
    users, items = tastes(users=90)
    model = fitted(table(users, items))
    more = encode_ratings(table(range(90), [1000 + (u % 3) * 10 for u in range(90)]))
    ((after, _),) = fit_stops(more, model, [6], 1)
    assert after.regularisation == model.regularisation
    said = [
        np.mean(np.einsum("nf,nf->n", m.users.taste[u, 1:], m.items.taste[i, 1:]))
        for m in (model, after)
        for u, i in [(m.users.index.find(pa.array(users)), m.items.index.find(pa.array(items)))]
    ]
    assert said[1] > 0.9 * said[0]
    lists = [Predictor(m, {}, 0).recommend(range(90), 5) for m in (model, after)]
    right = [((r.item - 1000) // 10 == r.user % 3).mean() for r in lists]
    assert right[1] > right[0] - 0.05


def test_a_larger_table_has_a_say_in_how_strongly_to_shrink():
    settings = replace(SETTINGS, regs=(0.1, 0.1, CHOSEN, CHOSEN))
    model = fitted(table(*tastes(users=6)), settings)
    ((after, _),) = fit_stops(encode_ratings(table(*tastes(2, users=90))), model, [6], 1)
    assert after.regularisation != model.regularisation


def test_few_events_do_not_vanish():
    """However few, some preference is left that orders items."""
    rng = np.random.default_rng(1)
    users, items = rng.integers(0, 40, 120), rng.integers(1000, 1030, 120)
    settings = replace(SETTINGS, regs=(0.1, 0.1, CHOSEN, CHOSEN), max_iter=16)
    model = fitted(table(users.tolist(), items.tolist()), settings)
    products = model.users.taste[:, 1:] @ model.items.taste[:, 1:].T
    assert products.max() > 0.05


def test_fit_ratings_learns_tables_of_events_in_place():
    users, items = tastes()
    state = ModelState.empty(SETTINGS, "int", "int")
    history = fit_ratings(encode_ratings(table(users, items)), state)
    assert history
    assert state.fingerprint() == fitted(table(users, items)).fingerprint()


def test_scores_are_logarithms_of_probabilities():
    """With times: filter and table sum up to about one over all items."""
    users, items = tastes()
    model = fitted(timed(users, items), replace(SETTINGS, num_partners=0))
    served = serving_state(model)
    ids = served.items.index.ids().to_pylist()
    found = Predictor(model, {}, 0).predict([5] * len(ids), ids).prediction
    assert np.exp(found.astype(float)).sum() == pytest.approx(1.0, abs=0.02)


def test_a_model_of_before_is_folded_in_as_it_was_fitted():
    """Such a model does not tell what it put beside a user's events: it was a0 for each item."""
    model = fitted(table(*tastes()))
    told = model.scalars()
    expected = weights_beside(model.counters.ratings, model.users.size, model.items.size)
    assert told["weightsBeside"] == pytest.approx(expected)
    assert beside_user(model, lambda: 30) == told.pop("weightsBeside")[0]
    model.set_scalars(told)
    assert model.scalars() == told
    assert beside_user(model, lambda: 30) == pytest.approx(30 * model.settings.unobserved_weight)


@pytest.mark.parametrize(
    ("share", "of_items"), [(0.0005, 1.0), (1 / 160, 1.0), (1 / 80, 2.0), (1 / 40, 4.0), (0.5, 4.0)]
)
def test_the_sparser_a_table_the_more_items_differ_in_how_they_are_shrunk(share, of_items):
    users, items = 400, 2000
    weight = share * users * items
    assert means_beside(weight, users, items) == pytest.approx((4.0, of_items))
    expected = 4.0 * weight / users, of_items * weight / items
    assert weights_beside(weight, users, items) == pytest.approx(expected)


def test_what_is_put_beside_an_id_is_of_those_with_events():
    """Ids that a model has and a table lacks do not count."""
    model = fitted(table([1, 1, 2, 3], [1, 2, 1, 1]))
    assert model.weights_beside == pytest.approx((4 * 4 / 3, 4 * 4 / 2))
    ((more, _),) = fit_stops(encode_ratings(table([1, 2], [1, 3])), model, [2], 1)
    assert more.weights_beside == pytest.approx((4 * 2 / 2, 4 * 2 / 2))
