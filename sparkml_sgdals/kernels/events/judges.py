"""Two judgements of one item put together: the filter's and that of a fitted table. No Spark.

Each gives a weight to each item, which over all items make a probability: the filter exp(s), the
table exp(o) soft(t), where t is the product of the factors and soft(t) is t where that is well
above 0 and goes to 0, without reaching it, where it is below. docs/positive-only.md has the
equations.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from sparkml_sgdals import _compiling as nb
from sparkml_sgdals.kernels.checks import FAST
from sparkml_sgdals.kernels.events.partners import OFFSETS

__all__ = [
    "FLOOR",
    "LEAST",
    "LEAST_SHARE",
    "NEVER",
    "SHARE_RATE",
    "at_rest",
    "believed",
    "boosted",
    "judge_sums",
    "mix_pairs",
    "mixed",
    "pair_probabilities",
    "soft",
]

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
NEVER: Final = np.float32(-1e30)
"""the logarithm of a weight of 0, which can be added to"""
LEAST: Final = np.float32(1e-37)
"""below it what `mixed` gives is as low as can be told"""
LEAST_SHARE: Final = 0.001
"""of either judge, so that one that was worse for long is heard again once it is better"""
_HIGHEST: Final = np.float32(80.0)
"""exponent of a float32"""
SHARE_RATE: Final = 0.01
"""how far an event moves the share in which the filter is believed"""
_FIRST_WEIGHT: Final = 10.0
"""events that the share of the filter counts as before any"""
_MOVED_VARIANCE: Final = 4.0
"""prior variance of how far log-odds are moved"""
_ROUNDS: Final = 100
"""of EM, after which nothing moves"""
FLOOR: Final = np.float32(0.01)
"""soft(0): the preference for an item of which nothing is known"""


@nb.njit(cache=True, nogil=True, inline="always")
def soft(product):  # type: ignore[no-untyped-def]
    """Return (t + sqrt(t^2 + 4 f^2)) / 2, f being the floor; float32."""
    root = np.sqrt(product * product + np.float32(4.0) * FLOOR * FLOOR)
    if product > np.float32(0.0):
        return np.float32(0.5) * (product + root)
    # the same without the difference of two numbers that are nearly equal
    return np.float32(2.0) * FLOOR * FLOOR / (root - product)


@nb.njit(cache=True, nogil=True, inline="always")
def mixed(score, product, offset):  # type: ignore[no-untyped-def]
    """Return exp(s) + exp(o) soft(t), float32, which rises with the judgement of both."""
    own = np.float32(0.0)
    if score > NEVER / np.float32(2.0):
        own = np.float32(math.exp(min(score, _HIGHEST)))
    if offset > NEVER / np.float32(2.0):
        own += np.float32(math.exp(min(offset, _HIGHEST))) * soft(product)
    return own


@nb.njit(cache=True, nogil=True, inline="always")
def boosted(score, boost, judged):  # type: ignore[no-untyped-def]
    """Add what partners say of an item to its score, a logarithm but where there are two judges."""
    if boost <= np.float32(0.0):
        return score
    if judged:
        return score + boost
    return np.float32(math.log(math.exp(score) + np.float64(boost)))


@nb.njit(cache=True, nogil=True, fastmath=FAST)
def judge_sums(features, tastes, items, item_tastes, biases, bases, sums):  # type: ignore[no-untyped-def]
    """Logarithms of what both judgements sum up to over some items, for each user.

    Parameters
    ----------
    features, tastes
        float32, shapes (n, rank) and (n, table rank), of users: for the filter and for the table
    items, item_tastes
        float32, shapes (m, rank) and (m, table rank)
    biases, bases
        float32, shape (m,): what items have besides, for the filter and for the table
    sums
        float64, shape (2, n), out
    """
    scores = np.empty(items.shape[0], np.float32)
    highest_base = np.float32(-np.inf)
    for y in range(items.shape[0]):
        highest_base = max(highest_base, bases[y])
    for x in range(features.shape[0]):
        own, other = 0.0, 0.0
        highest = np.float32(-np.inf)
        for y in range(items.shape[0]):
            score = biases[y]
            for f in range(items.shape[1]):
                score += features[x, f] * items[y, f]
            scores[y] = score
            highest = max(highest, score)
        for y in range(items.shape[0]):
            # from the highest one on, as a float32 holds no exponential above e^88
            own += math.exp(scores[y] - highest)
            product = np.float32(0.0)
            for f in range(item_tastes.shape[1]):
                product += tastes[x, f] * item_tastes[y, f]
            other += math.exp(bases[y] - highest_base) * np.float64(soft(product))
        sums[0, x] = np.float64(highest) + math.log(max(own, 1e-300))
        sums[1, x] = np.float64(highest_base) + math.log(max(other, 1e-300))


@nb.njit(cache=True, nogil=True)
def mix_pairs(users, items, user_mean, item_mean, user_taste, item_taste, scores):  # type: ignore[no-untyped-def]
    """Score pairs by both judgements, or by the filter's alone where there are no tastes.

    Parameters
    ----------
    users, items
        int64, shape (n,), rows; -1 for an id that is not known
    user_mean, item_mean
        float32, shape (ids, rank + 1), bias first
    user_taste, item_taste
        float32, shape (ids, table rank + 1), a logarithm first; width 0 for none
    scores
        float32, shape (n,), out
    """
    zero = np.float32(0.0)
    for n in range(users.size):
        x, y = users[n], items[n]
        both = x >= 0 and y >= 0
        score = user_mean[x, 0] if x >= 0 else zero
        score += item_mean[y, 0] if y >= 0 else zero
        if both:
            for f in range(1, user_mean.shape[1]):
                score += user_mean[x, f] * item_mean[y, f]
        if user_taste.shape[1] > 0:
            product = zero
            offset = user_taste[x, 0] if x >= 0 else NEVER
            offset += item_taste[y, 0] if y >= 0 else zero
            if both:
                for f in range(1, user_taste.shape[1]):
                    product += user_taste[x, f] * item_taste[y, f]
            score = np.float32(math.log(max(mixed(score, product, offset), LEAST)))
        scores[n] = score


@nb.njit(cache=True, nogil=True)
def pair_probabilities(scores, products, bases, sums):  # type: ignore[no-untyped-def]
    """Probabilities that filter and table give to items, float64, shape (2, n).

    Parameters
    ----------
    scores, products
        float32, shape (n,), of the filter, its bias of the item in it, and of the table's factors
    bases
        float32, shape (n,), what the table's judgement of the item is multiplied with
    sums
        float64, shape (2, n), of the users, as `judge_sums`
    """
    found = np.empty((2, scores.size))
    for n in range(scores.size):
        # above 1 only where sums are of some items, and this one is none of them
        found[0, n] = math.exp(min(scores[n] - sums[0, n], 0.0))
        found[1, n] = min(math.exp(min(bases[n] - sums[1, n], 700.0)) * soft(products[n]), 1.0)
    return found


@nb.njit(cache=True, nogil=True)
def believed(share, ours, theirs):  # type: ignore[no-untyped-def]
    """Return the filter's share after events, by online EM, one after another.

    Parameters
    ----------
    share
        float64, before them
    ours, theirs
        float64, shape (n,), probability that the filter and the table gave to what was done
    """
    for n in range(ours.size):
        total = share * ours[n] + (1.0 - share) * theirs[n]
        if total > 0.0:
            share += SHARE_RATE * (share * ours[n] / total - share)
            share = min(max(share, LEAST_SHARE), 1.0 - LEAST_SHARE)
    return share


def at_rest(
    said: F64, shares: F64, gaps: I64, lengths: I64, counts: F64, share: float
) -> tuple[F64, F64]:
    """Return how far the filter is believed of what users did long after, by EM over all events.

    The events are of users whose state was that of some time before, and were all predicted from
    that, as a list is that is made once and read for weeks. What stands together with what a user
    did last says less of these than of the next event, so its log-odds are moved as well, by how
    long ago the user's last event was.

    Parameters
    ----------
    said
        float64, shape (3, n), probability that filter, table and partners gave to what was done
    shares
        float64, shape (n,), above 0 and below 1: how far partners are believed of the next event;
        0 for all where there are none
    gaps, lengths
        int64, shape (n,), which of the gaps of equation (12) it is since the user's last event, and
        which of the lengths it has
    counts
        float64, shape (n,), how much each event counts
    share
        how far the filter is believed without any event, which 10 events weigh up

    Returns
    -------
    that for users of each length, float64, shape (10,), and what is added to the log-odds of
    `shares` at each gap, float64, shape (10,): 0 before any event, with a prior variance of 4
    """
    ours, theirs, partners = said
    believed, moved = np.full(OFFSETS, share), np.zeros(OFFSETS)
    paired = bool(np.any(shares > 0.0))
    odds = np.log(shares) - np.log1p(-shares) if paired else shares
    for _ in range(_ROUNDS):
        now = 1.0 / (1.0 + np.exp(-odds - moved[gaps])) if paired else shares
        own = believed[lengths]
        parts = (1.0 - now) * np.stack([own * ours, (1.0 - own) * theirs])
        parts = np.concatenate([parts, [now * partners]])
        total = parts.sum(axis=0)
        parts *= np.where(total > 0.0, counts, 0.0) / np.where(total > 0.0, total, 1.0)
        both = [np.bincount(lengths, part, OFFSETS) for part in parts[:2]]
        believed = (both[0] + _FIRST_WEIGHT * share) / (both[0] + both[1] + _FIRST_WEIGHT)
        if paired:
            weight = parts.sum(axis=0)
            slope = np.bincount(gaps, parts[2] - weight * now, OFFSETS) - moved / _MOVED_VARIANCE
            bend = np.bincount(gaps, weight * now * (1.0 - now), OFFSETS) + 1.0 / _MOVED_VARIANCE
            moved += np.clip(slope / bend, -1.0, 1.0)
    return believed, moved
