"""Route and lay out: packed ratings become the static arrays of blocks.

On the driver; closures on executors.
Done once in a fit in blocks; `driver` then sends messages between what is laid out here. One pass
over the packed ratings cuts them into cells; each cell is put into its order of learning once, and
both layouts are made of that.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from sparkml_sgdals.arrays.hashing import block_of, id_keys
from sparkml_sgdals.arrays.ipc import arrays_to_buffer, from_bytes, packed_tables, to_buffer
from sparkml_sgdals.arrays.ratings import Ratings, encode_ratings
from sparkml_sgdals.arrays.sorting import encode_ids
from sparkml_sgdals.fit.blocks.block import build_layout, standardised
from sparkml_sgdals.fit.blocks.events.block import event_cells, user_counts
from sparkml_sgdals.fit.blocks.files import BlockFiles, Statics, static_name
from sparkml_sgdals.fit.blocks.messages import SIDES, Job, SideName, binary
from sparkml_sgdals.spark_jobs import collect_payloads
from sparkml_sgdals.state.model_state import Scale

__all__ = [
    "PIECE_DDL",
    "Encode",
    "Moments",
    "Route",
    "as_ids",
    "cell_of",
    "job_of_cells",
    "lay_out",
    "measured",
]


_PIECE_SCHEMA: Final = pa.schema(
    [("key", pa.int32()), ("user_block", pa.int32()), ("item_block", pa.int32()),
     ("name", pa.string()), ("first", pa.int64()), ("count", pa.int64()),
     ("payload", pa.binary())]
)  # fmt: skip
PIECE_DDL: Final = (
    "key int, user_block int, item_block int, name string, first bigint, count bigint, "
    "payload binary"
)


# ---- route ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Route:
    """Cut packed ratings into pieces of cells.

    Attributes
    ----------
    files : BlockFiles | None
        where the ratings go, and only their places travel; None: they travel as rows
    """

    job: Job
    timed: bool
    files: BlockFiles | None

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the pieces of cells of each packed table: the function of mapInArrow."""
        for table in packed_tables(batches):
            yield from self._pieces(table)

    def _pieces(self, table: pa.Table) -> Iterator[pa.RecordBatch]:
        if not self.timed and "time" in table.column_names:
            table = table.drop_columns("time")
        blocks, keys = self.job.num_blocks, self.job.keys
        sides = []
        for name in ("user", "item"):
            ids, codes = encode_ids(table.column(name))
            sides.append(block_of(id_keys(ids), blocks)[codes])
        cell = sides[0] * blocks + sides[1]
        if blocks <= 256:
            # NumPy sorts 16 bits by counting
            cell = cell.astype(np.uint16)
        order = np.argsort(cell, kind="stable")
        bounds = np.zeros(blocks * blocks + 1, np.int64)
        np.cumsum(np.bincount(cell, minlength=blocks * blocks), out=bounds[1:])
        ordered = table.take(pa.array(order)).combine_chunks()
        token, written = uuid.uuid4().hex, ""
        for number in np.flatnonzero(np.diff(bounds)).tolist():
            u, i = divmod(number, blocks)
            name, start = f"pieces-{token}-{u}", int(bounds[u * blocks])
            first, count = int(bounds[number]), int(bounds[number + 1] - bounds[number])
            payload = pa.py_buffer(b"")
            if self.files is None:
                payload = to_buffer(ordered.slice(first, count))
            elif name != written:
                # a file for each reader: none reads, and sums up, what is another's
                end = int(bounds[(u + 1) * blocks])
                self.files.put_table(name, ordered.slice(start, end - start))
                written = name
            values = [keys[u], u, i, name, first - start, count]
            arrays = [pa.array([v], f.type) for v, f in zip(values, _PIECE_SCHEMA, strict=False)]
            yield pa.RecordBatch.from_arrays([*arrays, binary(payload)], schema=_PIECE_SCHEMA)


@dataclass(frozen=True)
class Encode:
    """Put the cells of a block of users into their canonical order.

    Gives for each cell its moments, and the cell itself where it does not go to a file.
    """

    job: Job
    files: BlockFiles | None

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the cells of the pieces that the task was given: the function of mapInArrow."""
        pieces: dict[tuple[int, int], list[pa.Table]] = {}
        tables: dict[str, pa.Table] = {}
        for batch in batches:
            names = ("user_block", "item_block", "name", "first", "count")
            columns = [batch.column(name).to_pylist() for name in names]
            for u, i, name, first, count, payload in zip(
                *columns, batch.column("payload"), strict=True
            ):
                if self.files is None:
                    piece = from_bytes(payload.as_buffer())
                else:
                    if name not in tables:
                        tables[name] = self.files.table(name)
                    piece = tables[name].slice(first, count)
                pieces.setdefault((u, i), []).append(piece)
        tables.clear()
        for u, i in sorted(pieces):
            # integers are as narrow as each piece's values let them be
            table = pa.concat_tables(pieces.pop((u, i)), promote_options="permissive")
            ratings = encode_ratings(table, self.job.task_threads())
            del table
            name, cell = static_name("cell", "users", u, i), _cell_arrays(ratings)
            if self.files is None:
                yield self.job.batch((u, "users", i, "cell", arrays_to_buffer(cell)))
            else:
                self.files.put(name, cell)
            of_cell: dict[str, Any] = {
                "moments": ratings.moments(),
                "range": ratings.value_range(),
                "ratings": len(ratings),
            }
            moments = pa.py_buffer(json.dumps(of_cell).encode())
            yield self.job.batch((u, "users", i, "moments", moments))


def _cell_arrays(ratings: Ratings) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    for name, ids in (("user_ids", ratings.user_ids), ("item_ids", ratings.item_ids)):
        arrays[name] = ids if pa.types.is_string(ids.type) else ids.to_numpy()
    return arrays | {
        "users": ratings.users,
        "items": ratings.items,
        "values": ratings.values,
        "weights": ratings.weights,
    }


def cell_of(a: dict[str, Any]) -> Ratings:
    """Return the cell of a static."""
    return Ratings(
        as_ids(a["user_ids"]), as_ids(a["item_ids"]), a["users"], a["items"], a["values"],
        a["weights"],
    )  # fmt: skip


def as_ids(ids: Any) -> pa.Array:
    """Ids of a static as an Arrow array, whether integers or strings."""
    return ids if isinstance(ids, pa.Array) else pa.array(ids)


# ---- lay out --------------------------------------------------------------------------------


Static = tuple[str, SideName, int, int, dict[str, Any]]
"""kind, side, block, partner block, arrays"""


def lay_out(statics: Statics, own: int, job: Job) -> Iterator[Static]:
    """Yield what a block of users and that of items of the same number need besides their cells.

    Kinds: "layout"; "ids", with their counts; "rows": where the ids that a cell names stand in
    their own block, for each partner block.
    """
    blocks = range(job.num_blocks)
    for side in SIDES:
        if not job.has_block(side, own):
            continue
        cells: list[Ratings | None] = []
        for partner in blocks:
            found = None
            if job.has_cell(side, own, partner):
                u, i = (own, partner) if side == "users" else (partner, own)
                found = cell_of(statics.arrays(static_name("cell", "users", u, i), check=True))
            cells.append(found)
        if job.settings.fits_events:
            counted = event_cells(cells, job.settings, job.ratings)
            ids, block = build_layout(counted, side)
            counts = block.layout.counts()
            if side == "users":
                # what a user did stays its own, however often
                counts = user_counts(cells, block, counts.size)
        else:
            ids, block = build_layout(cells, side)
            block = standardised(block, *job.scale)
            counts = block.layout.counts()
        named = ids if pa.types.is_string(ids.type) else ids.to_numpy()
        yield "ids", side, own, own, {"id": named, "count": counts}
        for partner in blocks:
            if cells[partner] is not None:
                yield "rows", side, own, partner, {"rows": block.sends[partner]}
        yield "layout", side, own, own, block.to_arrays()


# ---- measure --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moments:
    """What the driver has to know of the ratings: how many, their range, mean and spread."""

    ratings: int
    low: float
    high: float
    scale: Scale


def measured(cells: DataFrame, job: Job) -> tuple[Job, Moments]:
    """Mean, spread and range over all cells; the action that computes them."""
    wanted = cells.where(F.col("kind") == "moments").select("target", "source", "payload")
    return job_of_cells(collect_payloads(wanted).to_pylist(), job)


def job_of_cells(rows: list[dict[str, Any]], job: Job) -> tuple[Job, Moments]:
    """Return the job and moments that messages of cells say: target, source and payload."""
    scale = Scale()
    ratings, low, high = 0, math.inf, -math.inf
    filled = bytearray(job.num_blocks**2)
    for row in sorted(rows, key=lambda r: (r["target"], r["source"])):
        cell = json.loads(row["payload"])
        of_cell = (cell["moments"][0], cell["moments"][1], cell["moments"][2])
        scale = scale.merged(of_cell, cell["ratings"], job.settings.solver == "bayes")
        ratings += cell["ratings"]
        low, high = min(low, cell["range"][0]), max(high, cell["range"][1])
        filled[row["target"] * job.num_blocks + row["source"]] = 1
    job = replace(job, value_range=(low, high), ratings=ratings, filled=bytes(filled))
    return job, Moments(ratings, low, high, scale)
