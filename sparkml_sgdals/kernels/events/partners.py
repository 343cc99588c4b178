"""Items that stand together: what was done soon before or after what. Compiled, no Spark.

Each item keeps a bounded list of partners, each with a strength that fades; docs/positive-only.md
has the equations.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from sparkml_sgdals import _compiling as nb

__all__ = [
    "LATEST_DECAY",
    "LATEST_ITEMS",
    "OFFSETS",
    "faded_strengths",
    "gaps_of",
    "item_boosts",
    "join_partners",
    "lengths_of",
    "pair_boosts",
    "partner_shares",
    "said_by_partners",
    "user_boosts",
    "weigh_partners",
]

LATEST_ITEMS: Final = 10
"""items done last that an event is paired with, and whose partners are heard"""
LATEST_DECAY: Final = 0.7
"""how far one of them is heard, in that of the one after it"""
BACKWARDS: Final = np.float32(0.7)
"""strength of a pair against the order in which it was done"""
_HALF_LIFE: Final = 200_000.0
"""events after which a pair counts half"""
_UNSURE: Final = np.float32(20.0)
"""strength of what is not known of an item's partners"""
_RATE: Final = 0.002
"""how far an event moves the weight of either judge"""
_OFFSET_RATE: Final = 0.02
"""how far an event moves what a gap, or a length, adds to the log-odds of that weight"""
OFFSETS: Final = 10
"""gaps, and as many lengths, that are told apart"""
_LEAST: Final = 0.001
"""of either judge, so that it is heard again once it is better"""
_HIGHEST: Final = 100.0
"""of the odds of one event in the mean of all"""
_FADE: Final = math.log(0.5) / _HALF_LIFE


@nb.njit(cache=True, nogil=True, inline="always")
def _faded(now, time):  # type: ignore[no-untyped-def]
    return np.float32(math.exp(_FADE * (now - time)))


@nb.njit(cache=True, nogil=True)
def _add(j, y, strength, now, rows, keys, strengths, sums, times, item_keys):  # type: ignore[no-untyped-def]
    """Make y a partner of j, or a stronger one; the weakest makes room."""
    if now > times[j]:
        left = _faded(now, times[j])
        for slot in range(strengths.shape[1]):
            strengths[j, slot] *= left
        sums[j] *= left
    times[j] = now
    sums[j] += strength
    weakest, key = 0, item_keys[y]
    for slot in range(strengths.shape[1]):
        if keys[j, slot] == key and strengths[j, slot] > np.float32(0.0):
            strengths[j, slot] += strength
            return
        if strengths[j, slot] < strengths[j, weakest]:
            weakest = slot
    rows[j, weakest] = y
    keys[j, weakest] = key
    strengths[j, weakest] = strength


@nb.njit(cache=True, nogil=True)
def join_partners(x, y, now, done, starts, lengths, rows, keys, strengths, sums, times, item_keys):  # type: ignore[no-untyped-def]
    """Pair the item of an event with those that its user did last: equation (9); in place.

    Parameters
    ----------
    x, y
        the user, and the item's row
    now
        number of events so far
    done, starts, lengths
        as in `draw_events`, without this event
    rows, keys, strengths, sums, times
        int32 and int64, shape (items, partners), then float32 of that shape, float32 and int64 of
        shape (items,): as in `ItemMemory`, and the row of each key
    item_keys
        int64, shape (items,), keys of the items
    """
    for k in range(min(lengths[x], LATEST_ITEMS)):
        j = done[starts[x] + lengths[x] - 1 - k]
        strength = np.float32(1.0 / (k + 1.0))
        if j == y:
            # after itself, and before itself
            strength *= np.float32(1.0) + BACKWARDS
        _add(j, y, strength, now, rows, keys, strengths, sums, times, item_keys)
        if j != y:
            _add(
                y, j, strength * BACKWARDS, now, rows, keys, strengths, sums, times, item_keys
            )  # fmt: skip


@nb.njit(cache=True, nogil=True)
def said_by_partners(  # type: ignore[no-untyped-def]
    x, y, now, done, starts, lengths, rows, strengths, sums, times, marks, mark, repeats, again
):  # fmt: skip
    """Return what the partners of what a user did last say of an item, and of all that may come.

    Parameters
    ----------
    x, y, now, done, starts, lengths, rows, strengths, sums, times
        as in `join_partners`
    marks, mark
        int64, shape (items,): the items that the user has done bear this mark
    repeats
        whether items that were done may come again
    again
        float64, how far what is not known of an item's partners speaks for itself: the share of
        events that repeat, 0 where items do not come again

    Returns
    -------
    float64: N(y) of equation (10), and its sum over the items that may come
    """
    own, total, heard, share = 0.0, 0.0, 0.0, 1.0
    for k in range(min(lengths[x], LATEST_ITEMS)):
        j = done[starts[x] + lengths[x] - 1 - k]
        left = _faded(now, times[j])
        known = sums[j] * left + _UNSURE
        scale = share * np.float64(left / known)
        itself = share * again * np.float64(_UNSURE / known)
        total += itself
        if j == y:
            own += itself
        for slot in range(strengths.shape[1]):
            partner = rows[j, slot]
            if partner < 0 or strengths[j, slot] <= np.float32(0.0):
                continue
            said = scale * np.float64(strengths[j, slot])
            if partner == y:
                own += said
            if repeats or partner == y or marks[partner] != mark:
                total += said
        heard += share
        share *= LATEST_DECAY
    return own / max(heard, LATEST_DECAY), total / max(heard, LATEST_DECAY)


@nb.njit(cache=True, nogil=True, inline="always")
def _magnitude(number, bits):  # type: ignore[no-untyped-def]
    """Return how many times a number has so many bits more than one; the last is not bounded."""
    found, left = 0, number >> bits
    while left > 0 and found < OFFSETS - 1:
        found += 1
        left >>= bits
    return found


@nb.njit(cache=True, nogil=True, inline="always")
def _gap(since):  # type: ignore[no-untyped-def]
    """Return which gap it is: to below 4 events, 16, 64 and so on; one not known is the widest."""
    return _magnitude(since, 2) if since > 0 else OFFSETS - 1


@nb.njit(cache=True, nogil=True, inline="always")
def _length(done):  # type: ignore[no-untyped-def]
    """Return which length it is: to below 2 items, 4, 8 and so on."""
    return _magnitude(done, 1)


@nb.njit(cache=True, nogil=True, inline="always")
def _share_of(share, by_gap, by_length, gap, length):  # type: ignore[no-untyped-def]
    odds = math.log(share / (1.0 - share)) + by_gap[gap] + by_length[length]
    found = 1.0 / (1.0 + math.exp(-odds))
    return min(max(found, _LEAST), 1.0 - _LEAST)


@nb.njit(cache=True, nogil=True)
def gaps_of(now, last):  # type: ignore[no-untyped-def]
    """Find which of the ten gaps of equation (12) lie since users' last events.

    Parameters
    ----------
    now
        number of events so far
    last
        int64, shape (n,): number of the last event of each user, 0 where it is not known

    Returns
    -------
    int64, shape (n,)
    """
    found = np.empty(last.size, np.int64)
    for x in range(last.size):
        found[x] = _gap(now - last[x] if last[x] > 0 else 0)
    return found


@nb.njit(cache=True, nogil=True)
def lengths_of(done):  # type: ignore[no-untyped-def]
    """Find which of the ten lengths of equation (12) users have.

    Parameters
    ----------
    done
        int64, shape (n,): how many items each has done

    Returns
    -------
    int64, shape (n,)
    """
    found = np.empty(done.size, np.int64)
    for x in range(done.size):
        found[x] = _length(done[x])
    return found


@nb.njit(cache=True, nogil=True)
def partner_shares(now, last, lengths, share, by_gap, by_length):  # type: ignore[no-untyped-def]
    """Find how far partners are believed of users: equation (12).

    Parameters
    ----------
    now
        number of events so far
    last, lengths
        int64, shape (n,): number of the last event of each user, 0 where it is not known, and how
        many items it has done
    share, by_gap, by_length
        as in `weigh_partners`

    Returns
    -------
    float64, shape (n,)
    """
    found = np.empty(last.size)
    for x in range(last.size):
        gap = _gap(now - last[x] if last[x] > 0 else 0)
        found[x] = _share_of(share, by_gap, by_length, gap, _length(lengths[x]))
    return found


@nb.njit(cache=True, nogil=True)
def weigh_partners(said, odds, share, filter_sum, partner_sum, typical, by_gap, by_length):  # type: ignore[no-untyped-def]
    """Weigh filter and partners by events, one after another, by online EM: equation (11).

    Parameters
    ----------
    said
        float64, shape (n, 5): the item's share of events, and both numbers of `said_by_partners`; a
        share of 0 for a row that is no event to judge by; then the number of events since the last
        one of the user, 0 where it is not known, and how many items the user had done
    odds
        float64, shape (n, 2), of the filter before the event: p(y) / share(y) of its item, and the
        mean of that over the items drawn; the latter 0 where there are none
    share, filter_sum, partner_sum
        float64: how far partners are believed where nothing is added, and what either judgement
        sums up to
    typical
        float64, how far they are believed in the mean of events
    by_gap, by_length
        float64, shape (OFFSETS,): what the time since a user's last event, and how many items it
        has done, add to the log-odds of the first; in place

    Returns
    -------
    the four numbers once the events were seen
    """
    for n in range(said.shape[0]):
        if said[n, 0] <= 0.0 or said[n, 2] <= 0.0 or odds[n, 1] <= 0.0:
            continue
        filter_sum += _RATE * (min(odds[n, 1], _HIGHEST) - filter_sum)
        partner_sum += _RATE * (said[n, 2] - partner_sum)
        gap = _gap(np.int64(said[n, 3]))
        length = _length(np.int64(said[n, 4]))
        believed = _share_of(share, by_gap, by_length, gap, length)
        ours = (1.0 - believed) * said[n, 0] * odds[n, 0] / filter_sum
        theirs = believed * said[n, 1] / partner_sum
        if ours + theirs > 0.0:
            right = theirs / (ours + theirs)
            typical += _RATE * (believed - typical)
            share += _RATE * (right - believed)
            share = min(max(share, _LEAST), 1.0 - _LEAST)
            by_gap[gap] += _OFFSET_RATE * (right - believed)
            by_length[length] += _OFFSET_RATE * (right - believed)
    return share, filter_sum, partner_sum, typical


@nb.njit(cache=True, nogil=True)
def faded_strengths(strengths, sums, times, now):  # type: ignore[no-untyped-def]
    """Make strengths parts of what is known and not known of each item's partners, in place.

    Parameters
    ----------
    strengths, sums, times, now
        as in `join_partners`

    Returns
    -------
    float32, shape (items,): the part that is not known
    """
    unknown = np.empty(sums.size, np.float32)
    for j in range(sums.size):
        left = _faded(now, times[j])
        whole = sums[j] * left + _UNSURE
        scale = left / whole
        for slot in range(strengths.shape[1]):
            strengths[j, slot] *= scale
        unknown[j] = _UNSURE / whole
    return unknown


@nb.njit(cache=True, nogil=True, inline="always")
def _heard(latest):  # type: ignore[no-untyped-def]
    total, share = 0.0, 1.0
    for k in range(latest.size):
        if latest[k] >= 0:
            total += share
        share *= LATEST_DECAY
    return max(total, LATEST_DECAY)


@nb.njit(cache=True, nogil=True)
def pair_boosts(users, items, latest, weights, rows, strengths, boosts):  # type: ignore[no-untyped-def]
    """Find what partners add to pairs of users and items.

    Parameters
    ----------
    users, items
        int64, shape (n,), rows; -1 for an id that is not known
    latest
        int32, shape (users, LATEST_ITEMS): rows of the items done last, the last first, then -1
    weights
        float32, shape (users,): what the partners' judgement is multiplied with
    rows, strengths
        int32 and float32, shape (items, partners): `faded_strengths`; -1 where there is none
    boosts
        float32, shape (n,), out
    """
    for n in range(users.size):
        boosts[n] = np.float32(0.0)
        x, y = users[n], items[n]
        if x < 0 or y < 0:
            continue
        total, share = 0.0, 1.0
        for k in range(latest.shape[1]):
            j = latest[x, k]
            if j >= 0:
                for slot in range(rows.shape[1]):
                    if rows[j, slot] == y:
                        total += share * strengths[j, slot]
            share *= LATEST_DECAY
        boosts[n] = np.float32(weights[x] * total / _heard(latest[x]))


@nb.njit(cache=True, nogil=True)
def user_boosts(latest, weights, rows, strengths, places, size, starts, positions, boosts):  # type: ignore[no-untyped-def]
    """Find what partners add to the items of each user.

    Parameters
    ----------
    latest, weights, rows, strengths
        as in `pair_boosts`
    places
        int32, shape (items,): position of each row's item among the candidates, -1 for none
    size
        how many candidates there are
    starts
        int64, shape (users + 1,), out
    positions, boosts
        int32 and float32, out: those of user x lie at starts[x]..starts[x+1]-1, positions rising;
        with room for a list of partners for each of `latest`

    Returns
    -------
    how many there are
    """
    sums = np.zeros(size, np.float64)
    end = 0
    starts[0] = 0
    for x in range(latest.shape[0]):
        first, share = end, 1.0
        scale = np.float64(weights[x]) / _heard(latest[x])
        for k in range(latest.shape[1]):
            j = latest[x, k]
            if j >= 0:
                for slot in range(rows.shape[1]):
                    partner = rows[j, slot]
                    if partner < 0 or strengths[j, slot] <= np.float32(0.0):
                        continue
                    place = places[partner]
                    if place < 0:
                        continue
                    if sums[place] == 0.0:
                        positions[end] = place
                        end += 1
                    sums[place] += share * np.float64(strengths[j, slot])
            share *= LATEST_DECAY
        found = np.sort(positions[first:end])
        for n in range(found.size):
            positions[first + n] = found[n]
            boosts[first + n] = np.float32(scale * sums[found[n]])
            sums[found[n]] = 0.0
        starts[x + 1] = end
    return end


@nb.njit(cache=True, nogil=True)
def item_boosts(items, latest, weights, rows, strengths, boosts):  # type: ignore[no-untyped-def]
    """Find what partners add to all users of some items.

    Parameters
    ----------
    items
        int64, shape (m,), rows; -1 for an item that is not known
    latest, weights, rows, strengths
        as in `pair_boosts`
    boosts
        float32, shape (m, users), out
    """
    towards = np.zeros(rows.shape[0], np.float64)
    for n in range(items.size):
        for j in range(rows.shape[0]):
            towards[j] = 0.0
            for slot in range(rows.shape[1]):
                if items[n] >= 0 and rows[j, slot] == items[n]:
                    towards[j] += strengths[j, slot]
        for x in range(latest.shape[0]):
            total, share = 0.0, 1.0
            for k in range(latest.shape[1]):
                if latest[x, k] >= 0:
                    total += share * towards[latest[x, k]]
                share *= LATEST_DECAY
            boosts[n, x] = np.float32(weights[x] * total / _heard(latest[x]))
