"""Influences: what partners say of an id before the ratings do."""

from __future__ import annotations

from typing import Final

import numpy as np

from sparkml_sgdals import _compiling as nb
from sparkml_sgdals.kernels.checks import FAST
from sparkml_sgdals.kernels.prefetch import AHEAD, prefetch_lines
from sparkml_sgdals.kernels.vectors import (
    LANES,
    fill,
    load,
    load_pair,
    store,
    store_pair,
)

__all__ = ["PAIR", "add_shares", "learn_influence_pair", "learn_influences", "sum_influences"]

PAIR: Final = 2
"""coordinates that a thread has where there are many threads"""


@nb.njit(cache=True, nogil=True, fastmath=FAST)
def learn_influences(  # type: ignore[no-untyped-def]
    starts, partners, roots, shares, precision, own_precision, damping, apart, influence
):
    """Coordinate ascent for the influences of all ids of one side, one id after another: (9).

    Parameters
    ----------
    starts, partners
        the layout by the side that gives, as in `sweep_ids`
    roots
        float32, shape (partners,), n^(-1/2) of each partner
    shares
        float32, shape (ids,), `influence_shares`
    precision
        float32, shape (8,), 1 / v of the partners' prior, 0 where there is no coordinate
    own_precision
        float32, 1 / prior variance of an influence
    damping
        float32, at least 1: the curvature of `apart` by so much, 1 for one block
    apart
        float32, shape (partners, 8), posterior minus prior mean of each partner; changed in place,
        as prior means move with the influences
    influence
        float32, shape (ids, 8), changed in place

    Notes
    -----
    Damping leaves the fixed point where it is. B blocks that learn at once from the same `apart`
    overshoot by up to B / damping, which shrinks as long as damping > B / 2.
    """
    precisions = load(precision, 0)
    for y in range(starts.size - 1):
        first, last = starts[y], starts[y + 1]
        if first == last:
            continue
        moment = fill(np.float32(0.0))
        share = damping * shares[y]
        for t in range(first, last):
            if t + AHEAD < partners.size:
                prefetch_lines(apart, partners[t + AHEAD])
            x = np.int64(partners[t])
            moment += roots[x] * load(apart, x * LANES)
        old = load(influence, y * LANES)
        new = precisions * (moment + share * old) / (own_precision + share * precisions)
        store(influence, y * LANES, new)
        change = damping * (old - new)
        for t in range(first, last):
            if t + AHEAD < partners.size:
                prefetch_lines(apart, partners[t + AHEAD])
            x = np.int64(partners[t])
            store(apart, x * LANES, load(apart, x * LANES) + roots[x] * change)


@nb.njit(cache=True, nogil=True, fastmath=FAST)
def learn_influence_pair(  # type: ignore[no-untyped-def]
    starts, partners, roots, shares, precision, own_precision, damping, apart, influence
):
    """`learn_influences` of two coordinates, to the same bits: for many threads.

    Parameters
    ----------
    starts, partners, roots, shares, own_precision, damping
        as there
    precision
        float32, shape (2,)
    apart, influence
        float32, shapes (partners, 2) and (ids, 2), changed in place

    Notes
    -----
    Line for line as there, six lanes left empty: how a compiler arranges sums must not depend on
    how many coordinates a thread has. A quarter of the bytes stays in a core's own cache.
    """
    precisions = load_pair(precision, 0)
    for y in range(starts.size - 1):
        first, last = starts[y], starts[y + 1]
        if first == last:
            continue
        moment = fill(np.float32(0.0))
        share = damping * shares[y]
        for t in range(first, last):
            x = np.int64(partners[t])
            moment += roots[x] * load_pair(apart, x * PAIR)
        old = load_pair(influence, y * PAIR)
        new = precisions * (moment + share * old) / (own_precision + share * precisions)
        store_pair(influence, y * PAIR, new)
        change = damping * (old - new)
        for t in range(first, last):
            x = np.int64(partners[t])
            store_pair(apart, x * PAIR, load_pair(apart, x * PAIR) + roots[x] * change)


@nb.njit(cache=True, nogil=True, fastmath=FAST)
def add_shares(first, last, starts, partners, roots, shares):  # type: ignore[no-untyped-def]
    """`influence_shares` of ids first..last-1 into `shares`."""
    taken = np.zeros(roots.size, np.float32)
    for y in range(first, last):
        for t in range(starts[y], starts[y + 1]):
            taken[partners[t]] += roots[partners[t]]
        total = np.float32(0.0)
        for t in range(starts[y], starts[y + 1]):
            total += roots[partners[t]] * taken[partners[t]]
        shares[y] = total
        for t in range(starts[y], starts[y + 1]):
            taken[partners[t]] = np.float32(0.0)


@nb.njit(cache=True, nogil=True, fastmath=FAST)
def sum_influences(first, last, starts, partners, influence, sums):  # type: ignore[no-untyped-def]
    """Put the sums of the influences of each id's partners in `sums`, of ids first..last-1.

    Parameters
    ----------
    first, last
        int64, the range of ids, `last` not included
    starts, partners
        the layout by the side that takes, as in `sweep_ids`
    influence
        float32, `padded_rows` of the partners'
    sums
        float32, shape (ids, rank + 1), out

    Notes
    -----
    The ratings of an id are added in their order, whatever the range.
    """
    wide, width = influence.shape[1], sums.shape[1]
    total = np.empty(wide, np.float32)
    for x in range(first, last):
        total[:] = np.float32(0.0)
        for t in range(starts[x], starts[x + 1]):
            if t + AHEAD < partners.size:
                prefetch_lines(influence, partners[t + AHEAD])
            row = np.int64(partners[t]) * wide
            for f in range(0, wide, LANES):
                store(total, f, load(total, f) + load(influence, row + f))
        for f in range(width):
            sums[x, f] = total[f]
