"""Many fits of one table: packed once, learned once for all numbers of passes (driver)."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pyspark.sql import DataFrame

from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.errors import DivergenceError
from sparkml_sgdals.fit.fitting import PackedTable, learn_packed, pack_for_fit
from sparkml_sgdals.fit.plan import FitOptions, Trained
from sparkml_sgdals.ingest.columns import RatingColumns
from sparkml_sgdals.state.settings import Settings

__all__ = ["GridFit", "GridPoint"]


Packing = tuple[RatingColumns, tuple[IdKind, IdKind], str, tuple[float, float] | None]


@dataclass(frozen=True)
class GridPoint:
    """One fit of a grid."""

    settings: Settings
    options: FitOptions

    def packing(self) -> Packing:
        """Return what the packed table depends on: equal for points that can share it."""
        options = self.options
        return options.columns, options.kinds, options.handle_invalid, options.rating_range

    def learning(self) -> tuple[Settings, FitOptions]:
        """Return what learning depends on besides passes: equal for points that can share it."""
        return replace(self.settings, max_iter=0), self.options


class GridFit:
    """Learns the points of a grid when they are asked for, from several threads at that.

    Packed tables stay persisted until the last point that needs one has been learned, or until
    this object is let go of.
    """

    def __init__(self, df: DataFrame, points: Sequence[GridPoint]) -> None:
        self._df = df
        self._points = list(points)
        self._waiting = set(range(len(points)))
        self._packed: dict[Packing, PackedTable] = {}
        self._trained: dict[int, Trained] = {}
        # the machine's cores are busy with one fit; a second thread would only add to its time
        self._lock = threading.Lock()
        weakref.finalize(self, _release, self._packed)

    def take(self, index: int) -> Trained:
        """State and report of a point; each can be taken once.

        Raises what `fitting.learn_table` raises.
        """
        with self._lock:
            if index not in self._trained:
                self._learn_with(index)
            return self._trained.pop(index)

    def _learn_with(self, index: int) -> None:
        """Learn a point and all that share its learning, or it alone where these fail together."""
        point = self._points[index]
        packing = point.packing()
        group = [i for i in self._waiting if self._points[i].learning() == point.learning()]
        try:
            if packing not in self._packed:
                self._packed[packing] = pack_for_fit(self._df, point.settings, point.options)
            try:
                self._learn(group)
            except DivergenceError:
                if len(group) == 1:
                    raise
                # what ran away may be the passes that others ask for
                self._learn([index])
        finally:
            self._waiting -= {index, *self._trained}
            wanted = any(self._points[i].packing() == packing for i in self._waiting)
            if not wanted and packing in self._packed:
                self._packed.pop(packing).release()

    def _learn(self, group: list[int]) -> None:
        point = self._points[group[0]]
        stops = tuple(sorted({self._points[i].settings.max_iter for i in group}))
        packed = self._packed[point.packing()]
        trained = learn_packed(packed, point.settings, point.options, stops)
        by_stop = dict(zip(stops, trained, strict=True))
        for member in group:
            state, report = by_stop[self._points[member].settings.max_iter]
            self._trained[member] = (state.copy(), report)


def _release(packed: dict[Packing, PackedTable]) -> None:
    while packed:
        packed.popitem()[1].release()
