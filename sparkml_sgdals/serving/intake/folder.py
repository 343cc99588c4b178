"""Ratings taken in for the stream: durable before they are acknowledged, each key once.

Waiting requests are written together, as one file of JSON lines in the folder that the stream
reads: under a hidden name, synced, then renamed, so that a reader sees whole files only and what
was acknowledged outlives a kill and a power cut. The files themselves say which keys were taken.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import queue
import threading
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from sparkml_sgdals.serving.intake.history import IntakeColumns, Known
from sparkml_sgdals.serving.model.ids import Key

__all__ = [
    "FolderIntake",
    "Intake",
    "KeyTakenError",
    "Posted",
    "Receipt",
    "digest_of",
    "make_lines",
]

logger = logging.getLogger(__name__)

_END: Final = None
_MOST: Final = 5_000
"""posts that are written as one file"""
_GIVEN_UP: Final = 60.0
"""seconds after which a hidden file counts as a killed service's. Were it not, its rename would
fail, and its posts would be refused, not lost"""


class KeyTakenError(ValueError):
    """A key came again with other ratings."""


@dataclass(frozen=True)
class Posted:
    """A rating as it was posted; `time` in seconds since 1970."""

    user: Key
    item: Key
    rating: float
    time: int

    def known(self) -> Known:
        """Return it as the history of its user holds it."""
        return Known(self.item, self.rating, self.time)


@dataclass(frozen=True)
class Receipt:
    """What became of a post: its key, and whether it had been taken before."""

    key: str
    repeated: bool


@dataclass
class _Waiting:
    key: str
    lines: bytes
    digest: str
    done: Future[Receipt] = field(default_factory=Future)


class Intake(Protocol):
    """Where ratings go. `put` gives a future that is done when they are durable."""

    def put(self, key: str, ratings: Sequence[Posted]) -> Future[Receipt]:
        """Take ratings under a key; the future is done when they are durable."""

    def close(self) -> None:
        """Write what waits, and take no more."""


def digest_of(ratings: Sequence[Posted]) -> str:
    """Tells posts with the same key apart, by what was sent: users, items and ratings."""
    text = json.dumps([[r.user, r.item, r.rating] for r in ratings])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def make_lines(columns: IntakeColumns, key: str, ratings: Sequence[Posted]) -> list[dict[str, Any]]:
    """Return a post as rows for the stream, each with an event id: key and place in the post."""
    return [
        {
            columns.user: r.user, columns.item: r.item, columns.rating: r.rating,
            columns.time: r.time, columns.event: f"{key}#{place}/{len(ratings)}",
        }
        for place, r in enumerate(ratings)
    ]  # fmt: skip


class FolderIntake:
    """Appends ratings to a folder as files of JSON lines.

    Parameters
    ----------
    folder : str
        what the stream reads; made where it is not there
    every : float
        seconds between two files: what comes in meanwhile is in the next
    key_seconds : float
        how long a key is known, by the time of its file; files of earlier runs count

    Only one process writes with the same keys at a time: two that share a folder write no file
    twice, but each knows the keys that the other took only after its next start.
    """

    def __init__(
        self, folder: str, columns: IntakeColumns, every: float = 0.02,
        key_seconds: float = 86_400.0,
    ) -> None:  # fmt: skip
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._columns = columns
        self._every = every
        self._key_seconds = key_seconds
        self._keys: dict[str, tuple[str, float]] = {}
        self.found: list[Posted] = []
        """ratings in files of earlier runs, for the users' histories"""
        self._read_back()
        self._queue: queue.Queue[_Waiting | None] = queue.Queue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="intake", daemon=True)
        self._thread.start()

    def put(self, key: str, ratings: Sequence[Posted]) -> Future[Receipt]:
        """Take ratings in; the future is done when they are durable, or were before.

        It raises KeyTakenError where the key stands for other ratings, OSError where the folder
        cannot be written.
        """
        rows = make_lines(self._columns, key, ratings)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        waiting = _Waiting(key, text.encode(), digest_of(ratings))
        if self._closed:
            waiting.done.set_exception(OSError("The service is ending."))
        else:
            self._queue.put(waiting)
        return waiting.done

    def close(self) -> None:
        """Write what waits, then end."""
        self._closed = True
        self._queue.put(_END)
        self._thread.join(10.0)

    def _run(self) -> None:
        ended = False
        while not ended:
            batch = [self._queue.get()]
            clock = time.monotonic()
            while len(batch) < _MOST:
                try:
                    batch.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            ended = _END in batch
            self._take([one for one in batch if one is not None])
            rest = self._every - (time.monotonic() - clock)
            if rest > 0 and not ended:
                time.sleep(rest)

    def _take(self, batch: list[_Waiting]) -> None:
        now = time.time()
        new: dict[str, _Waiting] = {}
        same: list[_Waiting] = []
        for one in batch:
            digest = new[one.key].digest if one.key in new else self._known(one.key, now)
            if digest is None:
                new[one.key] = one
            elif digest == one.digest:
                same.append(one)
            else:
                one.done.set_exception(KeyTakenError(one.key))
        try:
            if new:
                self._write(b"".join(one.lines for one in new.values()))
        except OSError as failure:
            logger.exception("ratings cannot be written to %s", self.folder)
            for one in [*new.values(), *same]:
                one.done.set_exception(failure)
            return
        for key, one in new.items():
            self._keys[key] = (one.digest, now)
            one.done.set_result(Receipt(key, False))
        for one in same:
            one.done.set_result(Receipt(one.key, True))

    def _known(self, key: str, now: float) -> str | None:
        found = self._keys.get(key)
        if found is None or found[1] < now - self._key_seconds:
            return None
        return found[0]

    def _write(self, payload: bytes) -> None:
        name = f"ratings-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.json"
        hidden = self.folder / f".{name}.tmp"
        try:
            with open(hidden, "wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            os.rename(hidden, self.folder / name)
        except OSError:
            hidden.unlink(missing_ok=True)
            raise
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        # what is long past is asked for no more
        if len(self._keys) > 1_000_000:
            since = time.time() - self._key_seconds
            self._keys = {k: v for k, v in self._keys.items() if v[1] >= since}

    def _read_back(self) -> None:
        """Keys and ratings of files that are there; hidden ones were never acknowledged."""
        for hidden in self.folder.glob(".ratings-*.json.tmp"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - hidden.stat().st_mtime > _GIVEN_UP:
                    hidden.unlink()
        names = self._columns
        posts: dict[str, tuple[list[Posted], float]] = {}
        for file in sorted(self.folder.glob("ratings-*.json")):
            written = file.stat().st_mtime
            for line in file.read_text("utf-8").splitlines():
                try:
                    row = json.loads(line)
                    one = Posted(
                        *(row[n] for n in (names.user, names.item, names.rating, names.time))
                    )
                except (ValueError, KeyError) as fault:
                    raise ValueError(
                        f"{file} was not written with these columns ({fault!r}): give the service "
                        "the columns that it had, or another folder."
                    ) from fault
                self.found.append(one)
                key, _, _ = str(row.get(names.event, "")).rpartition("#")
                if key:
                    posts.setdefault(key, ([], written))[0].append(one)
        self._keys = {key: (digest_of(r), written) for key, (r, written) in posts.items()}
