"""Plain columns of users or items as vectors: numbers, categories and lists of these (driver).

A number stands under its name, a category under `name=value`, where it is 1. The names go with the
vectors and into the model, which so reads later tables as the one of its fit.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    DataType,
    IntegralType,
    NumericType,
    StringType,
)

from sparkml_sgdals.ingest.columns import quoted
from sparkml_sgdals.state.feature_values import SEPARATORS, category
from sparkml_sgdals.state.feature_weights import FeatureWeights, feature_names

__all__ = ["vector_name", "with_one_vector"]

_LEAST: Final = 2
"""ids that have a category, below which it says nothing of others"""
_MOST: Final = 1_000
"""categories of a column, the most frequent ones"""
_SHARED: Final = 1 / 3
"""share of the values of a column that others have too, below which it says nothing, as titles"""
_READ: Final = 100_000
"""categories that are looked at"""
_LISTS: Final = 0.01
"""share of the values of a column that hold a separator, from which on they are lists"""


def vector_name(side: str) -> str:
    """Return the name of the column of vectors that plain columns become."""
    return f"{side}Features"


@dataclass(frozen=True)
class _Place:
    """A number of the vectors: its name, and what counts where it is not known."""

    name: str
    usual: float | None = None


def with_one_vector(df: DataFrame, side: str, weights: FeatureWeights | None = None) -> DataFrame:
    """Return a table of ids and vectors, made of one of ids and plain columns.

    Numbers are taken as they are, and the mean where they are null; text and lists of text are
    categories. Rows of one id are taken together, of its numbers the greatest. Ids of which nothing
    is known have no row.

    Parameters
    ----------
    df : DataFrame
        ids in its first column
    side : str
        "user" or "item", for messages
    weights : FeatureWeights | None
        of a model: vectors have its places

    Raises
    ------
    ValueError
        no column says anything, or anything that the model knows
    """
    columns = df.columns[1:]
    fields = {field.name: field.dataType for field in df.schema.fields}
    if weights is None:
        places = _described(df, columns, fields, side)
    else:
        places = _known(columns, weights, side)
    numbers = {place.name for place in places}
    known = pa.table(
        {
            "name": [place.name for place in places],
            "place": pa.array(range(len(places)), pa.int32()),
            "usual": pa.array([place.usual for place in places], pa.float64()),
        }
    )
    parts: list[Column] = []
    for name in columns:
        given = F.col(quoted(name))
        if name in numbers:
            value = _finite(given.try_cast("double"))
            named = F.lit(name)
            parts.append(
                F.array(F.struct(named.alias("column"), named.alias("name"), value.alias("value")))
            )
        elif _texts(fields[name], given) is not None:
            parts.append(_named(name, _pieces(fields[name], given)))
    entries = df.select(
        F.col(quoted(df.columns[0])).alias("id"), F.explode(F.concat(*parts)).alias("e")
    )
    entries = (
        entries.where("id IS NOT NULL").groupBy("id", "e.name").agg(F.max("e.value").alias("value"))
    )
    spark = df.sparkSession
    held = entries.join(F.broadcast(spark.createDataFrame(known)), "name")
    found = (
        held.groupBy("id")
        .agg(
            F.array_sort(
                F.collect_list(F.struct("place", F.expr("coalesce(value, usual)").alias("value")))
            ).alias("e"),
            F.count("value").alias("told"),
        )
        .where("told > 0")
    )
    vector = vector_name(side)
    found = found.selectExpr(
        f"id AS {quoted(df.columns[0])}",
        f"named_struct('size', {len(places)}, 'indices', e.place, 'values', e.value) AS {vector}",
    )
    attributes = [{"idx": n, "name": place.name} for n, place in enumerate(places)]
    return found.withMetadata(vector, {"ml_attr": {"attrs": {"numeric": attributes}}})


def _described(
    df: DataFrame, columns: Sequence[str], fields: dict[str, DataType], side: str
) -> list[_Place]:
    """Return the places of vectors that plain columns have something to say for."""
    asked: list[Column] = []
    numbers: list[Column] = []
    for n, name in enumerate(columns):
        given, kind = F.col(quoted(name)), fields[name]
        if isinstance(kind, NumericType | BooleanType):
            numbers.append(F.max(_finite(given.cast("double"))).alias(name))
        elif isinstance(kind, StringType):
            asked.append(F.count(_text(given)).alias(f"{n} values"))
            for sign in SEPARATORS:
                pieces = F.size(F.split(_text(given), f"[{sign}]"))
                asked.append(F.count_if(pieces > 1).alias(f"{n} {sign}"))
                asked.append(F.sum(F.when(pieces > 0, pieces)).alias(f"{n} values{sign}"))
        elif _texts(kind, given) is not None:
            asked.append(F.sum(F.when(given.isNotNull(), F.size(given))).alias(f"{n} values"))
    seen: dict[str, Any] = df.agg(*asked).first().asDict() if asked else {}  # type: ignore[union-attr]
    usual = _means(df, numbers)
    parts, values = {}, {}
    for n, name in enumerate(columns):
        rows = seen.get(f"{n} values")
        if rows:
            lists = [sign for sign in SEPARATORS if seen.get(f"{n} {sign}", 0) > _LISTS * rows][:1]
            parts[name] = _texts(fields[name], F.col(quoted(name)), lists)
            values[name] = seen[f"{n} values{''.join(lists)}"]
    categories: list[_Place] = []
    silent = [n for n in columns if n not in parts and n not in usual]
    if parts:
        every = F.concat(*[_named(name, texts) for name, texts in parts.items()])
        ids = df.select(F.col(quoted(df.columns[0])).alias("id"), F.explode(every).alias("e"))
        counts = ids.groupBy("e.column", "e.name").agg(F.count_distinct("id").alias("ids"))
        common = counts.where(F.col("ids") >= _LEAST).orderBy(F.desc("ids"), "name")
        held: dict[str, list[tuple[str, int]]] = {name: [] for name in parts}
        for row in common.limit(_READ).toArrow().to_pylist():
            if len(held[row["column"]]) < _MOST:
                held[row["column"]].append((row["name"], row["ids"]))
        for name in parts:
            if sum(ids for _, ids in held[name]) < _SHARED * values[name]:
                silent.append(name)
            else:
                categories += [_Place(one) for one in sorted(one for one, _ in held[name])]
    _tell_left_out(silent, side)
    if not usual and not categories:
        raise ValueError(
            f"The table of features of {side}s says nothing: none of its columns "
            f"{', '.join(map(repr, columns))} holds numbers, or categories that several {side}s "
            "share."
        )
    return [*(_Place(name, mean) for name, mean in usual.items()), *categories]


def _means(df: DataFrame, numbers: Sequence[Column]) -> dict[str, float]:
    """Return the mean of numbers over ids, of those that any id has."""
    if not numbers:
        return {}
    each = df.groupBy(F.col(quoted(df.columns[0])).alias("_sgdals_id")).agg(*numbers)
    names = each.columns[1:]
    found = each.agg(*[F.avg(quoted(name)).alias(name) for name in names]).first()
    # sums in double precision depend on the order of rows in their last bits
    return {
        name: float(np.float32(mean))
        for name, mean in zip(names, found or (), strict=True)
        if mean is not None
    }


def _known(columns: Sequence[str], weights: FeatureWeights, side: str) -> list[_Place]:
    """Return the places of a model's vectors."""
    names = feature_names(weights)
    centres = dict(zip(weights.columns.tolist(), weights.centres.tolist(), strict=True))
    before = {name.partition("=")[0] for name in names if "=" in name}
    silent = [name for name in columns if name not in before and name not in names]
    if len(silent) == len(columns):
        shown = ", ".join(sorted(before | {name for name in names if "=" not in name})[:20])
        raise ValueError(
            f"The model knows none of the columns {', '.join(map(repr, columns))} of the table of "
            f"features of {side}s; it knows {shown}. Name them so, or give a column of vectors."
        )
    return [
        _Place(name, None if "=" in name else float(centres.get(place, 0.0)))
        for place, name in enumerate(names)
    ]


def _tell_left_out(names: Sequence[str], side: str) -> None:
    if names:
        warnings.warn(
            f"Of the features of {side}s {', '.join(map(repr, names))} "
            f"{'is' if len(names) == 1 else 'are'} left out: neither numbers nor categories that "
            f"{side}s share.",
            UserWarning,
            stacklevel=3,
        )


def _finite(given: Column) -> Column:
    """Return a number; null where it is NaN."""
    return F.when(~F.isnan(given), given)


def _text(given: Column) -> Column:
    """Return a text without what surrounds it; null where nothing is left."""
    return F.nullif(F.trim(given), F.lit(""))


def _texts(kind: DataType, given: Column, lists: Sequence[str] = ()) -> Column | None:
    """Return a column as an array of texts, parted by `lists`; None where it holds no texts."""
    if isinstance(kind, StringType):
        if not lists:
            return F.array(_text(given))
        return F.transform(F.split(given, f"[{''.join(lists)}]"), _text)
    if isinstance(kind, ArrayType) and isinstance(kind.elementType, StringType | IntegralType):
        return F.transform(given.cast("array<string>"), _text)
    if isinstance(kind, BooleanType | IntegralType):
        return F.array(given.cast("string"))
    if isinstance(kind, NumericType):
        whole = given.try_cast("bigint")
        return F.array(F.when(whole == given, whole.cast("string")).otherwise(given.cast("string")))
    return None


def _pieces(kind: DataType, given: Column) -> Column:
    """Return all texts that may be a category of a value: itself, and its parts."""
    whole = _texts(kind, given)
    assert whole is not None
    parts = F.flatten(F.transform(whole, lambda one: F.split(one, f"[{SEPARATORS}]")))
    return F.array_union(whole, F.transform(parts, _text))


def _named(name: str, texts: Column | None) -> Column:
    """Return texts as categories of a column, of value 1."""
    assert texts is not None
    held = F.filter(F.coalesce(texts, F.array().cast("array<string>")), lambda one: one.isNotNull())
    return F.transform(
        held,
        lambda one: F.struct(
            F.lit(name).alias("column"),
            F.concat(F.lit(category(name, "")), one).alias("name"),
            F.lit(1.0).alias("value"),
        ),
    )
