"""All blocks of a fit in one process: what Spark does is done by loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from sparkml_sgdals.arrays.ipc import arrays_to_buffer
from sparkml_sgdals.fit.blocks.ends import FINAL, GivenFeatures, first_messages, read_final
from sparkml_sgdals.fit.blocks.exchange import NameRows
from sparkml_sgdals.fit.blocks.files import BlockRows, static_name
from sparkml_sgdals.fit.blocks.inbox import Inbox
from sparkml_sgdals.fit.blocks.layout import Encode, Moments, Route, job_of_cells, lay_out
from sparkml_sgdals.fit.blocks.messages import MESSAGE_SCHEMA, Job
from sparkml_sgdals.fit.blocks.steps import rating_steps
from sparkml_sgdals.fit.plan import Plan
from sparkml_sgdals.ingest.packing import pack_cell
from sparkml_sgdals.learn.whole_table import NO_FEATURES, Features
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.settings import Settings


@dataclass
class Cluster:
    """All blocks of a table in one process: what Spark does is done by loops."""

    job: Job
    moments: Moments
    statics: BlockRows

    @classmethod
    def of(cls, packed: list[pa.RecordBatch], blocks: int, settings: Settings, kind: Any) -> Any:
        """Lay a packed table out; ids of both sides are of a kind."""
        job = Job(settings, (kind, kind), tuple(range(blocks)), threads=1)
        pieces = list(Route(job, True, None)(iter(packed)))
        cells, told = {}, []
        for message in Encode(job, None)(iter(pieces)):
            (row,) = message.to_pylist()
            if row["kind"] == "cell":
                name = static_name("cell", "users", row["target"], row["source"])
                cells[name] = pa.py_buffer(row["payload"])
            elif row["kind"] == "moments":
                told.append(row)
        job, moments = job_of_cells(told, job)
        if not settings.learns_events:
            job = replace(job, scale=(moments.scale.mean, moments.scale.spread))
        held = dict(cells)
        for own in range(blocks):
            for what, side, block, partner, arrays in lay_out(BlockRows(cells), own, job):
                held[static_name(what, side, block, partner)] = arrays_to_buffer(arrays)
        return cls(job, moments, BlockRows(held))

    def run(self, step: Callable[..., Iterator[Any]], messages: list[Any]) -> list[Any]:
        """Messages in, messages out; the blocks take turns from the last to the first."""
        out = []
        for own in reversed(range(self.job.num_blocks)):
            inbox = self.inbox(own, messages)
            out += list(step(self.statics, inbox))
        return out

    def inbox(self, own: int, messages: list[Any]) -> Inbox:
        """What came for a block, in no order."""
        rows = [self.job.batch(message) for message in messages[::-1] if message[0] == own]
        return Inbox(own, pa.Table.from_batches(rows, MESSAGE_SCHEMA))

    def fit_ratings(self, features: Features = NO_FEATURES) -> tuple[ModelState, list[float]]:
        """The model and training RMSE that the steps of a fresh fit of ratings give."""
        job = self.job
        plan = Plan(job.num_blocks, 1, 0, (job.settings.max_iter,))
        known = GivenFeatures.of(features, job)
        rows = first_messages(job, None, known)
        messages: list[Any] = messages_of(rows)
        for _, step, _ in rating_steps(job, plan, known.moves):
            messages = self.run(step, messages)
        final = [message for message in messages if message[3] in FINAL]
        named = [self.job.batch(message) for message in self.run(NameRows(job), final)]
        told = pa.Table.from_batches(named)
        state, history, _ = read_final(
            told, job, self.moments, None, job.settings.max_iter, in_runs=False
        )
        state.scale = replace(self.moments.scale, frozen=True)
        known.put_weights(state, told)
        return state, history


def messages_of(rows: pa.Table) -> list[Any]:
    """Rows as messages."""
    places = zip(*[rows.column(n).to_pylist() for n in ("target", "side", "source", "kind")],
                 strict=True)  # fmt: skip
    payloads = [payload.as_buffer() for payload in rows.column("payload")]
    return [(*place, payload) for place, payload in zip(places, payloads, strict=True)]


def packed_in(table: pa.Table, parts: int) -> list[pa.RecordBatch]:
    """A table as so many packed cells."""
    order = np.random.default_rng(0).permutation(table.num_rows)
    shuffled = table.take(pa.array(order))
    cuts = np.linspace(0, table.num_rows, parts + 1).astype(int).tolist()
    return [
        pack_cell(shuffled.slice(begin, end - begin), keep=False)
        for begin, end in pairwise(cuts)
        if end > begin
    ]
