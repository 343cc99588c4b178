"""What is posted, and the lines that it is in files, and in messages, for the stream."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from sparkml_sgdals.serving.intake.history import IntakeColumns, Known
from sparkml_sgdals.serving.model.ids import Key

__all__ = [
    "TELLS",
    "Intake",
    "Post",
    "Posted",
    "ReadPost",
    "Receipt",
    "Told",
    "digest_of",
    "make_lines",
    "read_posts",
]

_ABOUT: Final = "about"
_TITLE: Final = "title"
"""fields of a row that the stream does not read"""
TELLS: Final = f'"{_ABOUT}"'.encode()
"""in every line that says what a user or item is"""


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
class ReadPost:
    """A post in a file: its key, what it tells, its lines, and whether all of them are there."""

    key: str
    ones: list[Posted | Told] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    whole: bool = False


def read_posts(columns: IntakeColumns, file: Path, content: bytes) -> Iterator[ReadPost]:
    """Yield the posts of a file, each of which is in it as a whole; a hidden one may end anywhere.

    Raises ValueError for lines that were not written with these columns.
    """
    found: dict[str, ReadPost] = {}
    for line in content.split(b"\n"):
        if not line:
            continue
        try:
            row = json.loads(line)
            one = _read_line(columns, row)
        except (ValueError, KeyError, TypeError, RecursionError) as fault:
            torn = isinstance(fault, (ValueError, RecursionError))
            if torn and file.name.startswith("."):
                continue
            raise ValueError(f"{file} {_other_columns(columns, line, fault)}") from fault
        key, _, place = str(row.get(columns.event, "")).rpartition("#")
        post = found.setdefault(key, ReadPost(key))
        post.ones.append(one)
        post.lines.append(line)
        count = place.partition("/")[2]
        post.whole = not count.isdecimal() or len(post.ones) == int(count)
    yield from found.values()


def _other_columns(columns: IntakeColumns, line: bytes, fault: Exception) -> str:
    """Say what is wrong with a line, and which columns it has in the place of these."""
    wanted = (columns.user, columns.item, columns.rating, columns.time, columns.event)
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or set(wanted) <= set(found):
        return (
            f"was not written with these columns ({fault!r}): give the service the columns that "
            "it had, or another folder."
        )
    has = ",".join(found)
    # of a rating the order is that of the option
    told = has if len(found) == len(wanted) else "USER,ITEM,RATING,TIME,EVENT"
    return (
        f"was not written with these columns ({','.join(wanted)}), it has {has}: give the service "
        f"another folder or, if the stream reads those of the file, --columns {told}."
    )


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
