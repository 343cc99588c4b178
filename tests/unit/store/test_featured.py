"""A model path of a model with features: to the bit, with ids added, and what does not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from building import ratings_of, settings_of

from sparkml_sgdals.arrays.sparse_rows import SparseRows
from sparkml_sgdals.errors import DamagedError
from sparkml_sgdals.learn.whole_table import fit_ratings
from sparkml_sgdals.state.feature_values import start_featured
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.store.commit import Commit
from sparkml_sgdals.store.maintenance import commit_added
from sparkml_sgdals.store.overlay import Overlay
from sparkml_sgdals.store.version_store import VersionStore

COLUMNS = ["size", "width", "names", "columns", "centres", "prior", "start", "start_var"]


def rows(ids: range) -> SparseRows:
    """Vectors of three numbers."""
    count = len(ids)
    return SparseRows(
        pa.array(list(ids)), 3, np.arange(count + 1), (np.arange(count) % 3).astype(np.int32),
        np.ones(count), ("a", "b", "c"),
    )  # fmt: skip


NOBODY = pa.array([], pa.int64())


@pytest.fixture
def state() -> ModelState:
    rng = np.random.default_rng(2)
    items = rng.integers(0, 30, 1500)
    made = ModelState.empty(settings_of(rank=2, featured=True), "int", "int")
    values = 3.0 + (items % 3) + rng.normal(0, 0.5, 1500)
    fit_ratings(ratings_of(rng.integers(0, 40, 1500), items, values), made,
                features=(None, rows(range(30))))  # fmt: skip
    return made


def newest_of(store: VersionStore) -> Commit:
    found = store.newest()
    assert found is not None
    return found


def path_of(state: ModelState, path: Path, **more: Any) -> VersionStore:
    store = VersionStore(str(path))
    store.create(state, {"settings": state.settings.to_json(), "kinds": ["int", "int"]} | more)
    return store


def test_ids_join_a_path_as_a_version(state: ModelState, tmp_path: Path) -> None:
    """With the batch and offsets of the version before; the version before stays as it was."""
    store = path_of(state, tmp_path)
    before = state.fingerprint()
    more = rows(range(28, 40))

    def add(held: ModelState) -> None:
        start_featured(held.items, more.ids, more, held.features[1])

    commit = commit_added(store, (NOBODY, more.ids), add)
    assert (commit.version, commit.batch, commit.ids) == (1, -1, [40, 40])
    loaded, _ = store.load()
    added = state.copy()
    add(added)
    assert loaded.fingerprint() == added.fingerprint() != before
    assert store.load(0)[0].fingerprint() == before
    assert loaded.features[1] is not None
    assert loaded.features[1].names == ("a", "b", "c")
    np.testing.assert_array_equal(loaded.items.mean, added.items.mean)


def test_ids_join_a_version_in_runs(
    state: ModelState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the rows of these ids alone in memory; what was added becomes a run in time."""
    store = path_of(state, tmp_path)
    opened = Overlay(store, newest_of(store), 10)
    nothing = np.empty(0, np.int64), np.empty(0, np.int64)
    store.commit(opened.state, nothing, 4, newest_of(store), None, onto=opened.onto(0, 0))
    monkeypatch.setattr("sparkml_sgdals.store.maintenance.MAX_DELTAS", 3)
    expected, in_memory, runs = state.copy(), [], []
    for first in (28, 35, 38, 41, 44):
        more = rows(range(first, first + 5))

        def add(held: ModelState, more: SparseRows = more) -> None:
            in_memory.append(held.items.size)
            start_featured(held.items, more.ids, more, state.features[1])

        commit = commit_added(store, (NOBODY, more.ids), add)
        add(expected)
        assert (commit.batch, commit.ids) == (4, [40, expected.items.size])
        assert store.load()[0].fingerprint() == expected.fingerprint()
        assert commit.runs is not None
        runs.append((commit.base, len(commit.runs["items"])))
    # of the path; those of `expected` are all
    assert max(in_memory[::2]) < 20
    assert runs == [(0, 1), (0, 1), (4, 2), (4, 2), (4, 2)]


def test_a_race_is_left_alone(state: ModelState, tmp_path: Path) -> None:
    store = path_of(state, tmp_path, race={"candidates": []})
    with pytest.raises(ValueError, match="holds a race, whose candidates would not know"):
        commit_added(store, (NOBODY, NOBODY), lambda _: None)
    assert store.numbers() == [0]


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("value", [None, 7, "AAAA", [], {}])
def test_weights_that_do_not_go_together_are_named(
    state: ModelState, tmp_path: Path, name: str, value: object
) -> None:
    """Even where the checksum fits: somebody wrote them so."""
    store = path_of(state, tmp_path)
    commit = store.newest()
    assert commit is not None
    told = json.loads(json.dumps(commit.scalars))
    told["features"][1][name] = value
    if name == "names" and value == []:
        # nothing has to be named
        return
    payload = replace(commit, scalars=told).to_bytes()
    (tmp_path / "commits" / f"{0:012d}.json").write_bytes(payload)
    with pytest.raises(DamagedError, match=r"features.* not weights of features that go together"):
        store.load(0)
