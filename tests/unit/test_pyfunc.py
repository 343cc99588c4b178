"""The pyfunc that is logged to MLflow, on a golden model: pairs, and lists of users alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

pytest.importorskip("mlflow")

from sparkml_sgdals import Predictor
from sparkml_sgdals.mlflow.pyfunc import _Pyfunc

MODEL = str(
    sorted((Path(__file__).resolve().parent.parent / "golden").glob("format-*"))[-1] / "model"
)


@pytest.fixture
def pyfunc():
    loaded = _Pyfunc()
    names = {"userCol": "who", "itemCol": "what"}
    loaded.load_context(SimpleNamespace(artifacts={"sparkml_sgdals": MODEL}, model_config=names))
    return loaded


def test_pairs_are_predicted_and_users_alone_get_lists(pyfunc):
    predictor = Predictor.load(MODEL)
    users = predictor._state.users.index.ids().to_pylist()[:3]
    items = predictor._state.items.index.ids().to_pylist()[:3]
    found = pyfunc.predict(None, pd.DataFrame({"who": users, "what": items}))
    pd.testing.assert_frame_equal(found, predictor.predict(users, items))
    alone = pd.DataFrame({"who": users})
    for params, n in ((None, 10), ({}, 10), ({"n": 2}, 2)):
        lists = pyfunc.predict(None, alone, params)
        expected = predictor.recommend(users, n).set_axis(["who", "what", "rating"], axis=1)
        pd.testing.assert_frame_equal(lists, expected)
