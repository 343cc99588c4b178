"""Route and lay out: packed ratings become the static layouts of blocks (driver; closures on
executors).

Done once in a fit in blocks; `blocked` then sends messages between what is laid out here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkml_sgdals.blocks import (
    BlockLayout,
    arrays_from_bytes,
    arrays_to_bytes,
    build_layout,
)
from sparkml_sgdals.exchange import from_bytes, to_bytes, widen
from sparkml_sgdals.hashing import ITEM_SIDE, USER_SIDE, block_of, id_keys
from sparkml_sgdals.index import IdKind
from sparkml_sgdals.ordering import encode_ids
from sparkml_sgdals.ratings import Ratings, encode_ratings
from sparkml_sgdals.settings import Settings
from sparkml_sgdals.state import Scale

__all__ = [
    "CELL_DDL",
    "MESSAGE_DDL",
    "OTHER",
    "SIDES",
    "Job",
    "Message",
    "Moments",
    "Route",
    "SideName",
    "lay_out_items",
    "lay_out_users",
    "measure",
    "partition_keys",
    "placed",
]

SideName = Literal["users", "items"]
SIDES: Final[dict[SideName, int]] = {"users": USER_SIDE, "items": ITEM_SIDE}
OTHER: Final[dict[SideName, SideName]] = {"users": "items", "items": "users"}

CELL_SCHEMA: Final = pa.schema(
    [("user_key", pa.int32()), ("item_key", pa.int32()), ("user_block", pa.int32()),
     ("item_block", pa.int32()), ("payload", pa.binary())]
)  # fmt: skip
MESSAGE_SCHEMA: Final = pa.schema(
    [("key", pa.int32()), ("target", pa.int32()), ("side", pa.string()),
     ("source", pa.int32()), ("kind", pa.string()), ("payload", pa.binary())]
)  # fmt: skip
CELL_DDL: Final = "user_key int, item_key int, user_block int, item_block int, payload binary"
MESSAGE_DDL: Final = "key int, target int, side string, source int, kind string, payload binary"

Message = tuple[int, SideName, int, str, bytes]
"""target block, whose data it is, source block, kind, payload"""


@dataclass(frozen=True)
class Job:
    """What every task has to know; plain values only."""

    settings: Settings
    kinds: tuple[IdKind, IdKind]
    keys: tuple[int, ...]
    threads: int
    scale: tuple[float, float] = (0.0, 1.0)
    value_range: tuple[float, float] = (-math.inf, math.inf)
    total_weight: float = 1.0
    fresh: bool = True

    @property
    def num_blocks(self) -> int:
        return len(self.keys)

    def kind(self, side: SideName) -> IdKind:
        return self.kinds[0 if side == "users" else 1]

    def task_threads(self) -> int:
        context = TaskContext.get()
        return self.threads or (context.cpus() if context else 1)

    def batch(self, messages: list[Message]) -> pa.Table:
        columns: list[list[Any]] = [
            [self.keys[m[0]] for m in messages], [m[0] for m in messages],
            [m[1] for m in messages], [m[2] for m in messages],
            [m[3] for m in messages], [m[4] for m in messages],
        ]  # fmt: skip
        arrays = [pa.array(c, f.type) for c, f in zip(columns, MESSAGE_SCHEMA, strict=True)]
        return pa.Table.from_arrays(arrays, schema=MESSAGE_SCHEMA)


def partition_keys(spark: SparkSession, num_blocks: int) -> tuple[int, ...]:
    """For each block a number that Spark hashes to a partition of its own."""
    candidates = spark.range(64 * num_blocks).select(
        F.col("id").cast("int").alias("key"),
        F.pmod(F.hash(F.col("id").cast("int")), F.lit(num_blocks)).alias("partition"),
    )
    found = candidates.groupBy("partition").agg(F.min("key").alias("key")).collect()
    keys = {row.partition: row.key for row in found}
    return tuple(keys[n] for n in range(num_blocks))


# ---- route and lay out ----------------------------------------------------------------------


@dataclass(frozen=True)
class Route:
    """Cut packed ratings into cells."""

    job: Job
    timed: bool

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for payload in batch.column("payload"):
                table = widen(from_bytes(payload.as_buffer()), self.job.kinds)
                if not self.timed and "time" in table.column_names:
                    table = table.drop_columns("time")
                yield from self._cells(table)

    def _cells(self, table: pa.Table) -> Iterator[pa.RecordBatch]:
        if not table.num_rows:
            return
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
        bounds = np.searchsorted(cell[order], np.arange(blocks * blocks + 1))
        ordered = table.take(pa.array(order))
        for number in range(blocks * blocks):
            first, last = int(bounds[number]), int(bounds[number + 1])
            if first == last:
                continue
            u, i = divmod(number, blocks)
            payload = to_bytes(ordered.slice(first, last - first).combine_chunks())
            values = [keys[u], keys[i], u, i, payload]
            yield pa.RecordBatch.from_arrays(
                [pa.array([v], f.type) for v, f in zip(values, CELL_SCHEMA, strict=True)],
                schema=CELL_SCHEMA,
            )


def placed(frame: DataFrame, job: Job) -> DataFrame:
    """The frame with the rows of each block in that block's partition."""
    return frame.repartition(job.num_blocks, "key")


def _encode_cells(table: pa.Table, partner: str, job: Job) -> list[Ratings | None]:
    """The cells of one block by partner block, each in its canonical order."""
    pieces: list[list[pa.Table]] = [[] for _ in range(job.num_blocks)]
    numbers = table.column(f"{partner}_block").to_pylist()
    for number, payload in zip(numbers, table.column("payload"), strict=True):
        pieces[number].append(from_bytes(payload.as_buffer()))
    threads = job.task_threads()
    return [encode_ratings(pa.concat_tables(p), threads) if p else None for p in pieces]


def _ids_payload(ids: pa.Array, block: BlockLayout) -> bytes:
    return to_bytes(pa.table({"id": ids, "count": block.layout.counts()}))


def lay_out_items(cells: DataFrame, job: Job) -> DataFrame:
    def lay_out(table: pa.Table) -> pa.Table:
        own = table.column("item_block")[0].as_py()
        ratings = _encode_cells(table, "user", job)
        ids, block = build_layout(ratings, "items")
        messages: list[Message] = [
            (own, "items", own, "layout", block.to_bytes()),
            (own, "items", own, "ids", _ids_payload(ids, block)),
        ]
        for other, found in enumerate(ratings):
            if found is not None:
                rows = arrays_to_bytes({"rows": block.sends[other]})
                messages.append((own, "items", other, "rows", rows))
                of_cell = {"moments": found.moments(), "range": found.value_range()}
                payload = json.dumps(of_cell | {"ratings": len(found)}).encode()
                messages.append((own, "items", other, "moments", payload))
        return job.batch(messages)

    keyed = cells.withColumn("key", F.col("item_key"))
    return placed(keyed, job).groupBy("key").applyInArrow(lay_out, MESSAGE_DDL)


def lay_out_users(cells: DataFrame, items: DataFrame, job: Job) -> DataFrame:
    def lay_out(cell_table: pa.Table, rows_table: pa.Table) -> pa.Table:
        if not cell_table.num_rows:
            return job.batch([])
        own = cell_table.column("user_block")[0].as_py()
        ratings = _encode_cells(cell_table, "item", job)
        ids, block = build_layout(ratings, "users")
        item_rows = {
            other: arrays_from_bytes(payload.as_buffer())["rows"]
            for other, payload in zip(
                rows_table.column("target").to_pylist(), rows_table.column("payload"), strict=True
            )
        }
        messages: list[Message] = [
            (own, "users", own, "layout", block.to_bytes()),
            (own, "users", own, "ids", _ids_payload(ids, block)),
        ]
        for other, found in enumerate(ratings):
            if found is not None:
                cell = {
                    "users": block.sends[other][found.users],
                    "items": item_rows[other][found.items],
                    "values": found.values,
                    "weights": found.weights,
                }
                messages.append((own, "users", other, "cell", arrays_to_bytes(cell)))
        return job.batch(messages)

    keyed = cells.withColumn("key", F.col("user_key"))
    # these rows tell a user block where the items it names stand in their own blocks
    rows = items.where(F.col("kind") == "rows").withColumn("key", _key_of("source", job))
    return (
        placed(keyed, job)
        .groupBy("key")
        .cogroup(placed(rows, job).groupBy("key"))
        .applyInArrow(lay_out, MESSAGE_DDL)
    )


def _key_of(block_column: str, job: Job) -> Column:
    keys = F.array(*[F.lit(key) for key in job.keys])
    return F.get(keys, F.col(block_column)).cast("int")


@dataclass(frozen=True)
class Moments:
    """What the driver has to know of the ratings: how many, their range, mean and spread."""

    ratings: int
    low: float
    high: float
    scale: Scale


def measure(items: DataFrame, job: Job) -> tuple[Job, Moments]:
    """Mean, spread and range over all cells; the action that computes the items' layout."""
    rows = items.where(F.col("kind") == "moments").select("target", "source", "payload").collect()
    scale = Scale()
    ratings, low, high = 0, math.inf, -math.inf
    for row in sorted(rows, key=lambda r: (r.target, r.source)):
        cell = json.loads(bytes(row.payload))
        of_cell = (cell["moments"][0], cell["moments"][1], cell["moments"][2])
        scale = scale.merged(of_cell, cell["ratings"], job.settings.solver == "bayes")
        ratings += cell["ratings"]
        low, high = min(low, cell["range"][0]), max(high, cell["range"][1])
    job = replace(job, value_range=(low, high), total_weight=scale.weight)
    return job, Moments(ratings, low, high, scale)
