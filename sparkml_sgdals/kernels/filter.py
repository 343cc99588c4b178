"""The filter: learn one rating after another, by a diagonal extended Kalman filter."""

from __future__ import annotations

import numpy as np

from sparkml_sgdals import _compiling as nb
from sparkml_sgdals.kernels.checks import FAST, MIN_VARIANCE
from sparkml_sgdals.kernels.predict import compare_features
from sparkml_sgdals.kernels.prefetch import AHEAD, prefetch_row
from sparkml_sgdals.kernels.vectors import (
    LANES,
    fill,
    larger,
    load_first,
    smaller,
    store_first,
)

__all__ = ["filter_ratings", "move_rows", "standardise"]


@nb.njit(cache=True, nogil=True, error_model="numpy")
def standardise(ratings, mean, spread):  # type: ignore[no-untyped-def]
    """Ratings in units of the spread about the mean: float32 of a difference in float64."""
    units = np.empty(ratings.size, np.float32)
    for n in range(ratings.size):
        units[n] = np.float32((np.float64(ratings[n]) - mean) / spread)
    return units


@nb.njit(cache=True, nogil=True, fastmath=FAST, inline="always")
def move_rows(  # type: ignore[no-untyped-def]
    x, y, error, inverse, drift, lowest, user_mean, user_var, item_mean, item_var
):
    """Move the posteriors of user row x and item row y by one rating, in place: (4).

    Parameters
    ----------
    x, y
        int64, rows of the user and of the item
    error, inverse
        float32, rating minus prediction, and 1 / (its variance, noise included)
    drift
        float32, variance added to every coordinate afterwards
    lowest
        float32, what no feature falls below, -inf for nothing
    user_mean, user_var, item_mean, item_var
        float32, shape (ids, rank + 1), the bias first; changed in place
    """
    width = user_mean.shape[1]
    gain = error * inverse
    for mean, var, row in ((user_mean, user_var, x), (item_mean, item_var, y)):
        c = var[row, 0]
        mean[row, 0] += c * gain
        var[row, 0] = max(c - c * c * inverse, MIN_VARIANCE) + drift
    least, low = fill(MIN_VARIANCE), fill(lowest)
    for f in range(1, width, LANES):
        user, item, count = x * width + f, y * width + f, width - f
        um, uv = load_first(user_mean, user, count), load_first(user_var, user, count)
        im, iv = load_first(item_mean, item, count), load_first(item_var, item, count)
        a, b = uv * im, iv * um
        store_first(user_mean, user, count, larger(um + a * gain, low))
        store_first(item_mean, item, count, larger(im + b * gain, low))
        store_first(user_var, user, count, larger(uv - a * a * inverse, least) + drift)
        store_first(item_var, item, count, larger(iv - b * b * inverse, least) + drift)


@nb.njit(cache=True, nogil=True, fastmath=FAST)
def filter_ratings(  # type: ignore[no-untyped-def]
    users, items, ratings, weights, user_mean, user_var, item_mean, item_var, noise, drift, lowest,
    errors,
):  # fmt: skip
    """Learn one rating after another by a diagonal extended Kalman filter.

    Parameters
    ----------
    users, items, ratings, weights
        arrays of shape (n,), in the order of learning
    user_mean, user_var, item_mean, item_var
        changed in place
    noise
        float32, s2 in units of the standardised rating
    drift
        float32, variance added to every coordinate that a rating touches
    lowest
        as in `move_rows`
    errors
        ndarray of float32, shape (n,), out: rating minus prediction from before learning it

    Returns
    -------
    whether all of them were learned; learning ends before a rating whose S is 0

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
        variance = spread + noise / weight
        if variance == np.float32(0.0):
            return False
        inverse = np.float32(1.0) / variance
        move_rows(x, y, error, inverse, drift, lowest, user_mean, user_var, item_mean, item_var)
    return True


@nb.njit(cache=True, nogil=True, fastmath=FAST)
def filter_with_influences(  # type: ignore[no-untyped-def]
    users, items, ratings, weights,
    user_mean, user_var, user_prior, user_influence, user_evidence, user_seen,
    item_mean, item_var, item_prior, item_influence, item_seen, item_featured,
    prior_var, own_precision, bias_share, noise, drift, lowest, errors,
):  # fmt: skip
    """`filter_ratings` with prior means that move, and users' influences learned: (4), (10), (11).

    Parameters
    ----------
    users, items, ratings, weights
        as in `filter_ratings`
    user_mean, user_var, item_mean, item_var
        float32, shape (ids, rank + 1), changed in place
    user_prior, item_prior
        float32, of the same shapes, prior means, changed in place
    user_influence, item_influence
        float32, of the same shapes: what an id says of its partners; that of users is changed in
        place, that of items read only
    user_evidence
        float32, shape (users,), sums of the shares of a user's ratings, changed in place
    user_seen, item_seen
        float32, shape (ids,), ratings of an id that were learned, changed in place
    item_featured
        float32, shape of `item_prior`, prior means beside those; (ids, 0) for none
    prior_var
        float32, shape (rank + 1,), prior variance of each coordinate
    own_precision
        float32, 1 / prior variance of a user's influence
    bias_share
        float32, 0 to 1, by how much influences on biases are learned
    noise, drift, lowest, errors
        as in `filter_ratings`, like what is returned
    """
    width = user_mean.shape[1]
    weighted = weights.size > 0
    featured = item_featured.shape[1] > 0
    one = np.float32(1.0)
    prior_precision = one / prior_var
    ones, low = fill(one), fill(lowest)
    for n in range(users.size):
        if n + AHEAD < users.size:
            after, partner = users[n + AHEAD], items[n + AHEAD]
            prefetch_row(user_mean, after)
            prefetch_row(user_var, after)
            prefetch_row(user_prior, after)
            prefetch_row(user_influence, after)
            prefetch_row(item_mean, partner)
            prefetch_row(item_var, partner)
            prefetch_row(item_prior, partner)
            prefetch_row(item_influence, partner)
        x = np.int64(users[n])
        y = np.int64(items[n])
        weight = one
        if weighted:
            weight = weights[n]
        if weight > np.float32(0.0):
            user_kept = np.sqrt(user_seen[x])
            user_seen[x] += one
            user_root = one / np.sqrt(user_seen[x])
            item_kept = np.sqrt(item_seen[y])
            item_seen[y] += one
            share = one / item_seen[y]
            item_root = np.sqrt(share)
            user_evidence[x] += share
            evidence = user_evidence[x]

            precision = prior_precision[0]
            old = user_prior[x, 0]
            new = (user_kept * old + item_influence[y, 0]) * user_root
            user_mean[x, 0] += min(user_var[x, 0] * precision, one) * (new - old)
            user_prior[x, 0] = new
            old = item_prior[y, 0]
            new = (item_kept * old + user_influence[x, 0]) * item_root
            taken = min(item_var[y, 0] * precision, one)
            # from the item as it is before this rating, or the user's own error would come back
            moved = item_mean[y, 0] + taken * (new - old)
            apart = moved - new
            if featured:
                apart -= item_featured[y, 0]
            change = precision * item_root * apart / (own_precision + evidence * precision)
            change *= bias_share
            user_influence[x, 0] += change
            step = item_root * change
            item_prior[y, 0] = new + step
            item_mean[y, 0] = moved + taken * step

            # the same for the features: at rank 16 the bias among them would be a third vector, of
            # one value, and take half as long again
            for f in range(1, width, LANES):
                user, item, count = x * width + f, y * width + f, width - f
                precisions = load_first(prior_precision, f, count)
                olds = load_first(user_prior, user, count)
                news = (user_kept * olds + load_first(item_influence, item, count)) * user_root
                gains = smaller(load_first(user_var, user, count) * precisions, ones)
                means = load_first(user_mean, user, count)
                means = larger(means + gains * (news - olds), low)
                store_first(user_mean, user, count, means)
                store_first(user_prior, user, count, news)
                olds = load_first(item_prior, item, count)
                own = load_first(user_influence, user, count)
                news = (item_kept * olds + own) * item_root
                gains = smaller(load_first(item_var, item, count) * precisions, ones)
                means = load_first(item_mean, item, count) + gains * (news - olds)
                means = larger(means, low)
                rest = means - news
                if featured:
                    rest = rest - load_first(item_featured, item, count)
                changes = precisions * item_root * rest
                changes = changes / (own_precision + evidence * precisions)
                store_first(user_influence, user, count, own + changes)
                changes *= item_root
                store_first(item_prior, item, count, news + changes)
                store_first(item_mean, item, count, larger(means + gains * changes, low))

        product, spread = compare_features(x, y, user_mean, user_var, item_mean, item_var)
        error = ratings[n] - (user_mean[x, 0] + item_mean[y, 0] + product)
        errors[n] = error
        if weight <= np.float32(0.0):
            continue
        spread += user_var[x, 0] + item_var[y, 0]
        variance = spread + noise / weight
        if variance == np.float32(0.0):
            return False
        inverse = one / variance
        move_rows(x, y, error, inverse, drift, lowest, user_mean, user_var, item_mean, item_var)
    return True
