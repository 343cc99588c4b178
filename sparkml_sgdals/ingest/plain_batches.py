"""Batches of few, plain columns, which come to the driver as they are (driver).

Spark plans each batch of a stream anew, and what it plans and compiles for a projection and a
filter takes it longer than a thousand rows do. So what the SQL of `columns` says is done here in
Arrow, to the same bits, where a type leaves no doubt what that is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import (
    BooleanType,
    ByteType,
    DataType,
    DateType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    ShortType,
    StringType,
    StructType,
    TimestampNTZType,
    TimestampType,
)

from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.ingest.columns import FUTURE, RatingColumns

__all__ = ["PlainBatches", "partitions_of", "plain_batches"]

_LIMIT: Final = "spark.driver.maxResultSize"
_INTEGERS: Final = (ByteType, ShortType, IntegerType, LongType)
_NUMBERS: Final = (*_INTEGERS, FloatType, DoubleType)
_NARROW: Final = (*_NUMBERS, BooleanType, DateType, TimestampType, TimestampNTZType)
"""Types of columns that may come along unread."""
_MOST_UNREAD: Final = 4
_FULL: Final = 10_000
"""Rows of an Arrow batch of Spark's (spark.sql.execution.arrow.maxRecordsPerBatch)."""


@dataclass(frozen=True)
class PlainBatches:
    """How the batches of one stream are read from their own columns.

    Attributes
    ----------
    taken : tuple[tuple[str, str | None, pa.DataType | None], ...]
        of each column of ratings its name, that of the batch's column (None where every rating is
        1), and the type that it is cast to, None for that which it has
    """

    taken: tuple[tuple[str, str | None, pa.DataType | None], ...]

    def collect(self, df: DataFrame) -> pa.Table | None:
        """Return a batch's ratings, as `select_ratings` gives them; None where Spark will not.

        That is where it has more bytes than spark.driver.maxResultSize lets it send.
        """
        try:
            return self.of(df.toArrow())
        except Exception as failure:
            # Py4J's own where a job was broken off
            if _LIMIT not in str(failure):
                raise
            return None

    def of(self, table: pa.Table) -> pa.Table:
        """Return the ratings in a batch's own columns."""
        ones = pa.chunked_array([pa.repeat(pa.scalar(1.0, pa.float32()), table.num_rows)])
        columns: dict[str, Any] = {}
        for name, theirs, kind in self.taken:
            column = ones if theirs is None else table.column(theirs)
            if pa.types.is_timestamp(column.type):
                column = column.cast(pa.timestamp("us", column.type.tz))
            # doubles beyond the largest float become infinite, as Spark's do
            columns[name] = column if kind is None else column.cast(kind, safe=False)
        return pa.table(columns)


def partitions_of(table: pa.Table) -> int:
    """Return how many partitions with rows a table came in, as far as its chunks tell."""
    lengths = [len(chunk) for chunk in table.column(0).chunks if len(chunk)]
    return sum(length < _FULL for length in lengths) + any(length >= _FULL for length in lengths)


def plain_batches(
    spark: SparkSession,
    schema: StructType,
    columns: RatingColumns,
    kinds: tuple[IdKind, IdKind],
) -> PlainBatches | None:
    """Return how batches of a schema are read as they are; None where Spark has to select.

    That is where ids, ratings or times are not of a type that Arrow casts as Spark does, where
    more than a few columns would come along unread, or texts, where there are features, and where
    spark.driver.maxResultSize does not bound what a batch sends.
    """
    if any(columns.features) or not _bounded(spark):
        return None
    names = [name.lower() for name in schema.names]
    given = dict(zip(names, schema.fields, strict=False))
    if len(given) < len(names):
        return None
    taken: list[tuple[str, str | None, pa.DataType | None]] = []
    wanted = [("user", columns.user), ("item", columns.item), ("rating", columns.rating)]
    wanted += [("time", columns.time)] if columns.time is not None else []
    wanted += [("weight", columns.weight)] if columns.weight is not None else []
    wanted += [("future", FUTURE)] if FUTURE in schema.names else []
    for ours, name in wanted:
        field = given.get(name.lower())
        if field is None:
            if ours != "rating" or columns.rating_needed:
                return None
            taken.append((ours, None, None))
            continue
        cast = _cast(ours, field.dataType, kinds)
        if cast is None:
            return None
        taken.append((ours, field.name, cast[0]))
    read = {theirs for _, theirs, _ in taken}
    unread = [field for field in schema.fields if field.name not in read]
    if len(unread) > _MOST_UNREAD or not all(type(f.dataType) in _NARROW for f in unread):
        return None
    return PlainBatches(tuple(taken))


def _cast(
    ours: str, kind: DataType, kinds: tuple[IdKind, IdKind]
) -> tuple[pa.DataType | None] | None:
    """Return the type that a column is cast to, in brackets, None where Spark has to."""
    if ours in ("user", "item"):
        wanted = kinds[ours == "item"]
        if wanted == "str":
            return (None,) if kind == StringType() else None
        return (pa.int64(),) if type(kind) in _INTEGERS else None
    if ours == "time":
        return (pa.int64(),) if type(kind) in (*_INTEGERS, TimestampType) else None
    if ours == "future":
        return (None,) if type(kind) is BooleanType else None
    return (pa.float32(),) if type(kind) in _NUMBERS else None


def _bounded(spark: SparkSession) -> bool:
    limit = spark.conf.get(_LIMIT, "1g") or ""
    return re.match(r"\s*0*[1-9]", limit) is not None
