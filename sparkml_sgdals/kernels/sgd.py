"""Plain gradient steps: one rating after another, or the gradients of a mini-batch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sparkml_sgdals import _compiling as nb
from sparkml_sgdals.kernels.checks import FAST
from sparkml_sgdals.kernels.prefetch import AHEAD, prefetch_row

__all__ = ["rating_gradients", "sgd_ratings"]

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]


@nb.njit(cache=True, nogil=True, fastmath=FAST)
def sgd_ratings(  # type: ignore[no-untyped-def]
    users, items, ratings, weights, user_mean, item_mean, step, regs, lowest, errors
):
    """Learn one rating after another by stochastic gradient descent: equations (1) and (2).

    Parameters
    ----------
    users, items
        int32, shape (n,), rows of the two means, in the order of learning
    ratings
        float32, shape (n,), in standardised units
    weights
        float32, shape (n,), or (0,) where every weight is one
    user_mean, item_mean
        float32, shape (ids, rank + 1), the bias first; changed in place
    step
        float32, the step size; a rating of weight w takes a step of w times its size
    regs
        ndarray of float32, shape (4,): lambda of user bias, item bias, user factor, item factor
    lowest
        float32, what no feature falls below, -inf for nothing
    errors
        ndarray of float32, shape (n,), out: rating minus prediction from before learning it
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
            user_new = um + g * (error * im - regs[2] * um)
            item_new = im + g * (error * um - regs[3] * im)
            # not by max, which takes the bound for what is not a number
            user_mean[x, f] = lowest if user_new < lowest else user_new
            item_mean[y, f] = lowest if item_new < lowest else item_new


def rating_gradients(
    ratings: F32, weights: F32, user_mean: F32, item_mean: F32, regs: F32
) -> tuple[F64, F64, F64]:
    """Gradients of a mini-batch, all against the factors given: equations (1) and (2) unsummed.

    Parameters
    ----------
    ratings, weights : F32
        shape (n,); weights of size 0 for all ones
    user_mean, item_mean : F32
        shape (n, rank + 1), the factors of each rating's user and item
    regs : F32
        shape (4,), as in `sgd_ratings`

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
