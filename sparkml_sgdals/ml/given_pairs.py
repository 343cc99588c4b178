"""What a caller says of pairs: ids for all alike, or who is paired with whom (driver)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, StructType

from sparkml_sgdals.arrays.given_ids import given_ids, is_scalar, listed, lists_ids
from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.ingest.columns import column_type, has_column, id_column, quoted
from sparkml_sgdals.ingest.frames import Table, as_table

__all__ = ["GivenPairs", "IdColumn", "Pairs", "read_pairs"]

Pairs = Table
"""Ids that stand for all alike, in a list or a table with one column of ids; or a table of users
and items, one pair a row or, as `recommendForAllUsers` gives them, many in an array."""

_RECOMMENDATIONS = "recommendations"


@dataclass(frozen=True)
class IdColumn:
    """Ids of one side in a table: the Param that names the column, its name, and their kind."""

    side: str
    param: str
    name: str
    kind: IdKind


@dataclass(frozen=True)
class GivenPairs:
    """Candidates of all queries, or pairs of both; both None where nothing is said.

    Attributes
    ----------
    ids : pa.Array | None
        distinct candidates
    pairs : DataFrame | None
        columns query and candidate, bigint or string, null where an id is missing
    """

    ids: pa.Array | None = None
    pairs: DataFrame | None = None


def read_pairs(given: Any, what: str, query: IdColumn, candidate: IdColumn) -> GivenPairs:
    """Return what a caller gave as `Pairs`; nothing for None.

    Parameters
    ----------
    given : Any
        a list of ids of candidates, a table with their column alone, with both columns, or with
        that of the queries and an array `recommendations` of structs
    what : str
        the parameter, for messages
    query, candidate : IdColumn
        whom one side is recommended to, and what is recommended

    Raises
    ------
    ValueError
        a column is missing, or the table is a stream
    TypeError
        ids of another kind than the model's, or something else than a list or table
    """
    if given is None:
        return GivenPairs()
    given = listed(given)
    if lists_ids(given):
        ids = given_ids(given, candidate.kind, candidate.side)
        return GivenPairs(ids=ids.drop_null().unique())
    if is_scalar(given) and not isinstance(given, str):
        raise TypeError(f"{what} is a list of ids, or a table, got {given!r}: write [{given!r}].")
    sides = sorted((query, candidate), key=lambda column: column.side == "item")
    names = [column.name for column in sides]
    table = as_table(given, what, names, f"{what} is a table of pairs, or a list of ids")
    schema = table.schema
    if has_column(schema, _RECOMMENDATIONS) and not has_column(schema, candidate.name):
        kind = column_type(schema, what, _RECOMMENDATIONS)
        if isinstance(kind, ArrayType) and isinstance(kind.elementType, StructType):
            table = table.select(_ids(schema, query).alias("query"), F.explode(_RECOMMENDATIONS))
            inner = F.col(f"col.{quoted(candidate.name)}")
            table = table.select("query", inner.alias("candidate"))
            own = IdColumn(candidate.side, candidate.param, "candidate", candidate.kind)
            return GivenPairs(
                pairs=table.select("query", _ids(table.schema, own).alias("candidate"))
            )
    if has_column(schema, candidate.name) and not has_column(schema, query.name):
        if len(schema.names) > 1:
            # who means pairs and calls a column otherwise is not to get all of them for everybody
            raise ValueError(
                f"{what} has no column {query.name!r} among {', '.join(map(repr, schema.names))}: "
                f"set {query.param}, or select {candidate.name!r} alone where these "
                f"{candidate.side}s are for everybody."
            )
        ids = table.select(_ids(schema, candidate).alias("id")).where(F.col("id").isNotNull())
        return GivenPairs(ids=ids.distinct().toArrow().column("id").combine_chunks())
    if not has_column(schema, candidate.name):
        raise ValueError(
            f"{what} has no column {candidate.name!r} among {', '.join(map(repr, schema.names))}: "
            f"set {candidate.param}, or rename it."
        )
    return GivenPairs(
        pairs=table.select(
            _ids(schema, query).alias("query"), _ids(schema, candidate).alias("candidate")
        )
    )


def _ids(schema: StructType, column: IdColumn) -> Any:
    return id_column(schema, column.param, column.name, column.kind)
