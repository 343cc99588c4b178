"""What can go wrong that is not a wrong argument: each error says what, where and the remedy."""

from __future__ import annotations

import errno
import getpass
import os

__all__ = [
    "DamagedError", "DivergenceError", "GoneError", "LeaseError", "StorageError", "explained",
    "user_name",
]  # fmt: skip


class DivergenceError(RuntimeError):
    """Learning ran away: the factors are no use, and the message says what to change."""


class StorageError(RuntimeError):
    """A model path that cannot be read or written, or does not hold what it should."""


class GoneError(StorageError):
    """A file or commit is missing: perhaps it was pruned while a reader was at it."""


class DamagedError(StorageError):
    """What a file or commit holds is not what was written."""


class LeaseError(RuntimeError):
    """Another writer holds the model path."""


def user_name() -> str:
    """Return the name of this process's user, its number where it has none (containers)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def explained(place: str, done: str, failure: OSError) -> str:
    """Return what a failure of the storage means for the model, and what to do."""
    why = os.strerror(failure.errno) if failure.errno else str(failure)
    if failure.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = "Free space or raise the quota there"
    elif failure.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = f"Let user {user_name()} write there"
        if done in ("read", "listed"):
            return f"{place} could not be {done}: {why}. Let user {user_name()} read it."
    elif failure.errno == errno.EISDIR or str(failure).endswith("is a directory"):
        remedy = "A folder lies where a file is to be: move it away"
    elif failure.errno == errno.ENOTDIR or str(failure).endswith("not a directory"):
        remedy = "A file lies where a folder is to be: move it away"
    else:
        remedy = "Look after the storage"
    return (
        f"{place} could not be {done}: {why}. {remedy}, then start again: the versions committed "
        "so far are whole, and a stream goes on from the newest of them."
    )
