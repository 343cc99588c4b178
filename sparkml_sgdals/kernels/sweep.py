"""Sweeps over a table: variational Bayes by coordinate ascent, side by side."""

from __future__ import annotations

import numpy as np

from sparkml_sgdals import _compiling as nb
from sparkml_sgdals.kernels.checks import FAST, MIN_VARIANCE
from sparkml_sgdals.kernels.lanes import last_columns, transpose_lanes, weigh_columns
from sparkml_sgdals.kernels.prefetch import AHEAD, prefetch_lines
from sparkml_sgdals.kernels.vectors import (
    LANES,
    fill,
    larger,
    load,
    load_first,
    store,
    store_first,
    summed,
)

__all__ = ["prior_spread", "sweep_ids"]


@nb.njit(cache=True, nogil=True, fastmath=FAST)
def sweep_ids(  # type: ignore[no-untyped-def]
    first,
    last,
    starts,
    partners,
    ratings,
    weights,
    mean,
    var,
    prior_mean,
    prior_var,
    partner_mean,
    partner_var,
    partner_steadiness,
    noise,
    lowest,
    square_errors,
    variances,
    relative_squares,
):
    """Update the posteriors of ids first..last-1 with their partners fixed (half a sweep).

    Mean-field variational Bayes by coordinate ascent, the bias first: equations (5) and (6).

    Parameters
    ----------
    first, last
        int64, the range of ids, `last` not included
    starts
        ndarray of int64, shape (ids + 1,): ratings of id x lie at starts[x]..starts[x+1]-1
    partners, ratings, weights
        shape (n,), in that order; partners are rows of the other side
    mean, var
        the side to learn, changed in place; an id without ratings is left as it is
    prior_mean, prior_var
        float32, each of shape (ids, rank + 1), or (1, rank + 1) for all
    partner_mean, partner_var
        the other side as `padded_rows`, read only
    partner_steadiness
        float32, shape (partners,), 1 / h, h being the noise of their ratings in units of s2; (0,)
        where nothing is learned of the ids' own
    noise
        float32, s2
    lowest
        float32, what no feature falls below, -inf for nothing; biases may
    square_errors, variances
        ndarray of float64, shape (ids,), out: for each id the weighted sums of e^2 and of V over
        its ratings after the update
    relative_squares
        ndarray of float64, shape (ids,), out, untouched without `partner_steadiness`: for each id
        the sum of (e^2 + V) / h over its ratings after the update; a rating of weight 0 counts s2

    Notes
    -----
    An id's result depends on its own ratings only, so ranges of ids may run on any threads.
    """
    width = mean.shape[1]
    wide = partner_mean.shape[1]
    weighted = weights.size > 0
    own_mean = prior_mean.shape[0] > 1
    own_var = prior_var.shape[0] > 1
    zero, one = np.float32(0.0), np.float32(1.0)
    longest = np.int64(0)
    for x in range(first, last):
        longest = max(longest, starts[x + 1] - starts[x])
    # the partners' means by column, each contiguous over the ratings of one id, then zeros up to a
    # whole vector; like the errors times the root of the rating's weight
    columns = np.empty(wide * (longest + 2 * LANES), np.float32)
    errors = np.empty(longest + LANES, np.float32)
    roots = np.empty(longest + LANES, np.float32)
    some = np.empty(LANES, np.int64)
    squares = np.zeros(wide, np.float32)
    partner_sums = np.empty(wide, np.float32)
    gains = np.empty(wide, np.float32)
    offsets = np.empty(wide, np.float32)
    least = fill(MIN_VARIANCE)
    noisy = partner_steadiness.size > 0
    room = longest + LANES if noisy else 0
    shares, relative = np.empty(room, np.float32), np.empty(room, np.float32)
    # sums over the ratings of one id, by the partners' noise: of squared means, and of variances
    steady_squares = np.empty(wide, np.float32)
    steady_sums = np.empty(wide, np.float32)
    left_out = 0

    for x in range(first, last):
        begin = starts[x]
        count = starts[x + 1] - begin
        square_errors[x] = 0.0
        variances[x] = 0.0
        if noisy:
            relative_squares[x] = np.float64(noise) * count
        if count == 0:
            continue
        # columns a power of two apart would share the same few lines of the cache
        stride = (count // LANES + 2) * LANES
        partner_sums[:] = zero
        weight_sum = np.float32(count)
        if weighted:
            weight_sum = zero
            # a loop that stores besides would add up in another order where arrays lie close by
            for t in range(count):
                weight_sum += weights[begin + t]
            if weight_sum <= zero:
                continue
            for t in range(count):
                roots[t] = np.sqrt(weights[begin + t])
        else:
            for t in range(count):
                roots[t] = one
        for t in range(count, (count + LANES - 1) // LANES * LANES):
            roots[t] = zero
        if noisy:
            steady_sums[:] = zero
            left_out = weigh_by_noise(
                shares, relative, partners, begin, count, weights, weighted, partner_steadiness
            )
        for t in range(count):
            if begin + t + AHEAD < partners.size:
                prefetch_lines(partner_mean, partners[begin + t + AHEAD])
                prefetch_lines(partner_var, partners[begin + t + AHEAD])
            weight = one
            if weighted:
                weight = weights[begin + t]
            row = np.int64(partners[begin + t]) * wide
            for f in range(0, wide, LANES):
                unsure = load(partner_sums, f) + weight * load(partner_var, row + f)
                store(partner_sums, f, unsure)
            if noisy:
                share = shares[t]
                for f in range(0, wide, LANES):
                    unsure = load(steady_sums, f) + share * load(partner_var, row + f)
                    store(steady_sums, f, unsure)
            if t % LANES == LANES - 1:
                for f in range(0, wide, LANES):
                    transpose_lanes(
                        columns, f * stride + t - (LANES - 1), stride, partner_mean, wide, f,
                        partners, begin + t - (LANES - 1),
                    )  # fmt: skip
        last_columns(columns, stride, partner_mean, partners, begin, count, some)
        weigh_columns(columns, stride, roots, width, count, weighted)

        bias = mean[x, 0]
        for t in range(0, count, LANES):
            root = load(roots, t)
            rated = load_first(ratings, begin + t, count - t)
            store(errors, t, root * (rated - bias) - load(columns, t))
            # the bias is a feature whose regressor is 1
            store(columns, t, root)
        squares[0] = weight_sum
        if noisy:
            steady_squares[0] = sum_relative_squares(relative, columns, 0, count)
        for f in range(1, width):
            m = mean[x, f]
            sums = fill(zero)
            for t in range(0, count, LANES):
                column = load(columns, f * stride + t)
                store(errors, t, load(errors, t) - m * column)
                sums += column * column
            squares[f] = summed(sums)
            if noisy:
                steady_squares[f] = sum_relative_squares(relative, columns, f * stride, count)

        p = x * width if own_mean else 0
        q = x * width if own_var else 0
        bias_spread = partner_sums[0]
        partner_sums[0] = zero
        for f in range(0, width, LANES):
            own, left = x * width + f, width - f
            pull, square = noise / load_first(prior_var, q + f, left), load(squares, f)
            inverse = one / (pull + square + load(partner_sums, f))
            prior = load_first(prior_mean, p + f, left)
            store(gains, f, inverse)
            store(offsets, f, square * load_first(mean, own, left) + pull * prior)
            store_first(var, own, left, larger(noise * inverse, least))
        change, last_column = zero, np.int64(0)
        for f in range(width):
            column = f * stride
            moments = fill(zero)
            for t in range(0, count, LANES):
                error = load(errors, t) - change * load(columns, last_column + t)
                store(errors, t, error)
                moments += load(columns, column + t) * error
            new = (summed(moments) + offsets[f]) * gains[f]
            if new < lowest and f > 0:
                new = lowest
            change = new - mean[x, f]
            last_column = column
            mean[x, f] = new

        sums = fill(zero)
        for t in range(0, count, LANES):
            error = load(errors, t) - change * load(columns, last_column + t)
            sums += error * error
        square_errors[x] = np.float64(summed(sums))
        sums = fill(zero)
        for f in range(0, width, LANES):
            left = width - f
            own, unsure = x * width + f, load(partner_sums, f)
            m, c = load_first(mean, own, left), load_first(var, own, left)
            sums += c * (load(squares, f) + unsure) + m * m * unsure
        variances[x] = np.float64(summed(sums) + bias_spread)
        if noisy:
            sums = fill(zero)
            for t in range(0, count, LANES):
                error = load(errors, t) - change * load(columns, last_column + t)
                sums += load(relative, t) * (error * error)
            # a partner's bias meets nothing
            unsure = steady_sums[0]
            steady_sums[0] = zero
            for f in range(0, width, LANES):
                own, left = x * width + f, width - f
                m, c = load_first(mean, own, left), load_first(var, own, left)
                spread = load(steady_sums, f)
                sums += c * (load_first(steady_squares, f, left) + spread) + m * m * spread
            total = summed(sums) + unsure
            relative_squares[x] = np.float64(total) + np.float64(noise) * left_out


@nb.njit(cache=True, nogil=True, inline="always")
def weigh_by_noise(  # type: ignore[no-untyped-def]
    shares, relative, partners, begin, count, weights, weighted, partner_steadiness
):
    """Put 1 / h of each partner in `shares`, and that by the rating's weight in `relative`.

    Parameters
    ----------
    shares, relative
        float32, out; `relative` is 0 up to the end of the last vector
    partners, weights
        those of the ratings at begin..begin+count-1
    begin, count
        int64
    weighted
        whether there are weights
    partner_steadiness
        float32, 1 / h

    Returns
    -------
    how many ratings have the weight 0: they have 0 in both
    """
    zero, one = np.float32(0.0), np.float32(1.0)
    left_out = 0
    for t in range(count):
        share = partner_steadiness[partners[begin + t]]
        shares[t] = share
        relative[t] = share
    if weighted:
        for t in range(count):
            weight = weights[begin + t]
            if weight <= zero:
                left_out += 1
                shares[t], weight = zero, one
            relative[t] = shares[t] / weight
    for t in range(count, (count + LANES - 1) // LANES * LANES):
        relative[t] = zero
    return left_out


@nb.njit(cache=True, nogil=True, inline="always")
def sum_relative_squares(relative, columns, at, count):  # type: ignore[no-untyped-def]
    """Sum of the squares of one of the columns, each times `relative`, float32.

    Parameters
    ----------
    relative
        float32, zeros from `count` to the end of the last vector
    columns
        float32, as flat: `count` values and whole vectors, from the place `at` on
    at, count
        int64
    """
    sums = fill(np.float32(0.0))
    for t in range(0, count, LANES):
        column = load(columns, at + t)
        sums += load(relative, t) * (column * column)
    return summed(sums)


@nb.njit(cache=True, nogil=True)
def prior_spread(mean, var, centre, rated, most):  # type: ignore[no-untyped-def]
    """Mean over the rated ids of (m - a)^2 + c, each at most `most`: the prior variances of (6).

    Parameters
    ----------
    mean, var
        float32, shape (ids, rank + 1)
    centre
        float32, of that shape, or (1, rank + 1) for all: prior means a
    rated
        bool, shape (ids,)
    most
        float32, shape (rank + 1,)

    Returns
    -------
    float64, shape (rank + 1,): NaN without a rated id
    """
    width = mean.shape[1]
    own = centre.shape[0] > 1
    sums = np.zeros(width)
    count = 0
    for x in range(mean.shape[0]):
        if not rated[x]:
            continue
        count += 1
        for f in range(width):
            apart = np.float64(mean[x, f]) - np.float64(centre[x if own else 0, f])
            square = apart * apart + np.float64(var[x, f])
            sums[f] += square if square <= most[f] or square != square else np.float64(most[f])
    return sums / np.float64(count) if count else np.full(width, np.nan)
