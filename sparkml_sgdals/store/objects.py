"""Objects under a model path, on a local disk or in an object store, and what their failures mean.

Storage is pyarrow.fs: a path without a scheme is local, otherwise the URI says (s3 or s3a, gs,
abfs, hdfs, file). What is written on a local disk is synced to it. Where an object store is, and
who asks, comes from its own environment, such as AWS_ENDPOINT_URL: see docs/storage.md.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, Final

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from sparkml_sgdals.arrays.ipc import digest_of, to_parquet
from sparkml_sgdals.arrays.threads import Together
from sparkml_sgdals.errors import DamagedError, GoneError, StorageError, explained

__all__ = [
    "Location", "NothingPutError", "ObjectStore", "bad_file", "full_path", "same_place",
    "spark_path",
]  # fmt: skip

Location = str | os.PathLike[str]
"""A folder or file: text, which may be a URI, or a local pathlib.Path."""
_CONFLICT_WAITS: Final = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, None)
"""Seconds before an exclusive put that met another is tried again; None: no more."""
_PART: Final = 1 << 22
"""Bytes of a file that are read at once for its checksum."""
_DIGEST: Final = b"sparkml_sgdals.sha256"


def full_path(path: Location) -> str:
    """One spelling of a path, whatever the folder that a process works in: absolute if local."""
    path = os.fspath(path)
    _check_uri(path)
    if "://" in path or path.startswith("file:"):
        return path.rstrip("/")
    return os.path.abspath(path)


def _check_uri(path: str) -> None:
    half = re.match(r"[a-z][a-z0-9+.-]+:/(?!/)", path) and not path.startswith("file:")
    if half or re.match(r"file:(?!/)", path):
        raise ValueError(f"{path!r} is no full URI: write two slashes after the scheme.")


def spark_path(path: Location) -> str:
    """Return the path as Spark has to be given it: one without a scheme is local, S3 is its S3A."""
    path = os.fspath(path)
    if path.startswith("s3://"):
        return f"s3a{path[2:]}"
    return path if "://" in path or path.startswith("file:") else f"file:{os.path.abspath(path)}"


def bad_file(path: str, name: str, missing: bool) -> str:
    """Return the message of a committed file that cannot be used."""
    state = "missing" if missing else "damaged: its checksum does not fit"
    return (
        f"{path}/{name} is {state}. Restore it, or take an older version: "
        "StreamingBiasedALSModel.versions(path) lists them, load(path, version=n) loads "
        "one, rollback(path, n) sets the stream back to it."
    )


def same_place(path: str) -> str:
    """One spelling of a place for all who name it: Spark, pyarrow and links on a local disk."""
    if path.startswith("file:"):
        path = "/" + re.sub(r"^file:/*", "", path)
    if "://" in path:
        return re.sub(r"^s3[an]://", "s3://", path).rstrip("/")
    return os.path.realpath(path)


class NothingPutError(StorageError):
    """An object could not be put, and does not stand for sure."""


class ObjectStore:
    """Reads and writes objects under one path; holds no state but the path."""

    def __init__(self, path: Location) -> None:
        self.path = path = os.fspath(path)
        _check_uri(path)
        if path.startswith("file:"):
            self.fs: pafs.FileSystem = pafs.LocalFileSystem()
            self.root = "/" + re.sub(r"^file:/*", "", path)
        elif "://" in path:
            self.fs, self.root = _file_system(path)
        else:
            self.fs, self.root = pafs.LocalFileSystem(), os.path.abspath(path)
        self.local = isinstance(self.fs, pafs.LocalFileSystem)

    def read(self, name: str) -> bytes | None:
        """Bytes of an object under the path, None where there is none.

        Raises StorageError where it cannot be read, or is a folder.
        """
        try:
            if self.local:
                return _read_file(f"{self.root}/{name}")
            with self.fs.open_input_stream(f"{self.root}/{name}") as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None
        except OSError as failure:
            if self._gone(name):
                return None
            raise StorageError(explained(f"{self.path}/{name}", "read", failure)) from failure

    def write(self, name: str, payload: bytes, together: Together | None = None) -> None:
        """Put an object under the path, with the folders that it needs; on local disks synced.

        With `together` its name stands at once on a local disk, and all of it once that has ended.

        Raises StorageError where it cannot be written.
        """
        target = f"{self.root}/{name}"
        if not self.local and together is not None and len(payload) <= _PART:
            together.add(lambda: self.write(name, payload))
            return
        with self.explaining(name):
            try:
                self._put(target, payload, together)
            except FileNotFoundError:
                self.fs.create_dir(target.rsplit("/", 1)[0], recursive=True)
                self._put(target, payload, together)

    def replace(self, name: str, payload: bytes) -> None:
        """Put an object that others may read meanwhile: they see the old one or the new one."""
        if not self.local:
            # an object store's put is whole by itself
            self.write(name, payload)
            return
        beside = self.beside(name)
        self.write(beside, payload)
        with self.explaining(name):
            os.replace(f"{self.root}/{beside}", f"{self.root}/{name}")
        self.sync(name.rpartition("/")[0])

    def put_new(self, name: str, payload: bytes, written: str | None = None) -> bool:
        """Put an object that is not there yet; False, and nothing done, where it is.

        Of two processes that try at once, one is told False: on a local disk, and on S3 where
        boto3 is installed. On other object stores pyarrow has no put that asks, so the first may
        be overwritten after it looked; then the second one alone counts.

        `written` is an object beside it that holds the payload already, on a local disk.

        Raises StorageError where it cannot be written; NothingPutError, which is one, where it is
        sure that nothing stands.
        """
        if not self.local:
            if self.read(name) is not None:
                return False
            if not isinstance(self.fs, pafs.S3FileSystem) or not self._put_if_none(name, payload):
                self.write(name, payload)
            # not what was asked for, where another put came between; or ours, tried twice
            return self.read(name) == payload
        beside = written or self.beside(name)
        try:
            if written is None:
                self.write(beside, payload)
        except StorageError as failure:
            raise NothingPutError(str(failure)) from failure
        try:
            # unlike a rename, a link does not take the place of what is there
            os.link(f"{self.root}/{beside}", f"{self.root}/{name}")
        except FileExistsError:
            return False
        except OSError as failure:
            raise StorageError(explained(f"{self.path}/{name}", "written", failure)) from failure
        finally:
            self.delete(beside)
        self.sync(name.rpartition("/")[0])
        return True

    def _put_if_none(self, name: str, payload: bytes) -> bool:
        """Whether S3 itself was asked for an exclusive put, whatever came of it."""
        try:
            import boto3
            from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError
        except ImportError:
            return False
        bucket, _, key = f"{self.root}/{name}".partition("/")
        place = f"{self.path}/{name}"
        try:
            with closing(boto3.client("s3", region_name=self.fs.region or None)) as client:
                for wait in _CONFLICT_WAITS:
                    try:
                        client.put_object(Bucket=bucket, Key=key, Body=payload, IfNoneMatch="*")
                        return True
                    except ClientError as failure:
                        code = failure.response.get("Error", {}).get("Code", "")
                        if code == "NotImplemented":
                            return False
                        if code == "PreconditionFailed":
                            return True
                        if code != "ConditionalRequestConflict" or wait is None:
                            raise
                        # another request was under way: nothing was put, S3 says to ask again
                        time.sleep(wait)
        except ParamValidationError:
            # this boto3 does not know the condition
            return False
        except (ClientError, BotoCoreError) as failure:
            raise StorageError(explained(place, "written", OSError(str(failure)))) from failure
        return True

    def drop_broken_writes(self) -> None:
        """Delete what kills left of objects that were to be renamed. Only for the lease's holder.

        On a local disk: an object store has no such names.
        """
        if not self.local:
            return
        checkpoint = re.compile(r"checkpoint(-[0-9]{12})?")
        inside = [name for name in self.names("") if checkpoint.fullmatch(name)]
        for folder in ("", "commits", "invalid", *inside):
            for name in self.names(folder):
                if re.fullmatch(r"[\w-]+\.(json|parquet)\.[0-9a-f]{8}", name):
                    self.delete(f"{folder}/{name}".lstrip("/"))

    def beside(self, name: str) -> str:
        """Return a name of its own for what is to be renamed, which `drop_broken_writes` knows."""
        return f"{name}.{uuid.uuid4().hex[:8]}"

    def sync(self, folder: str, together: Together | None = None) -> None:
        """See to it that the names in a local folder outlive a power cut."""
        if not self.local:
            return
        if together is not None:
            together.add(lambda: self.sync(folder))
            return
        try:
            handle = os.open(f"{self.root}/{folder}", os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as failure:
            # some network file systems sync no folders; a parent may be closed to this user
            closed = folder == ".." and failure.errno in (errno.EACCES, errno.EPERM)
            if not closed and failure.errno not in (errno.EINVAL, errno.ENOTSUP):
                place = f"{self.path}/{folder}"
                raise StorageError(explained(place, "written", failure)) from failure

    def sync_file(self, name: str) -> None:
        """See to it that a local file outlives a power cut."""
        if self.local:
            with self.explaining(name), open(f"{self.root}/{name}", "rb") as file:
                os.fsync(file.fileno())

    def _put(self, target: str, payload: bytes, together: Together | None = None) -> None:
        if not self.local:
            with self.fs.open_output_stream(target) as stream:
                stream.write(payload)
            return
        # closed by whoever syncs it
        file = open(target, "wb", buffering=0)  # noqa: SIM115

        @contextmanager
        def whole() -> Iterator[None]:
            try:
                yield
            except OSError:
                # what there is of it is of no use, and takes room that may be short
                file.close()
                os.unlink(target)
                raise

        def sync() -> None:
            with self.explaining(target[len(self.root) + 1 :]), whole(), file:
                os.fsync(file.fileno())

        with whole():
            # one call may write less than all, on a disk that is nearly full for one
            rest = memoryview(payload)
            while rest:
                rest = rest[file.write(rest) :]
        if together is None:
            sync()
        else:
            together.add(sync)

    @contextmanager
    def or_without(
        self, names: list[str], failures: type[Exception], together: Together | None = None
    ) -> Iterator[None]:
        """Delete objects that nothing will name, where one of these failures is raised inside."""
        try:
            yield
        except failures:
            if together is not None:
                together.end()
            for name in names:
                # the storage may be why it failed
                with contextlib.suppress(StorageError):
                    self.delete(name)
            raise

    def delete(self, name: str) -> None:
        """Delete an object if it is there; raises StorageError where that cannot be done."""
        with self.explaining(name, "deleted"), contextlib.suppress(FileNotFoundError):
            self.fs.delete_file(f"{self.root}/{name}")

    @contextmanager
    def explaining(self, name: str, done: str = "written") -> Iterator[None]:
        """Raise StorageError, with what to do, where what is to be done with an object fails."""
        try:
            yield
        except OSError as failure:
            raise StorageError(explained(f"{self.path}/{name}", done, failure)) from failure

    @contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Turn what fails while a committed file is read into an error that says what to do.

        Raises
        ------
        GoneError
            the file is not there any more
        StorageError
            it cannot be read for another reason
        """
        try:
            yield
        except OSError as failure:
            if isinstance(failure, FileNotFoundError) or self._gone(name):
                raise GoneError(bad_file(self.path, name, missing=True)) from failure
            raise StorageError(explained(f"{self.path}/{name}", "read", failure)) from failure

    def _gone(self, name: str) -> bool:
        """Whether an object store says that there is none; it may say so to a read as anything."""
        if self.local:
            return False
        try:
            found = self.fs.get_file_info(f"{self.root}/{name}")
        except OSError:
            return False
        return bool(found.type == pafs.FileType.NotFound)

    def names(self, folder: str) -> list[str]:
        """Names of the objects in a folder under the path, sorted.

        Raises StorageError where it cannot be listed, or is no folder.
        """
        if not self.local:
            return sorted(info.base_name for info in self._infos(folder))
        # Arrow's listing of a local folder may end early where files come and go meanwhile
        with self.explaining(folder, "listed"):
            try:
                return sorted(os.listdir(f"{self.root}/{folder}"))
            except FileNotFoundError:
                return []

    def walk(self, folder: str) -> list[str]:
        """Names of all objects below a folder, from there on, sorted; raises as `names`."""
        top = f"{self.root}/{folder}"
        if not self.local:
            found = [info.path for info in self._infos(folder, recursive=True) if info.is_file]
        else:
            with self.explaining(folder, "listed"):
                found = [
                    f"{inside}/{name}"
                    for inside, _, names in os.walk(top, onerror=_unless_gone)
                    for name in names
                ]
        return sorted(path[len(top) :].lstrip("/") for path in found)

    def _infos(self, folder: str, recursive: bool = False) -> list[pafs.FileInfo]:
        top = f"{self.root}/{folder}"
        selector = pafs.FileSelector(top, allow_not_found=True, recursive=recursive)
        with self.explaining(folder, "listed"):
            return list(self.fs.get_file_info(selector))

    def delete_folder(self, folder: str) -> None:
        """Delete a folder under the path and all below it, if it is there; raises as `delete`."""
        with self.explaining(folder, "deleted"), contextlib.suppress(FileNotFoundError):
            self.fs.delete_dir(f"{self.root}/{folder}")

    def read_table(self, name: str) -> pa.Table | None:
        """Return a Parquet object as Arrow, None where there is none.

        Raises DamagedError where it is no Parquet, or does not hold what was put.
        """
        payload = self.read(name)
        try:
            if payload is None:
                return None
            table = pq.read_table(pa.BufferReader(payload))
            told = (table.schema.metadata or {}).get(_DIGEST)
            table = table.replace_schema_metadata()
            if told not in (None, digest_of(table)):
                raise OSError("its digest does not fit")
            return table
        except (pa.ArrowException, OSError, ValueError) as failure:
            raise DamagedError(
                f"{self.path}/{name} is damaged: {str(failure).splitlines()[0]}. Restore it, or "
                "delete it."
            ) from failure

    def replace_table(self, name: str, table: pa.Table) -> None:
        """Put a table as Parquet where one may be: a reader, or a kill, finds the old or new."""
        # no commit holds the checksum of a file that is replaced
        table = table.replace_schema_metadata()
        self.replace(name, to_parquet(table.replace_schema_metadata({_DIGEST: digest_of(table)})))

    def write_table(
        self, name: str, table: pa.Table, together: Together | None = None
    ) -> dict[str, Any]:
        """Put a table as Parquet, as `write` does; its name, rows, size and checksum."""
        payload = to_parquet(table)
        self.write(name, payload, together)
        check = hashlib.sha256(payload).hexdigest()
        return {"name": name, "rows": table.num_rows, "bytes": len(payload), "sha256": check}

    def check_file(self, file: dict[str, Any]) -> None:
        """Compare the checksum of a committed file, part by part.

        Raises StorageError where it is missing, cannot be read or its checksum does not fit.
        """
        if file["bytes"] <= _PART:
            self._payload(file)
            return
        check = hashlib.sha256()
        name = file["name"]
        with self.reading(name), self.fs.open_input_stream(f"{self.root}/{name}") as stream:
            while part := stream.read(_PART):
                check.update(part)
        if check.hexdigest() != file["sha256"]:
            raise self._bad(file, missing=False)

    def read_checked(self, file: dict[str, Any]) -> pa.Table:
        """Return a committed file as Arrow.

        Raises StorageError where it is missing or its checksum does not fit.
        """
        with self._whole(file):
            payload = self._checked(file)
            # threads take longer to be told of a small file than it takes to be read
            return pq.ParquetFile(payload).read(use_threads=file["bytes"] > _PART)

    def read_pieces(self, file: dict[str, Any], rows: int) -> Iterator[pa.Table]:
        """Yield a committed file as Arrow, at most `rows` at a time; raises as `read_checked`."""
        with self._whole(file):
            for batch in pq.ParquetFile(self._checked(file)).iter_batches(rows):
                yield pa.Table.from_batches([batch])

    @contextmanager
    def _whole(self, file: dict[str, Any]) -> Iterator[None]:
        """Raise DamagedError where a file is no Parquet, though its checksum fits."""
        try:
            yield
        except pa.ArrowException as failure:
            raise self._bad(file, missing=False) from failure

    def _checked(self, file: dict[str, Any]) -> pa.BufferReader:
        return pa.BufferReader(self._payload(file))

    def _payload(self, file: dict[str, Any]) -> bytes:
        payload = self.read(file["name"])
        if payload is None or hashlib.sha256(payload).hexdigest() != file["sha256"]:
            raise self._bad(file, missing=payload is None)
        return payload

    def _bad(self, file: dict[str, Any], missing: bool) -> StorageError:
        kind = GoneError if missing else DamagedError
        return kind(bad_file(self.path, file["name"], missing))


def _unless_gone(failure: OSError) -> None:
    if not isinstance(failure, FileNotFoundError):
        raise failure


@functools.lru_cache(maxsize=64)
def _file_system(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return a URI's store and path in it; kept, for S3 asks for the bucket's region first."""
    uri = re.sub(r"^s3[an]://", "s3://", uri)
    if uri.startswith("s3://") and "?" not in uri:
        try:
            # a small object in one request, and nothing half uploaded after a kill
            found = pafs.FileSystem.from_uri(f"{uri}?allow_delayed_open=true")
        except pa.ArrowInvalid:
            # this pyarrow does not know the option
            found = pafs.FileSystem.from_uri(uri)
    else:
        found = pafs.FileSystem.from_uri(uri)
    store, root = found
    return store, root


def _read_file(path: str) -> bytes:
    """Bytes of a local file, in half of the time that pyarrow takes for a small one."""
    handle = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(handle).st_size
        payload = os.read(handle, size + 1)
        if len(payload) == size:
            return payload
        # one call may give less than all of a large one
        parts = [payload]
        while payload:
            parts.append(payload := os.read(handle, _PART))
        return b"".join(parts)
    finally:
        os.close(handle)
