"""What the files of an inbox tell a service that starts: which keys were taken, and what was rated.

Files that readers see are read from the newest one back, as far as something of them is still to be
known. Hidden ones are a killed service's, whose acknowledged posts are shown now, or belong to a
service that runs beside this one, as where a new one takes the place of an old one. What is in
these counts once they are seen: until then it may still be refused.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from sparkml_sgdals.serving.intake.file_log import HiddenFile, hidden_files, read_all, seen_name
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

_BESIDE: Final = 60_000_000_000
"""nanoseconds that a file may have been begun before another one that was written beside it"""


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
        # keys that are known from a hidden file alone, each with its name once it is seen
        self._hidden: dict[str, str] = {}
        # of these the files of others, by the same names, which stay open: whatever becomes of
        # their names, what is in them in the end was acknowledged, and nothing else
        self._open: dict[str, int] = {}

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
        files = self._left_behind(lambda path: False, self._watch)
        try:
            seen = self._read_seen()
            for name in sorted(self._open.keys() - seen):
                for post in self._posts_in(name):
                    self._remember(post)
            self._show(files, strict=True)
        finally:
            for file in files:
                file.close()

    def look(self, own: Callable[[Path], bool]) -> None:
        """Show what services left hidden that were killed meanwhile, but for files that are `own`.

        It raises OSError where the folder cannot be read.
        """
        self._settle()
        files = self._left_behind(own, lambda path: None)
        try:
            if files:
                self._know_newer(files[0].shown_as.name)
            self._show(files, strict=False)
        finally:
            for file in files:
                file.close()

    def close(self) -> None:
        """Let go of files that are open."""
        for name in list(self._open):
            self._close(name)

    def taken(self, key: str) -> None:
        """Say that a key was taken here."""
        self._hidden.pop(key, None)

    def is_sure(self, key: str) -> bool:
        """Whether a key that is known was acknowledged; where it was refused it is known no more.

        It raises OSError while another service may do the one or the other.
        """
        if self._hidden.get(key) not in self._open:
            return True
        self._settle()
        if self._hidden.get(key) in self._open:
            raise OSError(
                f"Another service is writing what was sent as {key!r}: send it again in a second."
            )
        return self._keys.digest(key, time.time()) is not None

    def _left_behind(
        self, own: Callable[[Path], bool], other: Callable[[Path], None]
    ) -> list[HiddenFile]:
        """Return files of services that were killed, the oldest first; `other` gets the rest."""
        files = []
        for path in hidden_files(self._folder):
            if own(path):
                continue
            file = None
            try:
                file = HiddenFile.adopt(path)
            except OSError:
                # on a disk that is read-only, say: who asks is answered all the same
                logger.exception("%s of a killed service is still hidden", path)
            if file is None:
                other(path)
            else:
                files.append(file)
        return files

    def _watch(self, path: Path) -> None:
        """Know what is in a file that is not to be shown by this service yet."""
        name = seen_name(path)
        try:
            # it may have been claimed, or shown, since it was listed
            handle = os.open(self._path_of(name) or path.with_name(name), os.O_RDONLY)
        except OSError:
            logger.exception("%s cannot be read: of its posts no key is known", path)
            return
        self._open[name] = handle
        try:
            posts = self._posts_in(name)
        except OSError:
            logger.exception("%s cannot be read: of its posts no key is known", path)
            self._close(name)
            return
        for post in posts:
            self._know(post, time.time())
            self._hidden[post.key] = name

    def _posts_in(self, name: str) -> list[ReadPost]:
        """Return the whole posts of a file that stays open."""
        content = read_all(self._open[name])
        posts = read_posts(self._columns, self._folder / f".{name}", content)
        return [post for post in posts if post.whole]

    def _path_of(self, name: str) -> Path | None:
        """Return the hidden name that a file has now, None for one that is seen or gone."""
        return next((path for path in hidden_files(self._folder) if seen_name(path) == name), None)

    def _settle(self) -> None:
        """Know what became of files of others that are hidden no more."""
        if not self._open:
            return
        hidden = {seen_name(path) for path in hidden_files(self._folder)}
        for name in self._open.keys() - hidden:
            there = {post.key for post in self._posts_in(name)}
            for key in [key for key, place in self._hidden.items() if place == name]:
                del self._hidden[key]
                if key not in there:
                    self._keys.drop(key)
            self._close(name)

    def _close(self, name: str) -> None:
        handle = self._open.pop(name, None)
        if handle is not None:
            os.close(handle)

    def _read_seen(self) -> set[str]:
        """Read what readers see, and return the names of these files."""
        since = time.time() - self._key_seconds
        told: list[Told] = []
        files = self._seen()
        most = self.found.maxlen or 0
        # by name, which is by time, the newest first
        for _, file in sorted(files.items(), reverse=True):
            given = self._content(file)
            if given is None:
                continue
            content, written = given
            keys = written >= since and not self._keys.full
            if not (keys or len(self.found) < most or TELLS in content):
                continue
            for post in reversed(list(read_posts(self._columns, file, content))):
                if keys and post.key:
                    if self._hidden.pop(post.key, None) is not None:
                        self._keys.drop(post.key)
                    self._keys.add_older(post.key, digest_of(post.ones), written)
                for one in reversed(post.ones):
                    if isinstance(one, Told):
                        told.append(one)
                    elif len(self.found) < most:
                        self.found.appendleft(one)
        self.told = told[::-1]
        return set(files)

    def _know_newer(self, name: str) -> None:
        """Know what other services took since a file was begun: what it ends in may be there."""
        began = name.split("-")[1]
        first = f"ratings-{max(int(began) - _BESIDE, 0):020d}" if began.isdecimal() else name
        for other, file in sorted(self._seen().items()):
            given = self._content(file) if first <= other != name else None
            if given is None:
                continue
            try:
                posts = list(read_posts(self._columns, file, given[0]))
            except ValueError:
                logger.exception("%s is not this service's", file)
                continue
            for post in posts:
                self._hidden.pop(post.key, None)
                if self._keys.digest(post.key, time.time()) is None:
                    self._know(post, time.time())

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

    def _show(self, files: list[HiddenFile], strict: bool) -> None:
        """Show what was left behind, but for posts that are in other files as well.

        What was refused may have been sent again, and stands in a newer file then. At the start,
        which is `strict`, posts are remembered as well.
        """
        left: list[tuple[HiddenFile, bytes, list[ReadPost]]] = []
        adopted = {file.shown_as.name for file in files}
        newer: set[str] = set()
        for file in reversed(files):
            try:
                content = file.read()
                posts = self._new_posts(file, content, adopted, newer)
            except OSError:
                logger.exception("%s of a killed service is still hidden", file.path)
                continue
            except ValueError:
                if strict:
                    raise
                logger.exception("%s is still hidden", file.path)
                continue
            left.append((file, content, posts))
            newer |= {post.key for post in posts if post.key}
        for file, content, posts in reversed(left):
            if strict:
                for post in posts:
                    self._remember(post)
            try:
                self._show_posts(file, content, posts)
            except OSError:
                logger.exception("%s of a killed service is still hidden", file.path)

    def _new_posts(
        self, file: HiddenFile, content: bytes, adopted: set[str], newer: set[str]
    ) -> list[ReadPost]:
        """Return the posts of a file that are in no other one, whose keys are known from now on.

        Of files that are `adopted` together those that are newer hold the keys `newer`.
        """
        name, now = file.shown_as.name, time.time()
        posts = []
        for post in read_posts(self._columns, file.path, content):
            known = self._keys.digest(post.key, now) is not None
            place = self._hidden.get(post.key)
            # what another service is writing it may lose yet
            mine = not known or place == name or place in self._open
            if post.whole and mine and post.key not in newer:
                posts.append(post)
        for post in posts:
            place = self._hidden.get(post.key)
            if place is None or place == name or place in adopted:
                self._know(post, now)
                self._hidden[post.key] = name
        return posts

    def _show_posts(self, file: HiddenFile, content: bytes, posts: list[ReadPost]) -> None:
        name = file.shown_as.name
        elsewhere = {self._hidden[post.key] for post in posts if post.key in self._hidden} - {name}
        if elsewhere:
            # what becomes of these is known at the next look
            logger.info("%s waits for %s", file.path, ", ".join(sorted(elsewhere)))
            return
        whole = b"".join(line + b"\n" for post in posts for line in post.lines)
        if not whole or file.shown_as.exists():
            file.drop()
        else:
            if whole != content:
                file.replace(whole)
            file.show_as_new()
        for post in posts:
            self._hidden.pop(post.key, None)
        self._close(name)
