"""A table in two: what candidates learn, and what they are judged on (driver, lazy).

Which side a row is on depends on the table and the seed alone, not on partitions or their order.
"""

from __future__ import annotations

from typing import Final, Literal

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.ingest.columns import RatingColumns, id_column, quoted, time_column

__all__ = ["SPLITS", "Split", "split_table"]

Split = Literal["random", "time", "last"]
SPLITS: Final[tuple[Split, ...]] = ("random", "time", "last")

_BUCKETS: Final = 4096
_HELD_OUT: Final = "sparkml_sgdals held out"


def split_table(
    table: DataFrame,
    columns: RatingColumns,
    kinds: tuple[IdKind, IdKind],
    how: Split,
    ratio: float,
    seed: int,
) -> tuple[DataFrame, DataFrame]:
    """Return what to learn and what to judge on, with all columns of the table.

    Parameters
    ----------
    table : DataFrame
        ratings or events
    columns : RatingColumns
        their columns; 'time' and 'last' need that of the time
    kinds : tuple[IdKind, IdKind]
        of the ids of users and items
    how : Split
        'random' takes pairs by a hash, so that a repeated pair is on one side; 'time' all that is
        later than a share of the rows; 'last' the last row of each user that has two or more
    ratio : float
        share of the table that is learned, but for 'last'
    seed : int
        of 'random'

    Raises
    ------
    ValueError
        a missing column, or no column of times where one is needed
    TypeError
        a column of a wrong type
    """
    schema = table.schema
    user = id_column(schema, "userCol", columns.user, kinds[0])
    item = id_column(schema, "itemCol", columns.item, kinds[1])
    if how == "random":
        # the upper 53 bits: as many as a double holds
        drawn = F.shiftrightunsigned(F.xxhash64(F.lit(seed), user, item), 11)
        held = drawn >= F.lit(int(ratio * 2.0**53))
        return table.where(~held), table.where(held)
    if columns.time is None:
        raise ValueError(
            f"split {how!r} needs to know when a row was: set timestampCol of the estimator."
        )
    time = time_column(schema, columns.time)
    if how == "time":
        held = F.coalesce(time > F.lit(_cut(table.select(time.alias("time")), ratio)), F.lit(False))
        return table.where(~held), table.where(held)
    by_user = Window.partitionBy(user)
    order = [time.desc_nulls_last(), item.desc()]
    if any(name.lower() == columns.rating.lower() for name in schema.names):
        order.append(F.col(quoted(columns.rating)).desc())
    last = F.row_number().over(by_user.orderBy(*order)) == 1
    marked = table.withColumn(_HELD_OUT, last & (F.count(F.lit(1)).over(by_user) > 1))
    flag: Column = F.col(quoted(_HELD_OUT))
    return marked.where(~flag).drop(_HELD_OUT), marked.where(flag).drop(_HELD_OUT)


def _cut(times: DataFrame, ratio: float) -> int:
    """Return the earliest time that at least a share of the rows is not later than, exactly."""
    times = times.where(F.col("time").isNotNull())
    ends = times.agg(
        F.min("time").alias("low"), F.max("time").alias("high"), F.count("time").alias("rows")
    )
    low, high, rows = (column[0].as_py() for column in ends.toArrow().columns)
    if not rows:
        return 0
    # a histogram of ever finer buckets: no task ever holds the times
    wanted, before = max(1, round(ratio * rows)), 0
    while low < high:
        width = (high - low) // _BUCKETS + 1
        bucket = F.expr(f"(time - {low}L) div {width}L")
        inside = times.where((F.col("time") >= low) & (F.col("time") <= high))
        counts = inside.groupBy(bucket.alias("bucket")).agg(F.count(F.lit(1)).alias("rows"))
        found = counts.toArrow().sort_by("bucket").to_pydict()
        for number, size in zip(found["bucket"], found["rows"], strict=True):
            if before + size >= wanted:
                low, high = low + number * width, min(high, low + (number + 1) * width - 1)
                break
            before += size
    return int(low)
