"""Rankings, predictions and folded-in users against the library's own ways to the same numbers."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from building import settings_of
from helpers import in_order

from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.serving.model.holder import ModelHolder
from sparkml_sgdals.serving.model.person import fold_in, person_of
from sparkml_sgdals.serving.model.ranking import like_item, most_rated, predicted, rank_items
from sparkml_sgdals.serving.model.reasons import shares

pytestmark = pytest.mark.usefixtures("first_version")


@pytest.fixture(params=["bayes", "sgd"])
def made(request, modeler):
    return modeler(settings=settings_of(solver=request.param, rank=4))


@pytest.fixture
def model(made, tmp_path):
    holder = ModelHolder(str(made.path), str(tmp_path))
    holder.poll()
    with holder.reading() as served:
        yield served


@pytest.mark.parametrize("rank_by", ["prediction", "upper", "lower"])
@pytest.mark.parametrize("user", [3, 17, 999])
def test_the_best_items(made, model, rank_by, user):
    person = person_of(model, made.key(0, user))
    assert person.cold == (user == 999)
    if made.settings.solver == "sgd" and rank_by != "prediction":
        with pytest.raises(ValueError, match="needs a model of solver 'bayes'"):
            rank_items(model, person, 5, rank_by)
        return
    row = int(made.state.users.index.find(pa.array([made.key(0, user)]))[0])
    expected = in_order(made.state, row, {"prediction": 0, "upper": 1, "lower": -1}[rank_by])
    found = rank_items(model, person, 7, rank_by)
    by_id = {i: s for s, i in expected}
    # float32 sums differ in the last bit
    for place, item in enumerate(found.ids):
        assert by_id[item] == pytest.approx(expected[place][0], abs=1e-5)
    items = made.state.items.index.find(pa.array(found.ids))
    users = np.full(items.size, row)
    wanted, variances = made.state.predict(users, items)
    np.testing.assert_allclose(found.values, made.state.clip(wanted), rtol=1e-6)
    _, stds = predicted(model, person, found.rows)
    if made.settings.solver == "sgd":
        assert stds is None
    else:
        noise = made.state.noise * made.state.noise_factors(users, items)
        noise *= made.state.scale.spread**2
        np.testing.assert_allclose(stds, np.sqrt(variances + noise), rtol=1e-5)


def test_excluded_and_chosen_items(made, model):
    person = person_of(model, made.key(0, 3))
    everything = rank_items(model, person, 1000)
    assert len(everything.ids) == len(set(everything.ids)) == model.items.size
    out = model.item_rows([*everything.ids[:3], 10**9])
    assert rank_items(model, person, 5, excluded=out).ids == everything.ids[3:8]
    some = everything.ids[::5]
    only = model.item_rows([*some[::-1], 10**9, "no number"])
    assert rank_items(model, person, 3, only=only).ids == some[:3]
    assert rank_items(model, person, 3, only=only, excluded=out).ids == some[1:4]
    assert rank_items(model, person, 9, only=model.item_rows([-1])).ids == []
    assert rank_items(model, person, 9, excluded=model.item_rows(everything.ids)).ids == []


def test_equal_items_come_by_id_however_they_arrived(modeler, tmp_path):
    made = modeler()
    # items that nobody told anything about but one weightless start: made equal by hand
    made.state.items.mean[:, :] = 0.0
    made.store.commit(made.state, None, 0, made.commit, None)
    holder = ModelHolder(str(made.path), str(tmp_path))
    holder.poll()
    with holder.reading() as model:
        model.indexes[1]._ids[: model.items.size] = model.indexes[1]._ids[: model.items.size][::-1]
        ids = sorted(model.item_ids(np.arange(model.items.size)))
        for count in (1, 3, 9, 17):
            assert rank_items(model, person_of(model, 10**6), count).ids == ids[:count]


def test_anonymous_ratings_are_learned_as_the_stream_would(modeler, tmp_path):
    made = modeler()
    holder = ModelHolder(str(made.path), str(tmp_path))
    holder.poll()
    numbers, values = [2, 5, 9, 5], [5.0, 1.0, 4.5, 2.0]
    items = [made.key(1, n) for n in numbers]
    with holder.reading() as model:
        before = model.items.mean.copy()
        person = fold_in(model, [*items, 10**8], [*values, 3.0])
        np.testing.assert_array_equal(model.items.mean, before)
        whole = made.state.copy()
        someone = -(2**63)
        table = pa.table({
            "user": pa.array([someone] * 4), "item": pa.array(items),
            "rating": pa.array(values, pa.float32()),
        })  # fmt: skip
        learn_batch(whole, encode_ratings(table))
        row = int(whole.users.index.find(pa.array([someone]))[0])
        np.testing.assert_array_equal(person.mean, whole.users.mean[row])
        np.testing.assert_array_equal(person.var, whole.users.var[row])
        assert person.noise_factor == float(whole.users.noise_factor[row])
        assert not person.cold
        assert fold_in(model, [10**8], [3.0]).cold


def test_similar_and_popular(made, model):
    state = made.state
    features = state.items.mean[:, 1:].astype(np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    row = int(state.items.index.find(pa.array([made.key(1, 4)]))[0])
    cosine = features @ features[row]
    cosine[row] = -2
    best = np.argsort(-cosine)[:5]
    # rows of the service lie as those of its version do
    row = int(model.item_rows([made.key(1, 4)])[0])
    found = like_item(model, row, 5)
    assert found.ids == state.items.index.ids(best).to_pylist()
    np.testing.assert_allclose(found.values, cosine[best], atol=1e-6)
    assert len(like_item(model, row, 10**6).ids) == model.items.size - 1
    counts = state.items.count
    ids = state.items.index.ids().to_pylist()
    expected = sorted(zip(counts.tolist(), ids, strict=True), key=lambda p: (-p[0], p[1]))[:6]
    popular = most_rated(model, 6)
    assert list(zip(popular.values, popular.ids, strict=True)) == expected


def test_shares_are_those_of_the_linear_answer(modeler, tmp_path):
    """The shares of all ratings add up to the features' part of the ridge solution."""
    made = modeler()
    holder = ModelHolder(str(made.path), str(tmp_path))
    holder.poll()
    with holder.reading() as model:
        rated = model.item_rows([made.key(1, n) for n in (1, 2, 3, 4, 5)])
        values = np.array([5.0, 4.0, 1.0, 2.5, 3.0])
        person = person_of(model, made.key(0, 3))
        row = int(model.item_rows([made.key(1, 9)])[0])
        found = shares(model, person, rated, values, row)
        features = model.items.mean[rated][:, 1:].astype(float)
        spreads = model.items.var[rated][:, 1:].astype(float)
        scale, s = model.shell.scale, model.settings
        e = (values - scale.mean) / scale.spread - person.mean[0] - model.items.mean[rated][:, 0]
        ridge = (
            np.eye(4) * s.noise / s.factor_prior
            + features.T @ features
            + np.diag(spreads.sum(axis=0))
        )
        taste = np.linalg.solve(ridge, features.T @ e)
        part = scale.spread * float(taste @ model.items.mean[row, 1:])
        assert sum(one.share for one in found) == pytest.approx(part, rel=1e-6)
        assert [one.share for one in found] == sorted((one.share for one in found), reverse=True)
        assert shares(model, person, rated[:0], values[:0], row) == []
