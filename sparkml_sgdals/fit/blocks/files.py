"""What does not change while a table is learned in blocks: where it lies, how a task comes by it.

Written once as immutable files under a folder that driver and executors share, and memory-mapped
by the tasks of each step; or, where there is no such folder, handed to each task as binary rows.
Either way a *static* is a set of named arrays, in the same bytes. On disks, states of blocks lie
beside them, a file a step, so that messages hold no more than names.
"""

from __future__ import annotations

import logging
import os
import re
import struct
import tempfile
import time
import uuid
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import SparkSession
from pyspark.sql.utils import is_remote

from sparkml_sgdals.arrays.ipc import (
    arrays_from_buffer,
    arrays_in,
    arrays_to_buffer,
    from_bytes,
    row_of_arrays,
)
from sparkml_sgdals.errors import StorageError
from sparkml_sgdals.fit.blocks.left_behind import (
    UNREACHABLE,
    drop_left_folders,
    folder_name,
    owned,
)
from sparkml_sgdals.spark_jobs import local_threads
from sparkml_sgdals.spark_workers import workers_see_folder
from sparkml_sgdals.store.objects import ObjectStore

__all__ = [
    "BlockFiles",
    "BlockRows",
    "Statics",
    "block_folder",
    "local_parent",
    "shared_parent",
    "static_name",
]

logger = logging.getLogger(__name__)

_TRAILER: Final = struct.Struct("<8sQI4x")
"""After the arrays: a mark, how many bytes they take, and their CRC-32."""
_MARK: Final = b"sgdals-1"
_PARKED: Final = b"sgdals-parked:"
"""What a payload begins with that says where a state lies."""
_LONGEST: Final = 200
_LOOK_SECONDS: Final = 0.002
_STATE: Final = re.compile(r"state-(\d{5})-")


def static_name(kind: str, side: str, block: int, partner: int) -> str:
    """Return the name of a static and of its file; as "cell", "layout", "ids" or "rows"."""
    return f"{kind}-{side}-{block:05d}-{partner:05d}"


class Statics(Protocol):
    """The static arrays that a task can read; it may write to them, and nobody else sees it."""

    def arrays(self, name: str, check: bool = False) -> dict[str, Any]:
        """Arrays by name; raises StorageError where there is no such static."""

    def table(self, name: str) -> pa.Table:
        """Return a static that is a table; raises StorageError where there is none."""

    def park(
        self, side: str, block: int, arrays: Mapping[str, Any], lasting: bool = False
    ) -> pa.Buffer:
        """Return the payload that hands arrays of a block on: themselves, or where they lie.

        They lie there for some steps, or where `lasting` until the fit ends.
        """

    def parked(self, payload: pa.Buffer, check: bool = False) -> dict[str, Any] | None:
        """Return the arrays that `park` was given, None where they are the payload itself."""


@dataclass(frozen=True)
class BlockRows:
    """Statics that came with the rows of a task."""

    payloads: Mapping[str, pa.Buffer]

    def arrays(self, name: str, check: bool = False) -> dict[str, Any]:
        """As `Statics` says; Spark has checked what it moved."""
        return arrays_from_buffer(self._payload(name))

    def table(self, name: str) -> pa.Table:
        """As `Statics` says."""
        return from_bytes(self._payload(name))

    def park(
        self, side: str, block: int, arrays: Mapping[str, Any], lasting: bool = False
    ) -> pa.Buffer:
        """As `Statics` says: Spark moves it."""
        return arrays_to_buffer(arrays)

    def parked(self, payload: pa.Buffer, check: bool = False) -> dict[str, Any] | None:
        """As `Statics` says."""
        return None

    def _payload(self, name: str) -> pa.Buffer:
        if name not in self.payloads:
            raise StorageError(f"{name} of the blocks is not among the rows of its task.")
        return self.payloads[name]


@dataclass(frozen=True)
class BlockFiles:
    """Statics in files under a folder; plain values only, so that it travels.

    Attributes
    ----------
    folder : str
        path or URI, the same on driver and executors
    step : int
        number of the step that reads and writes states here
    """

    folder: str
    step: int = 0

    def put(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Write a static; one that a task writes again is the same to the last bit."""
        self.put_table(name, row_of_arrays(arrays))

    def arrays(self, name: str, check: bool = False) -> dict[str, Any]:
        """As `Statics` says, mapped on local disks, else read.

        Parameters
        ----------
        name : str
            of the static, as `static_name` gives it
        check : bool
            whether the checksum is computed; the size is compared always

        Raises
        ------
        StorageError
            where the file is missing, cannot be read, or is not as it was written
        """
        return arrays_in(self._read(name, check))

    def park(
        self, side: str, block: int, arrays: Mapping[str, Any], lasting: bool = False
    ) -> pa.Buffer:
        """As `Statics` says: in a file where disks are local, so that Spark moves its name alone.

        Two attempts of a task write two files.
        """
        if not ObjectStore(self.folder).local:
            return arrays_to_buffer(arrays)
        kind = "lasting" if lasting else "state"
        name = f"{kind}-{self.step:05d}-{side}-{block:05d}-{uuid.uuid4().hex[:12]}"
        self.put(name, arrays)
        return pa.py_buffer(_PARKED + name.encode())

    def parked(self, payload: pa.Buffer, check: bool = False) -> dict[str, Any] | None:
        """As `Statics` says; raises as `arrays`."""
        if payload.size > _LONGEST or payload[: len(_PARKED)].to_pybytes() != _PARKED:
            return None
        return self.arrays(payload[len(_PARKED) :].to_pybytes().decode(), check)

    def drop_states(self, step: int) -> None:
        """Delete states that were parked in this step, or before, and are of no use any more."""
        store = ObjectStore(self.folder)
        for name in store.names("") if store.local else ():
            found = _STATE.match(name)
            if found and int(found[1]) <= step:
                store.delete(name)

    def put_table(self, name: str, table: pa.Table) -> None:
        """Write a table: a static, pieces until `drop_tables`, or what a task has sent."""
        self.put_parts(name, table.schema, [table])

    def put_parts(self, name: str, schema: pa.Schema, parts: Iterable[pa.Table]) -> None:
        """Write a table of which one part at a time is in memory; of no rows where there is none.

        Each part is a chunk of what `table` returns.
        """
        with (
            self._writing(name) as summed,
            pa.ipc.new_stream(pa.PythonFile(summed, "w"), schema) as out,
        ):
            for part in parts:
                out.write_table(part)

    def table(self, name: str) -> pa.Table:
        """Return a table, mapped on local disks; raises as `arrays`."""
        return from_bytes(pa.py_buffer(self._read(name, check=True)))

    def sent_name(self, task: int) -> str:
        """Return the name of a task's messages of this step, which go with its states."""
        return f"state-{self.step:05d}-sent-{task:05d}"

    def awaited(self, names: Iterable[str]) -> Iterator[str]:
        """Yield names of files on a local disk, each once it is there.

        Spark ends a task that waits in vain, as another one has failed.
        """
        root = ObjectStore(self.folder).root
        for name in names:
            while not os.path.exists(f"{root}/{name}"):
                time.sleep(_LOOK_SECONDS)
            yield name

    def drop_tables(self) -> None:
        """Delete pieces from a local disk, once all are in cells, or gathered."""
        store = ObjectStore(self.folder)
        for name in store.names("") if store.local else ():
            if name.startswith("pieces-"):
                store.delete(name)

    @contextmanager
    def _writing(self, name: str) -> Iterator[_Summed]:
        """Yield what writes a file, which gets its name and its trailer in the end."""
        store = ObjectStore(self.folder)
        target = f"{store.root}/{name}"
        try:
            if not store.local:
                with store.fs.open_output_stream(target) as stream:
                    summed = _Summed(stream.write)
                    yield summed
                    stream.write(summed.trailer())
                return
            os.makedirs(store.root, exist_ok=True)
            # whole from the moment that it has its name, also where two attempts of a task write
            # it. Not synced to the disk: nobody reads it after a power cut
            beside = f"{target}.{uuid.uuid4().hex[:8]}"
            with open(beside, "wb", buffering=0) as file:

                def put(part: Any) -> None:
                    rest = memoryview(part)
                    while rest:
                        rest = rest[file.write(rest) :]

                summed = _Summed(put)
                yield summed
                put(summed.trailer())
            os.replace(beside, target)
        except OSError as failure:
            raise StorageError(
                f"{self.folder}/{name} of a fit in blocks cannot be written: {failure}. It needs "
                "40 to 64 bytes a rating, at rank 16 up to 1,300 an id, 20 a number of features, "
                "under spark.local.dir (local master) or spark.checkpoint.dir (cluster)."
            ) from failure

    def _read(self, name: str, check: bool) -> npt.NDArray[np.uint8]:
        store = ObjectStore(self.folder)
        path = f"{store.root}/{name}"
        try:
            if store.local:
                # pages are read when they are used; what is written to stays with this task
                memory = np.asarray(np.memmap(path, np.uint8, mode="c"))
            else:
                with store.fs.open_input_stream(path) as stream:
                    memory = np.frombuffer(bytearray(stream.read()), np.uint8)
        except (OSError, ValueError) as failure:
            state = "missing" if isinstance(failure, FileNotFoundError) else f"lost: {failure}"
            raise StorageError(
                f"{self.folder}/{name} of a fit in blocks is {state}. Every executor and the "
                "driver have to see this folder, and nothing may clear it while a fit runs: "
                "spark.checkpoint.dir (on a cluster) or spark.local.dir says where it is."
            ) from failure
        size = memory.size - _TRAILER.size
        mark, expected, crc = (
            _TRAILER.unpack(memory[size:].tobytes()) if size >= 0 else (b"", -1, 0)
        )
        payload = memory[: max(size, 0)]
        if mark != _MARK or expected != size or (check and zlib.crc32(payload.data) != crc):
            raise StorageError(
                f"{self.folder}/{name} of a fit in blocks is damaged: it is not what was written. "
                "Fit again."
            )
        return payload


class _Summed:
    """Writes, and counts and sums what it has written; a file for Arrow."""

    closed = False

    def __init__(self, put: Callable[[Any], Any]) -> None:
        self._put = put
        self._size = self._crc = 0

    def write(self, part: Any) -> int:
        """Write a buffer, and return how much it holds."""
        size = memoryview(part).nbytes
        self._put(part)
        self._size, self._crc = self._size + size, zlib.crc32(part, self._crc)
        return size

    def flush(self) -> None:
        """Do nothing: what was written is out."""

    def trailer(self) -> bytes:
        """Return what stands after it."""
        return _TRAILER.pack(_MARK, self._size, self._crc)


@contextmanager
def block_folder(spark: SparkSession) -> Iterator[str | None]:
    """Yield a folder for the files of one fit, gone afterwards; None where executors share none.

    Folders beside it that fits of killed drivers left are removed.

    With a local master under spark.local.dir, or where temporary files go; on a cluster under
    spark.checkpoint.dir, where that is a full URI that this process can write to and executors
    see; a warning says where it is not.
    """
    name = folder_name(uuid.uuid4().hex)
    local = local_threads(spark) > 0
    given = spark.conf.get("spark.local.dir" if local else "spark.checkpoint.dir", None)
    seen = partial(workers_see_folder, spark)
    parent = local_parent(given) if local else shared_parent(given, seen)
    if parent is None:
        yield None
        return
    drop_left_folders(parent)
    folder = f"{parent}/{name}"
    with owned(parent, name):
        try:
            yield folder
        finally:
            _remove(folder)
            if local and is_remote():
                # the tasks' machine need not be this one
                spark.range(1, numPartitions=1).mapInArrow(_Remove(folder), "id long").collect()


def local_parent(local_dir: str | None) -> str:
    """Where Spark puts its own files on this machine, given its conf."""
    given = os.environ.get("SPARK_LOCAL_DIRS") or local_dir or tempfile.gettempdir()
    return os.path.abspath(given.split(",")[0])


def shared_parent(
    checkpoint_dir: str | None, seen: Callable[[str], bool] = lambda folder: True
) -> str | None:
    """Return the checkpoint folder where all executors see it and it can be used, else None.

    Parameters
    ----------
    checkpoint_dir : str | None
        Spark's own conf of it
    seen : Callable[[str], bool]
        whether executors see what this process writes into a local folder
    """
    parent = (checkpoint_dir or "").rstrip("/")
    if not parent:
        _warn_of_rows("spark.checkpoint.dir is not set")
        return None
    if not (parent.startswith("file:") or "://" in parent):
        # without a scheme it is in Spark's default file system, which is not known here
        _warn_of_rows(f"spark.checkpoint.dir, {parent}, is no full URI")
        return None
    probe = f"sparkml-sgdals-{uuid.uuid4().hex}"
    try:
        store = ObjectStore(parent)
        store.write(probe, b"")
        store.delete(probe)
        shared = not store.local or seen(store.root)
    except UNREACHABLE as failure:
        _warn_of_rows(f"spark.checkpoint.dir, {parent}, cannot be used: {failure}")
        return None
    if not shared:
        _warn_of_rows(f"executors do not see what is written into spark.checkpoint.dir, {parent}")
        return None
    return parent


def _warn_of_rows(why: str) -> None:
    warnings.warn(
        f"The blocks of this fit are moved by Spark in each step, as {why}: to the same result, "
        "and slower. Before the Spark session starts, set it to the full URI of a folder that the "
        "driver and all executors share; or raise maxRatingsPerTask to fit in one task.",
        UserWarning,
        stacklevel=3,
    )


@dataclass(frozen=True)
class _Remove:
    """Remove a folder where tasks run."""

    folder: str

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        _remove(self.folder)
        yield from batches


def _remove(folder: str) -> None:
    try:
        ObjectStore(folder).delete_folder("")
    except UNREACHABLE as failure:
        logger.warning("%s is left behind, as it cannot be removed: %s", folder, failure)
