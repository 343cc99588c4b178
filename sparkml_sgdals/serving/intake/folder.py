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
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from sparkml_sgdals.serving.intake.history import MOST_KNOWN, IntakeColumns, Known
from sparkml_sgdals.serving.intake.keys import DAY, UNNAMED, Keys, KeyTakenError
from sparkml_sgdals.serving.model.ids import Key

__all__ = [
    "FolderIntake",
    "Intake",
    "Post",
    "Posted",
    "Receipt",
    "Told",
    "digest_of",
    "make_lines",
]

logger = logging.getLogger(__name__)

_END: Final = None
_ABOUT: Final = "about"
_TITLE: Final = "title"
"""fields of a row that the stream does not read"""
_MOST: Final = 5_000
"""posts that are written as one file"""
_GIVEN_UP: Final = 60.0
"""seconds after which a hidden file counts as a killed service's. Were it not, its rename would
fail, and its posts would be refused, not lost"""


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
class Told:
    """What a user (side 0) or an item (1) is, as it was posted.

    Attributes
    ----------
    side : int
        0 or 1
    key : Key
        its id
    given : dict[str, Any]
        what is known of it, by name
    vector : tuple[float, ...]
        the same as the model takes it
    title : str | None
        of an item
    time : int
        seconds since 1970
    """

    side: int
    key: Key
    given: dict[str, Any]
    vector: tuple[float, ...]
    title: str | None
    time: int


@dataclass(frozen=True)
class Receipt:
    """What became of a post: its key, and whether it had been taken before."""

    key: str
    repeated: bool


Post = tuple[str, Sequence["Posted | Told"]]
"""What was posted under a key, which is taken once."""


@dataclass
class _Waiting:
    """The posts of a request: key, what it stands for, and lines of each."""

    posts: list[tuple[str, bytes, bytes]]
    done: Future[list[Receipt]] = field(default_factory=Future)


class Intake(Protocol):
    """Where ratings go. `put` gives a future that is done when they are durable."""

    def put(self, posts: Sequence[Post]) -> Future[list[Receipt]]:
        """Take the posts of a request, all or none; the future is done when they are durable."""

    def close(self) -> None:
        """Write what waits, and take no more."""


def digest_of(ratings: Sequence[Posted | Told]) -> bytes:
    """Tells posts with the same key apart, by what was sent: users, items and ratings."""
    text = json.dumps(
        [
            [r.side, r.key, r.given, r.title] if isinstance(r, Told) else [r.user, r.item, r.rating]
            for r in ratings
        ]
    )
    return hashlib.sha256(text.encode()).digest()[:16]


def make_lines(
    columns: IntakeColumns, key: str, ratings: Sequence[Posted | Told]
) -> list[dict[str, Any]]:
    """Return a post as rows for the stream, each with an event id: key and place in the post."""
    rows = []
    for place, one in enumerate(ratings):
        row: dict[str, Any]
        if isinstance(one, Told):
            # neither a partner nor a rating: the stream adds the id by what is known of it
            row = {columns.user: None, columns.item: None, columns.rating: None}
            row[(columns.user, columns.item)[one.side]] = one.key
            row[(columns.user_features, columns.item_features)[one.side]] = list(one.vector)
            row |= {_ABOUT: one.given} | ({} if one.title is None else {_TITLE: one.title})
        else:
            row = {columns.user: one.user, columns.item: one.item, columns.rating: one.rating}
        rows.append(row | {columns.time: one.time, columns.event: f"{key}#{place}/{len(ratings)}"})
    return rows


def _read_line(columns: IntakeColumns, row: dict[str, Any]) -> Posted | Told:
    """Return what a row stands for; raises as a row does that was written with other columns."""
    user, item, rating, time_ = (
        row[name] for name in (columns.user, columns.item, columns.rating, columns.time)
    )
    if _ABOUT not in row:
        return Posted(user, item, rating, time_)
    side = int(user is None)
    vector = row[(columns.user_features, columns.item_features)[side]]
    key = item if side else user
    return Told(side, key, dict(row[_ABOUT]), tuple(vector), row.get(_TITLE), time_)


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
    remembered : int
        ratings of files that are there, the newest ones, that are kept in `found`

    Only one process writes with the same keys at a time: two that share a folder write no file
    twice, but each knows the keys that the other took only after its next start.
    """

    def __init__(
        self, folder: str, columns: IntakeColumns, every: float = 0.02,
        key_seconds: float = DAY, remembered: int = MOST_KNOWN,
    ) -> None:  # fmt: skip
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._columns = columns
        self._every = every
        self._key_seconds = key_seconds
        self._keys = Keys(key_seconds)
        self.found: deque[Posted] = deque(maxlen=remembered)
        """ratings in files of earlier runs, for the users' histories"""
        self.told: list[Told] = []
        """what users and items are, of earlier runs"""
        self._read_back()
        self._queue: queue.Queue[_Waiting | None] = queue.Queue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="intake", daemon=True)
        self._thread.start()

    def put(self, posts: Sequence[Post]) -> Future[list[Receipt]]:
        """Take the posts of a request, all or none; done when they are durable, or were before.

        It raises KeyTakenError where a key stands for other ratings, OSError where the folder
        cannot be written.
        """
        lines = []
        for key, ratings in posts:
            # ASCII alone: some readers of lines end them at other signs than \n as well
            rows = (json.dumps(row) + "\n" for row in make_lines(self._columns, key, ratings))
            lines.append((key, digest_of(ratings), "".join(rows).encode()))
        waiting = _Waiting(lines)
        # whoever waits may go away; what it waits for is written all the same
        waiting.done.set_running_or_notify_cancel()
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
        new: dict[str, bytes] = {}
        lines: list[bytes] = []
        taken: list[tuple[_Waiting, list[Receipt]]] = []
        for one in batch:
            # a request of which one key is taken leaves nothing behind
            own: dict[str, bytes] = {}
            receipts = []
            for key, digest, _ in one.posts:
                known = own.get(key) or new.get(key) or self._keys.digest(key, now)
                if known not in (None, digest):
                    one.done.set_exception(KeyTakenError(key))
                    break
                receipts.append(Receipt(key, known is not None))
                own.setdefault(key, digest)
            else:
                news = zip(one.posts, receipts, strict=True)
                lines += [text for (_, _, text), receipt in news if not receipt.repeated]
                new |= own
                taken.append((one, receipts))
        try:
            if lines:
                self._write(b"".join(lines))
        except Exception as failure:
            logger.exception("ratings cannot be written to %s", self.folder)
            for one, _ in taken:
                one.done.set_exception(failure)
            return
        for one, receipts in taken:
            for receipt in receipts:
                if not receipt.repeated:
                    self._keys.add(receipt.key, new[receipt.key], now)
            one.done.set_result(receipts)

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

    def _read_back(self) -> None:
        """Keys and ratings of files that are there; hidden ones were never acknowledged."""
        for hidden in self.folder.glob(".ratings-*.json.tmp"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - hidden.stat().st_mtime > _GIVEN_UP:
                    hidden.unlink()
        names, since = self._columns, time.time() - self._key_seconds
        for file in sorted(self.folder.glob("ratings-*.json")):
            written = file.stat().st_mtime
            # a post is in one file
            posts: dict[str, list[Posted | Told]] = {}
            for line in file.read_bytes().split(b"\n"):
                if not line:
                    continue
                try:
                    row = json.loads(line)
                    one = _read_line(names, row)
                except (ValueError, KeyError, TypeError) as fault:
                    raise ValueError(
                        f"{file} was not written with these columns ({fault!r}): give the service "
                        "the columns that it had, or another folder."
                    ) from fault
                if isinstance(one, Told):
                    self.told.append(one)
                else:
                    self.found.append(one)
                key, _, _ = str(row.get(names.event, "")).rpartition("#")
                if key and not key.startswith(UNNAMED) and written >= since:
                    posts.setdefault(key, []).append(one)
            for key, ratings in posts.items():
                self._keys.add(key, digest_of(ratings), written)
