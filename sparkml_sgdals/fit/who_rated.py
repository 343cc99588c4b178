"""What a table's users have rated, brought to a model that ranks: one job, once it is learned."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame

from sparkml_sgdals.arrays.hashing import id_keys
from sparkml_sgdals.arrays.id_kinds import IdKind, id_array_type
from sparkml_sgdals.arrays.ipc import packed_tables
from sparkml_sgdals.arrays.sorting import encode_ids
from sparkml_sgdals.fit.plan import Trained
from sparkml_sgdals.learn.rated_lists import copy_lists, note_lists
from sparkml_sgdals.spark_jobs import phase
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.settings import Settings

__all__ = ["remember_table"]


def remember_table(
    cells: DataFrame,
    kinds: tuple[IdKind, IdKind],
    trained: list[Trained],
    settings: Settings,
    prior: ModelState | None,
) -> list[Trained]:
    """Models learned without ranking, with what their users have rated: before, and in the table.

    Parameters
    ----------
    cells : DataFrame
        the packed table
    kinds : tuple[IdKind, IdKind]
        of the ids of users and of items
    trained : list[Trained]
        models of that table, learned without ranking, of the same ids in the same rows
    settings : Settings
        those that say how to rank
    prior : ModelState | None
        the model that the table was added to, None for a fresh fit
    """
    clock = time.perf_counter()
    user = "bigint" if kinds[0] == "int" else "string"
    with phase(cells.sparkSession, "who rated what"):
        lists = cells.select("payload").mapInArrow(
            _Lists(kinds[0]), f"user {user}, done array<bigint>"
        )
        table = lists.toArrow()
    size, sample = settings.ranking_size, settings.ranking_sample
    states = [
        state.under(replace(state.settings, ranking_size=size, ranking_sample=sample))
        for state, _ in trained
    ]
    users = states[0].users
    if prior is not None:
        copy_lists(prior.users, users)
    note_lists(users, table)
    for other in states[1:]:
        copy_lists(users, other.users)
    seconds = {"who rated what": time.perf_counter() - clock}
    return [
        (state, replace(report, seconds=report.seconds | seconds))
        for state, (_, report) in zip(states, trained, strict=True)
    ]


@dataclass(frozen=True)
class _Lists:
    """The function of the tasks: packed ratings in, a row for each user of a cell out."""

    kind: IdKind

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return map(self._lists, packed_tables(batches))

    def _lists(self, table: pa.Table) -> pa.RecordBatch:
        user_ids, users = encode_ids(table.column("user"))
        item_ids, items = encode_ids(table.column("item"))
        pairs = np.unique((users.astype(np.int64) << 32) + items)
        starts = np.searchsorted(pairs >> 32, np.arange(len(user_ids) + 1)).astype(np.int32)
        keys = id_keys(item_ids).view(np.int64)[pairs & 0xFFFFFFFF]
        done = pa.ListArray.from_arrays(pa.array(starts), pa.array(keys))
        return pa.RecordBatch.from_arrays(
            [user_ids.cast(id_array_type(self.kind)), done], names=["user", "done"]
        )
