"""Spark's log in a file: what its JVM prints would run into bars and results."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SparkLog"]


@dataclass
class SparkLog:
    """Where the log of a session goes.

    Attributes
    ----------
    path : Path | None
        a file; None: to stderr, as Spark itself does
    kept : bool
        whether the file stays when all went well
    """

    path: Path | None
    kept: bool

    @classmethod
    def at(cls, place: str) -> SparkLog:
        """Return the log that an option names: a file, '-' for stderr, '' for a temporary file."""
        if place == "-":
            return cls(None, True)
        if place:
            path = Path(place).resolve()
            path.parent.mkdir(parents=True, exist_ok=True)
            return cls(path, True)
        handle, name = tempfile.mkstemp(prefix="sparkml-sgdals-spark-", suffix=".log")
        os.close(handle)
        return cls(Path(name), False)

    @contextmanager
    def inherited(self) -> Iterator[None]:
        """Give processes that start while the body runs the file for their stderr."""
        if self.path is None:
            yield
            return
        sys.stderr.flush()
        own = os.dup(2)
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, 2)
        os.close(file)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(own, 2)
            os.close(own)

    def drop(self) -> None:
        """Remove the file, unless somebody asked for it."""
        if self.path is not None and not self.kept:
            self.path.unlink(missing_ok=True)

    def reason(self) -> str:
        """Return the line that most likely says why Spark did not start; '' for none."""
        if self.path is None or not self.path.exists():
            return ""
        lines = self.path.read_text(errors="replace").splitlines()
        told = [one.strip() for one in lines if "rror" in one or "xception" in one or "JAVA" in one]
        return (told or [""])[0][:300]
