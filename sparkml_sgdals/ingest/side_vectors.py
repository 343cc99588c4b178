"""Vectors of the ids of one side, as the user's tables say them: each id's newest (driver).

Of a table of ratings, or of one of ids beside it. Collected where the driver learns of them, read
by tasks where it does not.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.arrays.sparse_rows import SparseRows, vector_schema, with_names
from sparkml_sgdals.ingest.columns import RatingColumns, id_column, time_column
from sparkml_sgdals.ingest.features import (
    SIDES,
    FeatureRows,
    checked_vectors,
    holds_vectors,
    named_ids,
    place_names,
    vector_column,
)
from sparkml_sgdals.ingest.plain_features import vector_name, with_one_vector
from sparkml_sgdals.spark_jobs import phase
from sparkml_sgdals.state.feature_weights import FeatureWeights

__all__ = [
    "NO_VECTORS", "SideVectors", "TableVectors", "refuse_no_vectors", "side_table", "side_vectors",
    "vectors_beside",
]  # fmt: skip

_OF_VECTOR: Final = tuple(f"vector.{part}" for part in ("size", "indices", "values"))
_FEW: Final = 1_000_000
"""rows of a table beside at most that are taken as they are"""


@dataclass(frozen=True)
class SideVectors:
    """Vectors of the ids of one side, as a table says them; nothing is read yet.

    Attributes
    ----------
    side : str
        "user" or "item"
    told : str
        what messages call the column
    kind : IdKind
        of the ids
    refuse : bool
        whether a vector that is none raises ValueError; else it counts as not given
    names : tuple[str, ...]
        that pyspark.ml keeps of the places of the vectors
    frame : DataFrame
        id, vector and time, none of the first two null
    once : bool
        whether an id is likely to come once
    """

    side: str
    told: str
    kind: IdKind
    refuse: bool
    names: tuple[str, ...]
    frame: DataFrame
    once: bool = False

    def newest(self) -> DataFrame:
        """Return the newest vector of each id, and whether others of it differ."""
        newest = self.frame.groupBy("id").agg(
            F.max_by("vector", F.struct("time", "vector")).alias("vector"),
            (F.min("vector") != F.max("vector")).alias("differ"),
        )
        return newest.select("id", *_OF_VECTOR, "differ")

    def by_rows(self) -> DataFrame:
        """Return what `newest` does; of a table of ids its rows, as these hardly come twice."""
        return (
            self.frame.select("id", *_OF_VECTOR, F.lit(False).alias("differ"))
            if self.once
            else self.newest()
        )

    def rows(self, weights: FeatureWeights | None = None) -> SparseRows:
        """Return the newest vector of each id: one job.

        Parameters
        ----------
        weights : FeatureWeights | None
            of the model that they are for

        Raises
        ------
        ValueError
            a vector is none, or more columns have values than may have weights
        """
        table = _each_once(self.frame) if self.once else None
        if table is None:
            table = self.newest().toArrow()
            differ = table.filter(table.column("differ")).column("id").to_pylist()
            self.warn_of_different(len(differ), differ)
            table = table.drop_columns("differ")
        table = with_names(table.cast(vector_schema(self.kind)), self.names)
        return checked_vectors(table, weights, self.told, self.refuse)

    def warn_of_different(self, count: int, ids: list[Any]) -> None:
        """Warn of ids that have several vectors; `ids` holds the first of them."""
        if count:
            warnings.warn(
                f"{self.told} differs from row to row for {named_ids(count, ids)}. The newest by "
                "timestampCol counts.",
                UserWarning,
                stacklevel=2,
            )


def side_vectors(df: DataFrame, columns: RatingColumns, side: str, kind: IdKind, refuse: bool,
                 once: bool = False) -> SideVectors | None:  # fmt: skip
    """Return the vectors of a side that a table of ratings holds; None where it has no column.

    Parameters
    ----------
    df : DataFrame
        the user's table
    columns : RatingColumns
        where ids, vectors and times are
    side : str
        "user" or "item"
    kind : IdKind
        of its ids
    refuse : bool
        whether a vector that is none raises ValueError; else it counts as not given
    once : bool
        whether an id is likely to come once

    Raises
    ------
    ValueError
        a column is missing
    TypeError
        a column holds no vectors
    """
    place = SIDES.index(side)
    own, name = (columns.user, columns.item)[place], columns.features[place]
    if name is None:
        return None
    param = f"{side}FeaturesCol"
    time = F.lit(0) if columns.time is None else time_column(df.schema, columns.time)
    vectors = df.select(
        id_column(df.schema, f"{side}Col", own, kind).alias("id"),
        vector_column(df.schema, param, name).alias("vector"),
        time.alias("time"),
    )
    vectors = vectors.where("id IS NOT NULL AND vector IS NOT NULL")
    names = place_names(df.schema, name)
    return SideVectors(side, f"{param} {name!r}", kind, refuse, names, vectors, once)


@dataclass(frozen=True)
class TableVectors:
    """Vectors of users and of items that a table, or tables beside it, say.

    Attributes
    ----------
    weights : tuple[FeatureWeights | None, FeatureWeights | None]
        of the model that the table is added to
    """

    sides: tuple[SideVectors | None, SideVectors | None] = (None, None)
    weights: tuple[FeatureWeights | None, FeatureWeights | None] = (None, None)

    @cached_property
    def rows(self) -> FeatureRows:
        """The vectors, collected once: one job a side; raises as `SideVectors.rows`.

        ValueError, too, where there are none.
        """
        found: list[SparseRows | None] = []
        for vectors, known in zip(self.sides, self.weights, strict=True):
            if vectors is None:
                found.append(None)
                continue
            with phase(vectors.frame.sparkSession, "read features"):
                rows = vectors.rows(known)
            if known is None and not len(rows):
                refuse_no_vectors(vectors.side)
            found.append(rows)
        return found[0], found[1]


NO_VECTORS: Final = TableVectors()


def vectors_beside(
    df: DataFrame, side: str, kind: IdKind, refuse: bool, weights: FeatureWeights | None = None
) -> SideVectors:
    """Return the vectors of a table of ids; parameters as `side_table`."""
    id_name, *others = df.columns
    if len(others) > 1 or not holds_vectors(df.schema.fields[1].dataType):
        df, others = with_one_vector(df, side, weights), [vector_name(side)]
    columns = RatingColumns(
        id_name, id_name, "",
        features=(others[0], None) if side == "user" else (None, others[0]),
    )  # fmt: skip
    found = side_vectors(df, columns, side, kind, refuse, once=True)
    assert found is not None
    return found


def side_table(
    df: DataFrame, side: str, kind: IdKind, refuse: bool, weights: FeatureWeights | None = None
) -> SparseRows:
    """Return the vectors of a table of ids, collected.

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
    return vectors_beside(df, side, kind, refuse, weights).rows(weights)


def _each_once(vectors: DataFrame) -> pa.Table | None:
    """Return the vectors of few ids that come once each, in a third of the time; else None."""
    table = vectors.select("id", *_OF_VECTOR).limit(_FEW + 1).toArrow()
    alone = table.num_rows == len(pa.compute.unique(table.column("id")))
    return table if alone and table.num_rows <= _FEW else None


def refuse_no_vectors(side: str) -> None:
    """Raise ValueError, as there are no vectors of a side."""
    raise ValueError(
        f"There are no features of {side}s: all vectors are null. Leave "
        f"{side}FeaturesCol out, or look whether its column is the right one."
    )
