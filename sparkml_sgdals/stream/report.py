"""What a stream tells of its batches: the table of metrics, a callback, a file for Prometheus.

The formulas stand in docs/metrics.md. Nothing here decides what is learned.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from sparkml_sgdals.store.objects import ObjectStore
from sparkml_sgdals.stream.metrics_table import ROW_SCHEMA, plain_row

__all__ = ["CLOCK_METRICS", "OnBatch", "Report", "prometheus_text"]

logger = logging.getLogger(__name__)

OnBatch = Callable[[dict[str, Any]], None]

CLOCK_METRICS: Final = (
    "committed", "seconds", "ratingsPerSecond", "collectSeconds", "learnSeconds",
)  # fmt: skip
"""Those of a clock, the only ones that differ where a stream is run again."""


_GAUGES: Final = {
    "batch": "Number of the newest batch.",
    "version": "Number of the newest version.",
    "ratings": "Ratings learned from the newest batch.",
    "invalid": "Rows of the newest batch set aside.",
    "outside": "Of these, rows whose rating or weight lies too far outside.",
    "newUsers": "Users that the newest batch named first.",
    "newItems": "Items that the newest batch named first.",
    "rmse": "RMSE of the newest batch before it was learned.",
    "baselineRmse": "The same of mean and biases.",
    "mae": "Mean absolute error of the newest batch before it was learned.",
    "baselineMae": "The same of mean and biases.",
    "logLikelihood": "Mean log-likelihood of a rating of the newest batch.",
    "within1": "Share of its ratings within one stated deviation.",
    "within2": "Share of its ratings within two stated deviations.",
    "ranked": "Events or ratings of the newest batch whose item was ranked before it was learned.",
    "recall": "Share of these whose item was among the best.",
    "mrr": "Mean of 1 / rank of these, 0 beyond the best.",
    "baselineRecall": "The same share for items ranked by popularity.",
    "baselineMrr": "The same mean for items ranked by popularity.",
    "uncounted": "Events of the newest batch that count for their user alone.",
    "filterShare": "How far the filter of events is believed, a fitted table having the rest.",
    "partnerShare": "How far what stands together is believed, other judges having the rest.",
    "validationRmse": "RMSE of the held-out ratings after the newest batch.",
    "seconds": "Seconds that the newest batch took up to its commit.",
}


@dataclass(frozen=True)
class Report:
    """Who is told of a batch, in the process that learns it.

    Attributes
    ----------
    on_batch : OnBatch | None
        called with the metrics of every batch once it is committed; what it raises is logged and no
        more. A kill between commit and call leaves the call out
    prometheus : str
        folder or URI of the file metrics.prom, replaced after every batch; "" for none
    table : bool
        whether each batch puts a row under metrics/ of the model path, for Spark to read
    """

    on_batch: OnBatch | None = None
    prometheus: str = ""
    table: bool = False

    def before_commit(self, store: ObjectStore, metrics: dict[str, Any]) -> None:
        """Put the row of a batch that is about to be committed; a replay puts it again."""
        if self.table:
            row = pa.Table.from_pylist([plain_row(metrics)], schema=ROW_SCHEMA)
            store.replace_table(f"metrics/{metrics['version']:012d}.parquet", row)

    def after_commit(self, metrics: dict[str, Any], learned: int) -> None:
        """Tell of a batch that is committed, after which the model has learned so many ratings."""
        try:
            if self.on_batch is not None:
                self.on_batch(dict(metrics))
            if self.prometheus:
                text = prometheus_text(metrics, learned)
                ObjectStore(self.prometheus).replace("metrics.prom", text.encode())
        except Exception:
            # the batch is learned and committed, whatever becomes of its news
            logger.exception("the report of batch %s failed", metrics["batch"])


def prometheus_text(metrics: dict[str, Any], learned: int) -> str:
    """Return the newest batch in Prometheus's text format, for node_exporter's textfile collector.

    Gauges of the batch, where known, and `sgdals_ratings_learned_total`, which `learned` is.
    """
    doc = "Ratings that the model has learned."
    lines = _exposed("sgdals_ratings_learned_total", "counter", doc, learned)
    for name, doc in _GAUGES.items():
        value = metrics.get(name)
        if value is not None:
            lines += _exposed(f"sgdals_{_snake(name)}", "gauge", doc, value)
    return "\n".join(lines) + "\n"


def _exposed(name: str, kind: str, doc: str, value: float) -> list[str]:
    return [f"# HELP {name} {doc}", f"# TYPE {name} {kind}", f"{name} {value!r}"]


def _snake(name: str) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name)
