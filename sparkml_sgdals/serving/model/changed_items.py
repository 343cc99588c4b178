"""Which items versions have changed, for what is built of an earlier version (arrays, no Spark)."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

__all__ = ["Changes"]

I64 = npt.NDArray[np.int64]


class Changes:
    """Rows of items by the version that wrote them. Safe to use from several threads."""

    def __init__(self) -> None:
        self._rows: dict[int, I64] = {}
        self._lock = threading.Lock()

    def add(self, version: int, rows: I64) -> None:
        """Note what a version writes, before it is shown."""
        with self._lock:
            held = self._rows.get(version)
            self._rows[version] = rows if held is None else np.concatenate([held, rows])

    def since(self, version: int) -> I64:
        """Rows that versions after this one have written, each once, rising."""
        with self._lock:
            found = [rows for number, rows in self._rows.items() if number > version]
        return np.unique(np.concatenate([np.empty(0, np.int64), *found]))

    def forget(self, version: int) -> None:
        """Drop what nobody asks for: the versions up to this one."""
        with self._lock:
            self._rows = {n: rows for n, rows in self._rows.items() if n > version}
