"""Ratings cut into cells, of which eight at a time can be learned (no Spark).

The order of learning is cut into slices, one after another. Users and items are dealt into eight
groups each; a *cell* holds the ratings of a slice that are of one group of users and one of items,
and a *stratum* is eight cells that share no user and no item, which eight threads may learn at once
(Gemulla et al. 2011). A slice is learned stratum by stratum. Cut so by the table alone, whatever
the threads, the result is one.

What comes first is learned one by one, and slices are short at first: eight cells that begin at
once find eight systems of features that do not fit together, which cost the filter 4% of its error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from sparkml_sgdals import _compiling as nb
from sparkml_sgdals.arrays.grouping import starts_of
from sparkml_sgdals.arrays.ratings import Ratings
from sparkml_sgdals.arrays.threads import run_all

__all__ = ["STRATA_FROM", "Strata", "cut_strata"]

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

STRATA_FROM: Final = 2_000_000
"""Ratings from which on a table is cut: less are soon learned one by one."""
_GROUPS: Final = 8
_CELLS: Final = _GROUPS * _GROUPS
"""cells of a slice"""
_LEAD: Final = 1 / 128
"""Share of the ratings that are learned one by one, before all slices."""
_SLICES: Final = (1 / 64, 1 / 32, *(part / 16 for part in range(1, 17)))
"""Where slices end, as shares of the ratings."""


@dataclass(frozen=True)
class Strata:
    """A table in the order of its cells.

    Attributes
    ----------
    users, items : I32
        int32, shape (n,), places of the ratings' ids in `user_order` and `item_order`
    values, weights : F32
        as in `Ratings`
    user_order, item_order : I64
        int64, positions of the ids, group by group: what threads write at once lies apart
    lead : slice
        the ratings that are learned one by one, first
    slices : list[slice]
        the slices
    bounds : list[I64]
        of each slice int64, shape (65,), where its cells begin, stratum by stratum, and the last
        one ends
    """

    users: I32
    items: I32
    values: F32
    weights: F32
    user_order: I64
    item_order: I64
    lead: slice
    slices: list[slice]
    bounds: list[I64]

    def strata(self) -> Iterator[list[slice]]:
        """Give the cells of each stratum, in the order of learning; empty ones are left out."""
        yield [self.lead]
        for bounds in self.bounds:
            for first in range(0, _CELLS, _GROUPS):
                own = bounds[first : first + _GROUPS + 1].tolist()
                yield [slice(a, b) for a, b in pairwise(own) if a < b]

    def cell(self, cell: slice) -> tuple[I32, I32, F32]:
        """Return users, items and weights of a cell."""
        # a slice of no weights is one of no weights
        return self.users[cell], self.items[cell], self.weights[cell]


@nb.njit(cache=True, nogil=True)
def _count_cells(users, items, user_groups, item_groups, counts):  # type: ignore[no-untyped-def]
    for n in range(users.size):
        u = np.int64(user_groups[users[n]])
        counts[((item_groups[items[n]] - u) & (_GROUPS - 1)) * _GROUPS + u] += 1


@nb.njit(cache=True, nogil=True)
def _fill_cells(  # type: ignore[no-untyped-def]
    users, items, values, weights, user_groups, item_groups, user_places, item_places, places,
    out_users, out_items, out_values, out_weights,
):  # fmt: skip
    weighted = weights.size > 0
    for n in range(users.size):
        u = np.int64(user_groups[users[n]])
        cell = ((item_groups[items[n]] - u) & (_GROUPS - 1)) * _GROUPS + u
        place = places[cell]
        places[cell] = place + 1
        out_users[place] = user_places[users[n]]
        out_items[place] = item_places[items[n]]
        out_values[place] = values[n]
        if weighted:
            out_weights[place] = weights[n]


def _deal(counts: I64) -> tuple[npt.NDArray[np.uint8], I64, I32]:
    """Deal ids into groups of about as many ratings each: their group, the order, their places.

    From the id with most ratings on, to and fro.
    """
    lap, group = np.divmod(np.arange(counts.size), _GROUPS)
    groups = np.empty(counts.size, np.uint8)
    by_count = np.argsort(-counts, kind="stable")
    groups[by_count] = np.where(lap % 2, _GROUPS - 1 - group, group)
    order = np.argsort(groups, kind="stable")
    places = np.empty(counts.size, np.int32)
    places[order] = np.arange(counts.size, dtype=np.int32)
    return groups, order, places


def cut_strata(ratings: Ratings, counts: tuple[I64, I64], threads: int) -> Strata:
    """Cut a table; the cells keep the order of learning inside.

    Parameters
    ----------
    ratings : Ratings
        the table
    counts : tuple[I64, I64]
        ratings of each user, and of each item, as `count_codes` has counted them
    threads : int
        at most so many at once; they change no result
    """
    dealt = run_all([partial(_deal, of_side) for of_side in counts], threads)
    (user_groups, user_order, user_places), (item_groups, item_order, item_places) = dealt
    r = ratings
    users, items = np.empty_like(r.users), np.empty_like(r.items)
    values, weights = np.empty_like(r.values), np.empty_like(r.weights)

    ends = [int(share * len(r)) for share in (_LEAD, *_SLICES)]
    lead, slices = slice(0, ends[0]), [slice(*some) for some in pairwise(ends)]
    users[lead], items[lead] = user_places[r.users[lead]], item_places[r.items[lead]]
    values[lead], weights[lead] = r.values[lead], r.weights[lead]

    def fill(part: slice) -> I64:
        sizes = np.zeros(_CELLS, np.int64)
        _count_cells(r.users[part], r.items[part], user_groups, item_groups, sizes)
        bounds: I64 = part.start + starts_of(sizes)
        _fill_cells(
            r.users[part], r.items[part], r.values[part], r.weights[part], user_groups,
            item_groups, user_places, item_places, bounds[:-1].copy(),
            users, items, values, weights,
        )  # fmt: skip
        return bounds

    bounds = run_all([partial(fill, part) for part in slices], threads)
    return Strata(users, items, values, weights, user_order, item_order, lead, slices, bounds)
