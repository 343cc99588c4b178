"""Late rows of progress as Spark tells it: an idle query tells a batch again, without rows."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from sparkml_sgdals.store.objects import ObjectStore
from sparkml_sgdals.stream.late_rows import LateRows


def query(*told):
    """A query that has told of batches: their numbers, and what each operator dropped."""
    return SimpleNamespace(
        recentProgress=[
            SimpleNamespace(
                batchId=batch,
                stateOperators=[SimpleNamespace(numRowsDroppedByWatermark=n) for n in rows],
            )
            for batch, rows in told
        ]
    )


@pytest.fixture
def store(tmp_path):
    return ObjectStore(str(tmp_path / "m"))


def test_an_idle_query_takes_nothing_back(store, caplog):
    late = LateRows(store, -1, counts=True)
    told = query((0, [0]), (1, [3, 2]), (1, [0, 0]))
    assert late.look(told) == {1: 5}
    assert late.look(told) == {1: 5}
    assert caplog.text.count("Spark dropped 5 rows") == 1


def test_what_came_after_the_last_batch_is_counted_again(store):
    LateRows(store, -1, counts=True).look(query((3, [1]), (4, [2]), (5, [4])))
    assert json.loads(store.read("late.json")) == {"3": 1, "4": 2, "5": 4}
    # batch 5 was taken back
    again = LateRows(store, 4, counts=True)
    assert again.look(query()) == {3: 1, 4: 2}
    assert again.look(query((5, [7]))) == {3: 1, 4: 2, 5: 7}


def test_without_event_ids_nothing_is_asked(store):
    assert LateRows(store, -1, counts=False).look(None) == {}
    assert store.read("late.json") is None


def test_what_is_damaged_is_counted_anew(store, caplog):
    store.replace("late.json", b"[]")
    assert LateRows(store, 9, counts=True).look(query((1, [2]))) == {1: 2}
    assert "late.json is damaged" in caplog.text


def test_a_session_that_was_stopped_cannot_say(store):
    late = LateRows(store, -1, counts=True)
    late.look(query((1, [2])))
    assert late.look(SimpleNamespace()) == {1: 2}
