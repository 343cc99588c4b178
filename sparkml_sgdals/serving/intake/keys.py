"""Keys of posts that were taken, and what each stood for: a day of them, the newest million."""

from __future__ import annotations

import hashlib
from collections import deque
from typing import Final

__all__ = ["DAY", "UNNAMED", "KeyTakenError", "Keys"]

DAY: Final = 86_400.0
UNNAMED: Final = "u:"
"""Begins the keys that the service makes up: no client can send one again."""
_MOST: Final = 1_000_000


class KeyTakenError(ValueError):
    """A key came again with other ratings."""


class Keys:
    """What each key stood for, by a digest. About 250 bytes a key, however long it is.

    Parameters
    ----------
    seconds : float
        how long a key is known
    most : int
        keys that are known; the oldest go first
    """

    def __init__(self, seconds: float = DAY, most: int = _MOST) -> None:
        self._seconds, self._most = seconds, most
        self._held: dict[bytes, tuple[bytes, float]] = {}
        # a dict finds its first one slowly once many before it have gone
        self._order: deque[bytes] = deque()

    def __len__(self) -> int:
        """Return how many are known."""
        return len(self._held)

    def digest(self, key: str, now: float) -> bytes | None:
        """Return what a key stood for, None where it is not known."""
        short = _short(key)
        return None if self._is_past(short, now) else self._held[short][0]

    def add(self, key: str, digest: bytes, now: float) -> None:
        """Know a key from now on; calls come in the order of their times."""
        if key.startswith(UNNAMED):
            return
        held, order = self._held, self._order
        while order and (len(order) >= self._most or self._is_past(order[0], now)):
            held.pop(order.popleft(), None)
        short = _short(key)
        if short not in held:
            order.append(short)
        held[short] = digest, now

    def drop(self, key: str) -> None:
        """Know a key no more."""
        self._held.pop(_short(key), None)

    def _is_past(self, short: bytes, now: float) -> bool:
        held = self._held.get(short)
        return held is None or held[1] < now - self._seconds


def _short(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=16).digest()
