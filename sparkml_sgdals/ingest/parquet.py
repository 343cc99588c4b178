"""Pack ratings straight from Parquet files: tasks read columns, and no row is made in the JVM.

Handing rows to Python is the largest part of packing a DataFrame. What comes out is what
`packing.pack` makes of `spark.read.parquet(path)`.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import types as T

from sparkml_sgdals.arrays.id_kinds import IdKind, id_array_type
from sparkml_sgdals.arrays.screening import NO_LIMITS, Limits
from sparkml_sgdals.errors import StorageError
from sparkml_sgdals.ingest.columns import RatingColumns
from sparkml_sgdals.ingest.packing import PACK_DDL, ROWS_PER_CELL, pack_cell
from sparkml_sgdals.spark_jobs import cores, gathered
from sparkml_sgdals.spark_workers import need_workers, workers_see
from sparkml_sgdals.store.objects import ObjectStore, full_path

__all__ = ["Split", "pack_parquet", "row_group_splits", "see_files"]

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
_SPLIT_DDL: Final = "file string, groups array<int>, first bigint, count bigint"
_MOST_ROWS: Final = 2_000_000
_LEAST_ROWS: Final = 100_000
"""Rows of a split: fewer are not worth a task of their own."""
_SPLITS_A_CORE: Final = 2
Split = tuple[str, list[int], int, int]
"""path of a file, numbers of row groups, the first row of these, how many rows"""
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
        "time": () if columns.moments else _INTEGERS,
        "weight": _NUMBERS,
    }
    types = {field.name: field.dataType for field in df.schema.fields}
    if not all(isinstance(types.get(name), allowed[ours]) for ours, name in wanted.items()):
        return None
    store = ObjectStore(full_path(path))
    spark = df.sparkSession
    need_workers(spark)
    splits = row_group_splits(
        store, {name: types[name] for name in wanted.values()}, _SPLITS_A_CORE * cores(spark)
    )
    if splits is None:
        return None
    reader = _Read(store.path, tuple(wanted.items()), kinds, keep, limits)
    cut = spark.createDataFrame(splits, _SPLIT_DDL)
    return gathered(cut.repartition(max(len(splits), 1))).mapInArrow(reader, PACK_DDL)


def see_files(spark: SparkSession, path: str) -> None:
    """See that executors find the files of a path before Spark looks for their columns.

    Parameters
    ----------
    spark : SparkSession
        whose tasks are to read them
    path : str
        local, or a URI; of an object store, or a pattern, it is left to Spark

    Raises
    ------
    StorageError
        the files are on this machine's disk, and not on that of all executors
    """
    if "://" in path and not path.startswith("file:"):
        return
    root = ObjectStore(path).root
    if os.path.exists(root) and not workers_see(spark, root):
        raise StorageError(
            f"{path} is on the driver's disk, and not on that of all executors, whose tasks read "
            "it: put the table where all of them see it, such as a URI of an object store or HDFS."
        )


def row_group_splits(
    store: ObjectStore, wanted: dict[str, T.DataType], tasks: int = 0
) -> list[Split] | None:
    """Files, row groups and rows under a path that hold all its rows, for one task each.

    Parameters
    ----------
    store : ObjectStore
        of the folder or file
    wanted : dict[str, T.DataType]
        columns and the types that Spark reads them as
    tasks : int
        how many there should be at least, where there are rows enough; 0 where that is not known

    Returns
    -------
    path of a file, numbers of its row groups, and which rows of these: the first and how many;
    None where Spark might find other files or columns under the path, or other types of them
    """
    # without a schema of its own, files that Spark does not read would be opened for one
    dataset = ds.dataset(store.root, pa.schema([]), "parquet", store.fs)
    in_folders = _folder_columns(store.root, dataset.files)
    # of a column in files and in names of folders Spark takes the latter
    if in_folders is None or in_folders & {name.lower() for name in wanted}:
        return None
    found: list[tuple[str, list[int]]] = []
    for fragment in dataset.get_fragments():
        held = fragment.physical_schema
        for name, kind in wanted.items():
            # -1 where there is none, or more than one
            place = held.get_field_index(name)
            if place < 0 or held.field(place).type not in _STORED_AS[type(kind)]:
                return None
        found.append((fragment.path, [group.num_rows for group in fragment.row_groups]))
    rows = sum(sum(sizes) for _, sizes in found)
    most = max(min(-(-rows // max(tasks, 1)), _MOST_ROWS), _LEAST_ROWS)
    return [split for file, sizes in found for split in _splits(file, sizes, most)]


def _splits(file: str, sizes: list[int], most: int) -> Iterator[Split]:
    """Cut a file into splits of up to `most` rows, or a little more: small row groups stay whole.

    Parts of a row group are read by a task each, which has to decode what lies before its own.
    """
    groups: list[int] = []
    rows = 0
    for number, size in enumerate(sizes):
        if groups and rows + size > most:
            yield file, groups, 0, rows
            groups, rows = [], 0
        if size <= most:
            groups.append(number)
            rows += size
            continue
        parts = -(-size // most)
        ends = [size * part // parts for part in range(parts + 1)]
        for first, end in pairwise(ends):
            yield file, [number], first, end - first
    if groups:
        yield file, groups, 0, rows


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
                    read = parquet.iter_batches(
                        ROWS_PER_CELL, split["groups"], [name for _, name in self.wanted],
                        use_threads=False,
                    )  # fmt: skip
                    for rows in _between(read, split["first"], split["count"]):
                        arrays = [
                            pc.cast(rows.column(name), types[ours], safe=False)
                            for ours, name in self.wanted
                        ]
                        names = [ours for ours, _ in self.wanted]
                        yield pack_cell(pa.table(arrays, names), self.keep, self.limits)


def _between(batches: Iterable[pa.RecordBatch], first: int, count: int) -> Iterator[pa.RecordBatch]:
    """Yield so many rows from the first on."""
    place, end = 0, first + count
    for batch in batches:
        low, high = max(first - place, 0), min(end - place, batch.num_rows)
        place += batch.num_rows
        if low < high:
            yield batch.slice(low, high - low)
        if place >= end:
            return
