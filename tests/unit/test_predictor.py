"""Predictions and rankings without Spark: against golden models, and against the whole matrix."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from building import low_rank, seen_state, settings_of

from sparkml_sgdals import Predictor, StreamingBiasedALS
from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.errors import StorageError
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.state.model_state import ModelState

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
PLACES = [
    (folder, place, name, version)
    for folder in sorted(GOLDEN.glob("format-*"))
    for place, name, version in [
        ("model", "model", None), ("path", "path 1", 1), ("path", "path 2", None),
        ("runs", "runs 2", None),
    ]
]  # fmt: skip


@pytest.mark.parametrize(("folder", "place", "name", "version"), PLACES)
def test_predicts_as_the_model_did(folder, place, name, version):
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))[name]
    users, items, means, stds = zip(*expected["predictions"], strict=True)
    predictor = Predictor.load(str(folder / place), version)
    found = predictor.predict(users, items)
    assert predictor.version == expected["version"]
    np.testing.assert_allclose(found.prediction, means, rtol=0, atol=2e-5, equal_nan=False)
    np.testing.assert_allclose(found["std"], stds, rtol=0, atol=2e-5, equal_nan=False)


@pytest.fixture
def state():
    return seen_state(settings_of(rank=3))


@pytest.fixture
def predictor(state):
    return Predictor(state, {}, 4)


def every_pair(state):
    """Users, items, and all predictions, clipped, with variances of their means."""
    users, items = (np.sort(t.index.ids().to_numpy()) for t in (state.users, state.items))
    rows = state.users.index.find(pa.array(np.repeat(users, items.size)))
    columns = state.items.index.find(pa.array(np.tile(items, users.size)))
    shape = users.size, items.size
    scores, variances = (found.reshape(shape) for found in state.predict(rows, columns))
    return users, items, scores.astype(float), variances.astype(float)


@pytest.mark.parametrize(("rank_by", "sign"), [("prediction", 0), ("upper", 1), ("lower", -1)])
def test_recommends_what_the_whole_matrix_says(state, predictor, rank_by, sign):
    users, items, scores, variances = every_pair(state)
    found = predictor.recommend(users[:6], 5, rank_by=rank_by)
    assert found.user.tolist() == np.repeat(users[:6], 5).tolist()
    values = scores + sign * np.sqrt(variances)
    for n, user in enumerate(users[:6]):
        own = found[found.user == user]
        columns = np.searchsorted(items, own.item)
        best = np.sort(values[n])[::-1][:5]
        np.testing.assert_allclose(values[n, columns], best, atol=1e-4)
        if not sign:
            clipped = np.clip(scores[n, columns], state.counters.low, state.counters.high)
            np.testing.assert_allclose(own.rating, clipped, atol=1e-4)


def test_leaves_out_what_is_excluded(state, predictor):
    users, items, _, _ = every_pair(state)
    first = predictor.recommend(users[:2], 3)
    seen = [[*first[first.user == users[0]].item, 10**9], []]
    second = predictor.recommend(users[:2], 3, exclude=seen)
    assert not set(second[second.user == users[0]].item) & set(seen[0])
    assert second[second.user == users[1]].equals(first[first.user == users[1]])
    everything = predictor.recommend(users[:1], 3, exclude=[items])
    assert everything.empty
    assert list(everything.columns) == ["user", "item", "rating"]


def test_candidates(state, predictor):
    users, items, _, _ = every_pair(state)
    whole = predictor.recommend(users[:2], len(items))
    some = [*items[::3], 10**9]
    found = predictor.recommend(users[:2], 3, [[some[0]], []], candidates=some)
    for user, gone in zip(users[:2], [[some[0]], []], strict=True):
        own = whole[(whole.user == user) & whole.item.isin(some) & ~whole.item.isin(gone)]
        assert found[found.user == user].item.tolist() == own.item.tolist()[:3]
    each = predictor.recommend(users[:2], 9, candidates=[items[:2], []])
    assert sorted(each.item) == sorted(items[:2])
    with pytest.raises(ValueError, match="candidates has 1 lists, users are 2"):
        predictor.recommend([1, 2], candidates=[[1]])


def test_ids_that_are_not_known(state, predictor):
    user, item = (int(t.index.ids()[0].as_py()) for t in (state.users, state.items))
    found = predictor.predict([user, 10**9, None], [item, item, item])
    assert found.notna().all(axis=None)
    assert found.prediction[1] == found.prediction[2] != found.prediction[0]
    cold = predictor.recommend([10**9], 4)
    by_bias = state.items.mean[:, 0].argsort()[::-1][:4]
    assert cold.item.tolist() == state.items.index.ids(by_bias).to_pylist()
    strict = Predictor(state, {"coldStartStrategy": "nan"}, 0).predict([user, 10**9], [item, item])
    assert strict.isna().all(axis=1).tolist() == [False, True]


@pytest.mark.parametrize("make", [list, np.array, pd.Series, pa.array, iter])
def test_forms_of_ids(state, predictor, make):
    users, items = (t.index.ids().to_pylist()[:5] for t in (state.users, state.items))
    found = predictor.predict(make(users), make(items))
    assert found.equals(predictor.predict(users, items))
    as_floats = pd.Series([*users, None])
    assert as_floats.dtype == float
    assert predictor.predict(as_floats, [*items, items[0]]).iloc[:5].equals(found)


def test_mistakes(predictor):
    with pytest.raises(TypeError, match="users are whole numbers in this model, got string"):
        predictor.predict(["1"], [1])
    with pytest.raises(TypeError, match="items are whole numbers in this model, got double"):
        predictor.predict([1], [1.5])
    with pytest.raises(ValueError, match="2 users and 1 items"):
        predictor.predict([1, 2], [1])
    with pytest.raises(ValueError, match="exclude has 1 lists, users are 2"):
        predictor.recommend([1, 2], exclude=[[1]])
    with pytest.raises(ValueError, match="rank_by must be one of prediction, upper, lower"):
        predictor.recommend([1], rank_by="best")
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        predictor.recommend([1], 0)
    for n in ("3", 2.5):
        with pytest.raises(TypeError, match=f"n must be a whole number, got {n!r}"):
            predictor.recommend([1], n)


@pytest.mark.parametrize("one", [7, np.int64(7), np.array(7), "anna", None], ids=repr)
def test_one_id_alone_is_told_what_to_write(predictor, one):
    """A text is no list of its letters."""
    own = one.item() if isinstance(one, (np.generic, np.ndarray)) else one
    for call in (
        lambda: predictor.recommend(one),
        lambda: predictor.predict(one, [1]),
        lambda: predictor.predict([1], one),
    ):
        with pytest.raises(TypeError, match=re.escape(f"got {own!r}: write [{own!r}].")):
            call()


def test_what_ends_and_what_is_for_all(state, predictor):
    users, items, _, _ = every_pair(state)
    expected = predictor.recommend(users[:2], 3, exclude=[items[:4]] * 2)
    assert predictor.recommend(iter(users[:2]), 3, exclude=items[:4]).equals(expected)
    gone = dict.fromkeys(items[:4])
    assert predictor.recommend(users[:2], np.int8(3), exclude=gone.keys()).equals(expected)
    some = predictor.recommend(users[:2], 3, candidates=iter(items[:4]))
    assert some.equals(predictor.recommend(users[:2], 3, candidates=items[:4]))
    assert repr(predictor).startswith("Predictor: version=")


def test_a_model_without_variances_and_an_empty_one():
    sgd = Predictor(seen_state(settings_of(solver="sgd", rank=3)), {}, 0)
    assert sgd.predict([1], [1])["std"].isna().all()
    with pytest.raises(ValueError, match="solver 'bayes'"):
        sgd.recommend([1], rank_by="upper")
    empty = Predictor(ModelState.empty(settings_of(rank=2), "int", "int"), {}, 0)
    assert empty.predict([1], [1]).isna().all(axis=None)
    assert empty.recommend([1]).empty


def test_events_have_scores_and_no_deviations():
    settings = StreamingBiasedALS(implicitPrefs=True, rank=3).settings()
    learned = ModelState.empty(settings, "int", "int")
    learn_batch(learned, encode_ratings(low_rank(300)[0]))
    events = Predictor(learned, {}, 0)
    user = events.recommend([1], 3)
    assert len(user) == 3
    pairs = events.predict(user.user, user.item)
    np.testing.assert_allclose(pairs.prediction, user.rating, atol=1e-5)
    assert pairs["std"].isna().all()
    some = user.item.tolist()[::-2]
    assert events.recommend([1], 3, candidates=some).item.tolist() == some[::-1]


def test_nothing_to_read(tmp_path):
    with pytest.raises(StorageError, match="There is no model at"):
        Predictor.load(str(tmp_path))
    saved = tmp_path / "saved"
    shutil.copytree(GOLDEN / "format-3" / "model", saved)
    with pytest.raises(StorageError, match="it has no versions"):
        Predictor.load(str(saved), 3)
    next((saved / "items").glob("part-*")).write_bytes(b"PAR1 broken")
    with pytest.raises(StorageError, match="is damaged"):
        Predictor.load(str(saved))
    next((saved / "metadata").glob("part-*")).write_text(
        '{"class": "pyspark.ml.pipeline.Pipeline"}'
    )
    with pytest.raises(StorageError, match=r"holds a pyspark\.ml\.pipeline\.Pipeline"):
        Predictor.load(str(saved))


def test_predictions_are_clipped_where_that_is_asked_for(state):
    # some predictions lie beyond what was seen
    state.counters = replace(state.counters, low=3.0, high=3.5)
    users, items, scores, _ = every_pair(state)
    pairs = np.repeat(users, items.size).tolist(), np.tile(items, users.size).tolist()
    clipped = state.clip(scores.astype(np.float32).ravel())
    assert (clipped != scores.astype(np.float32).ravel()).any()
    asked = Predictor(state, {"clipPredictions": True}, 4).predict(*pairs).prediction
    np.testing.assert_array_equal(asked, clipped)
    plain = Predictor(state, {"clipPredictions": False}, 4).predict(*pairs).prediction
    np.testing.assert_allclose(plain, scores.ravel(), rtol=1e-6)
