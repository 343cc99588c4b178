"""What it is that makes rows bad: causes, counted, with a value of each (driver).

`arrays.screening` sees what no conversion could give as null, whatever it was. Where rows are
refused, one more job looks at the user's own values.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Final

from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DecimalType, DoubleType, FloatType, StructType

from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.ingest.columns import (
    RatingColumns,
    column,
    column_type,
    id_column,
    time_column,
)

__all__ = ["causes_of"]

logger = logging.getLogger(__name__)

_NULL: Final = "is null"
_NO_NUMBER: Final = "is NaN or infinite"
_FRACTION: Final = "is no whole number"
_WIDE: Final = "does not fit into 64 bits; as text, cast to 'string', any id does; it is so"
_HUGE: Final = "does not fit into a 32-bit float"
_NEGATIVE: Final = "is negative"
_LATE: Final = (
    "is too large a time, as a double or decimal counts seconds; cast one of milli- or "
    "microseconds to 'bigint'; it is so"
)
_WITHOUT_VALUE: Final = (_NULL, _NO_NUMBER)


def causes_of(
    rows: DataFrame, columns: RatingColumns, kinds: tuple[IdKind, IdKind], names: Iterable[str]
) -> dict[str, str]:
    """Return what is wrong with some of the columns, in words, by our name for each.

    Parameters
    ----------
    rows : DataFrame
        the user's table or batch
    columns : RatingColumns
        where the ratings are
    kinds : tuple[IdKind, IdKind]
        of the ids of users and of items
    names : Iterable[str]
        of "user", "item", "rating", "time", "weight" those in which rows are bad
    """
    schema = rows.schema
    looked = {name: _causes(schema, columns, kinds, name) for name in names}
    sums = [
        part.alias(f"{name} {number} {what}")
        for name, (value, causes) in looked.items()
        for number, (_, condition) in enumerate(causes)
        for what, part in (
            ("rows", F.count_if(condition)),
            ("value", F.max(F.when(condition, value.cast("string")))),
        )
    ]
    try:
        found: dict[str, Any] = rows.agg(*sums).toArrow().to_pylist()[0] if sums else {}
    except PySparkException as failure:
        # what is known without it is worth saying all the same
        logger.debug("the causes of bad rows are not known: %s", failure)
        return {}
    told = {}
    for name, (_, causes) in looked.items():
        parts = []
        for number, (what, _) in enumerate(causes):
            count, value = (found[f"{name} {number} {part}"] for part in ("rows", "value"))
            if count:
                such = "" if what in _WITHOUT_VALUE else f" (such as {value})"
                parts.append(f"{what} in {count} row{'s' if count > 1 else ''}{such}")
        if parts:
            told[name] = ", ".join(parts)
    return told


def _causes(
    schema: StructType, columns: RatingColumns, kinds: tuple[IdKind, IdKind], name: str
) -> tuple[Column, list[tuple[str, Column]]]:
    """Return a column's own values, and what may be wrong with them, each for rows of its own."""
    own: dict[str, str | None] = {
        "user": columns.user, "item": columns.item, "rating": columns.rating,
        "time": columns.time, "weight": columns.weight,
    }  # fmt: skip
    param = {"user": "userCol", "item": "itemCol", "rating": "ratingCol", "time": "timestampCol",
             "weight": "weightCol"}[name]  # fmt: skip
    given = own[name] or ""
    kind = column_type(schema, param, given)
    value = column(schema, given)
    causes = [(_NULL, value.isNull())]
    floats = isinstance(kind, FloatType | DoubleType)
    number = value.cast("double")
    infinite = F.isnan(number) | (F.abs(number) == float("inf"))
    if floats:
        causes.append((_NO_NUMBER, infinite))
    if name in ("user", "item"):
        unread = id_column(schema, param, given, kinds[name == "item"]).isNull()
        if floats or isinstance(kind, DecimalType):
            fraction = value % 1 != 0
            causes += [(_FRACTION, fraction), (_WIDE, unread & ~fraction)]
    elif name == "time":
        causes.append((_LATE, time_column(schema, given).isNull()))
    else:
        huge = F.abs(value.cast("float")) == float("inf")
        causes.append((_HUGE, huge))
        if name == "weight":
            causes.append((_NEGATIVE, value < 0))
    # a row counts for the first that it is
    first = []
    earlier = F.lit(False)
    for what, condition in causes:
        holds = F.coalesce(condition, F.lit(False))
        first.append((what, holds & ~earlier))
        earlier = earlier | holds
    return value, first
