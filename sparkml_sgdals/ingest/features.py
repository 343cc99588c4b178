"""Features of users and items in the user's DataFrames: found, checked, one vector an id (driver).

Columns of pyspark.ml vectors, dense or sparse, of arrays of numbers, or of structs of size, indices
and values; in a table of ids also plain columns: `plain_features`.
"""

from __future__ import annotations

import logging
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
from sparkml_sgdals.arrays.sparse_rows import (
    SparseRows,
    newest_vectors,
    with_names,
)
from sparkml_sgdals.ingest.columns import (
    RatingColumns,
    column,
    column_type,
    has_ratings,
    id_column,
)
from sparkml_sgdals.state.feature_weights import MOST_COLUMNS, FeatureWeights
from sparkml_sgdals.state.model_state import ModelState

__all__ = [
    "NAMED",
    "SIDES",
    "FeatureRows",
    "Vectors",
    "announcements",
    "checked_vectors",
    "features_of_table",
    "holds_vectors",
    "joined_with",
    "named_ids",
    "named_vectors",
    "place_names",
    "tell_of_bad",
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
NAMED: Final = 5
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
        table if table is None or name is None else with_names(table, place_names(schema, name))
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
        rows, _ = newest_vectors(given.filter(pa.array(wanted)))
        found.append(checked_vectors(rows, weights, f"{side}FeaturesCol {name!r}", refuse))
    return found[0], found[1]


def checked_vectors(
    table: pa.Table, weights: FeatureWeights | None, what: str, refuse: bool
) -> SparseRows:
    """Return the vectors of a table, of a column that messages call `what`.

    Raises ValueError as `tell_of_bad`, and where more columns have values than may have weights.
    """
    rows, bad = SparseRows.of(table, 0 if weights is None else weights.size)
    tell_of_bad(len(bad), bad, rows.size, what, refuse)
    used = np.unique(rows.columns).size
    if weights is None and used > MOST_COLUMNS:
        raise ValueError(
            f"{what} has values in {used} columns, at most {MOST_COLUMNS} may have weights: lower "
            "numFeatures of HashingTF, raise minDF of CountVectorizer, or take PCA first."
        )
    return rows


def tell_of_bad(count: int, ids: list[Any], size: int, what: str, refuse: bool) -> None:
    """Refuse vectors that are none, or say that they do not count; `ids` holds the first of them.

    Parameters
    ----------
    count : int
        how many there are
    ids : list[Any]
        in their order, the first of them or all
    size : int
        numbers that a vector has to have
    what : str
        the column
    refuse : bool
        whether they raise ValueError
    """
    if not count:
        return
    fault = (
        f"{what} has another length than {size}, or holds what is no finite number, for "
        f"{named_ids(count, ids)}"
    )
    if refuse:
        raise ValueError(
            f"{fault}. Repair these vectors, make them null where nothing is known, or set "
            "handleInvalid='skip' to learn without them."
        )
    logger.warning("%s; nothing counts as known of these", fault)


def named_ids(count: int, ids: list[Any]) -> str:
    """Say how many ids there are, and name the first; `ids` holds these at least."""
    shown = ", ".join(map(repr, sorted(ids)[:NAMED])) + (", ..." if count > NAMED else "")
    return f"{count} id{'s' if count > 1 else ''}: {shown}"


def place_names(schema: StructType, name: str) -> tuple[str, ...]:
    """Return the names that pyspark.ml keeps of a column's places."""
    field = next((field for field in schema.fields if field.name == name), None)
    held = {} if field is None else (field.metadata or {}).get("ml_attr", {}).get("attrs", {})
    found = {one["idx"]: one["name"] for some in held.values() for one in some if "name" in one}
    return tuple(found.get(place, str(place)) for place in range(max(found, default=-1) + 1))
