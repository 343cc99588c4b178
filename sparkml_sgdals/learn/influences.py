"""A prior drawn from influences: which ids come together says something before ratings do.

The prior mean of an id is n^(-1/2) times the sum of its partners' *influences*, bias and features,
for users and for items alike: algorithm.md, equations (8) to (11). Arrays in and out, no Spark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sparkml_sgdals.arrays.ratings import Layout, Ratings
from sparkml_sgdals.arrays.strata import Strata
from sparkml_sgdals.arrays.threads import run_all
from sparkml_sgdals.kernels.checks import check_reach
from sparkml_sgdals.kernels.filter import filter_with_influences
from sparkml_sgdals.kernels.influences import (
    PAIR,
    add_shares,
    learn_influence_pair,
    learn_influences,
    sum_influences,
)
from sparkml_sgdals.kernels.lanes import padded_rows
from sparkml_sgdals.kernels.vectors import (
    LANES,
)
from sparkml_sgdals.learn.solvers import CellFilter, Side, over_ids, without_variance
from sparkml_sgdals.state.columns import prior_variances
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.settings import Settings

__all__ = [
    "ITEM_INFLUENCE",
    "USER_INFLUENCE",
    "FilterSide",
    "InfluencePrior",
    "concentration",
    "drawn_means",
    "influence_shares",
    "learn_influence",
    "moved_prior",
    "roots",
    "run_influence_filter",
]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

USER_INFLUENCE: Final = 0.05
"""prior variance of what a user adds to the prior means of its items"""
ITEM_INFLUENCE: Final = 0.02
"""prior variance of what an item adds to the prior means of its users"""
_CONCENTRATED: Final = 10.0
"""Ratings that an id has in a batch, from which on biases are not learned from who rated what."""


def influence_shares(layout: Layout, root: F32, threads: int = 1) -> F32:
    """How much of its partners' prior means each id gives: sum over partners of (k n^(-1/2))^2.

    Parameters
    ----------
    layout : Layout
        ratings by the side that gives; a partner that it names k times counts k squared
    root : F32
        float32, n^(-1/2) of the partners
    threads : int
        at most so many at once; they change no result

    Returns
    -------
    float32, shape (ids,)
    """
    check_reach(layout.reach, root.size, "partner")
    shares = np.zeros(layout.starts.size - 1, np.float32)

    def add(first: int, last: int) -> None:
        add_shares(first, last, layout.starts, layout.partners, root, shares)

    over_ids(add, layout, threads)
    return shares


def learn_influence(
    layout: Layout, influence: F32, own_variance: float, side: Side, root: F32, shares: F32,
    threads: int, damping: float = 1.0, moves: bool = True,
) -> None:  # fmt: skip
    """Learn one side's influences from the posteriors of the other, in place.

    Prior means of `side` move along, and its posterior means by c / v of that: (9) and (10).

    Parameters
    ----------
    layout : Layout
        ratings by the side that gives
    influence : F32
        float32, shape (ids of that side, rank + 1)
    own_variance : float
        prior variance of an influence
    side : Side
        the side that takes; its prior_mean has a row an id, its prior_var one row
    root : F32
        float32, n^(-1/2) of its ids
    shares : F32
        `influence_shares` of the layout
    threads : int
        at most so many at once; they change no result
    damping : float
        (B + 1) / 2 where B blocks of the side that gives learn at once
    moves : bool
        whether `side` is that side itself; False: a copy of what its ids are, which stays
    """
    check_reach(layout.reach, side.mean.shape[0], "partner")
    precision = (np.float32(1.0) / side.prior_var[0]).astype(np.float32)
    apart = side.mean - side.prior_mean
    moved = np.empty_like(apart) if moves else None
    width = apart.shape[1]

    # coordinates do not depend on each other: the result is the same for any number of threads
    together = _coordinates_at_once(width, threads)
    kernel = learn_influences if together == LANES else learn_influence_pair

    def learn(first: int) -> None:
        some = slice(first, min(first + together, width))
        held, given, precisions = (
            _first_columns(matrix[:, some], together)
            for matrix in (apart, influence, precision[None])
        )
        kernel(
            layout.starts, layout.partners, root, shares, precisions[0],
            np.float32(1.0 / own_variance), np.float32(damping), held, given,
        )  # fmt: skip
        count = some.stop - first
        influence[:, some] = given[:, :count]
        if moved is not None:
            moved[:, some] = (apart[:, some] - held[:, :count]) / np.float32(damping)

    run_all([partial(learn, first) for first in range(0, width, together)], threads)
    if moved is not None:
        side.prior_mean += moved
        side.mean += side.var / side.prior_var * moved
        side.bound()


def _coordinates_at_once(width: int, threads: int) -> int:
    """Coordinates that a thread learns together: eight, or two where that keeps more cores busy.

    Two take a third to half of the time of eight.
    """
    of_eight, of_two = (
        math.ceil(math.ceil(width / some) / max(threads, 1)) for some in (LANES, PAIR)
    )
    return PAIR if of_two <= 2 * of_eight else LANES


def _first_columns(matrix: F32, width: int) -> F32:
    """Return a copy of a matrix of at most so many columns, zeros beyond them."""
    if width == LANES:
        return padded_rows(matrix)
    copy = np.zeros((matrix.shape[0], width), np.float32)
    copy[:, : matrix.shape[1]] = matrix
    return copy


def drawn_means(layout: Layout, influence: F32, root: F32, threads: int = 1) -> F32:
    """Prior means of a side from the influences of its partners: (8).

    Parameters
    ----------
    layout : Layout
        ratings by the side that takes
    influence : F32
        float32, shape (partners, rank + 1)
    root : F32
        float32, n^(-1/2) of its ids
    threads : int
        at most so many at once; they change no result
    """
    check_reach(layout.reach, influence.shape[0], "partner")
    drawn = np.empty((root.size, influence.shape[1]), np.float32)
    rows = padded_rows(influence)

    def add(first: int, last: int) -> None:
        sum_influences(first, last, layout.starts, layout.partners, rows, drawn)

    over_ids(add, layout, threads)
    drawn *= root[:, None]
    return drawn


def roots(counts: npt.NDArray[np.integer]) -> F32:
    """n^(-1/2) of each id, float32; no partner asks for that of an id without ratings."""
    root: F32 = (np.maximum(counts, 1) ** -0.5).astype(np.float32)
    return root


@dataclass
class FilterSide:
    """One side while a batch is filtered: what `FactorTable` holds, changed in place.

    Attributes
    ----------
    seen : F32
        float32, shape (ids,), ratings before each id's next one
    """

    mean: F32
    var: F32
    drawn: F32
    influence: F32
    evidence: F32
    seen: F32
    featured: F32

    @classmethod
    def of(cls, arrays: Mapping[str, npt.NDArray[Any]], seen: F32) -> FilterSide:
        """Return these very arrays, by the names of `FactorColumns`."""
        names = ("mean", "var", "drawn", "influence", "evidence", "featured")
        return cls(**{name: arrays[name] for name in names}, seen=seen)


def run_influence_filter(
    users: I32 | I64, items: I32 | I64, values: F32, weights: F32, settings: Settings,
    user: FilterSide, item: FilterSide, *, crowd: float | None = None,
) -> F32:  # fmt: skip
    """As `run_filter`, with prior means that move; `crowd` is the `concentration` of the batch."""
    errors = np.empty(values.size, np.float32)
    if crowd is None:
        crowd = concentration(users, items)
    learned = filter_with_influences(
        users.astype(np.int32, copy=False), items.astype(np.int32, copy=False), values, weights,
        user.mean, user.var, user.drawn, user.influence, user.evidence, user.seen,
        item.mean, item.var, item.drawn, item.influence, item.seen, item.featured,
        prior_variances(settings), np.float32(1.0 / USER_INFLUENCE),
        np.float32(1.0 / (1.0 + (crowd / _CONCENTRATED) ** 2)),
        np.float32(settings.noise), np.float32(settings.drift), np.float32(settings.lowest), errors,
    )  # fmt: skip
    if not learned:
        raise without_variance(settings)
    return errors


def concentration(users: npt.NDArray[np.integer], items: npt.NDArray[np.integer]) -> float:
    """How many ratings the id of an average rating has in a batch, on the side that has more.

    About 1 in a stream in random order, hundreds where users send all their ratings together.
    """
    sides = (np.bincount(rows) for rows in (users, items))
    # not by BLAS, which would wake threads for it
    return max(int(np.square(counts).sum()) for counts in sides) / users.size


def moved_prior(mean: F32, var: F32, before: F32, after: F32, settings: Settings) -> F32:
    """Means of a posterior whose prior mean went from `before` to `after`: (10)."""
    gain = np.minimum(var / prior_variances(settings), np.float32(1.0))
    moved: F32 = mean + gain * (after - before)
    return moved


class InfluencePrior:
    """Prior means and influences of a table while it is learned, in the table's order of ids."""

    def __init__(
        self, ratings: Ratings, tables: tuple[FactorTable, FactorTable], rows: tuple[I64, I64]
    ) -> None:
        self.ratings = ratings
        taken = [table.take(some) for table, some in zip(tables, rows, strict=True)]
        self.user, self.item = (
            FilterSide.of(side.arrays, side.count.astype(np.float32)) for side in taken
        )

    def start(
        self, by_user: Layout, by_item: Layout, users: Side, items: Side, threads: int
    ) -> None:
        """Give both sides of a fresh fit the prior means that sweeps will move."""
        self._user_root, self._item_root = roots(by_user.counts()), roots(by_item.counts())
        self.user.evidence = influence_shares(by_user, self._item_root, threads)
        self.item.evidence = influence_shares(by_item, self._user_root, threads)
        users.prior_mean, items.prior_mean = self.user.drawn, self.item.drawn

    def learn_items(self, by_item: Layout, users: Side, threads: int) -> None:
        """Learn what items say of their users, after the users' half-sweep."""
        given, root, shares = self.item.influence, self._user_root, self.item.evidence
        learn_influence(by_item, given, ITEM_INFLUENCE, users, root, shares, threads)

    def learn_users(self, by_user: Layout, items: Side, threads: int) -> None:
        """Learn what users say of their items, after the items' half-sweep."""
        given, root, shares = self.user.influence, self._item_root, self.user.evidence
        learn_influence(by_user, given, USER_INFLUENCE, items, root, shares, threads)

    def filter(self, values: F32, settings: Settings, users: Side, items: Side) -> F32:
        """Filter a table that is added to a model; the sides' prior means move with it."""
        r = self.ratings
        before = self.start_filter((users, items))
        errors = run_influence_filter(
            r.users, r.items, values, r.weights, settings, self.user, self.item
        )
        self.end_filter((users, items), before, settings)
        return errors

    def cell_filter(
        self, strata: Strata, values: F32, settings: Settings, sides: tuple[Side, Side]
    ) -> CellFilter:
        """Return what does so cell by cell."""
        return _InfluenceCells(self, strata, values, settings, sides)

    def start_filter(self, sides: tuple[Side, Side]) -> tuple[F32, F32]:
        """Take the sides' means and variances; prior means as they are before."""
        for own, side in zip((self.user, self.item), sides, strict=True):
            own.mean, own.var = side.mean, side.var
        return self.user.drawn.copy(), self.item.drawn.copy()

    def end_filter(
        self, sides: tuple[Side, Side], before: tuple[F32, F32], settings: Settings
    ) -> None:
        """Move the sides' prior means by what was learned."""
        for own, side, old in zip((self.user, self.item), sides, before, strict=True):
            side.prior_mean = moved_prior(side.prior_mean, side.prior_var, old, own.drawn, settings)

    def put(
        self, tables: tuple[FactorTable, FactorTable], rows: tuple[I64, I64], drawn: tuple[F32, F32]
    ) -> None:
        """Put what was learned into the tables, `drawn` what influences give of prior means."""
        sides = zip(tables, rows, (self.user, self.item), drawn, strict=True)
        for table, some, own, means in sides:
            table.drawn[some] = means
            table.influence[some] = own.influence
            table.evidence[some] = own.evidence


class _InfluenceCells(CellFilter):
    """`CellFilter` with prior means that move."""

    def __init__(
        self, prior: InfluencePrior, strata: Strata, values: F32, settings: Settings,
        sides: tuple[Side, Side],
    ) -> None:  # fmt: skip
        super().__init__(strata, values, settings, sides)
        self.prior = prior
        self.before = prior.start_filter(sides)
        orders = strata.user_order, strata.item_order
        self._own = [
            FilterSide(**{name: array[rows] for name, array in vars(own).items()})
            for own, rows in zip((prior.user, prior.item), orders, strict=True)
        ]
        self._crowd = concentration(strata.users, strata.items)

    def learn(self, cell: slice) -> None:
        """Filter the ratings of a cell."""
        users, items, weights = self.strata.cell(cell)
        self.errors[cell] = run_influence_filter(
            users, items, self.values[cell], weights, self.settings, self._own[0], self._own[1],
            crowd=self._crowd,
        )  # fmt: skip

    def finish(self) -> F32:
        """Give the sides what is learned; the errors from before each rating, by cell."""
        orders = self.strata.user_order, self.strata.item_order
        sides = zip((self.prior.user, self.prior.item), self._own, orders, strict=True)
        for own, learned, rows in sides:
            for name, array in vars(own).items():
                array[rows] = getattr(learned, name)
        self.prior.end_filter(self.sides, self.before, self.settings)
        return self.errors
