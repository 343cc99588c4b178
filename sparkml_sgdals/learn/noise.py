"""Noise by user and by item: some rate steadily, some items divide opinions.

Used for stated deviations only, where one noise for all is wrong by up to a third; as weights in
learning it costs accuracy on small sets. Equations (14) and (15) of algorithm.md. No Spark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from sparkml_sgdals.arrays.ratings import Layout, Ratings
from sparkml_sgdals.arrays.threads import run_all
from sparkml_sgdals.kernels.predict import predict_rows
from sparkml_sgdals.kernels.scatter import add_relative, add_relative_by_id
from sparkml_sgdals.learn.solvers import Side, id_ranges, over_ids
from sparkml_sgdals.state.factors import FactorRows, FactorTable

__all__ = [
    "expected_squares",
    "fitted_factors",
    "in_units",
    "learn_noise_factors",
    "learn_noise_of_table",
]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_SHAPE: Final = 2.0
"""Shape of a factor's gamma prior, whose mean is 1: it weighs as much as four ratings."""
_CHUNK: Final = 1_000_000
_RANGES_A_THREAD: Final = 4


def expected_squares(errors: F64, variances: F64, noise: F64) -> F64:
    """Squared noise to expect behind errors of predictions made before a rating was learned: (15).

    Parameters
    ----------
    errors, variances, noise : F64
        shape (n,), in one unit: rating minus prediction, variance of the prediction, and of the
        rating about it
    """
    share = noise / (noise + variances)
    expected: F64 = (share * errors) ** 2 + variances * share
    return expected


def learn_noise_factors(
    tables: tuple[FactorTable | FactorRows, FactorTable | FactorRows], rows: tuple[I64, I64],
    ratings: Ratings, squares: F64, rounds: int = 1,
) -> None:  # fmt: skip
    """Learn the factors of the ids behind some ratings, in place: (14).

    Parameters
    ----------
    tables : tuple[FactorTable | FactorRows, FactorTable | FactorRows]
        users and items (or rows taken of them), whose `count` does not hold these ratings yet
    rows : tuple[I64, I64]
        int64, rows of the ratings' distinct ids
    ratings : Ratings
        the ratings, n of them; their values are not used
    squares : F64
        float64, shape (n,), expected squared noise of each rating in units of the model's
    rounds : int
        how often users and items take turns, each from the other's newest factors
    """
    positions = ratings.users, ratings.items
    counts = [
        np.bincount(named, minlength=some.size) for named, some in zip(positions, rows, strict=True)
    ]

    def add(own: int, factors: F64) -> F64:
        sums = np.zeros(rows[own].size)
        add_relative(positions[own], positions[1 - own], squares, factors, sums)
        return sums

    _learn_factors(tables, rows, counts, add, rounds)


def _learn_factors(
    tables: tuple[FactorTable | FactorRows, FactorTable | FactorRows], rows: tuple[I64, I64],
    counts: Sequence[I64], add: Callable[[int, F64], F64], rounds: int,
) -> None:  # fmt: skip
    """Equation (14); `add` gives a side's sums from the factors of the other."""
    factors, known, weights = [], [], []
    for table, some, count in zip(tables, rows, counts, strict=True):
        factors.append(table.noise_factor[some].astype(np.float64))
        before = _SHAPE + table.count[some] / 2.0
        known.append(factors[-1] * before)
        weights.append(before + count / 2.0)
    for _ in range(rounds):
        for own, other in ((0, 1), (1, 0)):
            factors[own] = (known[own] + add(own, factors[other]) / 2.0) / weights[own]
    for table, some, found in zip(tables, rows, factors, strict=True):
        table.noise_factor[some] = found.astype(np.float32)


def fitted_factors(sums: F64, counts: I64, noise: float) -> F32:
    """Return the factors of ids of which nothing else is known: (14).

    Parameters
    ----------
    sums : F64
        float64, shape (ids,), sum over the ratings of each id of e^2 + V by the partner's factor
    counts : I64
        int64, shape (ids,), how many these are
    noise : float
        variance of a rating's noise, in the unit of the sums
    """
    factors: F32 = ((_SHAPE + sums / (2.0 * noise)) / (_SHAPE + counts / 2.0)).astype(np.float32)
    return factors


def in_units(factors: F32, counts: I64, before: float, now: float) -> F32:
    """Return `fitted_factors` of the noise that is known now, from those of the one before."""
    ratio, prior = before / now, _SHAPE / (_SHAPE + counts / 2.0)
    moved: F32 = (ratio * factors + (1.0 - ratio) * prior).astype(np.float32)
    return moved


def learn_noise_of_table(
    tables: tuple[FactorTable, FactorTable], rows: tuple[I64, I64],
    layouts: tuple[Layout, Layout], sides: tuple[Side, Side], prior: F32, noise: float,
    threads: int,
) -> None:  # fmt: skip
    """`learn_noise_factors` in two rounds, from e^2 + V of all ratings that a fit has learned.

    Parameters
    ----------
    tables, rows
        as there
    layouts : tuple[Layout, Layout]
        the ratings, in standardised units, by user and by item
    sides : tuple[Side, Side]
        users and items as they are learned
    prior : F32
        float32, shape (rank + 1,), prior variances, which `predict_rows` has for ids not known
    noise : float
        variance of a rating's noise, in standardised units
    threads : int
        at most so many at once; they change no result
    """
    squares = [
        _expected_after_learning(layouts, own, sides, prior, noise, threads) for own in (0, 1)
    ]
    counts = layouts[0].counts(), layouts[1].counts()

    def add(own: int, factors: F64) -> F64:
        layout, sums = layouts[own], np.zeros(counts[own].size)

        def add_some(first: int, last: int) -> None:
            add_relative_by_id(
                first, last, layout.starts, layout.partners, squares[own], factors, sums
            )

        over_ids(add_some, layout, threads)
        return sums

    _learn_factors(tables, rows, counts, add, rounds=2)


def _expected_after_learning(
    layouts: tuple[Layout, Layout], own: int, sides: tuple[Side, Side], prior: F32, noise: float,
    threads: int,
) -> F64:  # fmt: skip
    """e^2 + V of every rating in units of the noise, in the order of one of the layouts."""
    layout, counts = layouts[own], layouts[own].counts()
    users, items = sides
    squares = np.empty(layout.values.size)

    def take(first: int, last: int) -> None:
        part = slice(layout.starts[first], layout.starts[last])
        named = np.repeat(np.arange(first, last), counts[first:last])
        partners = layout.partners[part].astype(np.int64)
        user_rows, item_rows = (named, partners) if own == 0 else (partners, named)
        predictions = np.empty(named.size, np.float32)
        variances = np.empty_like(predictions)
        predict_rows(
            user_rows,
            item_rows,
            users.mean,
            users.var,
            items.mean,
            items.var,
            prior,
            predictions,
            variances,
        )
        apart = layout.values[part].astype(np.float64) - predictions
        squares[part] = (apart**2 + variances) / noise

    ranges = max(squares.size // _CHUNK, _RANGES_A_THREAD * threads)
    run_all([partial(take, *some) for some in id_ranges(layout, ranges)], threads)
    return squares
