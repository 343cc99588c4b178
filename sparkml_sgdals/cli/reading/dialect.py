"""How a text file of rows is written: encoding, ends of lines, separator, header (no Spark).

The standard library's csv reads the sample; its Sniffer knows no '::' and takes decimal commas for
separators.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

__all__ = ["AS_LATIN", "Dialect", "dialect_of", "encoding_of", "is_number"]

_SEPARATORS: Final = ("::", ";", "\t", "|", ",", " ")
_MARKS: Final = (
    (codecs.BOM_UTF8, "UTF-8"), (codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16"),
)  # fmt: skip
_SAME: Final = 0.9
"""share of lines of one width at which a separator counts as one"""
_LEAST: Final = 3
"""columns, and rows, of a table that may have a title"""
_NUMBER: Final = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?")
AS_LATIN: Final = "ISO-8859-1"
"""what Spark reads one byte a character by; `text_values` then has Windows' own characters right"""


@dataclass(frozen=True)
class Dialect:
    """How a file of separated values is written.

    Attributes
    ----------
    options : dict[str, str]
        of Spark's reader
    names : tuple[str, ...] | None
        its header, None where it has none
    rows : list[list[str]]
        the values of its first rows
    ahead : tuple[str, ...]
        lines before the table, such as its title
    """

    options: dict[str, str]
    names: tuple[str, ...] | None
    rows: list[list[str]] = field(default_factory=list)
    ahead: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Values of a row."""
        return len(self.names) if self.names is not None else max(map(len, self.rows), default=0)


def is_number(text: str) -> bool:
    """Whether a value reads as a number, with a decimal point or comma."""
    return _NUMBER.fullmatch(text.strip()) is not None


def encoding_of(pieces: Iterable[bytes], cut: bool = False) -> str:
    """Return Spark's name of the encoding of a file: by its mark, else UTF-8 or one byte each.

    Parameters
    ----------
    pieces : Iterable[bytes]
        what is in the file
    cut : bool
        whether that is its beginning only, which may end within a character
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    first = True
    for piece in pieces:
        if first:
            for mark, name in _MARKS:
                if piece.startswith(mark):
                    return name
            first = False
        try:
            decoder.decode(piece)
        except UnicodeDecodeError:
            return AS_LATIN
    try:
        decoder.decode(b"", final=not cut)
    except UnicodeDecodeError:
        return AS_LATIN
    return "UTF-8"


def dialect_of(
    head: bytes,
    encoding: str,
    wanted: Sequence[str],
    given: Mapping[str, str],
    cut: bool = False,
) -> Dialect:
    """Return how a file of separated values is written.

    Parameters
    ----------
    head : bytes
        its beginning
    encoding : str
        as `encoding_of` returns it
    wanted : Sequence[str]
        names of columns, any of which makes the first line a header
    given : Mapping[str, str]
        options of Spark's reader that somebody gave: taken as they are
    cut : bool
        whether there is more of the file: its last line may be half a row
    """
    encoding = given.get("encoding", given.get("charset", encoding))
    text = _decoded(head, encoding)
    options = {"encoding": encoding, "ignoreLeadingWhiteSpace": "true",
               "ignoreTrailingWhiteSpace": "true"}  # fmt: skip
    if "\r" in text and "\n" not in text:
        options["lineSep"] = "\r"
    if encoding.startswith("UTF-16"):
        # line by line Spark looks for the end of a line among single bytes
        options = {**options, "multiLine": "true"}
        options.pop("lineSep", None)
    lines = [line for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n") if line]
    if cut:
        lines = lines[:-1] or lines
    remark = lines[0][0] if lines and lines[0][0] in "#%" else ""
    if remark:
        options["comment"] = remark
    comment = given.get("comment", remark)
    if comment:
        lines = [line for line in lines if not line.startswith(comment)]
    asked = given.get("sep", given.get("delimiter"))
    sep, rows = _rows("\n".join(lines), (asked,) if asked else _SEPARATORS)
    if any("\n" in value for row in rows for value in row):
        options["multiLine"] = "true"
    if '""' in text and '\\"' not in text:
        # a quote in quotes is doubled, as the standard and all spreadsheets have it
        options["escape"] = '"'
    first = [value.strip("\ufeff \t") for value in rows[0]] if rows else []
    header = given.get("header", "").lower()
    headed = header == "true" or (header != "false" and _is_header(first, wanted))
    options |= {"sep": sep, "header": str(headed).lower()}
    return Dialect(
        {**options, **given},
        tuple(first) if headed else None,
        rows[1:] if headed else rows,
        _ahead(text, rows, wanted),
    )


def _ahead(text: str, rows: Sequence[Sequence[str]], wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the lines before the first row that is as wide as most, unless they name columns."""
    ((width, count),) = Counter(map(len, rows)).most_common(1) or [(0, 0)]
    if width < _LEAST or count < _LEAST or count < len(rows) / 2:
        return ()
    known = {name.casefold() for name in wanted}
    first = next(n for n, row in enumerate(rows) if len(row) == width)
    if any(len(row) > width or known & {value.casefold() for value in row} for row in rows[:first]):
        return ()
    if any(len(row) > 1 and any(map(is_number, row)) for row in rows[:first]):
        # ratings that lack a value
        return ()
    names = first == 1 and all(rows[0]) and not any(map(is_number, rows[0]))
    if names and len(rows[0]) == width - 1:
        # names of all columns but the one of row names, as R writes it
        return ()
    lines = text.splitlines()
    start = next((n for n, line in enumerate(lines) if line and _within(rows[first], line)), 0)
    return tuple(lines[:start]) if first else ()


def _within(row: Sequence[str], line: str) -> bool:
    return all(value in line for value in row)


def _is_header(first: Sequence[str], wanted: Sequence[str]) -> bool:
    known = {name.casefold() for name in wanted}
    if any(value.casefold() in known for value in first):
        return True
    return not any(map(is_number, first))


def _decoded(head: bytes, encoding: str) -> str:
    # a sample may end within a character
    try:
        text = codecs.getincrementaldecoder(encoding)("replace").decode(head)
    except LookupError:
        text = head.decode("latin-1")
    return text.removeprefix("\ufeff")


def _rows(text: str, separators: Sequence[str]) -> tuple[str, list[list[str]]]:
    """Return the separator that cuts most lines into the same number of values, and the values."""
    best: tuple[bool, int, float] | None = None
    chosen, found = separators[-1], [[line] for line in text.split("\n") if line]
    for sep in separators:
        rows = [row for row in _split(text, sep) if row]
        if not rows:
            continue
        (width, count), *_ = Counter(map(len, rows)).most_common(1)
        share = count / len(rows)
        rank = (share >= _SAME and width > 1, width, share)
        if (width > 1 or len(separators) == 1) and (best is None or rank > best):
            # spaces are in titles as well: only where nothing else cuts
            if sep == " " and best is not None and best[0]:
                continue
            best, chosen, found = rank, sep, rows
    if best is None and "," in separators:
        chosen = ","
    return chosen, found


def _split(text: str, sep: str) -> Iterator[list[str]]:
    if len(sep) > 1:
        yield from ([value.strip('"') for value in line.split(sep)] for line in text.split("\n"))
        return
    try:
        yield from csv.reader(io.StringIO(text, newline=""), delimiter=sep, skipinitialspace=True)
    except csv.Error:
        # a field that never ends: what was read until then tells enough
        return
