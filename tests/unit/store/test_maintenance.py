"""List, roll back, retain and forget versions on a real disk; readers while a writer goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from building import ratings_of
from writing import Stream, Writer, loadable, plan

from sparkml_sgdals.errors import LeaseError
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.store.forgetting import forget_users
from sparkml_sgdals.store.lease import Lease
from sparkml_sgdals.store.maintenance import (
    VERSIONS,
    drop_later_invalid,
    drop_old_checkpoints,
    list_versions,
    roll_back,
)
from sparkml_sgdals.store.objects import ObjectStore
from sparkml_sgdals.store.version_store import StorageError, VersionStore

pytestmark = pytest.mark.usefixtures("first_version")


def log_as_spark_reads(root: Path) -> list[int]:
    """The batches in a file source's log: from the last compacted file on, nothing missing."""
    names = [p.name for p in (root / "sources/0").glob("*") if not p.name.startswith(".")]
    last = max(int(name.split(".")[0]) for name in names)
    compacts = [int(name.split(".")[0]) for name in names if name.endswith(".compact")]
    files = [f"{max(compacts)}.compact"] if compacts else []
    files += [str(n) for n in range(max(compacts, default=-1) + 1, last + 1)]
    found = []
    for name in files:
        lines = (root / "sources/0" / name).read_text("utf-8").split("\n")
        assert lines[0] == "v1"
        found += [json.loads(line)["batchId"] for line in lines[1:]]
    return found


@pytest.fixture
def learned(tmp_path: Path) -> Writer:
    """A store with versions 0 to 6 of batches -1 to 5, 4 a base, and Spark's checkpoint of them."""
    writer = Writer(tmp_path / "model", meta={"params": {"userCol": "user"}, "pathId": "1"})
    for number in range(1, 7):
        plan(writer.path, number - 1)
        writer.learn(base=number == 4)
    return writer


# ---- list -----------------------------------------------------------------------------------


def test_versions_are_listed(learned: Writer) -> None:
    """Each with its batch, time, ratings so far and rmse."""
    listed = list_versions(learned.store, verify=True)
    assert tuple(listed.columns) == VERSIONS
    assert listed.version.tolist() == list(range(7))
    assert listed.batch.tolist() == list(range(-1, 6))
    assert listed.ratings.tolist() == [0, 3, 6, 9, 12, 15, 18]
    assert listed.loadable.all()
    assert listed.restored.isna().all()
    assert listed.rmse.tolist()[2:] == [row["rmse"] for row in learned.metrics[1:]]
    assert listed.committed.is_monotonic_increasing
    assert listed.committed.dt.tz is not None


def test_what_does_not_load_is_listed_as_such(learned: Writer) -> None:
    """A flipped bit spoils the versions up to the next base; a damaged commit object as well."""
    path = learned.path / learned.store.read_commit(2).files["users"]["name"]
    payload = bytearray(path.read_bytes())
    payload[-20] ^= 1
    path.write_bytes(payload)
    learned.commit_path(5).write_bytes(b"{")
    listed = list_versions(learned.store, verify=True)
    assert listed.loadable.tolist() == [True, True, False, False, True, False, False]
    assert listed.version.tolist() == list(range(7))
    for version, loads in zip(listed.version, listed.loadable, strict=True):
        if loads:
            learned.assert_loads(version)
        else:
            with pytest.raises(StorageError):
                learned.store.load(version)
    # without reading, only what is missing is seen
    assert list_versions(learned.store, verify=False).loadable.tolist() == [
        *[True] * 5, False, False,
    ]  # fmt: skip


def test_no_model_path(tmp_path: Path) -> None:
    """Says which file is not there."""
    with pytest.raises(StorageError, match=r"no model path: there is no model\.json"):
        list_versions(VersionStore(str(tmp_path)), verify=True)


# ---- roll back ------------------------------------------------------------------------------


def test_a_rollback_reads_again(learned: Writer) -> None:
    """The factors, metrics and offsets are those of the version; the next batch is numbered on."""
    done = roll_back(learned.store, 3, reread=True)
    assert (done.version, done.restored, done.batch) == (7, 3, 2)
    assert done.offsets == ('{"logOffset":2}',)
    assert "after batch 2, offset" in str(done)
    state, commit = learned.store.load()
    assert state.fingerprint() == learned.fingerprints[3]
    assert (commit.version, commit.batch, commit.restored) == (7, 2, 3)
    assert learned.store.metrics() == learned.metrics[:3]
    checkpoint = learned.path / commit.checkpoint
    assert commit.checkpoint == "checkpoint-000000000007"
    assert sorted(os.listdir(checkpoint / "offsets")) == [
        ".0.crc",
        ".1.crc",
        ".2.crc",
        "0",
        "1",
        "2",
    ]
    assert sorted(os.listdir(checkpoint / "commits")) == ["0", "1", "2"]
    assert log_as_spark_reads(checkpoint) == [0, 1, 2]
    assert (checkpoint / "metadata").read_text() == '{"id":"1"}'
    # those in between stay until they are pruned
    learned.assert_loads(6)
    assert list_versions(learned.store, True).restored.tolist()[-1] == 3
    assert learned.store.read("lease.json") is None


def test_learning_goes_on_after_a_rollback(learned: Writer) -> None:
    """The same batches again give the same bits and the same metrics, but for version numbers."""
    roll_back(learned.store, 3, reread=True)
    state, commit = learned.store.load()
    for number in range(4, 7):
        batch = ratings_of([number, 1, 1], ["a", f"i{number}", "a"], [1.0, 2.0 + number % 3, 4.0])
        report = learn_batch(state, batch)
        metrics = learned.metrics[number - 1]
        rows = report.user_rows, report.item_rows
        commit = learned.store.commit(state, rows, number - 1, commit, metrics)
        assert state.fingerprint() == learned.fingerprints[number]
        assert learned.store.load()[0].fingerprint() == learned.fingerprints[number]
    assert [row["batch"] for row in learned.store.metrics()] == list(range(6))


def test_a_rollback_that_goes_on_from_now(learned: Writer) -> None:
    """The checkpoint stays; the batches since are left out of factors and metrics."""
    done = roll_back(learned.store, 2, reread=False)
    assert (done.version, done.batch, done.offsets) == (7, 5, ('{"logOffset":5}',))
    state, commit = learned.store.load()
    assert state.fingerprint() == learned.fingerprints[2]
    assert (commit.batch, commit.checkpoint) == (5, "checkpoint")
    assert learned.store.metrics() == learned.metrics[:2]


def test_a_rollback_to_the_start(learned: Writer) -> None:
    """Version 0: the source is read from where it starts."""
    done = roll_back(learned.store, 0, reread=True)
    assert (done.batch, done.offsets) == (-1, None)
    assert "from where the source starts" in str(done)
    checkpoint = learned.path / "checkpoint-000000000007"
    assert not (checkpoint / "offsets").exists()
    assert not (checkpoint / "sources").exists()
    assert learned.store.metrics() == []


def test_forward_again_after_a_rollback(learned: Writer) -> None:
    """What was rolled back is a version like any other while it is kept."""
    roll_back(learned.store, 1, reread=True)
    drop_old_checkpoints(learned.store)
    assert roll_back(learned.store, 6, reread=True).batch == 5
    assert learned.store.load()[0].fingerprint() == learned.fingerprints[6]
    assert log_as_spark_reads(learned.path / "checkpoint-000000000008") == list(range(6))
    assert learned.store.metrics() == learned.metrics


def test_a_rollback_is_refused_while_a_stream_writes(learned: Writer) -> None:
    """The path stays as it is."""
    lease = Lease.acquire(learned.store, 30.0)
    before = sorted(p.name for p in learned.path.rglob("*"))
    with pytest.raises(LeaseError, match="Stop that stream"):
        roll_back(learned.store, 3, reread=True)
    with pytest.raises(LeaseError, match="Stop that stream"):
        forget_users(learned.store, pa.array([1]))
    assert sorted(p.name for p in learned.path.rglob("*")) == before
    lease.release()


@pytest.mark.parametrize(
    "number", [9, 10, *(pytest.param(n, marks=pytest.mark.long) for n in (8, 19, 23))]
)
@pytest.mark.parametrize("cleaned", [False, True])
def test_the_log_of_a_file_source_is_cut(tmp_path: Path, number: int, cleaned: bool) -> None:
    """Whatever Spark has compacted and deleted of it meanwhile."""
    writer = Writer(tmp_path / "model")
    for batch in range(26):
        plan(writer.path, batch)
        writer.learn()
    if cleaned:
        for path in (writer.path / "checkpoint/sources/0").glob("*"):
            if int(path.name.split(".")[0]) < 19:
                path.unlink()
    roll_back(writer.store, number + 1, reread=True)
    checkpoint = writer.path / writer.store.newest().checkpoint
    assert log_as_spark_reads(checkpoint) == list(range(number + 1))


def test_offsets_that_spark_has_dropped(learned: Writer) -> None:
    """The message says which are kept and what else to do."""
    for batch in range(4):
        (learned.path / "checkpoint/offsets" / f"{batch}").unlink()
    with pytest.raises(StorageError, match=r"batch 2 \(kept: 0 to 5\).*reread=False") as raised:
        roll_back(learned.store, 3, reread=True)
    assert "checkpoint/offsets" in str(raised.value)
    assert learned.store.newest() == learned.commit
    roll_back(learned.store, 3, reread=False)


def test_back_from_a_damaged_version(learned: Writer) -> None:
    """The newest one is spoilt, by its files or its commit object: the one before is good."""
    (learned.path / learned.store.read_commit(6).files["items"]["name"]).write_bytes(b"PAR1")
    roll_back(learned.store, 5, reread=True)
    assert learned.store.load()[0].fingerprint() == learned.fingerprints[5]
    for version in (6, 7):
        learned.commit_path(version).write_bytes(b"{")
    with pytest.raises(StorageError, match="rollback"):
        learned.store.newest()
    done = roll_back(learned.store, 4, reread=True)
    assert done.version == 8
    assert learned.store.load()[0].fingerprint() == learned.fingerprints[4]
    assert learned.store.metrics() == learned.metrics[:4]


def test_back_over_a_damaged_history(learned: Writer, caplog: pytest.LogCaptureFixture) -> None:
    """Metrics that cannot be read close no way back; what is lost is said."""
    history = learned.store.read_commit(4).files["metrics"]["name"]
    (learned.path / history).write_bytes(b"PAR1")
    with pytest.raises(StorageError, match="damaged"):
        learned.store.metrics()
    assert roll_back(learned.store, 5, reread=True).version == 7
    assert learned.store.load()[0].fingerprint() == learned.fingerprints[5]
    assert learned.store.metrics() == learned.metrics[3:5]
    assert f"metrics of older batches are lost: {learned.path}/{history}" in caplog.text


def killed(path: str, what: str, steps: int) -> None:
    """Roll back or forget; SIGKILL after so many writes and deletions, the next one half done."""
    put, delete, left = ObjectStore._put, ObjectStore.delete, [steps]

    def step() -> None:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1

    def counted_put(self: ObjectStore, target: str, payload: bytes, *together: Any) -> None:
        if "lease.json" not in target:
            if left[0] == 0:
                put(self, target, payload[: len(payload) // 2])
            step()
        put(self, target, payload, *together)

    def counted_delete(self: ObjectStore, name: str) -> None:
        if name != "lease.json":
            step()
        delete(self, name)

    ObjectStore._put, ObjectStore.delete = counted_put, counted_delete  # type: ignore[method-assign]
    if what == "rollback":
        roll_back(VersionStore(path), 3, reread=True)
    else:
        forget_users(VersionStore(path), pa.array([1]))


def killed_after(path: Path, what: str, steps: int) -> bool:
    """Whether a process of its own was killed so."""
    context = multiprocessing.get_context("forkserver")
    # this module first, or every process imports it anew
    context.set_forkserver_preload([__name__])
    process = context.Process(target=killed, args=(str(path), what, steps))
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.mark.long
def test_a_rollback_killed_at_every_step(learned: Writer) -> None:
    """It is as before or done, and can be called again."""
    (learned.path / "invalid").mkdir()
    for batch in (1, 4):
        (learned.path / "invalid" / f"batch-{batch:012d}.parquet").write_bytes(b"")
    steps, states = 0, []
    while killed_after(learned.path, "rollback", steps):
        commit = learned.store.newest()
        done = commit.version > 6
        states.append(done)
        expected = learned.fingerprints[3 if done else 6]
        assert learned.store.load()[0].fingerprint() == expected
        assert learned.store.metrics() == learned.metrics[: 3 if done else 6]
        offsets = learned.path / commit.checkpoint / "offsets"
        assert (offsets / f"{commit.batch}").exists()
        assert (offsets / "5").exists() == (not done)
        if done:
            # only the rows set aside in later batches were still to be deleted: a start does it
            assert len(learned.store.names("invalid")) == 2
            drop_later_invalid(learned.store, commit.batch)
            assert learned.store.names("invalid") == ["batch-000000000001.parquet"]
            break
        steps += 1
    assert steps > 10
    assert states[-1]
    assert roll_back(learned.store, 6, reread=True).version == 8
    assert learned.store.metrics() == learned.metrics


@pytest.mark.long
def test_a_forgetting_killed_at_every_step(learned: Writer) -> None:
    """Called again, nothing of the user is left; all versions load all the while."""
    steps = 0
    while killed_after(learned.path, "forget", steps):
        for version in learned.store.numbers():
            learned.store.load(version)
        steps += 1
    assert steps > 5
    assert holders_of(learned, 1) == []


def test_a_version_onto_another_commit_is_listed_as_such(learned: Writer) -> None:
    """What was put back in a commit's place is whole, and not what the next one was added to."""
    path = learned.commit_path(1)
    commit = learned.store.read_commit(1)
    path.write_bytes(dataclasses.replace(commit, committed="2024-01-01T00:00:00+00:00").to_bytes())
    assert loadable(learned.store) == [0, 1, 4, 5, 6]
    for version in (2, 3):
        with pytest.raises(StorageError, match="is not the commit that version 2 was added to"):
            learned.store.load(version)


# ---- retention ------------------------------------------------------------------------------


def aged(writer: Writer, hours: Callable[[int], float]) -> None:
    """Let versions have been committed so many hours ago."""
    for number in writer.store.numbers():
        commit = writer.store.read_commit(number)
        committed = datetime.now(timezone.utc) - timedelta(hours=hours(number))
        changed = dataclasses.replace(
            commit, committed=committed.isoformat(timespec="milliseconds"), replaces=commit.digest
        )
        writer.commit_path(number).write_bytes(changed.to_bytes())


@pytest.mark.parametrize(
    ("keep", "hours", "kept"),
    [(1, 0.0, 8), (1, 1.5, 8), (1, 2.5, 4), (1, 6.5, 0), (7, 0.0, 4), (9, 0.0, 0), (7, 6.5, 0)],
)
def test_versions_are_kept_by_count_and_age(
    tmp_path: Path, keep: int, hours: float, kept: int
) -> None:
    """Ten versions an hour apart, every fourth a base; a version's time ends with the next one."""
    writer = Writer(tmp_path / "model")
    for number in range(1, 11):
        writer.learn(base=number % 4 == 0)
    aged(writer, lambda number: 10 - number)
    writer.store.prune(keep, hours * 3600)
    assert writer.store.numbers()[0] == kept
    assert writer.store.metrics() == writer.metrics
    for number in writer.store.numbers():
        writer.assert_loads(number)


def test_old_checkpoints_go_with_their_versions(learned: Writer) -> None:
    """A checkpoint stays while a kept version goes with it."""
    roll_back(learned.store, 2, reread=True)
    (learned.path / "checkpoint-000000000099/offsets").mkdir(parents=True)
    drop_old_checkpoints(learned.store)
    folders = {p.name for p in learned.path.glob("checkpoint*")}
    assert folders == {"checkpoint", "checkpoint-000000000007"}
    learned.store.prune(1)
    drop_old_checkpoints(learned.store)
    assert {p.name for p in learned.path.glob("checkpoint*")} == {"checkpoint-000000000007"}


# ---- readers --------------------------------------------------------------------------------

READ = """
import json, sys
from sparkml_sgdals.store.version_store import VersionStore
store, seen = VersionStore(sys.argv[1]), []
print("ready", flush=True)
while not seen or seen[-1][0] < int(sys.argv[2]):
    state, commit = store.load()
    batches = [row["batch"] for row in store.metrics()]
    assert len(batches) >= commit.version and batches == list(range(len(batches)))
    seen.append((commit.version, state.fingerprint()))
print(json.dumps(seen))
"""


@pytest.mark.long
def test_readers_while_the_writer_goes_on(tmp_path: Path) -> None:
    """A process loads in a loop during 500 commits, of which only the last one is kept.

    Every load gives a whole version, to the bit, and none goes back.
    """
    writer = Writer(tmp_path / "model")
    reader = subprocess.Popen(
        [sys.executable, "-c", READ, str(writer.path), "500"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert reader.stdout.readline() == "ready\n"
    for number in range(1, 501):
        writer.learn(base=number % 3 == 0)
        writer.store.prune(1)
    assert len(writer.store.numbers()) <= 3
    out, errors = reader.communicate(timeout=100)
    assert reader.returncode == 0, errors
    seen = json.loads(out)
    assert [version for version, _ in seen] == sorted(version for version, _ in seen)
    assert len({version for version, _ in seen}) > 20
    for version, fingerprint in seen:
        assert fingerprint == writer.fingerprints[version]


def test_a_file_pruned_under_a_reader(learned: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever was to read it reads the newest version instead."""
    read, calls = VersionStore.read, []

    def slow_read(self: VersionStore, name: str) -> bytes | None:
        if name.startswith("files/"):
            calls.append(name)
            if len(calls) == 2:
                for _ in range(3):
                    learned.learn(base=True)
                learned.store.prune(1)
        return read(self, name)

    monkeypatch.setattr(VersionStore, "read", slow_read)
    state, commit = VersionStore(str(learned.path)).load()
    assert commit.version == 9
    assert state.fingerprint() == learned.fingerprints[9]
    with pytest.raises(StorageError, match=r"does not hold version 6 .*\(kept: 9\)"):
        learned.store.load(6)


# ---- forget ---------------------------------------------------------------------------------


def holders_of(writer: Writer, user: int) -> list[str]:
    """Files under a path that hold a user."""
    found = []
    for path in writer.path.rglob("*.parquet"):
        frame = pd.read_parquet(path)
        if path.name.endswith("users.parquet") or path.name == "validation.parquet":
            if user in frame["id" if "id" in frame else "user"].tolist():
                found.append(path.name)
        elif "row" in frame and any(json.loads(row).get("user") == user for row in frame.row):
            found.append(path.name)
    return found


def test_users_are_forgotten_everywhere(learned: Writer) -> None:
    """In every version, in rows set aside and held out, and in files that no version names."""
    store = learned.store
    held = pa.table({"user": [1, 2], "item": ["a", "b"], "rating": [1.0, 2.0]})
    store.write_table("validation.parquet", held)
    rows = [json.dumps({"user": 1, "rating": "x"}), json.dumps({"user": 2}), json.dumps({})]
    store.write_table("invalid/batch-000000000001.parquet", pa.table({"row": rows}))
    store.write_table("files/000000000007-deadbeef-users.parquet", pa.table({"id": [1]}))
    assert len(holders_of(learned, 1)) >= 8
    made = forget_users(store, pa.array([1, 12345]))
    assert (made.version, made.batch) == (7, 5)
    assert holders_of(learned, 1) == []
    for version in range(8):
        state, _ = store.load(version)
        assert 1 not in state.users.index
        whole = VersionStore(str(learned.path)).load(version)[0]
        assert whole.fingerprint() == state.fingerprint()
    # all others are as they were, and so are the items
    newest = store.load()[0]
    assert newest.users.to_arrow().equals(learned.state.users.without(pa.array([1])).to_arrow())
    assert newest.items.to_arrow().equals(learned.state.items.to_arrow())
    assert newest.users.size == learned.state.users.size - 1
    assert store.metrics() == learned.metrics
    assert store.read_table("validation.parquet").column("user").to_pylist() == [2]
    assert store.read_table("invalid/batch-000000000001.parquet").num_rows == 2
    assert list_versions(store, True).loadable.all()


def test_all_held_out_users_are_forgotten(learned: Writer) -> None:
    """No table of no ratings stays, whose error would be 0 / 0."""
    held = pa.table({"user": [1, 2], "item": ["a", "b"], "rating": [1.0, 2.0]})
    learned.store.write_table("validation.parquet", held)
    forget_users(learned.store, pa.array([1, 2]))
    assert learned.store.read_table("validation.parquet") is None


def test_broken_writes_are_forgotten(learned: Writer) -> None:
    """What a kill left of a file that was to be renamed holds users, too."""
    store = learned.store
    for folder in ("", "commits/", "invalid/", "checkpoint/"):
        store.write(f"{folder}held.parquet.0123abcd", b"users")
        store.write(f"{folder}commit.json.0123abcd", b"users")
    kept = ["mine.parquet.bak", "0123abcd"]
    for name in kept:
        store.write(name, b"not ours")
    forget_users(store, pa.array([1]))
    left = [name for name in store.walk("") if name.endswith("0123abcd") or "bak" in name]
    assert left == sorted(kept)


@pytest.mark.parametrize(
    ("column", "row"),
    [
        ("user", {"user": 1}),
        ("USER", {"User": 1}),
        ("who.id", {"who": {"Id": 1}}),
        ("who.id", {"who.id": 1}),
    ],
)
def test_rows_set_aside_by_the_name_of_the_column(
    tmp_path: Path, column: str, row: dict[str, object]
) -> None:
    """Found as Spark finds a column."""
    learned = Writer(tmp_path / "model", meta={"params": {"userCol": column}, "pathId": "1"})
    rows = [json.dumps(row), json.dumps({"who": 1}), json.dumps({"item": 1})]
    name = "invalid/batch-000000000001.parquet"
    learned.store.write_table(name, pa.table({"row": rows}))
    forget_users(learned.store, pa.array([1]))
    assert learned.store.read_table(name).column("row").to_pylist() == rows[1:]


def test_a_forgotten_user_starts_anew(learned: Writer) -> None:
    """Rated again, the user gets the start of a new one."""
    forget_users(learned.store, pa.array([1]))
    state, _ = learned.store.load()
    rows, new = state.users.ensure(pa.array([1]))
    assert new == 1
    assert state.users.count[rows[0]] == 0


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


def test_rows_set_aside_go_from_the_next_batch_on(tmp_path):
    store = VersionStore(str(tmp_path))
    names = [f"batch-{batch:012d}.parquet" for batch in range(4)]
    (tmp_path / "invalid").mkdir()
    for name in (*names, "batch-x.parquet"):
        (tmp_path / "invalid" / name).write_bytes(b"")
    drop_later_invalid(store, 2)
    assert sorted(store.names("invalid")) == [*names[:3], "batch-x.parquet"]
