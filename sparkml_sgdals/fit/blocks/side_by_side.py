"""All steps of a fit in blocks as one Spark job, where every block has a core (executor).

Tasks of a barrier stage run at once, so that each can wait for what the others have written: files
of messages, one a task and step. (Spark's own `barrier` looks for the others once a second.) Where
blocks outnumber cores, `driver` chains a stage a step instead, to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
from pyspark import BarrierTaskContext
from pyspark.sql import SparkSession
from pyspark.sql.utils import is_remote

from sparkml_sgdals.fit.blocks.files import BlockFiles, Statics
from sparkml_sgdals.fit.blocks.inbox import Inbox
from sparkml_sgdals.fit.blocks.messages import MESSAGE_SCHEMA
from sparkml_sgdals.fit.blocks.steps import HANDED_ON
from sparkml_sgdals.spark_jobs import local_threads

__all__ = ["SideBySide", "run_side_by_side"]

Work = Callable[[Statics, Inbox], Iterator[pa.RecordBatch]]
"""A step whose messages are rows"""


@dataclass(frozen=True)
class SideBySide:
    """Run all steps on the block whose first messages come to this task.

    Attributes
    ----------
    lay_out : Callable[[BlockFiles, int], None]
        writes what does not change of a block
    steps : Sequence[Work]
        in their order
    asked : Sequence[bool]
        for each step, whether learning may end with it
    settled : Callable[[Inbox], bool]
        whether it does, by the messages that a step gave; all blocks are told the same
    last : Work
        what is made of the states in the end
    """

    files: BlockFiles
    lay_out: Callable[[BlockFiles, int], None]
    steps: Sequence[Work]
    asked: Sequence[bool]
    settled: Callable[[Inbox], bool]
    last: Work

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the messages of the last step."""
        context = BarrierTaskContext.get()
        tasks = len(context.getTaskInfos())
        table = pa.Table.from_batches(list(batches), MESSAGE_SCHEMA)
        own = sorted(pc.unique(table.column("target")).to_pylist())
        for block in own:
            self.lay_out(self.files, block)
        for number, (step, asked) in enumerate(zip(self.steps, self.asked, strict=True), 1):
            files = replace(self.files, step=number)
            # all tasks are done with the step before
            files.drop_states(number - HANDED_ON - 1)
            given = [batch for block in own for batch in step(files, Inbox.among(table, block))]
            names = [files.sent_name(task) for task in range(tasks)]
            files.put_table(
                names[context.partitionId()], pa.Table.from_batches(given, MESSAGE_SCHEMA)
            )
            sent = (files.table(name) for name in files.awaited(names))
            to_own = pc.field("target").isin(own)
            table = pa.concat_tables([rows.filter(to_own) for rows in sent])
            if asked and own and self.settled(Inbox.among(table, own[0])):
                break
        for block in own:
            yield from self.last(files, Inbox.among(table, block))


def run_side_by_side(spark: SparkSession, num_blocks: int) -> bool:
    """Return whether tasks of so many blocks are sure to run at once.

    On a cluster they may not: executors come and go, and Spark waits for minutes for a stage whose
    tasks find no place at once. Nor where a failed task is tried again, as under local[2, 4]: it
    would read what the others wrote before.
    """
    master = spark.conf.get("spark.master", "") or ""
    if "," in master or (is_remote() and "*" in master):
        # the last: the cores of another machine
        return False
    cpus = int(spark.conf.get("spark.task.cpus", "1") or "1")
    return local_threads(spark) // cpus >= num_blocks
