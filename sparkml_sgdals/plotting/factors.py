"""Items in two dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox
from pyspark.sql import DataFrame

from sparkml_sgdals.plotting.style import INK, new_figure, open_axes

__all__ = ["plot_factors"]


class HasItems(Protocol):
    """A model with factors of items."""

    @property
    def itemFactors(self) -> DataFrame:  # noqa: N802
        """Columns id, features, bias."""
        ...


def plot_factors(
    model: HasItems, titles: Mapping[int | str, str], most: int = 40, title: str = ""
) -> Figure:
    """Draw items by the two directions in which features differ most, the clearest ones named.

    Parameters
    ----------
    model : HasItems
        a model with `itemFactors`
    titles : Mapping[int | str, str]
        names by item id; items without one are left unnamed
    most : int
        at most so many are named, those farthest from the middle first, none over another
    title : str
        above the picture; empty for none

    Raises
    ------
    ValueError
        fewer than three items, or no id of `titles` is an item
    """
    table = model.itemFactors.toPandas().sort_values("id", ignore_index=True)
    if len(table) < 3:
        raise ValueError(f"The model knows {len(table)} items: there is nothing to draw yet.")
    if not table["id"].isin(list(titles)).any():
        raise ValueError(
            f"No id of titles is an item of the model; its ids are such as {table['id'].iloc[0]!r}."
        )
    features = np.array(table["features"].to_list(), float)
    features -= features.mean(axis=0)
    # principal components; the sign that makes the largest loading positive, so that it is stable
    _, strength, axes_of = np.linalg.svd(features, full_matrices=False)
    flip = np.sign(axes_of[np.arange(len(axes_of)), np.abs(axes_of).argmax(axis=1)])
    places = (features @ (axes_of * flip[:, None]).T)[:, :2]
    share = strength[:2] ** 2 / np.sum(strength**2)
    bias = table["bias"].to_numpy(dtype=float)

    figure = new_figure(9.0, 6.4)
    axes = figure.subplots()
    open_axes(axes)
    # darker is better liked: a scale of lightness alone, light enough for names to stand on
    greys = LinearSegmentedColormap.from_list("greys", ["0.9", "0.45"])
    ends = np.quantile(bias, [0.02, 0.98])
    points = axes.scatter(
        places[:, 0], places[:, 1], c=bias, cmap=greys, s=10, linewidths=0,
        vmin=float(ends[0]), vmax=float(ends[1]),
    )  # fmt: skip
    bar = figure.colorbar(points, ax=axes, pad=0.01, shrink=0.7, extend="both")
    bar.set_label("bias: liked more or less than the mean (units of the rating)")
    axes.set_xlabel(f"first direction of the features ({share[0]:.0%} of their variance)")
    axes.set_ylabel(f"second direction ({share[1]:.0%})")
    axes.set_title(title, loc="left")
    axes.margins(0.14, 0.06)

    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    renderer = canvas.get_renderer()  # type: ignore[no-untyped-call]
    frame, taken, named = axes.get_window_extent(renderer), list[Bbox](), 0
    for row in np.argsort(-np.hypot(*places.T), kind="stable"):
        name = titles.get(table["id"].iloc[row])
        if name is None:
            continue
        # outwards, where there are fewer points
        left = bool(places[row, 0] < 0)
        words = axes.annotate(
            name, places[row], xytext=(-5 if left else 5, 2), textcoords="offset points",
            ha="right" if left else "left", fontsize=7.5, color=INK,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip
        box = words.get_window_extent(renderer)
        inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and box.y1 <= frame.y1
        if not inside or any(box.overlaps(other) for other in taken):
            words.remove()
            continue
        axes.plot(*places[row], "o", color=INK, markersize=3.5)
        taken.append(box)
        named += 1
        if named == most:
            break
    return figure
