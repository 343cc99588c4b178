"""Tables and streams of ratings as a command line names them, read by Spark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import IntegralType

from sparkml_sgdals.cli.reading.columns import SourceColumns, by_order, find_columns
from sparkml_sgdals.cli.reading.dialect import AS_LATIN, is_number
from sparkml_sgdals.cli.reading.places import Place
from sparkml_sgdals.cli.reading.text_values import Roles, as_numbers, by_row, from_latin
from sparkml_sgdals.ingest.columns import quoted
from sparkml_sgdals.ingest.messages import parseRatings

__all__ = [
    "read_files_stream",
    "read_kafka_stream",
    "read_plain",
    "read_ratings",
    "renamed",
    "with_event_times",
]

_TEXT: Final = ("csv", "json")


def read_plain(spark: SparkSession, place: Place) -> DataFrame:
    """Read a table as it is, values of text files as text."""
    options = dict(place.options)
    if place.kind == "json":
        options = {"primitivesAsString": "true"} | options
    if place.kind == "csv" and place.dialect is None:
        # what cannot be seen from here is taken as most are written
        options = {"header": "true"} | options
    table = spark.read.format(place.kind).options(**options).load(place.source)
    if place.kind in _TEXT and options.get("encoding") == AS_LATIN:
        table = from_latin(table)
    clean = [name.strip("\ufeff \t") for name in table.columns]
    return table if clean == table.columns else table.toDF(*clean)


def read_ratings(
    spark: SparkSession,
    place: Place,
    asked: SourceColumns,
    needed: Sequence[str] = ("user", "item", "rating"),
    ids: tuple[str, str] | None = None,
    time_format: str = "",
    drops_bad: bool = False,
    as_asked: bool = False,
) -> tuple[DataFrame, SourceColumns]:
    """Read a table of ratings, or of ids, with the types that learning takes.

    Parameters
    ----------
    spark : SparkSession
        the session to read with
    place : Place
        what lies there
    asked : SourceColumns
        its columns as options name them
    needed : Sequence[str]
        what its rows have to have, of user, item, rating, time
    ids : tuple[str, str] | None
        types of ids as a model learned them; None: as their values allow
    time_format : str
        Spark's pattern of times of text
    drops_bad : bool
        whether values that cannot be read are left to handleInvalid, as null
    as_asked : bool
        whether columns are to be called as they were asked for

    Returns
    -------
    the table, and what its columns are called
    """
    table = read_plain(spark, place)
    if place.headless:
        table = table.toDF(*by_order(asked, len(table.columns)))
    found = find_columns(table.columns, asked, place.path, needed)
    roles = _roles(found, table.columns)
    table = as_numbers(table, roles, ids, time_format, place.kind in _TEXT, drops_bad)
    return (renamed(table, found, asked), asked) if as_asked else (table, found)


def renamed(table: DataFrame, found: SourceColumns, wanted: SourceColumns) -> DataFrame:
    """Return a table whose columns of ratings have the names that a model knows them by."""
    for role, name in vars(_roles(found, table.columns)).items():
        other = getattr(wanted, role)
        if name is not None and other and name != other:
            table = table.withColumnRenamed(name, other)
    return table


def read_files_stream(
    spark: SparkSession,
    place: Place,
    asked: SourceColumns,
    schema: str,
    ids: tuple[str, str] | None,
    more: Sequence[str] = (),
    vectors: Sequence[str] = (),
    needed: Sequence[str] = ("user", "item", "rating"),
) -> tuple[DataFrame, SourceColumns]:
    """Read a folder of files of ratings as a stream.

    Parameters
    ----------
    spark : SparkSession
        the session to read with
    place : Place
        the folder
    asked : SourceColumns
        its columns as options name them
    schema : str
        of its files, as DDL; empty for what Parquet states, and what a first file shows
    ids : tuple[str, str] | None
        types of ids that a model there has learned; None: as a first file has them
    more : Sequence[str]
        further columns, as text
    vectors : Sequence[str]
        further columns that files of JSON may have: arrays of numbers
    needed : Sequence[str]
        what its rows have to have, of user, item, rating, time

    Returns
    -------
    the stream, and what its columns are called
    """
    reader = spark.readStream.format(place.kind)
    options = dict(place.options)
    if place.kind in ("parquet", "orc"):
        seen = spark.read.format(place.kind).options(**options).load(place.source).schema
        found = find_columns(seen.names, asked, place.path, needed)
        return reader.schema(seen).options(**options).load(place.source), found
    found, names, sample = asked, [*asked.in_order, *more], {}
    if place.dialect is not None and place.dialect.width:
        names = list(place.dialect.names or by_order(asked, place.dialect.width))
        found = find_columns(names, asked, place.path, needed)
        sample = _sample(_roles(found, names), names, place.dialect.rows)
    if place.kind == "csv":
        # names in the files are compared with the schema, or columns would go by position
        options = {"header": "true", "enforceSchema": "false"} | options
    own = [name for name in vectors if place.kind == "json"]
    names = [*names, *(name for name in own if name not in names)]
    told = schema or ", ".join(f"{quoted(name)} string" for name in names)
    stream = reader.schema(told).options(**options).load(place.source)
    if options.get("encoding") == AS_LATIN:
        stream = from_latin(stream)
    if schema:
        return stream, found
    user, item = ids or (_id_type(sample.get("user", [])), _id_type(sample.get("item", [])))
    moments = not all(map(is_number, sample.get("time", [])))
    stream = by_row(stream, _roles(found, names), (user, item), moments)
    arrays = {name: F.from_json(quoted(name), "array<double>") for name in own}
    return (stream.withColumns(arrays) if arrays else stream), found


def read_kafka_stream(
    spark: SparkSession, address: str, topic: str, schema: str, options: Mapping[str, str]
) -> DataFrame:
    """JSON messages of a topic, from its beginning, as a stream of ratings."""
    reader = spark.readStream.format("kafka").option("kafka.bootstrap.servers", address)
    reader = reader.option("subscribe", topic).option("startingOffsets", "earliest")
    return parseRatings(reader.options(**dict(options)).load(), "json", schema)


def with_event_times(stream: DataFrame, time: str) -> DataFrame:
    """Turn whole seconds since 1970 into timestamps, where it matters how far apart they lie."""
    kinds = {field.name: field.dataType for field in stream.schema}
    if not isinstance(kinds.get(time), IntegralType):
        return stream
    return stream.withColumn(time, F.timestamp_seconds(quoted(time)))


def _roles(columns: SourceColumns, names: Sequence[str]) -> Roles:
    held = {name.casefold(): name for name in names}
    return Roles(**{role: held.get(name.casefold()) for role, name in vars(columns).items()})


def _sample(
    roles: Roles, names: Sequence[str], rows: Sequence[Sequence[str]]
) -> dict[str, list[str]]:
    places = {role: names.index(name) for role, name in vars(roles).items() if name is not None}
    return {
        role: [row[place].strip() for row in rows if place < len(row) and row[place].strip()]
        for role, place in places.items()
    }


def _id_type(values: Sequence[str]) -> str:
    whole = all(one.lstrip("+-").isdigit() and str(int(one)) == one for one in values)
    return "bigint" if whole else "string"
