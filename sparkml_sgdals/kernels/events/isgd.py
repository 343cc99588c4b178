"""Learning events by ISGD, with recency-based negative feedback: compiled, arrays only, no Spark.

Vinagre, Jorge and Gama 2014, "Fast incremental matrix factorization for recommendation with
positive-only feedback", and 2015, "Collaborative filtering with recency-based negative feedback".
docs/positive-only.md has the equations.
"""

from __future__ import annotations

import numpy as np

from sparkml_sgdals import _compiling as nb

__all__ = ["descend_events"]


@nb.njit(cache=True, nogil=True)
def _dot(x, y, user_mean, item_mean):  # type: ignore[no-untyped-def]
    total = 0.0
    for f in range(1, user_mean.shape[1]):
        total += user_mean[x, f] * item_mean[y, f]
    return total


@nb.njit(cache=True, nogil=True)
def _longest_step(x, y, reg, user_mean, item_mean):  # type: ignore[no-untyped-def]
    """Return the step that takes neither side beyond where it alone leaves no error."""
    user_square = item_square = 0.0
    for f in range(1, user_mean.shape[1]):
        user_square += user_mean[x, f] * user_mean[x, f]
        item_square += item_mean[y, f] * item_mean[y, f]
    return 1.0 / (reg + max(user_square, item_square, 1.0))


@nb.njit(cache=True, nogil=True)
def descend_events(  # type: ignore[no-untyped-def]
    users, items, values, weights, first_event, num_negatives, step, user_reg, item_reg, lowest,
    user_mean, item_mean, order, last, touched,
):  # fmt: skip
    """Learn one event after another, in place.

    Parameters
    ----------
    users, items, values, weights, first_event, touched
        as in `filter.filter_events`; a weight above 1 makes a step longer, at most to where the
        error of the event is gone
    num_negatives
        the items that were touched longest ago, so many an event, are learned as not done by its
        user (but for the event's own), move the user's features alone, and go to the end of the
        queue
    step, user_reg, item_reg
        float32, step size and lambdas
    lowest
        float32, what no feature falls below: 0, or -inf for none
    user_mean, item_mean
        float32, shape (ids, rank + 1); column 0 is left as it is
    order
        int32, shape (k,), the items that were touched before, longest ago first
    last
        int64, shape (items,), number of the touch, above 0; in place
    """
    per_event = num_negatives + 1
    size = order.size
    queue = np.empty(size + users.size * per_event, np.int32)
    stamps = np.empty(queue.size, np.int64)
    for j in range(size):
        queue[j] = order[j]
        stamps[j] = last[order[j]]
    head = 0
    events = 0
    for n in range(users.size):
        x = users[n]
        y = items[n]
        touched[y] = True
        stamp = (first_event + events) * per_event
        positive = values[n] > 0
        if positive:
            # none twice for one event: at most those that were waiting when it came
            end = size
            found = 0
            while found < num_negatives and head < end:
                item = queue[head]
                fresh = stamps[head] == last[item]
                head += 1
                if not fresh or item == y:
                    continue
                error = -_dot(x, item, user_mean, item_mean)
                for f in range(1, user_mean.shape[1]):
                    um = user_mean[x, f]
                    new = um + step * (error * item_mean[item, f] - user_reg * um)
                    user_mean[x, f] = lowest if new < lowest else new
                touched[item] = True
                found += 1
                last[item] = stamp + found
                queue[size] = item
                stamps[size] = last[item]
                size += 1
        target = 1.0 if positive else 0.0
        error = target - _dot(x, y, user_mean, item_mean)
        g = step * weights[n]
        if weights[n] > 1.0:
            # a weight says how often an event counts, which is never farther than to its target
            most = _longest_step(x, y, max(user_reg, item_reg), user_mean, item_mean)
            g = max(step, min(g, np.float32(most)))
        for f in range(1, user_mean.shape[1]):
            um = user_mean[x, f]
            im = item_mean[y, f]
            user_new = um + g * (error * im - user_reg * um)
            item_new = im + g * (error * um - item_reg * im)
            user_mean[x, f] = lowest if user_new < lowest else user_new
            item_mean[y, f] = lowest if item_new < lowest else item_new
        if positive:
            last[y] = stamp + per_event
            queue[size] = y
            stamps[size] = last[y]
            size += 1
            events += 1
    return events
