"""New users and items, known by their features: posted, ranked at once, learned by the stream."""

from __future__ import annotations

import json
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
import pytest
from building import settings_of

from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.arrays.sparse_rows import SparseRows
from sparkml_sgdals.learn.whole_table import fit_ratings
from sparkml_sgdals.serving.intake.folder import FolderIntake
from sparkml_sgdals.serving.intake.history import IntakeColumns
from sparkml_sgdals.state.feature_values import FeatureNames, start_featured
from sparkml_sgdals.state.model_state import ModelState

NAMES = ("year", "genres=Comedy", "genres=War")
COMEDY, WAR = 9_001, 9_002


def featured(made):
    """A model of films of which comedies are liked."""
    rng = np.random.default_rng(2)
    state = ModelState.empty(settings_of(rank=4, featured=True, max_iter=4), *made.kinds)
    table = made.ratings(4_000)
    ids = table.column("item").unique()
    matrix = np.column_stack([rng.integers(1950, 2020, len(ids)), rng.random((len(ids), 2)) < 0.4])
    row, column = np.nonzero(matrix)
    place = pa.compute.index_in(table.column("item"), value_set=ids).to_numpy()
    value = table.column("rating").to_numpy() * 0.3 + 2 + matrix[place, 1] - matrix[place, 2]
    table = table.set_column(2, "rating", pa.array(value, pa.float32()))
    starts = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(ids)))])
    rows = SparseRows(
        ids.combine_chunks() if hasattr(ids, "combine_chunks") else ids, 3, starts,
        column.astype(np.int32), matrix[row, column].astype(float), NAMES,
    )  # fmt: skip
    fit_ratings(encode_ratings(table), state, features=(None, rows))
    return state


@pytest.fixture(params=["int", "str"])
def made(request, modeler):
    """A model path whose stream reads features of items."""
    return modeler(
        start=featured, settings=settings_of(rank=4, featured=True), kinds=("int", request.param),
        params={"itemFeaturesCol": "itemFeatures"},
    )  # fmt: skip


def key(made, number):
    return number if made.kinds[1] == "int" else f"new {number}"


def film(made, number, genres, **more):
    return {"item": key(made, number), "features": {"genres": genres, "year": 1999}} | more


def add(made, number, genres):
    """What the stream does with the message."""
    weights = made.state.features[1]
    ids = pa.array([key(made, number)])
    names = FeatureNames(weights)
    rows = names.rows(ids, [names.vector({"genres": genres, "year": 1999})[0]])
    start_featured(made.state.items, rows.ids, rows, weights)


class TestItems:
    """A film that nobody has rated."""

    def test_is_ranked_at_once_and_known_until_a_version_holds_it(self, made, serving):
        run = serving(made)
        before = run.get("/model")["items"]
        posted = [film(made, COMEDY, "Comedy|Western", title="A film of tomorrow"),
                  film(made, WAR, ["War"])]  # fmt: skip
        assert run.post("/items", posted) == {
            "accepted": 2, "repeated": 0, "unknown": ["genres=Western"],
        }  # fmt: skip
        assert run.get("/model")["items"] == before + 2
        user = made.key(0, 3)
        best = run.get(f"/recommendations/{user}", n=before + 2, exclude_seen=False, reasons=True)
        items = {one["item"]: one for one in best["items"]}
        comedy, war = items[key(made, COMEDY)], items[key(made, WAR)]
        assert comedy["title"] == "A film of tomorrow"
        assert comedy["prediction"] > war["prediction"] + 1.0
        assert comedy["ratings"] == 0
        assert comedy["reason"].startswith("Not rated yet: Comedy +")
        assert "War -" in war["reason"]
        assert run.get("/items", query="tomorrow")["items"][0]["item"] == key(made, COMEDY)
        told = run.get(f"/explain/{user}/{key(made, COMEDY)}")
        parts = {one["part"]: one["value"] for one in told["parts"]}
        assert parts["item genres=Comedy"] > 0.5
        assert told["prediction"] == pytest.approx(parts["prediction"], abs=1e-5)
        assert not told["cold"]
        # the state that the stream will give it
        add(made, COMEDY, ["Comedy"])
        row = made.state.items.index.find(pa.array([key(made, COMEDY)]))[0]
        with run.service.answers.holder.reading() as model:
            place = model.item_rows([key(made, COMEDY)])[0]
            np.testing.assert_array_equal(model.items.mean[place], made.state.items.mean[row])

        # versions: of others, of it, and whole ones
        made.learn(made.ratings(50))
        assert run.service.answers.holder.poll()
        swaps = run.service.answers.holder.swaps
        assert run.get("/model")["items"] == before + 2
        made.learn(made.table([3], [0], [4.0]))
        made.commit = made.store.commit(made.state, None, made.commit.batch + 1, made.commit, None)
        assert run.service.answers.holder.poll()
        assert run.service.answers.holder.swaps == swaps + 1
        assert run.service.answers.holder._newcomers.sizes == (0, 1)
        assert run.get("/model")["items"] == before + 2
        again = run.get(f"/predictions/{user}/{key(made, WAR)}")
        assert not again["cold"]

    def test_lines_are_those_of_the_stream_and_are_read_back(self, made, serving):
        run = serving(made)
        body = film(made, WAR, ["War"], title="War again", timestamp=1_700_000_000)
        header = {"Idempotency-Key": "k 1".replace(" ", "")}
        assert run.post("/items", body, **header)["repeated"] == 0
        assert run.post("/items", body, **header)["repeated"] == 1
        assert run.post("/items", body | {"title": "Other"}, 409, **header)
        (line,) = [
            json.loads(line)
            for file in run.inbox.glob("*.json")
            for line in file.read_text().splitlines()
        ]
        assert line == {
            "user": None, "item": key(made, WAR), "rating": None, "timestamp": 1_700_000_000,
            "eventId": "k:k1#0/1", "itemFeatures": [1999.0, 0.0, 1.0],
            "about": {"genres": ["War"], "year": 1999.0}, "title": "War again",
        }  # fmt: skip
        found = FolderIntake(str(run.inbox), IntakeColumns())
        assert [(one.side, one.key, one.title) for one in found.told] == [
            (1, key(made, WAR), "War again")
        ]
        found.close()
        later = serving(made)
        assert not later.get(f"/predictions/1/{key(made, WAR)}")["cold"]
        assert later.post("/items", body, **header)["repeated"] == 1

    def test_what_is_refused(self, made, serving, modeler):
        run = serving(made)
        assert run.get("/features") == {
            "users": {}, "items": {"year": [], "genres": ["Comedy", "War"]},
        }  # fmt: skip
        said = run.post(
            "/items", film(made, WAR, ["Western"]) | {"features": {"genres": "Western"}}, 409
        )
        assert "the names are year, genres" in said["detail"]
        said = run.post("/items", {"item": key(made, WAR), "features": {"year": "old"}}, 409)
        assert "year is a number, got 'old'" in said["detail"]
        said = run.post("/users", {"user": 1, "features": {"country": "AT"}}, 409)
        assert "without features of users" in said["detail"]
        assert run.post("/items", {"item": key(made, WAR), "features": {"year": {}}}, 422)
        assert not list(run.inbox.glob("*.json"))
        run.service.intake.close()
        run.service.intake = None
        assert run.post("/items", film(made, WAR, ["War"]), 403)

    def test_a_stream_that_does_not_read_them_is_not_sent_any(self, modeler, serving):
        run = serving(modeler(start=featured, settings=settings_of(rank=4, featured=True)))
        said = run.post("/items", {"item": 5_000, "features": {"year": 1999}}, 409)
        assert "itemFeaturesCol='itemFeatures'" in said["detail"]


def of_people(made):
    """A model of users of whom those from AT rate higher."""
    rng = np.random.default_rng(2)
    state = ModelState.empty(settings_of(rank=4, featured=True, max_iter=4), *made.kinds)
    table = made.ratings(4_000)
    ids = table.column("user").unique()
    country = rng.integers(0, 2, len(ids)).astype(np.int32)
    place = pa.compute.index_in(table.column("user"), value_set=ids).to_numpy()
    value = table.column("rating").to_numpy() * 0.3 + 2 + country[place]
    table = table.set_column(2, "rating", pa.array(value, pa.float32()))
    rows = SparseRows(
        ids.combine_chunks() if hasattr(ids, "combine_chunks") else ids, 2,
        np.arange(len(ids) + 1), country, np.ones(len(ids)), ("country=CH", "country=AT"),
    )  # fmt: skip
    fit_ratings(encode_ratings(table), state, features=(rows, None))
    return state


def test_new_users_are_known_by_their_features(modeler, serving):
    """At once, by a post, and to a service that starts later."""
    made = modeler(
        start=of_people, settings=settings_of(rank=4, featured=True),
        params={"userFeaturesCol": "userFeatures"},
    )  # fmt: skip
    run = serving(made)
    before = run.get("/model")["users"]
    posted = [{"user": n, "features": {"country": c}} for n, c in ((8_001, "CH"), (8_002, "AT"))]
    assert run.post("/users", posted)["accepted"] == 2
    for service in (run, serving(made)):
        assert service.get("/model")["users"] == before + 2
        item = made.key(1, 3)
        low, high = (service.get(f"/predictions/{one['user']}/{item}") for one in posted)
        assert not low["cold"]
        assert high["prediction"] > low["prediction"] + 0.5


def test_a_file_of_features(made, serving, tmp_path):
    """Films of it that the model does not know are ranked, and those that it knows explained."""
    known = made.key(1, 3)
    ids = [known, key(made, COMEDY), key(made, WAR)]
    table = pa.table(
        {"item_id": ids, "genres": ["Comedy", "Comedy", "War"], "year": [1980, 1999, None]}
    )
    path = tmp_path / "films.parquet"
    pa.parquet.write_table(table, path)
    run = serving(made, item_features=str(path))
    assert run.get("/model")["items"] == made.state.items.size + 2
    parts = {
        one["part"]: one for one in run.get(f"/explain/1/{quote(str(known), safe='')}")["parts"]
    }
    assert "what ratings start from" in parts["item genres=Comedy"]["note"]
