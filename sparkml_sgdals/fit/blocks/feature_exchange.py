"""How features reach blocks, and what blocks tell each other of them (executor).

As in `exchange`; the arithmetic is in `feature_block`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from sparkml_sgdals.arrays.ipc import arrays_from_buffer, arrays_to_buffer
from sparkml_sgdals.fit.blocks.block import BlockState
from sparkml_sgdals.fit.blocks.feature_block import (
    FeatureTotals,
    feature_sums,
    own_rows,
    put_features,
)
from sparkml_sgdals.fit.blocks.files import Statics
from sparkml_sgdals.fit.blocks.inbox import Inbox
from sparkml_sgdals.fit.blocks.messages import SIDES, Job, Message, SideName

__all__ = ["BlockFeatures", "given_features", "kept_features"]

F32 = np.ndarray[Any, np.dtype[np.float32]]


def given_features(
    statics: Statics, inbox: Inbox, side: SideName, ids: pa.Array | None
) -> Iterator[Message]:
    """Yield what the driver told a block of features of its ids, to be handed on step by step."""
    own = inbox.block
    for payload in inbox.all(side, "columns").values():
        rows = own_rows(arrays_from_buffer(payload), ids)
        yield own, side, own, "features", statics.park(side, own, rows, lasting=True)


def kept_features(inbox: Inbox) -> Iterator[Message]:
    """Yield what a block knows of features, for its next step."""
    for side in SIDES:
        for payload in inbox.all(side, "features").values():
            yield inbox.block, side, inbox.block, "features", payload


@dataclass(frozen=True)
class BlockFeatures:
    """What a block knows of the features of one side."""

    job: Job
    side: SideName
    block: int
    payload: pa.Buffer
    own: dict[str, Any]
    totals: FeatureTotals

    @classmethod
    def read(cls, statics: Statics, inbox: Inbox, job: Job, side: SideName) -> BlockFeatures | None:
        """Return it, brought up to date by the sums that have come in; None where it has none."""
        for payload in inbox.all(side, "features").values():
            own = _held(statics, payload)
            totals = FeatureTotals.begin(own["likeness"].shape[0], job.settings.rank + 1)
            for held in inbox.all(side, "weights").values():
                totals = FeatureTotals.from_arrays(arrays_from_buffer(held))
            parts = [_held(statics, p) for p in inbox.all(side, "feature sums").values()]
            if parts:
                totals = totals.after(parts, own["likeness"])
            return cls(job, side, inbox.block, payload, own, totals)
        return None

    def kept(self) -> Iterator[Message]:
        """Yield what the block's next step has to know."""
        yield self.block, self.side, self.block, "features", self.payload
        yield self.told()

    def told(self) -> Message:
        """Return the message of what is learned."""
        learned = arrays_to_buffer(self.totals.to_arrays())
        return self.block, self.side, self.block, "weights", learned

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
