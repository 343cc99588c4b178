"""What is served is what was committed, version by version, and nothing of two at once."""

from __future__ import annotations

import gc
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from building import settings_of
from helpers import IN_RUNS_NIGHTLY

from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.errors import GoneError
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.serving.model import holder as holding
from sparkml_sgdals.serving.model.holder import ModelHolder, NoModelError
from sparkml_sgdals.store import overlay, version_store
from sparkml_sgdals.store.forgetting import forget_users
from sparkml_sgdals.store.maintenance import roll_back
from sparkml_sgdals.store.sorted_runs import Run
from sparkml_sgdals.store.version_store import VersionStore

pytestmark = pytest.mark.usefixtures("first_version")

PREDICTING = ["id", "mean", "variance", "count", "noise_factor"]


def followed(made, tmp_path):
    folder = tmp_path / "mapped"
    folder.mkdir(exist_ok=True)
    holder = ModelHolder(str(made.path), str(folder))
    assert holder.poll()
    # nothing is left behind, whatever ends the process
    assert not list(folder.iterdir())
    return holder


def assert_serves(holder, state):
    """Both copies hold the state to the bit, in the form that ranks and in that which learns."""
    rows = np.arange(state.users.size), np.arange(state.items.size)
    for copy in holder._copies:
        with holder.reading() as shown:
            parts = {"users": copy.users, "items": copy.items, "candidates": copy.candidates}
            model = replace(shown, **parts)
            held = model.scratch(*rows)
        users = held.users.to_arrow().select(PREDICTING)
        assert users.equals(state.users.to_arrow().select(PREDICTING))
        assert held.items.to_arrow().equals(state.items.to_arrow())
        assert held.scalars() == state.scalars()
        items, rank, size = held.items, model.settings.rank, held.items.size
        factors, variances = copy.candidates.factors, copy.candidates.variances
        np.testing.assert_array_equal(factors[:rank, :size].T, items.mean[:, 1:])
        np.testing.assert_array_equal(factors[rank, :size], items.mean[:, 0])
        assert np.all(factors[rank, size:] == -np.inf)
        squares = items.mean[:, 1:] ** 2 + items.var[:, 1:]
        np.testing.assert_array_equal(variances[:rank, :size].T, squares)
        np.testing.assert_array_equal(variances[2 * rank, :size], items.var[:, 0])


@pytest.mark.parametrize(
    ("kinds", "ranking"), [(("int", "int"), 0), (("str", "str"), 0), (("int", "str"), 5)]
)
def test_every_version_is_taken_up_whole(modeler, tmp_path, monkeypatch, kinds, ranking):
    """What a stream remembers to rank by is left where it is."""
    monkeypatch.setattr(version_store, "_MIN_ROWS_OF_BASE", 100)
    made = modeler(kinds=kinds, settings=settings_of(rank=4, ranking_size=ranking))
    holder = followed(made, tmp_path)
    assert_serves(holder, made.state)
    bases = set()
    loaded = holder._load
    loads = []
    monkeypatch.setattr(holder, "_load", lambda newest: (loads.append(1), loaded(newest)))
    for n in range(12):
        # new ids come all the time, and sometimes two versions at once
        made.learn(made.ratings(30, first=n * 4))
        if n % 3 == 2:
            made.learn(made.ratings(10, first=n))
        bases.add(made.commit.base)
        assert holder.poll()
        assert not holder.poll()
        assert holder.commit == made.commit
        assert_serves(holder, made.state)
    assert len(bases) > 2, "no new base was written, so none was taken up"
    assert not loads, "a version was loaded whole, not by what it changed"
    assert [row["version"] for row in holder.metrics()] == list(range(1, made.commit.version + 1))


@pytest.mark.parametrize("kinds", [("int", "int"), ("str", "int")])
def test_a_model_in_sorted_runs(modeler, tmp_path, monkeypatch, kinds):
    """A stream that keeps a part of the model in memory writes bases as runs."""
    monkeypatch.setattr(overlay, "MAX_DELTAS", 3)
    made = modeler(kinds=kinds)
    holder = followed(made, tmp_path)
    loaded, loads = holder._load, []
    monkeypatch.setattr(holder, "_load", lambda newest: (loads.append(1), loaded(newest)))
    part = overlay.Overlay(made.store, made.commit, 30)
    commit, in_runs = made.commit, 0
    for n in range(16):
        batch = encode_ratings(made.ratings(30, first=n * 4))
        learn_batch(made.state, batch)
        part.fetch(batch.user_ids, batch.item_ids)
        report = learn_batch(part.state, batch)
        rows = report.user_rows, report.item_rows
        onto = part.onto(report.new_users, report.new_items)
        commit = made.store.commit(part.state, rows, n, commit, None, onto=onto)
        part.committed(commit, rows)
        made.store.prune(2)
        in_runs += commit.runs is not None
        assert holder.poll()
        assert_serves(holder, made.state)
        if n % 5 == 4:
            assert_serves(followed(made, tmp_path), made.state)
    part.stop()
    assert in_runs > 3, "no base was written as runs"
    assert not loads, "a version was loaded whole, not by what it changed"


def test_ids_that_are_gone_are_not_known(modeler, tmp_path):
    made = modeler()
    for n in range(3):
        made.learn(made.ratings(40, first=50 + n * 10))
    holder = followed(made, tmp_path)
    user = made.key(0, 3)
    forget_users(made.store, pa.array([user]))
    assert holder.poll()
    with holder.reading() as model:
        assert model.user_rows([user])[0] == -1
        assert model.users.size == made.state.users.size - 1
    state, _ = made.store.load()
    assert_serves(holder, state)
    roll_back(made.store, 1, reread=False)
    assert holder.poll()
    state, _ = made.store.load()
    assert_serves(holder, state)


def test_users_forgotten_between_two_looks(modeler, tmp_path):
    made = modeler()
    made.learn(made.ratings(20))
    holder = followed(made, tmp_path)
    made.learn(made.ratings(20))
    user = made.key(0, 3)
    made.commit = forget_users(made.store, pa.array([user]))
    made.state, _ = made.store.load()
    rest = made.ratings(20, first=10)
    made.learn(rest)
    assert holder.poll()
    assert_serves(holder, made.state)


def test_a_reader_keeps_its_version(modeler, tmp_path, monkeypatch):
    monkeypatch.setattr(holding, "_PATIENCE", 0.05)
    made = modeler()
    holder = followed(made, tmp_path)
    with holder.reading() as old:
        before = old.users.mean.copy(), old.candidates.factors.copy()
        for n in range(3):
            made.learn(made.ratings(200, first=n))
            assert holder.poll()
            assert holder.commit.version == n + 1
            np.testing.assert_array_equal(old.users.mean, before[0])
            np.testing.assert_array_equal(old.candidates.factors, before[1])
            assert old.version == 0
            with holder.reading() as new:
                assert new.version == n + 1
    made.learn(made.ratings(200))
    assert holder.poll()
    assert_serves(holder, made.state)


def test_a_damaged_version_is_not_taken_up(modeler, tmp_path):
    made = modeler()
    holder = followed(made, tmp_path)
    made.learn(made.ratings(20))
    file = made.path / made.commit.files["items"]["name"]
    whole = file.read_bytes()
    file.write_bytes(whole[:-7] + b"garbage")
    holder._look()
    assert "damaged" in holder.failure
    with holder.reading() as model:
        assert model.version == 0
    file.write_bytes(whole)
    holder._look()
    assert holder.failure is None
    assert_serves(holder, made.state)


def test_nothing_yet(tmp_path):
    holder = ModelHolder(str(tmp_path / "none"), str(tmp_path))
    assert not holder.poll()
    with pytest.raises(NoModelError, match="no model"), holder.reading():
        pass


@IN_RUNS_NIGHTLY
@pytest.mark.long
def test_readers_and_versions_at_once(modeler, tmp_path):
    """Each reading is of one version: a mix would show in the sums taken of every version."""
    made = modeler()
    holder = followed(made, tmp_path)
    sums = {0: made.state.items.mean.sum(dtype=np.float64)}
    seen, wrong = set(), []
    ended = threading.Event()

    def read():
        while not ended.is_set():
            with holder.reading() as model:
                first = model.items.mean.sum(dtype=np.float64)
                again = model.items.mean.sum(dtype=np.float64)
                seen.add(model.version)
                if first != again or abs(first - sums[model.version]) > 1e-9:
                    wrong.append(model.version)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for one in readers:
        one.start()
    for n in range(60):
        made.learn(made.ratings(20, first=n % 7))
        sums[made.commit.version] = made.state.items.mean.sum(dtype=np.float64)
        holder.poll()
    ended.set()
    for one in readers:
        one.join()
    assert not wrong
    assert len(seen) > 20


def test_what_is_pruned_while_the_service_starts(modeler, serving, monkeypatch):
    """A slow start may find a file of the newest version gone: there is a newer one by then."""
    made = modeler()
    gone = []

    def pruned(read):
        def reading(*given):
            if not gone:
                gone.append(given)
                made.learn(made.ratings(20))
                raise GoneError("something is missing")
            return read(*given)

        return reading

    for kind, name in ((VersionStore, "read_pieces"), (Run, "parts")):
        monkeypatch.setattr(kind, name, pruned(getattr(kind, name)))
    assert serving(made).get("/model")["version"] == made.commit.version == 1
    # what stays away is an error, and no loop
    for file in (made.path / "files").glob("*-items.*"):
        file.unlink()
    with pytest.raises(GoneError, match="missing"):
        serving(made)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs a list of open files")
def test_what_is_closed_holds_no_files(modeler, tmp_path):
    """Also where somebody keeps the holder, as FastAPI does."""
    made = modeler(settings=settings_of(rank=4, learns_events=True, num_negatives=5))
    before = set(os.listdir("/proc/self/fd"))
    holder = followed(made, tmp_path)
    assert len(set(os.listdir("/proc/self/fd")) - before) > 10
    holder.close()
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) <= before
    with pytest.raises(NoModelError), holder.reading():
        pass
