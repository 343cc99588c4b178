"""Where ids that a model does not know start by their features, as Spark expressions (driver)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf

from sparkml_sgdals.arrays.sparse_rows import SparseRows, vector_schema
from sparkml_sgdals.ingest.features import vector_column
from sparkml_sgdals.state.columns import list_column
from sparkml_sgdals.state.event_starts import EventStarts
from sparkml_sgdals.state.feature_weights import FeatureWeights

__all__ = ["start_unknown", "start_unknown_of_events"]


def start_unknown(
    joined: DataFrame, side: str, vector: str, weights: FeatureWeights, tag: str
) -> DataFrame:
    """Give ids without factors those of new ids with their features, and count them as known.

    Parameters
    ----------
    joined : DataFrame
        pairs with the factors that `scoring.score` joins, by its names
    side : str
        "user" or "item"
    vector : str
        column of the features
    weights : FeatureWeights
        of the side
    tag : str
        of the names

    Notes
    -----
    Weights come as a table of one row, which Spark sends to all tasks: as literals they would be
    thousands of expressions.
    """
    known, mean, var = (f"__{side}_{part}_{tag}" for part in ("id", "mean", "var"))
    held, base, slopes = (f"__{side}_{part}_{tag}" for part in ("vector", "base", "slopes"))
    dense = weights.dense(weights.start)
    lists = list_column(dense)
    one = pa.table(
        {
            base: list_column(weights.base(weights.start)[None, :]),
            slopes: pa.ListArray.from_arrays(pa.array([0, len(lists)], pa.int32()), lists),
        }
    )
    spark = joined.sparkSession
    joined = joined.crossJoin(F.broadcast(spark.createDataFrame(one)))
    own = vector_column(joined.schema, f"{side}FeaturesCol", vector)
    joined = joined.withColumn(held, F.when(F.col(known).isNull(), own))
    wrong = (
        f"concat('{side}FeaturesCol holds a vector of ', {held}.size, ' numbers, the model was "
        f"fitted with {weights.size}.')"
    )
    started = (
        f"CASE WHEN {held}.size <> {weights.size} THEN CAST(raise_error({wrong}) AS array<float>) "
        f"WHEN {held} IS NOT NULL THEN CAST(aggregate("
        f"transform({held}.values, (v, k) -> struct(coalesce(get({held}.indices, k), k) AS j, "
        f"v AS v)), {base}, (sums, x) -> zip_with(sums, get({slopes}, x.j), "
        f"(s, w) -> s + w * x.v)) AS array<float>) END"
    )
    joined = joined.withColumn(mean, F.expr(f"coalesce({mean}, {started})"))
    if var in joined.columns:
        numbers = ", ".join(f"float({float(number)!r})" for number in weights.start_var)
        spread = f"CASE WHEN {held} IS NOT NULL THEN array({numbers}) END"
        joined = joined.withColumn(var, F.expr(f"coalesce({var}, {spread})"))
    return joined.drop(base, slopes)


def start_unknown_of_events(
    joined: DataFrame, side: str, vector: str, starts: EventStarts, tag: str
) -> DataFrame:
    """`start_unknown` for a model of events: Python in the tasks, for it takes sums over items.

    Parameters
    ----------
    joined, side, vector, tag
        as there
    starts : EventStarts
        of the side
    """
    known, mean, taste = (f"__{side}_{part}_{tag}" for part in ("id", "mean", "taste"))
    held, row = (f"__{side}_{part}_{tag}" for part in ("vector", "start"))
    own = vector_column(joined.schema, f"{side}FeaturesCol", vector)
    joined = joined.withColumn(held, F.when(F.col(known).isNull(), own))
    parts = [F.col(held)[part] for part in ("size", "indices", "values")]
    joined = joined.withColumn(row, _starting(side, starts)(*parts))
    width = starts.width
    joined = joined.withColumn(mean, F.expr(f"coalesce({mean}, slice({row}, 1, {width}))"))
    rest = f"slice({row}, {width + 1}, size({row}))"
    return joined.withColumn(taste, F.expr(f"coalesce({taste}, {rest})")).drop(row)


def _starting(side: str, starts: EventStarts) -> Any:
    """Return where vectors let an id start, means and tastes as one, as a function of columns."""

    def started(size: pd.Series, indices: pd.Series, values: pd.Series) -> pd.Series:
        there = np.flatnonzero(values.notna().to_numpy())
        found: list[Any] = [None] * len(values)
        if there.size:
            table = pa.table(
                {
                    "id": pa.array(there),
                    "size": pa.array(size.iloc[there], pa.int32()),
                    "indices": pa.array(indices.iloc[there], pa.list_(pa.int32())),
                    "values": pa.array(values.iloc[there], pa.list_(pa.float64())),
                },
                schema=vector_schema("int"),
            )
            rows, bad = SparseRows.of(table, starts.weights.size)
            if bad:
                raise ValueError(
                    f"{side}FeaturesCol holds a vector of {int(size.iloc[bad[0]])} numbers, the "
                    f"model was fitted with {starts.weights.size}, or one that is not finite."
                )
            for place, row in zip(there.tolist(), np.hstack(starts.of(rows)), strict=True):
                found[place] = row
        return pd.Series(found, dtype=object)

    return pandas_udf(started, "array<float>")  # type: ignore[call-overload]
