"""What the caller of a stream may choose of it, in one piece."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame

from sparkml_sgdals.store.version_store import full_path
from sparkml_sgdals.stream.report import OnBatch, Report

__all__ = ["StreamOptions"]


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """The options of a stream; `StreamingBiasedALSModel.updateStream` says what each means.

    Their defaults are those of the public methods.

    Raises
    ------
    ValueError
        an option out of range
    """

    trigger: dict[str, Any] | None
    validation: DataFrame | None
    query_name: str | None
    keep_versions: int
    keep_days: float
    lease_seconds: float
    event_id_col: str | None
    watermark: str
    on_batch: OnBatch | None
    prometheus_path: str
    metrics_table: bool

    def __post_init__(self) -> None:
        """Refuse options out of range."""
        if self.keep_versions < 1:
            raise ValueError(f"keepVersions must be at least 1, got {self.keep_versions}.")
        if not self.keep_days >= 0:
            raise ValueError(f"keepDays must be at least 0, got {self.keep_days}.")

    @property
    def keep_seconds(self) -> float:
        """Younger versions than so many seconds stay."""
        return self.keep_days * 86400.0

    def report(self) -> Report:
        """Who is told of a batch, whichever process learns it."""
        prometheus = self.prometheus_path and full_path(self.prometheus_path)
        return Report(self.on_batch, prometheus, self.metrics_table)
