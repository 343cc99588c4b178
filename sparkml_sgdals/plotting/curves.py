"""RMSE of a stream by ratings seen, and candidates of a race by batch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sparkml_sgdals.plotting.style import (
    DASHES,
    GREY,
    INK,
    MARKERS,
    new_figure,
    open_axes,
    place_labels,
)

__all__ = ["plot_race", "plot_stream"]


def plot_stream(
    metrics: pd.DataFrame, batch: Mapping[str, float] | None = None, title: str = ""
) -> Figure:
    """Draw the RMSE of a stream by the ratings it has seen.

    Parameters
    ----------
    metrics : pd.DataFrame
        what `StreamJob.metrics` gives; held-out RMSE is drawn where there is some. RMSE before
        learning is a mean over a tenth of the batches: single ones differ too much
    batch : Mapping[str, float] | None
        RMSEs to compare with, by name, such as that of a fit of all ratings at once: lines across
    title : str
        above the picture; empty for none

    Raises
    ------
    ValueError
        no batches, or a column is missing
    """
    _need(metrics, ("ratings", "rmse", "validationRmse"))
    seen = metrics["ratings"].cumsum().to_numpy(dtype=float)
    window = max(1, len(metrics) // 10)
    before = _rolling(metrics, window)
    held_out = metrics["validationRmse"].to_numpy(dtype=float)
    has_held_out = bool(np.isfinite(held_out).any())
    main = held_out if has_held_out else before
    if not np.isfinite(main).any():
        raise ValueError("No batch was predicted before it was learned: there is no RMSE to draw.")
    figure = new_figure(8.0, 4.6)
    axes = figure.subplots()
    open_axes(axes)
    earlier = "before learning" + (f", mean of {window} batches" if window > 1 else " each batch")
    label = "held-out, after each batch" if has_held_out else earlier
    if has_held_out:
        axes.plot(
            seen, before, color=GREY, linewidth=0.9, linestyle=(0, (2, 2)),
            label=earlier,
        )  # fmt: skip
    axes.plot(seen, main, color=INK, linewidth=2, marker="o", markersize=3.2, label=label)
    last = float(main[np.isfinite(main)][-1])
    ends = {f"stream: {last:.4f}": last}
    for number, (name, value) in enumerate((batch or {}).items(), 1):
        axes.axhline(value, color="black", linewidth=1.4, linestyle=DASHES[number % len(DASHES)])
        ends[f"{name}: {value:.4f}"] = value
    # the first batches, which know almost nothing, must not flatten what follows
    drawn = np.concatenate([main, before, list(ends.values())])
    finite = drawn[np.isfinite(drawn)]
    low = float(finite.min())
    span = max(float(np.quantile(finite, 0.9)) - low, 0.02)
    high = min(float(finite.max()), low + 2.5 * span)
    axes.set_ylim(low - 0.1 * (high - low), high + 0.06 * (high - low))
    axes.set_xlim(0, float(seen[-1]))
    _end_labels(axes, ends)
    axes.set_xlabel("ratings seen by the stream")
    axes.set_ylabel("RMSE (units of the rating)")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.legend(frameon=False, loc="upper right")
    axes.set_title(title, loc="left")
    return figure


def plot_race(race: pd.DataFrame, title: str = "") -> Figure:
    """Draw the loss of each candidate by batch; those that were dropped end in a cross.

    Parameters
    ----------
    race : pd.DataFrame
        candidate, batch, loss (RMSE in units of the rating), dropped_at (batch, missing for those
        that stay); a row a candidate and batch
    title : str
        above the picture; empty for none

    Raises
    ------
    ValueError
        no rows, or a column is missing
    """
    _need(race, ("candidate", "batch", "loss", "dropped_at"))
    figure = new_figure(8.0, 4.6)
    axes = figure.subplots()
    open_axes(axes)
    ends: dict[str, float] = {}
    widest = float(race["batch"].max())
    for number, (name, candidate) in enumerate(race.groupby("candidate", sort=False)):
        dropped = candidate["dropped_at"].dropna()
        stays = dropped.empty
        last = np.inf if stays else float(dropped.iloc[0])
        rows = candidate[candidate["batch"] <= last].sort_values("batch")
        axes.plot(
            rows["batch"], rows["loss"], color=INK if stays else GREY,
            linewidth=2.0 if stays else 1.2, linestyle=DASHES[number % len(DASHES)],
            marker=MARKERS[number % len(MARKERS)], markersize=4,
            markevery=max(1, len(rows) // 8),
        )  # fmt: skip
        at, loss = float(rows["batch"].iloc[-1]), float(rows["loss"].iloc[-1])
        if stays:
            ends[f"{name}: {loss:.4f}"] = loss
        else:
            axes.plot(at, loss, marker="x", color="black", markersize=9, markeredgewidth=2)
            axes.annotate(
                f"{name}, dropped", (at, loss), xytext=(6, 6), textcoords="offset points",
                color=GREY,
            )  # fmt: skip
    axes.set_xlim(float(race["batch"].min()), widest)
    _end_labels(axes, ends)
    axes.set_xlabel("micro-batch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("loss: RMSE before learning (units of the rating)")
    axes.set_title(title, loc="left")
    return figure


def _end_labels(axes: Axes, ends: Mapping[str, float]) -> None:
    """Name lines at the right edge, none over another."""
    low, high = axes.get_ylim()
    heights = [min(max(value, low), high) for value in ends.values()]
    for name, value in zip(ends, place_labels(heights, 0.05 * (high - low)), strict=True):
        axes.annotate(
            name, (1.01, value), xycoords=("axes fraction", "data"), va="center",
            annotation_clip=False,
        )  # fmt: skip


def _rolling(metrics: pd.DataFrame, window: int) -> npt.NDArray[np.float64]:
    """RMSE before learning of `window` batches together, weighted by their ratings."""
    rmse = metrics["rmse"].astype(float)
    weight = metrics["ratings"].astype(float).where(rmse.notna())
    squares = (weight * rmse**2).rolling(window, min_periods=1).sum()
    mean = (squares / weight.rolling(window, min_periods=1).sum()).where(rmse.notna())
    found: npt.NDArray[np.float64] = np.sqrt(mean.to_numpy(dtype=float))
    return found


def _need(frame: pd.DataFrame, columns: tuple[str, ...]) -> None:
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise ValueError(
            f"The table has no column {missing[0]!r}; it has {', '.join(map(str, frame.columns))}."
        )
    if frame.empty:
        raise ValueError("The table has no rows: nothing has been learned yet.")
