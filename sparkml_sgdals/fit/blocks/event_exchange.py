"""What a block does in each step of a fit of events in blocks (executor).

As in `exchange`: static arrays and messages in, messages out; `driver` arranges the steps. The
arithmetic is in `event_block`. What one side's blocks have to know of the whole other side is the
sum over its blocks of the products of features: it goes with the sums that each block tells to all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.ipc import arrays_from_buffer, arrays_to_buffer, to_buffer
from sparkml_sgdals.fit.blocks.block import BlockLayout, BlockState
from sparkml_sgdals.fit.blocks.event_block import (
    EventSums,
    EventTotals,
    descend_block,
    done_lists,
    event_table,
    start_block,
)
from sparkml_sgdals.fit.blocks.exchange import (
    kept_messages,
    send_messages,
    state_message,
    sums_messages,
)
from sparkml_sgdals.fit.blocks.files import Statics, static_name
from sparkml_sgdals.fit.blocks.inbox import Inbox
from sparkml_sgdals.fit.blocks.layout import as_ids, cell_of
from sparkml_sgdals.fit.blocks.messages import OTHER, SIDES, Job, Message, SideName
from sparkml_sgdals.kernels.checks import check_rows

__all__ = ["DescendHalf", "NameEvents", "StartEvents", "read_totals"]


def read_totals(inbox: Inbox, job: Job) -> EventTotals:
    """Return what the block knew of the whole, brought up to date by the sums that have come in."""
    totals = EventTotals()
    for side in SIDES:
        for payload in inbox.all(side, "learned").values():
            totals = EventTotals.from_arrays(arrays_from_buffer(payload))
    for side in SIDES:
        parts = [arrays_from_buffer(b) for b in inbox.all(side, "sums").values()]
        if not parts:
            continue
        sums = EventSums.total(parts)
        if side == "users":
            totals = totals.after_users(sums)
        else:
            totals = totals.after_items(sums, job.settings.unobserved_weight)
    return totals


def _features(state: BlockState, rows: npt.NDArray[np.int32]) -> dict[str, npt.NDArray[Any]]:
    return {"features": np.ascontiguousarray(state.arrays["taste"][rows, 1:])}


@dataclass(frozen=True)
class StartEvents:
    """States of the blocks of one number, and what the users' first half-sweep wants of items."""

    job: Job
    kinds: ClassVar[tuple[str, ...]] = ("ids", "layout")
    stratum: ClassVar[None] = None

    def __call__(self, statics: Statics, inbox: Inbox) -> Iterator[Message]:
        """Yield the block's states, its sums, and its items' features."""
        job, own = self.job, inbox.block
        for side, number in SIDES.items():
            if not job.has_block(side, own):
                continue
            ids = as_ids(statics.arrays(static_name("ids", side, own, own))["id"])
            arrays = statics.arrays(static_name("layout", side, own, own), check=True)
            block = BlockLayout.from_arrays(arrays)
            state, sums = start_block(number, ids, block.layout, job.settings)
            yield state_message(statics, own, side, own, state)
            yield from sums_messages(job, side, own, sums.to_arrays())
            if side == "items":
                yield from send_messages(block, side, own, partial(_features, state))


@dataclass(frozen=True)
class DescendHalf:
    """A half-sweep: the ids of one side of a block, with the features of their partners fixed.

    Attributes
    ----------
    lam : float
        lambda of the side
    send : bool
        whether another half-sweep follows
    """

    job: Job
    side: SideName
    lam: float
    send: bool = True
    kinds: ClassVar[tuple[str, ...]] = ("layout",)
    stratum: ClassVar[None] = None

    def __call__(self, statics: Statics, inbox: Inbox) -> Iterator[Message]:
        """Yield the block's state, its sums, and what its partners' blocks have to know of it."""
        job, side, own = self.job, self.side, inbox.block
        totals = read_totals(inbox, job)
        yield from kept_messages(inbox, side, arrays_to_buffer(totals.to_arrays()))
        state = inbox.state(statics, side, own)
        if state is None:
            return
        if totals.settled(job.settings.tol):
            # all blocks see the same sums, and hand on what they have from here on
            yield state_message(statics, own, side, own, state)
            return
        arrays = statics.arrays(static_name("layout", side, own, own))
        block = BlockLayout.from_arrays(arrays)
        sent = [arrays_from_buffer(b, copy=False) for b in inbox.all(OTHER[side], "send").values()]
        partners = np.concatenate([some["features"] for some in sent])
        others = totals.items if side == "users" else totals.users
        assert others is not None
        beside = totals.weights_beside[0 if side == "users" else 1]
        sums = descend_block(
            block, state, partners, others, beside, self.lam, job.settings, job.task_threads()
        )
        yield from sums_messages(job, side, own, sums.to_arrays())
        yield state_message(statics, own, side, own, state)
        if self.send:
            yield from send_messages(block, side, own, partial(_features, state))


@dataclass(frozen=True)
class NameEvents:
    """Put ids and what users did to the states; what else the driver has to know."""

    job: Job
    kinds: ClassVar[tuple[str, ...]] = ("ids", "cell", "rows")
    stratum: ClassVar[None] = None

    def __call__(self, statics: Statics, inbox: Inbox) -> Iterator[Message]:
        """Yield the rows of the block's ids, and to one block what all know."""
        job, own = self.job, inbox.block
        for side, number in SIDES.items():
            state = inbox.state(statics, side, own)
            if state is not None:
                a = statics.arrays(static_name("ids", side, own, own))
                done = self._done(statics, own, a["count"].size) if side == "users" else None
                ids = as_ids(a["id"])
                rows = event_table(number, ids, a["count"], state, job.settings, done)
                yield own, side, own, "rows", to_buffer(rows)
            if own:
                # all are told the same
                continue
            for kind in ("learned", "sums"):
                for source, payload in inbox.all(side, kind).items():
                    yield own, side, source, kind, payload

    def _done(
        self, statics: Statics, own: int, size: int
    ) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], pa.Array]:
        cells = []
        for partner in range(self.job.num_blocks):
            if self.job.has_cell("users", own, partner):
                cell = cell_of(statics.arrays(static_name("cell", "users", own, partner)))
                rows = statics.arrays(static_name("rows", "users", own, partner))["rows"]
                check_rows(rows, size, "users")
                cells.append((cell, rows))
        return done_lists(cells, size, self.job.task_threads())
