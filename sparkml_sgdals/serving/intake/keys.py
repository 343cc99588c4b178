"""Keys of posts that were taken, and what each stood for: a day of them, the newest million."""

from __future__ import annotations

import hashlib
import sqlite3
from typing import Final

__all__ = ["DAY", "UNNAMED", "KeyTakenError", "Keys"]

DAY: Final = 86_400.0
UNNAMED: Final = "u:"
"""Begins the keys that the service makes up: no client can send one again."""
_MOST: Final = 1_000_000


class KeyTakenError(ValueError):
    """A key came again with other ratings."""


class Keys:
    """What each key stood for, by a digest. About 90 bytes a key, however long it is.

    Not safe to use from several threads at once.

    Parameters
    ----------
    seconds : float
        how long a key is known
    most : int
        keys that are known; the oldest go first
    """

    def __init__(self, seconds: float = DAY, most: int = _MOST) -> None:
        self._seconds, self._most = seconds, most
        self._count = 0
        # a third of what a dict of them takes
        self._held = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        self._held.execute("PRAGMA journal_mode = OFF")
        self._held.execute(
            "CREATE TABLE taken "
            "(place INTEGER PRIMARY KEY, key BLOB UNIQUE, digest BLOB, time REAL)"
        )

    def __len__(self) -> int:
        """Return how many are known."""
        return self._count

    def digest(self, key: str, now: float) -> bytes | None:
        """Return what a key stood for, None where it is not known."""
        found = self._held.execute(
            "SELECT digest FROM taken WHERE key = ? AND time >= ?",
            (_short(key), now - self._seconds),
        ).fetchone()
        return None if found is None else found[0]

    def add(self, key: str, digest: bytes, now: float) -> None:
        """Know a key from now on; calls come in the order of their times."""
        if key.startswith(UNNAMED):
            return
        self._delete("key = ?", _short(key))
        oldest = "place = (SELECT min(place) FROM taken)"
        while self._count >= self._most and self._delete(oldest):
            pass
        while self._delete(f"{oldest} AND time < ?", now - self._seconds):
            pass
        self._held.execute(
            "INSERT INTO taken (key, digest, time) VALUES (?, ?, ?)", (_short(key), digest, now)
        )
        self._count += 1

    @property
    def full(self) -> bool:
        """Whether there are as many as there may be."""
        return self._count >= self._most

    def add_older(self, key: str, digest: bytes, time: float) -> None:
        """Know a key that is older than all that are known; what is known of it already stands."""
        if key.startswith(UNNAMED) or self.full:
            return
        self._count += self._held.execute(
            "INSERT OR IGNORE INTO taken (place, key, digest, time) "
            "VALUES ((SELECT coalesce(min(place), 0) - 1 FROM taken), ?, ?, ?)",
            (_short(key), digest, time),
        ).rowcount

    def drop(self, key: str) -> None:
        """Know a key no more."""
        self._delete("key = ?", _short(key))

    def _delete(self, where: str, *given: bytes | float) -> int:
        gone = self._held.execute(f"DELETE FROM taken WHERE {where}", given).rowcount
        self._count -= gone
        return gone


def _short(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=16).digest()
