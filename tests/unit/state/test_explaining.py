"""The parts of a prediction: they add up, to what the kernel predicts and with its variance."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from building import settings_of

from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.learn.whole_table import fit_ratings
from sparkml_sgdals.state.explaining import explain_pair
from sparkml_sgdals.state.model_state import ModelState


@pytest.fixture(scope="module", params=["bayes", "sgd"])
def state(request):
    rng = np.random.default_rng(3)
    table = pa.table(
        {
            "user": rng.integers(0, 12, 300),
            "item": pa.array([f"i{n}" for n in rng.integers(0, 9, 300)]),
            "rating": rng.integers(1, 6, 300).astype(np.float32),
        }
    )
    state = ModelState.empty(settings_of(solver=request.param, rank=3), "int", "str")
    fit_ratings(encode_ratings(table), state)
    return state


def parts(state, user, item, clip=False):
    return {part.part: part for part in explain_pair(state, user, item, clip)}


@pytest.mark.parametrize(("user", "item"), [(3, "i4"), (99, "i4"), (3, "none"), (99, "none")])
def test_parts_add_up_to_the_prediction(state, user, item):
    found = parts(state, user, item)
    users = state.users.index.find(pa.array([user]))
    items = state.items.index.find(pa.array([item]))
    predictions, variances = state.predict(users, items)
    summed = sum(found[n].value for n in ("mean", "user bias", "item bias", "features"))
    assert found["prediction"].value == pytest.approx(summed, abs=1e-12)
    assert found["prediction"].value == pytest.approx(float(predictions[0]), abs=1e-5)
    if state.settings.solver == "bayes":
        factor = float(state.noise_factors(users, items)[0])
        noise = state.noise * factor * state.scale.spread**2
        expected = math.sqrt(float(variances[0]) + noise)
        assert found["prediction"].std == pytest.approx(expected, rel=1e-5)
        squares = sum(found[n].std ** 2 for n in ("user bias", "item bias", "features", "noise"))
        assert found["prediction"].std == pytest.approx(math.sqrt(squares), rel=1e-9)
    else:
        assert {part.std for part in found.values()} == {None}


def test_ratings_behind_each_part(state):
    found = parts(state, 3, "i4")
    row = int(state.users.index.find(pa.array([3]))[0])
    assert found["user bias"].ratings == state.users.count[row] > 0
    assert found["mean"].ratings == 300
    assert found["features"].ratings <= found["item bias"].ratings
    unknown = parts(state, 99, "i4")
    assert unknown["user bias"].ratings == unknown["features"].ratings == 0
    assert unknown["user bias"].value == unknown["features"].value == 0.0
    assert "not known" in unknown["user bias"].note


def test_clipping_is_said(state):
    state = state.copy()
    state.users.mean[:, 0] = 50.0
    found = parts(state, 3, "i4", clip=True)["prediction"]
    assert found.value == 5.0
    assert "clipped from" in found.note


def test_ids_of_numpy(state):
    assert explain_pair(state, np.int32(3), "i4", clip=True) == explain_pair(state, 3, "i4", True)
    assert parts(state, 2**70, "i4")["user bias"].ratings == 0


@pytest.mark.parametrize(("user", "item"), [("3", "i4"), (3, 4)])
def test_the_other_kind_of_id_is_refused(state, user, item):
    with pytest.raises(TypeError, match="learned from"):
        explain_pair(state, user, item, clip=True)


def test_notes_say_the_sign_of_their_part(state):
    seen = set()
    for user in range(12):
        found = parts(state, user, "i4")
        for name in ("user bias", "item bias"):
            side = "above" if found[name].value > 0 else "below"
            assert f"{abs(found[name].value):.2f} {side} the mean" in found[name].note
            seen.add(side)
        suits = "suits" if found["features"].value > 0 else "does not suit"
        assert found["features"].note == f"the item {suits} the user's taste"
        seen.add(suits)
    assert seen == {"above", "below", "suits", "does not suit"}
