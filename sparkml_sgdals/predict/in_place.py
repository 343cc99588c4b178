"""Factors of a version that is read where it lies, as DataFrames: tasks read its files (driver).

Rows that have changed since the runs were written are in memory, and few; the others are read by
tasks, each a range of keys, and never pass through the driver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkml_sgdals.spark_workers import need_workers
from sparkml_sgdals.state.columns import list_column
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.settings import Settings
from sparkml_sgdals.state.vectors import public_means
from sparkml_sgdals.store.objects import ObjectStore
from sparkml_sgdals.store.overlay import Overlay
from sparkml_sgdals.store.packed_rows import Packed, RowShape, search_keys
from sparkml_sgdals.store.sorted_runs import Run, merged_rows

__all__ = [
    "PIECE", "StoredRows", "changed_table", "counts_below", "public_in_place", "rows_in_place",
    "stored_frame", "stored_rows",
]  # fmt: skip

PIECE: Final = 131_072
"""Rows that a task reads, about."""
_SAMPLES: Final = 64
"""Keys of each piece by which ranges are cut, about."""

Columns = Callable[[Packed], dict[str, pa.Array]]


@dataclass(frozen=True)
class StoredRows:
    """Rows of one side that lie in files, in ranges of keys; plain values only, so that it travels.

    Attributes
    ----------
    bounds : tuple[int, ...]
        first key of each range but the first
    newer : pa.Array
        ids whose rows in the files do not count any more
    """

    path: str
    shape: RowShape
    entries: tuple[dict[str, Any], ...]
    bounds: tuple[int, ...]
    newer: pa.Array

    @property
    def ranges(self) -> int:
        """Number of ranges."""
        return len(self.bounds) + 1

    def read(self, number: int) -> Iterator[Packed]:
        """Yield the rows of a range in the order of their keys, some thousand at a time.

        Raises
        ------
        StorageError
            a file is missing or damaged
        """
        low = self.bounds[number - 1] if number else 0
        high = self.bounds[number] if number < len(self.bounds) else None
        keys = search_keys(self.newer)
        inside = keys >= np.uint64(low)
        if high is not None:
            inside &= keys < np.uint64(high)
        newer = self.newer.filter(pa.array(inside))
        store = ObjectStore(self.path)
        runs = [Run.within(store, self.shape, entry, low, high) for entry in self.entries]
        try:
            yield from merged_rows(runs, newer if len(newer) else None)
        finally:
            for run in runs:
                run.close()


def stored_rows(stored: Overlay, side: str, rows: int = PIECE) -> StoredRows:
    """Return the rows of a side that lie in files, in ranges of about so many rows."""
    runs, changed = stored.runs(side), changed_table(stored, side)
    stride = max(1, rows // _SAMPLES)
    sample = np.sort(np.concatenate([run.keys[::stride] for run in runs]))
    cuts = np.unique(sample[_SAMPLES::_SAMPLES])
    # text has keys of strings as they are, whatever the column's type
    return StoredRows(
        stored.store.path,
        stored.shape(side),
        tuple(run.entry for run in runs),
        tuple(int(key) for key in cuts),
        changed.index.ids(),
    )


def changed_table(stored: Overlay, side: str) -> FactorTable:
    """Return the rows of a side that are in memory because no file that counts has them."""
    held = stored.state.users if side == "users" else stored.state.items
    rows = stored.changed(side)
    table = FactorTable(held.side, held.index.kind, held.settings)
    table.put(held.index.ids(rows), held.take(rows).arrays)
    return table


def stored_frame(spark: SparkSession, rows: StoredRows, columns: Columns, ddl: str) -> DataFrame:
    """Return what lies in files as a DataFrame, a range a partition."""
    need_workers(spark)
    task = _Read(rows, columns)
    return spark.range(0, rows.ranges, 1, rows.ranges).mapInArrow(task, ddl)


def rows_in_place(
    spark: SparkSession, stored: Overlay, side: str, deviations: bool, in_memory: DataFrame
) -> DataFrame:
    """Return one side's factors as `scoring.factor_frame` does.

    Parameters
    ----------
    spark : SparkSession
        where the DataFrame is made
    stored : Overlay
        the version
    side : str
        "users" or "items"
    deviations : bool
        whether variances and noise factors are asked for
    in_memory : DataFrame
        `factor_frame` of `changed_table`
    """
    ddl = ", ".join(f"{field.name} {field.dataType.simpleString()}" for field in in_memory.schema)
    rows = stored_rows(stored, side)
    frame = stored_frame(spark, rows, _Factors(deviations), ddl)
    return _with_changed(frame, rows, in_memory)


def public_in_place(
    spark: SparkSession, stored: Overlay, side: str, id_type: str, in_memory: DataFrame
) -> DataFrame:
    """Return one side's factors in units of the ratings, as `scoring.public_factors` does."""
    spread = stored.state.scale.spread
    held = stored.state.users if side == "users" else stored.state.items
    id_type = held.index.type_name(id_type)
    kind = "bigint" if held.index.kind == "int" else "string"
    ddl = f"id {kind}, features array<float>, bias float"
    columns = _Public(spread, held.settings)
    rows = stored_rows(stored, side)
    frame = stored_frame(spark, rows, columns, ddl).withColumn("id", F.col("id").cast(id_type))
    return _with_changed(frame, rows, in_memory)


def _with_changed(frame: DataFrame, rows: StoredRows, in_memory: DataFrame) -> DataFrame:
    """Put what has changed beside what lies in files, to be shuffled where both are joined.

    Of more than one range: Spark takes their numbers for all there is, some bytes, and would send
    every row to the driver to broadcast them.
    """
    whole = frame.unionByName(in_memory) if len(rows.newer) else frame
    return whole.hint("merge") if rows.ranges > 1 else whole


def counts_below(spark: SparkSession, stored: Overlay, least: int) -> tuple[float, float]:
    """Return the share of users, and of items, with fewer than `least` ratings."""
    found = []
    for side, ids in zip(("users", "items"), stored.state.ids, strict=True):
        changed = changed_table(stored, side).count
        frame = stored_frame(spark, stored_rows(stored, side), _Counts(least), "few bigint")
        few = frame.agg(F.sum("few").alias("few")).toArrow().column("few")[0].as_py() or 0
        found.append((few + int((changed < least).sum())) / ids if ids else float("nan"))
    return found[0], found[1]


@dataclass(frozen=True)
class _Read:
    """Numbers of ranges in, columns of their rows out: the function of mapInArrow."""

    rows: StoredRows
    columns: Columns

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for number in batch.column("id").to_pylist():
                for packed in self.rows.read(number):
                    if len(packed):
                        yield pa.RecordBatch.from_pydict(self.columns(packed))


@dataclass(frozen=True)
class _Factors:
    """Id and mean, and what deviations need if asked."""

    deviations: bool

    def __call__(self, packed: Packed) -> dict[str, pa.Array]:
        found = {"id": packed.ids(), "mean": list_column(_own(packed.column("mean")))}
        if self.deviations:
            found["variance"] = list_column(_own(packed.column("var")))
            found["noise_factor"] = pa.array(_own(packed.column("noise_factor"))[:, 0])
        return found


@dataclass(frozen=True)
class _Public:
    """Id, features and bias in units of the ratings."""

    spread: float
    settings: Settings

    def __call__(self, packed: Packed) -> dict[str, pa.Array]:
        mean = public_means(packed.column("mean"), self.settings)
        features = mean[:, 1:] * np.float32(np.sqrt(self.spread))
        return {
            "id": packed.ids(),
            "features": list_column(np.ascontiguousarray(features)),
            "bias": pa.array(mean[:, 0] * np.float32(self.spread)),
        }


@dataclass(frozen=True)
class _Counts:
    """How many rows have fewer ratings than so many."""

    least: int

    def __call__(self, packed: Packed) -> dict[str, pa.Array]:
        few = int((packed.words[:, 1].view(np.int64) < self.least).sum())
        return {"few": pa.array([few], pa.int64())}


def _own(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(array)
