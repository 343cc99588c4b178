"""A micro-batch or small table on the driver, as Arrow, unless it is too large (driver)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from sparkml_sgdals.index import IdKind
from sparkml_sgdals.ratings import Problems, screen
from sparkml_sgdals.schema import RatingColumns, select_ratings

__all__ = ["COLLECT_LIMIT", "Collected", "collect_ratings", "invalid_rows"]

COLLECT_LIMIT: Final = 1_000_000
"""Ratings that the driver learns from directly; a larger batch is learned as `fit` learns."""
_FIRST_LOOK: Final = 20_000
_KEPT_INVALID: Final = 10_000


@dataclass(frozen=True)
class Collected:
    """Ratings of a batch.

    Attributes
    ----------
    table : the rows to learn: user, item, rating and perhaps time, weight
    rows : rows of the batch, bad ones included
    bad_rows : how many of them were set aside
    problems : the same by fault; a row may have several
    invalid : the rows set aside, each as JSON
    """

    table: pa.Table
    rows: int
    bad_rows: int
    problems: Problems
    invalid: list[str]


def collect_ratings(
    df: DataFrame, columns: RatingColumns, kinds: tuple[IdKind, IdKind], keep: bool
) -> Collected | None:
    """The ratings of a batch on the driver, or None where it has more than COLLECT_LIMIT rows.

    Notes
    -----
    One job for a small batch: what a partition may send is capped without a count before it.
    """
    ratings = select_ratings(df, columns, kinds, raw=True)
    place = F.monotonically_increasing_id().bitwiseAND(F.lit((1 << 33) - 1))
    first = ratings.withColumn("place", place).where(F.col("place") <= _FIRST_LOOK)
    # only whether a partition was cut crosses to the driver, not the place of every row
    capped = first.withColumn("place", F.col("place") == _FIRST_LOOK)
    table = capped.toArrow()
    if pa.compute.any(table.column("place")).as_py():
        if ratings.count() > COLLECT_LIMIT:
            return None
        table = ratings.toArrow()
    elif table.num_rows > COLLECT_LIMIT:
        # many small partitions: what a batch is learned by must not depend on them
        return None
    else:
        table = table.drop_columns("place")
    raw = table.column("raw")
    good, bad, problems = screen(table.drop_columns("raw"), keep)
    invalid = raw.filter(pa.array(bad)).to_pylist() if bad.any() else []
    return Collected(good, table.num_rows, int(bad.sum()), problems, invalid[:_KEPT_INVALID])


def invalid_rows(
    df: DataFrame, columns: RatingColumns, kinds: tuple[IdKind, IdKind], keep: bool
) -> list[str]:
    """Some of the rows that cannot be learned, as JSON, for a batch too large to collect."""
    if keep:
        # a bad time or weight alone does not set a row aside
        columns = replace(columns, time=None, weight=None)
    raw = select_ratings(df, columns, kinds, raw=True).select("raw")
    found = raw.where(F.col("raw").isNotNull()).limit(_KEPT_INVALID).toArrow()
    return [str(row) for row in found.column("raw").to_pylist()]
