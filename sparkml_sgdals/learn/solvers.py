"""The steps of learning over arrays: a filter pass, a descent, a half-sweep, with their checks.

Each arranges one kernel: types, threads, divergence. Runs on driver and executors, no Spark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from sparkml_sgdals.arrays.ratings import Layout
from sparkml_sgdals.arrays.strata import Strata
from sparkml_sgdals.arrays.threads import run_all, workers
from sparkml_sgdals.errors import DivergenceError
from sparkml_sgdals.kernels.checks import check_reach
from sparkml_sgdals.kernels.filter import filter_ratings
from sparkml_sgdals.kernels.lanes import padded_rows
from sparkml_sgdals.kernels.sgd import rating_gradients, sgd_ratings
from sparkml_sgdals.kernels.sweep import prior_spread, sweep_ids
from sparkml_sgdals.state.columns import bound_features
from sparkml_sgdals.state.settings import Settings

__all__ = [
    "EARLIEST_STOP",
    "CellFilter",
    "Side",
    "check_mini_batch",
    "filter_cells",
    "half_sweep",
    "id_ranges",
    "not_finite",
    "over_ids",
    "run_filter",
    "run_minibatches",
    "run_sgd",
    "settled",
    "sweeps_settled",
    "without_variance",
]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Rows = I32 | I64

EARLIEST_STOP: Final = 3
"""The first sweep after which learning may have settled."""
_MOST: Final = 1000.0
"""What one id adds to a prior variance, at most, in units of that from before."""
_CHUNKS_PER_THREAD: Final = 8
_DIVERGED: Final = 100.0
"""a mini-batch whose squared error is this many times the variance of its ratings has diverged"""


@dataclass
class Side:
    """Posteriors of one side during sweeps, and their priors: `sweep_ids` says the shapes."""

    mean: F32
    var: F32
    prior_mean: F32
    prior_var: F32
    lowest: float = -math.inf
    """what no feature falls below"""

    def bound(self, rows: I64 | slice = slice(None)) -> None:
        """Raise features of some ids that fell below the bound to it."""
        bound_features(self.mean, self.lowest, rows)

    def learn_prior(self, rated: npt.NDArray[np.bool_]) -> None:
        """Set the prior variance of each coordinate from the rated ids: algorithm.md (6)."""
        self.prior_var = self.spread(rated).astype(np.float32)[None, :]

    def spread(self, rated: npt.NDArray[np.bool_]) -> F64:
        """Return the prior variances that follow from the rated ids, shape (rank + 1,)."""
        # one id counts as so many usual ones at most
        most = (_MOST * self.prior_var[0]).astype(np.float32)
        found: F64 = prior_spread(self.mean, self.var, self.prior_mean, rated, most)
        return found


def over_ids(sweep: Callable[[int, int], None], layout: Layout, threads: int) -> None:
    """Call a sweep of ids first..last-1 for all ids, in ranges of about as many ratings each.

    Parameters
    ----------
    sweep : Callable[[int, int], None]
        of ids first to before last, which do not depend on each other
    layout : Layout
        ratings by the side that is swept
    threads : int
        at most so many at once; they change no result
    """
    ranges = threads * _CHUNKS_PER_THREAD if threads > 1 else 1
    run_all([partial(sweep, *some) for some in id_ranges(layout, ranges)], threads)


def id_ranges(layout: Layout, ranges: int) -> list[tuple[int, int]]:
    """Cut the ids of a layout into so many ranges, first to before last, of about equal ratings."""
    num_ids = layout.starts.size - 1
    shares = np.linspace(0, layout.partners.size, ranges + 1)
    bounds = np.minimum(np.searchsorted(layout.starts, shares[1:-1]), num_ids).tolist()
    return list(pairwise([0, *bounds, num_ids]))


def half_sweep(
    layout: Layout,
    side: Side,
    partner_mean: F32,
    partner_var: F32,
    noise: float,
    threads: int,
    shares: F64 | None = None,
    relative: tuple[F32, F64] | None = None,
) -> tuple[float, float]:
    """Sweep one side in place; the weighted sums of e^2 and of V over its ratings afterwards.

    With `shares`, shape (ids,), an id counts in these by its share. With `relative`, the noise of
    the partners in units of `noise`, float32, and room for one number an id, that is set to the
    sum of (e^2 + V) over it.
    """
    check_reach(layout.reach, partner_mean.shape[0], "partner")
    num_ids = side.mean.shape[0]
    partners = padded_rows(partner_mean), padded_rows(partner_var)
    square_errors = np.zeros(num_ids)
    variances = np.zeros(num_ids)
    noises, relative_squares = relative or (np.empty(0, np.float32), np.empty(0))
    if relative is not None and noises.size != partner_mean.shape[0]:
        raise ValueError(f"{noises.size} noises for {partner_mean.shape[0]} partners")
    steadiness = np.float32(1.0) / noises

    def sweep(first: int, last: int) -> None:
        sweep_ids(
            first, last, layout.starts, layout.partners, layout.values, layout.weights,
            side.mean, side.var, side.prior_mean, side.prior_var, *partners, steadiness,
            np.float32(noise), np.float32(side.lowest), square_errors, variances, relative_squares,
        )  # fmt: skip

    over_ids(sweep, layout, threads)
    if shares is not None:
        square_errors, variances = square_errors * shares, variances * shares
    return float(square_errors.sum()), float(variances.sum())


def settled(history: Sequence[float], tol: float) -> bool:
    """Whether the last pass changed a measure of the error by less than `tol` of it."""
    if tol <= 0.0 or len(history) < 2:
        return False
    return abs(history[-2] - history[-1]) < tol * history[-2]


def sweeps_settled(expected: Sequence[float], tol: float) -> bool:
    """Whether sweeps may end, by the expected square error of a rating after each: (16).

    The first sweep still has the prior variances that it was given; what changes from it to the
    second says nothing of what is to come.
    """
    return len(expected) >= EARLIEST_STOP and settled(expected, tol)


def run_filter(
    users: Rows, items: Rows, values: F32, weights: F32, settings: Settings,
    user_mean: F32, user_var: F32, item_mean: F32, item_var: F32,
) -> F32:  # fmt: skip
    """Filter ratings; errors from before each. DivergenceError where the variances are all 0."""
    errors = np.empty(values.size, np.float32)
    learned = filter_ratings(
        users.astype(np.int32, copy=False), items.astype(np.int32, copy=False), values, weights,
        user_mean, user_var, item_mean, item_var,
        np.float32(settings.noise), np.float32(settings.drift), np.float32(settings.lowest), errors,
    )  # fmt: skip
    if not learned:
        raise without_variance(settings)
    return errors


class CellFilter:
    """A model while it filters a table cell by cell: its factors lie in the order of the groups.

    Parameters
    ----------
    strata : Strata
        the table
    values : F32
        its ratings in standardised units, in the order of its cells
    settings : Settings
        of the model
    sides : tuple[Side, Side]
        users and items, whose means and variances `finish` changes
    """

    def __init__(
        self, strata: Strata, values: F32, settings: Settings, sides: tuple[Side, Side]
    ) -> None:
        self.strata, self.values, self.settings, self.sides = strata, values, settings, sides
        self.errors = np.empty(values.size, np.float32)
        orders = strata.user_order, strata.item_order
        self._factors = [
            array[rows]
            for side, rows in zip(sides, orders, strict=True)
            for array in (side.mean, side.var)
        ]

    def learn(self, cell: slice) -> None:
        """Filter the ratings of a cell."""
        users, items, weights = self.strata.cell(cell)
        self.errors[cell] = run_filter(
            users, items, self.values[cell], weights, self.settings, *self._factors
        )

    def finish(self) -> F32:
        """Give the sides what is learned; the errors from before each rating, by cell."""
        users, items = self.sides
        rows, columns = self.strata.user_order, self.strata.item_order
        users.mean[rows], users.var[rows], items.mean[columns], items.var[columns] = self._factors
        return self.errors


def filter_cells(strata: Strata, filters: Sequence[CellFilter], threads: int) -> list[F32]:
    """Let each filter learn a table, stratum by stratum; what their `finish` gives."""
    with workers(threads) as run:
        for cells in strata.strata():
            run([partial(one.learn, cell) for one in filters for cell in cells])
    return [one.finish() for one in filters]


def not_finite(settings: Settings) -> DivergenceError:
    """Return the error to raise where factors are not finite."""
    what = "ratings or weights" if settings.learns_events else "ratings"
    remedy = f"look for {what} of an absurd size."
    if settings.solver != "bayes":
        remedy = f"lower stepSize (now {settings.step_size}), or {remedy}"
    return DivergenceError(
        f"{settings.solver} left factors that are not finite. {remedy[0].upper()}{remedy[1:]}"
    )


def without_variance(settings: Settings) -> DivergenceError:
    """Return the error to raise where a rating's prediction and its noise have no variance left."""
    return DivergenceError(
        "The variances left the range of numbers: look for ratings of an absurd size, or raise "
        f"noiseVariance (now {settings.noise}), biasPriorVariance (now {settings.bias_prior}) or "
        f"factorPriorVariance (now {settings.factor_prior})."
    )


def run_sgd(
    users: Rows, items: Rows, values: F32, weights: F32, settings: Settings,
    user_mean: F32, item_mean: F32,
) -> F32:  # fmt: skip
    """Descend through ratings one by one; errors from before each."""
    errors = np.empty(values.size, np.float32)
    sgd_ratings(
        users.astype(np.int32, copy=False), items.astype(np.int32, copy=False), values, weights,
        user_mean, item_mean,
        np.float32(settings.step_size), np.array(settings.regs, np.float32),
        np.float32(settings.lowest), errors,
    )  # fmt: skip
    return errors


def run_minibatches(
    users: Rows, items: Rows, values: F32, weights: F32, settings: Settings,
    user_mean: F32, item_mean: F32,
) -> F32:  # fmt: skip
    """Mini-batches of `block_size` ratings, gradients summed by id and added once each."""
    errors = np.empty(values.size, np.float32)
    regs = np.array(settings.regs, np.float32)
    for start in range(0, values.size, settings.block_size):
        part = slice(start, start + settings.block_size)
        batch_users, batch_items = users[part], items[part]
        user_gradients, item_gradients, batch_errors = rating_gradients(
            values[part], weights[part], user_mean[batch_users], item_mean[batch_items], regs
        )
        errors[part] = batch_errors
        for rows, gradients, mean in (
            (batch_users, user_gradients, user_mean),
            (batch_items, item_gradients, item_mean),
        ):
            touched, position = np.unique(rows, return_inverse=True)
            sums = np.zeros((touched.size, mean.shape[1]))
            np.add.at(sums, position, gradients)
            mean[touched] += (settings.step_size * sums).astype(np.float32)
            bound_features(mean, settings.lowest, touched)
        # from after the step: where a stream's micro-batch is the only mini-batch, no next one
        # would see that this one overshot
        _, _, after = rating_gradients(
            values[part], weights[part], user_mean[batch_users], item_mean[batch_items], regs
        )
        square_ratings = float(np.sum(values[part].astype(np.float64) ** 2))
        check_mini_batch(float(after @ after), square_ratings, len(after), settings)
    return errors


def check_mini_batch(
    square_errors: float, square_ratings: float, count: int, settings: Settings
) -> None:
    """Raise DivergenceError where a mini-batch is predicted absurdly worse than by the mean.

    Parameters
    ----------
    square_errors, square_ratings : float
        sums over the mini-batch in standardised units, ratings about their mean
    count : int
        ratings in the mini-batch
    settings : Settings
        of the model, for the message
    """
    if not square_errors <= _DIVERGED * (square_ratings + count):
        raise DivergenceError(
            f"minibatch diverged: the root of the mean squared error of {count} ratings is "
            f"{math.sqrt(square_errors / count) if square_errors >= 0 else square_errors:.3g}. "
            "Summed gradients of a user or item with many ratings in one mini-batch overshoot: "
            f"lower stepSize (now {settings.step_size}) or blockSize (now {settings.block_size}), "
            "or take solver='sgd' or 'bayes'."
        )
