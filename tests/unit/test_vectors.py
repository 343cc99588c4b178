"""Vectors for others: what their product is, and that following versions ends at the model."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from building import low_rank, seen_state, settings_of
from hypothesis import given, settings
from hypothesis import strategies as st
from writing import Writer

from sparkml_sgdals import StreamingBiasedALS, StreamingBiasedALSModel, VectorFeed
from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.errors import StorageError
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.vectors import vector_table
from sparkml_sgdals.store.forgetting import forget_users
from sparkml_sgdals.store.maintenance import roll_back

pytestmark = pytest.mark.usefixtures("first_version")


def taken_up(held, changes):
    """What somebody has who takes changes up: ids and vectors of both sides."""
    if changes is None:
        return held
    users, items = ({}, {}) if changes.complete else ({**held[0]}, {**held[1]})
    for side, table in ((users, changes.users), (items, changes.items)):
        side.update(zip(table["id"].to_pylist(), table["vector"].to_pylist(), strict=True))
    return users, items


def vectors_of(state):
    return taken_up(None, type("All", (), {
        "complete": True, "users": vector_table(state.users, state.scale),
        "items": vector_table(state.items, state.scale),
    }))  # fmt: skip


STEPS = st.lists(
    st.sampled_from(["learn", "learn", "learn", "base", "poll", "forget", "back", "prune"]),
    max_size=14,
)


@settings(max_examples=15)
@given(STEPS, st.booleans())
def test_following_ends_at_the_model_whatever_happens(tmp_path_factory, steps, settled):
    """By position; versions of one batch each are taken up one by one or many at once."""
    made = Writer(tmp_path_factory.mktemp("path") / "model", settled)
    feed, position, held = VectorFeed(made.path), None, None
    for step in [*steps, "poll"]:
        if step in ("learn", "base"):
            made.learn(base=step == "base")
        elif step == "poll":
            changes = feed.changes(position)
            held = taken_up(held, changes)
            if changes is not None:
                position = changes.position
                assert changes.version == made.store.newest().version
            assert feed.changes(position) is None
        elif step == "prune":
            made.store.prune(1)
        else:
            if step == "forget":
                forget_users(made.store, pa.array([1]))
            elif made.store.newest().version:
                numbers = made.store.numbers()
                roll_back(made.store, numbers[len(numbers) // 2], False)
            made.state, made.commit = made.store.load()
    assert held == vectors_of(made.store.load()[0])


def test_changes_are_those_of_the_versions_between(tmp_path):
    made = Writer(tmp_path / "model")
    for _ in range(6):
        made.learn()
    feed = VectorFeed(made.path)
    changes = feed.changes(3, 5)
    assert (changes.version, changes.complete, changes.exact) == (5, False, True)
    assert changes.users["id"].to_pylist() == [1, 4, 5]
    assert changes.items["id"].to_pylist() == ["a", "i4", "i5"]
    held = taken_up(taken_up(None, feed.changes(until=3)), changes)
    assert held == vectors_of(made.store.load(5)[0])
    assert feed.changes(6) is None
    assert feed.changes(9).complete
    # of another path
    position = feed.changes().position
    again = Writer(tmp_path / "other")
    for _ in range(7):
        again.learn()
    assert VectorFeed(again.path).changes(position).complete
    for wrong in ("7", "x-y", 1.5, True, -1):
        with pytest.raises(ValueError, match="since is the position"):
            feed.changes(wrong)
    with pytest.raises(StorageError, match="does not hold version 40"):
        feed.changes(until=40)
    with pytest.raises(StorageError, match="does not hold a version"):
        VectorFeed(tmp_path / "nothing").changes()


def read_back(folder, form, side):
    """Ids and vectors as the target would read them."""
    if form in ("parquet", "milvus"):
        table = pq.read_table(folder / f"{side}.parquet")
        return table["id"].to_pylist(), np.array(table["vector"].to_pylist(), np.float32)
    if form == "pgvector":
        lines = (folder / f"{side}.csv").read_text().splitlines()
        pairs = [line.split(",", 1) for line in lines]
        vectors = [json.loads(text.strip('"')) for _, text in pairs]
        return [int(one) for one, _ in pairs], np.array(vectors, np.float32)
    if form == "qdrant":
        points = [json.loads(line) for line in (folder / f"{side}.jsonl").read_text().splitlines()]
        assert all(p["id"] == p["payload"]["id"] for p in points if p["payload"]["id"] >= 0)
        return [p["payload"]["id"] for p in points], np.array(
            [p["vector"] for p in points], np.float32
        )
    ids, vectors = (
        np.load(io.BytesIO((folder / f"{side}{what}.npy").read_bytes())) for what in ("-ids", "")
    )
    return ids.tolist(), vectors


@pytest.mark.parametrize("form", ["parquet", "milvus", "pgvector", "qdrant", "faiss"])
def test_what_is_written_predicts_and_has_all_bits(tmp_path, form):
    state = seen_state(settings_of(rank=3))
    model = StreamingBiasedALSModel(state, version=4)
    model.exportVectors(tmp_path / "out", form)
    (users, left), (items, right) = (
        read_back(tmp_path / "out", form, side) for side in ("users", "items")
    )
    for found, side in ((left, state.users), (right, state.items)):
        expected = vector_table(side, state.scale)["vector"].to_pylist()
        np.testing.assert_array_equal(found, np.array(expected, np.float32))
    about = json.loads((tmp_path / "out" / "vectors.json").read_text())
    assert (about["dimension"], about["version"], about["exact"]) == (5, 4, True)
    rows = state.users.index.find(pa.array(np.repeat(users, len(items))))
    columns = state.items.index.find(pa.array(np.tile(items, len(users))))
    predictions, _ = state.predict(rows, columns)
    np.testing.assert_allclose(about["mean"] + (left @ right.T).ravel(), predictions, atol=1e-5)
    with pytest.raises(ValueError, match="There are vectors at"):
        model.exportVectors(tmp_path / "out", form)


def test_strings_events_and_words_for_formats(tmp_path):
    made = Writer(tmp_path / "model")
    made.learn()
    model = StreamingBiasedALSModel(made.state)
    model.exportVectors(tmp_path / "csv", "pgvector")
    assert (tmp_path / "csv" / "items.csv").read_text().startswith('"a","[')
    with pytest.raises(ValueError, match="format must be one of parquet, milvus"):
        model.exportVectors(tmp_path / "x", "csv")
    events = ModelState.empty(
        StreamingBiasedALS(implicitPrefs=True, rank=3).settings(), "int", "int"
    )
    learn_batch(events, encode_ratings(low_rank(300)[0]))
    StreamingBiasedALSModel(events).exportVectors(tmp_path / "events")
    about = json.loads((tmp_path / "events" / "vectors.json").read_text())
    assert not about["exact"]
    assert "popular" in about["product"]
    _, items = read_back(tmp_path / "events", "parquet", "items")
    assert items.shape == (events.items.size, about["dimension"])
