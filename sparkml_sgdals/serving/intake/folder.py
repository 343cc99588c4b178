"""Ratings taken in for the stream: durable before they are acknowledged, each key once.

Waiting requests are written together, as JSON lines of a file in the folder that the stream reads:
it has a hidden name and is synced, and is renamed once a second, so that a reader sees whole files
only, and few of them, and what was acknowledged outlives a kill and a power cut. The files
themselves say which keys were taken.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from sparkml_sgdals.serving.intake.file_log import FileLog, HiddenFile, hidden_files
from sparkml_sgdals.serving.intake.history import MOST_KNOWN, IntakeColumns, Known
from sparkml_sgdals.serving.intake.keys import DAY, MOST_KEYS, UNNAMED, Keys, KeyTakenError
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
_TELLS: Final = f'"{_ABOUT}"'.encode()
_MOST: Final = 5_000
"""posts that are synced together"""
_SYNCS: Final = 0.02
"""seconds between two syncs at least: what comes in meanwhile is in the next"""
_LOOKS: Final = 30.0
"""seconds after which files that other services left hidden are looked at again"""


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


@dataclass
class _Read:
    """A post as it stands in a file: its key, the rows, its bytes, and whether all of it is there.

    A post is in one file.
    """

    key: str
    ones: list[Posted | Told] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    whole: bool = False


def _read_posts(columns: IntakeColumns, file: Path, content: bytes) -> Iterator[_Read]:
    """Yield the posts of a file; a hidden one may end in the middle of a line.

    Raises ValueError for lines that were not written with these columns.
    """
    found: dict[str, _Read] = {}
    for line in content.split(b"\n"):
        if not line:
            continue
        try:
            row = json.loads(line)
            one = _read_line(columns, row)
        except (ValueError, KeyError, TypeError) as fault:
            if isinstance(fault, ValueError) and file.name.startswith("."):
                continue
            raise ValueError(
                f"{file} was not written with these columns ({fault!r}): give the service the "
                "columns that it had, or another folder."
            ) from fault
        key, _, place = str(row.get(columns.event, "")).rpartition("#")
        post = found.setdefault(key, _Read(key))
        post.ones.append(one)
        post.lines.append(line)
        count = place.partition("/")[2]
        post.whole = not count.isdecimal() or len(post.ones) == int(count)
    yield from found.values()


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
        seconds between two files that the stream sees: what comes in meanwhile is in the next
    key_seconds : float
        how long a key is known, by the time of its file; files of earlier runs count
    remembered : int
        ratings of files that are there, the newest ones, that are kept in `found`
    archive : str | None
        where files are moved, at any depth, once the stream has learned them

    Only one process writes with the same keys at a time: two that share a folder write no file
    twice, but each knows the keys that the other took only after its next start.

    Raises
    ------
    ValueError
        files of the folder were written with other columns
    OSError
        it cannot be made or read
    """

    def __init__(
        self, folder: str, columns: IntakeColumns, every: float = 1.0,
        key_seconds: float = DAY, remembered: int = MOST_KNOWN, archive: str | None = None,
    ) -> None:  # fmt: skip
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._archive = None if archive is None else Path(archive)
        self._columns = columns
        self._log = FileLog(self.folder, every)
        self._syncs = min(_SYNCS, every)
        self._key_seconds = key_seconds
        self._keys = Keys(key_seconds)
        self.found: deque[Posted] = deque(maxlen=remembered)
        """ratings in files of earlier runs, for the users' histories"""
        self.told: list[Told] = []
        """what users and items are, of earlier runs"""
        # keys of files that other services are writing, as far as they were read
        self._others: dict[Path, set[str]] = {}
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
            batch = []
            with contextlib.suppress(queue.Empty):
                batch = [self._queue.get(timeout=min(self._log.wait(), _LOOKS))]
            clock = time.monotonic()
            while len(batch) < _MOST:
                try:
                    batch.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            ended = _END in batch
            self._take([one for one in batch if one is not None])
            self._log.show_due()
            if time.monotonic() - self._looked > _LOOKS:
                self._take_over()
            rest = self._syncs - (time.monotonic() - clock)
            if rest > 0 and not ended:
                time.sleep(rest)
        self._log.close()

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
                self._log.append(b"".join(lines))
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

    def _read_back(self) -> None:
        """Keys and ratings of files that are there."""
        files = self._files()
        since = time.time() - self._key_seconds
        needed = self._needed(files, since)
        for place, file in enumerate(files):
            content, written = self._content(file)
            if place < needed and _TELLS not in content:
                continue
            for post in _read_posts(self._columns, file, content):
                if place >= needed:
                    self._remember(post)
                else:
                    self._join(post)
                if written >= since:
                    self._know(post, written)
        self._take_over(remember=True)

    def _files(self) -> list[Path]:
        """All that a reader sees or has seen, the oldest first."""
        found = {file.name: file for file in self.folder.glob("ratings-*.json")}
        if self._archive is not None:
            found |= {file.name: file for file in self._archive.rglob("ratings-*.json")}
        return [found[name] for name in sorted(found)]

    def _content(self, file: Path) -> tuple[bytes, float]:
        """Return what is in a file, and when it was written; it may be moved just now."""
        archived = iter(() if self._archive is None else self._archive.rglob(file.name))
        while True:
            try:
                return file.read_bytes(), file.stat().st_mtime
            except FileNotFoundError:
                moved = next(archived, None)
                if moved is None:
                    return b"", 0.0
                file = moved

    def _needed(self, files: list[Path], since: float) -> int:
        """Return from which file on there is all that is remembered, ratings and keys."""
        ratings = 0
        for place in range(len(files) - 1, -1, -1):
            content, written = self._content(files[place])
            keys = ratings < MOST_KEYS and written >= since
            if not keys and ratings >= (self.found.maxlen or 0):
                return place + 1
            ratings += content.count(b"\n") - content.count(_TELLS)
        return 0

    def _know(self, post: _Read, written: float) -> None:
        if post.key and not post.key.startswith(UNNAMED):
            self._keys.add(post.key, digest_of(post.ones), written)

    def _join(self, post: _Read) -> None:
        self.told += [one for one in post.ones if isinstance(one, Told)]

    def _remember(self, post: _Read) -> None:
        self.found += [one for one in post.ones if isinstance(one, Posted)]
        self._join(post)

    def _take_over(self, remember: bool = False) -> None:
        """Show what killed services left hidden: all that they acknowledged is there."""
        self._looked = time.monotonic()
        for path in hidden_files(self.folder):
            if self._log.holds(path):
                continue
            try:
                file = HiddenFile.adopt(path)
                if file is not None:
                    with contextlib.closing(file):
                        self._show(file, remember)
                elif remember:
                    self._learn_of(path)
            except OSError:
                # on a full disk, say: who asks is answered all the same
                logger.exception("%s of a killed service is still hidden", path)
            except ValueError:
                if remember:
                    raise
                logger.exception("%s is not this service's", path)

    def _learn_of(self, path: Path) -> None:
        """Know what another service is writing: a client of its may turn to this one."""
        with contextlib.suppress(FileNotFoundError):
            content, now = path.read_bytes(), time.time()
            posts = [post for post in _read_posts(self._columns, path, content) if post.whole]
            self._others[path] = {post.key for post in posts}
            for post in posts:
                self._know(post, now)
                self._remember(post)

    def _show(self, file: HiddenFile, remember: bool) -> None:
        content, now = file.read(), time.time()
        own = self._others.pop(file.path, set())
        # a post that was not acknowledged may have been sent again before it is found here
        new = [
            post
            for post in _read_posts(self._columns, file.path, content)
            if post.whole and (post.key in own or self._keys.digest(post.key, now) is None)
        ]
        whole = b"".join(line + b"\n" for post in new for line in post.lines)
        if file.shown_as.exists() or not whole:
            file.drop()
        elif whole == content:
            file.show()
        else:
            file.replace(whole)
        for post in new:
            self._know(post, now)
            if remember:
                self._remember(post)
