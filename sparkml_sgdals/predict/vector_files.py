"""Write vectors as files that others read: whole tables here, ranges of a large model by tasks.

The driver writes what is in memory. Of a version that is read where it lies, each task writes a
file of a range of ids beside those of the others.
"""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
from pyspark.sql import SparkSession

from sparkml_sgdals.arrays.hashing import USER_SIDE
from sparkml_sgdals.errors import StorageError
from sparkml_sgdals.predict.in_place import StoredRows, changed_table, stored_rows
from sparkml_sgdals.spark_workers import need_workers
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.model_state import Scale
from sparkml_sgdals.state.settings import Settings
from sparkml_sgdals.state.vectors import vector_table
from sparkml_sgdals.store.objects import ObjectStore
from sparkml_sgdals.store.overlay import Overlay
from sparkml_sgdals.store.packed_rows import unpack_rows

__all__ = ["WRITERS", "VectorFormat", "export_in_place"]

VectorFormat = Literal["parquet", "pgvector", "qdrant", "milvus", "faiss"]

_NAMES: Final = uuid.UUID("6c0e4b7e-5d0b-5a41-9a1e-0d3c1f3f7a52")


def export_in_place(
    spark: SparkSession, stored: Overlay, store: ObjectStore, form: VectorFormat
) -> dict[str, int]:
    """Write the vectors of a version that is read where it lies, a folder of parts a side.

    Parameters
    ----------
    spark : SparkSession
        whose tasks write
    stored : Overlay
        the version
    store : ObjectStore
        where to, a folder that driver and executors share
    form : VectorFormat
        of the files

    Returns
    -------
    the number of parts of each side

    Raises
    ------
    ValueError
        there is something in one of the folders
    StorageError
        it cannot be written, or the driver does not see what tasks have written
    """
    need_workers(spark)
    sides, parts = ("users", "items"), {}
    for side in sides:
        if names := store.names(side):
            raise ValueError(
                f"{store.path}/{side} holds {names[0]!r} already, and is where parts of the "
                "vectors go: choose another path, or delete it."
            )
    for side in sides:
        rows, changed = stored_rows(stored, side), changed_table(stored, side)
        task = _Export(
            store.path, form, rows, changed.side, stored.state.settings, stored.state.scale
        )
        found = (
            spark.range(0, rows.ranges, 1, rows.ranges)
            .mapInArrow(task, "id bigint")
            .toArrow()
            .column("id")
            .to_pylist()
        )
        if changed.size:
            found.append(rows.ranges)
            table = vector_table(changed, stored.state.scale)
            WRITERS[form](store, _part(side, rows.ranges), table)
        there = {name.partition(".")[0].removesuffix("-ids") for name in store.names(side)}
        for number in found:
            if (part := _part(side, number)).partition("/")[2] not in there:
                raise StorageError(
                    f"{store.path}/{part}, which a task has written, is not there for the "
                    "driver: choose a path that driver and executors share."
                )
        parts[side] = len(found)
    return parts


def _part(side: str, number: int) -> str:
    return f"{side}/part-{number:05d}"


@dataclass(frozen=True)
class _Export:
    """Numbers of ranges in, those that have rows out, which are written: for mapInArrow."""

    path: str
    form: VectorFormat
    rows: StoredRows
    side: int
    settings: Settings
    scale: Scale

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        side = "users" if self.side == USER_SIDE else "items"
        for batch in batches:
            for number in batch.column("id").to_pylist():
                table = FactorTable(self.side, self.rows.shape.kind, self.settings)
                for packed in self.rows.read(number):
                    unpack_rows(packed, table)
                if table.size:
                    written = vector_table(table, self.scale)
                    WRITERS[self.form](ObjectStore(self.path), _part(side, number), written)
                    yield pa.RecordBatch.from_pydict({"id": pa.array([number], pa.int64())})


# ---- formats --------------------------------------------------------------------------------


def _write_parquet(store: ObjectStore, name: str, table: pa.Table) -> None:
    store.write_table(f"{name}.parquet", table)


def _write_csv(store: ObjectStore, name: str, table: pa.Table) -> None:
    """Lines of id and vector, as PostgreSQL reads them: a float has digits enough to come back."""
    ids = table.column("id").to_pylist()
    if pa.types.is_string(table.column("id").type):
        ids = ['"' + one.replace('"', '""') + '"' for one in ids]
    lines = [
        f'{one},"[{",".join(map(str, row))}]"\n'
        for one, row in zip(ids, _matrix(table), strict=True)
    ]
    store.write(f"{name}.csv", "".join(lines).encode())


def _write_points(store: ObjectStore, name: str, table: pa.Table) -> None:
    """Ids of points are whole numbers from 0 or UUIDs: others are in the payload."""
    lines = []
    rows = table.column("vector").to_pylist()
    for one, row in zip(table.column("id").to_pylist(), rows, strict=True):
        point = one if isinstance(one, int) and one >= 0 else str(uuid.uuid5(_NAMES, repr(one)))
        lines.append(json.dumps({"id": point, "vector": row, "payload": {"id": one}}) + "\n")
    store.write(f"{name}.jsonl", "".join(lines).encode())


def _write_matrix(store: ObjectStore, name: str, table: pa.Table) -> None:
    ids = table.column("id")
    arrays = {name: _matrix(table)}
    # faiss knows numbers alone
    numbers = not pa.types.is_string(ids.type)
    arrays[f"{name}-ids"] = ids.to_numpy() if numbers else np.array(ids.to_pylist(), np.str_)
    for what, array in arrays.items():
        held = io.BytesIO()
        np.save(held, array, allow_pickle=False)
        store.write(f"{what}.npy", held.getvalue())


def _matrix(table: pa.Table) -> Any:
    flat = table.column("vector").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(table.num_rows, -1).astype(np.float32)


WRITERS: Final[dict[str, Callable[[ObjectStore, str, pa.Table], None]]] = {
    "parquet": _write_parquet,
    "milvus": _write_parquet,
    "pgvector": _write_csv,
    "qdrant": _write_points,
    "faiss": _write_matrix,
}
