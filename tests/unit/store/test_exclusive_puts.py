"""Exclusive puts to S3: conflicts are tried again, what cannot be reached is explained."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from sparkml_sgdals.errors import StorageError
from sparkml_sgdals.store import objects
from sparkml_sgdals.store.commit import Commit
from sparkml_sgdals.store.objects import ObjectStore
from sparkml_sgdals.store.version_store import VersionStore

boto3 = pytest.importorskip("boto3")


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


def store_of(kind: type[ObjectStore] = ObjectStore) -> Any:
    """A store on S3 whose own reads are not used here."""
    store = kind.__new__(kind)
    store.path, store.root, store.local = "s3://bucket/model", "bucket/model", False
    store.fs = SimpleNamespace(region="us-east-1")  # type: ignore[assignment]
    return store


CONFLICT = (409, "ConditionalRequestConflict")


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
    real = boto3.client

    def old(*args: Any, **kwargs: Any) -> Any:
        client = real(*args, **kwargs)
        members = client.meta.service_model.operation_model("PutObject").input_shape.members
        members.pop("IfNoneMatch")
        return client

    monkeypatch.setattr(boto3, "client", old)
    assert not store_of()._put_if_none("lease.json", b"mine")
    assert not s3.asked


def test_a_commit_is_put_over_nothing_but_a_broken_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the put was refused and nothing is there by now, it is asked for again."""
    store = store_of(VersionStore)
    commit = Commit(3, 2, 0, {}, {}, None, "", 0, [0, 0], "checkpoint", None, None)
    there: list[bytes | None] = [None, b"{"]
    refused: list[bytes] = []
    written: list[bytes] = []
    monkeypatch.setattr(store, "put_new", lambda name, payload: bool(refused.append(payload)))
    monkeypatch.setattr(store, "read", lambda name: there.pop(0))
    monkeypatch.setattr(store, "replace", lambda name, payload: written.append(payload))
    store.put_commit(commit, new=True)
    assert (len(refused), len(written)) == (2, 1)
    there[:] = [commit.to_bytes()]
    with pytest.raises(StorageError, match="has a version 3 already"):
        store.put_commit(commit, new=True)
    assert len(written) == 1
