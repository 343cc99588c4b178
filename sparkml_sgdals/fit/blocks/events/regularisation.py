"""How strongly a table of events in blocks is shrunk: chosen in one task on some of its users.

On the driver; closures on executors. The users' equations do not change where others are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame

from sparkml_sgdals.arrays.hashing import id_keys
from sparkml_sgdals.arrays.id_kinds import IdKind, id_array_type
from sparkml_sgdals.arrays.ipc import from_bytes, packed_tables, to_bytes
from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.arrays.sorting import encode_ids
from sparkml_sgdals.learn.event_tables import chosen_lambdas, lambda_of_sample
from sparkml_sgdals.learn.least_squares import MOST_CHOOSING
from sparkml_sgdals.learn.shares import pairs_that_count, some_of
from sparkml_sgdals.spark_jobs import collect_payloads, phase, task_threads
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.parts import PART_DDL, part_batch
from sparkml_sgdals.state.settings import Settings

__all__ = ["lambdas_in_one_task"]

_MARGIN: Final = 1.25
"""more events than are asked for, as users differ in how many they have"""
_MERGED: Final = 1 << 22
"""ids of items that a task holds before it looks which are the same"""


def lambdas_in_one_task(
    packed: DataFrame, settings: Settings, kinds: tuple[IdKind, IdKind], threads: int, events: int
) -> tuple[float, float]:
    """Lambda of users and of items: as set, else chosen from the table as in one task.

    Parameters
    ----------
    packed : DataFrame
        cells as `ingest.packing` makes them, columns of PACK_DDL
    settings : Settings
        of the model to fit
    kinds : tuple[IdKind, IdKind]
        of the ids of users and of items
    threads : int
        of the task; 0 for the CPUs that Spark gives it
    events : int
        rows of the table
    """

    def choose() -> float:
        share = min(1.0, _MARGIN * MOST_CHOOSING / events)
        while True:
            some = packed.select("payload").mapInArrow(_Sample(kinds, share), PART_DDL)
            least = 0 if share == 1.0 else MOST_CHOOSING
            work = _Choose(settings, kinds, threads, least, events)
            with phase(packed.sparkSession, "choose the regularisation"):
                found = collect_payloads(some.repartition(1).mapInArrow(work, "value double"))
            (chosen,) = found.column("value").to_pylist()
            if chosen is not None:
                return float(chosen)
            # a few users have most of the events, and others were sampled
            share = min(1.0, 4.0 * share)

    return chosen_lambdas(ModelState.empty(settings, *kinds), settings, choose)


@dataclass(frozen=True)
class _Sample:
    """Packed events in, those of a share of the users out, and all items."""

    kinds: tuple[IdKind, IdKind]
    share: float

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        items = _Items(self.kinds[1])
        for table in packed_tables(batches):
            user_ids, users = encode_ids(table.column("user"))
            # the users of least keys, whom `choose_regularisation` takes too
            chosen = id_keys(user_ids).astype(np.float64) <= self.share * 2.0**64
            items.add(table.column("item"))
            some = table.filter(pa.array(chosen[users]))
            if some.num_rows:
                yield part_batch("events", to_bytes(some.combine_chunks()))
        yield part_batch("items", to_bytes(pa.table({"item": items.ids()})))


@dataclass(frozen=True)
class _Choose:
    """What `_Sample` gave in, lambda out; null where that is not more than the `least` events.

    The whole table has `events`.
    """

    settings: Settings
    kinds: tuple[IdKind, IdKind]
    threads: int
    least: int
    events: int

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        tables, items = [], _Items(self.kinds[1])
        for batch in batches:
            for kind, payload in zip(
                batch.column("kind").to_pylist(), batch.column("payload"), strict=True
            ):
                table = from_bytes(payload.as_buffer())
                if kind == "events":
                    tables.append(table)
                else:
                    items.add(table.column("item"))
        found = self._chosen(tables, items.ids()) if tables else None
        yield pa.RecordBatch.from_arrays([pa.array([found], pa.float64())], names=["value"])

    def _chosen(self, tables: list[pa.Table], items: pa.Array) -> float | None:
        threads = task_threads(self.threads)
        # integers are as narrow as each cell's values let them be
        sample = encode_ratings(pa.concat_tables(tables, promote_options="permissive"), threads)
        sample = some_of(sample, pairs_that_count(sample, self.events))
        if len(sample) <= self.least:
            return None
        return lambda_of_sample(self.settings, self.kinds, sample, items, threads)


class _Items:
    """The distinct items of many tables."""

    def __init__(self, kind: IdKind) -> None:
        self._kind = kind
        self._held: list[pa.Array] = []
        self._size = 0

    def add(self, column: pa.ChunkedArray) -> None:
        """Add the items of a table."""
        own = column.unique().cast(id_array_type(self._kind))
        self._held.append(own)
        self._size += len(own)
        if self._size > _MERGED:
            self._held = [self._distinct()]
            self._size = 0

    def ids(self) -> pa.Array:
        """Return them, sorted."""
        found = self._distinct()
        return found.take(pa.compute.array_sort_indices(found))

    def _distinct(self) -> pa.Array:
        return pa.chunked_array(self._held, id_array_type(self._kind)).unique()
