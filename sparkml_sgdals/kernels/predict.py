"""Predict pairs of ids and their variances, and sum up squared errors."""

from __future__ import annotations

import numpy as np

from sparkml_sgdals import _compiling as nb
from sparkml_sgdals.kernels.checks import FAST
from sparkml_sgdals.kernels.prefetch import AHEAD, prefetch_row
from sparkml_sgdals.kernels.vectors import (
    LANES,
    fill,
    load_first,
    summed,
)

__all__ = ["clipped_squares", "compare_features", "predict_rows"]


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


@nb.njit(cache=True, nogil=True, fastmath=FAST)
def predict_rows(  # type: ignore[no-untyped-def]
    users, items, user_mean, user_var, item_mean, item_var, prior, predictions, variances
):
    """Predict pairs by b_user + b_item + U . P and state the variance of that: equation (7).

    Parameters
    ----------
    users, items
        rows, shape (n,); -1 for an id that is not known, which stands at mean 0 with the prior
        variance
    user_mean, item_mean
        float32, shape (ids, rank + 1), the bias first; read only
    user_var, item_var
        of the same shapes, or (ids, 0) where no variances are kept
    prior
        float32, shape (rank + 1,), prior variance of each coordinate
    predictions, variances
        ndarray of float32, shape (n,), out; the variance is without noise
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


@nb.njit(cache=True, nogil=True, fastmath=FAST)
def clipped_squares(ratings, errors, spread, low, high):  # type: ignore[no-untyped-def]
    """Sum of squared errors of predictions clipped to low..high, in units of the ratings.

    Parameters
    ----------
    ratings, errors
        float32, shape (n,); errors in standardised units, rating minus prediction
    spread, low, high
        float64
    """
    total = np.float64(0.0)
    for n in range(ratings.size):
        truth = np.float64(ratings[n])
        prediction = min(max(truth - spread * np.float64(errors[n]), low), high)
        total += (truth - prediction) ** 2
    return total
