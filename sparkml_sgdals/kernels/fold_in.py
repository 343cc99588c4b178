"""Learn ratings of users who are new, with items held: the filter's arithmetic of one side."""

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

__all__ = ["filter_new_users"]


@nb.njit(cache=True, nogil=True, fastmath=FAST)
def filter_new_users(  # type: ignore[no-untyped-def]
    starts, items, ratings, weights, user_mean, user_var, user_prior, item_mean, item_var,
    item_influence, prior_var, noise, drift, lowest,
):  # fmt: skip
    """`filter_with_influences`, or `filter_ratings`, of new users while items stay as they are.

    Parameters
    ----------
    starts, items, ratings, weights
        the layout by user, as in `sweep_ids`, in the order of learning
    user_mean, user_var
        float32, shape (users, rank + 1), changed in place
    user_prior
        of the same shape, prior means that items give, changed in place; (users, 0) for none
    item_mean, item_var, item_influence
        float32, shape (items, rank + 1), read only; the last one (items, 0) for none
    prior_var
        float32, shape (rank + 1,), prior variance of each coordinate
    noise, drift, lowest
        as in `filter_ratings`

    Returns
    -------
    whether all ratings were learned; learning ends before one whose variance is 0
    """
    width = user_mean.shape[1]
    draws = item_influence.shape[1] > 0
    weighted = weights.size > 0
    one = np.float32(1.0)
    least, ones, low = fill(MIN_VARIANCE), fill(one), fill(lowest)
    precision = one / prior_var
    for x in range(starts.size - 1):
        seen = np.float32(0.0)
        for t in range(starts[x], starts[x + 1]):
            if t + AHEAD < items.size:
                prefetch_row(item_mean, items[t + AHEAD])
                prefetch_row(item_var, items[t + AHEAD])
                if draws:
                    prefetch_row(item_influence, items[t + AHEAD])
            y = np.int64(items[t])
            weight = one
            if weighted:
                weight = weights[t]
                if weight <= np.float32(0.0):
                    continue
            if draws:
                kept = np.sqrt(seen)
                seen += one
                root = one / np.sqrt(seen)
                old = user_prior[x, 0]
                new = (kept * old + item_influence[y, 0]) * root
                user_mean[x, 0] += min(user_var[x, 0] * precision[0], one) * (new - old)
                user_prior[x, 0] = new
                for f in range(1, width, LANES):
                    user, item, count = x * width + f, y * width + f, width - f
                    olds = load_first(user_prior, user, count)
                    news = (kept * olds + load_first(item_influence, item, count)) * root
                    var = load_first(user_var, user, count)
                    gains = smaller(var * load_first(precision, f, count), ones)
                    means = load_first(user_mean, user, count)
                    means = larger(means + gains * (news - olds), low)
                    store_first(user_mean, user, count, means)
                    store_first(user_prior, user, count, news)
            product, spread = compare_features(x, y, user_mean, user_var, item_mean, item_var)
            error = ratings[t] - (user_mean[x, 0] + item_mean[y, 0] + product)
            spread += user_var[x, 0] + item_var[y, 0]
            variance = spread + noise / weight
            if variance == np.float32(0.0):
                return False
            inverse = one / variance
            gain = error * inverse
            c = user_var[x, 0]
            user_mean[x, 0] += c * gain
            user_var[x, 0] = max(c - c * c * inverse, MIN_VARIANCE) + drift
            for f in range(1, width, LANES):
                user, item, count = x * width + f, y * width + f, width - f
                var = load_first(user_var, user, count)
                moved = var * load_first(item_mean, item, count)
                means = load_first(user_mean, user, count)
                store_first(user_mean, user, count, larger(means + moved * gain, low))
                left = larger(var - moved * moved * inverse, least) + drift
                store_first(user_var, user, count, left)
    return True
