"""Models of tables of events as files: versions, restarts, users forgotten, files of before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from building import low_rank, settings_of

from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.learn.event_tables import fit_events
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.state.columns import FactorColumns
from sparkml_sgdals.state.event_scores import serving_state, table_alone
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.settings import Settings
from sparkml_sgdals.store.commit import Commit
from sparkml_sgdals.store.forgetting import forget_users
from sparkml_sgdals.store.maintenance import roll_back
from sparkml_sgdals.store.version_store import VersionStore

FITTED = settings_of(
    rank=3, learns_events=True, num_negatives=3, ranking_size=5, table_rank=5, max_iter=4,
    regs=(0.01,) * 4,
)  # fmt: skip
SIZE = 60


def events(first: int, count: int) -> pa.Table:
    table, _ = low_rank(3_000, noise=0.5)
    table = table.slice(first, count)
    return table.set_column(2, "rating", pa.array(np.ones(count), pa.float32()))


BATCHES = [events(1_000 + SIZE * n, SIZE) for n in range(5)]


@pytest.fixture(params=[False, True], ids=["table", "timed"])
def start(request: pytest.FixtureRequest) -> ModelState:
    """As `fit` makes it, of 70 of 80 users."""
    ratings = replace(encode_ratings(events(0, 1_000)), timed=request.param)
    ((state, _),) = fit_events(
        ModelState.empty(FITTED, "int", "int"), ratings, [4], 1, lambda *_: None
    )
    assert table_alone(state) is not request.param
    return state


def created(path: Path, state: ModelState) -> VersionStore:
    store = VersionStore(str(path))
    meta = {"settings": state.settings.to_json(), "kinds": ["int", "int"]}
    store.create(state, meta)
    return store


def step(store: VersionStore, number: int, state: ModelState, commit: Commit) -> Commit:
    report = learn_batch(state, encode_ratings(BATCHES[number]))
    rows = report.user_rows, report.item_rows
    return store.commit(state, rows, number, commit, {"ratings": report.ratings})


def test_every_version_loads_and_goes_on_to_the_same_bits(
    start: ModelState, tmp_path: Path
) -> None:
    """Begun again after any batch, or before the first commit: what one run without end learns."""
    store = created(tmp_path / "whole", start)
    state, commit = store.load()
    assert state.fingerprint() == start.fingerprint()
    told = [state.fingerprint()]
    for number in range(len(BATCHES)):
        commit = step(store, number, state, commit)
        assert not table_alone(state)
        told.append(state.fingerprint())
    for version, expected in enumerate(told):
        held, _ = store.load(version)
        assert held.fingerprint() == expected
        # and what it ranks by
        users = start.users.index.ids()
        np.testing.assert_array_equal(
            serving_state(held).users.taste[held.users.index.find(users), 1:],
            start.users.taste[:, 1:],
        )
    parts = created(tmp_path / "parts", start)
    for number in range(len(BATCHES)):
        lost, before = parts.load()
        # killed after it was learned, before the commit
        learn_batch(lost, encode_ratings(BATCHES[number]))
        state, again = parts.load()
        assert again == before
        step(parts, number, state, again)
        assert parts.load()[0].fingerprint() == told[number + 1]


def test_a_first_batch_after_a_table_without_times_writes_all_rows(tmp_path: Path) -> None:
    ratings = replace(encode_ratings(events(0, 1_000)), timed=False)
    ((start, _),) = fit_events(
        ModelState.empty(FITTED, "int", "int"), ratings, [4], 1, lambda *_: None
    )
    state = start.copy()
    report = learn_batch(state, encode_ratings(BATCHES[0]))
    assert report.user_rows.tolist() == list(range(state.users.size))
    assert report.item_rows.tolist() == list(range(state.items.size))
    assert 0 < len(learn_batch(state, encode_ratings(BATCHES[1])).user_rows) < state.users.size


def test_rolled_back_to_the_table(start: ModelState, tmp_path: Path) -> None:
    store = created(tmp_path, start)
    state, commit = store.load()
    told = []
    for number in range(3):
        commit = step(store, number, state, commit)
        told.append(state.fingerprint())
    roll_back(store, 0, reread=False)
    state, commit = store.load()
    assert state.fingerprint() == start.fingerprint()
    assert table_alone(state) is table_alone(start)
    step(store, 0, state, commit)
    assert store.load()[0].fingerprint() == told[0]


def test_forgotten_users_have_no_taste_and_the_others_theirs(
    start: ModelState, tmp_path: Path
) -> None:
    store = created(tmp_path, start)
    state, commit = store.load()
    for number in range(2):
        commit = step(store, number, state, commit)
    gone = start.users.index.ids(np.arange(4))
    forget_users(store, gone)
    for version in store.numbers():
        held, commit = store.load(version)
        assert (held.users.index.find(gone) < 0).all()
        kept = start.users.index.ids(np.arange(4, start.users.size))
        np.testing.assert_array_equal(
            held.users.taste[held.users.index.find(kept)], start.users.taste[4:]
        )
        # items stay as they were fitted
        rows = held.items.index.find(start.items.index.ids())
        np.testing.assert_array_equal(held.items.taste[rows], start.items.taste)
        for name in ("users", "items"):
            table = store.read_checked(commit.files[name])
            assert not set(table.column("id").to_pylist()) & set(gone.to_pylist()) or (
                name == "items"
            )
    state, commit = store.load()
    # those who come back are new, whether the filter has learned or not
    for begun in (state, start.copy()):
        begun.users = begun.users.without(gone)
        table = BATCHES[0].set_column(0, "user", pa.array([gone[0].as_py()] * SIZE))
        learn_batch(begun, encode_ratings(table))
        back = begun.users.index.find(gone.slice(0, 1))
        assert not begun.users.taste[back].any()
        assert begun.users.finite()


@contextmanager
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Write files as releases did that fitted no tables of events."""
    registry, to_json = FactorColumns.registry.__func__, Settings.to_json  # type: ignore[attr-defined]

    def columns(cls: Any) -> Any:
        return tuple(column for column in registry(cls) if column.name != "taste")

    def settings(self: Settings) -> dict[str, Any]:
        later = ("table_rank", "unobserved_weight")
        return {name: value for name, value in to_json(self).items() if name not in later}

    with monkeypatch.context() as patch:
        patch.setattr(FactorColumns, "registry", classmethod(columns))
        patch.setattr(Settings, "to_json", settings)
        yield


@pytest.mark.parametrize("events_first", [True, False])
def test_paths_of_before_there_were_tables_load_and_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, events_first: bool
) -> None:
    settings = (
        settings_of(rank=3, learns_events=True, num_negatives=3)
        if events_first
        else (settings_of(rank=3))
    )
    alone = ModelState.empty(settings, "int", "int")
    for number in range(2):
        learn_batch(alone, encode_ratings(BATCHES[number]))
    with as_before(monkeypatch):
        store = created(tmp_path, ModelState.empty(settings, "int", "int"))
    state, commit = store.load()
    report = learn_batch(state, encode_ratings(BATCHES[0]))
    with as_before(monkeypatch):
        store.commit(state, (report.user_rows, report.item_rows), 0, commit, {"ratings": SIZE})
        store_meta = json.loads((tmp_path / "model.json").read_text())
    assert "table_rank" not in store_meta["settings"]
    state, commit = store.load()
    assert "taste" not in store.read_checked(commit.files["users"]).column_names
    assert (state.settings.table_rank, state.settings.unobserved_weight) == (0, 0.1)
    step(store, 1, state, commit)
    assert store.load()[0].fingerprint() == alone.fingerprint()
