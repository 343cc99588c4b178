"""Both ends of a fit in blocks: what the driver tells blocks, and reads in the end (driver)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sparkml_sgdals.arrays.hashing import block_of, id_keys
from sparkml_sgdals.arrays.ipc import arrays_from_buffer, from_bytes, to_buffer
from sparkml_sgdals.fit.blocks.events.block import EventTotals
from sparkml_sgdals.fit.blocks.events.exchange import read_totals
from sparkml_sgdals.fit.blocks.exchange import GlobalState
from sparkml_sgdals.fit.blocks.inbox import Inbox
from sparkml_sgdals.fit.blocks.layout import Moments
from sparkml_sgdals.fit.blocks.messages import Job, Message
from sparkml_sgdals.state.model_state import ModelState

__all__ = ["FINAL", "first_messages", "read_final", "told_by_one", "whole_known"]

FINAL: Final = ("state", "learned", "sums", "columns", "features", "weights", "feature sums")
"""Kinds of messages that the last step wants."""


def first_messages(job: Job, prior: ModelState | None, features: list[Message]) -> pa.Table:
    """Return the first messages: a word to each block, and what is known of its ids."""
    nothing = pa.py_buffer(b"")
    messages: list[Message] = [
        (block, "users", block, "start", nothing) for block in range(job.num_blocks)
    ]
    if prior is not None:
        for side, table in (("users", prior.users), ("items", prior.items)):
            if table.size:
                of_ids = block_of(id_keys(table.index.ids()), job.num_blocks)
                for block in range(job.num_blocks):
                    rows = np.flatnonzero(of_ids == block)
                    payload = to_buffer(table.to_arrow(rows))
                    messages.append((block, side, block, "known", payload))  # type: ignore[arg-type]
    messages += features
    return pa.Table.from_batches([job.batch(message) for message in messages])


def told_by_one(rows: pa.Table, job: Job) -> GlobalState | EventTotals:
    """Return what blocks know of the whole, by the messages to one: all are told the same."""
    first = pc.min(rows.column("target")).as_py()
    return whole_known(Inbox.among(rows, first), job)


def whole_known(inbox: Inbox, job: Job) -> GlobalState | EventTotals:
    """Return what a block knows of the whole."""
    return (read_totals if job.settings.fits_events else GlobalState.read)(inbox, job)


def read_final(
    rows: pa.Table, job: Job, moments: Moments, prior: ModelState | None, sweeps: int,
    in_runs: bool,
) -> tuple[ModelState, list[float], dict[str, Any] | None]:  # fmt: skip
    """Return the model that the final states make, the training RMSE of each sweep, and runs.

    Parameters
    ----------
    rows : pa.Table
        messages of the last step
    job : Job
        the fit's
    moments : Moments
        of its ratings
    prior : ModelState | None
        the model that they are added to
    sweeps : int
        how many there may have been
    in_runs : bool
        whether blocks wrote their rows themselves, so that the state is without them
    """
    state = ModelState.empty(job.settings, *job.kinds) if prior is None else prior.copy()
    told = (rows.column(name).to_pylist() for name in ("target", "source", "side", "kind"))
    found = list(zip(*told, rows.column("payload"), strict=True))
    counted = np.zeros(3)
    runs: dict[str, Any] = {"users": [], "items": [], "metrics": None}
    for _, _, side, kind, payload in sorted(found, key=lambda row: (row[2], row[0])):
        if kind == "rows":
            table = state.users if side == "users" else state.items
            table.put_arrow(from_bytes(payload.as_buffer()))
        elif kind == "run":
            runs[side].append(json.loads(payload.as_buffer().to_pybytes()))
        elif kind == "prequential":
            counted += arrays_from_buffer(payload.as_buffer())["prequential"]
    history: list[float] = []
    if job.settings.solver == "bayes" and sweeps:
        learned = told_by_one(rows, job)
        history = [rmse * job.scale[1] for rmse in learned.history]
        if isinstance(learned, EventTotals):
            state.weights_beside = learned.weights_beside
        elif job.fresh:
            state.noise, state.noise_weight = learned.noise, learned.weight
    before = state.counters
    state.counters = replace(
        before.with_ratings(moments.ratings, (moments.low, moments.high)),
        prequential_ratings=before.prequential_ratings + int(counted[0]),
        prequential_squares=before.prequential_squares + float(counted[1]),
        baseline_squares=before.baseline_squares + float(counted[2]),
    )
    if not in_runs:
        return state, history, None
    state.partial = True
    users, items = (sum(entry["count"] for entry in runs[side]) for side in ("users", "items"))
    state.known_ids = users, items
    return state, history, runs
