"""Stated against real error, by tenths of the stated one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparkml_sgdals.plotting.style import new_figure

__all__ = ["calibration_table", "plot_calibration"]


def calibration_table(std: npt.ArrayLike, error: npt.ArrayLike, groups: int = 10) -> pd.DataFrame:
    """Group held-out ratings by their stated deviation, in groups of equal size.

    Parameters
    ----------
    std : npt.ArrayLike
        stated standard deviations (predictionStdCol), shape (n,)
    error : npt.ArrayLike
        rating less prediction, shape (n,)
    groups : int
        how many groups; their sizes differ by one at most

    Returns
    -------
    group (from 1), ratings, stated, real (root mean squares, units of the rating), ratio

    Raises
    ------
    ValueError
        shapes differ, a value is not finite, or fewer ratings than groups
    """
    stated, apart = np.asarray(std, float), np.asarray(error, float)
    if stated.shape != apart.shape or stated.ndim != 1:
        raise ValueError(f"std and error must be alike, got {stated.shape} and {apart.shape}.")
    if stated.size < groups:
        raise ValueError(f"{stated.size} ratings cannot be cut into {groups} groups.")
    if not (np.isfinite(stated).all() and np.isfinite(apart).all()):
        raise ValueError("std or error holds a value that is not finite: leave such rows out.")
    parts = np.array_split(np.argsort(stated, kind="stable"), groups)
    frame = pd.DataFrame(
        {
            "group": np.arange(1, groups + 1),
            "ratings": [part.size for part in parts],
            "stated": [float(np.sqrt(np.mean(stated[part] ** 2))) for part in parts],
            "real": [float(np.sqrt(np.mean(apart[part] ** 2))) for part in parts],
        }
    )
    frame["ratio"] = frame["real"] / frame["stated"]
    return frame


def plot_calibration(
    std: npt.ArrayLike, error: npt.ArrayLike, title: str = "", axes: Axes | None = None
) -> Figure:
    """Real against stated error by tenths; on the dashed line both are the same.

    Parameters as in `calibration_table`; `axes` to draw into, by default those of a new figure.
    """
    table = calibration_table(std, error)
    stated, real = table["stated"].to_numpy(), table["real"].to_numpy()
    figure = new_figure(4.8, 4.4) if axes is None else None
    if axes is None:
        assert figure is not None
        axes = figure.subplots()
    ends = (0.9 * min(stated.min(), real.min()), 1.08 * max(stated.max(), real.max()))
    within = [0.85 * e for e in ends], [1.15 * e for e in ends]
    axes.fill_between(ends, *within, color="0.9", label="within 15%")
    axes.plot(ends, ends, "--", color="0.4", linewidth=1, label="as stated")
    axes.plot(stated, real, "o-", color="black", label="tenths of the ratings")
    axes.set(title=title, xlim=ends, ylim=ends)
    axes.set_xlabel("stated standard deviation (units of the rating)")
    axes.set_ylabel("real error, RMSE (units of the rating)")
    axes.legend(frameon=False, loc="upper left")
    found = axes.get_figure(root=True)
    assert found is not None
    return found
