"""Rank blocks of queries against parts of the candidates, in Arrow UDFs (driver, executors).

Queries (users, say) are cut into blocks of factors, one binary row each; candidates (items) travel
with the function, or tasks read them. No row is ever a pair.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkml_sgdals.arrays.given_ids import whole_count
from sparkml_sgdals.arrays.hashing import block_of, id_keys
from sparkml_sgdals.arrays.id_kinds import IdKind, id_array_type
from sparkml_sgdals.arrays.ipc import from_bytes, in_pieces, to_bytes
from sparkml_sgdals.kernels.topn import (
    Boosts,
    Positions,
    Tastes,
    candidate_products,
    positions_of,
    query_products,
    top_n,
)
from sparkml_sgdals.predict.choice import Choice
from sparkml_sgdals.spark_jobs import gathered
from sparkml_sgdals.spark_workers import need_workers
from sparkml_sgdals.state.columns import list_column
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.partners import Partners

__all__ = [
    "QUERIES_PER_BLOCK", "CandidatePart", "Heard", "Part", "Queries", "Rank", "RankBy", "Ranking",
    "query_blocks", "rank_blocks",
]  # fmt: skip

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
RankBy = Literal["prediction", "upper", "lower"]

_SIGNS: Final = {"prediction": 0, "upper": 1, "lower": -1}
QUERIES_PER_BLOCK: Final = 4096
_PAIRS_AT_ONCE: Final = 500_000


@dataclass(frozen=True)
class Ranking:
    """What to rank by, and how scores become ratings.

    Attributes
    ----------
    count : int
        candidates a query
    sign : int
        1, 0 or -1 standard deviations of the mean added to the prediction
    mean, spread : float
        of the scale; score = mean + spread (query part + candidate part)
    low, high : float
        predictions are clipped to these after ranking
    """

    count: int
    sign: int
    mean: float
    spread: float
    low: float
    high: float

    @classmethod
    def of(cls, state: ModelState, count: int, rank_by: str, clip: bool) -> Ranking:
        """Return the ranking that a model's predictions give.

        Raises
        ------
        ValueError
            `count` below 1, an unknown `rank_by`, or one that the model's solver has no variances
            for
        """
        count = whole_count("The number of recommendations", count)
        if rank_by not in _SIGNS:
            raise ValueError(f"rankBy must be one of {', '.join(_SIGNS)}, got {rank_by!r}.")
        if rank_by != "prediction" and state.settings.solver != "bayes":
            raise ValueError(
                f"rankBy={rank_by!r} needs a model of solver 'bayes', this one was learned by "
                f"{state.settings.solver!r}: rank by 'prediction'."
            )
        clips = clip and state.counters.ratings > 0
        low = state.counters.low if clips else -np.inf
        high = state.counters.high if clips else np.inf
        return cls(count, _SIGNS[rank_by], state.scale.mean, state.scale.spread, low, high)


@dataclass(frozen=True)
class CandidatePart:
    """Some of the candidates, as the tasks get them, in the order of their ids."""

    ids: pa.Array
    mean: F32
    var: F32
    taste: F32
    heard: Heard | None = None

    def loaded(self) -> CandidatePart:
        """Return the candidates."""
        return self


class Part(Protocol):
    """Some of the candidates, or where a task reads them."""

    def loaded(self) -> CandidatePart:
        """Return the candidates."""


@dataclass(frozen=True)
class Heard:
    """What stands together with what users did last, for a part of the candidates.

    Attributes
    ----------
    partners : Partners
        of all items; of the users where users are the candidates, else of none
    places : npt.NDArray[np.int32]
        int32, shape (items,): position in the part of each row's item, -1 for none
    of_users : bool
        whether users are asked for, and items are the candidates
    """

    partners: Partners
    places: npt.NDArray[np.int32]
    of_users: bool

    @classmethod
    def of(cls, partners: Partners | None, rows: I64, users_ask: bool) -> Heard | None:
        """Return it for candidates by their rows."""
        if partners is None:
            return None
        places = np.full(len(partners.rows), -1, np.int32)
        if users_ask:
            places[rows] = np.arange(rows.size, dtype=np.int32)
        asked = np.empty(0, np.int64) if users_ask else rows
        return cls(partners.of_rows(asked), places, users_ask)

    def boosts(self, queries: pa.Table, size: int) -> Boosts:
        """Return what is added to the part's candidates for a block of queries."""
        if not self.of_users:
            return self.partners.of_items(queries.column("row").to_numpy().astype(np.int64))
        latest = _matrix(queries, "latest").astype(np.int32)
        weights = queries.column("weight").to_numpy().astype(np.float32)
        partners = replace(self.partners, latest=latest, weights=weights)
        return partners.of_users(self.places, size)


@dataclass(frozen=True)
class Queries:
    """What is ranked for, in the order of their ids' rows."""

    mean: F32
    var: F32
    taste: F32
    cold: npt.NDArray[np.bool_]
    heard: Partners | None = None
    rows: I64 | None = None
    """of items, where what stands together is heard for them"""


def rank_blocks(
    spark: SparkSession,
    blocks: DataFrame | None,
    num_blocks: int,
    parts: Sequence[Part],
    ranking: Ranking,
    kinds: tuple[IdKind, IdKind],
    choice: Choice,
) -> DataFrame:
    """Return the best of all candidates for blocks of queries, as `recommend` does.

    Parameters
    ----------
    spark : SparkSession
        where the DataFrame is made
    blocks : DataFrame | None
        columns block and payload, as `query_blocks` makes them; None for no queries
    num_blocks : int
        how many there are, where the choice names pairs: queries are cut by `block_of`
    parts : Sequence[Part]
        the candidates that there are for all
    ranking : Ranking
        how many, by what score, in which unit
    kinds : tuple[IdKind, IdKind]
        of ids of queries and of candidates
    choice : Choice
        its pairs
    """
    names = [("bigint" if kind == "int" else "string") for kind in kinds]
    candidate = f"candidate:{names[1]},rating:float"
    ddl = f"query {names[0]}, cold boolean, recommendations array<struct<{candidate}>>"
    if blocks is None or not parts:
        return spark.createDataFrame([], ddl)
    need_workers(spark)
    cells = choice.cells()
    if cells is not None:
        cells = gathered(cells).mapInArrow(_RoutePairs(num_blocks), "block int, payload binary")
    several = len(parts) > 1
    if several:
        # ratings that are clipped alike are still told apart
        ddl = ddl.replace(candidate, f"{candidate},score:float")
    results = []
    for part in parts:
        rank = Rank(part, ranking, kinds, choice.among is not None, several)
        if cells is None:
            results.append(blocks.mapInArrow(rank.blocks, ddl))
        else:
            both = blocks.groupBy("block").cogroup(cells.groupBy("block"))
            results.append(both.applyInArrow(_with_pairs(rank), ddl))
    if not several:
        return results[0]
    merged = results[0]
    for other in results[1:]:
        merged = merged.unionByName(other)
    every = F.flatten(F.collect_list("recommendations"))
    best = F.array_sort(
        F.transform(every, lambda r: F.struct(-r.score, r.candidate, r.rating.alias("rating")))
    )
    top = F.transform(
        F.slice(best, 1, ranking.count),
        lambda r: F.struct(r.candidate.alias("candidate"), r.rating.alias("rating")),
    )
    return merged.groupBy("query", "cold").agg(top.alias("recommendations"))


def query_blocks(
    spark: SparkSession,
    ids: pa.Array,
    asked: Queries,
    num_blocks: int,
) -> DataFrame:
    """Return ids and what is ranked for as blocks of rows: columns block and payload."""
    block = block_of(id_keys(ids), num_blocks)
    numbers, payloads = [], []
    for number in range(num_blocks):
        rows = np.flatnonzero(block == number)
        if rows.size:
            columns = {
                "id": ids.take(pa.array(rows)),
                "mean": list_column(asked.mean[rows]),
                "var": list_column(asked.var[rows]),
                "taste": list_column(asked.taste[rows]),
                "cold": pa.array(asked.cold[rows]),
            }
            if asked.rows is not None:
                columns["row"] = pa.array(asked.rows[rows])
            if asked.heard is not None:
                columns["latest"] = list_column(asked.heard.latest[rows])
                columns["weight"] = pa.array(asked.heard.weights[rows])
            numbers.append(number)
            payloads.append(to_bytes(pa.table(columns)))
    table = pa.table(
        {"block": pa.array(numbers, pa.int32()), "payload": pa.array(payloads, pa.binary())}
    )
    # a block a task: they are few, and each is a good piece of work
    return spark.createDataFrame(table).repartition(len(numbers))


@dataclass(frozen=True)
class _RoutePairs:
    """Pairs, cut by the block of their query."""

    num_blocks: int

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for table in in_pieces(batches, _PAIRS_AT_ONCE):
            yield self._cut(table.combine_chunks())

    def _cut(self, table: pa.Table) -> pa.RecordBatch:
        block = block_of(id_keys(table.column("query").combine_chunks()), self.num_blocks)
        # NumPy sorts numbers of 16 bits by their digits
        narrow = block.astype(np.uint16) if self.num_blocks < 2**16 else block
        ordered = table.take(pa.array(np.argsort(narrow, kind="stable")))
        counts = np.bincount(block, minlength=self.num_blocks)
        ends = np.cumsum(counts)
        found = np.flatnonzero(counts)
        pieces = [
            to_bytes(ordered.slice(ends[n] - counts[n], counts[n]).combine_chunks()) for n in found
        ]
        return pa.RecordBatch.from_arrays(
            [pa.array(found, pa.int32()), pa.array(pieces, pa.binary())], names=["block", "payload"]
        )


@dataclass(frozen=True)
class Rank:
    """Rank blocks of queries against one part of the candidates."""

    part: Part
    ranking: Ranking
    kinds: tuple[IdKind, IdKind]
    chooses: bool = False
    """whether each query has candidates of its own"""
    scored: bool = False
    """whether scores are told beside the ratings that they become"""

    def blocks(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the function of mapInArrow, where nothing is excluded."""
        for batch in batches:
            for payload in batch.column("payload"):
                yield self.rank(from_bytes(payload.as_buffer()), None)

    def rank(self, queries: pa.Table, pairs: pa.Table | None) -> pa.RecordBatch:
        """Return the best candidates of one block of queries, as one batch of results.

        `pairs` are those of `Choice.cells`.
        """
        mean, var = _matrix(queries, "mean"), _matrix(queries, "var")
        part, ranking = self.part.loaded(), self.ranking
        ids = queries.column("id").combine_chunks()
        bounded = ranking.sign != 0
        left, own = query_products(mean, var if bounded else None)
        right, other = candidate_products(part.mean, part.var if bounded else None)
        variances = None if own is None or other is None else (own, other)
        best, scores = top_n(
            left,
            right,
            ranking.count,
            None if pairs is None else self._positions(part.ids, ids, pairs, kept=False),
            variances,
            ranking.sign,
            Tastes.of(_matrix(queries, "taste"), part.taste),
            None if part.heard is None else part.heard.boosts(queries, len(part.ids)),
            self._positions(part.ids, ids, pairs, kept=True) if self.chooses else None,
        )
        cold = queries.column("cold").combine_chunks()
        return self._result(part.ids, ids, cold, best, scores)

    def _positions(
        self, candidates: pa.Array, ids: pa.Array, pairs: pa.Table | None, kept: bool
    ) -> Positions:
        nothing = np.zeros(len(ids) + 1, np.int64), np.empty(0, np.int32)
        if pairs is None or not len(candidates):
            return nothing
        if "kept" in pairs.column_names:
            pairs = pairs.filter(pa.compute.equal(pairs.column("kept"), kept)).combine_chunks()
        elif kept != self.chooses:
            return nothing
        query = pa.compute.index_in(pairs.column("query").combine_chunks(), ids)
        candidate = pa.compute.index_in(pairs.column("candidate").combine_chunks(), candidates)
        known = pa.compute.and_(query.is_valid(), candidate.is_valid())
        rows = query.filter(known).to_numpy(zero_copy_only=False).astype(np.int64)
        positions = candidate.filter(known).to_numpy(zero_copy_only=False).astype(np.int64)
        return positions_of(rows, positions, len(ids))

    def _result(
        self, candidates: pa.Array, ids: pa.Array, cold: pa.Array, best: npt.NDArray[np.int32],
        scores: F32,
    ) -> pa.RecordBatch:  # fmt: skip
        ranking = self.ranking
        found = best >= 0
        offsets = np.concatenate([[0], np.cumsum(found.sum(axis=1))]).astype(np.int32)
        in_units = scores[found].astype(np.float64) * ranking.spread + ranking.mean
        ratings = np.clip(in_units, ranking.low, ranking.high).astype(np.float32)
        columns = {
            "candidate": candidates.take(pa.array(best[found])),
            "rating": pa.array(ratings),
        }
        if self.scored:
            columns["score"] = pa.array(scores[found])
        structs = pa.StructArray.from_arrays(list(columns.values()), names=list(columns))
        lists = pa.ListArray.from_arrays(pa.array(offsets), structs)
        query_ids = ids.cast(id_array_type(self.kinds[0]))
        return pa.RecordBatch.from_arrays(
            [query_ids, cold, lists], names=["query", "cold", "recommendations"]
        )


def _with_pairs(rank: Rank):  # type: ignore[no-untyped-def]
    # without type hints: by them Spark would choose another form of the function
    def run(blocks, cells):  # type: ignore[no-untyped-def]
        results = []
        pieces = [from_bytes(payload.as_buffer()) for payload in cells.column("payload")]
        pairs = pa.concat_tables(pieces) if pieces else None
        asked = [from_bytes(payload.as_buffer()) for payload in blocks.column("payload")]
        if asked:
            # several where tasks have cut them
            results.append(rank.rank(pa.concat_tables(asked).combine_chunks(), pairs))
        else:
            empty, none = (pa.array([], id_array_type(kind)) for kind in rank.kinds)
            nothing = np.empty((0, 0), np.int32), np.empty((0, 0), np.float32)
            results.append(rank._result(none, empty, pa.array([], pa.bool_()), *nothing))
        return pa.Table.from_batches(results)

    return run


def _matrix(table: pa.Table, name: str) -> F32:
    flat = table.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False)
    values: F32 = flat.reshape(table.num_rows, -1).astype(np.float32)
    return values
