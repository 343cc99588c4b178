"""Learning events by a filter with a logistic likelihood: compiled, arrays only, no Spark.

An event is a user doing an item; there are no ratings. Each is learned as one step towards 1, then
as steps towards 0 for items drawn in proportion to their popularity, so that features learn the
taste beyond it. docs/positive-only.md has the equations, numbered there.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from sparkml_sgdals import _compiling as nb
from sparkml_sgdals.kernels.checks import FAST, MIN_VARIANCE
from sparkml_sgdals.kernels.prefetch import prefetch_row
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
    "CONTEXT_DECAY",
    "CONTEXT_ITEMS",
    "MIN_INFORMATION",
    "filter_events",
    "finite_rows",
]

CONTEXT_ITEMS: Final = 8
"""items that a user did last and that colour its next event"""
CONTEXT_DECAY: Final = 0.7
"""weight of one of them in that of the one after it"""
MIN_INFORMATION: Final = 0.05
"""least p (1 - p): keeps the step of a sure and wrong prediction finite"""
_MOST_LOGIT: Final = 40.0
"""of odds that are told: beyond, they are as sure"""


@nb.njit(cache=True, nogil=True, inline="always")
def _gather(  # type: ignore[no-untyped-def]
    x, recent, count, shares, user_mean, user_var, context, context_var,
    means, variances, taste, unsure,
):  # fmt: skip
    """Put what makes up the taste of x side by side: its own features, then those of its context.

    Row 0 of `means` and `variances` is the user's, row k + 1 that of recent[k]; `taste` is their
    sum by `shares`, `unsure` its variance. Zeros stand beyond the rank.
    """
    wide, rank = taste.size, context.shape[1]
    for f in range(0, wide, LANES):
        own, some = x * (rank + 1) + 1 + f, rank - f
        tastes, unsures = load_first(user_mean, own, some), load_first(user_var, own, some)
        store(means, f, tastes)
        store(variances, f, unsures)
        for k in range(count):
            at, share = (k + 1) * wide + f, shares[k + 1]
            source = np.int64(recent[k]) * rank + f
            found, spread = load_first(context, source, some), load_first(context_var, source, some)
            store(means, at, found)
            store(variances, at, spread)
            tastes += share * found
            unsures += share * share * spread
        store(taste, f, tastes)
        store(unsure, f, unsures)


@nb.njit(cache=True, nogil=True, inline="always")
def _scatter(  # type: ignore[no-untyped-def]
    x, recent, count, user_mean, user_var, context, context_var, means, variances
):
    """Put what `_gather` took back into its places."""
    wide, rank = means.shape[1], context.shape[1]
    for f in range(0, wide, LANES):
        own, some = x * (rank + 1) + 1 + f, rank - f
        store_first(user_mean, own, some, load(means, f))
        store_first(user_var, own, some, load(variances, f))
        for k in range(count):
            at, source = (k + 1) * wide + f, np.int64(recent[k]) * rank + f
            store_first(context, source, some, load(means, at))
            store_first(context_var, source, some, load(variances, at))


@nb.njit(cache=True, nogil=True, inline="always")
def _step(  # type: ignore[no-untyped-def]
    y, target, weight, offset, drift, lowest, shares, sources, item_mean, item_var, means,
    variances, taste, unsure,
):  # fmt: skip
    """One step of the filter towards 0 or 1, (2) and (3); return the logit before it."""
    width = item_mean.shape[1]
    wide = taste.size
    zeros, least, low = fill(np.float32(0.0)), fill(MIN_VARIANCE), fill(lowest)
    products, spreads = zeros, zeros
    for f in range(0, wide, LANES):
        item, some = y * width + 1 + f, width - 1 - f
        tastes, features = load(taste, f), load_first(item_mean, item, some)
        products += tastes * features
        spreads += load_first(item_var, item, some) * tastes * tastes
        spreads += load(unsure, f) * features * features
    bias = item_var[y, 0]
    spread = np.float64(summed(spreads)) + bias
    logit = offset + item_mean[y, 0] + np.float64(summed(products))
    p = 1.0 / (1.0 + math.exp(-logit))
    information = max(p * (1.0 - p), MIN_INFORMATION) * weight
    # 1 / S, and the residual times that, with one division for both
    scale = 1.0 / (1.0 + spread * information)
    inverse = np.float32(information * scale)
    gain = np.float32((target - p) * weight * scale)
    item_mean[y, 0] += bias * gain
    item_var[y, 0] = max(bias - bias * bias * inverse, MIN_VARIANCE) + drift
    for f in range(0, wide, LANES):
        item, some = y * width + 1 + f, width - 1 - f
        tastes, features = load(taste, f), load_first(item_mean, item, some)
        c = load_first(item_var, item, some)
        a = c * tastes
        store_first(item_mean, item, some, larger(features + a * gain, low))
        store_first(item_var, item, some, larger(c - a * a * inverse, least) + drift)
        moved, certain = features * gain, features * features * inverse
        store(taste, f, tastes + load(unsure, f) * moved)
        unsures = zeros
        for k in range(sources):
            at, share = k * wide + f, shares[k]
            c = load(variances, at)
            a = c * share
            store(means, at, larger(load(means, at) + a * moved, low))
            c = larger(c - a * a * certain, least) + drift
            store(variances, at, c)
            unsures += share * share * c
        store(unsure, f, unsures)
        if lowest == np.float32(0.0):
            # what is held at 0 has not moved with the sum
            tastes = zeros
            for k in range(sources):
                tastes += shares[k] * load(means, k * wide + f)
            store(taste, f, tastes)
    return logit


@nb.njit(cache=True, nogil=True)
def filter_events(  # type: ignore[no-untyped-def]
    users, items, values, weights, begin, end, recent, drawn, drift, lowest,
    user_mean, user_var, item_mean, item_var, context, context_var, odds,
):  # fmt: skip
    """Learn one event after another, with the negatives that `draw_events` found for them.

    Parameters
    ----------
    users, items, values
        as in `draw_events`; a row of 0 or less is a step towards 0
    weights
        float32, shape (n,), above 0: how much the row's own step counts
    begin, end
        the rows to learn are begin..end-1
    recent, drawn
        as in `draw_events`
    drift
        float32, variance added to every coordinate that a step touches
    lowest
        float32, what no feature, and nothing that colours one, falls below: 0, or -inf for none
    user_mean, user_var, item_mean, item_var
        float32, shape (ids, rank + 1), in place
    context, context_var
        float32, shape (items, rank), in place
    odds
        float64, shape (end - begin, 2), out: as in `weigh_partners`
    """
    wide = -(-context.shape[1] // LANES) * LANES
    offset = -math.log(drawn.shape[1])
    # the user's own features count once
    shares = np.ones(recent.shape[1] + 1, np.float32)
    means = np.empty((shares.size, wide), np.float32)
    variances = np.empty((shares.size, wide), np.float32)
    taste, unsure = np.empty(wide, np.float32), np.empty(wide, np.float32)
    for n in range(begin, end):
        if n + 1 < end:
            _prefetch_event(
                users[n + 1], items[n + 1], recent[n + 1 - begin], drawn[n + 1 - begin],
                user_mean, user_var, item_mean, item_var, context, context_var,
            )  # fmt: skip
        x = np.int64(users[n])
        before, negatives = recent[n - begin], drawn[n - begin]
        count = 0
        squares = 0.0
        while count < before.size and before[count] >= 0:
            squares += CONTEXT_DECAY ** (2 * count)
            count += 1
        for k in range(count):
            shares[k + 1] = CONTEXT_DECAY**k / math.sqrt(squares)
        _gather(
            x, before, count, shares, user_mean, user_var, context, context_var,
            means, variances, taste, unsure,
        )  # fmt: skip
        y = np.int64(items[n])
        target = 1.0 if values[n] > 0 else 0.0
        weight = weights[n]
        others, found = 0.0, 0
        # once in the code, because it is compiled into its place
        for k in range(negatives.size + 1):
            if k > 0:
                if negatives[k - 1] < 0:
                    break
                y = np.int64(negatives[k - 1])
                target = 0.0
                weight = np.float32(1.0)
            logit = _step(
                y, target, weight, offset, drift, lowest, shares, count + 1, item_mean, item_var,
                means, variances, taste, unsure,
            )  # fmt: skip
            ratio = math.exp(min(logit - offset, _MOST_LOGIT))
            if k == 0:
                odds[n - begin, 0] = ratio
            else:
                others += ratio
                found += 1
        odds[n - begin, 1] = others / max(found, 1)
        _scatter(
            x, before, count, user_mean, user_var, context, context_var, means, variances
        )  # fmt: skip


@nb.njit(cache=True, nogil=True, inline="always")
def _prefetch_event(  # type: ignore[no-untyped-def]
    x, y, recent, drawn, user_mean, user_var, item_mean, item_var, context, context_var
):
    """Fetch all rows that an event reads."""
    prefetch_row(user_mean, x)
    prefetch_row(user_var, x)
    prefetch_row(item_mean, y)
    prefetch_row(item_var, y)
    for k in range(recent.size):
        if recent[k] < 0:
            break
        prefetch_row(context, recent[k])
        prefetch_row(context_var, recent[k])
    for k in range(drawn.size):
        if drawn[k] < 0:
            break
        prefetch_row(item_mean, drawn[k])
        prefetch_row(item_var, drawn[k])


@nb.njit(cache=True, nogil=True, fastmath=FAST)
def finite_rows(matrix, rows):  # type: ignore[no-untyped-def]
    """Whether all numbers in these rows of a float32 matrix are finite."""
    for row in rows:
        rest = np.float32(0.0)
        for f in range(matrix.shape[1]):
            rest += matrix[row, f] * np.float32(0.0)
        if rest != np.float32(0.0):
            return False
    return True
