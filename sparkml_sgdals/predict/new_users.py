"""Rank for users whom the model does not know, from ratings sent along (driver, executors).

Items travel with the function; a task folds in the users of its partition and ranks for them, and
nothing is stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from sparkml_sgdals.arrays.hashing import block_of, id_keys
from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.arrays.screening import ZERO_WEIGHT, screen
from sparkml_sgdals.ingest.bad_rows import explain_problems
from sparkml_sgdals.learn.one_batch import HeldItems, fold_in
from sparkml_sgdals.predict.choice import Choice
from sparkml_sgdals.predict.rank_blocks import CandidatePart, Rank, Ranking
from sparkml_sgdals.spark_workers import need_workers
from sparkml_sgdals.state.columns import list_column
from sparkml_sgdals.state.model_state import ModelState

__all__ = ["recommend_new_users"]

_USERS_AT_ONCE: Final = 4096
_MOST_BYTES: Final = 2**29
"""Of items that travel with the tasks."""


def recommend_new_users(
    spark: SparkSession,
    ratings: DataFrame,
    state: ModelState,
    ranking: Ranking,
    choice: Choice,
    *,
    leave_out: bool,
    names: dict[str, str] | None,
) -> DataFrame:
    """Return the best items for the users of some ratings, as if they were all that is known.

    Parameters
    ----------
    spark : SparkSession
        where tasks run
    ratings : DataFrame
        as `select_ratings` gives them
    state : ModelState
        the model, which stays as it is
    ranking : Ranking
        how many, by what score, in which unit
    choice : Choice
        which items, for all alike
    leave_out : bool
        whether the items that a user has rated are not ranked
    names : dict[str, str] | None
        `column_names` for the message where rows cannot be learned; None to leave these rows out

    Returns
    -------
    DataFrame of query (bigint or string) and recommendations, as `recommending.recommend` gives
    them

    Raises
    ------
    ValueError
        the model cannot fold users in, or is too large to travel with the tasks
    """
    held = HeldItems.of(state)
    size = 4 * (held.mean.size + held.var.size + held.influence.size)
    if size > _MOST_BYTES:
        raise ValueError(
            f"The model's {state.items.size:,} items are {size / 2**20:,.0f} MiB, and up to "
            f"{_MOST_BYTES / 2**20:.0f} MiB travel with the tasks: learn these ratings instead, "
            "model.copy().update(ratings).recommendForUserSubset(ratings, n)."
        )
    items, order = state.items, choice.rows(state.items)
    nothing = np.empty((order.size, 0), np.float32)
    var = items.var[order] if ranking.sign else nothing
    part = CandidatePart(items.index.ids(order), items.mean[order], var, nothing)
    kinds = state.users.index.kind, items.index.kind
    rank = _FoldInAndRank(held, items.index.ids(), Rank(part, ranking, kinds), leave_out, names)
    types = [("bigint" if kind == "int" else "string") for kind in kinds]
    need_workers(spark)
    return ratings.repartition("user").mapInArrow(
        rank,
        f"query {types[0]}, recommendations array<struct<candidate:{types[1]},rating:float>>",
    )


@dataclass(frozen=True)
class _FoldInAndRank:
    """The function of mapInArrow: all ratings of a user are in one partition."""

    held: HeldItems
    ids: pa.Array
    rank: Rank
    leave_out: bool
    names: dict[str, str] | None

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        given = [batch for batch in batches if batch.num_rows]
        if not given:
            return
        table, _, problems = screen(pa.Table.from_batches(given))
        if self.names is not None and any(fault != ZERO_WEIGHT for fault in problems):
            raise ValueError(
                f"{explain_problems(problems, self.names)}. Repair or remove these rows, or set "
                "handleInvalid='skip' to rank by the others."
            )
        if not table.num_rows:
            return
        table = table.combine_chunks()
        users = table.column("user").combine_chunks()
        block = block_of(id_keys(users), -(-len(users.unique()) // _USERS_AT_ONCE))
        ordered = table.take(pa.array(np.argsort(block, kind="stable")))
        first = 0
        for count in np.bincount(block):
            if count:
                yield self._ranked(ordered.slice(first, count))
            first += count

    def _ranked(self, table: pa.Table) -> pa.RecordBatch:
        ratings = encode_ratings(table)
        places = pa.compute.index_in(ratings.item_ids, self.ids)
        unknown = ratings.item_ids.filter(places.is_null())
        rows: npt.NDArray[np.int64] = np.empty(len(places), np.int64)
        missing = places.is_null().to_numpy(zero_copy_only=False)
        rows[~missing] = places.drop_null().to_numpy()
        # an item that is not known yet says what it would say to the stream, as it starts
        rows[missing] = len(self.ids) + np.arange(len(unknown))
        kind = self.rank.kinds[0]
        mean, var = fold_in(self.held.with_new(unknown), ratings, rows, kind)
        users = len(ratings.user_ids)
        queries = pa.table(
            {
                "id": ratings.user_ids,
                "mean": list_column(mean),
                "var": list_column(var),
                "taste": list_column(np.empty((users, 0), np.float32)),
                "cold": pa.array(np.zeros(users, bool)),
            }
        )
        pairs = None
        if self.leave_out:
            owners = ratings.user_ids.take(pa.array(ratings.users))
            done = ratings.item_ids.take(pa.array(ratings.items))
            pairs = pa.table({"query": owners, "candidate": done})
        found = self.rank.rank(queries, pairs)
        return found.select(["query", "recommendations"])
