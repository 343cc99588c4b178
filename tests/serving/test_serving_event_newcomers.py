"""New items of models of events: posted with their features, and ranked at once."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from building import settings_of

from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.arrays.sparse_rows import SparseRows
from sparkml_sgdals.learn.whole_table import fit_ratings
from sparkml_sgdals.state.model_state import ModelState

USERS, ITEMS = 60, 60
NAMES = ("genres=Comedy", "genres=War")
SETTINGS = settings_of(
    learns_events=True, rank=4, table_rank=4, featured=True, max_iter=8, num_negatives=5,
    regs=(-1.0,) * 4,
)  # fmt: skip


def fitted(timed: bool):
    """A model of comedies and films of war, and of who likes which."""

    def start(made):
        rng = np.random.default_rng(3)
        kind = np.arange(ITEMS) % 2
        same = np.arange(USERS)[:, None] % 2 == kind
        user, item = np.nonzero(rng.random((USERS, ITEMS)) < np.where(same, 0.6, 0.03))
        columns = {"user": user, "item": item, "rating": np.ones(user.size, np.float32)}
        if timed:
            columns["time"] = np.arange(user.size)
        rows = SparseRows(
            pa.array(np.arange(ITEMS)), 2, np.arange(ITEMS + 1), kind.astype(np.int32),
            np.ones(ITEMS), NAMES,
        )  # fmt: skip
        state = ModelState.empty(SETTINGS, *made.kinds)
        fit_ratings(encode_ratings(pa.table(columns)), state, features=(None, rows))
        return state

    return start


@pytest.mark.parametrize("timed", [False, True])
def test_a_new_film_is_ranked_for_those_who_like_its_kind(modeler, serving, timed):
    made = modeler(
        start=fitted(timed), settings=SETTINGS, params={"itemFeaturesCol": "itemFeatures"}
    )
    run = serving(made)
    films = [{"item": 9001, "features": {"genres": "Comedy"}},
             {"item": 9002, "features": {"genres": ["War"]}}]  # fmt: skip
    run.post("/items", films)
    for user, (liked, other) in ((2, (9001, 9002)), (3, (9002, 9001))):
        best = run.get(f"/recommendations/{user}", n=ITEMS + 2, exclude_seen=False, reasons=True)
        scores = {one["item"]: one["prediction"] for one in best["items"]}
        assert scores[liked] > scores[other] + 0.5
        reasons = {one["item"]: one["reason"] for one in best["items"]}
        kind = "Comedy" if liked == 9001 else "War"
        assert reasons[liked].startswith("Not done yet: ")
        assert f"{kind} +" in reasons[liked]
        alone = run.get(f"/predictions/{user}/{liked}")
        assert alone["prediction"] == pytest.approx(scores[liked], abs=1e-3)
        assert not alone["cold"]
        told = run.get(f"/explain/{user}/{liked}")
        assert told["prediction"] == pytest.approx(alone["prediction"], abs=1e-3)
    near = run.get("/similar/9001", n=3)
    assert all(one["item"] % 2 == 0 for one in near["items"])
