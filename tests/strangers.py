"""Files of ratings as strangers have them: the same 300 ratings, written in many ways."""

from __future__ import annotations

import datetime
import json

import numpy as np

__all__ = ["FILES", "rows"]

NAMES = ("userId", "movieId", "rating", "timestamp")


def rows():
    """300 ratings of 20 users with names that are no ASCII and 15 items, in halves of a star."""
    rng = np.random.default_rng(3)
    pairs = rng.permutation(300)
    return [
        (f"J\u00fcrg {n // 15:02d} \u2013 \u20ac", int(n) % 15 + 1, float(rng.integers(1, 11)) / 2,
         1_400_000_000 + int(k) * 7)
        for k, n in enumerate(pairs)
    ]  # fmt: skip


def numbered():
    """Return the same with a number for the name of a user."""
    return [(int(user.split()[1]) + 1, *others) for user, *others in rows()]


def lines(table, sep, end="\n", names=NAMES, comma=False):
    told = [sep.join(names)] if names else []
    for row in table:
        told.append(sep.join(str(v).replace(".", ",") if comma else str(v) for v in row))
    return end.join(told) + end


def moment(seconds):
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)


def as_json(table, told):
    return "\n".join(json.dumps(told(*row), ensure_ascii=False) for row in table) + "\n"


BOOKS = ("User-ID", "ISBN", "Book-Rating")
# name: bytes, options of fit, whether users are texts
FILES = {
    # Book-Crossing: semicolons, quotes, Latin-1 (Windows' own), no times
    "books.csv": (
        lines([(f'"{u}"', f'"{i}"', f'"{r}"') for u, i, r, _ in rows()], ";", "\r\n",
              [f'"{name}"' for name in BOOKS]).encode("cp1252"), (), True),
    # MovieLens 1M
    "ratings.dat": (lines(numbered(), "::", names=None).encode(), (), False),
    "komma.csv": (lines(numbered(), ";", comma=True).encode(), (), False),
    "events.jsonl": (
        as_json(rows(), lambda u, i, r, t: {"user_id": u, "item": i, "score": str(r),
                                            "time": moment(t).isoformat()}).encode(), (), True),
    # old Mac
    "mac.csv": (lines(rows(), ",", "\r").encode(), (), True),
    # Excel's "Unicode text"
    "excel.txt": (lines(rows(), "\t", "\r\n").encode("utf-16"), (), True),
    "bom.csv": (("\ufeff" + lines(rows(), ",", "\r\n")).encode(), (), True),
    # MovieLens 100K
    "u.data": (lines(numbered(), "\t", names=None).encode(), (), False),
    "german.csv": (
        lines([(u, i, r, moment(t).strftime("%d.%m.%Y %H:%M:%S")) for u, i, r, t in rows()], ";",
              names=("Leser", "Buch", "rating", "timestamp"), comma=False).encode("cp1252"),
        ("--user", "Leser", "--item", "Buch", "--time-format", "dd.MM.yyyy HH:mm:ss"), True),
    "array.json": (
        json.dumps([dict(zip(NAMES, row, strict=True)) for row in rows()], indent=1,
                   ensure_ascii=False).encode(), (), True),
    "review.csv": (
        ('userId,review,movieId,rating,timestamp\n' + "".join(
            f'{u},"he said ""no"", and\nleft, {n}",{i},{r},{t}\n'
            for n, (u, i, r, t) in enumerate(rows())
        )).encode(), (), True),
}  # fmt: skip
