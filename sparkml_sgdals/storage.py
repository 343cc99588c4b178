"""Versions of a model on storage: immutable files, one commit object each, no rename (driver).

A *model path* holds

    model.json                what never changes: settings, params, kinds of ids, origin
    files/NNN-token-*.parquet factors: all of them (a *base*) or the rows a batch touched
    commits/NNN.json          version NNN exists from the moment that this object is there, whole
    invalid/batch-NNN.parquet rows set aside, as JSON
    validation.parquet        held-out ratings that a stream is scored on
    checkpoint/               Spark's own
    lease.json                who writes

A version is its base and the rows of every version since, in order. A commit object carries its
own checksum, so one broken off while it was written does not count. Storage is pyarrow.fs: a path
without a scheme is local, otherwise the URI says (s3, gs, abfs, hdfs, file).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import uuid
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from sparkml_sgdals.index import IdKind
from sparkml_sgdals.settings import Settings
from sparkml_sgdals.state import ModelState

__all__ = ["FORMAT_VERSION", "Commit", "StorageError", "VersionStore", "full_path", "spark_path"]

logger = logging.getLogger(__name__)

FORMAT_VERSION: Final = 2
_MIN_ROWS_OF_BASE: Final = 20_000
_MAX_DELTAS: Final = 500


class StorageError(RuntimeError):
    """A model path that cannot be read, or does not hold what it should."""


@dataclass(frozen=True)
class Commit:
    """One version: its number, its batch (-1 for none), its base, files and numbers."""

    version: int
    batch: int
    base: int
    files: dict[str, dict[str, Any]]
    scalars: dict[str, Any]
    metrics: dict[str, Any] | None
    committed: str
    delta_rows: int
    """rows written since the base"""

    def to_bytes(self) -> bytes:
        """One JSON object with a checksum of all its other fields."""
        body = json.dumps(self.__dict__, sort_keys=True, allow_nan=False)
        check = hashlib.sha256(body.encode()).hexdigest()
        return json.dumps({"format": FORMAT_VERSION, "sha256": check, "commit": body}).encode()

    @classmethod
    def from_bytes(cls, payload: bytes) -> Commit | None:
        """The commit, None where the object is not whole; StorageError for a newer format."""
        try:
            outer = json.loads(payload)
            body = outer["commit"]
            whole = hashlib.sha256(body.encode()).hexdigest() == outer["sha256"]
            newer = outer["format"] > FORMAT_VERSION
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        if newer:
            raise StorageError(
                f"The commit has format {outer['format']}, this release reads up to "
                f"{FORMAT_VERSION}: upgrade sparkml_sgdals."
            )
        return cls(**json.loads(body)) if whole else None


def full_path(path: str) -> str:
    """One spelling of a path, whatever the folder that a process works in: absolute if local."""
    if "://" in path or path.startswith("file:"):
        return path.rstrip("/")
    return os.path.abspath(path)


def spark_path(path: str) -> str:
    """The path as Spark has to be given it: one without a scheme is local."""
    return path if "://" in path or path.startswith("file:") else f"file:{os.path.abspath(path)}"


class VersionStore:
    """Reads and writes the versions under one model path; holds no state but the path."""

    def __init__(self, path: str) -> None:
        self.path = path
        if re.match(r"[a-z][a-z0-9+.-]+:/(?!/)", path) and not path.startswith("file:"):
            raise ValueError(f"{path!r} is no full URI: write two slashes after the scheme.")
        if path.startswith("file:"):
            self.fs: pafs.FileSystem = pafs.LocalFileSystem()
            self.root = "/" + re.sub(r"^file:/*", "", path)
        elif "://" in path:
            uri = re.sub(r"^s3[an]://", "s3://", path)
            self.fs, self.root = pafs.FileSystem.from_uri(uri)
        else:
            self.fs, self.root = pafs.LocalFileSystem(), os.path.abspath(path)

    # ---- objects ----------------------------------------------------------------------------

    def read(self, name: str) -> bytes | None:
        """Bytes of an object under the path, None where there is none."""
        try:
            with self.fs.open_input_stream(f"{self.root}/{name}") as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def write(self, name: str, payload: bytes) -> None:
        """Put an object under the path, with the folders that it needs."""
        target = f"{self.root}/{name}"
        try:
            stream = self.fs.open_output_stream(target)
        except FileNotFoundError:
            self.fs.create_dir(target.rsplit("/", 1)[0], recursive=True)
            stream = self.fs.open_output_stream(target)
        with stream:
            stream.write(payload)

    def replace(self, name: str, payload: bytes) -> None:
        """Put an object that others may read meanwhile: they see the old one or the new one."""
        if isinstance(self.fs, pafs.LocalFileSystem):
            beside = f"{name}.{uuid.uuid4().hex[:8]}"
            self.write(beside, payload)
            self.fs.move(f"{self.root}/{beside}", f"{self.root}/{name}")
        else:
            # an object store's put is whole by itself
            self.write(name, payload)

    def delete(self, name: str) -> None:
        """Delete an object if it is there."""
        try:
            self.fs.delete_file(f"{self.root}/{name}")
        except FileNotFoundError:
            return

    def names(self, folder: str) -> list[str]:
        """Names of the objects in a folder under the path, sorted."""
        selector = pafs.FileSelector(f"{self.root}/{folder}", allow_not_found=True)
        return sorted(info.base_name for info in self.fs.get_file_info(selector))

    def read_table(self, name: str) -> pa.Table | None:
        """A Parquet object as Arrow, None where there is none."""
        payload = self.read(name)
        return None if payload is None else pq.read_table(pa.BufferReader(payload))

    def write_table(self, name: str, table: pa.Table) -> dict[str, Any]:
        """Put a table as Parquet; its name, rows, size and checksum."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        payload = sink.getvalue().to_pybytes()
        self.write(name, payload)
        check = hashlib.sha256(payload).hexdigest()
        return {"name": name, "rows": table.num_rows, "bytes": len(payload), "sha256": check}

    # ---- what never changes -----------------------------------------------------------------

    def meta(self) -> dict[str, Any] | None:
        """What was written when the path was made; None where there is no model.

        Raises StorageError where it is damaged or of a newer format.
        """
        payload = self.read("model.json")
        if payload is None:
            return None
        try:
            meta: dict[str, Any] = json.loads(payload)
            newer = meta["format"] > FORMAT_VERSION
        except (ValueError, KeyError, TypeError) as damage:
            raise StorageError(
                f"{self.path}/model.json is damaged ({damage}): restore it, or choose another path."
            ) from damage
        if newer:
            raise StorageError(
                f"The model at {self.path} has format {meta['format']}, this release reads up to "
                f"{FORMAT_VERSION}: upgrade sparkml_sgdals."
            )
        return meta

    def create(self, state: ModelState, meta: dict[str, Any]) -> Commit:
        """Make the path with `state` as its version 0."""
        self.write("model.json", json.dumps(meta | {"format": FORMAT_VERSION}, indent=1).encode())
        return self.commit(state, None, batch=-1, previous=None, metrics=None)

    # ---- versions ---------------------------------------------------------------------------

    def numbers(self) -> list[int]:
        """Numbers of the commit objects there are, rising; the last may not be whole."""
        names = self.names("commits")
        return [int(n[:-5]) for n in names if n.endswith(".json") and n[:-5].isdigit()]

    def read_commit(self, version: int) -> Commit | None:
        """A commit, None where there is none or it is not whole."""
        payload = self.read(f"commits/{version:012d}.json")
        return None if payload is None else Commit.from_bytes(payload)

    def newest(self) -> Commit | None:
        """The newest version, None where there is none.

        Raises StorageError where a commit object that is not the last one is damaged.
        """
        numbers = self.numbers()
        for place, number in enumerate(reversed(numbers)):
            commit = self.read_commit(number)
            if commit is not None:
                return commit
            if place > 0:
                raise StorageError(f"Commit {number} at {self.path} is damaged.")
            logger.warning("commit %d at %s is not whole and does not count", number, self.path)
        return None

    def commit(
        self,
        state: ModelState,
        rows: tuple[Any, Any] | None,
        batch: int,
        previous: Commit | None,
        metrics: dict[str, Any] | None,
    ) -> Commit:
        """Write the next version.

        Parameters
        ----------
        rows : rows of users and items that changed since `previous`; None to write all
        """
        version = 0 if previous is None else previous.version + 1
        delta_rows = 0
        if rows is not None and previous is not None:
            delta_rows = previous.delta_rows + rows[0].size + rows[1].size
            ids = state.users.size + state.items.size
            deltas = version - previous.base
            if delta_rows > max(_MIN_ROWS_OF_BASE, ids) or deltas > _MAX_DELTAS:
                rows = None
        is_base = rows is None or previous is None
        base = version if is_base or previous is None else previous.base
        token = uuid.uuid4().hex[:8]
        files = {}
        for number, (name, side) in enumerate((("users", state.users), ("items", state.items))):
            part = side.to_arrow(None if rows is None else rows[number])
            files[name] = self.write_table(f"files/{version:012d}-{token}-{name}.parquet", part)
        if is_base and previous is not None:
            history = pa.Table.from_pylist(self.metrics())
            if history.num_columns:
                name = f"files/{version:012d}-{token}-metrics.parquet"
                files["metrics"] = self.write_table(name, history)
        commit = Commit(
            version=version,
            batch=batch,
            base=base,
            files=files,
            scalars=state.scalars(),
            metrics=metrics,
            committed=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            delta_rows=0 if is_base else delta_rows,
        )
        self.write(f"commits/{version:012d}.json", commit.to_bytes())
        return commit

    def load(self, version: int | None = None) -> tuple[ModelState, Commit]:
        """A version's state, the newest by default.

        Raises StorageError where there is none, or a file of it is missing or damaged.
        """
        meta = self.meta()
        commit = self.newest() if version is None else self.read_commit(version)
        if meta is None or commit is None:
            which = "a version" if version is None else f"version {version}"
            kept = ", ".join(map(str, self.numbers())) or "none"
            raise StorageError(f"{self.path} does not hold {which} of a model (kept: {kept}).")
        kinds: tuple[IdKind, IdKind] = (meta["kinds"][0], meta["kinds"][1])
        state = ModelState.empty(Settings.from_json(meta["settings"]), *kinds)
        for number in range(commit.base, commit.version + 1):
            part = commit if number == commit.version else self.read_commit(number)
            if part is None:
                raise StorageError(
                    f"Version {commit.version} at {self.path} needs commit {number}, which is "
                    "missing or damaged."
                )
            state.users.put_arrow(self._checked(part.files["users"]))
            state.items.put_arrow(self._checked(part.files["items"]))
        state.set_scalars(commit.scalars)
        return state, commit

    def metrics(self) -> list[dict[str, Any]]:
        """The metrics of every batch up to the newest version, in order."""
        newest = self.newest()
        if newest is None:
            return []
        rows: list[dict[str, Any]] = []
        for number in range(newest.base, newest.version + 1):
            commit = newest if number == newest.version else self.read_commit(number)
            if commit is None:
                raise StorageError(f"Commit {number} at {self.path} is missing or damaged.")
            if "metrics" in commit.files:
                rows.extend(self._checked(commit.files["metrics"]).to_pylist())
            if commit.metrics is not None:
                rows.append(commit.metrics)
        return rows

    def prune(self, keep: int) -> None:
        """Delete what no version but the newest `keep` needs."""
        numbers = self.numbers()
        if len(numbers) <= keep:
            return
        oldest = self.read_commit(numbers[-keep])
        if oldest is None or not any(number < oldest.base for number in numbers):
            return
        # commit objects go first: a version is never there without its files
        for number in numbers:
            if number < oldest.base:
                self.delete(f"commits/{number:012d}.json")
        for name in self.names("files"):
            if name[:12].isdigit() and int(name[:12]) < oldest.base:
                self.delete(f"files/{name}")

    def _checked(self, file: dict[str, Any]) -> pa.Table:
        payload = self.read(file["name"])
        if payload is None or hashlib.sha256(payload).hexdigest() != file["sha256"]:
            state = "missing" if payload is None else "damaged: its checksum does not fit"
            raise StorageError(
                f"{self.path}/{file['name']} is {state}. Older versions may be whole: "
                "StreamingBiasedALSModel.load(path, version=n)."
            )
        return pq.read_table(pa.BufferReader(payload))
