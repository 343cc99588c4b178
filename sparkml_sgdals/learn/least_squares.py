"""Fitting a table of events as a whole: sweeps of coordinate descent, and how strongly to shrink.

It only arranges calls of the kernels in `kernels.events.least_squares`; driver and executors, no
Spark. docs/positive-only.md has the equations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from sparkml_sgdals.arrays.ratings import Layout, layout_by
from sparkml_sgdals.arrays.threads import run_all
from sparkml_sgdals.kernels.checks import check_reach
from sparkml_sgdals.kernels.events.least_squares import descend_ids, gram, rank_held
from sparkml_sgdals.kernels.lanes import padded_rows, padded_width
from sparkml_sgdals.learn.solvers import over_ids
from sparkml_sgdals.state.model_state import ModelState

__all__ = [
    "MOST_CHOOSING",
    "EventTable",
    "Factors",
    "beside_user",
    "choose_regularisation",
    "descend_half",
    "fit_table",
    "gram_of",
    "id_weights",
    "means_beside",
    "shrinkage",
    "start_deviation",
    "unpadded",
    "weight_and_ids",
    "weights_beside",
]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

_GRAM_ROWS: Final = 1 << 14
"""rows whose products are summed at once: the sum does not depend on the number of threads"""
_SPREAD: Final = 0.1
"""the start is N(0, _SPREAD / sqrt(rank)): the size of a user's factors, whatever the rank"""

_HELD: Final = 20
"""one event in so many is held out to choose the regularisation by"""
_TRIED_SWEEPS: Final = 4
_MOST_MEANS: Final = 4.0
"""how often, at most, the mean weight of an id's events is put beside that of its own where it is
shrunk. Chosen on four sets of 25,000 to 127,000 events, as _DENSE is"""
_DENSE: Final = 1.0 / 40.0
"""share of all pairs from which on items are shrunk as evenly as users"""
_FIRST_TRIED: Final = 4.0
"""l of users and of items with as many events as the mean: near the best on all of these"""
_STEP: Final = 1.5
"""from one value tried to the next"""
_FAR: Final = 4
"""steps down at once, where factors vanish"""
_MOST_TRIED: Final = 9
_TRIED_RANK: Final = 64
"""features at most that a regularisation is chosen with: with more the best one is the same"""
MOST_CHOOSING: Final = 300_000
"""a regularisation is chosen on as many users as have about so many events: their share of the
table changes neither side's equations but for a common factor"""
_VANISHED: Final = 0.98
"""share of the events' weight in their squared errors from which on factors are going to 0: their
order may still be right, and says nothing once they are there"""
_LEAST_JUDGED: Final = 4096
_JUDGED_SCORES: Final = 8
"""scores that judging may take, an event of the table, where more than _LEAST_JUDGED are held"""


@dataclass(frozen=True)
class EventTable:
    """Events to be fitted, each with its weight and what it says.

    Attributes
    ----------
    users, items : I32
        int32, shape (n,), positions
    sizes : tuple[int, int]
        users and items there are
    targets : F32
        float32, shape (n,), 1 for done, 0 for not wanted; (0,) where all are 1
    weights : F32
        float32, shape (n,), above 0; (0,) where all are 1
    hashes : U64
        uint64, shape (n,), of the pairs: what is held out follows from them
    """

    users: I32
    items: I32
    sizes: tuple[int, int]
    targets: F32
    weights: F32
    hashes: U64

    def __len__(self) -> int:
        """Return the number of events."""
        return int(self.users.size)

    def where(self, rows: npt.NDArray[np.bool_]) -> EventTable:
        """Return some of the events, of the same users and items."""
        targets = self.targets[rows] if self.targets.size else self.targets
        weights = self.weights[rows] if self.weights.size else self.weights
        return EventTable(
            self.users[rows], self.items[rows], self.sizes, targets, weights, self.hashes[rows]
        )

    def layouts(self, threads: int) -> tuple[Layout, Layout]:
        """Return the events by user and by item; the ratings of the layouts are the targets."""
        targets = self.targets if self.targets.size else np.ones(len(self), np.float32)
        jobs = [
            partial(layout_by, own, other, targets, self.weights, size)
            for own, other, size in zip(
                (self.users, self.items), (self.items, self.users), self.sizes, strict=True
            )
        ]
        by_user, by_item = run_all(jobs, threads)
        return by_user, by_item


@dataclass
class Factors:
    """Factors of both sides while they are fitted, as `padded_rows`."""

    users: F32
    items: F32

    @classmethod
    def start(cls, users: F32, items: F32) -> Factors:
        """Return a start from features, float32, shapes (users, rank) and (items, rank)."""
        return cls(padded_rows(users), padded_rows(items))

    def copy(self) -> Factors:
        """Return an independent copy."""
        return Factors(padded_rows(self.users), padded_rows(self.items))


def start_deviation(rank: int) -> float:
    """Return the deviation of a feature before the first sweep."""
    return _SPREAD / math.sqrt(rank)


def id_weights(layout: Layout) -> F64:
    """Weight of the events of each id, float64: how many there are where all weigh 1."""
    if not layout.weights.size:
        return layout.counts().astype(np.float64)
    owner = np.repeat(np.arange(layout.starts.size - 1), layout.counts())
    return np.bincount(owner, layout.weights, layout.starts.size - 1).astype(np.float64)


def means_beside(weight: float, users: int, items: int) -> tuple[float, float]:
    """Return how often the mean weight is put beside that of a user, and of an item.

    The same for both where events fill a fortieth of all pairs. The fewer they fill, the less of it
    for items, down to the mean once: where items have few events, those that differ in them differ
    in what is known of them.

    Parameters
    ----------
    weight : float
        of all events
    users, items : int
        how many have any
    """
    dense = weight / (max(1, users) * max(1, items)) / _DENSE
    return _MOST_MEANS, min(max(1.0, _MOST_MEANS * dense), _MOST_MEANS)


def weights_beside(weight: float, users: int, items: int) -> tuple[float, float]:
    """Return what is put beside the weight of a user's events, and of an item's, to shrink them.

    Parameters are those of `means_beside`.
    """
    of_users, of_items = means_beside(weight, users, items)
    return of_users * weight / max(1, users), of_items * weight / max(1, items)


def weight_and_ids(weights: tuple[F64, F64]) -> tuple[float, int, int]:
    """Weight of all events, users and items that have any, from the weight of each id's events."""
    users, items = (int(np.count_nonzero(own)) for own in weights)
    return float(weights[0].sum()), users, items


def beside_user(state: ModelState, known: Callable[[], int]) -> float:
    """Return what is put beside the weight of a user's events when it is shrunk.

    Parameters
    ----------
    state : ModelState
        that was fitted
    known : Callable[[], int]
        how many items the table had: of models that do not tell it was a0 for each
    """
    kept = state.weights_beside[0]
    return kept if kept > 0.0 else state.settings.unobserved_weight * known()


def shrinkage(weights: F64, beside: float, lam: float) -> F32:
    """Return l = lambda (n + one of `weights_beside`) of each id."""
    return (lam * (weights + beside)).astype(np.float32)


def gram_of(factors: F32, threads: int = 1) -> F64:
    """Sum over all rows of the products of their coordinates, float64, (wide, wide)."""
    begins = range(0, factors.shape[0], _GRAM_ROWS)
    jobs = [partial(gram, factors, b, min(b + _GRAM_ROWS, factors.shape[0])) for b in begins]
    total = np.zeros((factors.shape[1], factors.shape[1]))
    for part in run_all(jobs, threads):
        total += part
    return total


def descend_half(
    layout: Layout,
    factors: F32,
    partners: F32,
    squares: F64,
    unobserved: float,
    regs: F32,
    threads: int,
    prior: tuple[F32, F32] | None = None,
    lowest: float = -math.inf,
) -> float:
    """Update one side in place; the weighted sum of squared errors of its events afterwards.

    Parameters
    ----------
    layout : Layout
        events by the side's ids, ratings being targets; without any where all are 1
    factors, partners : F32
        `padded_rows` of the side, and of the partners that the layout names
    squares : F64
        float64, shape (wide, wide), `gram_of` the whole other side
    unobserved : float
        weight of every pair, a0
    regs : F32
        float32, shape (ids,), as `shrinkage`
    threads : int
        at most so many at once; they change no result
    prior : tuple[F32, F32] | None
        what the ids are drawn to besides 0, as `factors`, and how strongly, shape (ids,)
    lowest : float
        what no factor falls below: 0, or -inf for none
    """
    check_reach(layout.reach, partners.shape[0], "partner")
    before, pulls = prior or (factors[:0], regs[:0])
    square_errors = np.zeros(factors.shape[0])
    products = np.ascontiguousarray(squares, np.float32)

    def sweep(first: int, last: int) -> None:
        descend_ids(
            first, last, layout.starts, layout.partners, layout.values, layout.weights, factors,
            partners, products, np.float32(unobserved), regs, np.float32(lowest), before, pulls,
            square_errors,
        )  # fmt: skip

    over_ids(sweep, layout, threads)
    return float(square_errors.sum())


def fit_table(
    layouts: tuple[Layout, Layout],
    factors: Factors,
    lams: tuple[float, float],
    unobserved: float,
    sweeps: int,
    threads: int,
    priors: tuple[tuple[F32, F32], tuple[F32, F32]] | None = None,
    lowest: float = -math.inf,
) -> Iterator[tuple[float, float]]:
    """Sweep users, then items, in place; give the loss and the events' share of it after each.

    Parameters
    ----------
    layouts : tuple[Layout, Layout]
        the events by user and by item: `EventTable.layouts`
    factors : Factors
        where to start, changed in place
    lams : tuple[float, float]
        lambda of users and of items
    unobserved : float
        weight of every pair, a0
    sweeps : int
        how many
    threads : int
        at most so many at once; they change no result
    priors : tuple[tuple[F32, F32], tuple[F32, F32]] | None
        of users and of items, as `descend_half`
    lowest : float
        what no factor falls below: 0, or -inf for none
    """
    sides, others = (factors.users, factors.items), (factors.items, factors.users)
    weights = id_weights(layouts[0]), id_weights(layouts[1])
    regs = [
        shrinkage(own, beside, lam)
        for own, beside, lam in zip(
            weights, weights_beside(*weight_and_ids(weights)), lams, strict=True
        )
    ]
    squares = gram_of(factors.items, threads)
    for _ in range(sweeps):
        errors = 0.0
        for n in (0, 1):
            errors = descend_half(
                layouts[n], sides[n], others[n], squares, unobserved, regs[n], threads,
                None if priors is None else priors[n], lowest,
            )  # fmt: skip
            last, squares = squares, gram_of(sides[n], threads)
        yield errors + unobserved * float((last * squares).sum()), errors


def choose_regularisation(
    table: EventTable, start: Factors, keys: U64, unobserved: float, threads: int,
    lowest: float = -math.inf,
) -> float:  # fmt: skip
    """Return the lambda under which events held out stand highest among what was not done.

    A twentieth of the events is held out. Values 1.5 apart are tried, each by a few sweeps from the
    start, from one that follows from the sizes in the direction in which the mean of
    1 / log2(1 + rank) of the events held out rises; the answer is where the parabola through the
    best and its neighbours, over log lambda, is highest. Values under which factors vanish are out.

    Parameters
    ----------
    table : EventTable
        the events
    start : Factors
        left as it is
    keys : U64
        uint64, shape (users,): by them users are chosen where there are many events
    unobserved : float
        weight of every pair, a0
    threads : int
        at most so many at once; they change no result
    lowest : float
        what no factor falls below: 0, or -inf for none
    """
    if start.users.shape[1] > _TRIED_RANK:
        start = Factors.start(start.users[:, :_TRIED_RANK], start.items[:, :_TRIED_RANK])
    if len(table) > MOST_CHOOSING:
        table, start = _some_users(table, start, keys)
    held = (table.hashes % np.uint64(_HELD) == 0) & _has_more(table)
    if table.targets.size:
        held &= table.targets > 0
    learned = table.where(~held)
    # of too few events none is held out: whatever leaves factors is as good as another
    judge = _Judge.of(learned, table.where(held)) if held.any() else None
    layouts = learned.layouts(threads)
    weight, users, items = weight_and_ids((id_weights(layouts[0]), id_weights(layouts[1])))
    # only the product of both sides' matters: factors can be moved from one to the other
    scales = [
        (1.0 + times) * weight / max(1, ids)
        for times, ids in zip(means_beside(weight, users, items), (users, items), strict=True)
    ]
    first = _FIRST_TRIED / math.sqrt(max(math.prod(scales), 1e-30))
    values: dict[int, float] = {}

    def tried(number: int) -> float:
        if number not in values:
            factors = start.copy()
            lam = first * _STEP**number
            sweeps = fit_table(
                layouts, factors, (lam, lam), unobserved, _TRIED_SWEEPS, threads, lowest=lowest
            )
            errors = [errors for _, errors in sweeps][-1]
            said = 0.0 if judge is None else judge.mean(factors, threads)
            values[number] = said if errors < _VANISHED * total else -1.0
        return values[number]

    weights = learned.weights if learned.weights.size else np.ones(len(learned), np.float32)
    done = learned.targets > 0 if learned.targets.size else slice(None)
    total = float(weights[done].sum(dtype=np.float64))
    best = 0
    while tried(best) < 0.0 and len(values) < _MOST_TRIED:
        best -= _FAR
    best = max((best, best + 1, best - 1), key=tried)
    while len(values) < _MOST_TRIED:
        higher = max((best, best + 1, best - 1), key=tried)
        if higher == best:
            break
        best = higher
    if min(values.get(best - 1, -1.0), values.get(best + 1, -1.0)) >= 0.0:
        low, top, high = values[best - 1], values[best], values[best + 1]
        bend = low - 2 * top + high
        return float(first * _STEP ** (best + ((low - high) / (2 * bend) if bend < 0 else 0.0)))
    return float(first * _STEP**best)


def _has_more(table: EventTable) -> npt.NDArray[np.bool_]:
    """Whether the event's user and its item have other events."""
    more: npt.NDArray[np.bool_] = np.bincount(table.users)[table.users] > 1
    more &= np.bincount(table.items)[table.items] > 1
    return more


def _some_users(table: EventTable, start: Factors, keys: U64) -> tuple[EventTable, Factors]:
    """Return the events of as many users as have about MOST_CHOOSING."""
    order = np.argsort(keys, kind="stable")
    counts = np.bincount(table.users, minlength=table.sizes[0])
    chosen = order[: int(np.searchsorted(np.cumsum(counts[order]), MOST_CHOOSING)) + 1]
    place = np.full(table.sizes[0], -1, np.int32)
    chosen.sort()
    place[chosen] = np.arange(chosen.size, dtype=np.int32)
    some = table.where(place[table.users] >= 0)
    own = EventTable(
        place[some.users], some.items, (chosen.size, table.sizes[1]), some.targets, some.weights,
        some.hashes,
    )  # fmt: skip
    return own, Factors(padded_rows(start.users[chosen]), padded_rows(start.items))


@dataclass(frozen=True)
class _Judge:
    """What was held out, by user, and what these users did besides."""

    users: I64
    starts: I64
    done: I32
    held_starts: I64
    held: I32

    @classmethod
    def of(cls, learned: EventTable, held: EventTable) -> _Judge:
        room = max(_LEAST_JUDGED, _JUDGED_SCORES * len(learned) // max(1, learned.sizes[1]))
        if len(held) > room:
            chosen = np.zeros(len(held), bool)
            chosen[np.argsort(held.hashes, kind="stable")[:room]] = True
            held = held.where(chosen)
        nothing = np.empty(0, np.float32)
        done = layout_by(
            learned.users, learned.items, np.ones(len(learned), np.float32), nothing,
            learned.sizes[0],
        )  # fmt: skip
        users, counts = np.unique(held.users, return_counts=True)
        order = np.argsort(held.users, kind="stable")
        return cls(
            users.astype(np.int64), done.starts, done.partners,
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), held.items[order],
        )  # fmt: skip

    def mean(self, factors: Factors, threads: int) -> float:
        """Return the mean of 1 / log2(1 + rank) of what was held out."""
        ranks = np.empty(self.held.size, np.int64)
        cuts = np.linspace(0, self.users.size, 8 * max(1, threads) + 1).astype(np.int64).tolist()
        jobs = [
            partial(
                rank_held, begin, end, self.users, self.starts, self.done, self.held_starts,
                self.held, factors.users, factors.items, ranks,
            )
            for begin, end in pairwise(cuts)
        ]  # fmt: skip
        run_all(jobs, threads)
        return float(np.mean(1.0 / np.log2(1.0 + ranks)))


def unpadded(factors: F32, rank: int) -> F32:
    """Return the features without the zeros that vectors need."""
    assert factors.shape[1] == padded_width(rank)
    return np.ascontiguousarray(factors[:, :rank])
