"""Score: pairs joined with factors by id, predictions as plain Spark expressions (driver).

No Python runs in the tasks, but where a model of events hears what stands together: a dot product
of K terms compiles into the join's own stage, for static and for streaming tables alike.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf
from pyspark.sql.types import StructType

from sparkml_sgdals.arrays.hashing import USER_SIDE
from sparkml_sgdals.ingest.columns import id_column
from sparkml_sgdals.kernels.events.judges import FLOOR, NEVER
from sparkml_sgdals.predict.feature_scoring import start_unknown, start_unknown_of_events
from sparkml_sgdals.spark_jobs import BROADCAST_IDS, gathered
from sparkml_sgdals.spark_workers import need_workers
from sparkml_sgdals.state.columns import list_column, prior_variances
from sparkml_sgdals.state.event_scores import tastes_of
from sparkml_sgdals.state.event_starts import EventStarts
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.partners import Partners
from sparkml_sgdals.state.vectors import public_means

__all__ = ["FactorFrames", "ScoreColumns", "factor_frame", "public_factors", "score"]


_LEAST: Final = 1e-300


@dataclass(frozen=True)
class ScoreColumns:
    """Columns that scoring reads and adds, and how it treats ids that are not known."""

    user: str
    item: str
    prediction: str
    std: str
    cold_start: str
    clip: bool
    features: tuple[str | None, str | None] = (None, None)
    """of users and items that the model does not know; None where the table has none"""


@dataclass(frozen=True)
class FactorFrames:
    """Internal factor tables as DataFrames: see `factor_frame`; arrays have the bias first."""

    users: DataFrame
    items: DataFrame

    def __iter__(self) -> Iterator[DataFrame]:
        """Iterate over users, then items."""
        return iter((self.users, self.items))


def factor_frame(
    spark: SparkSession, table: FactorTable, deviations: bool, heard: Partners | None = None
) -> DataFrame:
    """Return one side's factors, id and mean, and what deviations and partners need if asked."""
    types = {
        "id": "bigint" if table.index.kind == "int" else "string",
        "mean": "array<float>",
        **({"variance": "array<float>", "noise_factor": "float"} if deviations else {}),
        **({"taste": "array<float>"} if table.settings.fits_events else {}),
    }
    arrow = table.to_arrow().select(list(types))
    if heard is not None:
        rows = table.index.find(arrow.column("id").combine_chunks())
        if table.side == USER_SIDE:
            types |= {"latest": "array<int>", "weight": "float"}
            arrow = arrow.append_column("latest", list_column(heard.latest[rows]))
            arrow = arrow.append_column("weight", pa.array(heard.weights[rows]))
        else:
            types |= {"row": "bigint"}
            arrow = arrow.append_column("row", pa.array(rows))
    if not table.size:
        ddl = ", ".join(f"{name} {kind}" for name, kind in types.items())
        return spark.createDataFrame([], ddl)
    return spark.createDataFrame(arrow)


def public_factors(
    spark: SparkSession, table: FactorTable, spread: float, id_type: str
) -> DataFrame:
    """Return factors in rating units: id, features array<float>, bias float.

    A prediction is then mean + user bias + item bias + U . P. Of a fitted table of events U . P is
    the preference, and an item's bias the logarithm of its share of events, above that of none.
    """
    ids = table.index.ids()
    order = pa.compute.array_sort_indices(ids).to_numpy(zero_copy_only=False)
    mean = public_means(table.mean[order], table.settings)
    tastes = tastes_of(table)[order] if table.settings.fits_events else mean
    features = tastes[:, 1:] * np.float32(np.sqrt(spread))
    biases = mean[:, 0] * np.float32(spread)
    if table.settings.fits_events and table.side == USER_SIDE:
        # what a user's judgements are multiplied with is no bias
        biases = np.zeros_like(biases)
    arrow = pa.table(
        {
            "id": ids.take(pa.array(order)),
            "features": list_column(np.ascontiguousarray(features)),
            "bias": pa.array(biases),
        }
    )
    id_type = table.index.type_name(id_type)
    ddl = f"id {id_type}, features array<float>, bias float"
    if not table.size:
        return spark.createDataFrame([], ddl)
    return spark.createDataFrame(arrow).withColumn("id", F.col("id").cast(id_type))


def score(
    df: DataFrame, state: ModelState, frames: FactorFrames, columns: ScoreColumns,
    starts: tuple[EventStarts | None, EventStarts | None] = (None, None),
) -> DataFrame:  # fmt: skip
    """Add predictions to pairs, keeping every column and, but for 'drop', every row.

    Of a model of events `starts` says where ids start that it does not know.

    Raises
    ------
    ValueError
        a column is missing, or a column to add is there already
    TypeError
        ids of another kind than the model's
    RuntimeError
        a model of events runs Python in the tasks, and workers cannot run the package
    """
    if columns.std and columns.std.lower() == columns.prediction.lower():
        raise ValueError(
            f"predictionStdCol and predictionCol are both {columns.std!r}: give the deviation a "
            "column of its own, or set predictionStdCol to ''."
        )
    for added in filter(None, (columns.prediction, columns.std)):
        if added.lower() in (name.lower() for name in df.columns):
            raise ValueError(
                f"The column {added!r} is in the DataFrame already: drop it, or set predictionCol "
                "or predictionStdCol to another name."
            )
    # fresh names, so that tables derived from the model's own factors join without ambiguity
    tag = uuid.uuid4().hex[:12]
    schema: StructType = df.schema
    runs_python = state.heard is not None or any(
        start is not None and start.fitted and vector is not None
        for start, vector in zip(starts, columns.features, strict=True)
    )
    if runs_python:
        need_workers(df.sparkSession)
    joined = gathered(df) if runs_python else df
    helpers = []
    for side, param, name, frame, table, size in (
        ("user", "userCol", columns.user, frames.users, state.users, state.ids[0]),
        ("item", "itemCol", columns.item, frames.items, state.items, state.ids[1]),
    ):
        key, known = f"__{side}_{tag}", f"__{side}_id_{tag}"
        names = {
            "id": known,
            "mean": f"__{side}_mean_{tag}",
            "variance": f"__{side}_var_{tag}",
            "noise_factor": f"__{side}_noise_{tag}",
            "taste": f"__{side}_taste_{tag}",
            "latest": f"__{side}_latest_{tag}",
            "weight": f"__{side}_weight_{tag}",
            "row": f"__{side}_row_{tag}",
        }
        factors = frame.toDF(*[names[name] for name in frame.columns])
        helpers += [key, *factors.columns]
        if size <= BROADCAST_IDS:
            factors = F.broadcast(factors)
        joined = joined.withColumn(key, id_column(schema, param, name, table.index.kind))
        joined = joined.join(factors, F.col(key) == F.col(known), "left")
    is_known = []
    for side, vector, weights, start in zip(
        ("user", "item"), columns.features, state.features, starts, strict=True
    ):
        here = F.col(f"__{side}_id_{tag}").isNotNull()
        if vector is not None and (weights is not None or start is not None):
            if start is not None and start.fitted:
                joined = start_unknown_of_events(joined, side, vector, start, tag)
            else:
                own = weights if start is None else start.weights
                assert own is not None
                joined = start_unknown(joined, side, vector, own, tag)
            helpers.append(f"__{side}_vector_{tag}")
            here = here | F.col(f"__{side}_vector_{tag}").isNotNull()
        is_known.append(here)
    user_known, item_known = is_known
    if columns.cold_start == "drop":
        joined = joined.where(user_known & item_known)
    added_columns = [_prediction(state, tag, columns, user_known & item_known)]
    if columns.std:
        added_columns.append(_deviation(state, tag, columns, user_known & item_known))
    # not by name: of two columns of one name, as joins leave them, Spark would not know which
    return joined.select("*", *added_columns).drop(*helpers)


def _prediction(state: ModelState, tag: str, columns: ScoreColumns, known: Column) -> Column:
    # one SQL text: thousands of Column objects would cost more than scoring a small table
    user, item = f"__user_mean_{tag}", f"__item_mean_{tag}"
    terms = [f"coalesce(get({user}, 0), 0D) + coalesce(get({item}, 0), 0D)"]
    terms += _products(user, item, state.settings.rank)
    score = F.expr(_sum(terms))
    if state.settings.fits_events:
        score = _both_judges(score, state.settings.table_rank, tag)
    if state.heard is not None:
        boost = _boosting(state.heard.rows, state.heard.strengths)
        names = (f"__user_latest_{tag}", f"__user_weight_{tag}", f"__item_row_{tag}")
        # a score of as little as that is no number's exponential
        score = F.log(F.exp(score) + boost(*names) + F.lit(_LEAST))
    value = score * F.lit(state.scale.spread) + F.lit(state.scale.mean)
    if columns.clip and state.counters.ratings:
        low, high = F.lit(float(state.counters.low)), F.lit(float(state.counters.high))
        value = F.least(F.greatest(value, low), high)
    if state.blank:
        value = F.lit(float("nan"))
    if columns.cold_start == "nan":
        value = F.when(known, value).otherwise(F.lit(float("nan")))
    return value.cast("float").alias(columns.prediction)


def _boosting(rows: npt.NDArray[np.int32], strengths: npt.NDArray[np.float32]) -> Any:
    """Return what stands together with what users did last as a function of Spark's columns."""

    def boost(latest: pd.Series, weight: pd.Series, row: pd.Series) -> pd.Series:
        there = (latest.notna() & row.notna()).to_numpy()
        boosts = np.zeros(len(row))
        if there.any():
            heard = Partners(
                np.stack(latest[there].to_list()).astype(np.int32),
                weight[there].to_numpy(np.float32), rows, strengths,
            )  # fmt: skip
            pairs = np.arange(int(there.sum())), row[there].to_numpy(np.int64)
            boosts[there] = heard.of_pairs(*pairs)
        return pd.Series(boosts)

    return pandas_udf(boost, "double")  # type: ignore[call-overload]


def _both_judges(score: Column, rank: int, tag: str) -> Column:
    """Return the logarithm of what filter and table say: `kernels.events.judges`."""
    user, item = f"__user_taste_{tag}", f"__item_taste_{tag}"
    offset = F.expr(f"coalesce(double(get({user}, 0)), {float(NEVER)!r}D) + "
                    f"coalesce(get({item}, 0), 0D)")  # fmt: skip
    product = F.expr(_sum(_products(user, item, rank)))
    root = F.sqrt(product * product + F.lit(4.0 * float(FLOOR) ** 2))
    return F.log(F.exp(score) + F.exp(offset) * (product + root) / F.lit(2.0))


def _products(user: str, item: str, rank: int) -> list[str]:
    """Return SQL of the products of two columns' features, 0 where either is not known."""
    return [
        f"coalesce(double(get({user}, {f})) * get({item}, {f}), 0D)" for f in range(1, rank + 1)
    ]


def _sum(terms: list[str]) -> str:
    """Return SQL of a sum, by halves: Spark goes down into it as deep as it is nested."""
    if len(terms) == 1:
        return terms[0]
    half = len(terms) // 2
    return f"({_sum(terms[:half])} + {_sum(terms[half:])})"


def _deviation(state: ModelState, tag: str, columns: ScoreColumns, known: Column) -> Column:
    """Return the standard deviation of a new rating: docs/algorithm.md, equation (7)."""
    prior = prior_variances(state.settings)

    def mean(side: str, f: int) -> str:
        return f"coalesce(double(get(__{side}_mean_{tag}, {f})), 0D)"

    def var(side: str, f: int) -> str:
        return f"coalesce(double(get(__{side}_var_{tag}, {f})), {float(prior[f])!r}D)"

    def factor(side: str) -> str:
        return f"coalesce(double(__{side}_noise_{tag}), 1D)"

    noise = f"{float(state.noise)!r}D * {factor('user')} * {factor('item')}"
    terms = [f"{var('user', 0)} + {var('item', 0)} + {noise}"]
    for f in range(1, state.settings.rank + 1):
        um, im, uv, iv = mean("user", f), mean("item", f), var("user", f), var("item", f)
        terms.append(f"({uv} * {im} * {im} + {iv} * {um} * {um} + {uv} * {iv})")
    value = F.sqrt(F.expr(_sum(terms))) * F.lit(state.scale.spread)
    if columns.cold_start == "nan" or state.blank:
        value = F.when(known, value).otherwise(F.lit(float("nan")))
    return value.cast("float").alias(columns.std)
