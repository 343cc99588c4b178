"""MovieLens in any of its releases, from a folder or from its site, as two Parquet files.

The ratings are the University of Minnesota's: the README in each archive says what they may be
used for.
"""

from __future__ import annotations

import hashlib
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

__all__ = ["CHECKSUMS", "SITE", "Written", "convert", "download"]

SITE: Final = "https://files.grouplens.org/datasets/movielens"

CHECKSUMS: Final[dict[str, str | None]] = {
    "ml-100k": "0e33842e24a9c977be4e0107933c0723",
    "ml-1m": "c4d9eecfca2ab87c1945afe126590906",
    "ml-10m": "ce571fd55effeba0271552578f2648bd",
    "ml-20m": "cd245b17a1ae2cc31bb14903e1204af3",
    "ml-25m": "6b51fb2759a8657d3bfcbfc42b592ada",
    "ml-32m": "d472be332d4daa821edc399621853b57",
    "ml-latest-small": None,
    "ml-latest": None,
}
"""MD5 of each archive as its site publishes it; None: it changes, and is asked for there."""

_RATINGS: Final = ("userId", "movieId", "rating", "timestamp")
_SCHEMA: Final = pa.schema(
    [("userId", pa.int64()), ("movieId", pa.int64()), ("rating", pa.float64()),
     ("timestamp", pa.int64())]
)  # fmt: skip
_CHUNK: Final = 1 << 20
_SECONDS: Final = 30.0


@dataclass(frozen=True)
class Written:
    """What a conversion wrote; movies is 0 where there are no titles."""

    ratings: int
    users: int
    items: int
    movies: int
    files: tuple[str, ...]


def download(
    name: str,
    folder: Path,
    site: str = SITE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Fetch a release, compare its checksum and unpack it under `folder`.

    Parameters
    ----------
    name : str
        one of CHECKSUMS
    folder : Path
        where to unpack; made where it is not there
    site : str
        address of the folder that holds the release's archive and its .md5 file
    progress : Callable[[int, int], None]
        called with bytes done and bytes in all (0: not known)

    Returns
    -------
    folder that was unpacked

    Raises
    ------
    ValueError
        not a known name, or the checksum is another
    OSError
        no answer, or not enough room
    """
    if name not in CHECKSUMS:
        raise ValueError(f"There is no MovieLens {name!r}: choose of {', '.join(CHECKSUMS)}.")
    address = f"{site}/{name}.zip"
    with tempfile.TemporaryDirectory(prefix="movielens-") as scratch:
        archive = Path(scratch, f"{name}.zip")
        digest = hashlib.md5(usedforsecurity=False)
        try:
            expected = CHECKSUMS[name] or _published(f"{address}.md5")
            with urllib.request.urlopen(address, timeout=_SECONDS) as answer:
                total, done = int(answer.headers.get("Content-Length") or 0), 0
                with archive.open("wb") as file:
                    while block := answer.read(_CHUNK):
                        file.write(block)
                        digest.update(block)
                        done += len(block)
                        progress(done, total)
        except urllib.error.URLError as failure:
            reason = getattr(failure, "reason", failure)
            raise OSError(
                f"{address} could not be fetched ({reason}). Fetch it by other means, unpack it, "
                "and name the folder."
            ) from failure
        if digest.hexdigest() != expected:
            raise ValueError(
                f"{address} has the checksum {digest.hexdigest()}, not {expected}: try again."
            )
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
    return folder


def convert(source: Path, out: Path) -> Written:
    """Write ratings.parquet (and movies.parquet) of the release unpacked in `source` to `out`.

    ratings: userId, movieId (int64), rating (float64, stars), timestamp (int64, seconds);
    movies: movieId, title, genres.

    Raises FileNotFoundError where `source` holds no ratings of a known form.
    """
    table = _read_ratings(source)
    movies = _read_movies(source)
    out.mkdir(parents=True, exist_ok=True)
    files = [out / "ratings.parquet"]
    pq.write_table(table, files[0])
    if movies is not None:
        files.append(out / "movies.parquet")
        pq.write_table(pa.Table.from_pandas(movies, preserve_index=False), files[1])
    return Written(
        ratings=table.num_rows,
        users=len(table.column("userId").unique()),
        items=len(table.column("movieId").unique()),
        movies=0 if movies is None else len(movies),
        files=tuple(map(str, files)),
    )


def _published(address: str) -> str:
    """Return the checksum in an .md5 file of the site: "MD5 (name) = sum" or "sum  name"."""
    with urllib.request.urlopen(address, timeout=_SECONDS) as answer:
        words = answer.read(1000).decode("ascii", "replace").replace("=", " ").split()
    for word in words:
        if len(word) == 32 and set(word.lower()) <= set("0123456789abcdef"):
            return str(word.lower())
    raise ValueError(f"{address} holds no checksum.")


def _find(source: Path, name: str) -> Path | None:
    """Return the file in the folder, or in the only folder within it that has one."""
    found = [source / name] if (source / name).is_file() else sorted(source.glob(f"*/{name}"))
    return found[0] if len(found) == 1 else None


def _read_ratings(source: Path) -> pa.Table:
    for name, separator, header in (
        ("ratings.csv", ",", True),
        # "::" is two single ones with nothing between: no field of this file holds one
        ("ratings.dat", ":", False),
        ("u.data", "\t", False),
    ):
        file = _find(source, name)
        if file is None:
            continue
        columns = list(_RATINGS)
        if separator == ":":
            columns = [c for name in _RATINGS for c in (name, f"no {name}")][:-1]
        table = pa_csv.read_csv(
            file,
            read_options=pa_csv.ReadOptions(column_names=None if header else columns),
            parse_options=pa_csv.ParseOptions(delimiter=separator),
            convert_options=pa_csv.ConvertOptions(
                include_columns=list(_RATINGS), column_types={f.name: f.type for f in _SCHEMA}
            ),
        )
        return table.cast(_SCHEMA)
    raise FileNotFoundError(
        f"{source} holds no ratings.csv, ratings.dat or u.data: name the folder that a MovieLens "
        "archive was unpacked to."
    )


def _read_movies(source: Path) -> pd.DataFrame | None:
    names = ["movieId", "title", "genres"]
    if file := _find(source, "movies.csv"):
        return pd.read_csv(file, usecols=names)[names]
    if file := _find(source, "movies.dat"):
        # ml-1m is Latin-1, ml-10m UTF-8
        raw = file.read_bytes()
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            text = raw.decode("latin-1")
        rows = [line.split("::") for line in _lines(text)]
        return pd.DataFrame(rows, columns=names).astype({"movieId": "int64"})
    if file := _find(source, "u.item"):
        genres = _genres(source)
        titles: list[tuple[int, str, str]] = []
        for line in _lines(file.read_text(encoding="latin-1")):
            fields = line.split("|")
            flags = zip(genres, fields[5:], strict=False)
            kinds = "|".join(genre for genre, on in flags if on == "1")
            titles.append((int(fields[0]), fields[1], kinds))
        return pd.DataFrame(titles, columns=names)
    return None


def _genres(source: Path) -> list[str]:
    file = _find(source, "u.genre")
    if file is None:
        return []
    lines = _lines(file.read_text(encoding="latin-1"))
    return [line.split("|")[0] for line in lines if "|" in line]


def _lines(text: str) -> list[str]:
    # a title may hold what splitlines takes for the end of a line, as byte 85 of Latin-1
    return [line for line in text.replace("\r\n", "\n").split("\n") if line]
