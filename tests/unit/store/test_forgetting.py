"""Users are forgotten, also of a model larger than memory, and when it fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from building import settings_of
from writing import Stream, loadable

from sparkml_sgdals.store import forgetting, sorted_runs
from sparkml_sgdals.store.forgetting import forget_users
from sparkml_sgdals.store.packed_rows import RowShape
from sparkml_sgdals.store.sorted_runs import Run
from sparkml_sgdals.store.version_store import StorageError

pytestmark = pytest.mark.usefixtures("first_version")


@pytest.fixture(autouse=True)
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a power cut would leave is not looked at here."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


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
    assert loadable(stream.store) == [0, 1, 2, 3, 4]
    forget_users(stream.store, pa.array([59]))
    assert loadable(stream.store) == [0, 1, 2, 3, 4, 5]
    for version in range(6):
        assert 59 not in stream.store.load(version)[0].users.index


def test_users_in_a_damaged_run_are_forgotten_with_it(tmp_path: Path) -> None:
    """Nobody could load it, and who is in it cannot be told."""
    stream = Stream(tmp_path, 40)
    for number in range(4):
        stream.learn([number])
    shape = RowShape.of("int", settings_of(rank=2))
    (name,) = (
        entry["rows"]["name"]
        for entry in stream.commit.runs["users"]
        if Run(stream.store, shape, entry).find(pa.array([59]))[0].size
    )
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
