"""Generated damage to the JSON objects of a model path, odd names and folders: each is named with a
remedy, or does nothing. Checksums are made to fit, where there are any: whole, and not ours.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from building import settings_of
from hypothesis import given, settings
from hypothesis import strategies as st
from writing import Stream, Writer, plan, somebody_else

from sparkml_sgdals.errors import DamagedError, LeaseError, StorageError
from sparkml_sgdals.serving.model.holder import ModelHolder
from sparkml_sgdals.store.checkpoint.agreement import (
    check_checkpoint,
    drop_unplanned_files,
    last_done,
    reading,
)
from sparkml_sgdals.store.commit import Commit
from sparkml_sgdals.store.described import meta_digest
from sparkml_sgdals.store.forgetting import forget_users
from sparkml_sgdals.store.lease import Lease, check_holder
from sparkml_sgdals.store.maintenance import (
    drop_later_invalid,
    drop_old_checkpoints,
    list_versions,
    roll_back,
)
from sparkml_sgdals.store.overlay import Overlay
from sparkml_sgdals.store.version_store import VersionStore

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
    | st.sampled_from([2**63, 10**30, "²", "../x", "files/0"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)  # fmt: skip
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def overlay(store: VersionStore) -> Overlay | None:
    """The newest version in part, as a stream opens it."""
    newest = store.newest()
    return None if newest is None else Overlay(store, newest, 10)


def checked(store: VersionStore) -> None:
    """What a stream does to Spark's checkpoint as it starts, and of a batch."""
    newest = store.newest()
    if newest is not None:
        check_checkpoint(store, newest, "us")
        drop_unplanned_files(store, newest.checkpoint)
        last_done(store, newest.checkpoint)
        reading(store, newest.checkpoint, newest.batch, newest.offsets)
        drop_old_checkpoints(store)
        drop_later_invalid(store, newest.batch)


def leased(store: VersionStore) -> None:
    """A writer comes and goes."""
    lease = Lease.acquire(store, 5.0)
    check_holder(store, lease.token)
    lease.release()


def served(store: VersionStore) -> None:
    """The service takes a path up."""
    with tempfile.TemporaryDirectory() as folder:
        holder = ModelHolder(store.path, folder)
        holder.poll()
        holder.poll()


READERS: dict[str, Callable[[VersionStore], object]] = {
    "meta": VersionStore.meta,
    "newest": VersionStore.newest,
    "commits": lambda store: [store.read_commit(number) for number in store.numbers()],
    "load": VersionStore.load,
    "a version": lambda store: store.load(1),
    "metrics": VersionStore.metrics,
    "versions": lambda store: list_versions(store, True),
    "service": served,
}
WRITERS: dict[str, Callable[[VersionStore], object]] = {
    "lease": leased,
    "overlay": overlay,
    "checkpoint": checked,
    "rollback": lambda store: roll_back(store, 1, True),
    "rollback on": lambda store: roll_back(store, 1, False),
    "forget": lambda store: forget_users(store, pa.array([1])),
    "prune": lambda store: store.prune(1),
}
NOTHING = dict.fromkeys([*READERS, *WRITERS], "")


@pytest.fixture(scope="module", params=["files", pytest.param("runs", marks=pytest.mark.nightly)])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model path of some batches with all that a stream leaves there, and a lease of nobody."""
    path = tmp_path_factory.mktemp("odd") / "path"
    if request.param == "files":
        writer = Writer(path, meta={"pathId": "us", "params": {"userCol": "user"}})
        for number in range(4):
            plan(path, number)
            writer.learn(base=number == 1)
        store = writer.store
    else:
        stream = Stream(path, 10)
        for number in range(5):
            plan(path, number)
            stream.learn([number, number + 60, number + 61])
        stream.part.stop()
        store = stream.store
        assert store.newest().runs is not None  # type: ignore[union-attr]
    (path / "checkpoint" / "owner.json").write_text('{"pathId": "us"}')
    lease = Lease.acquire(store, 5.0)
    (path / "lease.json").write_text(
        json.dumps(json.loads((path / "lease.json").read_bytes()) | {"host": "x", "renewed": 0.0})
    )
    lease._released.set()
    Lease._ours.pop(lease.token)
    return path


@contextlib.contextmanager
def copied(path: Path) -> Iterator[Path]:
    """A copy that may be damaged."""
    # in memory where that is to be had, as much of it is synced
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(shutil.copytree(path, Path(folder) / "path"))


def said_by(path: Path, reader: Callable[[VersionStore], object]) -> str:
    """What a reader says, "" where nothing; anything but the errors of this package is raised."""
    try:
        reader(VersionStore(str(path)))
    except (StorageError, LeaseError, ValueError) as failure:
        said = str(failure)
        # what libraries say does not name it
        assert str(path) in said, said
        return said
    return ""


def read_all(path: Path) -> dict[str, str]:
    """What each reader says; those that write have a copy of their own."""
    said = {name: said_by(path, reader) for name, reader in READERS.items()}
    for name, writer in WRITERS.items():
        with copied(path) as own:
            said[name] = said_by(own, writer)
    return said


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a JSON value something stands."""
    yield path
    if isinstance(value, (dict, list)):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for key, each in inner:
            yield from places(each, (*path, key))


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with something in it replaced, dropped or added."""
    value = json.loads(json.dumps(value))
    *above, last = draw(st.sampled_from(list(places(value))[1:]))
    holder = value
    for key in above:
        holder = holder[key]
    kind = draw(st.sampled_from(["replace", "replace", "drop", "add", "whole"]))
    if kind == "whole":
        return draw(JSON)
    if kind == "replace":
        holder[last] = draw(JSON)
    elif kind == "drop":
        del holder[last]
    elif isinstance(holder, dict):
        holder[draw(st.text(max_size=6))] = draw(JSON)
    else:
        holder.append(draw(JSON))
    return value


def seal(path: Path, meta: Any = None, number: int = -1, body: Any = None) -> None:
    """Write model.json or a commit anew with a checksum that fits, and all that hangs on it."""
    if meta is not None:
        if isinstance(meta, dict):
            meta = meta | {"sha256": meta_digest(meta)}
        (path / "model.json").write_text(json.dumps(meta))
    digest = meta.get("sha256") if isinstance(meta, dict) else None
    before = None
    for file in sorted((path / "commits").iterdir()):
        told = json.loads(json.loads(file.read_bytes())["commit"])
        if digest is not None:
            told["meta"] = digest
        if before is not None:
            told["previous"] = before
        if file.name == f"{number:012d}.json":
            told = body
        payload = json.dumps(told, sort_keys=True)
        before = hashlib.sha256(payload.encode()).hexdigest()
        file.write_text(json.dumps({"format": 3, "commit": payload, "sha256": before}))


def test_undamaged(whole: Path) -> None:
    """Every reader takes what the fixtures made, also sealed anew."""
    assert read_all(whole) == NOTHING
    with copied(whole) as path:
        seal(path, {k: v for k, v in json.loads((path / "model.json").read_text()).items()
                    if k != "sha256"})  # fmt: skip
        assert read_all(path) == NOTHING


@settings(max_examples=15)
@given(st.data())
def test_a_commit_that_is_whole_and_odd(whole: Path, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, 4))
    with copied(whole) as path:
        file = path / "commits" / f"{number:012d}.json"
        told = json.loads(json.loads(file.read_bytes())["commit"])
        seal(path, number=number, body=data.draw(changed(told)))
        read_all(path)


@settings(max_examples=15)
@given(st.data())
def test_a_model_json_that_is_whole_and_odd(whole: Path, data: st.DataObject) -> None:
    with copied(whole) as path:
        told = json.loads((path / "model.json").read_text())
        del told["sha256"]
        seal(path, data.draw(changed(told)))
        read_all(path)


@settings(max_examples=15)
@given(st.data())
def test_an_object_that_is_odd(whole: Path, data: st.DataObject) -> None:
    """Nothing is sealed: the objects without a checksum, and the outer one of a commit."""
    with copied(whole) as path:
        names = ["lease.json", "checkpoint/owner.json", "model.json", "commits/000000000004.json"]
        name = data.draw(st.sampled_from(names))
        told = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps(data.draw(changed(told))))
        read_all(path)


@pytest.mark.long
@settings(max_examples=15)
@given(st.data())
def test_a_line_of_the_checkpoint_that_is_odd(whole: Path, data: st.DataObject) -> None:
    with copied(whole) as path:
        found = [p for p in (path / "checkpoint").rglob("*") if p.is_file() and p.suffix == ""]
        file = data.draw(st.sampled_from(sorted(found)))
        lines = file.read_text("utf-8").split("\n")
        at = data.draw(st.integers(0, len(lines) - 1))
        told = json.loads(lines[at]) if lines[at].startswith("{") else {"v": lines[at]}
        lines[at] = data.draw(changed(told).map(json.dumps) | st.text())
        file.write_bytes("\n".join(lines).encode())
        read_all(path)


@pytest.mark.long
@settings(max_examples=15)
@given(st.data())
def test_bytes_in_an_object_s_place(whole: Path, data: st.DataObject) -> None:
    with copied(whole) as path:
        found = [p for p in path.rglob("*") if p.suffix in ("", ".json") and p.is_file()]
        file = data.draw(st.sampled_from(sorted(found)))
        file.write_bytes(data.draw(st.binary(max_size=12) | st.just(b"[" * 100_000)))
        read_all(path)


NAMES = [
    "commits/1.json", "commits/00x.json", "commits/99999999999999999999.json", "commits/²³.json",
    "commits/٠٠٠٠٠٠٠٠٠٠٠٩.json", "commits/000000000009.json.12345678", "commits/000000000009",
    "commits/note.txt", "invalid/batch-²³.parquet", "files/²²²²²²²²²²²²-x",
    "checkpoint/offsets/²", "checkpoint/commits/²", "checkpoint/offsets/99999999999999999999",
    "checkpoint/commits/note", "checkpoint/sources/0/²", "checkpoint/sources/0/note",
    "checkpoint/sources/note/x", "checkpoint-x", "checkpoint-²²²²²²²²²²²²", "note",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_that_nobody_gives_do_nothing(whole: Path, name: str) -> None:
    """None of them is ever looked for."""
    with copied(whole) as path:
        (path / name).parent.mkdir(exist_ok=True, parents=True)
        (path / name).write_bytes(b"{}")
        assert read_all(path) == NOTHING
        numbers = VersionStore(str(path)).numbers()
        assert numbers == VersionStore(str(whole)).numbers()


@pytest.mark.long
def test_a_folder_in_a_file_s_place(whole: Path) -> None:
    """It is named, with what to do about it; of every file there is."""
    for file in sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file()):
        with copied(whole) as path:
            (path / file).unlink()
            (path / file / "inner").mkdir(parents=True)
            said = read_all(path)
            if file.name in ("model.json", "lease.json", "owner.json"):
                reader = {"owner": "checkpoint", "model": "meta", "lease": "lease"}[file.stem]
                assert f"path/{file} could not be read" in said[reader]
                assert "A folder lies where a file is to be: move it away" in said[reader]


def test_a_file_in_a_folder_s_place(whole: Path) -> None:
    for folder in sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_dir()):
        with copied(whole) as path:
            shutil.rmtree(path / folder)
            (path / folder).write_bytes(b"")
            read_all(path)


@pytest.mark.skipif(os.getuid() != 0, reason="needs to become somebody else")
@pytest.mark.parametrize(
    ("folder", "reader"),
    [("commits", "newest"), ("files", "versions"), ("checkpoint/offsets", "checkpoint")],
)
def test_a_folder_that_may_not_be_listed(whole: Path, folder: str, reader: str) -> None:
    with copied(whole) as path:
        path.parent.chmod(0o755)
        for each in path.rglob("*"):
            each.chmod(0o777)
        (path / folder).chmod(0o700)
        match = rf"{folder} could not be listed: .*Let user \S+ read it"
        with somebody_else(), pytest.raises(StorageError, match=match):
            (READERS | WRITERS)[reader](VersionStore(str(path)))


LEASE = {"token": "t", "owner": "o", "host": "h", "pid": 1, "started": None, "since": 0.0,
         "renewed": 0.0, "seconds": 1.0}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in LEASE if name != "token"])
def test_a_lease_without_a_field_is_named(tmp_path: Path, name: str) -> None:
    """It may be held: it is not taken, and not taken for ours."""
    store = VersionStore(str(tmp_path))
    (tmp_path / "lease.json").write_text(json.dumps({k: LEASE[k] for k in LEASE if k != name}))
    match = rf"lease.json does not say who writes there: it lacks {name}.*delete that file"
    with pytest.raises(LeaseError, match=match):
        Lease.acquire(store, 5.0)
    with pytest.raises(LeaseError, match=match):
        check_holder(store, "t")


def test_a_setting_of_another_release_is_named(tmp_path: Path) -> None:
    settings = settings_of(rank=2).to_json() | {"momentum": 0.9}
    writer = Writer(tmp_path / "m", meta={"settings": settings})
    with pytest.raises(
        StorageError, match=r"model.json .*settings holds momentum, which .*the release"
    ):
        writer.store.meta()


def test_a_commit_that_cannot_be_used_is_listed_and_gone_back_from(tmp_path: Path) -> None:
    """As one that is not whole: it does not hide the others."""
    writer = Writer(tmp_path / "m")
    for _ in range(3):
        writer.learn()
    told = json.loads(json.loads(writer.commit_path(3).read_bytes())["commit"])
    seal(writer.path, number=3, body=told | {"ids": "many"})
    with pytest.raises(DamagedError, match=r"000000000003.json .*ids is no list of 2.*versions"):
        writer.store.newest()
    assert list_versions(writer.store, True).loadable.tolist() == [True, True, True, False]
    roll_back(writer.store, 2, False)
    assert writer.store.load()[0].fingerprint() == writer.fingerprints[2]


def test_what_commits_write_is_what_they_read(whole: Path) -> None:
    store = VersionStore(str(whole))
    for number in store.numbers():
        payload = (whole / "commits" / f"{number:012d}.json").read_bytes()
        commit = Commit.from_bytes(payload, "x")
        assert commit is not None
        assert commit.to_bytes() == payload
