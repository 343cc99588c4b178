"""Columns of the user's DataFrames: found, checked, and selected in the form that learning reads.

Runs on the driver; builds expressions only and starts no job.
"""

from __future__ import annotations

from dataclasses import dataclass

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

from sparkml_sgdals.index import IdKind

__all__ = ["RatingColumns", "column_type", "id_column", "id_kind", "id_type_name", "select_ratings"]

_INTEGERS = (ByteType, ShortType, IntegerType, LongType)
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


def column_type(schema: StructType, param: str, name: str) -> DataType:
    """Type of a column, found as Spark finds it (case does not count, dots reach into structs).

    Raises ValueError that names the Param, the column and the columns there are.
    """
    field = _find(schema, name)
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
        raise ValueError(
            f"{param} {name!r} is not a column of the DataFrame, which has "
            f"{', '.join(schema.names) or 'none'}. Set {param} to one of them."
        )
    return field.dataType


def id_kind(schema: StructType, param: str, name: str) -> IdKind:
    """Whether ids of a column are integers or strings; TypeError for anything else."""
    found = column_type(schema, param, name)
    if isinstance(found, StringType):
        return "str"
    if isinstance(found, NumericType):
        return "int"
    raise TypeError(
        f"{param} {name!r} must hold integers or strings, got {found.simpleString()}. "
        f"Cast it first, e.g. to 'string'."
    )


def id_type_name(schema: StructType, param: str, name: str) -> str:
    """Spark's name of the type in which a model gives the ids of this column back."""
    found = column_type(schema, param, name)
    if id_kind(schema, param, name) == "str":
        return "string"
    return found.simpleString() if isinstance(found, _INTEGERS) else "bigint"


def id_column(schema: StructType, param: str, name: str, kind: IdKind) -> Column:
    """Expression of an id as bigint or string; null where it is null or has a fraction.

    Raises TypeError where integers meet a model of strings or the other way round.
    """
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
        return column.cast("string" if kind == "str" else "bigint")
    whole = column.try_cast("bigint")
    return F.when(whole.cast(found) == column, whole)


def select_ratings(
    df: DataFrame,
    columns: RatingColumns,
    kinds: tuple[IdKind, IdKind],
    raw: bool = False,
) -> DataFrame:
    """The ratings as user, item, rating and, where named, time and weight.

    Values that no conversion can give are null, for `ratings.screen` to find. With `raw` there is
    one more column of that name: the whole row as JSON where something in it is not valid.

    Raises ValueError for a missing column, TypeError for one of a wrong type.
    """
    schema = df.schema
    if columns.rating_needed or _find(schema, columns.rating) is not None:
        rating = _number(schema, "ratingCol", columns.rating)
    else:
        rating = F.lit(1.0).cast("float")
    chosen = {
        "user": id_column(schema, "userCol", columns.user, kinds[0]),
        "item": id_column(schema, "itemCol", columns.item, kinds[1]),
        "rating": rating,
    }
    if columns.time is not None:
        chosen["time"] = _time(schema, columns.time)
    if columns.weight is not None:
        chosen["weight"] = _number(schema, "weightCol", columns.weight)
    if raw:
        bad = F.lit(False)
        for name, value in chosen.items():
            bad = bad | value.isNull()
            if name in ("rating", "weight"):
                bad = bad | F.isnan(value) | (F.abs(value) == float("inf"))
            if name == "weight":
                bad = bad | (value < 0)
        whole_row = F.to_json(F.struct(*[F.col(f"`{c}`") for c in df.columns]))
        chosen["raw"] = F.when(F.coalesce(bad, F.lit(True)), whole_row)
    return df.select(*[value.alias(name) for name, value in chosen.items()])


def _number(schema: StructType, param: str, name: str) -> Column:
    found = column_type(schema, param, name)
    if not isinstance(found, NumericType):
        raise TypeError(
            f"{param} {name!r} must be numeric, got {found.simpleString()}. Cast it first, e.g. "
            f"df.withColumn({name!r}, F.col({name!r}).cast('float'))."
        )
    return _column(schema, name).cast("float")


def _time(schema: StructType, name: str) -> Column:
    found = column_type(schema, "timestampCol", name)
    column = _column(schema, name)
    if isinstance(found, _INTEGERS):
        return column.cast("bigint")
    if isinstance(found, _MOMENTS):
        return F.unix_micros(column.cast("timestamp"))
    if isinstance(found, FloatType | DoubleType | DecimalType):
        return F.round(column.cast("double") * 1e6).try_cast("bigint")
    raise TypeError(
        f"timestampCol {name!r} must be a number, a date or a timestamp, got "
        f"{found.simpleString()}. Convert it first, e.g. with F.to_timestamp."
    )


def _column(schema: StructType, name: str) -> Column:
    return F.col(f"`{name}`") if _find(schema, name) is not None else F.col(name)


def _find(schema: StructType, name: str) -> StructField | None:
    exact = [field for field in schema.fields if field.name == name]
    loose = [field for field in schema.fields if field.name.lower() == name.lower()]
    return next(iter(exact or loose), None)
