"""Vectors of features on their way to the blocks of their ids, and what is measured of them.

Closures on executors, in the order in which they run: cut by block, gathered in each block,
measured there, and put together in one task. Whatever the partitions, a block's vectors lie in the
order of their ids, and sums over blocks are taken in the order of these.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute

from sparkml_sgdals.arrays.hashing import block_of, id_keys, part_of, sampled
from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.arrays.ipc import arrays_from_buffer, arrays_to_buffer, from_bytes, to_buffer
from sparkml_sgdals.arrays.sparse_rows import SparseRows, newest_vectors, vector_schema
from sparkml_sgdals.fit.blocks.features.block import SideColumns, likeness_of, vectors_in
from sparkml_sgdals.fit.blocks.files import BlockFiles, BlockRows, static_name
from sparkml_sgdals.fit.blocks.inbox import Inbox
from sparkml_sgdals.fit.blocks.messages import SIDES, Job, SideName
from sparkml_sgdals.ingest.features import NAMED
from sparkml_sgdals.learn.features.columns import MOST_IN_PAIRS, ColumnMoments, ColumnScales

__all__ = ["GatherVectors", "Look", "MeasureVectors", "PutTogether", "RouteVectors", "look_of"]

_BYTES: Final = 64 << 20
"""Of vectors that are cut at once, about."""
_PARTS: Final = 16
"""of a block, of which one at a time is put in order"""
_SAMPLE: Final = 100_000
"""Ids, about, that tell how columns go together,"""
_SAMPLED_VALUES: Final = 4_000_000
"""as many as have so many values."""


@dataclass(frozen=True)
class RouteVectors:
    """Cut rows of id, size, indices, values and differ by the block of their id.

    Attributes
    ----------
    files : BlockFiles | None
        where vectors go, and only their places travel; None: they travel as rows
    """

    job: Job
    side: SideName
    files: BlockFiles | None

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield a piece for each block: the function of mapInArrow."""
        held: list[pa.RecordBatch] = []
        size = 0
        for batch in batches:
            held.append(batch)
            size += batch.nbytes
            if size >= _BYTES:
                yield from self._cut(pa.Table.from_batches(held))
                held, size = [], 0
        if held:
            yield from self._cut(pa.Table.from_batches(held))

    def _cut(self, table: pa.Table) -> Iterator[pa.RecordBatch]:
        schema = vector_schema(_kind(self.job, self.side))
        table = table.cast(schema.append(pa.field("differ", pa.bool_()))).combine_chunks()
        keys = id_keys(table.column("id").combine_chunks())
        of_ids, parts = block_of(keys, self.job.num_blocks), part_of(keys, _PARTS)
        order = np.lexsort((parts, of_ids))
        token = uuid.uuid4().hex
        for block in np.unique(of_ids).tolist():
            rows = order[slice(*np.searchsorted(of_ids[order], [block, block + 1]))]
            piece = table.take(pa.array(rows)).append_column("part", pa.array(parts[rows]))
            if self.files is None:
                payload = to_buffer(piece)
            else:
                name = f"pieces-{token}-{self.side}-{block}"
                self.files.put_table(name, piece)
                payload = pa.py_buffer(name.encode())
            yield self.job.batch((block, self.side, 0, "piece", payload))


@dataclass(frozen=True)
class GatherVectors:
    """Put the pieces of a block together, one vector an id, in the order of the ids.

    What is gathered is a static of the block, "given". A block that has a "seed" has one, even
    where no piece came.
    """

    job: Job
    files: BlockFiles | None

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield what was counted, and vectors that go to no file: the function of mapInArrow."""
        pieces: dict[tuple[int, SideName], list[pa.Table]] = {}
        for block, side, kind, payload in _rows(batches):
            held = pieces.setdefault((block, side), [])
            if kind == "piece":
                files = self.files
                held.append(from_bytes(payload) if files is None else files.table(_text(payload)))
        for block, side in sorted(pieces):
            found = pieces.pop((block, side))
            count = _Counted()
            schema = vector_schema(_kind(self.job, side))
            parts = (count.noted(part) for part in _in_order(schema, found))
            if self.files is None:
                given = to_buffer(pa.concat_tables([schema.empty_table(), *parts]))
                yield self.job.batch((block, side, block, "given", given))
            else:
                self.files.put_parts(static_name("given", side, block, block), schema, parts)
            yield self.job.batch((block, side, block, "counted", count.payload()))


def _in_order(schema: pa.Schema, pieces: list[pa.Table]) -> Iterator[tuple[pa.Table, list[Any]]]:
    """Yield the vectors of a block part by part, of each those of its ids in their order.

    With them ids that have several.
    """
    bounds = [
        np.searchsorted(piece.column("part").to_numpy(), np.arange(_PARTS + 1)) for piece in pieces
    ]
    for part in range(_PARTS if pieces else 0):
        table = pa.concat_tables(
            piece.slice(ends[part], ends[part + 1] - ends[part])
            for piece, ends in zip(pieces, bounds, strict=True)
        )
        several = table.column("id").filter(table.column("differ")).to_pylist()
        table, differ = newest_vectors(table.select(schema.names))
        yield table.sort_by("id").combine_chunks(), [*several, *differ]


class _Counted:
    """What the driver is told of the vectors of a block."""

    def __init__(self) -> None:
        self._ids = self._values = 0
        self._sizes: Counter[int] = Counter()
        self._several: set[Any] = set()

    def noted(self, part: tuple[pa.Table, list[Any]]) -> pa.Table:
        """Return a part of the vectors, which is counted."""
        table, several = part
        self._ids += table.num_rows
        lengths = pa.compute.list_value_length(table.column("values"))
        self._values += pa.compute.sum(lengths).as_py() or 0
        for one in pa.compute.value_counts(table.column("size")).to_pylist():
            self._sizes[one["values"] or 0] += one["counts"]
        self._several |= set(several)
        return table

    def payload(self) -> pa.Buffer:
        """Return the payload of the message that says so."""
        return _json(
            {
                "ids": self._ids,
                "sizes": list(self._sizes.items()),
                "values": self._values,
                "differ": len(self._several),
                "first": sorted(self._several)[:NAMED],
            }
        )


class Look(NamedTuple):
    """How the vectors of one side are looked at.

    Attributes
    ----------
    size : int
        numbers that a vector has to have
    share : float
        of the ids, by which it is told how columns go together
    """

    size: int
    share: float


def look_of(counted: list[dict[str, Any]]) -> Look:
    """Return how to look at vectors of which blocks counted this: most have the size."""
    sizes: Counter[int] = Counter()
    for block in counted:
        for size, count in block["sizes"]:
            sizes[size] += count
    size = max(sizes, key=lambda size: (size > 0, sizes[size], -size), default=0)
    ids, values = (max(sum(block[name] for block in counted), 1) for name in ("ids", "values"))
    return Look(max(size, 0), min(1.0, _SAMPLE / ids, _SAMPLED_VALUES / values))


@dataclass(frozen=True)
class MeasureVectors:
    """Measure the columns of the vectors of a block, and take some of its ids."""

    job: Job
    files: BlockFiles | None
    looks: dict[SideName, Look]

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield what blocks have, addressed to one: the function of mapInArrow."""
        for block, side, _, payload in _rows(batches):
            table = from_bytes(payload) if self.files is None else self.files.table(
                static_name("given", side, block, block)
            )  # fmt: skip
            look, moments, ids = self.looks[side], ColumnMoments.empty(), 0
            none: list[Any] = []
            sample: list[SparseRows] = []
            for _, vectors, bad in vectors_in(table, look.size):
                moments = moments.merged(ColumnMoments.of(vectors))
                ids, none = ids + len(vectors), none + bad
                chosen = np.flatnonzero(sampled(id_keys(vectors.ids), look.share))
                sample.append(vectors.take(chosen))
            if moments.columns.size > MOST_IN_PAIRS:
                sample = []
            arrays = {f"moments.{name}": array for name, array in vars(moments).items()}
            arrays |= {"ids": np.array([ids])}
            lengths = [np.empty(0, np.int64), *(np.diff(some.starts) for some in sample)]
            arrays["lengths"] = np.concatenate(lengths)
            for name, dtype in (("columns", np.int32), ("values", np.float64)):
                parts = [np.empty(0, dtype), *(getattr(some, name) for some in sample)]
                arrays[name] = np.concatenate(parts)
            yield self.job.batch((0, side, block, "measured", arrays_to_buffer(arrays)))
            told = {"count": len(none), "first": sorted(none)[:NAMED]}
            yield self.job.batch((0, side, block, "none", _json(told)))


@dataclass(frozen=True)
class PutTogether:
    """Put together what blocks have measured: the columns, for blocks and for the driver."""

    job: Job
    files: BlockFiles | None
    looks: dict[SideName, Look]

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield for each side columns, and numbers for the driver: the function of mapInArrow."""
        found = Inbox(0, pa.Table.from_batches(list(batches)))
        for side, look in self.looks.items():
            blocks = found.all(side, "measured").values()
            arrays, columns = self._columns(look, list(map(arrays_from_buffer, blocks)))
            if columns is not None:
                yield self.job.batch((0, side, 0, "columns", self._parked(side, columns)))
            yield self.job.batch((0, side, 0, "measured", arrays_to_buffer(arrays)))
            none = [json.loads(p.to_pybytes()) for p in found.all(side, "none").values()]
            told = {
                "count": sum(block["count"] for block in none),
                "first": sorted(one for block in none for one in block["first"])[:NAMED],
            }
            yield self.job.batch((0, side, 0, "none", _json(told)))

    def _columns(
        self, look: Look, blocks: list[dict[str, Any]]
    ) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Return numbers for the driver; and columns for blocks, None where there are too many."""
        moments = ColumnMoments.empty()
        for block in blocks:
            own = ColumnMoments(*(block[f"moments.{name}"] for name in vars(moments)))
            moments = moments.merged(own)
        ids = int(sum(block["ids"][0] for block in blocks))
        numbers = {"ids": np.array([ids]), "used": np.array([moments.columns.size])}
        if moments.columns.size > MOST_IN_PAIRS:
            return numbers, None
        columns = SideColumns(look.size, ColumnScales.of(moments, ids))
        lengths = np.concatenate([block["lengths"] for block in blocks])
        sample = SparseRows(
            pa.array(np.arange(lengths.size)), look.size, np.append(0, np.cumsum(lengths)),
            np.concatenate([block["columns"] for block in blocks]),
            np.concatenate([block["values"] for block in blocks]),
        )  # fmt: skip
        arrays = columns.to_arrays()
        return numbers | arrays, arrays | {"likeness": likeness_of(columns, sample)}

    def _parked(self, side: SideName, columns: dict[str, Any]) -> pa.Buffer:
        # once for all blocks, where these see one disk
        return (self.files or BlockRows({})).park(side, 0, columns, lasting=True)


def _kind(job: Job, side: SideName) -> IdKind:
    return job.kinds[list(SIDES).index(side)]


def _rows(
    batches: Iterable[pa.RecordBatch],
) -> Iterator[tuple[int, SideName, str, pa.Buffer]]:
    """Yield target, side, kind and payload of each message."""
    for batch in batches:
        columns = [batch.column(name).to_pylist() for name in ("target", "side", "kind")]
        for target, side, kind, payload in zip(*columns, batch.column("payload"), strict=True):
            yield target, side, kind, payload.as_buffer()


def _json(told: dict[str, Any]) -> pa.Buffer:
    return pa.py_buffer(json.dumps(told).encode())


def _text(payload: pa.Buffer) -> str:
    return bytes(payload.to_pybytes()).decode()
