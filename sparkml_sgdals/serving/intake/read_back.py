"""What the files of an inbox tell a service that starts: which keys were taken, and what was rated.

Files that readers see are read from the newest one back, as far as something of them is still to be
known. Hidden ones are a killed service's, whose acknowledged posts are shown now, or belong to a
service that runs beside this one, as where a new one takes the place of an old one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sparkml_sgdals.serving.intake.file_log import HiddenFile, hidden_files, seen_name
from sparkml_sgdals.serving.intake.history import IntakeColumns
from sparkml_sgdals.serving.intake.keys import Keys
from sparkml_sgdals.serving.intake.posts import (
    TELLS,
    Posted,
    ReadPost,
    Told,
    digest_of,
    read_posts,
)

__all__ = ["ReadBack"]

logger = logging.getLogger(__name__)


@dataclass
class _Left:
    """A file that a killed service left behind, and the posts of it that are shown."""

    file: HiddenFile
    content: bytes
    posts: list[ReadPost]


class ReadBack:
    """Reads what is in a folder, and shows what killed services left hidden there.

    Parameters
    ----------
    folder : Path
    archive : Path | None
        where files are moved once the stream has learned them; below it as `cleanSource` puts them,
        or at any depth
    columns : IntakeColumns
        names of the columns
    keys : Keys
        is told the keys that were taken
    key_seconds : float
        how long a key is known, by the time of its file
    remembered : int
        ratings, the newest ones, that are kept in `found`
    """

    def __init__(
        self, folder: Path, archive: Path | None, columns: IntakeColumns, keys: Keys,
        key_seconds: float, remembered: int,
    ) -> None:  # fmt: skip
        self._folder, self._columns, self._keys = folder, columns, keys
        self._archive = archive
        self._key_seconds = key_seconds
        self.found: deque[Posted] = deque(maxlen=remembered)
        """ratings of earlier runs, for the users' histories"""
        self.told: list[Told] = []
        """what users and items are, of earlier runs"""
        # keys that were read in hidden files, each with the name of its file once it is seen: what
        # was not acknowledged may still go from there
        self._hidden: dict[str, str] = {}

    def read(self) -> None:
        """Read all of it, at the start.

        Raises
        ------
        ValueError
            files were written with other columns
        OSError
            the folder cannot be read
        """
        if self._archive is not None and not self._archive.is_dir():
            logger.warning(
                "The archive %s is not there (yet): of what was moved away no key is known.",
                self._archive,
            )
        files = self._left_behind(lambda path: False, self._know_of)
        try:
            self._read_seen()
            self._show(files, remember=True)
        finally:
            for file in files:
                file.close()

    def look(self, own: Callable[[Path], bool]) -> None:
        """Show what services left hidden that were killed meanwhile, but for files that are `own`.

        It raises as `read` does.
        """
        files = self._left_behind(own, lambda path: None)
        try:
            self._show(files, remember=False)
        finally:
            for file in files:
                file.close()

    def is_sure(self, key: str) -> bool:
        """Whether a key that is known is in a file that readers see, or will see.

        One that was read while another service wrote it may have been refused there afterwards.
        """
        name = self._hidden.get(key)
        if name is None:
            return True
        hidden = self._folder.glob(f".{name}*.part")
        for path in (self._folder / name, *self._archived(name), *hidden):
            content = self._content(path)
            if content is None:
                continue
            posts = read_posts(self._columns, path, content[0])
            if any(post.whole and post.key == key for post in posts):
                if not path.name.startswith("."):
                    del self._hidden[key]
                return True
        del self._hidden[key]
        self._keys.drop(key)
        return False

    def _left_behind(
        self, own: Callable[[Path], bool], other: Callable[[Path], None]
    ) -> list[HiddenFile]:
        """Return files of services that were killed, the oldest first; `other` gets the rest."""
        files = []
        for path in hidden_files(self._folder):
            if own(path):
                continue
            try:
                file = HiddenFile.adopt(path)
                if file is None:
                    other(path)
                else:
                    files.append(file)
            except OSError:
                # on a disk that is read-only, say: who asks is answered all the same
                logger.exception("%s of a killed service is still hidden", path)
        return files

    def _know_of(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError), open(path, "r+b") as file:
            os.fsync(file.fileno())
            content, now = file.read(), time.time()
            for post in read_posts(self._columns, path, content):
                if post.whole:
                    self._hidden[post.key] = seen_name(path)
                    self._know(post, now)
                    self._remember(post)

    def _read_seen(self) -> None:
        read = set(self._hidden.values())
        since = time.time() - self._key_seconds
        told: list[Told] = []
        # by name, which is by time, the newest first
        for name, file in sorted(self._seen().items(), reverse=True):
            given = None if name in read else self._content(file)
            if given is None:
                continue
            content, written = given
            keys = written >= since and not self._keys.full
            room = len(self.found) < (self.found.maxlen or 0)
            if not (keys or room or TELLS in content):
                continue
            for post in reversed(list(read_posts(self._columns, file, content))):
                if keys and post.key:
                    self._keys.add_older(post.key, digest_of(post.ones), written)
                for one in reversed(post.ones):
                    if isinstance(one, Told):
                        told.append(one)
                    elif len(self.found) < (self.found.maxlen or 0):
                        self.found.appendleft(one)
        self.told = told[::-1] + self.told

    def _seen(self) -> dict[str, Path]:
        """All files that readers see or have seen, by their names."""
        files = {file.name: file for file in self._folder.glob("ratings-*.json")}
        # listed last: what is moved meanwhile is there, or in both
        return files | {file.name: file for file in self._archived("ratings-*.json")}

    def _archived(self, pattern: str) -> Iterator[Path]:
        if self._archive is None:
            return iter(())
        # an archive may be of many inboxes
        below = self._archive / str(self._folder.absolute()).lstrip("/")
        return (below if below.is_dir() else self._archive).rglob(pattern)

    def _content(self, file: Path) -> tuple[bytes, float] | None:
        """Return what is in a file, and when it was written; None where it is deleted by now."""
        moved = self._archived(file.name)
        while True:
            try:
                return file.read_bytes(), file.stat().st_mtime
            except FileNotFoundError:
                found = next(moved, None)
                if found is None:
                    return None
                file = found

    def _know(self, post: ReadPost, written: float) -> None:
        if post.key:
            self._keys.add(post.key, digest_of(post.ones), written)

    def _remember(self, post: ReadPost) -> None:
        self.found += [one for one in post.ones if isinstance(one, Posted)]
        self.told += [one for one in post.ones if isinstance(one, Told)]

    def _show(self, files: list[HiddenFile], remember: bool) -> None:
        """Show what was left behind, but for posts that are in other files as well.

        What was refused may have been sent again, and stands in a newer file then.
        """
        left, now = [], time.time()
        for file in reversed(files):
            content, name = file.read(), file.shown_as.name
            posts = [
                post
                for post in read_posts(self._columns, file.path, content)
                if post.whole
                and (self._hidden.get(post.key) == name or not self._keys.digest(post.key, now))
            ]
            for post in posts:
                self._know(post, now)
                self._hidden[post.key] = name
            left.append(_Left(file, content, posts))
        for one in reversed(left):
            try:
                self._show_one(one)
            except OSError:
                logger.exception("%s of a killed service is still hidden", one.file.path)
            else:
                for post in one.posts:
                    self._hidden.pop(post.key, None)
            if remember:
                for post in one.posts:
                    self._remember(post)

    def _show_one(self, one: _Left) -> None:
        whole = b"".join(line + b"\n" for post in one.posts for line in post.lines)
        if not whole or one.file.shown_as.exists():
            one.file.drop()
        elif whole == one.content:
            one.file.show_as_new()
        else:
            one.file.replace(whole)
