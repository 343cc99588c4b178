"""How all pictures look."""

from __future__ import annotations

from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["DASHES", "GREY", "INK", "MARKERS", "new_figure", "open_axes", "place_labels"]

INK: Final = "#0b4f8a"
"""Dark enough to be black where there is no colour."""
GREY: Final = "#5a5a5a"
DASHES: Final[tuple[Any, ...]] = (
    "solid", (0, (6, 3)), (0, (2, 2)), (0, (8, 3, 1.5, 3)), (0, (1, 1.5)), (0, (10, 4)),
)  # fmt: skip
MARKERS: Final = "os^Dv*"


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, in inches; not of pyplot, so nothing has to be closed."""
    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def open_axes(axes: Axes) -> None:
    """Take away the lines above and at the right."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def place_labels(heights: list[float], gap: float) -> list[float]:
    """Heights moved up and down as little as needed, so that all lie `gap` apart.

    Equal ones share the space about their middle; the order stays.
    """
    order = sorted(range(len(heights)), key=heights.__getitem__)
    # each group: members, and the middle of their wishes less their places in it
    groups: list[tuple[list[int], float]] = []
    for index in order:
        members, start = [index], heights[index]
        while groups and groups[-1][1] + gap * len(groups[-1][0]) > start:
            before, first = groups.pop()
            total = first * len(before) + (start - gap * len(before)) * len(members)
            members = before + members
            start = total / len(members)
        groups.append((members, start))
    placed = [0.0] * len(heights)
    for members, start in groups:
        for place, index in enumerate(members):
            placed[index] = start + gap * place
    return placed
