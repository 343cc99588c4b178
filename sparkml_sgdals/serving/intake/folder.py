"""Ratings taken in for the stream: durable before they are acknowledged, each key once.

Waiting requests are written together, as JSON lines of a file in the folder that the stream reads:
it has a hidden name and is synced, and is renamed once a second, so that a reader sees whole files
only, and few of them, and what was acknowledged outlives a kill and a power cut. The files
themselves say which keys were taken.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sparkml_sgdals.serving.intake.file_log import FileLog
from sparkml_sgdals.serving.intake.history import MOST_KNOWN, IntakeColumns
from sparkml_sgdals.serving.intake.keys import DAY, Keys, KeyTakenError
from sparkml_sgdals.serving.intake.posts import (
    Post,
    Posted,
    Receipt,
    Told,
    digest_of,
    make_lines,
)
from sparkml_sgdals.serving.intake.read_back import ReadBack

__all__ = ["FolderIntake"]

logger = logging.getLogger(__name__)

_END: Final = None
_MOST: Final = 5_000
"""posts that are synced together"""
_SYNCS: Final = 0.02
"""seconds between two syncs at least: what comes in meanwhile is in the next"""
_LOOKS: Final = 30.0
"""seconds after which files that other services left hidden are looked for again"""


@dataclass
class _Waiting:
    """The posts of a request: key, what it stands for, and lines of each."""

    posts: list[tuple[str, bytes, bytes]]
    done: Future[list[Receipt]] = field(default_factory=Future)


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

    Only one process writes with the same keys at a time: two that share a folder lose nothing where
    a lock of a file holds for both, but each knows only the keys that the other took before its own
    start.

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
        self._columns = columns
        self._log = FileLog(self.folder, every)
        self._syncs = min(_SYNCS, every)
        self._keys = Keys(key_seconds)
        place = None if archive is None else Path(archive)
        self._past = ReadBack(self.folder, place, columns, self._keys, key_seconds, remembered)
        self._past.read()
        self._looked = time.monotonic()
        self._queue: queue.Queue[_Waiting | None] = queue.Queue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="intake", daemon=True)
        self._thread.start()

    @property
    def found(self) -> deque[Posted]:
        """Ratings in files of earlier runs, for the users' histories."""
        return self._past.found

    @property
    def told(self) -> list[Told]:
        """What users and items are, of earlier runs."""
        return self._past.told

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
                look = max(0.0, self._looked + _LOOKS - time.monotonic())
                batch = [self._queue.get(timeout=min(self._log.wait(), look))]
            clock = time.monotonic()
            while len(batch) < _MOST:
                try:
                    batch.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            ended = _END in batch
            waiting = [one for one in batch if one is not None]
            try:
                self._take(waiting)
            except Exception as failure:
                logger.exception("ratings cannot be taken")
                for one in waiting:
                    if not one.done.done():
                        one.done.set_exception(failure)
            self._show_files()
            rest = self._syncs - (time.monotonic() - clock)
            if rest > 0 and not ended:
                time.sleep(rest)
        self._log.close()
        self._past.close()

    def _show_files(self) -> None:
        """Show own files whose time has come, and now and then those of services that are gone."""
        try:
            self._log.show_due()
            if time.monotonic() - self._looked >= _LOOKS:
                self._looked = time.monotonic()
                self._past.look(self._log.holds)
        except Exception:
            # whatever it is, posts are taken all the same
            logger.exception("files of %s are still hidden", self.folder)

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
                try:
                    known = own.get(key) or new.get(key) or self._known(key, now)
                except OSError as failure:
                    one.done.set_exception(failure)
                    break
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
                    self._past.taken(receipt.key)
            one.done.set_result(receipts)

    def _known(self, key: str, now: float) -> bytes | None:
        """Return what a key stands for that was taken, None where it was not."""
        known = self._keys.digest(key, now)
        return known if known is not None and self._past.is_sure(key) else None
