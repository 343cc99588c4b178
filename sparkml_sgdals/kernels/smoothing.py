"""Smooth a micro-batch: sweeps over ids with few ratings side by side, or one by one."""

from __future__ import annotations

from typing import Final

import numpy as np

from sparkml_sgdals import _compiling as nb
from sparkml_sgdals.kernels.checks import FAST
from sparkml_sgdals.kernels.lanes import transpose_lanes
from sparkml_sgdals.kernels.prefetch import AHEAD, prefetch_lines
from sparkml_sgdals.kernels.vectors import LANES, fill, larger, load, square_root, store

__all__ = ["smooth_ids"]


_FEW: Final = 64
"""Ratings up to which an id is learned side by side with others."""
_WIDE: Final = 32
"""How many ids side by side, a multiple of `LANES`."""


@nb.njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def smooth_ids(  # type: ignore[no-untyped-def]
    first, last, starts, partners, ratings, weights, mean, prior_mean, pull, partner_mean,
    partner_var, width, noise, lowest,
):  # fmt: skip
    """`sweep_ids` for means alone, a rating counting for less where its partner is unsure: (12).

    Parameters
    ----------
    first, last, starts, partners, ratings, weights, noise, lowest
        as in `sweep_ids`
    mean
        changed in place; an id without ratings is left as it is
    prior_mean, pull
        of the same ids; pull is the noise over the prior variance
    partner_mean, partner_var
        of the partners; all these as `padded_rows` with a spare one
    width
        rank + 1

    Notes
    -----
    An id's result depends on its own ratings only, so ranges of ids may run on any threads.
    """
    places = np.zeros(_FEW + 2, np.int64)
    for x in range(first, last):
        count = starts[x + 1] - starts[x]
        if 0 < count <= _FEW:
            places[count + 1] += 1
    places = np.cumsum(places)
    few = np.empty(places[-1], np.int64)
    for x in range(first, last):
        count = starts[x + 1] - starts[x]
        if 0 < count <= _FEW:
            few[places[count]] = x
            places[count] += 1
        elif count > _FEW:
            smooth_many(
                x, starts, partners, ratings, weights, mean, prior_mean, pull, partner_mean,
                partner_var, width, noise, lowest,
            )  # fmt: skip
    if few.size:
        smooth_few(
            few, starts, partners, ratings, weights, mean, prior_mean, pull, partner_mean,
            partner_var, width, noise, lowest,
        )  # fmt: skip


# inlined: a copy of its own, optimised by itself, would be run in the process that compiled it only
@nb.njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy", inline="always")
def smooth_few(  # type: ignore[no-untyped-def]
    ids, starts, partners, ratings, weights, mean, prior_mean, pull, partner_mean, partner_var,
    width, noise, lowest,
):  # fmt: skip
    """`smooth_ids` of ids with few ratings each, some at a time, a lane an id.

    One coordinate waits for the other, so an id alone would leave most of a processor idle.

    Parameters
    ----------
    ids
        int64, in order of their numbers of ratings, each at least 1
    starts, partners, ratings, weights, noise, lowest
        as in `sweep_ids`
    mean, prior_mean, pull, partner_mean, partner_var, width
        as in `smooth_ids`; `mean` is changed in place

    Notes
    -----
    Where an id has fewer ratings than others beside it, it has the spare row, with weight 0.
    """
    one, zero = np.float32(1.0), np.float32(0.0)
    wide = mean.shape[1]
    weighted = weights.size > 0
    longest = starts[ids[-1] + 1] - starts[ids[-1]]
    rows = np.empty(_WIDE, np.int64)
    truth, wt = np.empty(_WIDE, np.float32), np.empty(_WIDE, np.float32)
    taken = np.empty(_WIDE, np.int64)
    # by rating, then by coordinate, then by id; times the root of the rating's weight
    regressors = np.empty(longest * wide * _WIDE, np.float32)
    errors = np.empty(longest * _WIDE, np.float32)
    # by coordinate, then by id
    own, unsure = np.empty(wide * _WIDE, np.float32), np.empty(wide * _WIDE, np.float32)
    squares, partner_sums = np.empty(wide * _WIDE, np.float32), np.empty(wide * _WIDE, np.float32)
    gains, moments = np.empty(wide * _WIDE, np.float32), np.empty(wide * _WIDE, np.float32)
    for begin in range(0, ids.size, _WIDE):
        some = ids[begin : begin + _WIDE]
        count = starts[some[-1] + 1] - starts[some[-1]]
        for n in range(_WIDE):
            taken[n] = some[n] if n < some.size else mean.shape[0] - 1
        for f in range(0, wide, LANES):
            for n in range(0, _WIDE, LANES):
                to = f * _WIDE + n
                transpose_lanes(own, to, _WIDE, mean, wide, f, taken, n)
                transpose_lanes(moments, to, _WIDE, prior_mean, wide, f, taken, n)
                transpose_lanes(gains, to, _WIDE, pull, wide, f, taken, n)
        for n in range(own.size):
            squares[n] = zero
            partner_sums[n] = zero
        for t in range(count):
            at = t * wide * _WIDE
            for n in range(_WIDE):
                rows[n] = partner_mean.shape[0] - 1
                truth[n] = zero
                wt[n] = zero
                if n < some.size and starts[some[n]] + t < starts[some[n] + 1]:
                    place = starts[some[n]] + t
                    rows[n] = partners[place]
                    prefetch_lines(partner_mean, partners[place])
                    prefetch_lines(partner_var, partners[place])
                    truth[n] = ratings[place]
                    wt[n] = weights[place] if weighted else one
            for f in range(0, wide, LANES):
                for n in range(0, _WIDE, LANES):
                    to = f * _WIDE + n
                    transpose_lanes(regressors, at + to, _WIDE, partner_mean, wide, f, rows, n)
                    transpose_lanes(unsure, to, _WIDE, partner_var, wide, f, rows, n)
            for n in range(0, _WIDE, LANES):
                prediction = load(own, n) + load(regressors, at + n)
                spread = load(unsure, n)
                for f in range(1, width):
                    to = f * _WIDE + n
                    mine = load(own, to)
                    prediction += mine * load(regressors, at + to)
                    spread += mine * mine * load(unsure, to)
                weight = load(wt, n)
                weight = noise * weight / (noise + weight * spread)
                root = square_root(weight)
                store(errors, t * _WIDE + n, root * (load(truth, n) - prediction))
                # the bias is a feature whose regressor is 1, with variance 0
                store(regressors, at + n, root)
                store(squares, n, load(squares, n) + weight)
                for f in range(1, width):
                    to = f * _WIDE + n
                    regressor = root * load(regressors, at + to)
                    store(regressors, at + to, regressor)
                    store(squares, to, load(squares, to) + regressor * regressor)
                    store(partner_sums, to, load(partner_sums, to) + load(unsure, to) * weight)
        for n in range(0, own.size, LANES):
            gain, spread, mine = load(gains, n), load(partner_sums, n), load(own, n)
            store(moments, n, gain * (load(moments, n) - mine) - spread * mine)
            store(gains, n, one / (gain + load(squares, n) + spread))
        for f in range(width):
            # biases may be below
            low = fill(lowest if f > 0 else -np.float32(np.inf))
            for n in range(0, _WIDE, LANES):
                to = f * _WIDE + n
                moment = load(moments, to)
                for t in range(count):
                    regressor = load(regressors, t * wide * _WIDE + to)
                    moment += regressor * load(errors, t * _WIDE + n)
                mine = load(own, to)
                step = larger(load(gains, to) * moment, low - mine)
                store(own, to, mine + step)
                for t in range(count):
                    change = load(regressors, t * wide * _WIDE + to) * step
                    store(errors, t * _WIDE + n, load(errors, t * _WIDE + n) - change)
        for n in range(some.size):
            if squares[n] > zero:
                for f in range(width):
                    mean[some[n], f] = own[f * _WIDE + n]


@nb.njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy", inline="always")
def smooth_many(  # type: ignore[no-untyped-def]
    x, starts, partners, ratings, weights, mean, prior_mean, pull, partner_mean, partner_var,
    width, noise, lowest,
):  # fmt: skip
    """`smooth_ids` of one id."""
    one = np.float32(1.0)
    weighted = weights.size > 0
    begin = starts[x]
    count = starts[x + 1] - begin
    regressors = np.empty((count, width), np.float32)
    errors, wt = np.empty(count, np.float32), np.empty(count, np.float32)
    m, m2 = np.empty(width, np.float32), np.empty(width, np.float32)
    squares, partner_sums = np.zeros(width, np.float32), np.zeros(width, np.float32)
    for f in range(width):
        m[f] = mean[x, f]
        m2[f] = m[f] * m[f]
    bias = m[0]
    # the bias is a feature whose regressor is 1, with variance 0
    m2[0] = one
    for t in range(count):
        if begin + t + AHEAD < partners.size:
            prefetch_lines(partner_mean, partners[begin + t + AHEAD])
            prefetch_lines(partner_var, partners[begin + t + AHEAD])
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
        return
    for f in range(width):
        moment = pull[x, f] * (prior_mean[x, f] - m[f]) - partner_sums[f] * m[f]
        for t in range(count):
            moment += wt[t] * regressors[t, f] * errors[t]
        change = moment / (pull[x, f] + squares[f] + partner_sums[f])
        if change < lowest - m[f] and f > 0:
            change = lowest - m[f]
        for t in range(count):
            errors[t] -= change * regressors[t, f]
        mean[x, f] = m[f] + change
