"""Blocks whose statics are persisted rows, where executors share no folder (driver, closures)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from sparkml_sgdals.arrays.ipc import arrays_to_buffer
from sparkml_sgdals.fit.blocks.events.exchange import StartEvents
from sparkml_sgdals.fit.blocks.exchange import Start
from sparkml_sgdals.fit.blocks.files import BlockRows, static_name
from sparkml_sgdals.fit.blocks.inbox import Inbox
from sparkml_sgdals.fit.blocks.layout import lay_out
from sparkml_sgdals.fit.blocks.messages import MESSAGE_DDL, MESSAGE_SCHEMA, Job, binary, placed
from sparkml_sgdals.fit.blocks.steps import Naming, Noted, Step
from sparkml_sgdals.fit.progress import TaskProgress

__all__ = ["OnRows"]

_STATIC_SCHEMA: Final = pa.schema(
    [("key", pa.int32()), ("kind", pa.string()), ("stratum", pa.int32()), ("name", pa.string()),
     ("payload", pa.binary())]
)  # fmt: skip
_STATIC_DDL: Final = "key int, kind string, stratum int, name string, payload binary"


def _run_on_rows(work: Noted, statics: pa.Table, messages: pa.Table) -> pa.Table:
    """Run a step on a block and the statics that came with it."""
    if not messages.num_rows:
        return MESSAGE_SCHEMA.empty_table()
    block = messages.column("target")[0].as_py()
    given = work(_rows(statics), Inbox(block, messages))
    return pa.Table.from_batches(list(given), MESSAGE_SCHEMA)


def _rows(table: pa.Table) -> BlockRows:
    names, payloads = table.column("name").to_pylist(), table.column("payload")
    return BlockRows({n: p.as_buffer() for n, p in zip(names, payloads, strict=True)})


def _lay_out_rows(job: Job, cells: pa.Table) -> pa.Table:
    """Lay out the two blocks of a number, as rows."""
    own = job.keys.index(cells.column("key")[0].as_py())
    batches = []
    for kind, side, block, partner, arrays in lay_out(_rows(cells), own, job):
        target, stratum = own, None
        if kind == "rows":
            # a block of users learns its cells, and needs the places of both sides there
            u, i = (block, partner) if side == "users" else (partner, block)
            target, stratum = u, (i - u) % job.num_blocks
        values = [job.keys[target], kind, stratum, static_name(kind, side, block, partner)]
        columns = [pa.array([v], f.type) for v, f in zip(values, _STATIC_SCHEMA, strict=False)]
        columns.append(binary(arrays_to_buffer(arrays)))
        batches.append(pa.RecordBatch.from_arrays(columns, schema=_STATIC_SCHEMA))
    return pa.Table.from_batches(batches, _STATIC_SCHEMA)


class OnRows:
    """Steps whose statics are persisted rows, cogrouped with the messages of each step."""

    def __init__(
        self, cells: DataFrame, job: Job, keep: Callable[[DataFrame], DataFrame],
        given: DataFrame | None = None,
    ) -> None:  # fmt: skip
        self.job = job
        self.given: DataFrame | None = None
        if given is not None:
            self.given = given.where("kind = 'given'").select(
                "key",
                "kind",
                F.lit(None).cast("int").alias("stratum"),
                F.format_string("given-%s-%05d-%05d", "side", "target", "target").alias("name"),
                "payload",
            )
        cells = cells.where(F.col("kind") == "cell").select(
            "key",
            "kind",
            F.pmod(F.col("source") - F.col("target"), F.lit(job.num_blocks)).alias("stratum"),
            F.format_string("cell-users-%05d-%05d", "target", "source").alias("name"),
            "payload",
            "source",
        )
        keys = F.array(*[F.lit(key) for key in job.keys])
        by_item = cells.withColumn("key", F.get(keys, F.col("source")).cast("int"))
        both = placed(cells.unionByName(by_item), job).drop("source")

        def task(cells: pa.Table) -> pa.Table:
            return _lay_out_rows(job, cells)

        laid_out = both.groupBy("key").applyInArrow(task, _STATIC_DDL)
        self.cells = cells.drop("source")
        self.laid_out = keep(placed(laid_out, job))

    def start(
        self, step: Start | StartEvents, messages: DataFrame, note: TaskProgress | None = None
    ) -> DataFrame:
        """Lay the blocks out, and run their first step."""
        return self.run(step, messages, note)

    def run(self, step: Step, messages: DataFrame, note: TaskProgress | None = None) -> DataFrame:
        """Run a step on the statics that it wants."""
        statics = self._wanted(self.laid_out, step)
        if "cell" in step.kinds:
            statics = statics.unionByName(self._wanted(self.cells, step))
        if self.given is not None and "given" in step.kinds:
            statics = statics.unionByName(self.given)
        work = Noted(step, note)

        # Spark counts the arguments, and takes an object's own self for one
        def task(statics: pa.Table, messages: pa.Table) -> pa.Table:
            return _run_on_rows(work, statics, messages)

        return (
            placed(statics, self.job)
            .groupBy("key")
            .cogroup(placed(messages, self.job).groupBy("key"))
            .applyInArrow(task, MESSAGE_DDL)
        )

    def name(self, step: Naming, messages: DataFrame) -> DataFrame:
        """Run the last step."""
        return self.run(step, messages)

    @staticmethod
    def _wanted(statics: DataFrame, step: Step) -> DataFrame:
        of_kind = statics.where(F.col("kind").isin(*step.kinds))
        if step.stratum is None:
            return of_kind
        return of_kind.where(F.col("stratum").isNull() | (F.col("stratum") == step.stratum))
