"""What has come for a block in a step (executor)."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from sparkml_sgdals.arrays.ipc import arrays_from_buffer
from sparkml_sgdals.fit.blocks.block import BlockState
from sparkml_sgdals.fit.blocks.files import Statics
from sparkml_sgdals.fit.blocks.messages import SideName

__all__ = ["Inbox"]


class Inbox:
    """Messages of one block by side and kind."""

    def __init__(self, block: int, messages: pa.Table) -> None:
        self.block = block
        self._rows: dict[tuple[str, str], dict[int, pa.Scalar]] = {}
        for side, source, kind, payload in zip(
            messages.column("side").to_pylist(), messages.column("source").to_pylist(),
            messages.column("kind").to_pylist(), messages.column("payload"), strict=True,
        ):  # fmt: skip
            self._rows.setdefault((side, kind), {})[source] = payload

    @classmethod
    def among(cls, messages: pa.Table, block: int) -> Inbox:
        """Return those of a block among the messages to several."""
        return cls(block, messages.filter(pc.field("target") == block))

    def all(self, side: SideName, kind: str) -> dict[int, pa.Buffer]:
        """Payloads by source block, in its order."""
        found = self._rows.get((side, kind), {})
        return {source: found[source].as_buffer() for source in sorted(found)}

    def state(self, statics: Statics, side: SideName, source: int) -> BlockState | None:
        """Return the state of a block of a side that a source sent, None where it sent none."""
        payload = self.all(side, "state").get(source)
        if payload is None:
            return None
        lying = statics.parked(payload, check=True)
        return BlockState(arrays_from_buffer(payload) if lying is None else lying)
