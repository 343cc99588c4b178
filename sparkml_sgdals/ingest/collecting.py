"""A micro-batch or small table on the driver, as Arrow, unless it is too large (driver)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame

from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.arrays.screening import NO_LIMITS, Limits, Problems, screen, set_far_aside
from sparkml_sgdals.ingest.bad_rows import invalid_rows
from sparkml_sgdals.ingest.columns import RatingColumns, select_ratings
from sparkml_sgdals.ingest.features import (
    Vectors,
    announcements,
    named_vectors,
    vectors_of,
    with_vectors,
    without_announced,
)
from sparkml_sgdals.ingest.newest import newest_rows
from sparkml_sgdals.ingest.plain_batches import PlainBatches, partitions_of
from sparkml_sgdals.spark_jobs import task_limit

__all__ = ["COLLECT_LIMIT", "PLAIN_LIMIT", "Collected", "announced_in", "collect_ratings", "rated"]

I64 = npt.NDArray[np.int64]

COLLECT_LIMIT: Final = 1_000_000
"""Ratings that the driver learns from directly; a larger batch is learned as `fit` learns."""
PLAIN_LIMIT: Final = COLLECT_LIMIT // 4
"""Rows of a batch after which the next one may come as it is."""
_FIRST_LOOK: Final = 20_000
_FIRST_STEPS: Final = ((1, 8), (2, 4), (4, 2), (50, 1))
"""Partitions below a number may have so many times _FIRST_LOOK: small tables have few."""
_PLACE_BITS: Final = 33
"""Low bits of monotonically_increasing_id(): the number of a row in its partition."""
_PLACES: Final = (1 << _PLACE_BITS) - 1
_FAR_LOOK: Final = 1_000
"""Rows of each partition beyond _FIRST_STEPS that are sent without being asked for."""


@dataclass(frozen=True)
class Collected:
    """Ratings of a batch.

    Attributes
    ----------
    table : pa.Table
        the rows to learn: user, item, rating and perhaps time, weight
    rows : int
        rows of the batch, bad ones included
    bad_rows : int
        how many of them were set aside
    problems : Problems
        the same by fault; a row may have several
    invalid : list[str]
        the rows set aside, each as JSON
    largest : int
        number of the last row in its largest partition
    partitions : int
        partitions up to the last one that has rows; one more than cores can use where there were
        as many or more, and they were gathered
    tasks : int
        how many of a job its session's cores can use
    vectors : Vectors
        features of the rows to learn, where the table has any
    announced : Vectors
        of rows that rate nothing and say of an id what it is
    """

    table: pa.Table
    rows: int
    bad_rows: int
    problems: Problems
    invalid: list[str]
    largest: int = 0
    partitions: int = 0
    tasks: int = 0
    vectors: Vectors = field(default=(None, None))
    announced: Vectors = field(default=(None, None))


def collect_ratings(
    df: DataFrame,
    columns: RatingColumns,
    kinds: tuple[IdKind, IdKind],
    keep: bool,
    expected: int = 0,
    partitions: int = 0,
    limits_of: Callable[[pa.Table], Limits] = lambda table: NO_LIMITS,
    tasks: int = 0,
    newest: bool = False,
    plain: PlainBatches | None = None,
) -> Collected | None:
    """Return a batch's ratings on the driver, None where it has more than COLLECT_LIMIT rows.

    Parameters
    ----------
    df : DataFrame
        the batch
    columns : RatingColumns
        where its ratings are
    kinds : tuple[IdKind, IdKind]
        of the ids of users and of items
    keep : bool
        whether rows whose time or weight alone is bad are learned
    expected, partitions : int
        `largest` and `partitions` of the batch before
    limits_of : Callable[[pa.Table], Limits]
        how far out ratings and weights may lie, of rows without other faults
    tasks : int
        `tasks` of the batch before; 0 asks the session
    newest : bool
        whether of a pair's ratings the newest is left alone
    plain : PlainBatches | None
        how it is read without a plan of its own, where not much more than before is to be expected

    Notes
    -----
    One job, without a count before it, unless a partition has more rows than `_caps` says: what
    is sent without being asked for is bounded as a whole, with `plain` by
    spark.driver.maxResultSize. Rows set aside are asked for in a job of their own: making their
    text ready costs each batch more than that job costs the few that have some.
    """
    limit = tasks or task_limit(df.sparkSession)
    table = None if plain is None else plain.collect(df)
    if table is not None:
        if table.num_rows > COLLECT_LIMIT:
            return None
        found = partitions_of(table)
        largest = table.num_rows
    else:
        whole = _selected(df, columns, kinds, expected, partitions, limit)
        if whole is None:
            return None
        table, found, largest = whole
    count = table.num_rows
    announced: Vectors = (None, None)
    if any(columns.features):
        # a schema is asked of the JVM
        table, announced = without_announced(table, columns, df.schema)
    good, bad, problems = screen(table, keep)
    limits = limits_of(good)
    good, far, too_far = set_far_aside(good, limits, keep)
    if newest:
        good = newest_rows(good)
    good, vectors = vectors_of(good, columns)
    bad_rows = int(bad.sum()) + int(far.sum())
    if any(columns.features):
        vectors = named_vectors(vectors, df.schema, columns)
        announced = named_vectors(announced, df.schema, columns)
    return Collected(
        good,
        count,
        bad_rows,
        problems | too_far,
        invalid_rows(rated(df, columns), columns, kinds, keep, limits) if bad_rows else [],
        largest=largest,
        partitions=found,
        tasks=limit,
        vectors=vectors,
        announced=announced,
    )


def _selected(
    df: DataFrame,
    columns: RatingColumns,
    kinds: tuple[IdKind, IdKind],
    expected: int,
    partitions: int,
    limit: int,
) -> tuple[pa.Table, int, int] | None:
    """Return the columns of ratings, with `partitions` and `largest`; None where too many rows."""
    # a plan costs each batch some milliseconds: small ones that come in few partitions go without
    many = not 0 < partitions <= limit
    given = df.coalesce(limit) if many else df
    given, also = with_vectors(given, columns) if any(columns.features) else (given, ())
    # one column says both where a row lies and in which partition: each costs every row
    also = ("monotonically_increasing_id() AS line", *also)
    ratings = select_ratings(given, columns, kinds, also=also)
    caps = _caps(expected, partitions, limit if many else 0)
    whens = " ".join(
        f"WHEN shiftright(line, {_PLACE_BITS}) < {last} THEN {cap}" for last, cap in caps
    )
    table = ratings.where(f"line & {_PLACES} <= CASE {whens} ELSE {_FAR_LOOK} END").toArrow()
    part, place = _whereabouts(table)
    cap_of_row = np.select([part < last for last, _ in caps], [c for _, c in caps], _FAR_LOOK)
    if np.any(place == cap_of_row):
        if ratings.count() > COLLECT_LIMIT:
            return None
        table = ratings.toArrow()
        part, place = _whereabouts(table)
    elif table.num_rows > COLLECT_LIMIT:
        # many small partitions: what a batch is learned by must not depend on them
        return None
    found = int(part.max(initial=-1)) + 1
    # gathered to the limit there may be more, which stay gathered
    found = limit + 1 if many and found >= limit else found
    return table.drop_columns("line"), found, int(place.max(initial=0))


def rated(df: DataFrame, columns: RatingColumns) -> DataFrame:
    """Return the rows of a batch that rate something."""
    return df.where(~announcements(df, columns)) if any(columns.features) else df


def announced_in(df: DataFrame, columns: RatingColumns, kinds: tuple[IdKind, IdKind]) -> Vectors:
    """Return what a batch too large to collect says of ids in rows that rate nothing."""
    if not any(columns.features):
        return None, None
    given, also = with_vectors(df.where(announcements(df, columns)), columns)
    table = select_ratings(given, columns, kinds, also=also).toArrow()
    return named_vectors(without_announced(table, columns, df.schema)[1], df.schema, columns)


def _whereabouts(table: pa.Table) -> tuple[I64, I64]:
    """Partition of each row, and its number there."""
    line = table.column("line").to_numpy()
    return line >> _PLACE_BITS, line & _PLACES


def _caps(expected: int, partitions: int, gathered: int = 0) -> list[tuple[int, int]]:
    """Rows that partitions below a number send unasked; those after them send _FAR_LOOK.

    Twice those that came in the batch before, where that is not too many of all of them together;
    where small partitions were gathered into so many, an equal share of COLLECT_LIMIT.
    """
    partitions = min(partitions, gathered) if gathered else partitions
    fair = 2 * COLLECT_LIMIT // max(partitions, 1)
    # a power of two: the code that Spark makes of another number it compiles anew
    known = min(1 << (2 * expected).bit_length(), fair, COLLECT_LIMIT)
    found = []
    for last in sorted({*dict(_FIRST_STEPS), partitions, gathered} - {0}):
        steps = (times * _FIRST_LOOK for step, times in _FIRST_STEPS if last <= step)
        caps = [next(steps, _FAR_LOOK)]
        caps += [known] if last <= partitions else []
        caps += [COLLECT_LIMIT // gathered] if last <= gathered else []
        found.append((last, max(caps)))
    return found
