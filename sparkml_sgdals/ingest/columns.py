"""Columns of the user's DataFrames: found, checked, and selected in the form that learning reads.

Runs on the driver; builds expressions only and starts no job.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ByteType,
    DataType,
    DateType,
    DecimalType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    NumericType,
    ShortType,
    StringType,
    StructField,
    StructType,
    TimestampNTZType,
    TimestampType,
)

from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.arrays.screening import NO_LIMITS, Limits

__all__ = [
    "FUTURE",
    "OWN",
    "RatingColumns",
    "column",
    "column_type",
    "has_column",
    "has_ratings",
    "id_column",
    "id_kind",
    "id_type_name",
    "quoted",
    "select_ratings",
    "time_column",
]

_MOST_TOLD: Final = 80
"""letters of a type"""
_INTEGERS = (ByteType, ShortType, IntegerType, LongType)
OWN: Final = "_sgdals_"
"""Start of names of columns that are added to the user's."""
FUTURE: Final = f"{OWN}future"
"""Column of a stream's batch: whether the event's time had not come yet when the batch began."""
_MOMENTS = (TimestampType, TimestampNTZType, DateType)


@dataclass(frozen=True)
class RatingColumns:
    """Names of the columns of ratings in the user's table; None where there is none.

    Without `rating_needed` every rating is 1 where the table has no such column.
    """

    user: str
    item: str
    rating: str
    time: str | None = None
    weight: str | None = None
    rating_needed: bool = True
    features: tuple[str | None, str | None] = (None, None)
    """of users and of items"""
    moments: bool = False
    """whether it matters how long times lie apart, not only their order"""

    @property
    def in_order(self) -> tuple[str, ...]:
        """Names of the values of a row that has none: user, item, rating and perhaps time."""
        return (self.user, self.item, self.rating, *([self.time] if self.time else []))


def column_type(schema: StructType, param: str, name: str) -> DataType:
    """Type of a column, found as Spark finds it (case does not count, dots reach into structs).

    Raises ValueError that names the Param, the column and the columns there are.
    """
    field = _find(schema, name)
    if schema.names.count(name) > 1:
        raise ValueError(
            f"{param} {name!r} is the name of {schema.names.count(name)} columns of the DataFrame, "
            "as after a join: drop or rename all but one."
        )
    if field is None and "." in name:
        inner: DataType = schema
        for part in name.split("."):
            step = _find(inner, part) if isinstance(inner, StructType) else None
            if step is None:
                break
            inner = step.dataType
        else:
            return inner
    if field is None:
        theirs = [one for one in schema.names if not one.startswith(OWN)]
        raise ValueError(
            f"{param} {name!r} is not a column of the DataFrame, which has "
            f"{', '.join(map(repr, theirs)) or 'none'}. {_meant(theirs, param, name)}"
        )
    return field.dataType


def has_column(schema: StructType, name: str) -> bool:
    """Whether there is a column of this name, or field of a dotted one, as `column_type` finds."""
    if schema.names.count(name) > 1:
        return True
    try:
        column_type(schema, "column", name)
    except ValueError:
        return False
    return True


def id_kind(schema: StructType, param: str, name: str) -> IdKind:
    """Whether ids of a column are integers or strings; TypeError for anything else."""
    found = column_type(schema, param, name)
    if isinstance(found, StringType):
        return "str"
    if isinstance(found, NumericType):
        return "int"
    cast = "Cast it first, e.g. to 'string'."
    raise TypeError(
        f"{param} {name!r} must hold integers or strings, got {_told(found)}. "
        f"{_field(param, name, found) or cast}"
    )


def id_type_name(schema: StructType, param: str, name: str) -> str:
    """Spark's name of the type in which a model gives the ids of this column back."""
    found = column_type(schema, param, name)
    if id_kind(schema, param, name) == "str":
        return "string"
    return found.simpleString() if isinstance(found, _INTEGERS) else "bigint"


def column(schema: StructType, name: str) -> Column:
    """Return a column by its name, or a field by a dotted name, as `column_type` finds it."""
    return F.col(_column(schema, name))


def id_column(schema: StructType, param: str, name: str, kind: IdKind) -> Column:
    """Expression of an id as bigint or string; null where it is null or has a fraction.

    Raises TypeError where integers meet a model of strings or the other way round.
    """
    return F.expr(_id(schema, param, name, kind))


def time_column(schema: StructType, name: str) -> Column:
    """Expression of a time as bigint, in the order of the column; null where it has none.

    Raises ValueError for a missing column, TypeError for one of a wrong type.
    """
    return F.expr(_time(schema, name))


def has_ratings(schema: StructType, columns: RatingColumns) -> bool:
    """Whether a table says what its ratings are, or has to; else every one is 1."""
    return columns.rating_needed or _find(schema, columns.rating) is not None


def select_ratings(
    df: DataFrame,
    columns: RatingColumns,
    kinds: tuple[IdKind, IdKind],
    raw: bool = False,
    also: tuple[str, ...] = (),
    limits: Limits = NO_LIMITS,
) -> DataFrame:
    """Return the ratings as user, item, rating and, where named, time and weight.

    And future, where the table has the column FUTURE.

    Values that no conversion can give are null, for `screening.screen` to find. With `raw` there is
    one more column of that name: the whole row as JSON where something in it is not valid or not
    within `limits`. `also` are more columns, as SQL.

    Raises ValueError for a missing column, TypeError for one of a wrong type.

    Notes
    -----
    SQL, because every call of a Column costs a round trip to the JVM, in each micro-batch.
    """
    schema = df.schema
    if has_ratings(schema, columns):
        rating = _number(schema, "ratingCol", columns.rating)
    else:
        rating = "CAST(1.0 AS float)"
    chosen = {
        "user": _id(schema, "userCol", columns.user, kinds[0]),
        "item": _id(schema, "itemCol", columns.item, kinds[1]),
        "rating": rating,
    }
    if columns.time is not None:
        chosen["time"] = _time(schema, columns.time, columns.moments)
    if columns.weight is not None:
        chosen["weight"] = _number(schema, "weightCol", columns.weight)
    if FUTURE in schema.names:
        chosen["future"] = quoted(FUTURE)
    if raw:
        faults = [f"({value}) IS NULL" for value in chosen.values()]
        for name in [name for name in ("rating", "weight") if name in chosen]:
            value = chosen[name]
            faults.append(f"isnan({value})")
            faults.append(f"abs({value}) = double('Infinity')")
            if name == "weight":
                faults.append(f"{value} < 0")
        if limits.rating is not None:
            low, high = limits.rating
            faults.append(
                f"{chosen['rating']} NOT BETWEEN double('{low!r}') AND double('{high!r}')"
            )
        if limits.weight is not None and "weight" in chosen:
            faults.append(f"{chosen['weight']} > double('{limits.weight!r}')")
        if "future" in chosen and columns.time is not None:
            faults.append(chosen["future"])
        bad = f"coalesce({' OR '.join(faults)}, true)"
        own = f"* EXCEPT ({quoted(FUTURE)})" if "future" in chosen else "*"
        chosen["raw"] = f"CASE WHEN {bad} THEN to_json(struct({own})) END"
    return df.selectExpr(*[f"{value} AS {quoted(name)}" for name, value in chosen.items()], *also)


def _meant(names: list[str], param: str, name: str) -> str:
    """Return what to do where there is no column of this name."""

    def plain(text: str) -> str:
        # what cannot be seen in a header, and what nobody means by it
        return re.sub(r"[\W_]", "", text).casefold()

    alike = [one for one in names if plain(one) == plain(name)]
    if any(one.strip("\ufeff \t") == name for one in alike):
        return (
            "Take what cannot be seen out of the names: "
            "df.toDF(*[name.strip('\\ufeff \\t') for name in df.columns])."
        )
    near = alike or get_close_matches(name, names, 1)
    return f"Set {param} to one of them{f', such as {near[0]!r}' if near else ''}."


def _id(schema: StructType, param: str, name: str, kind: IdKind) -> str:
    if id_kind(schema, param, name) != kind:
        other = column_type(schema, param, name).simpleString()
        learned = "integers" if kind == "int" else "strings"
        raise TypeError(
            f"{param} {name!r} has type {other}, the model was learned from {learned}. "
            f"Cast it to {'bigint' if kind == 'int' else 'string'} first."
        )
    column = _column(schema, name)
    found = column_type(schema, param, name)
    if kind == "str" or isinstance(found, _INTEGERS):
        return f"CAST({column} AS {'string' if kind == 'str' else 'bigint'})"
    whole = f"TRY_CAST({column} AS bigint)"
    return f"CASE WHEN CAST({whole} AS {found.simpleString()}) = {column} THEN {whole} END"


def _number(schema: StructType, param: str, name: str) -> str:
    found = column_type(schema, param, name)
    if not isinstance(found, NumericType):
        raise TypeError(
            f"{param} {name!r} must be numeric, got {_told(found)}. "
            + (
                _field(param, name, found)
                or f"Cast it first, e.g. df.withColumn({name!r}, F.col({name!r}).cast('float'))."
            )
        )
    return f"CAST({_column(schema, name)} AS float)"


def _time(schema: StructType, name: str, moments: bool = False) -> str:
    found = column_type(schema, "timestampCol", name)
    column = _column(schema, name)
    if moments and not isinstance(found, _MOMENTS):
        raise TypeError(
            f"timestampCol {name!r} must be a timestamp or a date where forgetUsersAfter is a "
            f"time, got {found.simpleString()}. Convert it first, e.g. with F.timestamp_seconds or "
            "F.timestamp_millis, or set forgetUsersAfter to a number of events."
        )
    if isinstance(found, _INTEGERS):
        return f"CAST({column} AS bigint)"
    if isinstance(found, _MOMENTS):
        return f"unix_micros(CAST({column} AS timestamp))"
    if isinstance(found, FloatType | DoubleType | DecimalType):
        return f"TRY_CAST(round(CAST({column} AS double) * 1e6) AS bigint)"
    raise TypeError(
        f"timestampCol {name!r} must be a number, a date or a timestamp, got "
        f"{_told(found)}. "
        f"{_field('timestampCol', name, found) or 'Convert it first, e.g. with F.to_timestamp.'}"
    )


def _field(param: str, name: str, found: DataType) -> str:
    """Return how to name a field of a struct; empty where the column is none."""
    if not isinstance(found, StructType) or not found.names:
        return ""
    return f"Set {param} to a field of it, such as {f'{name}.{found.names[0]}'!r}."


def _told(found: DataType) -> str:
    """Return a type in a few words, however many fields it has."""
    told = found.simpleString()
    return told if len(told) <= _MOST_TOLD else f"{told[:_MOST_TOLD]}..."


def _column(schema: StructType, name: str) -> str:
    """Return a column in SQL; a dotted name that is no column's own reaches into structs."""
    if _find(schema, name) is not None:
        return quoted(name)
    return name if "`" in name else ".".join(quoted(step) for step in name.split("."))


def quoted(name: str) -> str:
    """Return a name in SQL, whatever is in it and whatever is reserved."""
    return "`" + name.replace("`", "``") + "`"


def _find(schema: StructType, name: str) -> StructField | None:
    exact = [field for field in schema.fields if field.name == name]
    loose = [field for field in schema.fields if field.name.lower() == name.lower()]
    return next(iter(exact or loose), None)
