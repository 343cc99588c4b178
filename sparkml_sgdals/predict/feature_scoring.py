"""Where ids that a model does not know start by their features, as Spark expressions (driver)."""

from __future__ import annotations

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from sparkml_sgdals.ingest.features import vector_column
from sparkml_sgdals.state.columns import list_column
from sparkml_sgdals.state.feature_weights import FeatureWeights

__all__ = ["start_unknown"]


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
