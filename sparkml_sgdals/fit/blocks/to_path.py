"""The last step of a fit to a model path: blocks write their rows as sorted runs (executor).

What goes to the driver is the names of the files, and numbers about the whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa

from sparkml_sgdals.arrays.ipc import arrays_to_buffer
from sparkml_sgdals.fit.blocks.exchange import final_states
from sparkml_sgdals.fit.blocks.files import Statics, static_name
from sparkml_sgdals.fit.blocks.inbox import Inbox
from sparkml_sgdals.fit.blocks.layout import as_ids
from sparkml_sgdals.fit.blocks.messages import SIDES, Job, Message
from sparkml_sgdals.learn.solvers import not_finite
from sparkml_sgdals.state.columns import FactorColumns
from sparkml_sgdals.store.large.in_runs import RunSink

__all__ = ["WriteRuns"]


@dataclass(frozen=True)
class WriteRuns:
    """Put the ids back to the states, and write both as sorted runs."""

    job: Job
    sink: RunSink
    kinds: ClassVar[tuple[str, ...]] = ("ids", "given")
    stratum: ClassVar[None] = None

    def __call__(self, statics: Statics, inbox: Inbox) -> Iterator[Message]:
        """Yield what the driver has to know: entries of runs, and sums over all blocks."""
        own, settings = inbox.block, self.job.settings
        states, told = final_states(statics, inbox, self.job)
        yield from told
        for place, side in enumerate(SIDES):
            state = states[side]
            if state is None:
                continue
            floats = [c.name for c in FactorColumns.registry() if c.dtype.kind == "f"]
            if not all(bool(np.isfinite(state.arrays[name]).all()) for name in floats):
                raise not_finite(settings)
            ids = as_ids(statics.arrays(static_name("ids", side, own, own))["id"])
            entry = self.sink.write(side, self.job.kinds[place], settings, ids, state.arrays)
            yield own, side, own, "run", pa.py_buffer(json.dumps(entry).encode())
            if side == "users":
                counted = {"prequential": state.arrays["prequential"]}
                yield own, side, own, "prequential", arrays_to_buffer(counted)
        # all blocks are told the same of the whole
        for side in SIDES if own == 0 else ():
            for kind in ("learned", "sums"):
                for source, payload in inbox.all(side, kind).items():
                    yield own, side, source, kind, payload
