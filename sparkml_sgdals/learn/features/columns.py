"""Columns of features put on one scale, and how far their weights may reach (no Spark)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sparkml_sgdals.arrays.sparse_rows import SparseRows

__all__ = [
    "FIRST_VARIANCE", "MOSTLY", "MOST_IN_PAIRS", "ColumnMoments", "ColumnScales", "learn_variance",
]  # fmt: skip

F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

MOSTLY: Final = 0.5
"""Share of the ids that have a value, from which on a column counts from its mean."""
MOST_IN_PAIRS: Final = 1024
"""Columns whose products, each with each, are kept or told: in streams from nothing, in blocks."""
FIRST_VARIANCE: Final = 0.01
_LEAST_VARIANCE: Final = 1e-8


@dataclass(frozen=True)
class ColumnMoments:
    """How the values of columns lie, of the columns that have any.

    Attributes
    ----------
    columns : I64
        int64, places in the vector, rising
    count, mean, squares : F64
        float64, of the same shape: values, their mean, and sum of squares about it
    """

    columns: I64
    count: F64
    mean: F64
    squares: F64

    @classmethod
    def of(cls, rows: SparseRows) -> ColumnMoments:
        """Return those of some rows."""
        columns, place = np.unique(rows.columns, return_inverse=True)
        count = np.bincount(place, minlength=columns.size).astype(np.float64)
        mean = np.bincount(place, rows.values, minlength=columns.size) / count
        squares = np.bincount(place, (rows.values - mean[place]) ** 2, minlength=columns.size)
        return cls(columns.astype(np.int64), count, mean, squares.astype(np.float64))

    @classmethod
    def empty(cls) -> ColumnMoments:
        """Return those of no rows."""
        return cls(np.empty(0, np.int64), *(np.empty(0) for _ in range(3)))

    def merged(self, other: ColumnMoments) -> ColumnMoments:
        """Return those of the rows of both (Chan, Golub and LeVeque 1983)."""
        columns = np.union1d(self.columns, other.columns)
        one, two = (moments._at(columns) for moments in (self, other))
        count = one.count + two.count
        apart = two.mean - one.mean
        share = two.count / count
        return ColumnMoments(
            columns, count, one.mean + apart * share,
            one.squares + two.squares + apart**2 * share * one.count,
        )  # fmt: skip

    def _at(self, columns: I64) -> ColumnMoments:
        at = np.searchsorted(columns, self.columns)
        found = []
        for own in (self.count, self.mean, self.squares):
            whole = np.zeros(columns.size)
            whole[at] = own
            found.append(whole)
        return ColumnMoments(columns, *found)


@dataclass(frozen=True)
class ColumnScales:
    """What puts columns on one scale: the root of their mean square.

    Columns that are mostly there are scaled about their mean.

    Attributes
    ----------
    places : I64
        int64, shape (columns,), in the vector, rising; none that is the same for all
    centre, scale : F64
        float64, shape (columns,)
    common : npt.NDArray[np.bool_]
        bool, shape (columns,): whether a column is mostly there
    """

    places: I64
    centre: F64
    scale: F64
    common: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, moments: ColumnMoments, ids: int) -> ColumnScales:
        """Return those of columns of so many ids."""
        count = moments.count
        common = count > MOSTLY * ids
        centre = np.where(common, count * moments.mean / max(ids, 1), 0.0)
        squares = moments.squares + count * (moments.mean - centre) ** 2
        squares += (ids - count) * centre**2
        scale = np.sqrt(squares / np.where(common, max(ids, 1), np.maximum(count, 1)))
        # a column that is the same for all says what the intercept says
        varies = scale > 1e-9 * np.abs(centre)
        return cls(moments.columns[varies], centre[varies], scale[varies], common[varies])

    def entries(self, own: SparseRows) -> tuple[I64, I64, F64]:
        """Return row, column and value of all that is stored of rows, behind an intercept."""
        ids, common = len(own), self.common
        place = np.searchsorted(self.places, own.columns)
        known = np.append(self.places, -1)[place] == own.columns
        row, value, place = own.row_of()[known], own.values[known], place[known]
        rest = ~common[place]
        # what is mostly there is stored for all, the rest where it is not 0
        full = np.zeros((ids, int(common.sum())))
        dense = (np.cumsum(common) - 1)[place[~rest]]
        full[row[~rest], dense] = value[~rest]
        full = (full - self.centre[common]) / self.scale[common]
        column = np.flatnonzero(common)
        return (
            np.concatenate([np.arange(ids), np.repeat(np.arange(ids), column.size), row[rest]]),
            np.concatenate([np.zeros(ids, np.int64), np.tile(column, ids) + 1, place[rest] + 1]),
            np.concatenate([np.ones(ids), full.ravel(), value[rest] / self.scale[place[rest]]]),
        )

    def by_row(self, own: SparseRows) -> tuple[I64, I32, F64]:
        """Return starts of rows, columns and values: CSR, the intercept first."""
        row, column, value = self.entries(own)
        # one key is sorted faster than two
        order = np.argsort(row * (self.places.size + 1) + column, kind="stable")
        return _starts(row, len(own)), column[order].astype(np.int32), value[order]

    def by_column(self, own: SparseRows) -> tuple[I64, I32, F64]:
        """Return starts of columns, rows and values: CSC, the intercept first."""
        row, column, value = self.entries(own)
        order = np.argsort(column * max(len(own), 1) + row, kind="stable")
        starts = _starts(column, self.places.size + 1)
        return starts, row[order].astype(np.int32), value[order]


def learn_variance(weights: F64, variances: F64, prior_var: F64) -> None:
    """Set the prior variance of each column, of biases and of features, from its weights: (18)."""
    squares = weights**2 + variances
    prior_var[:, 0] = squares[:, 0]
    if squares.shape[1] > 1:
        prior_var[:, 1:] = squares[:, 1:].mean(axis=1)[:, None]
    np.maximum(prior_var, _LEAST_VARIANCE, out=prior_var)


def _starts(groups: npt.NDArray[Any], count: int) -> I64:
    starts = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(groups, minlength=count), out=starts[1:])
    return starts
