"""Rank with a version that is read where it lies: tasks read queries and candidates (driver).

What has changed since its runs were written is in memory, and travels as with other models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from sparkml_sgdals.arrays.given_ids import whole_count
from sparkml_sgdals.arrays.hashing import block_of, id_keys
from sparkml_sgdals.arrays.id_kinds import id_array_type
from sparkml_sgdals.arrays.ipc import to_bytes
from sparkml_sgdals.predict.choice import Choice
from sparkml_sgdals.predict.in_place import (
    PIECE,
    StoredRows,
    changed_table,
    rows_in_place,
    stored_rows,
)
from sparkml_sgdals.predict.rank_blocks import (
    QUERIES_PER_BLOCK,
    CandidatePart,
    Part,
    query_blocks,
    rank_blocks,
)
from sparkml_sgdals.predict.recommending import (
    CANDIDATES_PER_PART,
    Ranking,
    candidate_parts,
    directions,
    queries_of,
    similar_among,
    similar_parts,
)
from sparkml_sgdals.predict.scoring import factor_frame
from sparkml_sgdals.state.columns import list_column, prior_variances
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.store.overlay import Overlay
from sparkml_sgdals.store.packed_rows import Packed

__all__ = ["recommend_in_place", "similar_in_place"]

F32 = npt.NDArray[np.float32]

OTHER: Final = {"users": "items", "items": "users"}


def recommend_in_place(
    spark: SparkSession, stored: Overlay, side: str, ranking: Ranking, subset: pa.Array | None,
    choice: Choice,
) -> DataFrame:  # fmt: skip
    """Return the best candidates as `recommending.recommend` does.

    Parameters
    ----------
    spark : SparkSession
        where the DataFrame is made
    stored : Overlay
        the version
    side : str
        "users" or "items": recommended to; the other side is recommended
    ranking : Ranking
        how many, by what score, in which unit
    subset : pa.Array | None
        distinct ids of that side; None for all
    choice : Choice
        which candidates
    """
    state, other = stored.state, OTHER[side]
    varies, users_ask = ranking.sign != 0, side == "users"
    if choice.only is None:
        parts = _stored_parts(stored, other, varies, cosine=False, never=choice.never)
        candidates = changed_table(stored, other)
    else:
        parts, candidates = [], _rows_of(stored, other, choice.only)
    parts += candidate_parts(state, candidates, ranking, users_ask, choice)
    ids = dict(zip(("users", "items"), state.ids, strict=True))[side]
    kinds = state.users.index.kind, state.items.index.kind
    if not users_ask:
        kinds = kinds[1], kinds[0]
    asked = ids if subset is None else len(subset)
    num_blocks = -(-asked // QUERIES_PER_BLOCK)
    blocks = None
    if subset is not None and asked <= stored.limit:
        if asked:
            table = _rows_of(stored, side, subset)
            queries = queries_of(state, table, table.index.find(subset), ranking)
            blocks = query_blocks(spark, subset, queries, num_blocks)
    elif ids:
        in_memory = factor_frame(spark, changed_table(stored, side), varies)
        frame = rows_in_place(spark, stored, side, varies, in_memory)
        if subset is not None:
            frame = spark.createDataFrame(pa.table({"id": subset})).join(frame, "id", "left")
        names = ["id", "mean", *(["variance"] if varies else [])]
        prior = prior_variances(state.settings)
        task = _Queries(num_blocks if choice.names_pairs else 0, prior, varies)
        blocks = frame.select(*names).mapInArrow(task, "block int, payload binary")
    return rank_blocks(spark, blocks, num_blocks, parts, ranking, kinds, choice)


def similar_in_place(
    spark: SparkSession, stored: Overlay, side: str, count: int, subset: pa.Array
) -> DataFrame:
    """Return the most similar ids of a side as `recommending.similar` does."""
    count = whole_count("The number of similar ids", count)
    table = _rows_of(stored, side, subset)
    rows = table.index.find(subset)
    subset, rows = subset.filter(pa.array(rows >= 0)), rows[rows >= 0]
    changed = changed_table(stored, side)
    parts = _stored_parts(stored, side, varies=False, cosine=True)
    parts += similar_parts(changed.index.ids(), directions(changed.mean))
    features = directions(table.mean[rows])
    return similar_among(spark, subset, features, table.index.kind, count, parts)


def _rows_of(stored: Overlay, side: str, ids: pa.Array) -> FactorTable:
    kinds = stored.state.users.index.kind, stored.state.items.index.kind
    nobody, nothing = (pa.array([], id_array_type(kind)) for kind in kinds)
    if side == "users":
        return stored.rows_of(ids, nothing).users
    return stored.rows_of(nobody, ids).items


def _stored_parts(
    stored: Overlay, side: str, varies: bool, cosine: bool, never: pa.Array | None = None
) -> list[Part]:
    rows = stored_rows(stored, side, CANDIDATES_PER_PART)
    return [_StoredPart(rows, number, varies, cosine, never) for number in range(rows.ranges)]


_held: dict[str, tuple[_StoredPart, CandidatePart]] = {}
"""what this worker has read last: one part serves many blocks of queries"""


@dataclass(frozen=True)
class _StoredPart:
    """Candidates of a range of keys, which tasks read."""

    rows: StoredRows
    number: int
    varies: bool
    cosine: bool
    never: pa.Array | None = None
    """ids that are not among them"""

    def loaded(self) -> CandidatePart:
        """Return the candidates."""
        last = _held.get("last")
        if last is not None and last[0] == self:
            return last[1]
        found = self._read()
        _held["last"] = (self, found)
        return found

    def _read(self) -> CandidatePart:
        parts = list(self.rows.read(self.number))
        if not parts:
            shape = self.rows.shape
            names = None if shape.kind == "int" else pa.array([], pa.large_binary())
            parts = [Packed(shape, np.empty((0, shape.width), np.uint64), names)]
        packed = Packed.together(parts)
        if packed.names is not None:
            # rows lie by the hash of their names
            order = pa.compute.array_sort_indices(packed.ids())
            packed = packed.take(order.to_numpy(zero_copy_only=False).astype(np.int64))
        if self.never is not None:
            left = pa.compute.invert(pa.compute.is_in(packed.ids(), self.never))
            packed = packed.take(np.flatnonzero(left.to_numpy(zero_copy_only=False)))
        mean = np.ascontiguousarray(packed.column("mean"))
        nothing = np.empty((len(packed), 0), np.float32)
        variances = np.ascontiguousarray(packed.column("var")) if self.varies else nothing
        mean = directions(mean) if self.cosine else mean
        return CandidatePart(packed.ids(), mean, variances, nothing)


@dataclass(frozen=True)
class _Queries:
    """Rows of factors in, blocks of queries out; a row without factors is of an id not known.

    Attributes
    ----------
    num_blocks : int
        into how many they are cut by `block_of`; 0: as they come
    """

    num_blocks: int
    prior: F32
    varies: bool

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        held: list[pa.RecordBatch] = []
        most = PIECE if self.num_blocks else QUERIES_PER_BLOCK
        for batch in batches:
            for first in range(0, batch.num_rows, most):
                held.append(batch.slice(first, most))
                if sum(some.num_rows for some in held) >= most:
                    yield from self._blocks(held)
                    held = []
        if held:
            yield from self._blocks(held)

    def _blocks(self, held: list[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        table = pa.Table.from_batches(held).combine_chunks()
        mean = table.column("mean").combine_chunks()
        cold = mean.is_null().to_numpy(zero_copy_only=False)
        columns = {
            "id": table.column("id").combine_chunks(),
            "mean": list_column(_filled(mean, cold, np.zeros_like(self.prior))),
            "var": list_column(np.empty((len(cold), 0), np.float32)),
            "taste": list_column(np.empty((len(cold), 0), np.float32)),
            "cold": pa.array(cold),
        }
        if self.varies:
            variance = table.column("variance").combine_chunks()
            columns["var"] = list_column(_filled(variance, cold, self.prior))
        queries = pa.table(columns)
        if not self.num_blocks:
            yield _block(0, queries)
            return
        blocks = block_of(id_keys(columns["id"]), self.num_blocks)
        for number in np.unique(blocks).tolist():
            yield _block(number, queries.filter(pa.array(blocks == number)).combine_chunks())


def _filled(lists: pa.ListArray, cold: npt.NDArray[np.bool_], missing: F32) -> F32:
    """Return lists as a matrix, those of rows that are not known as told."""
    values = np.empty((len(cold), missing.size), np.float32)
    values[:] = missing
    flat = lists.drop_null().flatten().to_numpy(zero_copy_only=False)
    values[~cold] = flat.reshape(-1, missing.size)
    return values


def _block(number: int, queries: pa.Table) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [pa.array([number], pa.int32()), pa.array([to_bytes(queries)], pa.binary())],
        names=["block", "payload"],
    )
