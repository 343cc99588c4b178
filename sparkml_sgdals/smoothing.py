"""Smoothing inside a micro-batch: a second look at its ratings once all of them are known.

The filter sees the ratings of a batch one by one, so the first ones were learned from partners
that were still unsure: algorithm.md, equations (12) and (13). Arrays in and out, no Spark.
"""

from __future__ import annotations

import os
from typing import Final

import numba as nb
import numpy as np
import numpy.typing as npt

from sparkml_sgdals.factors import FactorRows
from sparkml_sgdals.implicit import concentration, moved_prior
from sparkml_sgdals.kernels import FAST, check_rows
from sparkml_sgdals.prefetch import AHEAD, prefetch_row
from sparkml_sgdals.ratings import Layout, Ratings, layout_by
from sparkml_sgdals.settings import Settings
from sparkml_sgdals.solvers import over_ids

__all__ = ["smooth_batch", "smooth_ids"]

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
    values : float32, shape (n,), the ratings in standardised units
    filtered, before : the ids of the batch, users and items, after the filter and before the batch
    """
    users, items = filtered
    swept_users, swept_items = users.mean.copy(), items.mean.copy()
    priors = [_prior(*side, settings) for side in zip(filtered, before, strict=True)]
    counts = users.mean.shape[0], items.mean.shape[0]
    by_user = layout_by(ratings.users, ratings.items, values, ratings.weights, counts[0])
    by_item = layout_by(ratings.items, ratings.users, values, ratings.weights, counts[1])
    for _ in range(_SWEEPS):
        _half(by_user, swept_users, *priors[0], swept_items, items.var, settings.noise)
        _half(by_item, swept_items, *priors[1], swept_users, users.var, settings.noise)
    crowd = concentration(ratings.users, ratings.items)
    share = np.float32(crowd / (crowd + _CONCENTRATED))
    users.mean += share * (swept_users - users.mean)
    items.mean += share * (swept_items - items.mean)


def _prior(now: FactorRows, before: FactorRows, settings: Settings) -> tuple[F32, F32]:
    """The posteriors from before the batch, moved with their priors, as prior of its ids."""
    if not settings.implicit:
        return before.mean, before.var
    moved = moved_prior(before.mean, before.var, before.prior_mean, now.prior_mean, settings)
    return moved, before.var


def _half(
    layout: Layout, mean: F32, prior_mean: F32, prior_var: F32, partner_mean: F32,
    partner_var: F32, noise: float,
) -> None:  # fmt: skip
    check_rows(layout.partners, partner_mean.shape[0], "partner")

    def smooth(first: int, last: int) -> None:
        smooth_ids(
            first, last, layout.starts, layout.partners, layout.values, layout.weights, mean,
            prior_mean, prior_var, partner_mean, partner_var, np.float32(noise),
        )  # fmt: skip

    threads = min(os.cpu_count() or 1, _THREADS) if layout.partners.size >= _LARGE else 1
    over_ids(smooth, layout, threads)


@nb.njit(cache=True, nogil=True, fastmath=FAST)
def smooth_ids(  # type: ignore[no-untyped-def]
    first, last, starts, partners, ratings, weights, mean, prior_mean, prior_var,
    partner_mean, partner_var, noise,
):  # fmt: skip
    """`sweep_ids` for means alone, a rating counting for less where its partner is unsure: (12).

    Parameters
    ----------
    first, last, starts, partners, ratings, weights, partner_mean, noise : as in `sweep_ids`
    mean : float32, shape (ids, rank + 1), changed in place; an id without ratings is left as it is
    prior_mean, prior_var : float32, shape (ids, rank + 1)
    partner_var : float32, shape (partners, rank + 1)
    """
    width = mean.shape[1]
    one = np.float32(1.0)
    weighted = weights.size > 0
    longest = np.int64(0)
    for x in range(first, last):
        longest = max(longest, starts[x + 1] - starts[x])
    regressors = np.empty((longest, width), np.float32)
    errors = np.empty(longest, np.float32)
    wt = np.empty(longest, np.float32)
    m, m2 = np.empty(width, np.float32), np.empty(width, np.float32)
    squares, partner_sums = np.empty(width, np.float32), np.empty(width, np.float32)
    gains, offsets = np.empty(width, np.float32), np.empty(width, np.float32)
    passed = np.empty(width, np.float32)
    for x in range(first, last):
        begin = starts[x]
        count = starts[x + 1] - begin
        if count == 0:
            continue
        for f in range(width):
            m[f] = mean[x, f]
            m2[f] = m[f] * m[f]
            squares[f] = np.float32(0.0)
            partner_sums[f] = np.float32(0.0)
        bias = m[0]
        # the bias is a feature whose regressor is 1, with variance 0
        m2[0] = one
        for t in range(count):
            if begin + t + AHEAD < partners.size:
                prefetch_row(partner_mean, partners[begin + t + AHEAD])
                prefetch_row(partner_var, partners[begin + t + AHEAD])
            y = partners[begin + t]
            pm, pv, row = partner_mean[y], partner_var[y], regressors[t]
            prediction = np.float32(0.0)
            spread = np.float32(0.0)
            for f in range(width):
                prediction += m[f] * pm[f]
                spread += m2[f] * pv[f]
            partner_bias = pm[0]
            prediction += bias + partner_bias - bias * partner_bias
            w = one
            if weighted:
                w = weights[begin + t]
            w = w * noise / (noise + w * spread)
            wt[t] = w
            errors[t] = ratings[begin + t] - prediction
            for f in range(width):
                row[f] = pm[f]
                squares[f] += w * pm[f] * pm[f]
                partner_sums[f] += w * pv[f]
            row[0] = one
            squares[0] += w - w * partner_bias * partner_bias
        partner_sums[0] = np.float32(0.0)
        if squares[0] <= np.float32(0.0):
            continue
        for f in range(width):
            pull = noise / prior_var[x, f]
            gains[f] = one / (pull + squares[f] + partner_sums[f])
            offsets[f] = pull * (prior_mean[x, f] - m[f]) - partner_sums[f] * m[f]
        if count == 1:
            # most ids: coordinate by coordinate the error is e <- e (1 - g w p^2) - g p offset,
            # so all but that one chain can be computed side by side
            w = wt[0]
            row = regressors[0]
            for f in range(width):
                passed[f] = one - gains[f] * w * row[f] * row[f]
                offsets[f] *= gains[f]
                gains[f] *= w * row[f]
            error = errors[0]
            for f in range(width):
                squares[f] = error
                error = passed[f] * error - row[f] * offsets[f]
            for f in range(width):
                mean[x, f] = m[f] + gains[f] * squares[f] + offsets[f]
        else:
            for f in range(width):
                moment = offsets[f]
                for t in range(count):
                    moment += wt[t] * regressors[t, f] * errors[t]
                change = gains[f] * moment
                for t in range(count):
                    errors[t] -= change * regressors[t, f]
                mean[x, f] = m[f] + change
