"""What the caller of a stream may choose of it, in one piece."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from pyspark.sql import DataFrame

from sparkml_sgdals.store.objects import Location, full_path
from sparkml_sgdals.stream.report import OnBatch, Report

__all__ = ["StreamOptions", "Trigger"]

Trigger = dict[str, Any] | str | timedelta | None
"""When micro-batches start; None: as soon as the one before has ended."""
_AT_ONCE: Final = {"availablenow": "availableNow", "once": "once"}


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """The options of a stream; `StreamingBiasedALSModel.updateStream` says what each means.

    Their defaults are those of the public methods.

    Raises
    ------
    ValueError
        an option out of range
    TypeError
        a trigger that is none
    """

    trigger: Trigger
    validation: DataFrame | None
    query_name: str | None
    keep_versions: int
    keep_days: float
    lease_seconds: float
    event_id_col: str | None
    watermark: str
    on_batch: OnBatch | None
    prometheus_path: Location
    metrics_table: bool

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        if self.keep_versions < 1:
            raise ValueError(f"keepVersions must be at least 1, got {self.keep_versions}.")
        self.starts()
        if not self.keep_days >= 0:
            raise ValueError(f"keepDays must be at least 0, got {self.keep_days}.")

    def starts(self) -> dict[str, Any]:
        """Return what DataStreamWriter.trigger is to be called with, empty for Spark's default."""
        given = self.trigger
        if given is None:
            return {}
        if isinstance(given, str) and given.strip():
            name = given.strip()
            word = re.sub(r"[ _-]", "", name).lower()
            if word in _AT_ONCE:
                return {_AT_ONCE[word]: True}
            # further words, such as "2 minutes 30 seconds", are Spark's to read
            if re.match(r"(interval +)?[0-9.]+ +[a-z]", name.lower()):
                return {"processingTime": name}
        if isinstance(given, timedelta) and given.total_seconds() > 0:
            return {"processingTime": f"{round(given.total_seconds() * 1000)} milliseconds"}
        if isinstance(given, dict) and len(given) == 1:
            return dict(given)
        raise TypeError(
            'trigger is when micro-batches start: "5 seconds", "availableNow" or what '
            f'DataStreamWriter.trigger takes, {{"processingTime": "5 seconds"}}, got {given!r}.'
        )

    @property
    def keep_seconds(self) -> float:
        """Younger versions than so many seconds stay."""
        return self.keep_days * 86400.0

    def report(self) -> Report:
        """Who is told of a batch, whichever process learns it."""
        prometheus = full_path(self.prometheus_path) if self.prometheus_path else ""
        return Report(self.on_batch, prometheus, self.metrics_table)
