"""Rank the items of events among all that their users have not done."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from sparkml_sgdals import _compiling as nb
from sparkml_sgdals.arrays.hashing import mix64
from sparkml_sgdals.kernels.events.filter import CONTEXT_DECAY, CONTEXT_ITEMS
from sparkml_sgdals.kernels.events.judges import boosted, mixed

__all__ = ["rank_events"]

_TILE: Final = 1024
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
def _score(taste, products, judged, table, own, item):  # type: ignore[no-untyped-def]
    """One score, by the operations of a tile in their order, so that equal items tie."""
    total = products[item, 0]
    for f in range(1, products.shape[1]):
        total += taste[f] * products[item, f]
    if not judged:
        return total
    product = np.float32(0.0)
    for f in range(1, table.shape[1]):
        product += own[f] * table[item, f]
    return mixed(total + taste[0], product, own[0] + table[item, 0])


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
def rank_events(  # type: ignore[no-untyped-def]
    chosen, users, items, earlier, user_mean, products, columns, user_table, table, table_columns,
    popular, context, starts, lengths, done, partners, repeats, draws, sample, order, marks, ranks,
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
    user_mean
        float32, shape (users, rank + 1); column 0 is added where there are two judges
    products
        float32, shape (items, rank + 1), of the known items: bias, then features
    columns
        float32, shape (rank + 1, items), the same transposed
    user_table, table, table_columns
        likewise what a fitted table says, of width table rank + 1, a logarithm first; width 0 for
        models without: see `judges.mixed`
    popular
        int64, shape (items,), what the baseline ranks by
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
        int64, shape (items,), items in an order that does not depend on the process
    marks
        int64, shape (items,), zeros: work space
    ranks
        int64, shape (2, m), out: 1 for the best; by the model, and by popularity
    """
    known, width = products.shape
    begins, positions, boosts = partners
    taste = np.empty(width, np.float32)
    tile = np.empty(_TILE, np.float32)
    second = np.empty(_TILE, np.float32)
    judged = user_table.shape[1] > 0
    for e in range(chosen.size):
        n = chosen[e]
        x = users[n]
        y = items[n]
        first, last = begins[x], begins[x + 1]
        own_table = user_table[x]
        taste[0] = user_mean[x, 0]
        for f in range(1, width):
            taste[f] = user_mean[x, f]
        if context.shape[0] > 0:
            count = min(lengths[x], CONTEXT_ITEMS)
            squares = 0.0
            for k in range(count):
                squares += CONTEXT_DECAY ** (2 * k)
            for k in range(count):
                share = np.float32(CONTEXT_DECAY**k / math.sqrt(squares))
                item = done[starts[x] + lengths[x] - 1 - k]
                for f in range(1, width):
                    taste[f] += share * context[item, f - 1]
        own = boosted(
            _score(taste, products, judged, table, own_table, y),
            _boost(y, first, last, positions, boosts), judged,
        )  # fmt: skip
        own_popular = popular[y]
        marks[y] = e + 1
        better = 0
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
                    score = _score(taste, products, judged, table, own_table, item)
                    boost = _boost(item, first, last, positions, boosts)
                    better += boosted(score, boost, judged) >= own
                    favoured += popular[item] >= own_popular
        else:
            for begin in range(0, known, _TILE):
                size = min(_TILE, known - begin)
                for j in range(size):
                    tile[j] = columns[0, begin + j]
                for f in range(1, width):
                    factor = taste[f]
                    row = columns[f, begin : begin + size]
                    for j in range(size):
                        tile[j] += factor * row[j]
                if judged:
                    second[:size] = np.float32(0.0)
                    for f in range(1, user_table.shape[1]):
                        factor = own_table[f]
                        row = table_columns[f, begin : begin + size]
                        for j in range(size):
                            second[j] += factor * row[j]
                    for j in range(size):
                        tile[j] = mixed(
                            tile[j] + taste[0],
                            second[j],
                            own_table[0] + table_columns[0, begin + j],
                        )
                for j in range(size):
                    better += tile[j] >= own
                    favoured += popular[begin + j] >= own_popular
            for j in range(first, last):
                score = _score(taste, products, judged, table, own_table, positions[j])
                better += (boosted(score, boosts[j], judged) >= own) - (score >= own)
            # the item itself, and what its user has done, do not compete
            better -= 1
            favoured -= 1
            for j in range(starts[x], starts[x] + (0 if repeats else lengths[x])):
                item = done[j]
                if item < known:
                    score = _score(taste, products, judged, table, own_table, item)
                    boost = _boost(item, first, last, positions, boosts)
                    better -= boosted(score, boost, judged) >= own
                    favoured -= popular[item] >= own_popular
            before = earlier[n]
            while before >= 0:
                item = items[before]
                if item < known:
                    score = _score(taste, products, judged, table, own_table, item)
                    boost = _boost(item, first, last, positions, boosts)
                    better -= boosted(score, boost, judged) >= own
                    favoured -= popular[item] >= own_popular
                before = earlier[before]
        ranks[0, e] = 1 + better
        ranks[1, e] = 1 + favoured
