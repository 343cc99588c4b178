"""Pack ratings straight from Parquet files: tasks read columns, and no row is made in the JVM.

Handing rows to Python is the largest part of packing a DataFrame. What comes out is what
`packing.pack` makes of `spark.read.parquet(path)`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyspark.sql import DataFrame
from pyspark.sql import types as T

from sparkml_sgdals.arrays.id_kinds import IdKind, id_array_type
from sparkml_sgdals.arrays.screening import NO_LIMITS, Limits
from sparkml_sgdals.ingest.columns import RatingColumns
from sparkml_sgdals.ingest.packing import PACK_DDL, ROWS_PER_CELL, pack_cell
from sparkml_sgdals.spark_workers import need_workers
from sparkml_sgdals.store.objects import ObjectStore, full_path

__all__ = ["pack_parquet", "row_group_splits"]

logger = logging.getLogger(__name__)

_INTEGERS: Final = (T.ByteType, T.ShortType, T.IntegerType, T.LongType)
_NUMBERS: Final = (*_INTEGERS, T.FloatType, T.DoubleType)
_STORED_AS: Final[dict[type[T.DataType], tuple[pa.DataType, ...]]] = {
    T.ByteType: (pa.int8(),),
    T.ShortType: (pa.int16(),),
    T.IntegerType: (pa.int32(),),
    T.LongType: (pa.int64(),),
    T.FloatType: (pa.float32(),),
    T.DoubleType: (pa.float64(),),
    T.StringType: (pa.string(), pa.large_string()),
}
"""Types in files that need no decision of Spark's how to convert them."""
_SPLIT_DDL: Final = "file string, groups array<int>"
_ROWS_PER_SPLIT: Final = 2_000_000
_PATTERN: Final = re.compile(r"[*?{\[]")


def pack_parquet(
    df: DataFrame, path: str, columns: RatingColumns, kinds: tuple[IdKind, IdKind], keep: bool,
    limits: Limits = NO_LIMITS,
) -> DataFrame | None:  # fmt: skip
    """Pack the ratings of a folder or file of Parquet.

    Parameters
    ----------
    df : DataFrame
        the same files as Spark reads them, for its schema and session; no job is run on it
    path : str
        local, or a URI that pyarrow.fs reads, the same on the executors
    columns : RatingColumns
        where the ratings are
    kinds : tuple[IdKind, IdKind]
        of the ids of users and of items
    keep : bool
        whether rows whose time or weight alone is bad are learned
    limits : Limits
        how far out ratings and weights may lie

    Returns
    -------
    the cells, or None where only Spark reads these columns as it should: ids or times that have
    to be converted, columns in structs or in the names of folders
    """
    if _PATTERN.search(path):
        # Spark reads what a pattern names, and only Spark knows it as it does
        return None
    wanted = {"user": columns.user, "item": columns.item, "rating": columns.rating}
    wanted |= {"time": columns.time} if columns.time else {}
    wanted |= {"weight": columns.weight} if columns.weight else {}
    allowed = {
        "user": _INTEGERS if kinds[0] == "int" else (T.StringType,),
        "item": _INTEGERS if kinds[1] == "int" else (T.StringType,),
        "rating": _NUMBERS,
        "time": _INTEGERS,
        "weight": _NUMBERS,
    }
    types = {field.name: field.dataType for field in df.schema.fields}
    if not all(isinstance(types.get(name), allowed[ours]) for ours, name in wanted.items()):
        return None
    store = ObjectStore(full_path(path))
    splits = row_group_splits(store, {name: types[name] for name in wanted.values()})
    if splits is None:
        return None
    need_workers(df.sparkSession)
    reader = _Read(store.path, tuple(wanted.items()), kinds, keep, limits)
    return df.sparkSession.createDataFrame(splits, _SPLIT_DDL).mapInArrow(reader, PACK_DDL)


def row_group_splits(
    store: ObjectStore, wanted: dict[str, T.DataType]
) -> list[tuple[str, list[int]]] | None:
    """Files and row groups under a path that hold all its rows, for one task each.

    Parameters
    ----------
    store : ObjectStore
        of the folder or file
    wanted : dict[str, T.DataType]
        columns and the types that Spark reads them as

    Returns
    -------
    path of a file and numbers of its row groups; None where Spark might find other files or
    columns under the path, or other types of them
    """
    # without a schema of its own, files that Spark does not read would be opened for one
    dataset = ds.dataset(store.root, pa.schema([]), "parquet", store.fs)
    in_folders = _folder_columns(store.root, dataset.files)
    # of a column in files and in names of folders Spark takes the latter
    if in_folders is None or in_folders & {name.lower() for name in wanted}:
        return None
    splits: list[tuple[str, list[int]]] = []
    for fragment in dataset.get_fragments():
        held = fragment.physical_schema
        for name, kind in wanted.items():
            # -1 where there is none, or more than one
            place = held.get_field_index(name)
            if place < 0 or held.field(place).type not in _STORED_AS[type(kind)]:
                return None
        groups: list[int] = []
        rows = 0
        for group in fragment.row_groups:
            groups.append(group.id)
            rows += group.num_rows
            if rows >= _ROWS_PER_SPLIT:
                splits.append((fragment.path, groups))
                groups, rows = [], 0
        if groups:
            splits.append((fragment.path, groups))
    return splits


def _folder_columns(root: str, files: list[str]) -> set[str] | None:
    """Columns in names of folders as name=value, in lower case; None where folders differ in them.

    Spark reads only the files right under a path, or only those in such folders.
    """
    found = set()
    for file in files:
        names = [name.partition("=") for name in file[len(root) :].strip("/").split("/")[:-1]]
        if not all(equals for _, equals, _ in names):
            return None
        found.add(tuple(unquote(name).lower() for name, _, _ in names))
    return set(*found) if len(found) <= 1 else None


@dataclass(frozen=True)
class _Read:
    """The function of the reading tasks; plain values only, so that it pickles by reference."""

    path: str
    wanted: tuple[tuple[str, str], ...]
    kinds: tuple[IdKind, IdKind]
    keep: bool
    limits: Limits

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        files = ObjectStore(self.path).fs
        types = {"user": id_array_type(self.kinds[0]), "item": id_array_type(self.kinds[1])}
        types |= {"rating": pa.float32(), "weight": pa.float32(), "time": pa.int64()}
        for batch in batches:
            for split in batch.to_pylist():
                with files.open_input_file(split["file"]) as file:
                    parquet = pq.ParquetFile(file)
                    for rows in parquet.iter_batches(
                        ROWS_PER_CELL, split["groups"], [name for _, name in self.wanted],
                        use_threads=False,
                    ):  # fmt: skip
                        arrays = [
                            pc.cast(rows.column(name), types[ours], safe=False)
                            for ours, name in self.wanted
                        ]
                        names = [ours for ours, _ in self.wanted]
                        yield pack_cell(pa.table(arrays, names), self.keep, self.limits)
