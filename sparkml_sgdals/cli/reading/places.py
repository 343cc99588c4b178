"""What lies under a path that a command was given, found out before Spark starts."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import typer

from sparkml_sgdals.cli.reading.dialect import AS_LATIN, Dialect, dialect_of, encoding_of
from sparkml_sgdals.errors import StorageError
from sparkml_sgdals.store.objects import ObjectStore

__all__ = ["Place", "look"]

_FORMATS: Final = {
    ".csv": "csv", ".tsv": "csv", ".tab": "csv", ".psv": "csv", ".dat": "csv", ".data": "csv",
    ".txt": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet",
    ".pq": "parquet", ".orc": "orc",
}  # fmt: skip
_ALIKE: Final = (
    (".csv",), (".tsv",), (".psv",), (".json", ".jsonl", ".ndjson"), (".parquet", ".pq"),
    (".orc",), (".tab",), (".dat",), (".data",), (".txt",),
)  # fmt: skip
"""suffixes that one reader takes as one table"""
_SURE: Final = 6
"""so many of them say by themselves that a file is a table; others only where none of these is"""
_PACKED: Final = (".gz", ".bz2", ".zst", ".lz4", ".snappy", ".deflate")
_HEAD: Final = 1 << 18
_PIECE: Final = 1 << 22
_LINES: Final = 1000
_FILES: Final = 50
"""of a folder that are compared"""
_UNSEEN: Final = (OSError, ValueError, ImportError, StorageError, pa.ArrowException)

_ALIGNED: Final = re.compile(rb"(?m)^ +\S|\S  +\S")


@dataclass(frozen=True)
class Place:
    """A table as a path names it.

    Attributes
    ----------
    path : str
        as it was given
    kind : str
        a format of Spark's readers
    options : dict[str, str]
        of that reader
    names : tuple[str, ...] | None
        its columns, None where they are not known before Spark reads it
    headless : bool
        whether it is known to have no header: its columns go by their order
    dialect : Dialect | None
        how its text is written, where it is separated values that can be seen from here
    aside : tuple[str, ...]
        files of the folder that are not of the table
    """

    path: str
    kind: str
    options: dict[str, str] = field(default_factory=dict)
    names: tuple[str, ...] | None = None
    headless: bool = False
    dialect: Dialect | None = None
    aside: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """The path as Spark's readers take it: signs of patterns stand for themselves in a name."""
        there = os.path.exists(self.path)
        return re.sub(r"([\\*?\[\]{}])", r"\\\1", self.path) if there else self.path


def look(
    path: str,
    kind: str = "",
    given: Mapping[str, str] | None = None,
    wanted: Sequence[str] = (),
    elsewhere: bool = False,
    stream: bool = False,
) -> Place:
    """Find out what a table is.

    Parameters
    ----------
    path : str
        file, folder or URI
    kind : str
        a format of Spark's readers; empty: by the names of files, else by what is in them
    given : Mapping[str, str] | None
        options of Spark's reader that the user gave
    wanted : Sequence[str]
        names of columns that are looked for
    elsewhere : bool
        whether Spark may see a path that this machine does not
    stream : bool
        whether files are still to come: a folder may have none yet

    Raises
    ------
    FileNotFoundError
        there is no such path
    ValueError
        its files do not make one table, or no table at all
    typer.BadParameter
        an option has to say what it is
    """
    given = dict(given or {})
    try:
        store = ObjectStore(path)
        info = store.fs.get_file_info(store.root)
    except _UNSEEN:
        return Place(path, kind or _by_suffix(path) or "parquet", given)
    if info.type == pafs.FileType.NotFound:
        if any(sign in path for sign in "*?[{") or elsewhere or not store.local:
            return Place(path, kind or _by_suffix(path) or "parquet", given)
        raise FileNotFoundError(f"There is no {path}.")
    folder = info.type == pafs.FileType.Directory
    deep = given.get("recursiveFileLookup", "").lower() == "true"
    files = _files(store, deep) if folder else [info]
    below = [] if files else _files(store, True)
    if below and not stream:
        raise typer.BadParameter(
            f"{path} has its files in folders below it, such as "
            f"{below[0].path[len(store.root) :].lstrip('/')}: name one of these folders, or read "
            "all of them by --option recursiveFileLookup=true."
        )
    if not files:
        if stream and kind:
            return Place(path, kind, given)
        raise typer.BadParameter(
            f"{path} is empty: name the format of what will come by --format."
            if stream
            else f"{path} is empty: there is no table in it."
        )
    files, aside, pattern = _chosen(path, files, kind) if folder else (files, (), "")
    kind = kind or _by_suffix(files[0].path) or _by_content(store, files[0])
    options = {"pathGlobFilter": pattern} if pattern and (aside or stream) else {}
    if kind == "csv":
        return _separated(store, path, files, wanted, options, given, aside)
    if kind == "parquet":
        return Place(path, kind, options | given, _parquet_names(store, files[0]), aside=aside)
    if kind == "json":
        options |= _json_options(store, path, files)
        options |= given
        return Place(path, kind, options, dialect=_json_sample(store, files[0]), aside=aside)
    return Place(path, kind, options | given, aside=aside)


def _separated(
    store: ObjectStore,
    path: str,
    files: Sequence[pafs.FileInfo],
    wanted: Sequence[str],
    options: dict[str, str],
    given: Mapping[str, str],
    aside: tuple[str, ...],
) -> Place:
    first: Dialect | None = None
    several = {"pathGlobFilter", "recursiveFileLookup"} & set(given)
    for file in files[: 1 if several else _FILES]:
        head = _head(store, file)
        encoding = _encoding(store, file, head)
        _refuse_encoding(_name(file), head, encoding, given)
        found = dialect_of(head, encoding, wanted, given, len(head) == _HEAD)
        if found.options["sep"] == " " and _ALIGNED.search(head):
            raise ValueError(
                f"{_name(file)} has several blanks between values: write one separator, by "
                f"sed 's/^ *//; s/  */,/g' {shlex.quote(_name(file))}."
            )
        if found.ahead:
            raise ValueError(
                f"{_name(file)} begins with {found.ahead[0]!r}, which is no row of its table: "
                f"that begins in line {len(found.ahead) + 1}. Take what is before it away, by "
                f"tail -n +{len(found.ahead) + 1} {shlex.quote(_name(file))}."
            )
        if first is None:
            first = found
            continue
        if found.rows and first.rows and found.options["sep"] != first.options["sep"]:
            raise ValueError(
                f"The files of {path} are written in several ways: {_name(files[0])} is separated "
                f"by {first.options['sep']!r}, {_name(file)} by {found.options['sep']!r}. Name one "
                "of them, or write them alike."
            )
        apart = found.names != first.names or found.width != first.width
        if found.rows and first.rows and apart:
            raise ValueError(
                f"The files of {path} are not one table: {_name(files[0])} has "
                f"{_shown(first)}, {_name(file)} has {_shown(found)}. Name one of them."
            )
        together = _together(path, files[0], first.options["encoding"], file,
                             found.options["encoding"])  # fmt: skip
        first = Dialect(first.options | {"encoding": together}, first.names, first.rows)
    if first is None or not (first.names or first.rows):
        raise ValueError(f"{path} has no rows.")
    return Place(
        path, "csv", options | first.options, first.names, first.names is None, first, aside
    )


def _refuse_encoding(name: str, head: bytes, encoding: str, given: Mapping[str, str]) -> None:
    """Raise ValueError for text of two bytes a character without a mark, or of four."""
    if {"encoding", "charset"} & set(given):
        return
    other = encoding if encoding == "UTF-32" else ""
    if not other and not encoding.startswith("UTF-16") and head.count(0) > len(head) / 4:
        other = "UTF-16LE" if head[1::2].count(0) > head[::2].count(0) else "UTF-16BE"
    if other:
        raise ValueError(
            f"{name} is text in {other}: write it as UTF-8, by iconv -f {other} -t UTF-8 "
            f"{shlex.quote(name)}."
        )


def _together(
    path: str, one: pafs.FileInfo, encoding: str, other: pafs.FileInfo, another: str
) -> str:
    """Return the encoding to read both files of a table by.

    Latin-1 keeps all bytes, so that each value can be read as what it is; raises ValueError where
    one of them is neither that nor UTF-8.
    """
    if encoding == another:
        return encoding
    if {encoding, another} <= {"UTF-8", AS_LATIN}:
        return AS_LATIN
    raise ValueError(
        f"The files of {path} have several encodings: {_name(one)} is {encoding}, {_name(other)} "
        f"is {another}. Write them all as UTF-8, such as by iconv -f {another} -t UTF-8."
    )


def _shown(dialect: Dialect) -> str:
    if dialect.names is None:
        return f"{dialect.width} columns without names"
    return "the columns " + ", ".join(map(repr, dialect.names))


def _name(file: pafs.FileInfo) -> str:
    return str(file.base_name)


def _files(store: ObjectStore, deep: bool = False) -> list[pafs.FileInfo]:
    """Files below a folder that Spark would read, in the order of their names.

    `deep`: also in folders that are no partitions, as Spark's recursiveFileLookup has it.
    """
    selector = pafs.FileSelector(store.root, recursive=True)
    found = []
    for info in store.fs.get_file_info(selector):
        inner = info.path[len(store.root) :].lstrip("/").split("/")
        hidden = any(part.startswith((".", "_")) and "=" not in part for part in inner)
        partitioned = deep or all("=" in part for part in inner[:-1])
        if info.type == pafs.FileType.File and not hidden and partitioned:
            found.append(info)
    return sorted(found, key=lambda info: str(info.path))


def _suffix(path: str) -> str:
    """Return the last part of a name that says what is in the file, in small letters, or ''."""
    name = path.rsplit("/", 1)[-1].lower()
    parts = ["." + part for part in name.split(".")[1:]]
    # what Spark writes may be called part-00000.snappy.parquet or .csv.gz
    while parts and parts[-1] in _PACKED:
        parts.pop()
    return parts[-1] if parts else ""


def _by_suffix(path: str) -> str:
    return _FORMATS.get(_suffix(path), "")


def _chosen(
    path: str, files: Sequence[pafs.FileInfo], kind: str
) -> tuple[list[pafs.FileInfo], tuple[str, ...], str]:
    """Return the files of a folder that make its table, names of the others, and a pattern."""
    groups = {}
    for alike in _ALIKE:
        if kind and _FORMATS[alike[0]] != kind:
            continue
        own = [file for file in files if _suffix(file.path) in alike]
        if own:
            groups[alike] = own
    sure = {alike: own for alike, own in groups.items() if alike in _ALIKE[:_SURE]}
    groups = sure or groups
    if len(groups) > 1:
        kinds = " and ".join(" or ".join(alike) for alike in groups)
        raise typer.BadParameter(
            f"{path} holds files of several kinds, {kinds}: choose by --format, or by "
            f"--option 'pathGlobFilter=*{next(iter(groups))[0]}'."
        )
    if not groups:
        return list(files), (), ""
    ((alike, own),) = groups.items()
    names = {_name(file) for file in own}
    aside = tuple(sorted({_name(file) for file in files} - names))
    # as they are written here, too: a pattern heeds capitals
    seen = {name[name.lower().rindex(_suffix(name)) :].split(".")[1] for name in names}
    ends = sorted({one[1:] for one in alike} | seen)
    every = [end + packed for end in ends for packed in ("", *_PACKED)]
    return own, aside, "*.{" + ",".join(every) + "}"


def _pieces(store: ObjectStore, file: pafs.FileInfo) -> Iterator[bytes]:
    """Yield what is in a file, unpacked, piece by piece."""
    try:
        with store.fs.open_input_stream(file.path, compression="detect") as stream:
            while piece := bytes(stream.read(_PIECE)):
                yield piece
    except pa.ArrowException:
        # a codec that pyarrow does not unpack: nothing can be told of it
        return


def _head(store: ObjectStore, file: pafs.FileInfo) -> bytes:
    return b"".join(itertools.islice(_pieces(store, file), 1))[:_HEAD]


def _encoding(store: ObjectStore, file: pafs.FileInfo, head: bytes) -> str:
    # an odd byte may come late in a file: one nearby is read to its end
    if store.local:
        return encoding_of(_pieces(store, file))
    return encoding_of([head], len(head) == _HEAD)


def _by_content(store: ObjectStore, file: pafs.FileInfo) -> str:
    head = _head(store, file)
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"ORC"):
        return "orc"
    if head.startswith(b"PK\x03\x04"):
        raise ValueError(
            f"{_name(file)} is an archive or a spreadsheet: unpack it, or save it as CSV."
        )
    if b"\x00" in head[:4096] and not head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise typer.BadParameter(f"What {_name(file)} is cannot be told: name it by --format.")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return "json" if text[:1] in (b"{", b"[") else "csv"


def _parquet_names(store: ObjectStore, file: pafs.FileInfo) -> tuple[str, ...] | None:
    """Names of the columns of a Parquet file, and of those in the names of its folders."""
    try:
        with store.fs.open_input_file(file.path) as opened:
            names = tuple(pq.read_schema(opened).names)
    except _UNSEEN:
        return None
    inner = file.path[len(store.root) :].split("/")[:-1]
    return names + tuple(part.partition("=")[0] for part in inner if "=" in part)


def _json_options(store: ObjectStore, path: str, files: Sequence[pafs.FileInfo]) -> dict[str, str]:
    file = files[0]
    head = _head(store, file)
    encoding = _encoding(store, file, head)
    for other in files[1:_FILES]:
        found = _encoding(store, other, _head(store, other))
        encoding = _together(path, file, encoding, other, found)
    if encoding == "UTF-16":
        raise ValueError(
            f"{_name(file)} is JSON in UTF-16, which Spark cannot read: write it as UTF-8, "
            "by iconv -f UTF-16 -t UTF-8."
        )
    options = {} if encoding == "UTF-8" else {"encoding": encoding, "lineSep": "\n"}
    text = head.removeprefix(b"\xef\xbb\xbf").decode(
        "utf-8" if encoding == "UTF-8" else "latin-1", "replace"
    )
    _refuse_one_object(_name(file), text)
    if b"\r" in head and b"\n" not in head:
        options |= {"encoding": encoding, "lineSep": "\r"}
    elif text.lstrip().startswith("[") or _over_lines(text):
        options = {"multiLine": "true"} | ({} if encoding == "UTF-8" else {"encoding": encoding})
    return options


def _refuse_one_object(name: str, text: str) -> None:
    """Raise ValueError where one JSON object holds a table, by columns or under a name."""
    begins = re.match(r'\s*\{\s*"((?:[^"\\]|\\.)*)"\s*:\s*[\[{]', text)
    lines = text.strip().split("\n", 1)
    if begins is None or (len(lines) > 1 and not _over_lines(text)):
        return
    first = begins[1]
    try:
        held = json.loads(text)
    except ValueError:
        # more than a sample is one object
        held = None
    if held is not None and not all(isinstance(value, (dict, list)) for value in held.values()):
        return
    rows = held is not None and isinstance(held[first], list) and len(held) == 1
    rows = rows or re.match(r"\s*\[\s*\{", text[begins.end() - 1 :]) is not None
    read = f"pandas.DataFrame(json.load(open({name!r}))[{first!r}])"
    raise ValueError(
        f"{name} is one JSON object, of {first!r}, not one a row: write a row a line, such as by "
        f"{read if rows else f'pandas.read_json({name!r})'}.to_json('rows.jsonl', "
        "orient='records', lines=True)."
    )


def _json_sample(store: ObjectStore, file: pafs.FileInfo) -> Dialect | None:
    """Return the fields and values of the first lines; None where lines are no objects."""
    rows = []
    for line in _head(store, file).removeprefix(b"\xef\xbb\xbf").splitlines()[:_LINES]:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    if not rows:
        return None
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    told = [["" if row.get(name) is None else str(row[name]) for name in names] for row in rows]
    return Dialect({}, names, told)


def _over_lines(text: str) -> bool:
    """Whether one JSON value stands on several lines."""
    first = text.lstrip().split("\n", 1)[0]
    if len(first) == len(text):
        return False
    try:
        json.loads(first)
    except ValueError:
        return True
    return False
