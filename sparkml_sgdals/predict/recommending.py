"""Rank: the best candidates for many ids, by blocked products in Arrow UDFs (driver, executors)."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from sparkml_sgdals.arrays.given_ids import whole_count
from sparkml_sgdals.arrays.hashing import USER_SIDE
from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.predict.choice import Choice
from sparkml_sgdals.predict.rank_blocks import (
    QUERIES_PER_BLOCK,
    CandidatePart,
    Heard,
    Part,
    Queries,
    RankBy,
    Ranking,
    query_blocks,
    rank_blocks,
)
from sparkml_sgdals.state.columns import prior_variances
from sparkml_sgdals.state.event_scores import means_and_tastes, tastes_of
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.model_state import ModelState

__all__ = [
    "CANDIDATES_PER_PART", "RankBy", "Ranking", "candidate_parts", "directions", "queries_of",
    "recommend", "similar", "similar_among", "similar_parts",
]  # fmt: skip

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

CANDIDATES_PER_PART: Final = 200_000


def recommend(
    spark: SparkSession,
    state: ModelState,
    queries: FactorTable,
    candidates: FactorTable,
    ranking: Ranking,
    subset: pa.Array | None,
    choice: Choice,
) -> DataFrame:
    """Return the best candidates for all queries, or for the distinct ids in `subset`.

    Parameters
    ----------
    spark : SparkSession
        where the DataFrame is made
    state : ModelState
        the model, for its prior variances
    queries, candidates : FactorTable
        its users and items, or items and users: recommended to, and recommended
    ranking : Ranking
        how many, by what score, in which unit
    subset : pa.Array | None
        ids of the queries' kind; one that is not known is served by the candidates' biases
    choice : Choice
        which candidates

    Returns
    -------
    DataFrame of query (bigint or string), cold (boolean) and recommendations, an array of structs
    of candidate and rating, best first
    """
    rows = np.arange(queries.size) if subset is None else queries.index.find(subset)
    ids = queries.index.ids() if subset is None else subset
    asked = queries_of(state, queries, rows, ranking)
    parts = candidate_parts(state, candidates, ranking, queries.side == USER_SIDE, choice)
    kinds = (queries.index.kind, candidates.index.kind)
    return _ranked(spark, ids, asked, parts, ranking, kinds, choice)


def queries_of(state: ModelState, queries: FactorTable, rows: I64, ranking: Ranking) -> Queries:
    """Return what is ranked for, by rows of a table; -1 for ids that are not known."""
    users_ask = queries.side == USER_SIDE
    mean, taste = means_and_tastes(queries, rows)
    # the row after the last stands for ids that are not known
    var = (
        np.vstack([queries.var, prior_variances(state.settings)[None, :]])[rows]
        if ranking.sign != 0
        else np.empty((rows.size, 0), np.float32)
    )
    latest = state.heard.of_rows(rows) if state.heard is not None and users_ask else None
    of_items = rows if state.heard is not None and not users_ask else None
    return Queries(mean, var, taste, rows < 0, latest, of_items)


def candidate_parts(
    state: ModelState, candidates: FactorTable, ranking: Ranking, users_ask: bool, choice: Choice
) -> list[Part]:
    """Return those of a table that are chosen for all in parts, in the order of their ids."""
    order = choice.rows(candidates)
    parts: list[Part] = []
    # where none is left, each query still has its row
    for first in range(0, max(order.size, min(candidates.size, 1)), CANDIDATES_PER_PART):
        some = order[first : first + CANDIDATES_PER_PART]
        held = candidates.var[some] if ranking.sign else np.empty((some.size, 0), np.float32)
        parts.append(
            CandidatePart(
                candidates.index.ids(some),
                candidates.mean[some],
                held,
                candidates.taste[some],
                Heard.of(state.heard, some, users_ask),
            )
        )
    return parts


def similar(spark: SparkSession, table: FactorTable, count: int, subset: pa.Array) -> DataFrame:
    """Return the ids whose features point the same way as those of each id in `subset`: cosine.

    Returns query, cold and recommendations as `recommend`, the rating being the cosine; ids that
    are not known have none.
    """
    count = whole_count("The number of similar ids", count)
    rows = table.index.find(subset)
    subset, rows = subset.filter(pa.array(rows >= 0)), rows[rows >= 0]
    features = directions(tastes_of(table))
    parts = similar_parts(table.index.ids(), features)
    return similar_among(spark, subset, features[rows], table.index.kind, count, parts)


def similar_among(
    spark: SparkSession, ids: pa.Array, features: F32, kind: IdKind, count: int, parts: list[Part]
) -> DataFrame:
    """Return `similar` of ids with these `directions`, among the candidates in parts."""
    nothing = np.empty((len(ids), 0), np.float32)
    ranking = Ranking(count, 0, 0.0, 1.0, -1.0, 1.0)
    asked = Queries(features, nothing, nothing, np.zeros(len(ids), bool))
    itself = _pairs(spark, ids, kind)
    return _ranked(spark, ids, asked, parts, ranking, (kind, kind), Choice(seen=itself))


def directions(means: F32) -> F32:
    """Return features of length 1, with a bias of 0: their products are cosines."""
    features = means.copy()
    features[:, 0] = 0.0
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    features /= np.where(norms > 0, norms, np.float32(1.0))
    return features


def similar_parts(ids: pa.Array, features: F32) -> list[Part]:
    """Return ids and their `directions` as candidates in parts, in the order of ids."""
    order = pa.compute.array_sort_indices(ids).to_numpy(zero_copy_only=False)
    nothing = np.empty((len(ids), 0), np.float32)
    parts: list[Part] = []
    for first in range(0, order.size, CANDIDATES_PER_PART):
        some = order[first : first + CANDIDATES_PER_PART]
        held = ids.take(pa.array(some)), features[some], nothing[some], nothing[some]
        parts.append(CandidatePart(*held))
    return parts


def _pairs(spark: SparkSession, ids: pa.Array, kind: IdKind) -> DataFrame:
    ddl = "bigint" if kind == "int" else "string"
    if not len(ids):
        return spark.createDataFrame([], f"query {ddl}, candidate {ddl}")
    return spark.createDataFrame(pa.table({"query": ids, "candidate": ids}))


def _ranked(
    spark: SparkSession,
    ids: pa.Array,
    asked: Queries,
    parts: list[Part],
    ranking: Ranking,
    kinds: tuple[IdKind, IdKind],
    choice: Choice,
) -> DataFrame:
    if not len(ids):
        return rank_blocks(spark, None, 0, [], ranking, kinds, choice)
    num_blocks = -(-len(ids) // QUERIES_PER_BLOCK)
    blocks = query_blocks(spark, ids, asked, num_blocks) if parts else None
    return rank_blocks(spark, blocks, num_blocks, parts, ranking, kinds, choice)
