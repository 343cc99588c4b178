"""Versions that lie in runs from their beginning: gone back to, copied, without users."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from building import id_array, ratings_of, settings_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from writing import loadable, plan

from sparkml_sgdals.errors import StorageError
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.serving.model.holder import ModelHolder
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.model_state import SETTLING_RATINGS, ModelState, Scale
from sparkml_sgdals.store.forgetting import forget_users
from sparkml_sgdals.store.large import rewriting
from sparkml_sgdals.store.large.in_runs import RunSink, commit_in_runs
from sparkml_sgdals.store.large.unfinished import MARK, drop_unfinished
from sparkml_sgdals.store.lease import Lease
from sparkml_sgdals.store.maintenance import roll_back
from sparkml_sgdals.store.overlay import Overlay
from sparkml_sgdals.store.packed_rows import RowShape, pack_rows, search_keys
from sparkml_sgdals.store.sorted_runs import Run, RunWriter, merged_rows
from sparkml_sgdals.store.version_store import VersionStore


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a power cut would leave is not looked at here."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class Path3:
    """A model path of 60 users and items in runs of three blocks, and its whole beside it."""

    def __init__(self, folder: Path, kind: Any = "int") -> None:
        params = settings_of(rank=2)
        self.kind = kind
        self.store = VersionStore(str(folder))
        self.state = ModelState.empty(params, kind, "int")
        self.state.scale = Scale(2.5, 1.2, 1000.0, 1440.0, SETTLING_RATINGS, True)
        learn_batch(self.state, self.batch(range(60)))
        sink, runs = RunSink(str(folder)), {"metrics": None}
        for side, table in (("users", self.state.users), ("items", self.state.items)):
            blocks = [np.arange(table.size)[n::3] for n in range(3)]
            runs[side] = [
                sink.write(
                    side, table.index.kind, params, table.index.ids(rows), table.take(rows).arrays
                )
                for rows in blocks
            ]
        meta = {"settings": params.to_json(), "kinds": [kind, "int"], "params": {}}
        digest = self.store.put_meta(meta)
        self.commit = commit_in_runs(self.store, self.state, runs, (60, 60), None, meta=digest)
        self.fingerprints = [self.state.fingerprint()]
        self.part = Overlay(self.store, self.commit, 40)

    def ids(self, numbers: Any) -> list[Any]:
        """Ids of users of these numbers."""
        return [n if self.kind == "int" else f"u{n}" for n in numbers]

    def batch(self, numbers: Any) -> Any:
        """A rating each by users and items of these numbers."""
        numbers = list(numbers)
        return ratings_of(self.ids(numbers), numbers, [1.0 + n % 5 for n in numbers])

    def learn(self, numbers: Any) -> None:
        """Learn a batch with few rows in memory, and with all."""
        batch = self.batch(numbers)
        learn_batch(self.state, batch)
        self.part.fetch(batch.user_ids, batch.item_ids)
        report = learn_batch(self.part.state, batch)
        rows, before = (report.user_rows, report.item_rows), self.commit
        self.commit = self.store.commit(
            self.part.state, rows, before.batch + 1, before,
            {"batch": before.batch + 1, "rmse": 1.0},
            onto=self.part.onto(report.new_users, report.new_items),
        )  # fmt: skip
        self.part.committed(self.commit, rows)
        plan(Path(self.store.path), self.commit.batch)
        self.fingerprints.append(self.state.fingerprint())


KINDS = pytest.mark.parametrize("kind", ["int", "str"])


@KINDS
def test_each_version_holds_what_was_committed(tmp_path: Path, kind: Any) -> None:
    made = Path3(tmp_path, kind)
    for number in range(6):
        made.learn([number, 60 + number])
    assert loadable(made.store) == list(range(7))
    for version, expected in enumerate(made.fingerprints):
        assert made.store.load(version)[0].fingerprint() == expected
    commit = made.store.newest()
    assert commit is not None
    assert commit.ids == [66, 66]
    again = Overlay(made.store, commit, 40)
    assert again.whole().fingerprint() == made.fingerprints[-1]
    made.store.prune(2)
    assert made.store.load()[0].fingerprint() == made.fingerprints[-1]


@KINDS
def test_going_back(tmp_path: Path, kind: Any) -> None:
    """To a version with rows beside the runs, and to the first; without a base of all rows."""
    made = Path3(tmp_path, kind)
    for number in range(4):
        made.learn([number, 60 + number])
    for back, ids in ((2, [62, 62]), (0, [60, 60])):
        done = roll_back(made.store, back, reread=True)
        state, commit = made.store.load()
        assert state.fingerprint() == made.fingerprints[back]
        assert (commit.restored, commit.ids, commit.base) == (back, ids, done.version)
        assert commit.runs is not None
        assert all(made.store.read_checked(f).num_rows == 0 for f in commit.files.values())
        assert [row["batch"] for row in made.store.metrics()] == list(range(back))
    assert loadable(made.store) == made.store.numbers()
    made.store.prune(1)
    assert made.store.load()[0].fingerprint() == made.fingerprints[0]
    assert loadable(made.store) == made.store.numbers()


def test_going_back_to_what_is_damaged(tmp_path: Path) -> None:
    made = Path3(tmp_path)
    made.learn([1])
    file = tmp_path / made.commit.runs["items"][1]["rows"]["name"]
    payload = file.read_bytes()
    file.write_bytes(payload[:-1] + bytes([payload[-1] ^ 1]))
    with pytest.raises(StorageError, match="is damaged"):
        roll_back(made.store, 0, reread=False)
    with pytest.raises(StorageError, match="is damaged"):
        forget_users(made.store, pa.array([1]))
    assert file.exists()
    assert made.store.numbers() == [0, 1]


@KINDS
def test_forgetting(tmp_path: Path, kind: Any) -> None:
    """Users of the runs, of what changed since, and one that was never known."""
    made = Path3(tmp_path, kind)
    for number in range(3):
        made.learn([number, 60 + number])
    gone = id_array(made.ids([1, 7, 61, 999]))
    expected = made.state.copy()
    expected.users = expected.users.without(gone)
    forget_users(made.store, gone)
    state, commit = made.store.load()
    assert state.fingerprint() == expected.fingerprint()
    assert (commit.version, commit.ids, commit.batch) == (4, [60, 63], 2)
    assert loadable(made.store) == made.store.numbers()
    for version in made.store.numbers():
        users = made.store.load(version)[0].users.index
        assert not any(each in users for each in gone.to_pylist())
    assert [row["batch"] for row in made.store.metrics()] == [0, 1, 2]


@KINDS
def test_copies(tmp_path: Path, kind: Any) -> None:
    """With what was learned by no version; a copy of it goes on alone."""
    made = Path3(tmp_path / "from", kind)
    for number in range(3):
        made.learn([number, 60 + number])
    batch = made.batch([5, 70])
    made.part.fetch(batch.user_ids, batch.item_ids)
    report = learn_batch(made.part.state, batch)
    made.part.learned((report.user_rows, report.item_rows), (report.new_users, report.new_items))
    learn_batch(made.state, batch)
    target = VersionStore(str(tmp_path / "to"))
    meta = made.store.meta()
    assert meta is not None
    made_there = rewriting.copy_version(made.part, target, meta)
    state, commit = target.load()
    assert commit == made_there
    assert state.fingerprint() == made.state.fingerprint()
    assert (commit.version, commit.ids) == (0, [64, 64])
    assert sorted(p.name for p in (tmp_path / "to").iterdir()) == ["commits", "files", "model.json"]
    # a broken off copy is no version, and goes
    (tmp_path / "to" / MARK).write_bytes(b"")
    (tmp_path / "to" / "commits" / f"{0:012d}.json").unlink()
    drop_unfinished(target)
    assert target.names("") == []


def test_a_damaged_file_is_not_copied(tmp_path: Path) -> None:
    made = Path3(tmp_path / "from")
    file = tmp_path / "from" / made.commit.runs["users"][2]["rows"]["name"]
    payload = file.read_bytes()
    file.write_bytes(payload[:100] + bytes([payload[100] ^ 1]) + payload[101:])
    target = VersionStore(str(tmp_path / "to"))
    with pytest.raises(StorageError, match="is damaged"):
        rewriting.copy_version(made.part, target, made.store.meta() or {})
    assert target.newest() is None


def test_what_is_unfinished_beside_a_version_stays_a_version(tmp_path: Path) -> None:
    """Killed between its commit and the removal of the mark."""
    made = Path3(tmp_path)
    (tmp_path / MARK).write_bytes(b"")
    lease = Lease.acquire(made.store, 60.0)
    drop_unfinished(made.store)
    lease.release()
    assert not (tmp_path / MARK).exists()
    assert made.store.load()[0].fingerprint() == made.fingerprints[0]


# ---- ranges of keys -------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_ranges_of_keys(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever the cuts, ranges hold every row once, the newest of each id."""
    kind: Any = data.draw(st.sampled_from(["int", "str"]))
    params = settings_of(rank=1)
    shape, store = RowShape.of(kind, params), VersionStore(str(tmp_path))
    one = st.integers(-(2**63), 2**63 - 1) if kind == "int" else st.text(max_size=3)
    entries, newest = [], {}
    number = itertools.count()
    for _ in range(data.draw(st.integers(1, 3))):
        ids = data.draw(st.lists(one, min_size=1, max_size=12, unique=True))
        table = FactorTable(1, kind, params)
        table.ensure(id_array(ids) if kind == "int" else pa.array(ids, pa.string()))
        mark = next(number)
        table.count[:] = mark
        newest |= dict.fromkeys(ids, mark)
        name = f"files/{data.draw(st.uuids())}"
        with RunWriter(store, shape, name) as writer:
            writer.add(pack_rows(table))
        entries.append(writer.entry())
    ids = list(newest)
    keys = search_keys(id_array(ids) if kind == "int" else pa.array(ids, pa.string())).tolist()
    cuts = data.draw(st.lists(st.sampled_from([*keys, 1, 2**64 - 1]), max_size=4, unique=True))
    bounds = [0, *sorted(cuts), None]
    found: dict[Any, int] = {}
    for low, high in itertools.pairwise(bounds):
        runs = [Run.within(store, shape, entry, low, high) for entry in entries]
        for packed in merged_rows(runs):
            counts = packed.words[:, 1].tolist()
            for key, each, count in zip(packed.keys, packed.ids().to_pylist(), counts, strict=True):
                assert low <= key
                assert high is None or key < high
                assert each not in found
                found[each] = count
        for run in runs:
            run.close()
    assert found == newest


def test_damage_is_found_in_a_range(tmp_path: Path) -> None:
    """Of rows, and of the keys beside them: no row is left out for it."""
    made = Path3(tmp_path)
    entry, shape = made.commit.runs["users"][0], RowShape.of("int", settings_of(rank=2))
    keys = np.frombuffer((tmp_path / entry["keys"]["name"]).read_bytes(), "<u8")
    low, high = int(keys[5]), int(keys[12])

    def ids() -> list[int]:
        with_range = Run.within(made.store, shape, entry, low, high)
        found: list[int] = with_range.part(0, len(with_range)).ids().to_pylist()
        with_range.close()
        return found

    expected = ids()
    assert len(expected) == 7
    for end in ("rows", "keys"):
        file = tmp_path / entry[end]["name"]
        payload = file.read_bytes()
        width = len(payload) // len(keys)
        found = 0
        for place in range(len(payload)):
            file.write_bytes(
                payload[:place] + bytes([payload[place] ^ 0x40]) + payload[place + 1 :]
            )
            try:
                assert ids() == expected
            except StorageError as damage:
                assert "is damaged" in str(damage)  # noqa: PT017
                found += 1
        assert found >= 7 * width
        file.write_bytes(payload)


def test_a_service_maps_it(tmp_path: Path) -> None:
    """Its first version, what streams add, one gone back to, and one without some users."""
    made, served = Path3(tmp_path / "m"), tmp_path / "served"
    served.mkdir()
    holder = ModelHolder(str(tmp_path / "m"), str(served))

    def sizes() -> tuple[int, int, int]:
        holder.poll()
        with holder.reading() as model:
            rows = model.user_rows([3])
            row = made.state.users.index.find(pa.array([3]))
            if model.version in (0, 2):
                np.testing.assert_array_equal(model.users.mean[rows], made.state.users.mean[row])
            return model.version, model.users.size, model.items.size

    assert sizes() == (0, 60, 60)
    made.learn([3, 60])
    made.learn([3, 61])
    assert sizes() == (2, 62, 62)
    roll_back(made.store, 1, reread=False)
    assert sizes() == (3, 61, 61)
    forget_users(made.store, pa.array([7]))
    assert sizes() == (4, 60, 61)
    holder.close()
