"""Pack: rows of ratings become a few binary columns, checked on the way (executor).

One pass over the user's table. What comes out is small in rows, so that caching it, counting it
and moving it to the training tasks costs next to nothing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession

from sparkml_sgdals.arrays.ipc import in_pieces, narrow, to_bytes
from sparkml_sgdals.arrays.screening import NO_LIMITS, Limits, Problems, screen, set_far_aside
from sparkml_sgdals.arrays.value_range import Tally
from sparkml_sgdals.spark_jobs import gathered
from sparkml_sgdals.spark_workers import need_workers

__all__ = [
    "PACK_DDL",
    "ROWS_PER_CELL",
    "PackedCounts",
    "batches_by_rows",
    "count_packed",
    "pack",
    "pack_cell",
]

PACK_DDL: Final = "count bigint, bad bigint, payload binary, problems string, tallies string"
_PACK_SCHEMA: Final = pa.schema(
    [
        ("count", pa.int64()),
        ("bad", pa.int64()),
        ("payload", pa.binary()),
        ("problems", pa.string()),
        ("tallies", pa.string()),
    ]
)
ROWS_PER_CELL: Final = 500_000
_MAX_BYTES: Final = "spark.sql.execution.arrow.maxBytesPerBatch"
_MAX_BYTES_BY_DEFAULT: Final = ("67108864b", "268435456b")
_NO_LIMIT: Final = str(2**31 - 1)


@dataclass(frozen=True)
class PackedCounts:
    """Ratings packed, rows set aside, and for what.

    Attributes
    ----------
    ratings : int
        rows that were packed
    bad_rows : int
        rows that were set aside
    problems : Problems
        the same by fault; a row may have several
    tallies : dict[str, Tally]
        how ratings, and weights, that were packed are spread
    """

    ratings: int
    bad_rows: int
    problems: Problems
    tallies: dict[str, Tally] = field(default_factory=dict)


@dataclass(frozen=True)
class _Pack:
    """The function of the packing tasks; plain values only, so that it pickles by reference."""

    keep: bool
    limits: Limits

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for table in in_pieces(batches, ROWS_PER_CELL):
            yield pack_cell(table, self.keep, self.limits)


def pack_cell(table: pa.Table, keep: bool, limits: Limits = NO_LIMITS) -> pa.RecordBatch:
    """One row of packed ratings, from a table as `screening.screen` takes it."""
    table, bad, problems = screen(table, keep)
    table, far, too_far = set_far_aside(table, limits, keep)
    tallies = {
        name: Tally.of(table.column(name).to_numpy()).buckets
        for name in ("rating", "weight")
        if name in table.column_names
    }
    payload = to_bytes(narrow(table).combine_chunks())
    values = [
        [table.num_rows], [int(bad.sum()) + int(far.sum())], [payload],
        [json.dumps(problems | too_far)], [json.dumps(tallies)],
    ]  # fmt: skip
    return pa.RecordBatch.from_arrays(
        [pa.array(v, f.type) for v, f in zip(values, _PACK_SCHEMA, strict=True)],
        schema=_PACK_SCHEMA,
    )


@contextmanager
def batches_by_rows(spark: SparkSession) -> Iterator[None]:
    """Let Spark fill Arrow batches by rows alone while narrow rows are packed.

    Below any limit in bytes Spark adds up the sizes of all buffers of a batch for every row that it
    writes into it, which takes twice as long as everything else that it does to hand a rating over.
    A limit that is not Spark's own default is the user's and stays. `persist` and the action have
    to be inside.
    """
    replaced = None
    # where a session may not ask for it or change it, packing is slower and no less right
    with suppress(PySparkException):
        limit = spark.conf.get(_MAX_BYTES)
        if limit in _MAX_BYTES_BY_DEFAULT:
            spark.conf.set(_MAX_BYTES, _NO_LIMIT)
            replaced = limit
    try:
        yield
    finally:
        if replaced is not None:
            # a session that is gone must not hide why
            with suppress(PySparkException):
                spark.conf.set(_MAX_BYTES, replaced)


def pack(ratings: DataFrame, keep: bool, limits: Limits = NO_LIMITS) -> DataFrame:
    """Pack ratings, as `select_ratings` gives them, into rows of PACK_DDL."""
    need_workers(ratings.sparkSession)
    return gathered(ratings).mapInArrow(_Pack(keep, limits), PACK_DDL)


def count_packed(packed: DataFrame) -> PackedCounts:
    """Count what was packed; the one action that computes a persisted `packed`."""
    problems: Counter[str] = Counter()
    tallies: dict[str, Tally] = {}
    ratings, bad_rows = 0, 0
    for cell in packed.select("count", "bad", "problems", "tallies").collect():
        ratings += cell[0]
        bad_rows += cell.bad
        problems.update(json.loads(cell.problems))
        for name, buckets in json.loads(cell.tallies).items():
            own = Tally(tuple((n, least, greatest) for n, least, greatest in buckets))
            tallies[name] = tallies.get(name, Tally()).plus(own)
    return PackedCounts(ratings, bad_rows, dict(problems), tallies)
