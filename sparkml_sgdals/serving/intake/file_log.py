"""The files of an inbox: each is written under a hidden name, which readers see once it is whole.

What is appended is durable at once; the file is renamed, and the next one begun, no more often than
once in so many seconds, however much is posted: who reads the folder lists all of its files for
each micro-batch.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["FileLog", "HiddenFile", "hidden_files"]

logger = logging.getLogger(__name__)

_GIVEN_UP: Final = 60.0
"""seconds without a write after which a hidden file is a killed service's, where no lock says so"""
_AGAIN: Final = 5.0
"""seconds until what could not be done to a file is tried again"""
_NO_LOCKS: Final = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


class HiddenFile:
    """A file that is being written, or that a killed service left behind.

    Parameters
    ----------
    path : Path
        its hidden name
    handle : int
        the open file; its lock says that somebody is at it
    length : int
        bytes of it that were acknowledged, or are to be shown
    """

    def __init__(self, path: Path, handle: int, length: int = 0) -> None:
        self.path, self.length = path, length
        self._handle = handle

    @classmethod
    def begin(cls, folder: Path) -> HiddenFile:
        """Make a new one; it raises OSError where it cannot be made."""
        path = folder / f".ratings-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.json.tmp"
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            _locked(handle)
            _sync_folder(folder)
        except OSError:
            os.close(handle)
            path.unlink(missing_ok=True)
            raise
        return cls(path, handle)

    @classmethod
    def adopt(cls, path: Path) -> HiddenFile | None:
        """Take one that a killed service left behind; None where a service may still write it."""
        try:
            handle = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            return None
        free = _locked(handle)
        found = cls(path, handle, os.fstat(handle).st_size)
        if free is None:
            free = time.time() - os.fstat(handle).st_mtime > _GIVEN_UP
        if not free or not found._is_there():
            found.close()
            return None
        return found

    @property
    def shown_as(self) -> Path:
        """Its name once readers see it."""
        return self.path.with_name(self.path.name[1:].removesuffix(".tmp"))

    def read(self) -> bytes:
        """Return what is in it."""
        return self.path.read_bytes()

    def append(self, payload: bytes) -> None:
        """Add to it, durably. It raises OSError; then only `length` bytes of it count."""
        place, rest = self.length, memoryview(payload)
        while rest:
            done = os.pwrite(self._handle, rest, place)
            place, rest = place + done, rest[done:]
        os.fsync(self._handle)
        if not self._is_there():
            raise OSError(f"{self.path} was taken away or over while it was written.")
        self.length = place

    def cut(self) -> None:
        """Take back what was written beyond `length`."""
        os.ftruncate(self._handle, self.length)
        os.fsync(self._handle)

    def replace(self, payload: bytes) -> None:
        """Show other content in its place, and let it go."""
        other = self.path.with_suffix(".new")
        with open(other, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.rename(other, self.shown_as)
        _sync_folder(self.path.parent)
        self.drop()

    def show(self) -> None:
        """Let readers see it, and let it go."""
        os.rename(self.path, self.shown_as)
        self.close()
        # after a power cut it has either name, and either is found
        with contextlib.suppress(OSError):
            _sync_folder(self.path.parent)

    def drop(self) -> None:
        """Delete it."""
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Let it go as it is."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)

    def _is_there(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._handle))
        except FileNotFoundError:
            return False


class FileLog:
    """Appends to files of a folder, of which a reader sees the whole ones.

    Parameters
    ----------
    folder : Path
    every : float
        seconds between two files: what is appended meanwhile is in the second. The first after a
        pause is seen at once
    """

    def __init__(self, folder: Path, every: float) -> None:
        self.folder, self._every = folder, every
        self._file: HiddenFile | None = None
        self._cut: list[HiddenFile] = []
        self._next = 0.0

    def append(self, payload: bytes) -> None:
        """Add lines, durably; it raises OSError, and then none of them is seen by anyone."""
        if self._file is None:
            self._file = HiddenFile.begin(self.folder)
        file = self._file
        try:
            file.append(payload)
        except OSError:
            self._file = None
            if file.length:
                self._cut.append(file)
            else:
                with contextlib.suppress(OSError):
                    file.drop()
            self._show_cut()
            raise
        self.show_due()

    def wait(self) -> float:
        """Return the seconds until `show_due` has something to do."""
        if self._file is None and not self._cut:
            return math.inf
        return max(0.0, self._next - time.monotonic())

    def holds(self, path: Path) -> bool:
        """Whether a hidden file is one of these: some locks do not tell within a process."""
        return any(file.path == path for file in (*self._cut, *filter(None, [self._file])))

    def show_due(self, at_once: bool = False) -> None:
        """Let readers see what is there, where it is time to."""
        if not at_once and time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._every
        self._show_cut()
        file = self._file
        if file is None:
            return
        try:
            file.show()
            self._file = None
        except FileNotFoundError:
            # deleted by hand, or another service's by now
            logger.exception("%s is gone", file.path)
            file.close()
            self._file = None
        except OSError:
            # it stays the file that is appended to
            logger.exception("%s cannot be renamed, which is tried again", file.path)
            self._next = time.monotonic() + _AGAIN

    def close(self) -> None:
        """Show what is there, and end."""
        self.show_due(at_once=True)
        for file in (*self._cut, *filter(None, [self._file])):
            file.close()

    def _show_cut(self) -> None:
        """Files that end in what was not acknowledged: without it they are as good as others."""
        for file in list(self._cut):
            try:
                file.cut()
                file.show()
            except FileNotFoundError:
                file.close()
            except OSError:
                logger.exception("%s cannot be mended, which is tried again", file.path)
                self._next = time.monotonic() + _AGAIN
                continue
            self._cut.remove(file)


def hidden_files(folder: Path) -> Iterator[Path]:
    """Yield the hidden files of all services, the oldest first; half-made copies are deleted."""
    for path in folder.glob(".ratings-*.json.new"):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
    yield from sorted(folder.glob(".ratings-*.json.tmp"))


def _locked(handle: int) -> bool | None:
    """Whether the lock of a file is ours now; None where there are no locks."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as fault:
        if fault.errno in _NO_LOCKS:
            return None
        raise
    return True


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
