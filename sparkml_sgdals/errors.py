"""What can go wrong that is not a wrong argument: each error says what, where and the remedy."""

from __future__ import annotations

__all__ = ["DamagedError", "DivergenceError", "GoneError", "LeaseError", "StorageError"]


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
