"""Weighted least squares over all pairs of users and items, by coordinate descent. No Spark.

With c the weight of an event and p what it says (1 for done, 0 for not wanted), a0 the weight that
every pair has besides, and l_x the regularisation of an id, the sum over events of
c (p - U_x . P_y)^2, plus a0 times that over all pairs of (U_x . P_y)^2, plus l_x |U_x|^2 and
l_y |P_y|^2 of each user and item is made smaller one coordinate of one id after another.

Sources: He, Zhang, Kan and Chua 2016, "Fast matrix factorization for online recommendation with
implicit feedback" (coordinates); Rendle, Krichene, Zhang and Koren 2022, "iALS++: speeding up
matrix factorization with subspace optimization" (a regularisation that grows with n: theirs is
lambda (n + a0 m), nearly the same for all where the table is sparse; ours is lambda (n + a multiple
of the mean n)).
"""

from __future__ import annotations

from typing import Final

import numpy as np

from sparkml_sgdals import _compiling as nb
from sparkml_sgdals.kernels.checks import FAST
from sparkml_sgdals.kernels.lanes import last_columns, transpose_lanes, weigh_columns
from sparkml_sgdals.kernels.prefetch import AHEAD, prefetch_lines
from sparkml_sgdals.kernels.vectors import (
    LANES,
    fill,
    load,
    load_first,
    store,
    summed,
)

__all__ = ["descend_ids", "gram", "rank_held", "solve_nonnegative"]

_MOST_PASSES: Final = 1000
_SETTLED: Final = 1e-9
"""share of the largest coordinate by which a pass moves none when the rest is rounding"""


@nb.njit(cache=True, nogil=True, fastmath=FAST)
def descend_ids(  # type: ignore[no-untyped-def]
    first, last, starts, partners, targets, weights, factors, partner_factors, squares, unobserved,
    regs, lowest, before, pulls, square_errors,
):  # fmt: skip
    """Update the factors of ids first..last-1 with their partners fixed (half a sweep), in place.

    Parameters
    ----------
    first, last
        int64, the range of ids, `last` not included
    starts
        ndarray of int64, shape (ids + 1,): events of id x lie at starts[x]..starts[x+1]-1
    partners
        int32, shape (n,), rows of the other side
    targets
        float32, shape (n,), 0 or 1; or (0,) where all are 1
    weights
        float32, shape (n,), not negative; or (0,) where all are 1
    factors
        the side to learn as `padded_rows`, changed in place; an id without events is left as it is
    partner_factors
        the other side as `padded_rows`, read only
    squares
        float32, shape (wide, wide): `gram` of the other side, all of it
    unobserved
        float32, a0
    regs
        float32, shape (ids,), l_x
    lowest
        float32, what no factor falls below: 0, or -inf for none
    before
        float32, as `factors`: what the ids were fitted to before, which takes the place of 0 in
        what shrinks them and in the sum over all pairs; shape (0, wide) for nothing
    pulls
        float32, shape (ids,), how strongly they are drawn there besides; 0 for ids without a before
    square_errors
        float64, shape (ids,), out: sum over an id's events of c (p - U . P)^2 after the update

    Notes
    -----
    An id's result depends on its own events only, so ranges of ids may run on any threads.
    """
    wide = partner_factors.shape[1]
    weighted, targeted, drawn = weights.size > 0, targets.size > 0, before.shape[0] > 0
    zero, one = np.float32(0.0), np.float32(1.0)
    longest = np.int64(0)
    for x in range(first, last):
        longest = max(longest, starts[x + 1] - starts[x])
    # the partners' factors by column, each contiguous over the events of one id, then zeros up to a
    # whole vector; like the errors times the root of the event's weight
    columns = np.empty(wide * (longest + 2 * LANES), np.float32)
    errors = np.empty(longest + LANES, np.float32)
    roots = np.empty(longest + LANES, np.float32)
    some = np.empty(LANES, np.int64)
    for x in range(first, last):
        begin = starts[x]
        count = starts[x + 1] - begin
        square_errors[x] = 0.0
        if count == 0:
            continue
        # columns a power of two apart would share the same few lines of the cache
        stride = (count // LANES + 2) * LANES
        for t in range(count):
            roots[t] = np.sqrt(weights[begin + t]) if weighted else one
        for t in range(count, (count + LANES - 1) // LANES * LANES):
            roots[t] = zero
        for t in range(count):
            if begin + t + AHEAD < partners.size:
                prefetch_lines(partner_factors, partners[begin + t + AHEAD])
            if t % LANES == LANES - 1:
                for f in range(0, wide, LANES):
                    transpose_lanes(
                        columns, f * stride + t - (LANES - 1), stride, partner_factors, wide, f,
                        partners, begin + t - (LANES - 1),
                    )  # fmt: skip
        last_columns(columns, stride, partner_factors, partners, begin, count, some)
        weigh_columns(columns, stride, roots, wide, count, weighted)
        for t in range(0, count, LANES):
            if targeted:
                store(errors, t, load(roots, t) * load_first(targets, begin + t, count - t))
            else:
                store(errors, t, load(roots, t))
        for f in range(wide):
            m = factors[x, f]
            for t in range(0, count, LANES):
                store(errors, t, load(errors, t) - m * load(columns, f * stride + t))
        change, last_column = zero, np.int64(0)
        known = drawn and pulls[x] > zero
        for f in range(wide):
            own = squares[f, f]
            if own <= zero:
                # padding, or a feature that no partner has
                continue
            column = f * stride
            moments, lengths = fill(zero), fill(zero)
            for t in range(0, count, LANES):
                values = load(columns, column + t)
                error = load(errors, t) - change * load(columns, last_column + t)
                store(errors, t, error)
                moments += values * error
                lengths += values * values
            crossed = fill(zero)
            for g in range(0, wide, LANES):
                apart = load(factors, x * wide + g)
                if known:
                    apart -= load(before, x * wide + g)
                crossed += load(squares, f * wide + g) * apart
            old = factors[x, f]
            length, centre, pull = summed(lengths), zero, zero
            if known:
                centre, pull = before[x, f], pulls[x]
            # what holds all coordinates at the centre, but for this one's own part of it
            held = regs[x] + unobserved * own + pull
            moment = summed(moments) + length * old + held * centre
            moment -= unobserved * (summed(crossed) - own * (old - centre))
            new = moment / (length + held)
            if new < lowest:
                new = lowest
            change, last_column = new - old, column
            factors[x, f] = new
        sums = fill(zero)
        for t in range(0, count, LANES):
            error = load(errors, t) - change * load(columns, last_column + t)
            sums += error * error
        square_errors[x] = np.float64(summed(sums))


@nb.njit(cache=True, nogil=True)
def gram(factors, first, last):  # type: ignore[no-untyped-def]
    """Sum over rows first..last-1 of the products of their coordinates.

    Parameters
    ----------
    factors
        float32, `padded_rows`
    first, last
        int64, the range of rows, `last` not included

    Returns
    -------
    float64, shape (wide, wide)
    """
    wide = factors.shape[1]
    total = np.zeros((wide, wide), np.float64)
    part = np.zeros(wide * wide, np.float32)
    for begin in range(first, last, 256):
        # short sums in float32, so that what rounding loses does not grow with the side
        part[:] = np.float32(0.0)
        for x in range(begin, min(begin + 256, last)):
            for f in range(wide):
                own = factors[x, f]
                for g in range(0, wide, LANES):
                    at = f * wide + g
                    store(part, at, load(part, at) + own * load(factors, x * wide + g))
        for f in range(wide):
            for g in range(wide):
                total[f, g] += part[f * wide + g]
    return total


@nb.njit(cache=True, nogil=True, fastmath=FAST)
def rank_held(  # type: ignore[no-untyped-def]
    first, last, users, starts, done, held_starts, held, factors, partner_factors, ranks
):
    """Rank held-out items of users among all items that the users have not done; 1 for the best.

    Parameters
    ----------
    first, last
        int64, the range of places in `users`
    users
        int64, shape (m,), rows of users
    starts, done
        int64 (users + 1,) and int32: what user x has done lies at starts[x]..starts[x+1]-1
    held_starts, held
        int64 (m + 1,) and int32: items held out of users[n] at held_starts[n]..held_starts[n+1]-1
    factors, partner_factors
        of users and items, as `padded_rows`
    ranks
        int64, as `held`, out; an item that scores the same counts as better
    """
    wide, items = factors.shape[1], partner_factors.shape[0]
    scores = np.empty(items, np.float32)
    for n in range(first, last):
        x = users[n]
        for y in range(items):
            sums = fill(np.float32(0.0))
            for f in range(0, wide, LANES):
                sums += load(factors, x * wide + f) * load(partner_factors, y * wide + f)
            scores[y] = summed(sums)
        for k in range(starts[x], starts[x + 1]):
            scores[done[k]] = -np.inf
        for h in range(held_starts[n], held_starts[n + 1]):
            own = scores[held[h]]
            better = 0
            for y in range(items):
                better += scores[y] >= own
            ranks[h] = better


@nb.njit(cache=True, nogil=True)
def solve_nonnegative(system, right):  # type: ignore[no-untyped-def]
    """Return the x >= 0 that makes x' A x / 2 - b' x least, one coordinate after another.

    Parameters
    ----------
    system
        float64, shape (k, k), A, symmetric and positive definite
    right
        float64, shape (k,), b
    """
    found = np.zeros(right.size)
    rest = right.copy()
    for _ in range(_MOST_PASSES):
        largest, moved = 0.0, 0.0
        for f in range(right.size):
            new = found[f] + rest[f] / system[f, f]
            if new < 0.0:
                new = 0.0
            change = new - found[f]
            if change != 0.0:
                for g in range(right.size):
                    rest[g] -= system[g, f] * change
            found[f] = new
            largest, moved = max(largest, new), max(moved, abs(change))
        if not moved > _SETTLED * largest:
            break
    return found
