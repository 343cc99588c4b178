"""Noise by user and by item: some rate steadily, some items divide opinions.

Used for stated deviations only, where one noise for all is wrong by up to a third; as weights in
learning it costs accuracy on small sets. Equations (14) and (15) of algorithm.md. No Spark.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import numpy.typing as npt

from sparkml_sgdals.arrays.ratings import Ratings
from sparkml_sgdals.kernels.predict import predict_rows
from sparkml_sgdals.kernels.scatter import add_relative
from sparkml_sgdals.state.factors import FactorRows, FactorTable

__all__ = ["expected_after_learning", "expected_squares", "learn_noise_factors"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_SHAPE: Final = 2.0
"""Shape of a factor's gamma prior, whose mean is 1: it weighs as much as four ratings."""
_CHUNK: Final = 1_000_000


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
    factors, known, weights = [], [], []
    for table, some, named in zip(tables, rows, positions, strict=True):
        factors.append(table.noise_factor[some].astype(np.float64))
        before = _SHAPE + table.count[some] / 2.0
        known.append(factors[-1] * before)
        weights.append(before + np.bincount(named, minlength=some.size) / 2.0)
    for _ in range(rounds):
        for own, other in ((0, 1), (1, 0)):
            sums = np.zeros(rows[own].size)
            add_relative(positions[own], positions[other], squares, factors[other], sums)
            factors[own] = (known[own] + sums / 2.0) / weights[own]
    for table, some, found in zip(tables, rows, factors, strict=True):
        table.noise_factor[some] = found.astype(np.float32)


def expected_after_learning(
    ratings: Ratings, values: F32, user: tuple[F32, F32], item: tuple[F32, F32], prior: F32,
    noise: float, threads: int,
) -> F64:  # fmt: skip
    """e^2 + V of every rating that the factors were learned from, in units of the noise.

    Parameters
    ----------
    ratings : Ratings
        the ratings, n of them, whose ids are all known; their own values are not used
    values : F32
        float32, shape (n,), the ratings in standardised units
    user, item : tuple[F32, F32]
        mean and variance of the distinct ids, each float32 of shape (ids, rank + 1)
    prior : F32
        float32, shape (rank + 1,), prior variances, which `predict_rows` has for ids not known
    noise : float
        variance of a rating's noise, in standardised units
    threads : int
        at most so many at once; they change no result
    """
    squares = np.empty(values.size)

    def take(first: int) -> None:
        part = slice(first, first + _CHUNK)
        predictions = np.empty(values[part].size, np.float32)
        variances = np.empty_like(predictions)
        where = ratings.users[part].astype(np.int64), ratings.items[part].astype(np.int64)
        predict_rows(*where, *user, *item, prior, predictions, variances)
        apart = values[part].astype(np.float64) - predictions
        squares[part] = (apart**2 + variances) / noise

    with ThreadPoolExecutor(max(threads, 1)) as pool:
        list(pool.map(take, range(0, values.size, _CHUNK)))
    return squares
