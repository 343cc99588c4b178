"""All blocks of a fit in one process: what Spark does is done by loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sparkml_sgdals.arrays.ipc import arrays_to_buffer
from sparkml_sgdals.fit.blocks.ends import FINAL, first_messages, read_final
from sparkml_sgdals.fit.blocks.exchange import NameRows
from sparkml_sgdals.fit.blocks.features.given import (
    NO_MORE,
    GivenFeatures,
    learned_columns,
    looks_of,
    seeds,
)
from sparkml_sgdals.fit.blocks.features.routing import (
    GatherVectors,
    MeasureVectors,
    PutTogether,
    RouteVectors,
)
from sparkml_sgdals.fit.blocks.files import BlockRows, static_name
from sparkml_sgdals.fit.blocks.inbox import Inbox
from sparkml_sgdals.fit.blocks.layout import Encode, Moments, Route, job_of_cells, lay_out
from sparkml_sgdals.fit.blocks.messages import MESSAGE_SCHEMA, SIDES, Job, SideName
from sparkml_sgdals.fit.blocks.steps import rating_steps
from sparkml_sgdals.fit.plan import Plan
from sparkml_sgdals.ingest.packing import pack_cell
from sparkml_sgdals.ingest.side_vectors import SideVectors
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
        known = self.spread(features)
        rows = first_messages(job, None, known.messages)
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

    def spread(self, features: Features) -> GivenFeatures:
        """Bring vectors to their blocks."""
        tables = {
            side: rows.to_table()
            for side, rows in zip(SIDES, features, strict=True)
            if rows is not None
        }
        if not tables:
            return NO_MORE
        known, given = spread_in(self.job, tables, 2)
        self.statics = BlockRows({**self.statics.payloads, **given})
        return known


def spread_in(
    job: Job, tables: dict[SideName, pa.Table], parts: int, refuse: bool = True
) -> tuple[GivenFeatures, dict[str, pa.Buffer]]:
    """What blocks are told of vectors from so many partitions, and the vectors by their names."""
    sides: Any = {}
    pieces = []
    for side, table in tables.items():
        kind, told = job.kinds[list(SIDES).index(side)], f"{side} 'vector'"
        sides[side] = SideVectors(side[:-1], told, kind, refuse, (), None)  # type: ignore[arg-type]
        marked = table.append_column("differ", pa.array([False] * table.num_rows))
        order = np.random.default_rng(parts).permutation(table.num_rows)
        for some in np.array_split(order, parts):
            route = RouteVectors(job, side, None)
            pieces += route(marked.take(pa.array(some)).to_batches())
    pieces += seeds(job, list(sides)).to_batches()
    gathered = pa.Table.from_batches(GatherVectors(job, None)(pieces), MESSAGE_SCHEMA)
    counted, given = (gathered.filter(pc.field("kind") == kind) for kind in ("counted", "given"))
    looks = looks_of(sides, Inbox(0, counted))
    measured = list(MeasureVectors(job, None, looks)(given.to_batches()))
    together = PutTogether(job, None, looks)(measured[::-1])
    told = Inbox(0, pa.Table.from_batches(together, MESSAGE_SCHEMA))
    known = learned_columns(sides, looks, told, job)
    held = {
        static_name("given", side, own, own): payload
        for own, side, _, _, payload in messages_of(given)
    }
    return known, held


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
