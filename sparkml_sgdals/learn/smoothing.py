"""Smoothing inside a micro-batch: a second look at its ratings once all of them are known.

The filter sees the ratings of a batch one by one, so the first ones were learned from partners
that were still unsure: algorithm.md, equations (12) and (13). Arrays in and out, no Spark.
"""

from __future__ import annotations

import os
from typing import Final

import numpy as np
import numpy.typing as npt

from sparkml_sgdals.arrays.ratings import Layout, Ratings, layout_by
from sparkml_sgdals.kernels.checks import check_reach
from sparkml_sgdals.kernels.lanes import padded_rows
from sparkml_sgdals.kernels.smoothing import smooth_ids
from sparkml_sgdals.learn.influences import concentration, moved_prior
from sparkml_sgdals.learn.solvers import over_ids
from sparkml_sgdals.state.factors import FactorRows
from sparkml_sgdals.state.settings import Settings

__all__ = ["smooth_batch", "smooth_new_users"]

F32 = npt.NDArray[np.float32]

_SWEEPS: Final = 2
_CONCENTRATED: Final = 20.0
"""Ratings that an id has in a batch at which the filter and the sweeps count the same."""
_LARGE: Final = 20_000
"""Ratings of a batch from which on threads are worth their start; they change no result."""
_THREADS: Final = 4


def smooth_batch(
    ratings: Ratings, values: F32, settings: Settings,
    filtered: tuple[FactorRows, FactorRows], before: tuple[FactorRows, FactorRows],
) -> None:  # fmt: skip
    """Sweep over a batch that was filtered, and move its means towards the result, in place.

    By g / (g + 20), g the `concentration` of the batch: where ratings come in random order the
    filter alone is as good. The filter's variances stay. A function of state and batch alone.

    Parameters
    ----------
    ratings : Ratings
        the batch, n ratings; their own values are not used
    values : F32
        float32, shape (n,), the ratings in standardised units
    settings : Settings
        of the model
    filtered, before : tuple[FactorRows, FactorRows]
        the ids of the batch, users and items, after the filter and before the batch; the means of
        `filtered` are changed in place
    """
    users, items = filtered
    user_prior, item_prior = (
        _prior(*side, settings) for side in zip(filtered, before, strict=True)
    )
    counts = users.mean.shape[0], items.mean.shape[0]
    by_user = layout_by(ratings.users, ratings.items, values, ratings.weights, counts[0])
    by_item = layout_by(ratings.items, ratings.users, values, ratings.weights, counts[1])
    swept_users, swept_items = padded_rows(users.mean, 1), padded_rows(items.mean, 1)
    unsure_users, unsure_items = padded_rows(users.var, 1), padded_rows(items.var, 1)
    for _ in range(_SWEEPS):
        _half(by_user, swept_users, user_prior, swept_items, unsure_items, settings)
        _half(by_item, swept_items, item_prior, swept_users, unsure_users, settings)
    crowd = concentration(ratings.users, ratings.items)
    share = np.float32(crowd / (crowd + _CONCENTRATED))
    for side, swept in ((users, swept_users), (items, swept_items)):
        ids, width = side.mean.shape
        side.mean += share * (swept[:ids, :width] - side.mean)


def smooth_new_users(
    layout: Layout, settings: Settings, mean: F32, prior: tuple[F32, F32], items: tuple[F32, F32]
) -> None:  # fmt: skip
    """Smooth users who were filtered with items held, each as if alone in a batch, in place.

    Parameters
    ----------
    layout : Layout
        their ratings by user, in standardised units
    settings : Settings
        of the model
    mean : F32
        float32, shape (users, rank + 1), after the filter
    prior : tuple[F32, F32]
        means and variances from before, of that shape, the means moved with what items say
    items : tuple[F32, F32]
        means and variances of items, as `padded_rows` with a spare one
    """
    with np.errstate(divide="ignore"):
        pull = np.float32(settings.noise) / prior[1]
    before = padded_rows(prior[0], 1), padded_rows(pull, 1)
    swept = padded_rows(mean, 1)
    for _ in range(_SWEEPS):
        _half(layout, swept, before, *items, settings)
    # all ratings of such a batch are of one user
    crowd = layout.counts().astype(np.float64)
    share = (crowd / (crowd + _CONCENTRATED)).astype(np.float32)[:, None]
    mean += share * (swept[: mean.shape[0], : mean.shape[1]] - mean)


def _prior(now: FactorRows, before: FactorRows, settings: Settings) -> tuple[F32, F32]:
    """Return the posteriors from before the batch, moved with their priors, as prior of its ids.

    Returns
    -------
    means, and the noise over the variances; both as `padded_rows` with a spare one
    """
    mean = before.mean
    if settings.draws_prior:
        mean = moved_prior(mean, before.var, before.drawn, now.drawn, settings)
    with np.errstate(divide="ignore"):
        pull = np.float32(settings.noise) / before.var
    return padded_rows(mean, 1), padded_rows(pull, 1)


def _half(
    layout: Layout, mean: F32, prior: tuple[F32, F32], partner_mean: F32, partner_var: F32,
    settings: Settings,
) -> None:  # fmt: skip
    check_reach(layout.reach, partner_mean.shape[0] - 1, "partner")

    def smooth(first: int, last: int) -> None:
        smooth_ids(
            first, last, layout.starts, layout.partners, layout.values, layout.weights, mean,
            *prior, partner_mean, partner_var, settings.rank + 1, np.float32(settings.noise),
            np.float32(settings.lowest),
        )  # fmt: skip

    threads = min(os.cpu_count() or 1, _THREADS) if layout.partners.size >= _LARGE else 1
    over_ids(smooth, layout, threads)
