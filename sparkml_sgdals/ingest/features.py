"""Features of users and items in the user's DataFrames: found, checked, one vector an id (driver).

Columns of pyspark.ml vectors, dense or sparse, of arrays of numbers, or of structs of size, indices
and values; in a table of ids also plain columns: `plain_features`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DataType, NumericType, StructType

from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.arrays.sparse_rows import SparseRows, vector_schema, with_names
from sparkml_sgdals.ingest.columns import (
    RatingColumns,
    column,
    column_type,
    has_ratings,
    id_column,
    time_column,
)
from sparkml_sgdals.ingest.plain_features import vector_name, with_one_vector
from sparkml_sgdals.state.feature_weights import MOST_COLUMNS, FeatureWeights
from sparkml_sgdals.state.model_state import ModelState

__all__ = [
    "SIDES",
    "FeatureRows",
    "Vectors",
    "announcements",
    "features_of_table",
    "holds_vectors",
    "joined_with",
    "named_vectors",
    "side_table",
    "table_features",
    "vector_column",
    "vectors_of",
    "with_vectors",
    "without_announced",
]

logger = logging.getLogger(__name__)

Bools = npt.NDArray[np.bool_]
FeatureRows = tuple[SparseRows | None, SparseRows | None]
"""What is known of users, and of items."""
Vectors = tuple[pa.Table | None, pa.Table | None]
"""Vectors of the rows of a batch, by user and by item: id, size, indices, values, perhaps time."""
SIDES: Final = ("user", "item")
_PARTS: Final = ("size", "indices", "values")
_OF_VECTOR: Final = tuple(f"vector.{part}" for part in _PARTS)
_FEW: Final = 1_000_000
"""rows of a table beside at most that are taken as they are"""
_NAMED: Final = 5
"""ids that a message names"""


def vector_column(schema: StructType, param: str, name: str) -> Column:
    """Expression of a vector as a struct of size, indices and values; null where it is null.

    Raises ValueError for a missing column, TypeError for one that holds no vectors.
    """
    found, given = column_type(schema, param, name), column(schema, name)
    if isinstance(found, VectorUDT):
        vector = F.unwrap_udt(given)
        values = vector["values"].cast("array<double>")
        size = F.coalesce(vector["size"], F.size(values))
        indices = vector["indices"].cast("array<int>")
    elif isinstance(found, ArrayType) and isinstance(found.elementType, NumericType):
        values = given.cast("array<double>")
        size, indices = F.size(values), F.lit(None).cast("array<int>")
    elif isinstance(found, StructType) and set(found.names) == set(_PARTS):
        size, indices, values = (given[part] for part in _PARTS)
    else:
        raise TypeError(
            f"{param} {name!r} must hold vectors of pyspark.ml or arrays of numbers, got "
            f"{found.simpleString()}. Make them with VectorAssembler, or OneHotEncoder."
        )
    parts = (size.alias("size"), indices.alias("indices"), values.alias("values"))
    return F.when(given.isNotNull(), F.struct(*parts))


def holds_vectors(kind: DataType) -> bool:
    """Whether a column of a type holds what `vector_column` takes."""
    if isinstance(kind, ArrayType):
        return isinstance(kind.elementType, NumericType)
    return isinstance(kind, VectorUDT) or (
        isinstance(kind, StructType) and set(kind.names) == set(_PARTS)
    )


def with_vectors(df: DataFrame, columns: RatingColumns) -> tuple[DataFrame, tuple[str, ...]]:
    """Return a batch with its vectors, and SQL of them as columns that `vectors_of` takes out.

    Raises as `vector_column` does.
    """
    also: list[str] = []
    given = dict(zip(SIDES, columns.features, strict=True))
    for side, name in given.items():
        if name is not None:
            held = f"_sgdals_{side}_vector"
            df = df.withColumn(held, vector_column(df.schema, f"{side}FeaturesCol", name))
            also += [f"{held}.{part} AS {side}_{part}" for part in _PARTS]
    return df, tuple(also)


def vectors_of(table: pa.Table, columns: RatingColumns) -> tuple[pa.Table, Vectors]:
    """Return a batch without its vectors, and these."""
    taken: list[pa.Table | None] = []
    for side, name in zip(SIDES, columns.features, strict=True):
        if name is None:
            taken.append(None)
            continue
        held = {"id": table.column(side)}
        held |= {part: table.column(f"{side}_{part}") for part in _PARTS}
        if "time" in table.column_names:
            held["time"] = table.column("time")
        own = pa.table(held)
        taken.append(own.filter(pa.compute.is_valid(own.column("size"))))
        table = table.drop_columns([f"{side}_{part}" for part in _PARTS])
    return table, (taken[0], taken[1])


def named_vectors(vectors: Vectors, schema: StructType, columns: RatingColumns) -> Vectors:
    """Return vectors that tell the names that a batch's schema keeps of their places."""
    users, items = (
        table if table is None or name is None else _named(table, schema, name)
        for table, name in zip(vectors, columns.features, strict=True)
    )
    return users, items


def joined_with(
    df: DataFrame, rows: SparseRows, side: str, own: str, kind: IdKind
) -> tuple[DataFrame, str]:
    """Return ratings with the vectors of a side, where known, in a column; and its name.

    Parameters
    ----------
    df : DataFrame
        ratings, a table or a stream
    rows : SparseRows
        the vectors
    side : str
        "user" or "item"
    own : str
        column of the side's ids in `df`
    kind : IdKind
        of the ids
    """
    name, key = f"_sgdals_{side}_features", f"_sgdals_{side}_key"
    attrs = [{"idx": place, "name": told} for place, told in enumerate(rows.names)]
    metadata = {"ml_attr": {"attrs": {"numeric": attrs}, "num_attrs": rows.size}}
    table = df.sparkSession.createDataFrame(rows.to_table().replace_schema_metadata(None))
    table = table.select(
        F.col("id").alias(key), F.struct(*_PARTS).alias(name, metadata=metadata if attrs else {})
    )
    matches = id_column(df.schema, f"{side}Col", own, kind) == F.col(key)
    return df.join(table, matches, "left").drop(key), name


def without_announced(
    table: pa.Table, columns: RatingColumns, given: StructType
) -> tuple[pa.Table, Vectors]:
    """Return a batch without the rows that say of an id what it is and rate nothing, and these.

    Such a row has an id and its vector, and neither a partner nor a rating: `announcements`. The
    schema is that of the user's table.
    """
    rated = has_ratings(given, columns)
    kept = np.ones(table.num_rows, bool)
    taken: list[pa.Table | None] = []
    for side, other, name in zip(SIDES, SIDES[::-1], columns.features, strict=True):
        if name is None:
            taken.append(None)
            continue
        valid = {
            one: table.column(one).is_valid().to_numpy()
            for one in (side, other, "rating", f"{side}_size")
        }
        alone = valid[side] & valid[f"{side}_size"] & ~valid[other]
        if rated:
            alone &= ~valid["rating"]
        kept &= ~alone
        held = {"id": side} | {part: f"{side}_{part}" for part in _PARTS}
        held |= {"time": "time"} if "time" in table.column_names else {}
        own = table.filter(pa.array(alone))
        taken.append(pa.table({our: own.column(their) for our, their in held.items()}))
    return table if kept.all() else table.filter(pa.array(kept)), (taken[0], taken[1])


def announcements(df: DataFrame, columns: RatingColumns) -> Column:
    """Expression of whether a row says of an id what it is, and rates nothing."""
    schema = df.schema
    rating = (
        column(schema, columns.rating).isNull() if has_ratings(schema, columns) else F.lit(True)
    )
    found = F.lit(False)
    ids = (columns.user, columns.item)
    for own, other, name in zip(ids, ids[::-1], columns.features, strict=True):
        if name is not None:
            told = column(schema, own).isNotNull() & column(schema, name).isNotNull()
            found = found | (told & column(schema, other).isNull() & rating)
    return found


def features_of_table(
    state: ModelState, vectors: Vectors, columns: RatingColumns, refuse: bool,
    to_learn: bool = False,
) -> FeatureRows:  # fmt: skip
    """Return what a batch says of ids that a model does not know, the newest by time.

    Parameters
    ----------
    state : ModelState
        the model
    vectors : Vectors
        from `vectors_of`
    columns : RatingColumns
        names the columns
    refuse : bool
        whether a vector that is none raises ValueError; else it counts as not given
    to_learn : bool
        whether a model that learns what features say is told of the ids that it knows, too
    """
    found: list[SparseRows | None] = []
    tables = (state.users, state.items)
    for side, table, given, weights, name, learns in zip(
        SIDES, tables, vectors, state.features, columns.features, state.learns_features, strict=True
    ):
        if given is None or (weights is None and not learns):
            found.append(None)
            continue
        wanted = np.ones(given.num_rows, bool)
        if not (learns and to_learn):
            wanted = table.index.find(given.column("id").combine_chunks()) < 0
        rows = _newest(given.filter(pa.array(wanted)))
        found.append(_checked(rows, weights, f"{side}FeaturesCol {name!r}", refuse))
    return found[0], found[1]


def table_features(
    df: DataFrame, columns: RatingColumns, kinds: tuple[IdKind, IdKind], refuse: bool,
    weights: Sequence[FeatureWeights | None] = (None, None), once: bool = False,
) -> FeatureRows:  # fmt: skip
    """Return the newest vector of each id of a table of ratings: one job a side.

    Parameters
    ----------
    df : DataFrame
        the user's table
    columns : RatingColumns
        where ids, vectors and times are
    kinds : tuple[IdKind, IdKind]
        of the ids of users and of items
    refuse : bool
        whether a vector that is none raises ValueError; else it counts as not given
    weights : Sequence[FeatureWeights | None]
        of the model that the table is added to
    once : bool
        whether an id is likely to come once, and a look at that pays
    """
    found: list[SparseRows | None] = []
    ids = (columns.user, columns.item)
    for side, own, name, kind, known in zip(
        SIDES, ids, columns.features, kinds, weights, strict=True
    ):
        if name is None:
            found.append(None)
            continue
        param = f"{side}FeaturesCol"
        told = f"{param} {name!r}"
        time = F.lit(0) if columns.time is None else time_column(df.schema, columns.time)
        vectors = df.select(
            id_column(df.schema, f"{side}Col", own, kind).alias("id"),
            vector_column(df.schema, param, name).alias("vector"),
            time.alias("time"),
        )
        vectors = vectors.where("id IS NOT NULL AND vector IS NOT NULL")
        table = _each_once(vectors) if once else None
        if table is None:
            newest = vectors.groupBy("id").agg(
                F.max_by("vector", F.struct("time", "vector")).alias("vector"),
                (F.min("vector") != F.max("vector")).alias("differ"),
            )
            table = newest.select("id", *_OF_VECTOR, "differ").toArrow()
            differ = table.filter(table.column("differ")).column("id").to_pylist()
            _warn_of_different(differ, told)
            table = table.drop_columns("differ")
        table = _named(table.cast(vector_schema(kind)), df.schema, name)
        found.append(_checked(table, known, told, refuse))
    return found[0], found[1]


def side_table(
    df: DataFrame, side: str, kind: IdKind, refuse: bool, weights: FeatureWeights | None = None
) -> SparseRows:
    """Return the vectors of a table of ids.

    Parameters
    ----------
    df : DataFrame
        ids in its first column; a column of vectors, or plain ones that become one
    side : str
        "user" or "item"
    kind : IdKind
        of the ids
    refuse : bool
        whether a vector that is none raises ValueError; else it counts as not given
    weights : FeatureWeights | None
        of the model that they are for
    """
    id_name, *others = df.columns
    if len(others) > 1 or not holds_vectors(df.schema.fields[1].dataType):
        df, others = with_one_vector(df, side, weights), [vector_name(side)]
    columns = RatingColumns(
        id_name, id_name, "",
        features=(others[0], None) if side == "user" else (None, others[0]),
    )  # fmt: skip
    found = table_features(df, columns, (kind, kind), refuse, (weights, weights), once=True)
    rows = found[SIDES.index(side)]
    assert rows is not None
    return rows


def _each_once(vectors: DataFrame) -> pa.Table | None:
    """Return the vectors of few ids that come once each, in a third of the time; else None."""
    table = vectors.select("id", *_OF_VECTOR).limit(_FEW + 1).toArrow()
    alone = table.num_rows == len(pa.compute.unique(table.column("id")))
    return table if alone and table.num_rows <= _FEW else None


def _newest(table: pa.Table) -> pa.Table:
    """Return one vector an id: the last by time, of equal times the greatest."""
    ids = table.column("id").combine_chunks().dictionary_encode()
    group = ids.indices.to_numpy(zero_copy_only=False)
    time = np.zeros(group.size, np.int64)
    if "time" in table.column_names:
        time = table.column("time").to_numpy()
        table = table.drop_columns("time")
    last = np.full(len(ids.dictionary), np.iinfo(np.int64).min)
    np.maximum.at(last, group, time)
    at_last = np.flatnonzero(time == last[group])
    if at_last.size > last.size:
        best: dict[int, tuple[Any, int]] = {}
        told = table.select(list(_PARTS)).take(pa.array(at_last)).to_pylist()
        for row, vector in zip(at_last.tolist(), told, strict=True):
            # as Spark orders structs and arrays: null first, NaN is the greatest number
            key = tuple(str(vector[part]) for part in _PARTS), row
            held = best.get(int(group[row]))
            if held is None or key[0] > held[0]:
                best[int(group[row])] = key
        at_last = np.array([row for _, row in best.values()], np.int64)
    return table.take(pa.array(at_last))


def _checked(
    table: pa.Table, weights: FeatureWeights | None, what: str, refuse: bool
) -> SparseRows:
    rows, bad = SparseRows.of(table, 0 if weights is None else weights.size)
    if bad:
        shown = ", ".join(map(repr, bad[:_NAMED])) + (", ..." if len(bad) > _NAMED else "")
        fault = (
            f"{what} has another length than {rows.size}, or holds what is no finite number, for "
            f"{len(bad)} id{'s' if len(bad) > 1 else ''}: {shown}"
        )
        if refuse:
            raise ValueError(
                f"{fault}. Repair these vectors, make them null where nothing is known, or set "
                "handleInvalid='skip' to learn without them."
            )
        logger.warning("%s; nothing counts as known of these", fault)
    used = np.unique(rows.columns).size
    if weights is None and used > MOST_COLUMNS:
        raise ValueError(
            f"{what} has values in {used} columns, at most {MOST_COLUMNS} may have weights: lower "
            "numFeatures of HashingTF, raise minDF of CountVectorizer, or take PCA first."
        )
    return rows


def _warn_of_different(ids: list[Any], what: str) -> None:
    if ids:
        shown = ", ".join(map(repr, sorted(ids)[:_NAMED])) + (", ..." if len(ids) > _NAMED else "")
        warnings.warn(
            f"{what} differs from row to row for {len(ids)} id{'s' if len(ids) > 1 else ''}: "
            f"{shown}. The newest by timestampCol counts.",
            UserWarning,
            stacklevel=2,
        )


def _named(table: pa.Table, schema: StructType, name: str) -> pa.Table:
    """Return a table that tells the names that pyspark.ml keeps of a column's places."""
    field = next((field for field in schema.fields if field.name == name), None)
    held = {} if field is None else (field.metadata or {}).get("ml_attr", {}).get("attrs", {})
    found = {one["idx"]: one["name"] for some in held.values() for one in some if "name" in one}
    names = tuple(found.get(place, str(place)) for place in range(max(found, default=-1) + 1))
    return with_names(table, names)
