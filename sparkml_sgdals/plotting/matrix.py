"""The film of a full matrix of ratings: alternating least squares beside a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image

from sparkml_sgdals.plotting.style import new_figure

__all__ = ["MatrixStep", "plot_matrix", "save_film"]

_LIGHT: Final = "cividis"
"""Its lightness grows with the rating, so that it is read without colour as well."""


@dataclass(frozen=True)
class MatrixStep:
    """What a method predicts at one step.

    Attributes
    ----------
    label : str
        such as "iteration 3" or "batch 3: 2,700 ratings"
    matrix : npt.NDArray[np.float32]
        predicted ratings, shape (users, items); NaN where there is none
    rmse : float
        on the ratings that were held out, in units of the rating
    """

    label: str
    matrix: npt.NDArray[np.float32]
    rmse: float


def plot_matrix(
    truth: npt.NDArray[np.float32],
    als: Sequence[MatrixStep],
    stream: Sequence[MatrixStep],
    frames: Sequence[int],
    limits: tuple[float, float] = (1.0, 5.0),
) -> Figure:
    """Draw frames side by side: alternating least squares above, the stream below, ratings last.

    Parameters
    ----------
    truth : npt.NDArray[np.float32]
        all ratings, shape (users, items)
    als, stream : Sequence[MatrixStep]
        steps of each; frame n shows step n, or the last one
    frames : Sequence[int]
        which frames, from 0
    limits : tuple[float, float]
        darkest and lightest rating

    Raises
    ------
    ValueError
        no frames or steps, or a matrix of another shape
    """
    _check(truth, als, stream)
    if not frames:
        raise ValueError("frames is empty: name at least one frame.")
    columns = len(frames) + 1
    figure = new_figure(1.9 * columns + 0.8, 4.9)
    grid = figure.subplots(2, columns, squeeze=False)
    image: AxesImage | None = None
    for row, (name, steps) in enumerate((("ALS", als), ("our stream", stream))):
        for column, frame in enumerate(frames):
            step = steps[min(frame, len(steps) - 1)]
            image = _show(grid[row, column], step.matrix, f"{step.label}\nRMSE {step.rmse:.3f}",
                          limits)  # fmt: skip
        grid[row, 0].set_ylabel(f"{name}\nusers")
    for axes in grid[1]:
        axes.set_xlabel("items", fontsize=8)
    image = _show(grid[0, -1], truth, "the ratings", limits)
    grid[1, -1].axis("off")
    bar = figure.colorbar(image, ax=grid[:, -1].tolist(), shrink=0.6, pad=0.03)
    bar.set_label("rating (stars)")
    return figure


def save_film(
    file: str | Path,
    truth: npt.NDArray[np.float32],
    als: Sequence[MatrixStep],
    stream: Sequence[MatrixStep],
    limits: tuple[float, float] = (1.0, 5.0),
    seconds: float = 0.6,
    last_seconds: float = 4.0,
    colours: int = 32,
) -> int:
    """Write the film as an animated GIF or PNG (by the name) and return the number of frames.

    Parameters as in `plot_matrix`; `seconds` a frame, `last_seconds` for the last one.

    Raises
    ------
    ValueError
        no steps, a matrix of another shape, or another kind of file
    """
    _check(truth, als, stream)
    kind = Path(file).suffix.lower()
    if kind not in (".gif", ".png"):
        raise ValueError(f"{file} must end in .gif or .png.")
    figure = new_figure(9.4, 3.9)
    left, middle, right = figure.subplots(1, 3)
    _show(middle, truth, "", limits)
    images = [_show(axes, truth, "", limits) for axes in (left, right)]
    bar = figure.colorbar(images[1], ax=[left, middle, right], shrink=0.8, pad=0.01)
    bar.set_label("rating (stars)")
    for axes in (left, middle, right):
        axes.set_xlabel("items")
    left.set_ylabel("users")
    middle.set_title("all ratings, as they are\n", fontsize=11)
    canvas = FigureCanvasAgg(figure)
    pictures: list[Image.Image] = []
    count = max(len(als), len(stream))
    for number in range(count):
        for axes, shown, name, steps in (
            (left, images[0], "Spark's ALS", als),
            (right, images[1], "our stream", stream),
        ):
            step = steps[min(number, len(steps) - 1)]
            shown.set_data(step.matrix)
            axes.set_title(
                f"{name}, {step.label}\nheld-out RMSE {step.rmse:.3f} stars", fontsize=11
            )
        canvas.draw()  # type: ignore[no-untyped-call]
        if number == 0:
            # the places of the first frame, or the panels would tremble
            figure.set_layout_engine("none")
        pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
        pictures.append(Image.fromarray(pixels[..., :3]))
    palette = pictures[-1].quantize(colours, method=Image.Quantize.MEDIANCUT)
    few = [one.quantize(palette=palette, dither=Image.Dither.NONE) for one in pictures]
    durations = [round(1000 * seconds)] * (count - 1) + [round(1000 * last_seconds)]
    few[0].save(
        file, save_all=True, append_images=few[1:], duration=durations, loop=0, optimize=True
    )
    return count


def _check(
    truth: npt.NDArray[np.float32], als: Sequence[MatrixStep], stream: Sequence[MatrixStep]
) -> None:
    for name, steps in (("als", als), ("stream", stream)):
        if not steps:
            raise ValueError(f"{name} has no steps.")
        for step in steps:
            if step.matrix.shape != truth.shape:
                raise ValueError(
                    f"{name}, {step.label}: shape {step.matrix.shape}, the ratings have "
                    f"{truth.shape}."
                )


def _show(
    axes: Axes, matrix: npt.NDArray[np.float32], title: str, limits: tuple[float, float]
) -> AxesImage:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_facecolor("white")
    axes.set_title(title, fontsize=8.5)
    return axes.imshow(matrix, cmap=_LIGHT, vmin=limits[0], vmax=limits[1], interpolation="nearest")
