"""Smoothing inside a micro-batch: a second look at its ratings once all of them are known.

The filter sees the ratings of a batch one by one, so the first ones were learned from partners
that were still unsure: algorithm.md, equations (12) and (13). Arrays in and out, no Spark.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numba as nb
import numpy as np
import numpy.typing as npt

from sparkml_sgdals.factors import FactorTable
from sparkml_sgdals.implicit import concentration, moved_prior
from sparkml_sgdals.kernels import FAST, check_rows
from sparkml_sgdals.ratings import Layout, Ratings, layout_by
from sparkml_sgdals.settings import Settings
from sparkml_sgdals.solvers import Side, half_sweep

__all__ = ["Before", "discounted_weights", "smooth_batch"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

_SWEEPS: Final = 2
_CONCENTRATED: Final = 20.0
"""Ratings that an id has in a batch at which the filter and the sweeps count the same."""


@dataclass(frozen=True)
class Before:
    """The posteriors of a batch's ids of one side before the batch, a row an id."""

    rows: I64
    mean: F32
    var: F32
    prior_mean: F32

    @classmethod
    def of(cls, table: FactorTable, rows: I64) -> Before:
        """Copies of these rows."""
        return cls(rows, table.mean[rows], table.var[rows], table.prior_mean[rows])

    def side(self, table: FactorTable, settings: Settings) -> Side:
        """The filtered posteriors, with those from before, moved with their priors, as prior."""
        prior = self.mean
        if settings.implicit:
            now = table.prior_mean[self.rows]
            prior = moved_prior(prior, self.var, self.prior_mean, now, settings)
        return Side(table.mean[self.rows], table.var[self.rows], prior, self.var)


def smooth_batch(
    ratings: Ratings, values: F32, settings: Settings,
    tables: tuple[FactorTable, FactorTable], before: tuple[Before, Before],
) -> None:  # fmt: skip
    """Sweep over a batch that was filtered, and move its means towards the result, in place.

    By g / (g + 20), g the `concentration` of the batch: where ratings come in random order the
    filter alone is as good. The filter's variances stay. A function of state and batch alone.

    Parameters
    ----------
    values : float32, shape (n,), the ratings in standardised units
    tables, before : users and items
    """
    noise = settings.noise
    sides = [kept.side(table, settings) for kept, table in zip(before, tables, strict=True)]
    filtered = [(side.mean.copy(), side.var.copy()) for side in sides]
    users, items = sides
    (_, user_var), (_, item_var) = filtered
    count = len(before[0].rows), len(before[1].rows)
    by_user = layout_by(ratings.users, ratings.items, values, ratings.weights, count[0])
    by_item = layout_by(ratings.items, ratings.users, values, ratings.weights, count[1])
    for _ in range(_SWEEPS):
        _half(by_user, users, items.mean, item_var, noise)
        _half(by_item, items, users.mean, user_var, noise)
    crowd = concentration(ratings.users, ratings.items)
    share = np.float32(crowd / (crowd + _CONCENTRATED))
    for table, kept, side, (mean, _) in zip(tables, before, sides, filtered, strict=True):
        table.mean[kept.rows] = mean + share * (side.mean - mean)


def _half(layout: Layout, side: Side, partner_mean: F32, partner_var: F32, noise: float) -> None:
    check_rows(layout.partners, partner_mean.shape[0], "partner")
    weights = np.empty(layout.partners.size, np.float32)
    discounted_weights(
        layout.starts, layout.partners, layout.weights, side.mean, partner_var, np.float32(noise),
        weights,
    )  # fmt: skip
    half_sweep(replace(layout, weights=weights), side, partner_mean, partner_var, noise, 1)


@nb.njit(cache=True, nogil=True, fastmath=FAST)
def discounted_weights(  # type: ignore[no-untyped-def]
    starts, partners, weights, mean, partner_var, noise, discounted
):
    """Weights that count a rating for less where its partner is unsure: equation (12).

    Parameters
    ----------
    starts, partners, weights : a layout, as in `sweep_ids`
    mean : float32, shape (ids, rank + 1), the side to learn
    partner_var : float32, shape (partners, rank + 1)
    noise : float32, s2
    discounted : ndarray of float32, shape (n,), out
    """
    weighted = weights.size > 0
    for x in range(starts.size - 1):
        for t in range(starts[x], starts[x + 1]):
            y = partners[t]
            w = np.float32(1.0)
            if weighted:
                w = weights[t]
            spread = partner_var[y, 0]
            for f in range(1, mean.shape[1]):
                spread += partner_var[y, f] * mean[x, f] * mean[x, f]
            discounted[t] = w * noise / (noise + w * spread)
