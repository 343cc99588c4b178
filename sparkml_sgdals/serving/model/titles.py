"""Titles and genres of items, read from a file, the search for titles, and how they are said."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq

from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.serving.model.ids import Key, key_of

__all__ = ["Titles", "read_file", "spoken"]

_ID_NAMES: Final = ("movieid", "itemid", "item", "id")
_TITLE_NAMES: Final = ("title", "name")
_GENRE_NAMES: Final = ("genres", "genre", "categories", "category")
_NO_GENRES: Final = "(no genres listed)"
_MOST_GENRES: Final = 8
_YEAR: Final = re.compile(r"\s*\(\d{4}(?:[-\u2013]\d{0,4})?\)$")
_ALSO: Final = re.compile(r"\s*\([^()]*\)$")
_ARTICLE: Final = re.compile(
    r"(.+), (The|A|An|Le|La|Les|L'|Il|Lo|I|Gli|El|Los|Las|Der|Die|Das|Ein|Eine|Un|Une|Una|O|Os|As|"
    r"Um|Uma|De|Het|Den|Det|En|Ett)"
)


class Titles:
    """Titles by item id; empty by default, so that an item is known by its id alone.

    Parameters
    ----------
    kind : IdKind
        of the items' ids
    pairs : list[tuple[Key, str]] | None
        ids and titles
    genres : list[list[str]] | None
        of each of `pairs`
    """

    def __init__(
        self,
        kind: IdKind = "int",
        pairs: list[tuple[Key, str]] | None = None,
        genres: list[list[str]] | None = None,
    ) -> None:
        self._by_id: dict[Key, str] = {}
        self._genres: dict[Key, list[str]] = {}
        for n, (given, title) in enumerate(pairs or []):
            key = key_of(given, kind)
            if key is not None:
                self._by_id[key] = title
                if genres is not None and genres[n]:
                    self._genres[key] = genres[n]
        self._keys = list(self._by_id)
        self._folded = pa.array([fold(title) for title in self._by_id.values()], pa.string())

    def __len__(self) -> int:
        """Return how many items have a title."""
        return len(self._keys)

    def of(self, item: Key) -> str | None:
        """Return the title of an item, None where there is none."""
        return self._by_id.get(item)

    def add(self, titles: Mapping[Key, str]) -> None:
        """Know the titles of items that were posted."""
        if not titles:
            return
        self._by_id.update(titles)
        folded = dict(zip(self._keys, self._folded.to_pylist(), strict=True))
        folded.update({key: fold(title) for key, title in titles.items()})
        # a search in another thread goes by the texts: a key more is not found yet
        self._keys = list(folded)
        self._folded = pa.array(list(folded.values()), pa.string())

    def genres_of(self, item: Key) -> list[str]:
        """Return the genres of an item, none where none are known."""
        return self._genres.get(item, [])

    def search(self, query: str) -> list[Key]:
        """Items whose titles hold every word of a query, whatever case and accents."""
        words = fold(query).split()
        if not words or not self._keys:
            return []
        held = pc.match_substring(self._folded, words[0])
        for word in words[1:]:
            held = pc.and_(held, pc.match_substring(self._folded, word))
        return [self._keys[n] for n in pc.indices_nonzero(held).to_pylist()]

    @classmethod
    def read(cls, path: str, kind: IdKind) -> Titles:
        """Titles of a CSV, JSON-lines or Parquet file with columns of ids and titles.

        A column of genres beside them is read too: lists, or texts with | between genres.

        Raises ValueError where such columns cannot be told.
        """
        table = read_file(path)
        names = {name.casefold(): name for name in table.column_names}
        id_name = next((names[n] for n in _ID_NAMES if n in names), None)
        title = next((names[n] for n in _TITLE_NAMES if n in names), None)
        if id_name is None or title is None:
            raise ValueError(
                f"{path} has the columns {', '.join(table.column_names)}: name that of ids one of "
                f"{', '.join(_ID_NAMES)}, and that of titles one of {', '.join(_TITLE_NAMES)}."
            )
        genre = next((names[n] for n in _GENRE_NAMES if n in names), None)
        ids, texts = table.column(id_name).to_pylist(), table.column(title).to_pylist()
        told = [None] * len(ids) if genre is None else table.column(genre).to_pylist()
        rows = [
            (one if isinstance(one, int) else str(one), str(text), _genres(those))
            for one, text, those in zip(ids, texts, told, strict=True)
            if one is not None and text is not None
        ]
        return cls(kind, [row[:2] for row in rows], [row[2] for row in rows])


def _genres(told: object) -> list[str]:
    """Return the genres that a cell names."""
    if told is None or told == _NO_GENRES:
        return []
    parts = told if isinstance(told, list) else str(told).split("|")
    return [str(part).strip() for part in parts if part is not None and str(part).strip()][
        :_MOST_GENRES
    ]


def spoken(title: str) -> str:
    """Return a title as it is said: `Matrix, The (1999)` is The Matrix."""
    name = _YEAR.sub("", title.strip())
    while (shorter := _ALSO.sub("", name)) != name:
        name = shorter
    turned = _ARTICLE.fullmatch(name)
    if turned:
        name = turned[2] + ("" if turned[2].endswith("'") else " ") + turned[1]
    return name or title


def fold(text: str) -> str:
    """Return a text without case and accents."""
    apart = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in apart if not unicodedata.combining(letter))


def read_file(path: str) -> pa.Table:
    """Read a table from a file whose name ends in .csv, .json, .jsonl or .parquet.

    Raises ValueError for other names, and where the file cannot be read as what it is called.
    """
    ending = Path(path).suffix.casefold()
    readers = {
        ".csv": pacsv.read_csv, ".json": pajson.read_json, ".jsonl": pajson.read_json,
        ".parquet": pq.read_table,
    }  # fmt: skip
    if ending not in readers:
        raise ValueError(f"{path} must be a file .csv, .json, .jsonl or .parquet.")
    try:
        table: pa.Table = readers[ending](path)
    except pa.ArrowInvalid as failure:
        raise ValueError(f"{path} cannot be read: {failure}") from failure
    return table
