"""Messages between blocks: which side, which block, which partition they go to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkml_sgdals.arrays.hashing import ITEM_SIDE, USER_SIDE
from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.spark_jobs import task_threads
from sparkml_sgdals.state.feature_weights import FeatureWeights
from sparkml_sgdals.state.settings import Settings

__all__ = [
    "MESSAGE_DDL",
    "MESSAGE_SCHEMA",
    "OTHER",
    "SIDES",
    "Job",
    "Message",
    "SideName",
    "binary",
    "partition_keys",
    "placed",
]

SideName = Literal["users", "items"]
SIDES: Final[dict[SideName, int]] = {"users": USER_SIDE, "items": ITEM_SIDE}
OTHER: Final[dict[SideName, SideName]] = {"users": "items", "items": "users"}
MESSAGE_SCHEMA: Final = pa.schema(
    [("key", pa.int32()), ("target", pa.int32()), ("side", pa.string()),
     ("source", pa.int32()), ("kind", pa.string()), ("payload", pa.binary())]
)  # fmt: skip
MESSAGE_DDL: Final = "key int, target int, side string, source int, kind string, payload binary"
Message = tuple[int, SideName, int, str, pa.Buffer]
"""target block, whose data it is, source block, kind, payload"""


@dataclass(frozen=True)
class Job:
    """What every task has to know; plain values only.

    Attributes
    ----------
    filled : bytes
        for each cell, user block by user block, whether it has ratings
    features : tuple[FeatureWeights | None, FeatureWeights | None]
        what features say in the model that the table is added to
    """

    settings: Settings
    kinds: tuple[IdKind, IdKind]
    keys: tuple[int, ...]
    threads: int
    scale: tuple[float, float] = (0.0, 1.0)
    value_range: tuple[float, float] = (-math.inf, math.inf)
    ratings: int = 0
    fresh: bool = True
    filled: bytes = b""
    features: tuple[FeatureWeights | None, FeatureWeights | None] = (None, None)

    @property
    def num_blocks(self) -> int:
        """Number of blocks of users, and of items."""
        return len(self.keys)

    def has_cell(self, side: SideName, own: int, partner: int) -> bool:
        """Whether a block of a side has ratings with a block of the other."""
        users, items = (own, partner) if side == "users" else (partner, own)
        return bool(self.filled[users * self.num_blocks + items])

    def has_block(self, side: SideName, own: int) -> bool:
        """Whether a block has ratings at all."""
        return any(self.has_cell(side, own, partner) for partner in range(self.num_blocks))

    def task_threads(self) -> int:
        """Return the threads of a task: as told, else the CPUs that Spark gave the task."""
        return task_threads(self.threads)

    def batch(self, message: Message) -> pa.RecordBatch:
        """One message as one row of `MESSAGE_SCHEMA`; the payload is not copied."""
        *place, payload = message
        values = [self.keys[message[0]], *place]
        columns = [pa.array([v], f.type) for v, f in zip(values, MESSAGE_SCHEMA, strict=False)]
        return pa.RecordBatch.from_arrays([*columns, binary(payload)], schema=MESSAGE_SCHEMA)


def binary(payload: pa.Buffer) -> pa.Array:
    """Return a column of one binary value, which is not copied."""
    ends = pa.py_buffer(np.array([0, payload.size], np.int32))
    return pa.Array.from_buffers(pa.binary(), 1, [None, ends, payload])


def partition_keys(spark: SparkSession, num_blocks: int) -> tuple[int, ...]:
    """For each block a number that Spark hashes to a partition of its own."""
    candidates = spark.range(64 * num_blocks).select(
        F.col("id").cast("int").alias("key"),
        F.pmod(F.hash(F.col("id").cast("int")), F.lit(num_blocks)).alias("partition"),
    )
    found = candidates.groupBy("partition").agg(F.min("key").alias("key")).collect()
    keys = {row.partition: row.key for row in found}
    return tuple(keys[n] for n in range(num_blocks))


def placed(frame: DataFrame, job: Job) -> DataFrame:
    """Return the frame with the rows of each block in that block's partition.

    Adaptive execution leaves a repartition by number as it is.
    """
    return frame.repartition(job.num_blocks, "key")
