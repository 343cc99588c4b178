"""Cells and strata of a table against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import reference
from building import ratings_of

from sparkml_sgdals.arrays.strata import _LEAD, _SLICES, Strata, cut_strata


def cut(weighted: bool, threads: int, count: int = 4000) -> tuple[object, Strata]:
    rng = np.random.default_rng(3)
    users, items = (rng.random((2, count)) ** 2 * [[300], [90]]).astype(int)
    weights = rng.uniform(0.5, 2, count) if weighted else None
    ratings = ratings_of(users, items, rng.normal(3, 1, count), weights=weights)
    counts = np.bincount(ratings.users), np.bincount(ratings.items)
    return ratings, cut_strata(ratings, counts, threads)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_cells_are_those_of_the_loops(weighted: bool, threads: int) -> None:
    """Each holds the ratings of a slice, of one group of users and one of items, in their order."""
    ratings, strata = cut(weighted, threads)
    groups = tuple(reference.deal(np.bincount(rows)) for rows in (ratings.users, ratings.items))
    ends = [int(share * len(ratings)) for share in (_LEAD, *_SLICES)]
    expected = reference.cells(ratings.users, ratings.items, groups, ends)
    found = list(strata.strata())
    assert len(found) == len(expected)
    for cells, wanted in zip(found, expected, strict=True):
        filled = [numbers for numbers in wanted if numbers]
        assert len(cells) == len(filled)
        for cell, numbers in zip(cells, filled, strict=True):
            users, items, weights = strata.cell(cell)
            np.testing.assert_array_equal(strata.user_order[users], ratings.users[numbers])
            np.testing.assert_array_equal(strata.item_order[items], ratings.items[numbers])
            np.testing.assert_array_equal(strata.values[cell], ratings.values[numbers])
            if weighted:
                np.testing.assert_array_equal(weights, ratings.weights[numbers])
            else:
                assert weights.size == 0


def test_the_cells_of_a_stratum_share_no_id() -> None:
    _, strata = cut(False, 1)
    for cells in strata.strata():
        for rows in (strata.users, strata.items):
            named = [set(rows[cell].tolist()) for cell in cells]
            assert sum(map(len, named)) == len(set().union(*named))


def test_every_rating_is_in_one_cell() -> None:
    _, strata = cut(False, 2)
    numbers = [n for cells in strata.strata() for cell in cells for n in range(*cell.indices(4000))]
    assert numbers == list(range(4000))


@pytest.mark.parametrize("count", [1, 7, 130])
def test_tables_of_few_ratings(count: int) -> None:
    """Slices may be empty, and groups."""
    ratings, strata = cut(False, 3, count)
    assert sum(cell.stop - cell.start for cells in strata.strata() for cell in cells) == count
    np.testing.assert_array_equal(np.sort(strata.user_order), np.arange(len(ratings.user_ids)))
