"""What events are drawn against, and how popularity is counted: compiled, arrays only, no Spark.

None of it needs factors: negatives of an event follow from its pair, its number and the popularity
of items as it is then. docs/positive-only.md has the equations, numbered there.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from sparkml_sgdals import _compiling as nb
from sparkml_sgdals.arrays.hashing import mix64
from sparkml_sgdals.kernels.events.partners import LATEST_ITEMS, join_partners, said_by_partners

__all__ = ["SHARES_RATE", "cumulate", "draw_events", "draw_pool", "guide_draws", "note_done"]

SHARES_RATE: Final = 0.001
"""how far an event moves the shares of the parts of popularity"""

_NOTHING_LEFT: Final = -60.0
"""logarithm of a share that no sum of float64 keeps"""
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
_TO_UNIT: Final = 1.0 / 9007199254740992.0


@nb.njit(cache=True, nogil=True)
def draw_events(  # type: ignore[no-untyped-def]
    users, items, values, draw_keys, begin, end, first_event, events, with_context,
    done, starts, lengths, order, cumulative, guide, pool, fades, totals, left, counted,
    popularity, last, parts, marks, partners, repeats, again, user_last, recent, drawn, touched,
    said,
):  # fmt: skip
    """Find what colours each event and its negatives, and count it: nothing of that needs factors.

    Parameters
    ----------
    users
        int32, shape (n,), rows of the users' factors, of `starts` and `lengths`
    items
        int32, shape (n,), rows of the items' arrays
    values
        float32, shape (n,): a row of 0 or less is no event
    draw_keys
        uint64, shape (n,), what the draws of a row follow from
    begin, end
        the rows to go through are begin..end-1
    first_event
        number of events before these n rows
    events
        how many of the rows before `begin` are events
    with_context
        whether what a user did last moves its features
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
        float64, shape (parts, items), popularity before these n rows: `cumulate`
    guide
        int32, shape (parts, buckets + 1): where in `cumulative` to look, by `guide_draws`
    pool
        what all rows draw from in its place, by `draw_pool`: where each part begins, and items
    fades
        float64, shape (parts,), share of popularity that is left after one event
    totals
        float64, shape (parts,), sum of each part of popularity, in place
    left
        float64, shape (parts,), share that is left of what was there before the n rows, in place
    counted
        int32, shape (n,), the items of the events so far, in place
    popularity, last
        as in `ItemMemory`, in place
    parts
        float64, shape (parts,), share of each part of popularity, in place
    marks
        int64, shape (items,), at most 0 before the first row: work space
    partners
        rows, keys, strengths, sums, times and item_keys of `join_partners`, in place; of width 0
        where none are kept
    repeats, again
        as in `said_by_partners`
    user_last
        int64, shape (users,): number of each user's last event, 0 where it is not known, in place
    recent
        int32, shape (end - begin, CONTEXT_ITEMS), out: the items that colour each row, the last
        done first, then -1
    drawn
        int32, shape (end - begin, negatives), out: the items to step towards 0, then -1
    touched
        bool, shape (items,), True for the items of these rows, of `recent` and `drawn`, and for
        those whose partners change
    said
        float64, shape (end - begin, 5), out: as in `weigh_partners`

    Returns
    -------
    `events` and how many of these rows are events

    Notes
    -----
    A pair that comes again is an event again, and does not count twice in `done`.
    """
    base, rates = cumulative[:, -1].copy(), np.log(fades)
    recent[:] = -1
    drawn[:] = -1
    said[:] = 0.0
    rows, keys, strengths, sums, times, item_keys = partners
    paired = rows.shape[1] > 0
    for n in range(begin, end):
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
            elif with_context and count < recent.shape[1]:
                recent[n - begin, count] = item
                touched[item] = True
                count += 1
        if values[n] > 0:
            marks[y] = n + 1
            found = _draw(
                draw_keys[n], n + 1, events, order, cumulative, guide, pool, base, totals, left,
                rates, parts, counted, marks, drawn[n - begin],
            )  # fmt: skip
            for k in range(found):
                touched[drawn[n - begin, k]] = True
            now = first_event + events
            known = last[y] > 0
            if paired and lengths[x] > 0:
                if known and (repeats or place < 0):
                    own, total = said_by_partners(
                        x, y, now, done, starts, lengths, rows, strengths, sums, times, marks,
                        n + 1, repeats, again,
                    )  # fmt: skip
                    said[n - begin, 1] = own
                    said[n - begin, 2] = total
                    if user_last[x] > 0:
                        said[n - begin, 3] = now + 1 - user_last[x]
                    said[n - begin, 4] = lengths[x]
                join_partners(
                    x, y, now, done, starts, lengths, rows, keys, strengths, sums, times, item_keys
                )
                for k in range(min(lengths[x], LATEST_ITEMS)):
                    touched[done[starts[x] + lengths[x] - 1 - k]] = True
            share = _count_event(y, now, fades, rates, totals, left, popularity, last, parts)
            if said[n - begin, 2] > 0.0:
                said[n - begin, 0] = share
            counted[events] = y
            events += 1
            user_last[x] = first_event + events
            _put_last(x, y, place, done, starts, lengths)
    return events


@nb.njit(cache=True, nogil=True)
def faded_popularity(popularity, last, now, fades):  # type: ignore[no-untyped-def]
    """Return popularity as it stands now, float64, shape (items, parts).

    Parameters
    ----------
    popularity, last
        as in `ItemMemory`
    now
        number of events so far
    fades
        float64, shape (parts,), share of popularity that is left after one event
    """
    found, rates = np.zeros((last.size, fades.size), np.float64), np.log(fades)
    for y in range(last.size):
        age = np.float64(now - last[y])
        for h in range(fades.size):
            faded = rates[h] * age
            if popularity[y, h] > np.float32(0.0) and faded > _NOTHING_LEFT:
                found[y, h] = popularity[y, h] * math.exp(faded)
    return found


@nb.njit(cache=True, nogil=True)
def cumulate(popularity, last, now, fades, order):  # type: ignore[no-untyped-def]
    """Cumulate `faded_popularity` in an order of the items; float64, shape (parts, items).

    Parameters
    ----------
    popularity, last, now, fades
        as in `faded_popularity`
    order
        int32, shape (items,)
    """
    faded = faded_popularity(popularity, last, now, fades)
    cumulative = np.empty((fades.size, order.size), np.float64)
    sums = np.zeros(fades.size, np.float64)
    for at in range(order.size):
        for h in range(fades.size):
            sums[h] += faded[order[at], h]
            cumulative[h, at] = sums[h]
    return cumulative


@nb.njit(cache=True, nogil=True)
def guide_draws(cumulative, buckets):  # type: ignore[no-untyped-def]
    """Return where draws that begin with a share of cumulated popularity end.

    Parameters
    ----------
    cumulative
        float64, shape (parts, items)
    buckets
        how many shares, a power of two

    Returns
    -------
    int32, shape (parts, buckets + 1): the first item beyond that share, then the last item
    """
    guide = np.empty((cumulative.shape[0], buckets + 1), np.int32)
    final = cumulative.shape[1] - 1
    for h in range(cumulative.shape[0]):
        item = 0
        for bucket in range(buckets):
            point = bucket / buckets * cumulative[h, final]
            while item < final and cumulative[h, item] <= point:
                item += 1
            guide[h, bucket] = item
        guide[h, buckets] = final
    return guide


@nb.njit(cache=True, nogil=True)
def draw_pool(cumulative, order, parts, size, state):  # type: ignore[no-untyped-def]
    """Draw items by their popularity, from which many rows then draw evenly.

    Of each part as many as its share says, one from each of as many equal shares of what it is
    cumulated to, so that a row's draw has the same odds as without.

    Parameters
    ----------
    cumulative, order, parts
        as in `draw_events`
    size
        how many items there are to be, but for rounding; 0 for none
    state
        uint64, what the draws follow from

    Returns
    -------
    int64, shape (parts + 1,): where each part begins, and int32, rows of items
    """
    final = order.size - 1
    begins = np.zeros(parts.size + 1, np.int64)
    for h in range(parts.size):
        many = 0
        if size > 0 and order.size > 0 and cumulative[h, final] > 0.0:
            many = max(int(size * parts[h] + 0.5), 1)
        begins[h + 1] = begins[h] + many
    items = np.empty(begins[-1], np.int32)
    for h in range(parts.size):
        many = begins[h + 1] - begins[h]
        at = 0
        for k in range(many):
            state += _GOLDEN
            sought = (k + _unit(state)) / many * cumulative[h, final]
            while at < final and cumulative[h, at] <= sought:
                at += 1
            items[begins[h] + k] = order[at]
    return begins, items


@nb.njit(cache=True, nogil=True)
def note_done(users, items, values, done, starts, lengths):  # type: ignore[no-untyped-def]
    """Put events into the lists of what users have done, as `draw_events` does; in place."""
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
def _draw(  # type: ignore[no-untyped-def]
    state, mark, events, order, cumulative, guide, pool, base, totals, left, rates, parts, counted,
    marks, drawn,
):  # fmt: skip
    """Draw items by their popularity, leave out those with this mark, and return how many are left.

    `base` is the sum of each part of popularity before the batch, `left` what share of it is left.
    """
    num_parts, buckets = rates.size, guide.shape[1] - 1
    begins, pooled = pool
    found = 0
    for _ in range(drawn.size):
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
        faded = base[part] * left[part]
        if events == 0 or point < faded:
            # buckets are a power of two, so that rounding leaves the item in its bucket
            share = point / faded
            many = begins[part + 1] - begins[part]
            if many > 0:
                item = pooled[begins[part] + min(np.int64(share * many), many - 1)]
                if marks[item] != mark:
                    drawn[found] = item
                    found += 1
                continue
            bucket = min(np.int64(share * buckets), buckets - 1)
            sought = share * base[part]
            low, high = guide[part, bucket], guide[part, bucket + 1]
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
            if rates[part] < 0.0:
                # above 0 also where `rest` is rounded to 1
                after = max(1.0 - rest * (1.0 - left[part]), 1e-300)
                age = np.int64(math.log(after) / rates[part])
            else:
                age = np.int64(rest * events)
            item = counted[events - 1 - min(age, events - 1)]
        if marks[item] != mark:
            drawn[found] = item
            found += 1
    return found


@nb.njit(cache=True, nogil=True)
def _unit(state):  # type: ignore[no-untyped-def]
    """Return a number in [0, 1) from 64 bits."""
    return np.float64(mix64(state) >> np.uint64(11)) * _TO_UNIT


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
def _count_event(y, before, fades, rates, totals, left, popularity, last, parts):  # type: ignore[no-untyped-def]
    """Count an event, equations (4) and (5); return the share of events that its item had."""
    likelihood = 0.0
    for h in range(fades.size):
        now = popularity[y, h] * math.exp(rates[h] * (before - last[y]))
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
        left[h] *= fades[h]
    for h in range(fades.size):
        parts[h] /= total
    last[y] = before + 1
    return likelihood
