"""Columns of features put on one scale, and how far their weights may reach (no Spark)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sparkml_sgdals.arrays.sparse_rows import SparseRows

__all__ = ["FIRST_VARIANCE", "MOSTLY", "MOST_IN_PAIRS", "Standardised", "learn_variance"]

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
class Standardised:
    """Features of ids, scaled by the root of their mean square, behind an intercept.

    Columns that are mostly there are scaled about their mean.

    Attributes
    ----------
    ids : int
        rows
    places : I64
        int64, shape (columns,), of the columns in the vector, rising
    centre, scale : F64
        float64, shape (columns,)
    """

    ids: int
    places: I64
    centre: F64
    scale: F64
    _row: I64
    _column: I64
    _value: F64

    @classmethod
    def of(cls, own: SparseRows, used: I64) -> Standardised:
        """Scale the columns of some rows; `used` are the places that have values."""
        ids = len(own)
        place = np.searchsorted(used, own.columns)
        count = np.bincount(place, minlength=used.size)
        sums = np.bincount(place, own.values, minlength=used.size)
        common = count > MOSTLY * ids
        centre = np.where(common, sums / max(ids, 1), 0.0)
        squares = np.bincount(place, (own.values - centre[place]) ** 2, minlength=used.size)
        squares += (ids - count) * centre**2
        scale = np.sqrt(squares / np.where(common, max(ids, 1), np.maximum(count, 1)))
        # a column that is the same for all says what the intercept says
        varies = scale > 1e-9 * np.abs(centre)
        columns, centre, scale = used[varies], centre[varies], scale[varies]
        common = common[varies]
        number = np.full(used.size, -1)
        number[varies] = np.arange(columns.size)
        place = number[place]
        row, value = own.row_of()[place >= 0], own.values[place >= 0]
        place = place[place >= 0]
        rest = ~common[place]
        # what is mostly there is stored for all, the rest where it is not 0
        full = np.zeros((ids, int(common.sum())))
        dense = (np.cumsum(common) - 1)[place[~rest]]
        full[row[~rest], dense] = value[~rest]
        full = (full - centre[common]) / scale[common]
        column = np.flatnonzero(common)
        return cls(
            ids, columns, centre, scale,
            np.concatenate([np.arange(ids), np.repeat(np.arange(ids), column.size), row[rest]]),
            np.concatenate([np.zeros(ids, np.int64), np.tile(column, ids) + 1, place[rest] + 1]),
            np.concatenate([np.ones(ids), full.ravel(), value[rest] / scale[place[rest]]]),
        )  # fmt: skip

    def by_column(self) -> tuple[I64, I32, F64]:
        """Return starts of columns, rows and values: CSC, the intercept first."""
        order = np.lexsort((self._row, self._column))
        starts = _starts(self._column, self.places.size + 1)
        return starts, self._row[order].astype(np.int32), self._value[order]

    def by_row(self) -> tuple[I64, I32, F64]:
        """Return starts of rows, columns and values: CSR, the intercept first."""
        order = np.lexsort((self._column, self._row))
        starts = _starts(self._row, self.ids)
        return starts, self._column[order].astype(np.int32), self._value[order]


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
