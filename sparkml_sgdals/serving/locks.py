"""Locks of files, which say whether a process of this machine, or of one like it, is at them."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

__all__ = ["locked", "own_folder"]

_NO_LOCKS: Final = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_PREFIX: Final = "sparkml-sgdals-serving-"
_OWNER: Final = "owner"
_YOUNG: Final = 3_600.0
"""seconds that a folder without an owner stays: it may get one just now"""


def locked(handle: int) -> bool | None:
    """Whether the lock of an open file is this process's now; None where there are no locks.

    It raises OSError where the file cannot be used.
    """
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


@contextmanager
def own_folder(parent: str | None) -> Iterator[str]:
    """Yield a new folder, gone afterwards; those of processes that were killed go first.

    Parameters
    ----------
    parent : str | None
        where it is made; None for where temporary files go. OSError where it cannot be
    """
    place = Path(parent or tempfile.gettempdir())
    for left in place.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            _drop_left(left)
    folder, file = _locked_folder(place)
    try:
        yield str(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        file.close()


def _locked_folder(place: Path) -> tuple[Path, IO[bytes]]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        owner = folder / _OWNER
        try:
            file = open(owner, "wb")  # noqa: SIM115
        except FileNotFoundError:
            continue
        # another process may have taken it for left before it was locked
        if locked(file.fileno()) is not False and owner.exists():
            return folder, file
        file.close()


def _drop_left(folder: Path) -> None:
    try:
        handle = os.open(folder / _OWNER, os.O_RDWR)
    except FileNotFoundError:
        if time.time() - folder.stat().st_mtime > _YOUNG:
            shutil.rmtree(folder, ignore_errors=True)
        return
    try:
        if locked(handle):
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(handle)
