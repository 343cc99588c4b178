"""Judge: lists of recommendations against what users were held out (driver, executors).

Users and their lists stay in Spark. What comes to the driver are sums, and how often items of
which popularity are recommended.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from sparkml_sgdals.metrics import (
    average_precision_at,
    gini,
    list_hits,
    list_recall_at,
    ndcg_at,
    precision_at,
    reciprocal_rank_at,
    self_information,
)
from sparkml_sgdals.spark_jobs import gathered

__all__ = ["MEANS", "JudgedLists", "held_out_pairs", "judge_lists", "ranking_columns"]

I64 = npt.NDArray[np.int64]

MEANS: Final = ("recall", "ndcg", "mrr", "map", "hit_rate", "precision")
"""What is judged of each user's list, and told as a mean."""

_EXACT_IN_DOUBLE: Final = 1 << 53


@dataclass(frozen=True)
class JudgedLists:
    """How lists of recommendations do.

    Attributes
    ----------
    users, cold_users : int
        users with anything held out, and how many of them the model did not know
    held_out, unknown_held_out : int
        pairs held out, and how many of them are of items that the model did not know
    means, errors : dict[str, float]
        by name, MEANS: means over these users, and the means' standard errors
    coverage, gini, novelty : float
        of the lists together; novelty is NaN where nothing was said to be seen
    """

    users: int
    cold_users: int
    held_out: int
    unknown_held_out: int
    means: dict[str, float]
    errors: dict[str, float]
    coverage: float
    gini: float
    novelty: float


def held_out_pairs(relevant: DataFrame, seen: DataFrame | None) -> DataFrame:
    """Return the pairs that lists are judged by: each once, without those that lists may not hold.

    Parameters
    ----------
    relevant, seen : DataFrame
        columns query and candidate, as bigint or string
    """
    pairs = relevant.where(F.col("query").isNotNull() & F.col("candidate").isNotNull()).distinct()
    return pairs if seen is None else pairs.join(seen, ["query", "candidate"], "left_anti")


def judge_lists(
    pairs: DataFrame,
    recommended: Callable[[pa.Array], DataFrame],
    seen: DataFrame | None,
    catalogue: pa.Array,
    count: int,
    apart: bool = False,
) -> JudgedLists:
    """Judge the lists of all users with anything held out.

    Parameters
    ----------
    pairs : DataFrame
        columns query and candidate, as `held_out_pairs` gives them
    recommended : Callable[[pa.Array], DataFrame]
        lists of the users with these ids, as `recommending.recommend` gives them
    seen : DataFrame | None
        columns query and candidate: by these an item is popular
    catalogue : pa.Array
        ids of the items that the model knows
    count : int
        places of a list
    apart : bool
        whether lists are judged one by one alone: what they are together is NaN
    """
    with ExitStack() as stack:
        # kept rows stay in the 200 partitions of a distinct or a join, however few they are
        pairs = gathered(pairs).persist()
        stack.callback(pairs.unpersist)
        users = pairs.select("query").distinct().toArrow().column("query").combine_chunks()
        held = (
            _marked(pairs, catalogue)
            .groupBy("query")
            .agg(
                F.collect_list("candidate").alias("held"),
                F.count_if(F.col("known").isNull()).alias("unknown"),
            )
        )
        lists = recommended(users).select(
            "query", "cold", F.col("recommendations.candidate").alias("found")
        )
        id_type = dict(pairs.dtypes)["candidate"]
        ddl = ", ".join(f"{name} double" for name in MEANS)
        both = held.join(lists, "query", "left").select(
            "held", "unknown", "found", F.coalesce("cold", F.lit(True)).alias("cold")
        )
        judged = (
            gathered(both)
            .mapInArrow(
                _Judge(count),
                f"{ddl}, held long, unknown long, cold boolean, found array<{id_type}>",
            )
            .persist()
        )
        stack.callback(judged.unpersist)
        sums = judged.agg(*_sums()).toArrow().to_pylist()[0]
        together = (math.nan,) * 3 if apart else _together(judged, seen, len(catalogue))
    number = sums["users"]
    means = {name: _ratio(sums[name], number) for name in MEANS}
    return JudgedLists(
        users=number,
        cold_users=sums["cold"] or 0,
        held_out=sums["held"] or 0,
        unknown_held_out=sums["unknown"] or 0,
        means=means,
        errors={
            name: _standard_error(means[name], _ratio(sums[f"{name}2"], number), number)
            for name in MEANS
        },
        coverage=together[0] if number else math.nan,
        gini=together[1],
        novelty=together[2],
    )


def ranking_columns(pairs: DataFrame, lists: DataFrame, catalogue: pa.Array) -> DataFrame:
    """Return query, prediction and label, both array<double>, a row for each query of `pairs`.

    Numbers are the ids where these are integers that a double holds. Otherwise they are places:
    that of an item in its user's list, and numbers behind the list for items that are not in it.

    Parameters
    ----------
    pairs : DataFrame
        columns query and candidate, as `held_out_pairs` gives them
    lists : DataFrame
        columns query and found, an array of candidates, best first
    catalogue : pa.Array
        ids of the items that the model knows
    """
    held = pairs.groupBy("query").agg(F.array_sort(F.collect_list("candidate")).alias("held"))
    id_type = dict(pairs.dtypes)["candidate"]
    none = F.array().cast(f"array<{id_type}>")
    both = held.join(lists, "query", "left").withColumn("found", F.coalesce("found", none))
    if _doubles_hold(catalogue):
        prediction, label = (F.col(name).cast("array<double>") for name in ("found", "held"))
    else:
        prediction = F.transform("found", lambda _, place: place.cast("double"))
        # in SQL, where array_position takes what a lambda is given
        label = F.expr(
            "transform(held, (one, n) -> CAST(CASE WHEN array_contains(found, one) THEN "
            "array_position(found, one) - 1 ELSE size(found) + n END AS double))"
        )
    return both.select("query", prediction.alias("prediction"), label.alias("label"))


def _marked(pairs: DataFrame, catalogue: pa.Array) -> DataFrame:
    """Return the pairs with a column known, null where the model does not know the candidate."""
    if not len(catalogue):
        return pairs.withColumn("known", F.lit(None).cast("boolean"))
    marks = pa.table({"candidate": catalogue, "known": pa.repeat(True, len(catalogue))})
    return pairs.join(pairs.sparkSession.createDataFrame(marks), "candidate", "left")


@dataclass(frozen=True)
class _Judge:
    """A row a user: what is held out and the list, to how well that does."""

    count: int

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            if batch.num_rows:
                yield self.judge(batch)

    def judge(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return the numbers of one batch of users, with their lists for what they are together."""
        (held, held_starts), (found, starts) = (
            _ragged(batch.column("held")),
            _ragged(batch.column("found")),
        )
        # of both, that an item has one number in both
        codes = pa.concat_arrays([found, held]).dictionary_encode().indices
        rows = codes.to_numpy(zero_copy_only=False).astype(np.int64)
        n = self.count
        hits, sizes = list_hits(rows[: len(found)], starts, rows[len(found) :], held_starts, n)
        numbers = {
            "recall": list_recall_at(hits, sizes, n),
            "ndcg": ndcg_at(hits, sizes, n),
            "mrr": reciprocal_rank_at(hits, n),
            "map": average_precision_at(hits, sizes, n),
            "hit_rate": hits.any(axis=1).astype(np.float64),
            "precision": precision_at(hits, n),
            "held": sizes,
        }
        columns = {name: pa.array(values) for name, values in numbers.items()}
        columns |= {name: batch.column(name) for name in ("unknown", "cold", "found")}
        return pa.RecordBatch.from_pydict(columns)


def _ragged(lists: pa.Array) -> tuple[pa.Array, I64]:
    """Values of an array of lists, and where each begins; a null is an empty one."""
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return lists.flatten(), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _sums() -> list[Column]:
    """Return sums that are the same in whatever order users come: of decimals, not doubles."""
    found = [
        F.count(F.lit(1)).alias("users"),
        F.sum(F.col("cold").cast("long")).alias("cold"),
        F.sum("held").alias("held"),
        F.sum("unknown").alias("unknown"),
    ]
    for name in MEANS:
        value = F.col(name)
        found.append(F.sum(value.cast("decimal(20,17)")).alias(name))
        found.append(F.sum((value * value).cast("decimal(20,17)")).alias(f"{name}2"))
    return found


def _together(judged: DataFrame, seen: DataFrame | None, items: int) -> tuple[float, float, float]:
    """Coverage, Gini and novelty, from how many items are recommended how often."""
    places = judged.select(F.explode("found").alias("candidate"))
    often = places.groupBy("candidate").agg(F.count(F.lit(1)).alias("times"))
    users, done = 0, F.lit(0).cast("long")
    if seen is not None:
        users = seen.agg(F.count_distinct("query").alias("users")).toArrow().to_pylist()[0]["users"]
        popular = seen.groupBy("candidate").agg(F.count_distinct("query").alias("done"))
        often = often.join(popular, "candidate", "left")
        done = F.coalesce("done", done)
    kinds = (
        often.groupBy("times", done.alias("done"))
        .agg(F.count(F.lit(1)).alias("items"))
        .toArrow()
        .sort_by([("times", "ascending"), ("done", "ascending")])
    )
    times, known, number = (
        kinds.column(name).to_numpy().astype(np.int64) for name in ("times", "done", "items")
    )
    counts = np.zeros(items, np.int64)
    recommended = int(number.sum())
    counts[:recommended] = np.repeat(times, number)
    coverage = _ratio(recommended, items)
    total = int((times * number).sum())
    if not users or not total:
        return coverage, gini(counts), math.nan
    novelty = float((self_information(known, users) * (times * number)).sum()) / total
    return coverage, gini(counts), novelty


def _doubles_hold(ids: pa.Array) -> bool:
    if not pa.types.is_integer(ids.type):
        return False
    ends = pa.compute.min_max(ids).as_py()
    return not len(ids) or -_EXACT_IN_DOUBLE < ends["min"] <= ends["max"] < _EXACT_IN_DOUBLE


def _ratio(total: Any, number: int) -> float:
    return float(total) / number if number else math.nan


def _standard_error(mean: float, square: float, number: int) -> float:
    if number < 2:
        return math.nan
    return math.sqrt(max(square - mean * mean, 0.0) / (number - 1))
