"""The table of a stream's batches, as `StreamJob.metrics` gives it."""

from __future__ import annotations

from html import escape
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa

from sparkml_sgdals.learn.prequential import faded_means, window_means

__all__ = ["METRICS", "ROW_SCHEMA", "MetricsFrame", "metrics_frame", "plain_row"]

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
    "outside", "faults", "late", "filterShare", "partnerShare",
    "forgottenUsers", "uncounted",
)  # fmt: skip
"""Columns of `StreamJob.metrics`; errors are from before the batch was learned."""
_READ_FIRST: Final = (
    "batch", "committed", "ratings", "invalid", "newUsers", "newItems",
    "rmse", "baselineRmse", "validationRmse", "seconds",
)  # fmt: skip
"""What people look for first, of a stream of ratings and, with ranks for errors, of events."""
_OF_EVENTS: Final = {"rmse": "recall", "baselineRmse": "baselineRecall", "validationRmse": "mrr"}
_MEANS: Final = {"Rmse": "judged", "Mae": "judged", "Recall": "ranked", "Mrr": "ranked"}
"""What is told over several batches, and the column of what it is a mean over."""
_WHOLE: Final = ("batch", "version", "ratings", "invalid", "zeroWeight", "newUsers", "newItems")
_COUNTS: Final = (
    "judged", "users", "items", "ranked", "outside", "forgottenUsers", "uncounted",
)  # fmt: skip
_TEXTS: Final = ("committed", "faults")
ROW_SCHEMA: Final = pa.schema(
    [
        (
            name,
            pa.int64()
            if name in (*_WHOLE, *_COUNTS)
            else pa.string()
            if name in _TEXTS
            else pa.float64(),
        )
        for name in METRICS
        if not name.startswith(("window", "fading", "late"))
    ]
)


class MetricsFrame(pd.DataFrame):
    """All columns METRICS, of which it shows those that are read first."""

    @property
    def _constructor(self) -> type[MetricsFrame]:
        return MetricsFrame

    @property
    def read_first(self) -> pd.DataFrame | None:
        """The columns that are read first; None where some are not there, or there are no more."""
        there = set(map(str, self.columns))
        if not there > {*_READ_FIRST, *_OF_EVENTS.values(), "ranked"}:
            return None
        ranked = bool(self["ranked"].fillna(0).astype(float).sum())
        judged = bool(self["rmse"].notna().any())
        if judged or not ranked:
            return pd.DataFrame(self)[list(_READ_FIRST)]
        names = [_OF_EVENTS.get(name, name) for name in _READ_FIRST]
        # of how few the shares are: a first batch of sessions has hardly a user known before
        names.insert(names.index("recall"), "ranked")
        return pd.DataFrame(self)[names].astype({"ranked": "Int64"})

    def _more(self, shown: pd.DataFrame) -> str:
        return f"{len(self.columns) - len(shown.columns)} more columns: metrics(all=True)"

    def __repr__(self) -> str:
        """Return the columns that are read first, each in full, and how to see the others."""
        shown = self.read_first
        if shown is None:
            return super().__repr__()
        return f"{shown.to_string(max_rows=pd.get_option('display.max_rows'))}\n{self._more(shown)}"

    def _repr_html_(self) -> str | None:
        shown = self.read_first
        if shown is None:
            found: str | None = pd.DataFrame(self)._repr_html_()  # type: ignore[operator]
            return found
        return f"{shown._repr_html_()}<p>{escape(self._more(shown))}</p>"  # type: ignore[operator]


def metrics_frame(
    rows: list[dict[str, Any]], window: int = 10_000, fading: float = 0.9999
) -> pd.DataFrame:
    """Return the committed metrics of batches as a table, with what follows from several of them.

    Parameters
    ----------
    rows : list[dict[str, Any]]
        of each batch in order, as committed; older releases know less of a batch
    window : int
        ratings that a sliding window holds at least
    fading : float
        what a rating counts when the next one comes, above 0 and at most 1

    Raises
    ------
    ValueError
        window or fading out of range
    """
    if window < 1:
        raise ValueError(f"window must be at least 1 rating, got {window}.")
    if not 0.0 < fading <= 1.0:
        raise ValueError(f"fading must be above 0 and at most 1, got {fading}.")
    frame = pd.DataFrame([plain_row(row) for row in rows], columns=list(METRICS))
    frame["committed"] = pd.to_datetime(frame["committed"], format="ISO8601", utc=True)
    numbers = [name for name in METRICS if name not in (*_WHOLE, *_TEXTS)]
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


def plain_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a committed row with the shares that follow from it alone."""
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
