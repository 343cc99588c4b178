"""The job that the caller of a stream holds (driver)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

import pandas as pd

from sparkml_sgdals.notebook import Live, html_table, number, pictures, show_live
from sparkml_sgdals.store.lease import Lease
from sparkml_sgdals.store.version_store import VersionStore
from sparkml_sgdals.stream.late_rows import LateRows
from sparkml_sgdals.stream.metrics_table import MetricsFrame, metrics_frame
from sparkml_sgdals.stream.residents import forget_resident

if TYPE_CHECKING:
    from pyspark.sql.connect.streaming.query import StreamingQuery as ConnectQuery
    from pyspark.sql.streaming.query import StreamingQuery

    Query = StreamingQuery | ConnectQuery

__all__ = ["StreamJob"]


class Versioned(Protocol):
    """What a stream has to know of the model that it gives back."""

    version: int

    def copy(self) -> Any: ...


_LAST: Final = 5
"""batches that a notebook shows of a job"""

M = TypeVar("M", bound=Versioned)


class StreamJob(Generic[M]):
    """A model that is learning from a stream.

    Attributes
    ----------
    query
        Spark's StreamingQuery
    path
        the model path
    """

    def __init__(
        self,
        query: Query,
        path: str,
        lease: Lease,
        load: Callable[[VersionStore], M],
        late: LateRows | None = None,
        note_end: Callable[[], None] = lambda: None,
    ) -> None:
        self.query = query
        self._late = late
        self.path = path
        self._lease = lease
        self._note_end = note_end
        self._load = load
        self._model: M | None = None
        self._shown: Live | None = None

    def __repr__(self) -> str:
        """Return where it learns to, without asking Spark."""
        return f"{type(self).__name__}({self.path!r})"

    @property
    def model(self) -> M:
        """The newest committed version, a model of its own that does not move on."""
        store = VersionStore(self.path)
        newest = store.newest()
        if self._model is None or newest is None or self._model.version != newest.version:
            self._model = self._load(store)
        snapshot: M = self._model.copy()
        return snapshot

    def metrics(
        self, window: int = 10_000, fading: float = 0.9999, all: bool = False
    ) -> pd.DataFrame:
        """All batches so far, one row each, columns METRICS: docs/metrics.md defines each.

        What is printed, or shown by a notebook, are those that are read first.

        Parameters
        ----------
        window : int
            ratings that the sliding window of the columns window* holds at least
        fading : float
            what a rating counts in the columns fading* when the next one comes, (0, 1]
        all : bool
            whether all columns are shown; they are there in any case

        Raises
        ------
        ValueError
            window or fading out of range
        """
        late = {} if self._late is None else self._late.look(self.query)
        rows = VersionStore(self.path).metrics()
        told = [row | {"late": late.get(row["batch"], 0)} for row in rows]
        frame = metrics_frame(told, window, fading)
        return frame if all else MetricsFrame(frame)

    def plot(self) -> Any:
        """Draw the errors of the stream so far, or its ranks where it learns events.

        Returns
        -------
        a matplotlib Figure (extra `plot`)

        Raises
        ------
        ValueError
            nothing was predicted yet
        """
        metrics = self.metrics()
        errors = metrics[["rmse", "validationRmse"]].astype(float)
        if errors.notna().to_numpy().any() or not metrics["ranked"].astype(float).sum():
            return pictures().plot_stream(metrics)
        return pictures().plot_ranks(metrics)

    def _repr_html_(self) -> str:
        store = VersionStore(self.path)
        newest = store.newest()
        metrics = MetricsFrame(self.metrics())
        rows = [
            ("model path", self.path),
            ("stream", "learning" if self.query.isActive else "ended"),
            ("version", "none yet" if newest is None else number(newest.version)),
            ("micro-batches", number(len(metrics))),
            ("ratings", number(int(metrics["ratings"].sum()))),
            ("rows set aside", number(int(metrics["invalid"].sum()))),
        ]
        shown = ("rmse", "baselineRmse", "validationRmse", "recall", "baselineRecall", "seconds")
        if len(metrics):
            last = metrics.iloc[-1]
            rows += [
                (f"{name} of the last", number(float(last[name])))
                for name in shown
                if pd.notna(last[name])
            ]
        last_ones = metrics.tail(_LAST).read_first
        table = "" if last_ones is None or last_ones.empty else last_ones.to_html(index=False)
        return html_table(type(self).__name__, rows) + table

    def _ipython_display_(self) -> None:
        """Show it in a notebook, and go on showing how it is until the stream ends."""
        self._shown = show_live(
            self._repr_html_, repr(self), lambda: bool(self.query.isActive), self._shown
        )

    def awaitTermination(self, timeout: float | None = None) -> bool:
        """Wait until the stream ends; whether it has ended.

        Parameters
        ----------
        timeout : float | None
            seconds after which not to wait any more, None for never

        Raises
        ------
        StreamingQueryException
            Spark's, where the stream failed
        """
        try:
            ended = (
                self.query.awaitTermination()
                if timeout is None
                else (self.query.awaitTermination(math.ceil(timeout)))
            )
            finished = True if timeout is None else bool(ended)
        except BaseException:
            if not self.query.isActive:
                self._end()
            raise
        if finished:
            self._end()
        return finished

    def stop(self, drain: bool = True, timeout: float = 60.0) -> None:
        """Stop the stream.

        Parameters
        ----------
        drain : bool
            wait until a running batch has been committed; else it may be broken off, and is learned
            after the next start
        timeout : float
            seconds to wait at most
        """
        if drain:
            store = VersionStore(self.path)
            first = store.newest()
            until = time.monotonic() + timeout
            while self.query.isActive and time.monotonic() < until:
                if not self.query.status["isTriggerActive"]:
                    break
                newest = store.newest()
                if newest is not None and first is not None and newest.version > first.version:
                    break
                time.sleep(0.05)
        self.query.stop()
        self._end()

    def _end(self) -> None:
        # the state in memory is of no use without its stream, and what that writes in the
        # background is to end before another may write
        forget_resident(self.path, self._lease.token)
        self._note_end()
        self._lease.release()
