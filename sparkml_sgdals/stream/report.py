"""What a stream tells of its batches: the table of metrics, a callback, a file for Prometheus.

The formulas stand in docs/metrics.md. Nothing here decides what is learned.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa

from sparkml_sgdals.learn.prequential import faded_means, window_means
from sparkml_sgdals.store.objects import ObjectStore

__all__ = ["CLOCK_METRICS", "METRICS", "OnBatch", "Report", "metrics_frame", "prometheus_text"]

logger = logging.getLogger(__name__)

OnBatch = Callable[[dict[str, Any]], None]

METRICS: Final = (
    "batch", "version", "committed", "ratings", "invalid", "zeroWeight", "newUsers", "newItems",
    "rmse", "baselineRmse", "validationRmse", "seconds",
    "judged", "mae", "baselineMae", "logLikelihood", "within1", "within2",
    "users", "items", "newUserShare", "newItemShare",
    "windowRmse", "windowMae", "windowBaselineRmse", "windowBaselineMae",
    "fadingRmse", "fadingMae", "fadingBaselineRmse", "fadingBaselineMae",
    "ratingsPerSecond", "collectSeconds", "learnSeconds",
    "ranked", "recall", "mrr", "baselineRecall", "baselineMrr",
    "windowRecall", "windowMrr", "windowBaselineRecall", "windowBaselineMrr",
    "fadingRecall", "fadingMrr", "fadingBaselineRecall", "fadingBaselineMrr",
)  # fmt: skip
"""Columns of `StreamJob.metrics`; errors are from before the batch was learned."""
CLOCK_METRICS: Final = (
    "committed", "seconds", "ratingsPerSecond", "collectSeconds", "learnSeconds",
)  # fmt: skip
"""Those of a clock, the only ones that differ where a stream is run again."""

_MEANS: Final = {"Rmse": "judged", "Mae": "judged", "Recall": "ranked", "Mrr": "ranked"}
"""What is told over several batches, and the column of what it is a mean over."""
_WHOLE: Final = ("batch", "version", "ratings", "invalid", "zeroWeight", "newUsers", "newItems")

_GAUGES: Final = {
    "batch": "Number of the newest batch.",
    "version": "Number of the newest version.",
    "ratings": "Ratings learned from the newest batch.",
    "invalid": "Rows of the newest batch set aside.",
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
    "validationRmse": "RMSE of the held-out ratings after the newest batch.",
    "seconds": "Seconds that the newest batch took up to its commit.",
}


@dataclass(frozen=True)
class Report:
    """Who is told of a batch, in the process that learns it.

    Attributes
    ----------
    on_batch : called with the metrics of every batch once it is committed; what it raises is
        logged and no more. A kill between commit and call leaves the call out
    prometheus : folder or URI of the file metrics.prom, replaced after every batch; "" for none
    table : whether each batch puts a row under metrics/ of the model path, for Spark to read
    """

    on_batch: OnBatch | None = None
    prometheus: str = ""
    table: bool = False

    def before_commit(self, store: ObjectStore, metrics: dict[str, Any]) -> None:
        """Put the row of a batch that is about to be committed; a replay puts it again."""
        if self.table:
            row = pa.Table.from_pylist([_plain(metrics)], schema=_ROW)
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


_ROW: Final = pa.schema(
    [
        (
            name,
            pa.int64()
            if name in (*_WHOLE, "judged", "users", "items", "ranked")
            else pa.string()
            if name == "committed"
            else pa.float64(),
        )
        for name in METRICS
        if not name.startswith(("window", "fading"))
    ]
)


def metrics_frame(
    rows: list[dict[str, Any]], window: int = 10_000, fading: float = 0.9999
) -> pd.DataFrame:
    """The committed metrics of batches as a table, with what follows from several of them.

    Parameters
    ----------
    rows : of each batch in order, as committed; older releases know less of a batch
    window : ratings that a sliding window holds at least
    fading : what a rating counts when the next one comes, above 0 and at most 1

    Raises
    ------
    ValueError : window or fading out of range
    """
    if window < 1:
        raise ValueError(f"window must be at least 1 rating, got {window}.")
    if not 0.0 < fading <= 1.0:
        raise ValueError(f"fading must be above 0 and at most 1, got {fading}.")
    frame = pd.DataFrame([_plain(row) for row in rows], columns=list(METRICS))
    frame["committed"] = pd.to_datetime(frame["committed"])
    numbers = [name for name in METRICS if name not in (*_WHOLE, "committed")]
    frame[numbers] = frame[numbers].astype(float)
    for source in ("", "Baseline"):
        for suffix, over_what in _MEANS.items():
            counts = frame[over_what].fillna(0).to_numpy().astype(np.int64)
            column = f"baseline{suffix}" if source else suffix.lower()
            means = frame[column].to_numpy()
            known = np.where(np.isnan(means), 0, counts)
            means = np.nan_to_num(means)
            sums = (means**2 if suffix == "Rmse" else means) * known
            for kind, over in (
                ("window", window_means(sums, known, window)),
                ("fading", faded_means(sums, known, fading)),
            ):
                value = np.sqrt(over) if suffix == "Rmse" else over
                frame[f"{kind}{source}{suffix}"] = value
    return frame


def prometheus_text(metrics: dict[str, Any], learned: int) -> str:
    """The newest batch in Prometheus's text format, as node_exporter's textfile collector reads it.

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


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A committed row with the shares that follow from it alone."""
    full: dict[str, Any] = {name: row.get(name) for name in METRICS}
    if full["judged"] is None and full["rmse"] is not None:
        # of a release that did not write it: a batch was judged as a whole or not at all
        full["judged"] = full["ratings"]
    for new, of, share in (
        ("newUsers", "users", "newUserShare"), ("newItems", "items", "newItemShare"),
        ("ratings", "seconds", "ratingsPerSecond"),
    ):  # fmt: skip
        full[share] = full[new] / full[of] if full[of] else None
    return full
