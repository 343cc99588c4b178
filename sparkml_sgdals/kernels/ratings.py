"""The arithmetic of learning and predicting: arrays in, arrays out, compiled, nothing of Spark.

Shapes and types used throughout: `users` and `items` are int32 rows into the factor arrays of
their side; `ratings` and `weights` are float32; `mean` and `var` are C-contiguous float32 of
shape (ids, rank + 1), column 0 the bias and the others the features. `weights` of size 0 stands
for all ones. Factor arrays are changed in place.

Callers check that every index fits (`check_rows`): inside a kernel there are no bounds.
The equations are those of docs/algorithm.md, numbered there.
"""

from __future__ import annotations

from typing import Final

import numba as nb
import numpy as np
import numpy.typing as npt

from sparkml_sgdals.kernels.lanes import transpose_lanes
from sparkml_sgdals.kernels.prefetch import AHEAD, prefetch_lines, prefetch_row
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

__all__ = [
    "FAST",
    "MIN_VARIANCE",
    "check_rows",
    "clipped_squares",
    "compare_features",
    "filter_ratings",
    "move_rows",
    "predict_rows",
    "rating_gradients",
    "sgd_ratings",
    "standardise",
    "sweep_ids",
]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]

FAST: Final = {"reassoc", "contract", "arcp", "nsz"}
"""Sums may be reordered for vector units, but NaN and infinity keep their meaning: divergence must
stay visible. Such a kernel calls no other that is not inlined: see tests/unit/test_compiling.py."""
MIN_VARIANCE: Final = np.float32(1e-9)
"""Keeps a variance positive where float32 rounds c - c^2 P^2 / S to zero or just below."""


def check_rows(rows: npt.NDArray[np.integer], size: int, side: str) -> None:
    """Raise IndexError unless every row lies in 0..size-1: a kernel would corrupt memory."""
    if rows.size and (int(rows.min()) < 0 or int(rows.max()) >= size):
        raise IndexError(
            f"{side} rows reach from {rows.min()} to {rows.max()}, the factors have {size}"
        )


@nb.njit(cache=True, nogil=True, error_model="numpy")
def standardise(ratings, mean, spread):  # type: ignore[no-untyped-def]
    """Ratings in units of the spread about the mean: float32 of a difference in float64."""
    units = np.empty(ratings.size, np.float32)
    for n in range(ratings.size):
        units[n] = np.float32((np.float64(ratings[n]) - mean) / spread)
    return units


@nb.njit(cache=True, nogil=True, fastmath=FAST)
def clipped_squares(ratings, errors, spread, low, high):  # type: ignore[no-untyped-def]
    """Sum of squared errors of predictions clipped to low..high, in units of the ratings.

    Parameters
    ----------
    ratings, errors : float32, shape (n,); errors in standardised units, rating minus prediction
    spread, low, high : float64
    """
    total = np.float64(0.0)
    for n in range(ratings.size):
        truth = np.float64(ratings[n])
        prediction = min(max(truth - spread * np.float64(errors[n]), low), high)
        total += (truth - prediction) ** 2
    return total


@nb.njit(cache=True, nogil=True, fastmath=FAST, inline="always")
def compare_features(x, y, user_mean, user_var, item_mean, item_var):  # type: ignore[no-untyped-def]
    """U . P of user row x and item row y, int64, and its variance without the product of both.

    Returns
    -------
    two float32: the sum over the features of um im, and that of uv im^2 + iv um^2
    """
    width = user_mean.shape[1]
    products, spreads = fill(np.float32(0.0)), fill(np.float32(0.0))
    for f in range(1, width, LANES):
        user, item, count = x * width + f, y * width + f, width - f
        um, uv = load_first(user_mean, user, count), load_first(user_var, user, count)
        im, iv = load_first(item_mean, item, count), load_first(item_var, item, count)
        products += um * im
        spreads += uv * im * im + iv * um * um
    return summed(products), summed(spreads)


@nb.njit(cache=True, nogil=True, fastmath=FAST, inline="always")
def move_rows(x, y, error, inverse, drift, user_mean, user_var, item_mean, item_var):  # type: ignore[no-untyped-def]
    """Move the posteriors of user row x and item row y, int64, by one rating, in place: (4).

    Parameters
    ----------
    error, inverse : float32, rating minus prediction, and 1 / (its variance, noise included)
    """
    width = user_mean.shape[1]
    gain = error * inverse
    for mean, var, row in ((user_mean, user_var, x), (item_mean, item_var, y)):
        c = var[row, 0]
        mean[row, 0] += c * gain
        var[row, 0] = max(c - c * c * inverse, MIN_VARIANCE) + drift
    least = fill(MIN_VARIANCE)
    for f in range(1, width, LANES):
        user, item, count = x * width + f, y * width + f, width - f
        um, uv = load_first(user_mean, user, count), load_first(user_var, user, count)
        im, iv = load_first(item_mean, item, count), load_first(item_var, item, count)
        a, b = uv * im, iv * um
        store_first(user_mean, user, count, um + a * gain)
        store_first(item_mean, item, count, im + b * gain)
        store_first(user_var, user, count, larger(uv - a * a * inverse, least) + drift)
        store_first(item_var, item, count, larger(iv - b * b * inverse, least) + drift)


@nb.njit(cache=True, nogil=True, fastmath=FAST)
def filter_ratings(  # type: ignore[no-untyped-def]
    users, items, ratings, weights, user_mean, user_var, item_mean, item_var, noise, drift, errors
):
    """Learn one rating after another by a diagonal extended Kalman filter.

    Parameters
    ----------
    users, items, ratings, weights : arrays of shape (n,), in the order of learning
    user_mean, user_var, item_mean, item_var : changed in place
    noise : float32, s2 in units of the standardised rating
    drift : float32, variance added to every coordinate that a rating touches
    errors : ndarray of float32, shape (n,), out: rating minus prediction from before learning it

    Notes
    -----
    A rating of weight 0 is predicted and not learned. With S linearised in the posterior
    variances (no product c_x c_y): algorithm.md, equation (4).
    """
    weighted = weights.size > 0
    for n in range(users.size):
        if n + AHEAD < users.size:
            prefetch_row(user_mean, users[n + AHEAD])
            prefetch_row(item_mean, items[n + AHEAD])
            prefetch_row(user_var, users[n + AHEAD])
            prefetch_row(item_var, items[n + AHEAD])
        x = np.int64(users[n])
        y = np.int64(items[n])
        product, spread = compare_features(x, y, user_mean, user_var, item_mean, item_var)
        error = ratings[n] - (user_mean[x, 0] + item_mean[y, 0] + product)
        errors[n] = error
        weight = np.float32(1.0)
        if weighted:
            weight = weights[n]
            if weight <= np.float32(0.0):
                continue
        spread += user_var[x, 0] + item_var[y, 0]
        inverse = np.float32(1.0) / (spread + noise / weight)
        move_rows(x, y, error, inverse, drift, user_mean, user_var, item_mean, item_var)


@nb.njit(cache=True, nogil=True, fastmath=FAST)
def sgd_ratings(  # type: ignore[no-untyped-def]
    users, items, ratings, weights, user_mean, item_mean, step, regs, errors
):
    """Learn one rating after another by stochastic gradient descent: equations (1) and (2).

    Parameters
    ----------
    step : float32, the step size; a rating of weight w takes a step of w times its size
    regs : ndarray of float32, shape (4,): lambda of user bias, item bias, user factor, item factor
    errors : ndarray of float32, shape (n,), out: rating minus prediction from before learning it
    """
    width = user_mean.shape[1]
    weighted = weights.size > 0
    for n in range(users.size):
        if n + AHEAD < users.size:
            prefetch_row(user_mean, users[n + AHEAD])
            prefetch_row(item_mean, items[n + AHEAD])
        x = users[n]
        y = items[n]
        prediction = user_mean[x, 0] + item_mean[y, 0]
        for f in range(1, width):
            prediction += user_mean[x, f] * item_mean[y, f]
        error = ratings[n] - prediction
        errors[n] = error
        g = step
        if weighted:
            g = step * weights[n]
        user_mean[x, 0] += g * (error - regs[0] * user_mean[x, 0])
        item_mean[y, 0] += g * (error - regs[1] * item_mean[y, 0])
        for f in range(1, width):
            um = user_mean[x, f]
            im = item_mean[y, f]
            user_mean[x, f] = um + g * (error * im - regs[2] * um)
            item_mean[y, f] = im + g * (error * um - regs[3] * im)


def rating_gradients(
    ratings: F32, weights: F32, user_mean: F32, item_mean: F32, regs: F32
) -> tuple[F64, F64, F64]:
    """Gradients of a mini-batch, all against the factors given: equations (1) and (2) unsummed.

    Parameters
    ----------
    ratings, weights : shape (n,); weights of size 0 for all ones
    user_mean, item_mean : shape (n, rank + 1), the factors of each rating's user and item
    regs : shape (4,), as in `sgd_ratings`

    Returns
    -------
    user_gradients, item_gradients : ndarray of float64, shape (n, rank + 1)
    errors : ndarray of float64, shape (n,)
    """
    um = user_mean.astype(np.float64)
    im = item_mean.astype(np.float64)
    errors = ratings - um[:, 0] - im[:, 0] - np.einsum("nf,nf->n", um[:, 1:], im[:, 1:])
    user_gradients = errors[:, None] * np.insert(im[:, 1:], 0, 1.0, axis=1)
    item_gradients = errors[:, None] * np.insert(um[:, 1:], 0, 1.0, axis=1)
    user_gradients -= np.insert(np.full(um.shape[1] - 1, regs[2]), 0, regs[0]) * um
    item_gradients -= np.insert(np.full(im.shape[1] - 1, regs[3]), 0, regs[1]) * im
    if weights.size:
        user_gradients *= weights[:, None]
        item_gradients *= weights[:, None]
    return user_gradients, item_gradients, errors


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
    noise,
    square_errors,
    variances,
):
    """Update the posteriors of ids first..last-1 with their partners fixed (half a sweep).

    Mean-field variational Bayes by coordinate ascent, the bias first: equations (5) and (6).

    Parameters
    ----------
    starts : ndarray of int64, shape (ids + 1,): ratings of id x lie at starts[x]..starts[x+1]-1
    partners, ratings, weights : shape (n,), in that order; partners are rows of the other side
    mean, var : the side to learn, changed in place; an id without ratings is left as it is
    prior_mean, prior_var : float32, each of shape (ids, rank + 1), or (1, rank + 1) for all
    partner_mean, partner_var : the other side as `padded_rows`, read only
    noise : float32, s2
    square_errors, variances : ndarray of float64, shape (ids,), out: for each id the weighted
        sums of e^2 and of V over its ratings after the update

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

    for x in range(first, last):
        begin = starts[x]
        count = starts[x + 1] - begin
        square_errors[x] = 0.0
        variances[x] = 0.0
        if count == 0:
            continue
        # columns a power of two apart would share the same few lines of the cache
        stride = (count // LANES + 2) * LANES
        partner_sums[:] = zero
        weight_sum = np.float32(count)
        if weighted:
            weight_sum = zero
            for t in range(count):
                weight_sum += weights[begin + t]
                roots[t] = np.sqrt(weights[begin + t])
            if weight_sum <= zero:
                continue
        else:
            for t in range(count):
                roots[t] = one
        for t in range(count, (count + LANES - 1) // LANES * LANES):
            roots[t] = zero
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
            if t % LANES == LANES - 1:
                for f in range(0, wide, LANES):
                    transpose_lanes(
                        columns, f * stride + t - (LANES - 1), stride, partner_mean, wide, f,
                        partners, begin + t - (LANES - 1),
                    )  # fmt: skip
        rest = count % LANES
        if rest:
            for n in range(LANES):
                some[n] = partners[begin + count - rest + (n if n < rest else 0)]
            for f in range(0, wide, LANES):
                transpose_lanes(
                    columns, f * stride + count - rest, stride, partner_mean, wide, f, some, 0
                )
        if weighted or rest:
            for f in range(width):
                for t in range(0 if weighted else count - rest, count, LANES):
                    place = f * stride + t
                    store(columns, place, load(roots, t) * load(columns, place))

        bias = mean[x, 0]
        for t in range(0, count, LANES):
            root = load(roots, t)
            rated = load_first(ratings, begin + t, count - t)
            store(errors, t, root * (rated - bias) - load(columns, t))
            # the bias is a feature whose regressor is 1
            store(columns, t, root)
        squares[0] = weight_sum
        for f in range(1, width):
            m = mean[x, f]
            sums = fill(zero)
            for t in range(0, count, LANES):
                column = load(columns, f * stride + t)
                store(errors, t, load(errors, t) - m * column)
                sums += column * column
            squares[f] = summed(sums)

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


@nb.njit(cache=True, nogil=True, fastmath=FAST)
def predict_rows(  # type: ignore[no-untyped-def]
    users, items, user_mean, user_var, item_mean, item_var, prior, predictions, variances
):
    """Predict pairs by b_user + b_item + U . P and state the variance of that: equation (7).

    Parameters
    ----------
    users, items : rows, shape (n,); -1 for an id that is not known, which stands at mean 0 with
        the prior variance
    user_var, item_var : as `user_mean`, or of shape (ids, 0) where no variances are kept
    prior : float32, shape (rank + 1,), prior variance of each coordinate
    predictions, variances : ndarray of float32, shape (n,), out; the variance is without noise
    """
    width = user_mean.shape[1]
    with_variance = user_var.shape[1] > 0
    for n in range(users.size):
        if n + AHEAD < users.size:
            prefetch_row(user_mean, users[n + AHEAD])
            prefetch_row(item_mean, items[n + AHEAD])
            if with_variance:
                prefetch_row(user_var, users[n + AHEAD])
                prefetch_row(item_var, items[n + AHEAD])
        x = users[n]
        y = items[n]
        if with_variance and x >= 0 and y >= 0:
            # the usual case, without a choice in the loop
            prediction = user_mean[x, 0] + item_mean[y, 0]
            variance = user_var[x, 0] + item_var[y, 0]
            for f in range(1, width):
                um, uv = user_mean[x, f], user_var[x, f]
                im, iv = item_mean[y, f], item_var[y, f]
                prediction += um * im
                variance += uv * im * im + iv * um * um + uv * iv
            predictions[n] = prediction
            variances[n] = variance
            continue
        prediction = np.float32(0.0)
        variance = np.float32(0.0)
        for f in range(width):
            um = user_mean[x, f] if x >= 0 else np.float32(0.0)
            im = item_mean[y, f] if y >= 0 else np.float32(0.0)
            uv = np.float32(0.0)
            iv = np.float32(0.0)
            if with_variance:
                uv = user_var[x, f] if x >= 0 else prior[f]
                iv = item_var[y, f] if y >= 0 else prior[f]
            if f == 0:
                prediction += um + im
                variance += uv + iv
            else:
                prediction += um * im
                variance += uv * im * im + iv * um * um + uv * iv
        predictions[n] = prediction
        variances[n] = variance
