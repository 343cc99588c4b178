"""Which columns of a table are meant: those that options name, else those that are called alike."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Final

from sparkml_sgdals.ingest.columns import quoted

__all__ = ["DEFAULTS", "SourceColumns", "by_order", "find_columns"]

_THINGS: Final = (
    "item", "movie", "film", "book", "product", "track", "song", "artist", "album", "article",
    "business", "restaurant", "recipe", "game", "anime", "joke", "show",
)  # fmt: skip
_PEOPLE: Final = ("user", "customer", "reader", "reviewer", "member", "account", "visitor")
_CALLED: Final = {
    "user": {*_PEOPLE, *(f"{one}id" for one in _PEOPLE), "uid"},
    "item": {*_THINGS, *(f"{one}id" for one in _THINGS), "iid", "isbn", "asin", "sku"},
    "rating": {"rating", "score", "stars", "star", "overall", "ratingvalue", "grade",
               *(f"{one}rating" for one in (*_THINGS, *_PEOPLE))},
    "time": {"timestamp", "time", "ts", "date", "datetime", "ratedat", "createdat",
             "unixreviewtime", "unixtime", "reviewtime", "ratingtime", "eventtime"},
}  # fmt: skip


@dataclass(frozen=True)
class SourceColumns:
    """Names of the columns of ratings; time is empty where there is none."""

    user: str
    item: str
    rating: str
    time: str

    @property
    def in_order(self) -> tuple[str, ...]:
        """Names of the values of a row that has none."""
        return (self.user, self.item, self.rating, *([self.time] if self.time else []))

    def ddl(self, ids: tuple[str, str] = ("bigint", "bigint"), time: str = "long") -> str:
        """Return a schema, for messages and files that state none."""
        moment = f", {quoted(self.time)} {time}" if self.time else ""
        user, item = f"{quoted(self.user)} {ids[0]}", f"{quoted(self.item)} {ids[1]}"
        return f"{user}, {item}, {quoted(self.rating)} double{moment}"


DEFAULTS: Final = SourceColumns("userId", "movieId", "rating", "timestamp")


def by_order(columns: SourceColumns, width: int) -> list[str]:
    """Return names for a table without any: user, item, rating, time, and what comes after."""
    names = [columns.user, columns.item, columns.rating, columns.time or DEFAULTS.time][:width]
    return names + [f"column{n}" for n in range(len(names) + 1, width + 1)]


def find_columns(
    names: Sequence[str],
    asked: SourceColumns,
    path: str,
    needed: Sequence[str] = ("user", "item", "rating"),
) -> SourceColumns:
    """Return the columns of a table that are meant.

    Parameters
    ----------
    names : Sequence[str]
        what the columns of the table are called
    asked : SourceColumns
        as options say, or by default
    path : str
        of the table, for the message
    needed : Sequence[str]
        what a row has to have; others may be missing where nobody named them

    Raises
    ------
    ValueError
        one is missing, or several may be meant
    """
    found = {}
    for role in ("user", "item", "rating", "time"):
        name: str = getattr(asked, role)
        default = name == getattr(DEFAULTS, role)
        if role not in needed and (not name or not default) and role != "time":
            found[role] = name
            continue
        same = [one for one in names if one == name] or [
            one for one in names if one.casefold() == name.casefold()
        ]
        # a dotted name reaches into structs
        if not name or same or name.split(".")[0] in names:
            found[role] = (same or [name])[0]
            continue
        alike = [one for one in names if _plain(one) == _plain(name)]
        called = [one for one in names if _plain(one) in _CALLED[role]] if default else []
        guesses = alike or called
        if len(guesses) == 1 and default:
            found[role] = guesses[0]
        elif role not in needed and default and not guesses:
            found[role] = "" if role == "time" else name
        else:
            raise ValueError(_missing(role, name, names, path, guesses))
    return replace(asked, **found)


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).casefold()


def _missing(role: str, name: str, names: Sequence[str], path: str, guesses: Sequence[str]) -> str:
    near = list(guesses) or get_close_matches(name, names, 1)
    meant = f", such as --{role} {' or '.join(map(_shell, near))}" if near else ""
    event = ", or learn each row as an event by -P implicitPrefs=true"
    return (
        f"{path} has no column {name!r}; it has {', '.join(map(repr, names))}. Say by --{role} "
        f"which is meant{meant}{event if role == 'rating' and not near else ''}."
    )


def _shell(name: str) -> str:
    return name if re.fullmatch(r"[\w.-]+", name) else repr(name)
