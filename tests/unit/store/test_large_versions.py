"""Versions of a model larger than memory: forgetting, listing and pruning, also when it fails."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from building import ratings_of, settings_of

from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.state.model_state import SETTLING_RATINGS, ModelState, Scale
from sparkml_sgdals.store import forgetting, overlay, sorted_runs
from sparkml_sgdals.store.forgetting import forget_users
from sparkml_sgdals.store.lease import Lease
from sparkml_sgdals.store.maintenance import list_versions
from sparkml_sgdals.store.overlay import Overlay
from sparkml_sgdals.store.version_store import StorageError, VersionStore
from sparkml_sgdals.stream import micro_batch, residents, start


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a power cut would leave is not looked at here."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class Stream:
    """A stream onto a path of 60 users and items, of which `limit` are in memory."""

    def __init__(self, folder: Path, limit: int) -> None:
        params = settings_of(rank=2)
        self.store = VersionStore(str(folder))
        state = ModelState.empty(params, "int", "int")
        state.scale = Scale(2.5, 1.2, 1000.0, 1440.0, SETTLING_RATINGS, True)
        learn_batch(state, ratings_of(list(range(60)), list(range(60)), [3.0] * 60))
        self.commit = self.store.create(
            state,
            {
                "settings": params.to_json(),
                "kinds": ["int", "int"],
                "origin": "nothing",
                "params": {"userCol": "user"},
            },
        )
        self.part = Overlay(self.store, self.commit, limit)

    def learn(self, ids: list[int]) -> None:
        """Learn and commit a batch of a rating each by users and items of these ids."""
        batch = ratings_of(ids, ids, [4.0] * len(ids))
        self.part.fetch(batch.user_ids, batch.item_ids)
        report = learn_batch(self.part.state, batch)
        rows = (report.user_rows, report.item_rows)
        before = self.commit
        self.commit = self.store.commit(
            self.part.state,
            rows,
            before.version,
            before,
            {"batch": before.version, "rmse": 1.0},
            onto=self.part.onto(report.new_users, report.new_items),
        )
        self.part.committed(self.commit, rows)


def loadable(store: VersionStore) -> list[int]:
    """Versions that are listed as whole."""
    table = list_versions(store, True)
    return list(table.version[table.loadable.astype(bool)])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_disk_that_is_full_costs_no_version_while_users_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """The run without them cannot be written: the one with them stays, and the caller is told."""
    stream = Stream(tmp_path, 40)
    for number in range(4):
        stream.learn([number])

    def full(self: Any, payload: bytes) -> None:
        with self._store.explaining(self.name):
            raise OSError(code, "")

    with monkeypatch.context() as patch:
        patch.setattr(sorted_runs._Output, "write", full)
        with pytest.raises(StorageError, match="could not be written"):
            forget_users(stream.store, pa.array([59]))
    assert loadable(stream.store) == [0, 1, 2, 3, 4, 5]
    forget_users(stream.store, pa.array([59]))
    assert loadable(stream.store) == [0, 1, 2, 3, 4, 5, 6]
    for version in range(7):
        assert 59 not in stream.store.load(version)[0].users.index


def test_users_in_a_damaged_run_are_forgotten_with_it(tmp_path: Path) -> None:
    """Nobody could load it, and who is in it cannot be told."""
    stream = Stream(tmp_path, 40)
    for number in range(4):
        stream.learn([number])
    name = stream.commit.runs["users"][0]["rows"]["name"]
    state, commit = stream.store.load()
    stream.store.commit(state, None, commit.batch, commit, None)
    payload = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(payload[:-1] + bytes([payload[-1] ^ 1]))
    forget_users(stream.store, pa.array([59]))
    assert not (tmp_path / name).exists()
    assert 59 not in stream.store.load()[0].users.index


def test_forgetting_others_after_it_was_broken_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that some versions name already is not written over."""
    stream = Stream(tmp_path, 40)
    for number in range(4):
        stream.learn([number])
    rewrite, left = forgetting._rewrite, [3]

    def broken_off(*args: Any) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        rewrite(*args)

    with monkeypatch.context() as patch:
        patch.setattr(forgetting, "_rewrite", broken_off)
        with pytest.raises(KeyboardInterrupt):
            forget_users(stream.store, pa.array([58, 59]))
    forget_users(stream.store, pa.array([59]))
    assert loadable(stream.store) == stream.store.numbers()
    for version in stream.store.numbers():
        assert 59 not in stream.store.load(version)[0].users.index


def test_one_compaction_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second starts when the first one's base is named by no commit yet, and ends when what
    was the base before is pruned: the stream goes on, and counts the rows since its base."""
    gate, real = threading.Event(), overlay.compact

    def when_told(*args: Any) -> Any:
        assert gate.wait(30)
        return real(*args)

    monkeypatch.setattr(overlay, "compact", when_told)
    stream = Stream(tmp_path, 80)
    hot = list(range(25))

    def finish() -> None:
        gate.set()
        assert stream.part._compaction is not None
        stream.part._compaction._thread.join()
        gate.clear()

    def counted() -> None:
        newest = stream.commit
        since = range(newest.base + 1, newest.version + 1)
        commits = [stream.store.read_commit(number) for number in since]
        rows = [c.files[side]["rows"] for c in commits for side in ("users", "items")]
        assert newest.delta_rows == sum(rows)

    bases = []
    for round_ in range(4):
        for _ in range(3):
            stream.learn(hot)
            counted()
            if round_:
                stream.store.prune(1)
        finish()
        bases.append(stream.commit.base)
    gate.set()
    stream.part.stop()
    assert bases[1] < bases[2] < bases[3]
    rows = stream.store.metrics()
    assert [row["batch"] for row in rows] == list(range(stream.commit.version))


def test_a_version_whose_base_was_pruned_is_listed_as_such(tmp_path: Path) -> None:
    """What is listed as whole loads, and nothing else does."""
    stream = Stream(tmp_path, 10)
    for first in range(4):
        stream.learn(list(range(first, first + 11)))
        stream.store.prune(1)
    stream.part.stop()
    base = stream.commit.base
    assert base < stream.commit.version
    assert loadable(stream.store) == loads(stream.store)
    payload = stream.store.read(f"commits/{base:012d}.json")
    for damage in (payload[:-9], None):
        if damage is None:
            stream.store.delete(f"commits/{base:012d}.json")
        else:
            stream.store.write(f"commits/{base:012d}.json", damage)
        assert stream.commit.version not in loadable(stream.store)
        assert loadable(stream.store) == loads(stream.store)


def loads(store: VersionStore) -> list[int]:
    """Versions that can be loaded."""
    found = []
    for number in store.numbers():
        with contextlib.suppress(StorageError):
            store.load(number)
            found.append(number)
    return found


def test_nothing_is_compacted_after_the_end(tmp_path: Path) -> None:
    """A last batch may be running when its stream is stopped: it starts no thread that writes."""
    stream = Stream(tmp_path, 40)
    stream.part.stop()
    stream.learn(list(range(11)))
    assert stream.part._compaction is None
    assert stream.store.load()[1] == stream.commit


def test_a_file_written_while_users_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that no version names, of a writer that was cut off, holds nobody in the end."""
    stream = Stream(tmp_path, 40)
    stream.learn([1])
    late = "files/000000000001-deadbeef-users.rows"
    rewrite = forgetting._rewrite

    def meanwhile(*args: Any) -> None:
        rewrite(*args)
        stream.store.write(late, b"users")

    monkeypatch.setattr(forgetting, "_rewrite", meanwhile)
    forget_users(stream.store, pa.array([59]))
    assert stream.store.read(late) is None
    assert loadable(stream.store) == stream.store.numbers()


@pytest.mark.parametrize("seen_by", ["the lease", "the next writer", "the caller"])
def test_a_stream_that_ends_writes_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen_by: str
) -> None:
    """Its compaction has ended when the path may be written by another."""
    begun, ends = threading.Event(), threading.Event()

    def endless(store: Any, commit: Any, held: Any, touched: Any, check: Any) -> Any:
        begun.set()
        try:
            while True:
                check()
                time.sleep(0.001)
        finally:
            # who does not wait for it finds it running
            time.sleep(0.2)
            ends.set()

    monkeypatch.setattr(overlay, "compact", endless)
    stream = Stream(tmp_path, 80)
    lease = Lease.acquire(stream.store, 30.0)
    active = threading.Event()
    active.set()
    query: Any = SimpleNamespace(isActive=True, awaitTermination=lambda: True, stop=active.clear)
    start_kept(lease, active, str(tmp_path))
    resident = micro_batch._Resident(
        stream.commit, lease.token, stream.part.state, None, stream.part
    )
    residents.learn_once(
        str(tmp_path), lease.token, stream.commit.batch + 1, lambda: resident,
        lambda _: stream.learn(list(range(25))),
    )  # fmt: skip
    assert begun.wait(10)
    if seen_by == "the caller":
        start.StreamJob(query, str(tmp_path), lease, lambda store: Any).stop(drain=False)
    active.clear()
    if seen_by == "the next writer":
        Lease.acquire(stream.store, 30.0).release()
    until = time.monotonic() + 10
    while stream.store.read("lease.json") is not None and time.monotonic() < until:
        time.sleep(0.01)
    assert stream.store.read("lease.json") is None
    assert ends.is_set()
    assert str(tmp_path) not in residents._places


def start_kept(lease: Lease, active: threading.Event, path: str) -> None:
    """Keep the lease as a stream does."""
    lease.keep_while(active.is_set, ended=lambda: residents.forget_resident(path, lease.token))
