"""Learning events by a filter with a logistic likelihood: compiled, arrays only, no Spark.

An event is a user doing an item; there are no ratings. Each is learned as one step towards 1, then
as steps towards 0 for items drawn in proportion to their popularity, so that features learn the
taste beyond it. docs/positive-only.md has the equations, numbered there.
"""

from __future__ import annotations

import math
from typing import Final

import numba as nb
import numpy as np

from sparkml_sgdals.arrays.hashing import mix64
from sparkml_sgdals.kernels.checks import MIN_VARIANCE

__all__ = [
    "CONTEXT_DECAY",
    "CONTEXT_ITEMS",
    "MIN_INFORMATION",
    "SHARES_RATE",
    "filter_events",
    "note_done",
]

CONTEXT_ITEMS: Final = 8
"""items that a user did last and that colour its next event"""
CONTEXT_DECAY: Final = 0.7
"""weight of one of them in that of the one after it"""
MIN_INFORMATION: Final = 0.05
"""least p (1 - p): keeps the step of a sure and wrong prediction finite"""
SHARES_RATE: Final = 0.001
"""how far an event moves the shares of the parts of popularity"""

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_TO_UNIT: Final = 1.0 / 9007199254740992.0


@nb.njit(cache=True, nogil=True)
def _unit(state):  # type: ignore[no-untyped-def]
    """Return a number in [0, 1) from 64 bits."""
    return np.float64(mix64(state) >> np.uint64(11)) * _TO_UNIT


@nb.njit(cache=True, nogil=True)
def _step(  # type: ignore[no-untyped-def]
    x, y, target, weight, offset, drift, regressor, recent, shares, count,
    user_mean, user_var, item_mean, item_var, context, context_var,
):  # fmt: skip
    """One step of the filter towards 0 or 1: equations (2) and (3)."""
    width = item_mean.shape[1]
    logit = offset + item_mean[y, 0]
    spread = item_var[y, 0]
    for f in range(1, width):
        taste = user_mean[x, f]
        for k in range(count):
            taste += shares[k] * context[recent[k], f - 1]
        regressor[f] = taste
        feature = item_mean[y, f]
        logit += taste * feature
        unsure = user_var[x, f]
        for k in range(count):
            unsure += shares[k] * shares[k] * context_var[recent[k], f - 1]
        spread += item_var[y, f] * taste * taste + unsure * feature * feature
    p = 1.0 / (1.0 + math.exp(-logit))
    information = max(p * (1.0 - p), MIN_INFORMATION)
    inverse = 1.0 / (spread + 1.0 / (information * weight))
    gain = (target - p) / information * inverse
    c = item_var[y, 0]
    item_mean[y, 0] += c * gain
    item_var[y, 0] = max(c - c * c * inverse, MIN_VARIANCE) + drift
    for f in range(1, width):
        feature = item_mean[y, f]
        c = item_var[y, f]
        a = c * regressor[f]
        item_mean[y, f] += a * gain
        item_var[y, f] = max(c - a * a * inverse, MIN_VARIANCE) + drift
        c = user_var[x, f]
        a = c * feature
        user_mean[x, f] += a * gain
        user_var[x, f] = max(c - a * a * inverse, MIN_VARIANCE) + drift
        for k in range(count):
            c = context_var[recent[k], f - 1]
            a = c * shares[k] * feature
            context[recent[k], f - 1] += a * gain
            context_var[recent[k], f - 1] = max(c - a * a * inverse, MIN_VARIANCE) + drift


@nb.njit(cache=True, nogil=True)
def filter_events(  # type: ignore[no-untyped-def]
    users, items, values, weights, draw_keys, first_event, num_negatives, drift, with_context,
    user_mean, user_var, item_mean, item_var, context, context_var,
    done, starts, lengths, order, cumulative, fades, popularity, last, parts, marks, touched,
):  # fmt: skip
    """Learn one event after another.

    Parameters
    ----------
    users
        int32, shape (n,), rows of `user_mean`, `starts` and `lengths`
    items
        int32, shape (n,), rows of the items' arrays
    values
        float32, shape (n,): a row of 0 or less is a step towards 0 and no event
    weights
        float32, shape (n,), above 0: how much the row's own step counts
    draw_keys
        uint64, shape (n,), what the draws of a row follow from
    first_event
        number of events before these
    num_negatives
        draws an event
    drift
        float32, variance added to every coordinate that a step touches
    with_context
        whether what a user did last moves its features
    user_mean, user_var, item_mean, item_var
        float32, shape (ids, rank + 1), in place
    context, context_var
        float32, shape (items, rank), in place
    done
        int32, rows of the items that each user has done, in order: those of user x lie at
        starts[x]..starts[x]+lengths[x]-1, with room for those to come; in place
    starts
        int64, shape (users,), where the items of each user begin in `done`
    lengths
        int64, shape (users,), in place
    order
        int32, shape (items,), all items in an order that does not depend on the process
    cumulative
        float64, shape (parts, items), cumulated popularity in that order before these
    fades
        float64, shape (parts,), share of popularity that is left after one event
    popularity, last
        as in `ItemMemory`, in place
    parts
        float64, shape (parts,), share of each part of popularity, in place
    marks
        int64, shape (items,), at most 0 at the start: work space
    touched
        bool, shape (items,), out: items whose state has changed

    Notes
    -----
    A pair that comes again is an event again, and does not count twice in `done`.
    """
    num_parts = fades.size
    offset = -math.log(num_negatives)
    regressor = np.empty(item_mean.shape[1], np.float64)
    recent = np.empty(CONTEXT_ITEMS, np.int32)
    shares = np.empty(CONTEXT_ITEMS, np.float64)
    counted = np.empty(users.size, np.int32)
    events = 0
    totals = np.empty(num_parts, np.float64)
    base = np.empty(num_parts, np.float64)
    for h in range(num_parts):
        base[h] = cumulative[h, -1]
        totals[h] = base[h]
    for n in range(users.size):
        x = users[n]
        y = items[n]
        touched[y] = True
        # the items that x has done are marked; the last of them but y colour this event
        count = 0
        place = -1
        for j in range(lengths[x] - 1, -1, -1):
            item = done[starts[x] + j]
            marks[item] = n + 1
            if item == y:
                place = j
            elif with_context and count < CONTEXT_ITEMS:
                recent[count] = item
                count += 1
        squares = 0.0
        for k in range(count):
            shares[k] = CONTEXT_DECAY**k
            squares += shares[k] * shares[k]
        for k in range(count):
            shares[k] /= math.sqrt(squares)
            touched[recent[k]] = True
        positive = values[n] > 0
        _step(
            x, y, 1.0 if positive else 0.0, weights[n], offset, drift, regressor, recent, shares,
            count, user_mean, user_var, item_mean, item_var, context, context_var,
        )  # fmt: skip
        if not positive:
            continue
        marks[y] = n + 1
        state = draw_keys[n]
        for _ in range(num_negatives):
            state += _GOLDEN
            which = _unit(state)
            part = 0
            while part < num_parts - 1 and which >= parts[part]:
                which -= parts[part]
                part += 1
            state += _GOLDEN
            point = _unit(state) * totals[part]
            if totals[part] <= 0.0:
                continue
            faded = base[part] * fades[part] ** events
            if events == 0 or point < faded:
                sought = point / faded * base[part]
                low = 0
                high = order.size - 1
                while low < high:
                    middle = (low + high) // 2
                    if cumulative[part, middle] > sought:
                        high = middle
                    else:
                        low = middle + 1
                item = order[low]
            else:
                # events of this batch: the one `age` before the last weighs fade^age
                rest = (point - faded) / (totals[part] - faded)
                if fades[part] < 1.0:
                    left = 1.0 - rest * (1.0 - fades[part] ** events)
                    age = np.int64(math.log(left) / math.log(fades[part]))
                else:
                    age = np.int64(rest * events)
                if age >= events:
                    age = np.int64(events - 1)
                item = counted[events - 1 - age]
            if marks[item] == n + 1:
                continue
            touched[item] = True
            _step(
                x, item, 0.0, 1.0, offset, drift, regressor, recent, shares, count,
                user_mean, user_var, item_mean, item_var, context, context_var,
            )  # fmt: skip
        _count_event(y, first_event + events, fades, totals, popularity, last, parts)
        counted[events] = y
        events += 1
        _put_last(x, y, place, done, starts, lengths)
    return events


@nb.njit(cache=True, nogil=True)
def _put_last(x, y, place, done, starts, lengths):  # type: ignore[no-untyped-def]
    """Make y the last item that x has done; `place` is where it stood, -1 for nowhere."""
    if place >= 0:
        for j in range(place, lengths[x] - 1):
            done[starts[x] + j] = done[starts[x] + j + 1]
    else:
        lengths[x] += 1
    done[starts[x] + lengths[x] - 1] = y


@nb.njit(cache=True, nogil=True)
def note_done(users, items, values, done, starts, lengths):  # type: ignore[no-untyped-def]
    """Put events into the lists of what users have done, as `filter_events` does; in place."""
    for n in range(users.size):
        if values[n] > 0:
            x = users[n]
            place = -1
            for j in range(lengths[x] - 1, -1, -1):
                if done[starts[x] + j] == items[n]:
                    place = j
                    break
            _put_last(x, items[n], place, done, starts, lengths)


@nb.njit(cache=True, nogil=True)
def _count_event(y, before, fades, totals, popularity, last, parts):  # type: ignore[no-untyped-def]
    """Move the shares of the parts of popularity, and count an event: equations (4) and (5)."""
    likelihood = 0.0
    for h in range(fades.size):
        now = np.float64(popularity[y, h]) * fades[h] ** (before - last[y])
        popularity[y, h] = now
        if totals[h] > 0.0:
            likelihood += parts[h] * now / totals[h]
    total = 0.0
    for h in range(fades.size):
        if likelihood > 0.0 and totals[h] > 0.0:
            share = parts[h] * np.float64(popularity[y, h]) / totals[h] / likelihood
            parts[h] += SHARES_RATE * (share - parts[h])
        total += parts[h]
        popularity[y, h] = popularity[y, h] * fades[h] + 1.0
        totals[h] = totals[h] * fades[h] + 1.0
    for h in range(fades.size):
        parts[h] /= total
    last[y] = before + 1
