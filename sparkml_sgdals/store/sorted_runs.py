"""Sorted runs: files of factor rows that are read by id, without a Spark job (driver).

A run holds rows of one side, sorted by key (`rows`), in files that never change once written:

    NNN-token-users.rows    the rows, all of one width
    NNN-token-users.keys    their keys alone, which are held in memory: 8 bytes an id
    NNN-token-users.names   string ids, one after the other

A model is a list of runs, oldest first; of rows of one id the newest counts. Each row carries a
checksum, looked at whenever it is read; keys have one for the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.errors import DamagedError, GoneError, StorageError
from sparkml_sgdals.store.objects import ObjectStore, bad_file
from sparkml_sgdals.store.packed_rows import Packed, RowShape, drop_older, search_keys

__all__ = ["Run", "RunWriter", "merge_runs", "merged_rows", "stack_size"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

_CHUNK: Final = 16_384
_MERGED: Final = 131_072
"""Rows that a merge holds at once, of all its sources together."""
_REMOTE_READS: Final = 32
_REMOTE_GAP: Final = 8_192
"""Bytes between two rows up to which one request to an object store reads both."""
_REMOTE_SPAN: Final = 4 << 20
"""Bytes that one request reads at most, unless a row alone has more."""


class Source(Protocol):
    """Sorted rows, read in parts."""

    @property
    def keys(self) -> U64: ...

    def part(self, first: int, last: int) -> Packed: ...


class Run:
    """A run that was written, opened to read.

    Parameters
    ----------
    entry : dict[str, Any]
        what `RunWriter.entry` gave

    Raises
    ------
    StorageError
        a file is missing or damaged; also when rows are read
    """

    def __init__(self, store: ObjectStore, shape: RowShape, entry: dict[str, Any]) -> None:
        self.entry = entry
        self.shape = shape
        self._store = store
        if shape.kind == "str" and "names" not in entry:
            raise self._damaged("rows")
        payload = store.read(entry["keys"]["name"])
        if payload is None or hashlib.sha256(payload).hexdigest() != entry["keys"]["sha256"]:
            raise self._damaged("keys", missing=payload is None)
        self._keys = _keys_of(payload)
        self._first = 0
        self._rows = self._open("rows")
        self._names = self._open("names") if shape.kind == "str" else None

    @classmethod
    def within(
        cls, store: ObjectStore, shape: RowShape, entry: dict[str, Any], low: int, high: int | None
    ) -> Run:
        """Open the rows of a run whose keys are from `low` to before `high`, and no others.

        Where they lie is looked up in the rows themselves, whose checksums tell if it is so.

        Parameters
        ----------
        store : ObjectStore
            the model path
        shape : RowShape
            of the rows
        entry : dict[str, Any]
            what `RunWriter.entry` gave
        low : int
            the first key
        high : int | None
            the key after the last one; None for no end

        Raises
        ------
        StorageError
            a file is missing or damaged; also when rows are read
        """
        run = cls.__new__(cls)
        run.entry, run.shape, run._store = entry, shape, store
        run._rows = run._open("rows")
        run._names = run._open("names") if shape.kind == "str" else None
        run._first = run._place(low)
        last = entry["count"] if high is None else run._place(high)
        with store.reading(entry["keys"]["name"]), run._open("keys") as keys:
            payload = bytes(keys.read_at(8 * (last - run._first), 8 * run._first))
        run._keys = _keys_of(payload)
        if last < run._first or run._keys.size != last - run._first:
            raise run._damaged("keys")
        return run

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self._keys.size)

    @property
    def keys(self) -> U64:
        """uint64, shape (n,), rising."""
        return self._keys

    def find(self, ids: pa.Array) -> tuple[I64, Packed]:
        """Which of the distinct `ids` are in the run, as positions in `ids`, and their rows."""
        wanted = search_keys(ids)
        places = np.searchsorted(self._keys, wanted)
        candidates = self._matching(np.arange(wanted.size), places, wanted)
        if self.shape.kind == "int" or not candidates.size:
            return candidates, self._at(places[candidates])
        found: list[I64] = []
        rows: list[Packed] = []
        names = ids.cast(pa.large_binary())
        while candidates.size:
            read = self._at(places[candidates])
            same = pa.compute.equal(read.names, names.take(pa.array(candidates)))
            hit = same.to_numpy(zero_copy_only=False)
            found.append(candidates[hit])
            rows.append(read.take(hit))
            # another name of the same hash: its neighbour may be the one
            others = candidates[~hit]
            places[others] += 1
            candidates = self._matching(others, places, wanted)
        return np.concatenate(found), Packed.together(rows)

    def part(self, first: int, last: int) -> Packed:
        """Rows from `first` to before `last`."""
        width = 8 * self.shape.width
        payload = self._read("rows", (last - first) * width, (self._first + first) * width)
        words = self._words(payload, last - first)
        names = None
        if self._names is not None:
            starts, sizes = self._name_places(words)
            begin = int(starts[0]) if starts.size else 0
            data = self._read("names", int(sizes.sum()), begin)
            offsets = np.append(starts, starts[-1:] + sizes[-1:]) - begin
            if starts.size and np.array_equal(offsets[1:], offsets[:-1] + sizes):
                names = _binary(offsets, data)
            elif starts.size:
                raise self._damaged("rows")
            else:
                names = pa.array([], pa.large_binary())
        return self._checked(words, names, self._keys[first:last])

    def parts(self) -> Iterator[Packed]:
        """All rows, some thousands at a time."""
        for first in range(0, len(self), _CHUNK):
            yield self.part(first, min(first + _CHUNK, len(self)))

    def close(self) -> None:
        """Close its files."""
        self._rows.close()
        if self._names is not None:
            self._names.close()

    def _place(self, key: int) -> int:
        """Return how many rows have a key below this one."""
        low, high = 0, self.entry["count"]
        while low < high:
            middle = (low + high) // 2
            if self._key_at(middle) < key:
                low = middle + 1
            else:
                high = middle
        for place, below in ((low - 1, True), (low, False)):
            if 0 <= place < self.entry["count"]:
                width = 8 * self.shape.width
                words = self._words(self._read("rows", width, place * width), 1)
                row = Packed(self.shape, words, None)
                if not row.whole(self.entry.get("salt", 0)) or (int(words[0, 0]) < key) != below:
                    raise self._damaged("rows")
        return low

    def _key_at(self, place: int) -> int:
        return int.from_bytes(self._read("rows", 8, place * 8 * self.shape.width), "little")

    def _matching(self, candidates: I64, places: I64, wanted: U64) -> I64:
        inside = candidates[places[candidates] < self._keys.size]
        found: I64 = inside[self._keys[places[inside]] == wanted[inside]]
        return found

    def _at(self, places: I64) -> Packed:
        """Rows at any places, in that order."""
        width = 8 * self.shape.width
        starts = (self._first + places) * width
        words = self._words(self._gather("rows", starts, width), places.size)
        names = None
        if self._names is not None:
            starts, sizes = self._name_places(words)
            offsets = np.zeros(sizes.size + 1, np.int64)
            np.cumsum(sizes, out=offsets[1:])
            names = _binary(offsets, self._gather("names", starts, sizes))
        return self._checked(words, names, self._keys[places])

    def _gather(self, part: str, starts: I64, sizes: I64 | int) -> bytes:
        """Parts of a file, joined in the order that they were asked for."""
        lengths = np.broadcast_to(sizes, starts.shape)
        if self._store.local:
            asked = zip(lengths.tolist(), starts.tolist(), strict=True)
            return b"".join([self._read(part, *place) for place in asked])
        if not starts.size:
            return b""
        order = np.argsort(starts, kind="stable")
        begins, ends = starts[order], np.maximum.accumulate((starts + lengths)[order])
        spans = _spans(begins, ends)
        found: list[bytes] = [b""] * starts.size
        with ThreadPoolExecutor(_REMOTE_READS) as pool:
            # wave by wave, so that few blocks are held at once
            for first in range(0, len(spans), _REMOTE_READS):
                wave = spans[first : first + _REMOTE_READS]
                places = [(int(ends[b - 1] - begins[a]), int(begins[a])) for a, b in wave]
                blocks = pool.map(lambda span: self._read(part, *span), places)
                for (a, b), (_, base), block in zip(wave, places, blocks, strict=True):
                    for place in order[a:b]:
                        start = int(starts[place]) - base
                        found[place] = block[start : start + int(lengths[place])]
        return b"".join(found)

    def _words(self, payload: bytes, rows: int) -> U64:
        if len(payload) != 8 * rows * self.shape.width:
            raise self._damaged("rows")
        # a copy, as Numba would compile its kernels a second time for what is read-only
        return np.frombuffer(payload, np.uint64).reshape(rows, self.shape.width).copy()

    def _name_places(self, words: U64) -> tuple[I64, I64]:
        starts = words[:, self.shape.check + 1].astype(np.int64)
        sizes = words[:, self.shape.check + 2].astype(np.int64)
        last = int((starts + sizes).max()) if starts.size else 0
        if last > self.entry["names"]["bytes"] or (starts < 0).any() or (sizes < 0).any():
            raise self._damaged("rows")
        return starts, sizes

    def _checked(self, words: U64, names: pa.Array | None, keys: U64) -> Packed:
        packed = Packed(self.shape, words, names)
        try:
            whole = np.array_equal(packed.keys, keys) and packed.whole(self.entry.get("salt", 0))
        except pa.ArrowInvalid:
            # names that are no text
            whole = False
        if not whole:
            raise self._damaged("rows")
        return packed

    def _open(self, part: str) -> pa.NativeFile:
        name = self.entry[part]["name"]
        with self._store.reading(name):
            return self._store.fs.open_input_file(f"{self._store.root}/{name}")

    def _read(self, part: str, size: int, start: int) -> bytes:
        file: Any = self._rows if part == "rows" else self._names
        with self._store.reading(self.entry[part]["name"]):
            found = bytes(file.read_at(size, start))
        if len(found) != size:
            raise self._damaged(part)
        return found

    def _damaged(self, part: str, missing: bool = False) -> StorageError:
        kind = GoneError if missing else DamagedError
        return kind(bad_file(self._store.path, self.entry[part]["name"], missing))


class RunWriter:
    """Writes a run, part by part; a context that closes the files.

    Nobody knows the run before a commit names its `entry`.

    Parameters
    ----------
    store : ObjectStore
        the model path to write to
    shape : RowShape
        of the rows to come
    name : str
        what the files' names start with, folder included

    Raises
    ------
    StorageError
        the storage is full or may not be written
    """

    def __init__(self, store: ObjectStore, shape: RowShape, name: str) -> None:
        self._store, self._shape = store, shape
        self._count = 0
        # rows of another run, however like, do not fit where these are put
        self._salt = uuid.uuid4().int >> 66
        ends = ("rows", "keys", "names") if shape.kind == "str" else ("rows", "keys")
        self._files = {end: _Output(store, f"{name}.{end}") for end in ends}

    def add(self, packed: Packed) -> None:
        """Append rows, whose keys are not less than those before."""
        words = packed.sealed(self._salt).words
        if packed.names is not None:
            names = pa.concat_arrays([packed.names])
            sizes = pa.compute.binary_length(names).to_numpy(zero_copy_only=False)
            place = self._shape.check + 1
            before = self._files["names"].size
            words[:, place] = before + np.cumsum(sizes) - sizes
            words[:, place + 1] = sizes
            self._files["names"].write(b"".join(names.to_pylist()))
        self._files["rows"].write(words.tobytes())
        self._files["keys"].write(packed.keys.tobytes())
        self._count += len(packed)

    def __enter__(self) -> RunWriter:
        """Return the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the files; delete them where the body failed."""
        for file in self._files.values():
            file.close(failure is None)

    def entry(self) -> dict[str, Any]:
        """Return the run as JSON types: rows, salt, and each file's name, bytes and checksum."""
        files = {end: file.described() for end, file in self._files.items()}
        return {"count": self._count, "salt": self._salt, **files}


class _Output:
    """One file, written in parts, synced on a local disk."""

    def __init__(self, store: ObjectStore, name: str) -> None:
        self.name, self.size = name, 0
        self._store = store
        self._hash = hashlib.sha256()
        target = f"{store.root}/{name}"
        self._file: IO[bytes] | Any
        with store.explaining(name):
            if store.local:
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                self._file = open(target, "wb")  # noqa: SIM115
            else:
                self._file = store.fs.open_output_stream(target)

    def write(self, payload: bytes) -> None:
        with self._store.explaining(self.name):
            self._file.write(payload)
        self._hash.update(payload)
        self.size += len(payload)

    def close(self, whole: bool) -> None:
        if not whole:
            # what there is of it is of no use, and takes room that may be short
            with contextlib.suppress(OSError):
                self._file.close()
            self._store.delete(self.name)
            return
        with self._store.explaining(self.name), self._file:
            if self._store.local:
                self._file.flush()
                os.fsync(self._file.fileno())

    def described(self) -> dict[str, Any]:
        return {"name": self.name, "bytes": self.size, "sha256": self._hash.hexdigest()}


def merge_runs(
    sources: Sequence[Source],
    writer: RunWriter,
    without: pa.Array | None = None,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Merge sorted rows into one run, a few thousand rows of each source at a time.

    Parameters
    ----------
    sources : Sequence[Source]
        oldest first; of rows of one id the newest is kept
    writer : RunWriter
        where the rows go; it is not closed
    without : pa.Array | None
        ids that are left out
    check : Callable[[], None]
        called before each part; may raise to break off
    """
    for rows in merged_rows(sources, without, check):
        writer.add(rows)


def merged_rows(
    sources: Sequence[Source],
    without: pa.Array | None = None,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Packed]:
    """Yield what `merge_runs` writes, a few thousand rows at a time."""
    keys = [source.keys for source in sources]
    places = [0] * len(sources)
    chunk = min(_CHUNK, max(_MERGED // max(len(sources), 1), 1))
    while True:
        check()
        open_ = [n for n, held in enumerate(keys) if places[n] < held.size]
        if not open_:
            return
        limit = min(keys[n][min(places[n] + chunk, keys[n].size) - 1] for n in open_)
        parts = []
        for n in open_:
            last = int(np.searchsorted(keys[n], limit, side="right"))
            if last > places[n]:
                parts.append(sources[n].part(places[n], last))
                places[n] = last
        merged = drop_older(Packed.together(parts))
        if without is not None:
            gone = pa.compute.is_in(merged.ids(), value_set=without)
            merged = merged.take(~gone.to_numpy(zero_copy_only=False))
        yield merged


def stack_size(counts: Sequence[int], new: int) -> int:
    """How many of the runs with these rows, oldest first, stay when a run of `new` rows comes.

    The others are merged with it: each run is then at least twice the next one, so there are
    few, and a row is written a number of times that grows with the logarithm of the model.
    """
    left = len(counts)
    while left and counts[left - 1] < 2 * new:
        left -= 1
        new += counts[left]
    return left


def _keys_of(payload: bytes) -> U64:
    # bytes of an empty file are no buffer to NumPy
    return np.frombuffer(payload, "<u8") if payload else np.array([], np.uint64)


def _spans(begins: I64, ends: I64) -> list[tuple[int, int]]:
    """First and last + 1 of the rows that a request reads; begins and ends rise.

    A request costs more than the bytes between two rows that lie close.
    """
    firsts = [0]
    far = (begins[1:] - ends[:-1] > _REMOTE_GAP).tolist()
    start, stops, starts = int(begins[0]), ends.tolist(), begins.tolist()
    for place, cut in enumerate(far, 1):
        if cut or stops[place] - start > _REMOTE_SPAN:
            firsts.append(place)
            start = starts[place]
    return list(zip(firsts, [*firsts[1:], begins.size], strict=True))


def _binary(offsets: I64, data: bytes) -> pa.Array:
    """Return a LargeBinaryArray over bytes; offsets from 0, shape (n + 1,)."""
    buffers = [None, pa.py_buffer(np.ascontiguousarray(offsets)), pa.py_buffer(data)]
    return pa.Array.from_buffers(pa.large_binary(), offsets.size - 1, buffers)
