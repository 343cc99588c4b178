"""Tables and streams of ratings as a command line names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import typer
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import IntegralType

from sparkml_sgdals.ingest.columns import quoted
from sparkml_sgdals.ingest.messages import parseRatings

__all__ = [
    "SourceColumns",
    "read_files_stream",
    "read_kafka_stream",
    "read_table",
    "with_event_times",
]

_FORMATS: Final = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".orc": "orc",
}


@dataclass(frozen=True)
class SourceColumns:
    """Names of the columns of ratings; time is empty where there is none."""

    user: str
    item: str
    rating: str
    time: str

    @property
    def ddl(self) -> str:
        """A schema of integer ids, for messages and files that state none."""
        time = f", {quoted(self.time)} long" if self.time else ""
        ids = f"{quoted(self.user)} long, {quoted(self.item)} long"
        return f"{ids}, {quoted(self.rating)} double{time}"

    def ddl_with(self, event_id: str) -> str:
        """Return that schema with a column of events' ids; without one where it has no name."""
        return f"{self.ddl}, {quoted(event_id)} string" if event_id else self.ddl


def read_table(spark: SparkSession, path: str, kind: str, options: Mapping[str, str]) -> DataFrame:
    """Read a table of ratings, titles or ids.

    Parameters
    ----------
    spark : SparkSession
        the session to read with
    path : str
        file, folder or URI
    kind : str
        a format of Spark's readers; empty: by the name of the file, or of a file in the folder
    options : Mapping[str, str]
        of that reader, over those that are taken by default
    """
    kind = kind or _guess(path)
    known = {"header": "true", "inferSchema": "true"} if kind == "csv" else {}
    if path.endswith(".tsv"):
        known["sep"] = "\t"
    return spark.read.format(kind).options(**(known | dict(options))).load(path)


def read_files_stream(
    spark: SparkSession, path: str, kind: str, schema: str, options: Mapping[str, str]
) -> DataFrame:
    """Read a folder of files of ratings as a stream; without a schema, Parquet's own."""
    kind = kind or _guess(path)
    reader = spark.readStream.format(kind)
    if kind == "csv":
        # names in the files are compared with the schema, or columns would go by position
        reader = reader.options(header="true", enforceSchema="false")
    if kind in ("parquet", "orc"):
        reader = reader.schema(spark.read.format(kind).load(path).schema)
    else:
        reader = reader.schema(schema)
    return reader.options(**dict(options)).load(path)


def read_kafka_stream(
    spark: SparkSession, address: str, topic: str, schema: str, options: Mapping[str, str]
) -> DataFrame:
    """JSON messages of a topic, from its beginning, as a stream of ratings."""
    reader = spark.readStream.format("kafka").option("kafka.bootstrap.servers", address)
    reader = reader.option("subscribe", topic).option("startingOffsets", "earliest")
    return parseRatings(reader.options(**dict(options)).load(), "json", schema)


def with_event_times(stream: DataFrame, time: str) -> DataFrame:
    """Turn whole seconds since 1970 into the timestamps that repeats are told by."""
    kinds = {field.name: field.dataType for field in stream.schema}
    if not isinstance(kinds.get(time), IntegralType):
        return stream
    return stream.withColumn(time, F.timestamp_seconds(quoted(time)))


def _guess(path: str) -> str:
    place = Path(path)
    names = [place]
    if place.is_dir():
        names += [p for p in sorted(place.iterdir()) if not p.name.startswith((".", "_"))]
    for name in names:
        # what Spark writes may be called part-00000.snappy.parquet or .csv.gz
        for suffix in reversed(name.suffixes):
            if suffix.lower() in _FORMATS:
                return _FORMATS[suffix.lower()]
    if place.exists() or "://" in path:
        if place.is_dir() and len(names) == 1:
            raise typer.BadParameter(f"{path} is empty: name its format by --format.")
        return "parquet"
    raise FileNotFoundError(f"There is no {path}.")
