"""Rank the items of events among all that their users have not done."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from sparkml_sgdals import _compiling as nb
from sparkml_sgdals.arrays.hashing import mix64
from sparkml_sgdals.kernels.checks import FAST
from sparkml_sgdals.kernels.events.filter import CONTEXT_DECAY, CONTEXT_ITEMS
from sparkml_sgdals.kernels.events.judges import NEVER, boosted, mixed

__all__ = ["rank_events"]

_ROUNDING: Final = np.float32(4e-7)
"""of a sum of float32, for each of its terms: more than any order of adding them is off by"""
_TILE: Final = 256
"""items scored at once: their scores and factors stay in the cache of a core"""
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_EVENT: Final = np.uint64(0x8CB92BA72F3D8DD7)


@nb.njit(cache=True, nogil=True)
def _chain(users, items, starts, lengths, done, newest, earlier, first):  # type: ignore[no-untyped-def]
    """Take out of `first` what was done before the batch, and chain the others of a user."""
    for n in range(users.size):
        x = users[n]
        for j in range(starts[x], starts[x] + lengths[x]):
            if not first[n]:
                break
            first[n] = done[j] != items[n]
        if first[n]:
            earlier[n] = newest[x]
            newest[x] = n


@nb.njit(cache=True, nogil=True)
def _score(taste, biases, means, judged, bases, table, own, item):  # type: ignore[no-untyped-def]
    """One score, by the operations of a tile in their order, so that equal items tie."""
    total = biases[item]
    for f in range(1, means.shape[1]):
        total += taste[f] * means[item, f]
    if not judged:
        return total
    product = np.float32(0.0)
    for f in range(1, table.shape[1]):
        product += own[f] * table[item, f]
    return mixed(total + taste[0], product, own[0] + bases[item])


@nb.njit(cache=True, nogil=True)
def _boost(item, first, last, positions, boosts):  # type: ignore[no-untyped-def]
    """Look up what is added to an item in a user's rising positions."""
    end = last
    while first < last:
        middle = (first + last) // 2
        if positions[middle] < item:
            first = middle + 1
        else:
            last = middle
    if first < end and positions[first] == item:
        return boosts[first]
    return np.float32(0.0)


@nb.njit(cache=True, nogil=True)
def _add_products(factors, columns, tile):  # type: ignore[no-untyped-def]
    """Add up factors 1.. times columns 1.., one after another, of a tile's items.

    Four at a time, each sum in the same order: a tile is then read and written a quarter as often.
    """
    size, width = tile.size, factors.size
    f = 1
    while f + 4 <= width:
        a, b, c, d = factors[f], factors[f + 1], factors[f + 2], factors[f + 3]
        first = columns[f, :size]
        second = columns[f + 1, :size]
        third = columns[f + 2, :size]
        fourth = columns[f + 3, :size]
        for j in range(size):
            total = tile[j] + a * first[j]
            total = total + b * second[j]
            total = total + c * third[j]
            tile[j] = total + d * fourth[j]
        f += 4
    while f < width:
        factor = factors[f]
        row = columns[f, :size]
        for j in range(size):
            tile[j] += factor * row[j]
        f += 1


@nb.njit(cache=True, nogil=True)
def _taste(n, users, user_mean, context, starts, lengths, done, taste):  # type: ignore[no-untyped-def]
    """Features of the user of an event, what it did last added, into `taste`."""
    x = users[n]
    taste[:] = user_mean[x]
    if context.shape[0] == 0:
        return
    count = min(lengths[x], CONTEXT_ITEMS)
    squares = 0.0
    for k in range(count):
        squares += CONTEXT_DECAY ** (2 * k)
    for k in range(count):
        share = np.float32(CONTEXT_DECAY**k / math.sqrt(squares))
        item = done[starts[x] + lengths[x] - 1 - k]
        for f in range(1, taste.size):
            taste[f] += share * context[item, f - 1]


@nb.njit(cache=True, nogil=True, fastmath=FAST)
def _lengths(matrix):  # type: ignore[no-untyped-def]
    """Return how long the features of each row are, column 0 apart; float32."""
    found = np.empty(matrix.shape[0], np.float32)
    for row in range(matrix.shape[0]):
        total = np.float32(0.0)
        for f in range(1, matrix.shape[1]):
            total += matrix[row, f] * matrix[row, f]
        found[row] = np.sqrt(total)
    return found


@nb.njit(cache=True, nogil=True)
def _highest_from(values, order, count):  # type: ignore[no-untyped-def]
    """Return the highest value of each tile of ordered items and of all tiles after it."""
    found = np.full(-(-count // _TILE) + 1, NEVER)
    for tile in range(found.size - 2, -1, -1):
        highest = found[tile + 1]
        for at in range(tile * _TILE, min((tile + 1) * _TILE, count)):
            highest = max(highest, values[order[at]])
        found[tile] = highest
    return found


@nb.njit(cache=True, nogil=True)
def _lay_beside(matrix, order, begin, size, columns):  # type: ignore[no-untyped-def]
    """Put rows of a tile's items side by side, features from 1 on: shape (width, tile)."""
    for j in range(size):
        row = order[begin + j]
        for f in range(1, matrix.shape[1]):
            columns[f, j] = matrix[row, f]


@nb.njit(cache=True, nogil=True)
def _count_better(  # type: ignore[no-untyped-def]
    tastes, own, most, events, biases, means, user_table, bases, table, order, better
):
    """Count, of each event, the items that score at least as much as its own, partners apart.

    A tile of items for all events, then the next: their factors come into the cache once. Items
    come in the order of their biases, and an event is left as soon as no item that is to come can
    reach its score, or as many have as matter.

    Parameters
    ----------
    tastes
        float32, shape (m, rank + 1)
    own
        float32, shape (m,), scores of the events' own items
    most
        int64, shape (m,): once so many are counted it does not matter how many there are
    events
        int32, shape (m,), rows of the events' users in `user_table`
    biases, means, user_table, bases, table
        as `rank_events` has them
    order
        int64, shape (items,), the items, the highest bias first
    better
        int64, shape (m,), out
    """
    known, judged = order.size, user_table.shape[1] > 0
    one, rounding = np.float32(1.0), _ROUNDING * np.float32(8 + means.shape[1] + table.shape[1])
    tile, second = np.empty(_TILE, np.float32), np.zeros(_TILE, np.float32)
    columns = np.empty((means.shape[1], _TILE), np.float32)
    table_columns = np.empty((table.shape[1], _TILE), np.float32)
    reach, reaches = _highest_from(_lengths(means), order, known), _lengths(tastes)
    bias = _highest_from(biases, order, known)
    base = table_reach = np.empty(0, np.float32)
    if judged:
        base = _highest_from(bases, order, known)
        table_reach = _highest_from(_lengths(table), order, known)
    table_reaches = _lengths(user_table)
    better[:] = 0
    going, left = np.arange(tastes.shape[0]), tastes.shape[0]
    for begin in range(0, known, _TILE):
        number, size = begin // _TILE, min(_TILE, known - begin)
        staying = 0
        for a in range(left):
            e = going[a]
            far = reaches[e] * reach[number]
            highest = bias[number] + far + rounding * (abs(bias[number]) + far)
            if judged:
                x = events[e]
                highest = mixed(
                    highest + tastes[e, 0] + rounding * abs(tastes[e, 0]),
                    table_reaches[x] * table_reach[number] * (one + rounding),
                    user_table[x, 0] + base[number],
                ) * (one + rounding)
            if highest >= own[e] and better[e] < most[e]:
                going[staying] = e
                staying += 1
        left = staying
        if left == 0:
            return
        _lay_beside(means, order, begin, size, columns)
        _lay_beside(table, order, begin, size, table_columns)
        for j in range(size):
            columns[0, j] = biases[order[begin + j]]
        for a in range(left):
            e = going[a]
            tile[:size] = columns[0, :size]
            _add_products(tastes[e], columns, tile[:size])
            if judged:
                own_table = user_table[events[e]]
                second[:size] = np.float32(0.0)
                _add_products(own_table, table_columns, second[:size])
                for j in range(size):
                    tile[j] = mixed(
                        tile[j] + tastes[e, 0], second[j], own_table[0] + bases[order[begin + j]]
                    )
            count = 0
            least = own[e]
            for j in range(size):
                count += tile[j] >= least
            better[e] += count


@nb.njit(cache=True, nogil=True)
def rank_events(  # type: ignore[no-untyped-def]
    chosen, users, items, earlier, most, user_mean, biases, means, user_table, bases, table,
    popular, rivals, context, starts, lengths, done, partners, repeats, draws, sample, order, marks,
    ranks,
):  # fmt: skip
    """Rank the item of each chosen event, by the model and by popularity; an equal one is better.

    Parameters
    ----------
    chosen
        int64, shape (m,), places of the events
    users, items, starts, lengths, done
        as in `EventsToRank`
    earlier
        int64, shape (n,), the place of the event of its user before, -1 for none; each of those is
        an item that its user had not done before
    most
        ranks that matter: one beyond may be told as any other beyond
    user_mean
        float32, shape (users, rank + 1); column 0 is added where there are two judges
    biases, means
        float32, shapes (items,) and (items, rank + 1), of the known items: bias, and features from
        column 1 on
    user_table, bases, table
        likewise what a fitted table says, of width table rank + 1, a logarithm first in that of
        users; width 0 for models without: see `judges.mixed`
    popular
        int64, shape (items,), what the baseline ranks by
    rivals
        int64, `popular`, rising
    context
        float32, shape (rows, rank), what having done an item adds to features; 0 rows for none
    partners
        starts, int64 of shape (users + 1,), rising rows of items, int32, and what is added to
        them, float32: `partners.user_boosts`
    repeats
        whether items that were done may come again
    draws
        uint64, shape (m,), what the sample of an event follows from
    sample
        items drawn, uniformly and with replacement, that an item is ranked among; 0 for all
    order
        int64, shape (items,), with a sample items in an order that does not depend on the process,
        else the highest bias first
    marks
        int64, shape (items,), zeros: work space
    ranks
        int64, shape (2, m), out: 1 for the best; by the model, and by popularity
    """
    known, width = biases.size, means.shape[1]
    begins, positions, boosts = partners
    count = chosen.size
    tastes = np.empty((count, width), np.float32)
    owns, bars = np.empty(count, np.float32), np.empty(count, np.int64)
    owners = np.empty(count, np.int32)
    judged = user_table.shape[1] > 0
    for e in range(count):
        n = chosen[e]
        x, y = users[n], items[n]
        owners[e] = x
        _taste(n, users, user_mean, context, starts, lengths, done, tastes[e])
        owns[e] = boosted(
            _score(tastes[e], biases, means, judged, bases, table, user_table[x], y),
            _boost(y, begins[x], begins[x + 1], positions, boosts), judged,
        )  # fmt: skip
        bars[e] = popular[y]
    betters = np.zeros(count, np.int64)
    enough = np.empty(count, np.int64)
    if sample == 0:
        for e in range(count):
            # as many at most of those that are counted do not compete
            n = chosen[e]
            enough[e] = most + 1 + (0 if repeats else lengths[users[n]])
            before = earlier[n]
            while before >= 0:
                enough[e] += 1
                before = earlier[before]
        _count_better(
            tastes, owns, enough, owners, biases, means, user_table, bases, table, order, betters
        )
    for e in range(count):
        n = chosen[e]
        x, y = users[n], items[n]
        first, last = begins[x], begins[x + 1]
        own_table, taste = user_table[x], tastes[e]
        own, own_popular = owns[e], bars[e]
        marks[y] = e + 1
        better = betters[e]
        favoured = 0
        if sample > 0:
            if not repeats:
                for j in range(starts[x], starts[x] + lengths[x]):
                    if done[j] < known:
                        marks[done[j]] = e + 1
            before = earlier[n]
            while before >= 0:
                if items[before] < known:
                    marks[items[before]] = e + 1
                before = earlier[before]
            state = draws[e]
            for _ in range(sample):
                state += _GOLDEN
                item = order[np.int64(mix64(state) % np.uint64(known))]
                if marks[item] != e + 1:
                    marks[item] = e + 1
                    score = _score(taste, biases, means, judged, bases, table, own_table, item)
                    boost = _boost(item, first, last, positions, boosts)
                    better += boosted(score, boost, judged) >= own
                    favoured += popular[item] >= own_popular
        else:
            favoured += known - np.searchsorted(rivals, own_popular)
            for j in range(first, last):
                score = _score(taste, biases, means, judged, bases, table, own_table, positions[j])
                better += (boosted(score, boosts[j], judged) >= own) - (score >= own)
            # the item itself, and what its user has done, do not compete
            better -= 1
            favoured -= 1
            for j in range(starts[x], starts[x] + (0 if repeats else lengths[x])):
                item = done[j]
                if item < known:
                    score = _score(taste, biases, means, judged, bases, table, own_table, item)
                    boost = _boost(item, first, last, positions, boosts)
                    better -= boosted(score, boost, judged) >= own
                    favoured -= popular[item] >= own_popular
            before = earlier[n]
            while before >= 0:
                item = items[before]
                if item < known:
                    score = _score(taste, biases, means, judged, bases, table, own_table, item)
                    boost = _boost(item, first, last, positions, boosts)
                    better -= boosted(score, boost, judged) >= own
                    favoured -= popular[item] >= own_popular
                before = earlier[before]
        ranks[0, e] = 1 + better
        ranks[1, e] = 1 + favoured
