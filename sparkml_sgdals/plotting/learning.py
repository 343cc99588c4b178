"""How learning went: errors by pass, a verdict, ranks by batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sparkml_sgdals.plotting.style import DASHES, GREY, INK, new_figure, open_axes

__all__ = ["plot_errors", "plot_passes", "plot_ranks"]


def plot_passes(rmse: Sequence[float], title: str = "") -> Figure:
    """Draw the training RMSE of a fit by sweep or pass, as `model.summary.rmse` has it.

    Parameters
    ----------
    rmse : Sequence[float]
        after each pass
    title : str
        above the picture; empty for none

    Raises
    ------
    ValueError
        no passes
    """
    if not len(rmse):
        raise ValueError("There are no passes to draw: this fit took no training RMSE.")
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    open_axes(axes)
    axes.plot(range(1, len(rmse) + 1), rmse, color=INK, linewidth=2, marker="o", markersize=4)
    axes.annotate(
        f"{rmse[-1]:.4f}", (len(rmse), rmse[-1]), xytext=(6, 0), textcoords="offset points",
        va="center", annotation_clip=False,
    )  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("pass over the ratings")
    axes.set_ylabel("training RMSE (units of the rating)")
    axes.set_title(title, loc="left")
    return figure


def plot_errors(
    errors: Mapping[str, float], title: str = "", measure: str = "RMSE (units of the rating)"
) -> Figure:
    """Draw errors beside each other as bars, the first one, which is ours, dark.

    Parameters
    ----------
    errors : Mapping[str, float]
        RMSEs by name, or what else is measured
    title : str
        above the picture; empty for none
    measure : str
        what the bars are, below them

    Raises
    ------
    ValueError
        one of them is not known
    """
    missing = [name for name, value in errors.items() if not np.isfinite(value)]
    if missing or not errors:
        raise ValueError(
            f"There is no error of {missing[0] if missing else 'anything'} to draw: nothing was "
            "predicted before it was learned. Give held-out ratings to diagnose."
        )
    figure = new_figure(6.4, 0.6 + 0.6 * len(errors))
    axes = figure.subplots()
    open_axes(axes)
    names = list(errors)
    places = range(len(names))[::-1]
    colors = [INK, *[GREY] * (len(names) - 1)]
    axes.barh(list(places), list(errors.values()), height=0.55, color=colors)
    axes.set_yticks(list(places), names)
    for place, value in zip(places, errors.values(), strict=True):
        axes.annotate(
            f"{value:.4f}", (value, place), xytext=(5, 0), textcoords="offset points", va="center",
            annotation_clip=False,
        )  # fmt: skip
    axes.set_xlim(0, 1.15 * max([*errors.values(), 1e-9]))
    axes.set_xlabel(measure)
    axes.set_title(title, loc="left")
    return figure


def plot_ranks(metrics: pd.DataFrame, title: str = "") -> Figure:
    """Draw the recall of a stream that ranks by what it has seen, beside that of popularity.

    Parameters
    ----------
    metrics : pd.DataFrame
        what `StreamJob.metrics` gives. Means over a tenth of the batches: single ones differ too
        much
    title : str
        above the picture; empty for none

    Raises
    ------
    ValueError
        nothing was ranked
    """
    ranked = metrics["ranked"].astype(float).fillna(0.0)
    if not ranked.sum():
        raise ValueError("No batch was ranked before it was learned: there is nothing to draw.")
    seen = metrics["ratings"].cumsum().to_numpy(dtype=float)
    window = max(1, len(metrics) // 10)
    figure = new_figure(8.0, 4.6)
    axes = figure.subplots()
    open_axes(axes)
    for column, label, color, dashes in (
        ("recall", "this model", INK, DASHES[0]),
        ("baselineRecall", "by popularity", GREY, DASHES[1]),
    ):
        found = (metrics[column].astype(float).fillna(0.0) * ranked).rolling(window, min_periods=1)
        share = found.sum() / ranked.rolling(window, min_periods=1).sum()
        axes.plot(seen, share, color=color, linewidth=2, linestyle=dashes, label=label)
    axes.set_xlim(0, float(seen[-1]))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("rows seen by the stream")
    axes.set_ylabel("share of items among the best, before learning")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.legend(frameon=False, loc="upper left")
    axes.set_title(title, loc="left")
    return figure
