"""What a storage that fails does to a model path: real full disks, rights, limits, read-only."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from writing import Writer, somebody_else, store_of

from sparkml_sgdals.errors import LeaseError
from sparkml_sgdals.store import objects
from sparkml_sgdals.store.lease import Lease
from sparkml_sgdals.store.objects import ObjectStore, full_path
from sparkml_sgdals.store.version_store import StorageError, VersionStore

CHURN = """
import itertools, os, sys
os.chdir(sys.argv[1])
for number in itertools.count(1):
    open("beside", "wb").close()
    os.link("beside", f"{number:012d}.json")
    os.unlink("beside")
    # a number over another may be read as the first digit of one and the last of the other
    with open("../next", "w") as told:
        told.write(str(number))
    os.replace("../next", "../newest")
    if number > 5:
        os.unlink(f"{number - 5:012d}.json")
"""
CONFLICT = (409, "ConditionalRequestConflict")


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Writer]:
    """A store with three versions, in a folder that everyone may enter."""
    folder = tempfile.mkdtemp()
    os.chmod(folder, 0o755)
    writer = Writer(Path(folder) / "model")
    for _ in range(2):
        writer.learn()
    yield writer
    shutil.rmtree(folder)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """A file system of its own on a folder, where this may be done."""
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mount is not permitted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def go_on(model: Writer) -> None:
    """The last version still loads, is the newest, and the batch is learned again from there."""
    model.fingerprints.pop()
    model.metrics.pop()
    last = len(model.fingerprints) - 1
    model.assert_loads(last)
    model.state, model.commit = model.store.load()
    assert model.commit.version == last
    model.learn()
    model.assert_loads(last + 1)
    assert model.store.metrics() == model.metrics


def learn_and_fail(model: Writer, message: str) -> None:
    """A batch cannot be committed; what was learned of it in memory is thrown away."""
    model.fingerprints.append("")
    with pytest.raises(StorageError, match=message) as raised:
        Writer.learn(model)
    if len(model.metrics) < len(model.fingerprints) - 1:
        model.metrics.append({})
    assert str(model.path) in str(raised.value)
    assert "start again: the versions committed so far are whole" in str(raised.value)


def test_a_limit_on_files(model: Writer) -> None:
    """The file that did not fit is named and not left behind."""
    before = sorted(os.listdir(model.path / "files"))
    with files_of_at_most(500):
        learn_and_fail(model, r"-users\.parquet could not be written: File too large\. Free space")
    assert sorted(os.listdir(model.path / "files")) == before
    go_on(model)


@pytest.mark.parametrize("room", [0, 4, 8, 12])
def test_what_a_full_disk_met_is_not_left(tmp_path: Path, room: int) -> None:
    """Neither the files of users, where those of items did not fit, nor both without a commit."""
    folder = tmp_path / "small"
    folder.mkdir()
    with mounted(folder, "-t", "tmpfs", "-o", "size=400k", "tmpfs"):
        model = Writer(folder / "model")
        for _ in range(3):
            model.learn()
        before = sorted(p.name for p in model.path.rglob("*"))
        free = os.statvfs(folder)
        (folder / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize - room * 1024))
        if room < 12:
            with pytest.raises(StorageError, match="No space left on device"):
                model.learn()
            assert sorted(p.name for p in model.path.rglob("*")) == before
            (folder / "filler").unlink()
            model.assert_loads(3)
        else:
            # the two files and the commit object take a page each
            model.learn()


def test_what_may_be_committed_is_left(model: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit object stands, though syncing its folder failed: the version is whole."""
    sync = VersionStore.sync

    def failing(store: VersionStore, folder: str, *together: Any) -> None:
        sync(store, folder, *together)
        if folder == "commits":
            raise StorageError("commits could not be written")

    with monkeypatch.context() as patch:
        patch.setattr(VersionStore, "sync", failing)
        with pytest.raises(StorageError, match="commits could"):
            model.learn()
    found = model.store.newest()
    assert found is not None
    assert found.version == 1 + model.commit.version
    assert model.store.load()[0].fingerprint() == model.state.fingerprint()


def test_what_a_lost_lease_forbids_is_not_left(model: Writer) -> None:
    before = sorted(os.listdir(model.path / "files"))

    def taken() -> None:
        raise LeaseError("taken")

    with pytest.raises(LeaseError):
        model.store.commit(model.state, None, 9, model.commit, None, check=taken)
    assert sorted(os.listdir(model.path / "files")) == before


def test_a_full_disk(tmp_path: Path) -> None:
    """On a disk of 200 KB versions are committed until it is full; more room, and it goes on."""
    folder = tmp_path / "small"
    folder.mkdir()
    with mounted(folder, "-t", "tmpfs", "-o", "size=200k", "tmpfs"):
        model = Writer(folder / "model")

        def learn_on() -> None:
            for _ in range(100):
                model.learn()

        with pytest.raises(StorageError, match=r"No space left on device\. Free space") as raised:
            learn_on()
        assert str(folder / "model/") in str(raised.value)
        assert len(model.fingerprints) > 5
        model.fingerprints.append("")
        subprocess.run(["mount", "-o", "remount,size=2m", str(folder)], check=True)
        go_on(model)


def test_a_full_disk_does_not_cost_the_lease(tmp_path: Path) -> None:
    """It cannot be renewed meanwhile, but is still there and can be given back."""
    folder = tmp_path / "small"
    folder.mkdir()
    with mounted(folder, "-t", "tmpfs", "-o", "size=100k", "tmpfs"):
        lease = Lease.acquire(VersionStore(str(folder)), 30.0)
        with (folder / "filler").open("wb", buffering=0) as filler:
            try:
                while True:
                    filler.write(b"0" * 4096)
            except OSError:
                pass
        with pytest.raises(StorageError, match=r"lease\.json.* could not be written: No space"):
            lease.renew()
        assert [name for name in os.listdir(folder) if name.startswith("lease")] == ["lease.json"]
        lease.release()
        assert not (folder / "lease.json").exists()


def test_a_read_only_disk(model: Writer, tmp_path: Path) -> None:
    """It can be read, not learned onto."""
    with mounted(model.path, "--bind", str(model.path)):
        subprocess.run(["mount", "-o", "remount,bind,ro", str(model.path)], check=True)
        learn_and_fail(model, r"Read-only file system\. Let user .* write there")
        model.assert_loads(2)
    go_on(model)


def test_a_folder_without_the_right_to_write(model: Writer) -> None:
    """The message says who may not."""
    os.chmod(model.path / "files", 0o555)
    with somebody_else():
        learn_and_fail(model, r"-users\.parquet could not be written: Permission denied\. Let user")
    os.chmod(model.path / "files", 0o755)
    go_on(model)


def test_a_file_without_the_right_to_read(model: Writer) -> None:
    """The file and the user are named; version and model are not taken for missing."""
    path = model.path / "model.json"
    os.chmod(path, 0)
    with somebody_else(), pytest.raises(
        StorageError, match=r"model\.json could not be read: Permission denied\. Let user .* read"
    ):  # fmt: skip
        VersionStore(str(model.path)).load()
    os.chmod(path, 0o644)
    model.assert_loads(2)


def test_a_place_that_cannot_be_made(tmp_path: Path) -> None:
    """A file where a folder should be."""
    (tmp_path / "file").write_text("")
    store = VersionStore(str(tmp_path / "file"))
    with pytest.raises(StorageError, match=r"file/files/x could not be written: Not a directory"):
        store.write("files/x", b"1")


def test_what_is_committed_is_synced(model: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files before the commit object, each with its folder, and that before it counts."""
    calls: list[str] = []
    there: list[str] = []
    sync, link = os.fsync, os.link

    def noted_sync(handle: int) -> None:
        name = os.path.relpath(os.readlink(f"/proc/self/fd/{handle}"), model.path)
        if name == "files":
            there.extend(os.listdir(model.path / "files"))
        sync(handle)
        time.sleep(0.05 if name.endswith("-users.parquet") else 0.0)
        calls.append(name)

    def noted_link(old: str, new: str) -> None:
        calls.append(f"-> {os.path.relpath(new, model.path)}")
        link(old, new)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "link", noted_link)
    model.learn()
    *synced, named, last = calls
    # the disk may have them in any order: none of them counts before the name
    beside, folder, items, users = sorted(synced)
    assert beside.startswith("commits/000000000003.json.")
    assert folder == "files"
    assert (items[-14:], users[-14:]) == ("-items.parquet", "-users.parquet")
    assert {Path(items).name, Path(users).name} <= set(there)
    assert (named, last) == ("-> commits/000000000003.json", "commits")


def test_a_version_is_committed_once(model: Writer) -> None:
    """Two writers that both hold the version before: one of them is told, and changes nothing."""
    store = VersionStore(str(model.path))
    state, newest = store.load()
    made = store.commit(state, None, newest.batch + 1, newest, {"batch": 1})
    with pytest.raises(StorageError, match=r"has a version \d+ already, which another process"):
        store.commit(state, None, newest.batch + 2, newest, {"batch": 2})
    assert store.newest() == made


def test_a_writer_that_lost_its_lease_commits_nothing(model: Writer) -> None:
    store = VersionStore(str(model.path))
    state, newest = store.load()

    def lost() -> None:
        raise RuntimeError("the lease is another's")

    with pytest.raises(RuntimeError, match="another's"):
        store.commit(state, None, newest.batch + 1, newest, None, check=lost)
    assert store.newest() == newest


@pytest.mark.parametrize("path", ["s3:/bucket/m", "file:models/m"])
def test_half_a_uri_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="two slashes"):
        full_path(path)


class Server(ThreadingHTTPServer):
    """Takes puts; the first ones are answered with codes that were asked for."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, str]] = []
        self.objects: dict[str, bytes] = {}
        self.asked: list[str | None] = []
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        """Put, or fail as asked for."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(self.headers.get("If-None-Match"))
        status, code = self.server.answers.pop(0) if self.server.answers else (200, "")
        if status == 200:
            self.server.objects[self.path] = body
        text = f"<Error><Code>{code}</Code><Message>m</Message></Error>" if code else ""
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that boto3 takes for S3."""
    pytest.importorskip("boto3")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_address[1]}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    }.items():
        monkeypatch.setenv(name, value)
    yield server
    server.shutdown()
    server.server_close()


def test_a_conflict_is_tried_again(s3: Server) -> None:
    """Nothing was put by the request that met another one."""
    s3.answers = [CONFLICT, CONFLICT]
    assert store_of()._put_if_none("lease.json", b"mine")
    assert list(s3.objects.values()) == [b"mine"]
    assert s3.asked == ["*"] * 3


def test_an_object_that_is_there_stays(s3: Server) -> None:
    """After a conflict as well."""
    s3.answers = [CONFLICT, (412, "PreconditionFailed")]
    assert store_of()._put_if_none("lease.json", b"mine")
    assert not s3.objects


def test_conflicts_without_end_are_an_error(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never taken for an answer."""
    monkeypatch.setattr(objects, "_CONFLICT_WAITS", (0.0, 0.0, None))
    s3.answers = [CONFLICT] * 9
    with pytest.raises(StorageError, match=r"model/lease\.json could not be written: .*Conflict"):
        store_of()._put_if_none("lease.json", b"mine")
    assert len(s3.asked) == 3


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch, s3: Server) -> None:
    """Errors of boto3 itself name object and remedy, too."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"model/lease\.json could not be written: .*connect"):
        store_of()._put_if_none("lease.json", b"mine")


def test_a_boto3_that_knows_no_condition(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """As without boto3."""
    boto3 = pytest.importorskip("boto3")
    real = boto3.client

    def old(*args: Any, **kwargs: Any) -> Any:
        client = real(*args, **kwargs)
        members = client.meta.service_model.operation_model("PutObject").input_shape.members
        members.pop("IfNoneMatch")
        return client

    monkeypatch.setattr(boto3, "client", old)
    assert not store_of()._put_if_none("lease.json", b"mine")
    assert not s3.asked


def test_no_flipped_bit_of_a_table_gives_another(tmp_path: Path) -> None:
    """Held-out ratings, say, of which no commit knows a checksum."""
    store = ObjectStore(str(tmp_path))
    table = pa.table({"user": list(range(40)), "rating": [n / 7 for n in range(40)]})
    store.replace_table("validation.parquet", table)
    payload = (tmp_path / "validation.parquet").read_bytes()
    named = 0
    for place in range(0, 8 * len(payload), 5):
        damaged = bytearray(payload)
        damaged[place // 8] ^= 1 << place % 8
        (tmp_path / "validation.parquet").write_bytes(bytes(damaged))
        try:
            found = store.read_table("validation.parquet")
        except StorageError:
            named += 1
        else:
            assert found is not None
            assert found.column("rating").equals(table.column("rating"))
            assert found.column("user").equals(table.column("user"))
    assert named > len(payload)


@pytest.mark.parametrize("folder", ["/var/tmp", "/dev/shm"])
def test_a_listing_holds_what_was_there_before_it_began(folder: str) -> None:
    """While another process puts files and deletes old ones, on a disk and in memory."""
    if not os.path.isdir(folder):
        pytest.skip(f"there is no {folder}")
    with tempfile.TemporaryDirectory(dir=folder) as path:
        store, newest = ObjectStore(path), Path(path, "newest")
        os.mkdir(f"{path}/commits")
        newest.write_text("0")
        with subprocess.Popen([sys.executable, "-c", CHURN, f"{path}/commits"]) as churn:
            try:
                ends = time.monotonic() + 1.5
                while time.monotonic() < ends:
                    for listing in (store.names, store.walk):
                        before = int(newest.read_text())
                        numbers = [int(n[:12]) for n in listing("commits") if n != "beside"]
                        assert max(numbers, default=0) >= before
            finally:
                churn.kill()
