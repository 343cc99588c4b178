"""Learning events as plain loops in float64: slow, obvious, nothing shared with the kernels.

Past events are a list that is gone through again for every one; popularity is summed from it.
"""

from __future__ import annotations

import math

import numpy as np
from reference import GOLDEN, MASK, mix64

HALF_LIVES = (125.0, 500.0, 2000.0, 8000.0, 32000.0, math.inf)


def unit(state: int) -> float:
    """A number in [0, 1) from 64 bits."""
    return (mix64(state) >> 11) / 2.0**53


class LogisticFilter:
    """The filter of positive-only feedback, one event at a time.

    Factors are changed in place; `events` are the items of all events so far, `order` all items in
    the order in which draws count them.
    """

    def __init__(self, user_mean, user_var, item_mean, item_var, context, context_var, order):
        self.user_mean, self.user_var = user_mean, user_var
        self.item_mean, self.item_var = item_mean, item_var
        self.context, self.context_var = context, context_var
        self.order = list(order)
        self.events: list[int] = []
        self.parts = [1.0 / len(HALF_LIVES)] * len(HALF_LIVES)
        self.done: dict[int, list[int]] = {}

    def faded(self, events, half_life):
        """Popularity of each item after `events`, the last of which counts 1."""
        total = np.zeros(len(self.order))
        for age, item in enumerate(reversed(events)):
            total[item] += 0.5 ** (age / half_life)
        return total

    def shares(self, user, item, with_context):
        """The items that colour an event, with their weights: squares sum to 1."""
        if not with_context:
            return []
        recent = [i for i in reversed(self.done.get(user, [])) if i != item][:8]
        norm = math.sqrt(sum(0.49**k for k in range(len(recent))))
        return [(i, 0.7**k / norm) for k, i in enumerate(recent)]

    def step(self, x, y, target, weight, negatives, recent, drift):
        """One step towards `target`, all from the values before it."""
        taste = self.user_mean[x, 1:] + sum(a * self.context[i] for i, a in recent)
        feature, item_var = self.item_mean[y, 1:].copy(), self.item_var[y].copy()
        logit = -math.log(negatives) + self.item_mean[y, 0] + float(taste @ feature)
        p = 1.0 / (1.0 + math.exp(-logit))
        information = max(p * (1.0 - p), 0.05)
        residual, noise = (target - p) / information, 1.0 / (information * weight)
        s = noise + item_var[0] + float(item_var[1:] @ taste**2)
        s += float(self.user_var[x, 1:] @ feature**2)
        s += sum(a * a * float(self.context_var[i] @ feature**2) for i, a in recent)
        everything = [
            (self.item_mean, self.item_var, (y, slice(0, 1)), np.ones(1)),
            (self.item_mean, self.item_var, (y, slice(1, None)), taste),
            (self.user_mean, self.user_var, (x, slice(1, None)), feature),
        ]
        everything += [(self.context, self.context_var, i, a * feature) for i, a in recent]
        for mean, var, at, regressor in everything:
            reach = var[at] * regressor
            mean[at] = mean[at] + reach * residual / s
            var[at] = np.maximum(var[at] - reach**2 / s, 1e-9) + drift

    def draw(self, state, before):
        """The item of a draw; `before` is how many events there were before this batch."""
        which, part = unit((state + GOLDEN) & MASK), 0
        while part < len(self.parts) - 1 and which >= self.parts[part]:
            which -= self.parts[part]
            part += 1
        half_life, events = HALF_LIVES[part], len(self.events)
        if not events:
            return None
        old = self.faded(self.events[:before], half_life) * 0.5 ** ((events - before) / half_life)
        entries = [(old[item], item) for item in self.order]
        entries += [
            (0.5 ** (age / half_life), item)
            for age, item in enumerate(reversed(self.events[before:]))
        ]
        point = unit((state + 2 * GOLDEN) & MASK) * sum(weight for weight, _ in entries)
        for weight, item in entries:
            if point < weight:
                return item
            point -= weight
        return entries[-1][1]

    def learn(self, x, y, value, weight, key, negatives, drift, with_context, before):
        """One row of a batch."""
        recent = self.shares(x, y, with_context)
        self.step(x, y, 1.0 if value > 0 else 0.0, weight, negatives, recent, drift)
        if value <= 0:
            return
        for number in range(negatives):
            item = self.draw((key + 2 * number * GOLDEN) & MASK, before)
            if item is None or item == y or item in self.done.get(x, []):
                continue
            self.step(x, item, 0.0, 1.0, negatives, recent, drift)
        if self.events:
            likely = []
            for part, half_life in enumerate(HALF_LIVES):
                faded = self.faded(self.events, half_life)
                likely.append(self.parts[part] * faded[y] / faded.sum())
            if sum(likely) > 0:
                for part, value_of in enumerate(likely):
                    self.parts[part] += 0.001 * (value_of / sum(likely) - self.parts[part])
        self.events.append(y)
        own = self.done.setdefault(x, [])
        if y in own:
            own.remove(y)
        own.append(y)


def isgd(users, items, user_mean, item_mean, step, regs, negatives=0, queue=()):
    """ISGD with recency-based negatives: a queue of items, the one touched longest ago first."""
    queue = list(queue)
    for x, y in zip(users, items, strict=True):
        taken = [item for item in queue if item != y][:negatives]
        for item in taken:
            error = 0.0 - user_mean[x] @ item_mean[item]
            user_mean[x] = user_mean[x] + step * (error * item_mean[item] - regs[0] * user_mean[x])
            queue.remove(item)
            queue.append(item)
        error = 1.0 - user_mean[x] @ item_mean[y]
        user, item = user_mean[x].copy(), item_mean[y].copy()
        user_mean[x] = user + step * (error * item - regs[0] * user)
        item_mean[y] = item + step * (error * user - regs[1] * item)
        if y in queue:
            queue.remove(y)
        queue.append(y)
    return queue


def least_squares_half(events, factors, partners, unobserved, regs, before=None, pulls=None):
    """Half a sweep of coordinate descent over all pairs, written from the loss.

    `events` are rows (own, partner, target, weight); returns the new factors, float64. What was
    fitted `before` takes the place of 0 in all that does not come from events.
    """
    new = np.array(factors, np.float64)
    other = np.array(partners, np.float64)
    centre = np.zeros_like(new) if before is None else np.array(before, np.float64)
    drawn = np.zeros(len(new)) if pulls is None else np.array(pulls, np.float64)
    centre[drawn == 0.0] = 0.0
    for x in range(len(new)):
        own = [row for row in events if row[0] == x]
        if not own:
            continue
        for f in range(new.shape[1]):
            top = bottom = 0.0
            for _, y, target, weight in own:
                rest = new[x] @ other[y] - new[x, f] * other[y, f]
                top += weight * (target - rest) * other[y, f]
                bottom += weight * other[y, f] ** 2
            for y in range(len(other)):
                apart = (new[x] - centre[x]) @ other[y]
                rest = apart - new[x, f] * other[y, f]
                top -= unobserved * rest * other[y, f]
                bottom += unobserved * other[y, f] ** 2
            top += (regs[x] + drawn[x]) * centre[x, f]
            bottom += regs[x] + drawn[x]
            if bottom > 0.0:
                new[x, f] = top / bottom
    return new


def least_squares_loss(events, users, items, unobserved, user_regs, item_regs):
    """The whole loss that both half-sweeps make smaller."""
    users, items = np.array(users, np.float64), np.array(items, np.float64)
    scores = users @ items.T
    total = unobserved * np.sum(scores**2)
    for x, y, target, weight in events:
        total += weight * (target - scores[x, y]) ** 2
    total += np.sum(user_regs * np.sum(users**2, axis=1))
    return total + np.sum(item_regs * np.sum(items**2, axis=1))
