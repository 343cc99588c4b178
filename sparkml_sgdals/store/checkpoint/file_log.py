"""The log of a file source in Spark's checkpoint: which files were read in which batch (driver)."""

from __future__ import annotations

import hashlib
import re
from typing import Final

from sparkml_sgdals.store.objects import ObjectStore
from sparkml_sgdals.store.shapes import ANYTHING, TEXT, Fields, Plain, parse_json

__all__ = ["BATCH", "NO_FILES", "FileLog", "lines_of", "number_of", "sha256_of"]

NO_FILES: Final = ""
"""digest of a file source's log before its first batch"""
BATCH: Final = Plain("a batch", lambda v: type(v) is int and -1 <= v < 2**63)
_INTERVAL: Final = 10
"""batches between Spark's compactions of a file source's log"""
_ENTRY: Final = Fields({"path": TEXT, "batchId": BATCH}, others=ANYTHING)


class FileLog:
    """The log of a file source: which files were read in which batch."""

    def __init__(self, store: ObjectStore, folder: str, names: list[str]) -> None:
        self.store = store
        self.folder = folder
        self.names = names

    @classmethod
    def read(cls, store: ObjectStore, folder: str) -> FileLog | None:
        """Return the log in a folder, None where the source there keeps something else."""
        names = [n for n in store.names(folder) if re.fullmatch(r"\d+(\.compact)?", n)]
        log = cls(store, folder, names)
        return log if any(log._entries(name) for name in names) else None

    @classmethod
    def of_batch(cls, store: ObjectStore, folder: str, last: int) -> FileLog:
        """Return the log of one batch alone, in whichever of two files Spark put it."""
        return cls(store, folder, [str(last), f"{last}.compact"])

    def whole_until(self, last: int) -> bool:
        """Whether what there is up to a batch does without anything later."""
        compacts = [
            number_of(n) for n in self.names if n.endswith(".compact") and number_of(n) <= last
        ]
        first = max(compacts, default=-1) + 1
        return all(str(number) in self.names for number in range(first, last + 1))

    def digest_until(self, last: int, since: int = -1, digest: str = NO_FILES) -> str:
        """Return a digest of all files up to batch `last`, from that of those up to `since`."""
        batches = self.batches()
        for batch in sorted(batch for batch in batches if since < batch <= last):
            told = "\n".join([digest, str(batch), *batches[batch]])
            digest = sha256_of(told.encode())
        return digest

    def batches(self) -> dict[int, list[str]]:
        """Return the lines of each batch, each once, in the order in which Spark wrote them."""
        batches: dict[int, list[str]] = {}
        for name in self.names:
            for batch, line in self._entries(name):
                lines = batches.setdefault(batch, [])
                if line not in lines:
                    lines.append(line)
        return batches

    def write_until(self, target: str, last: int) -> None:
        """Write the log as it was after batch `last` of this source."""
        batches = self.batches()
        # Spark takes the last compacted batch for a multiple of its interval, whatever that is
        compact = (last + 1) // _INTERVAL * _INTERVAL - 1
        if compact >= 0:
            merged = [
                line for batch in sorted(batches) if batch <= compact for line in batches[batch]
            ]
            self._write(f"{target}/{compact}.compact", merged)
        for batch in range(compact + 1, last + 1):
            self._write(f"{target}/{batch}", batches.get(batch, []))

    def _write(self, name: str, lines: list[str]) -> None:
        self.store.write(name, "\n".join(["v1", *lines]).encode())

    def _lines(self, name: str) -> list[str]:
        # other sources keep here what they like
        payload = self.store.read(f"{self.folder}/{name}") or b""
        return lines_of(payload)

    def _entries(self, name: str) -> list[tuple[int, str]]:
        found = []
        for line in self._lines(name)[1:]:
            try:
                entry = parse_json(line)
            except ValueError:
                return []
            if _ENTRY.fault(entry, "it") is None:
                found.append((entry["batchId"], line))
        return found


def lines_of(payload: bytes) -> list[str]:
    """Return the lines of a file that Spark wrote."""
    # as Spark reads them: names of files may hold what Python takes for the end of a line
    lines = payload.decode(errors="replace").split("\n")
    return lines if lines[-1] else lines[:-1]


def number_of(name: str) -> int:
    """Return the batch that a file of a checkpoint is of, -1 where it is of none."""
    found = re.match(r"\.?(\d+)(?=[._]|$)", name)
    return int(found.group(1)) if found else -1


def sha256_of(payload: bytes) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(payload).hexdigest()
