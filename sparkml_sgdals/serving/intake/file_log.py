"""The files of an inbox: each is written under a hidden name, which readers see once it is whole.

What is appended is durable at once; the file is renamed, and the next one begun, no more often than
once in so many seconds, however much is posted: who reads the folder lists all of its files for
each micro-batch.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from sparkml_sgdals.serving.locks import locked

__all__ = ["FileLog", "HiddenFile", "hidden_files", "read_all", "seen_name"]

logger = logging.getLogger(__name__)

_BEING_WRITTEN: Final = ".part"
_COPY: Final = ".new"
_OF_EARLIER_RELEASES: Final = ".json.tmp"
"""the ending of what earlier releases never acknowledged, and delete after a minute"""
_GIVEN_UP: Final = 60.0
"""seconds without a write after which a hidden file is a killed service's, where no lock says so"""
_TRIES: Final = 100
"""files that are made until one is not taken at once"""
_AGAIN: Final = 5.0
"""seconds until what could not be done to a file is tried again"""


class HiddenFile:
    """A file that is being written, or one that a killed service left behind.

    Parameters
    ----------
    path : Path
        its hidden name
    handle : int
        the open file; its lock says that somebody is at it
    """

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self.length = 0
        """bytes that were written and synced; what follows them was refused"""
        self._handle = handle

    @classmethod
    def begin(cls, folder: Path) -> HiddenFile:
        """Make a new one; it raises OSError where it cannot be made."""
        for _ in range(_TRIES):
            name = f".ratings-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.json{_BEING_WRITTEN}"
            made = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            file = cls(folder / name, made)
            try:
                # whoever looks for what was left may have taken it before it was locked
                if locked(file._handle) is not False and file.is_there():
                    _sync_folder(folder)
                    return file
            except OSError:
                with contextlib.suppress(OSError):
                    file.drop()
                raise
            with contextlib.suppress(OSError):
                file.drop()
        raise OSError(f"No file of {folder} is this process's own, though it makes them there.")

    @classmethod
    def adopt(cls, path: Path) -> HiddenFile | None:
        """Take one that a killed service left behind; None where a service may still write it.

        It raises OSError where it cannot be read or renamed.
        """
        try:
            file = cls(path, os.open(path, os.O_RDWR))
        except FileNotFoundError:
            return None
        try:
            free = locked(file._handle)
            if free is None:
                age = _time_in(path.parent) - os.fstat(file._handle).st_mtime
                free = age > _GIVEN_UP
            if not free or not file.is_there():
                file.close()
                return None
            # where age says whose it is, it is this one's now
            os.utime(file._handle)
            # one that lives, all the same, notices before it acknowledges anything
            claimed = f".{seen_name(path)}.{uuid.uuid4().hex[:8]}{_BEING_WRITTEN}"
            os.rename(path, path.with_name(claimed))
            file.path = path.with_name(claimed)
            # what a power cut could still take is not told of
            os.fsync(file._handle)
            file.length = os.fstat(file._handle).st_size
        except FileNotFoundError:
            file.close()
            return None
        except OSError:
            file.close()
            raise
        return file

    @property
    def shown_as(self) -> Path:
        """Its name once readers see it."""
        return self.path.with_name(seen_name(self.path))

    def read(self) -> bytes:
        """Return what is in it."""
        return read_all(self._handle)

    def append(self, payload: bytes) -> None:
        """Add to it, durably. It raises OSError; then only the first `length` bytes count."""
        offset, rest = self.length, memoryview(payload)
        while rest:
            done = os.pwrite(self._handle, rest, offset)
            offset, rest = offset + done, rest[done:]
        os.fsync(self._handle)
        if not self.is_there():
            raise OSError(f"{self.path} was taken away, or over, by another process.")
        self.length = offset

    def cut(self) -> None:
        """Take back what was written beyond `length`."""
        os.ftruncate(self._handle, self.length)
        os.fsync(self._handle)

    def replace(self, payload: bytes) -> None:
        """Put other content in its place, at once and as a whole."""
        copy = self.path.with_name(self.path.name + _COPY)
        file = HiddenFile(copy, os.open(copy, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666))
        try:
            locked(file._handle)
            file.append(payload)
            os.rename(copy, self.path)
        except OSError:
            with contextlib.suppress(OSError):
                file.drop()
            raise
        self.close()
        self._handle, self.length = file._handle, file.length

    def show(self) -> None:
        """Let readers see it, and let it go."""
        os.rename(self.path, self.shown_as)
        self.close()
        # after a power cut it has either name, and either is found
        with contextlib.suppress(OSError):
            _sync_folder(self.path.parent)

    def show_as_new(self) -> None:
        """As `show`, with the time of now: readers go by it, and leave out what is a week old."""
        os.utime(self._handle)
        self.show()

    def refuse(self) -> None:
        """Delete it and all that is in it, which whoever has it open sees, too.

        It raises OSError where neither can be done, and keeps it then.
        """
        cut = False
        with contextlib.suppress(OSError):
            os.ftruncate(self._handle, 0)
            cut = True
        try:
            self.path.unlink(missing_ok=True)
        except OSError:
            if not cut:
                raise
        self.close()

    def drop(self) -> None:
        """Delete it; what was in it is elsewhere."""
        try:
            self.path.unlink(missing_ok=True)
        finally:
            self.close()

    def close(self) -> None:
        """Let it go as it is."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            with contextlib.suppress(OSError):
                os.close(handle)

    def is_there(self) -> bool:
        """Whether it has its hidden name still, and nobody has taken it away, or over."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._handle))
        except OSError:
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
        """Add lines, durably; it raises OSError, and then none of them counts."""
        if self._file is not None and not self._file.is_there():
            logger.error("%s was taken away, or over, by another process", self._file.path)
            self._file.close()
            self._file = None
        if self._file is None:
            self._file = HiddenFile.begin(self.folder)
        file = self._file
        try:
            file.append(payload)
        except OSError:
            self._file = None
            if not file.is_there():
                # another's by now, who may have shown all of it
                file.close()
            else:
                self._cut.append(file)
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
        """Show files that ended in what was refused: without it they are as good as others."""
        for file in list(self._cut):
            try:
                if not file.is_there():
                    file.close()
                elif file.length:
                    file.cut()
                    file.show()
                else:
                    file.refuse()
            except OSError:
                logger.exception("%s cannot be mended, which is tried again", file.path)
                self._next = time.monotonic() + _AGAIN
                continue
            self._cut.remove(file)


def read_all(handle: int) -> bytes:
    """Return what is in an open file."""
    parts, place = [], 0
    while part := os.pread(handle, 1 << 22, place):
        parts.append(part)
        place += len(part)
    return b"".join(parts)


def seen_name(path: Path) -> str:
    """Return the name of a hidden file once readers see it."""
    return f"{path.name[1:].partition('.json')[0]}.json"


def hidden_files(folder: Path) -> Iterator[Path]:
    """Yield the hidden files of all services, the oldest first.

    What nobody will ask for again is deleted: copies that were not finished, and files that earlier
    releases did not acknowledge.
    """
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.name.startswith(".ratings-"))
    for name in names:
        path = folder / name
        if name.endswith(_BEING_WRITTEN):
            yield path
            continue
        with contextlib.suppress(OSError):
            alone = name.endswith(_COPY) and not path.with_name(name[: -len(_COPY)]).exists()
            early = name.endswith(_OF_EARLIER_RELEASES)
            if alone or (early and time.time() - path.stat().st_mtime > _GIVEN_UP):
                path.unlink()


def _time_in(folder: Path) -> float:
    """Return what time it is where the files of a folder get their times."""
    path = folder / f".now-{uuid.uuid4().hex}"
    try:
        path.touch()
        return path.stat().st_mtime
    finally:
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
