"""Tables of what is known of users and items, as a command line names them, read by Spark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType

from sparkml_sgdals.cli.reading.columns import SourceColumns, find_columns
from sparkml_sgdals.cli.reading.places import Place
from sparkml_sgdals.cli.reading.sources import read_plain
from sparkml_sgdals.cli.reading.text_values import Roles, as_numbers
from sparkml_sgdals.ingest.columns import quoted
from sparkml_sgdals.ingest.features import SIDES
from sparkml_sgdals.ingest.plain_features import vector_name

__all__ = ["read_features", "told_vectors", "with_vectors"]


def read_features(
    spark: SparkSession, place: Place, side: str, asked: SourceColumns, ids: tuple[str, str],
    categories: Sequence[str] | None = None,
) -> DataFrame:  # fmt: skip
    """Read a table of an id and what is known of it.

    Parameters
    ----------
    spark : SparkSession
        the session to read with
    place : Place
        what lies there
    side : str
        "user" or "item"
    asked : SourceColumns
        columns of ratings; that of the ids is called so, or alike
    ids : tuple[str, str]
        types of the ids of users and items
    categories : Sequence[str] | None
        columns whose numbers are names, where texts that are all numbers become such; None: a model
        says which are

    Raises
    ------
    ValueError
        its ids cannot be found, or read
    """
    table = read_plain(spark, place)
    name: str = getattr(asked, side)
    if place.headless:
        table = table.toDF(name, *table.columns[1:])
    own = getattr(find_columns(table.columns, asked, place.path, (side,)), side)
    table = as_numbers(table, Roles(**{side: own}), ids)
    table = table.withColumnRenamed(own, name)
    if categories is None:
        return table
    texts, chosen = [], {}
    for field in table.schema.fields:
        if field.name in categories:
            chosen[field.name] = F.col(quoted(field.name)).cast("string")
        elif isinstance(field.dataType, StringType) and field.name != name:
            texts.append(field.name)
    odd = table.agg(*map(_odd, texts)).first() if texts else None
    for text, rows in zip(texts, odd or (), strict=True):
        if not rows:
            chosen[text] = _value(text).try_cast("double")
    return table.withColumns(chosen) if chosen else table


def with_vectors(
    table: DataFrame, model: Any, tables: tuple[DataFrame | None, DataFrame | None]
) -> DataFrame:
    """Return pairs, or a stream, with the vectors of their users and items, and tell the model.

    Parameters
    ----------
    table : DataFrame
        of pairs or ratings
    model : StreamingBiasedALSModel
        its columns of features are set
    tables : tuple[DataFrame | None, DataFrame | None]
        what is known of users, and of items
    """
    for side, known, ids, read, say in zip(
        SIDES,
        tables,
        (model.getUserCol(), model.getItemCol()),
        (model.userVectors, model.itemVectors),
        (model.setUserFeaturesCol, model.setItemFeaturesCol),
        strict=True,
    ):
        name = vector_name(side)
        told = name in table.columns
        if known is not None:
            vectors = read(known).withColumnRenamed(name, "_sgdals_known")
            table = table.join(F.broadcast(vectors), ids, "left")
            held = F.col("_sgdals_known")
            if told:
                # of a message the same as a struct
                none = F.lit(None).cast("array<int>")
                own = F.struct(
                    F.size(name).alias("size"), none.alias("indices"), F.col(name).alias("values")
                )
                held = F.coalesce(F.when(F.col(name).isNotNull(), own), held)
            table = table.withColumn(name, held).drop("_sgdals_known")
        if known is not None or told:
            say(name)
    return table


def told_vectors(model: Any) -> list[str]:
    """Return the columns in which messages may tell a model of users and items."""
    return [
        vector_name(side)
        for side, weights in zip(SIDES, model.state.features, strict=True)
        if weights is not None
    ]


def _value(name: str) -> Any:
    return F.nullif(F.trim(F.col(quoted(name))), F.lit(""))


def _odd(name: str) -> Any:
    """Count the texts that are no numbers."""
    value = _value(name)
    return F.count_if(value.isNotNull() & value.try_cast("double").isNull())
