"""Rows that Spark drops because they come later than the watermark: counted, and warned of.

Spark counts them in the progress of its query, once a batch is done, and shows them to nobody else;
so the process that holds the query notes them under the model path, in late.json.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from typing import Any, Final

from sparkml_sgdals.store.objects import ObjectStore

__all__ = ["LateRows"]

logger = logging.getLogger(__name__)

_FILE: Final = "late.json"
_EVERY: Final = 5.0
"""Seconds between looks; Spark keeps the progress of the last 100 batches."""


class LateRows:
    """Late rows of a stream by batch; not of one that keeps no event ids, which drops none."""

    def __init__(self, store: ObjectStore, last_batch: int, counts: bool) -> None:
        self._store = store
        self._counts = counts
        self._guard = threading.Lock()
        self._looked = 0.0
        held = _read(store)
        # what came after it was taken back, and is read again
        self._known = {batch: rows for batch, rows in held.items() if batch <= last_batch}

    def look(self, query: Any, now: bool = True) -> dict[int, int]:
        """Return late rows by batch, after a look at the query's progress.

        Parameters
        ----------
        query : Any
            Spark's StreamingQuery
        now : bool
            look in any case; else only where the last look is some seconds ago
        """
        with self._guard:
            if not self._counts or not (now or time.monotonic() - self._looked > _EVERY):
                return dict(self._known)
            self._looked = time.monotonic()
            try:
                found = _dropped(query)
                new = {b: n for b, n in found.items() if n and self._known.get(b) != n}
                for batch, rows in sorted(new.items()):
                    logger.warning(
                        "batch %d of %s: Spark dropped %d rows that came later than the watermark",
                        batch, self._store.path, rows,
                    )  # fmt: skip
                if new:
                    self._known |= new
                    text = json.dumps({str(batch): rows for batch, rows in self._known.items()})
                    self._store.replace(_FILE, text.encode())
            except Exception as failure:
                # a session that was stopped cannot say, and counting is not to stop a stream
                logger.info("late rows of %s are not known: %s", self._store.path, failure)
            return dict(self._known)


def _dropped(query: Any) -> dict[int, int]:
    found: dict[int, int] = {}
    for progress in query.recentProgress:
        rows = sum(operator.numRowsDroppedByWatermark for operator in progress.stateOperators)
        # an idle query tells the same batch again, without rows
        found[progress.batchId] = max(rows, found.get(progress.batchId, 0))
    return found


def _read(store: ObjectStore) -> dict[int, int]:
    try:
        held = json.loads(store.read(_FILE) or b"{}")
        return {int(batch): int(rows) for batch, rows in held.items()}
    except (ValueError, TypeError, AttributeError):
        logger.warning("%s/%s is damaged; late rows are counted anew", store.path, _FILE)
        return {}
