"""How features reach blocks, and what blocks tell each other of them (executor).

The arithmetic is in `block`, how vectors come to their blocks in `routing`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from sparkml_sgdals.arrays.ipc import arrays_from_buffer, arrays_to_buffer
from sparkml_sgdals.fit.blocks.block import BlockState
from sparkml_sgdals.fit.blocks.features.block import (
    FeatureTotals,
    SideColumns,
    feature_sums,
    furthest_in,
    own_rows,
    put_features,
)
from sparkml_sgdals.fit.blocks.files import Statics, static_name
from sparkml_sgdals.fit.blocks.inbox import Inbox
from sparkml_sgdals.fit.blocks.messages import SIDES, Job, Message, SideName

__all__ = ["BlockFeatures", "given_features", "kept_features"]

F32 = np.ndarray[Any, np.dtype[np.float32]]


def given_features(
    statics: Statics, inbox: Inbox, side: SideName, ids: pa.Array | None
) -> Iterator[Message]:
    """Yield what a block knows of features of its ids, to be handed on step by step."""
    own = inbox.block
    for payload in inbox.all(side, "columns").values():
        columns = SideColumns.from_arrays(_held(statics, payload))
        rows = own_rows(columns, statics.table(static_name("given", side, own, own)), ids)
        yield own, side, own, "columns", payload
        yield own, side, own, "features", statics.park(side, own, rows, lasting=True)


def kept_features(inbox: Inbox) -> Iterator[Message]:
    """Yield what a block knows of features, for its next step."""
    for side in SIDES:
        for kind in ("columns", "features"):
            for payload in inbox.all(side, kind).values():
                yield inbox.block, side, inbox.block, kind, payload


@dataclass(frozen=True)
class BlockFeatures:
    """What a block knows of the features of one side."""

    job: Job
    side: SideName
    block: int
    kept: tuple[Message, ...]
    columns: SideColumns
    own: dict[str, Any]
    totals: FeatureTotals

    @classmethod
    def read(cls, statics: Statics, inbox: Inbox, job: Job, side: SideName) -> BlockFeatures | None:
        """Return it, brought up to date by the sums that have come in; None where it has none."""
        for payload in inbox.all(side, "features").values():
            (of_columns,) = inbox.all(side, "columns").values()
            known = _held(statics, of_columns)
            totals = FeatureTotals.begin(known["likeness"].shape[0], job.settings.rank + 1)
            for held in inbox.all(side, "weights").values():
                totals = FeatureTotals.from_arrays(arrays_from_buffer(held))
            parts = [_held(statics, p) for p in inbox.all(side, "feature sums").values()]
            if parts:
                totals = totals.after(parts, known["likeness"])
            kept = tuple(message for message in kept_features(inbox) if message[1] == side)
            columns = SideColumns.from_arrays(known)
            own = _held(statics, payload)
            return cls(job, side, inbox.block, kept, columns, own, totals)
        return None

    def to_keep(self) -> Iterator[Message]:
        """Yield what the block's next step has to know."""
        yield from self.kept
        yield self.told()

    def told(self) -> Message:
        """Return the message of what is learned."""
        learned = arrays_to_buffer(self.totals.to_arrays())
        return self.block, self.side, self.block, "weights", learned

    def furthest(self, statics: Statics) -> Message:
        """Return the message of how far features take ids of the block, rated or not."""
        table = statics.table(static_name("given", self.side, self.block, self.block))
        most = furthest_in(table, self.columns.weights(self.totals))
        payload = arrays_to_buffer({"furthest": most})
        return self.block, self.side, self.block, "furthest", payload

    def put(self, state: BlockState, prior: F32 | None) -> None:
        """Move the block's ids to where the weights of now say."""
        put_features(self.own, state, self.totals.weights, prior, self.job.settings)

    def sums(self, statics: Statics, state: BlockState, prior: F32 | None) -> Iterator[Message]:
        """Yield the block's sums after a half-sweep, told to all blocks."""
        sums = feature_sums(self.own, state, self.totals.start, prior, self.job.settings)
        payload = statics.park(self.side, self.block, sums)
        for target in range(self.job.num_blocks):
            yield target, self.side, self.block, "feature sums", payload


def _held(statics: Statics, payload: pa.Buffer) -> dict[str, Any]:
    lying = statics.parked(payload)
    return arrays_from_buffer(payload) if lying is None else lying
