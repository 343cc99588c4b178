"""Ratings and model states as binary rows: what travels between driver and tasks, and how.

A *part* is one row (kind, payload) whose payload is an Arrow IPC stream or JSON; a whole model
state is a list of parts, small enough each for one row. Runs on driver and executors.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa

from sparkml_sgdals.arrays.ipc import from_bytes, to_bytes
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.settings import Settings

__all__ = ["PART_DDL", "PART_SCHEMA", "part_batch", "state_from_parts", "state_parts"]

PART_DDL: Final = "kind string, payload binary"
PART_SCHEMA: Final = pa.schema([("kind", pa.string()), ("payload", pa.binary())])
_ROWS_PER_PART: Final = 220_000
_BYTES_PER_PART: Final = 1 << 29

Part = tuple[str, bytes]


def part_batch(kind: str, payload: bytes) -> pa.RecordBatch:
    """One part as a record batch of one row."""
    return pa.RecordBatch.from_arrays(
        [pa.array([kind], pa.string()), pa.array([payload], pa.binary())], schema=PART_SCHEMA
    )


def state_parts(state: ModelState, extra: dict[str, Any] | None = None) -> Iterator[Part]:
    """Parts of a whole state: its scalars (with `extra` beside them), its users, its items."""
    header = {
        "settings": state.settings.to_json(),
        "kinds": [state.users.index.kind, state.items.index.kind],
        "scalars": state.scalars(),
        "extra": extra or {},
    }
    yield "state", json.dumps(header).encode()
    width = state.settings.rank + state.settings.table_rank + 1
    for kind, side in (("users", state.users), ("items", state.items)):
        step = max(1, min(_ROWS_PER_PART, _BYTES_PER_PART // (16 * width)))
        for first in range(0, side.size, step):
            rows = np.arange(first, min(first + step, side.size))
            yield kind, to_bytes(side.to_arrow(rows))


def state_from_parts(parts: Iterable[Part]) -> tuple[ModelState, dict[str, Any]]:
    """Return the state and the extra values that `state_parts` gave, in any order of the parts."""
    held = list(parts)
    header = json.loads(next(payload for kind, payload in held if kind == "state"))
    state = ModelState.empty(Settings.from_json(header["settings"]), *header["kinds"])
    state.set_scalars(header["scalars"])
    for kind, payload in held:
        if kind == "users":
            state.users.put_arrow(from_bytes(payload))
        elif kind == "items":
            state.items.put_arrow(from_bytes(payload))
    return state, header["extra"]
