"""A prior drawn from features: what is known of an id beside its ratings moves where it starts.

algorithm.md, "Features of users and items". Arrays in and out, no Spark.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.sparse_rows import SparseRows
from sparkml_sgdals.arrays.threads import run_all
from sparkml_sgdals.kernels.features import add_products, regress
from sparkml_sgdals.learn.solvers import Side
from sparkml_sgdals.state.feature_values import start_featured
from sparkml_sgdals.state.feature_weights import MOST_COLUMNS, FeatureWeights

__all__ = ["FeaturePrior", "start_featured"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

_MOSTLY: Final = 0.5
"""Share of the ids that have a value, from which on a column counts from its mean."""
_PASSES: Final = 1
_START_ROUNDS: Final = 6
_START_PASSES: Final = 2
_FIRST_VARIANCE: Final = 0.01
_LEAST_VARIANCE: Final = 1e-8
_TARGETS: Final = 8
"""Coordinates that are regressed at once."""


class FeaturePrior:
    """Prior means from features of one side of a table while it is learned.

    Parameters
    ----------
    rows : SparseRows
        features by id; ids of the table without a row are left as they are
    ids : pa.Array
        of the table, in its order

    Raises
    ------
    ValueError
        more columns have values than may have weights
    """

    def __init__(self, rows: SparseRows, ids: pa.Array) -> None:
        self.size, self.names = rows.size, rows.names
        places = rows.places(ids)
        self.known: I64 = np.flatnonzero(places >= 0)
        own = rows.take(places[self.known])
        counts = np.bincount(own.columns, minlength=own.size) if own.columns.size else None
        used = np.empty(0, np.int64) if counts is None else np.flatnonzero(counts)
        if used.size > MOST_COLUMNS:
            raise ValueError(
                f"{used.size} columns of features have values, at most {MOST_COLUMNS} may: lower "
                "numFeatures of HashingTF, raise minDF of CountVectorizer, or take PCA first."
            )
        self._standardise(own, used)
        self._by_column()
        self.weights: F64 = np.empty((0, 0))

    def _standardise(self, own: SparseRows, used: I64) -> None:
        """Scale columns by the root of their mean square; of those mostly there, about the mean."""
        ids = len(own)
        place = np.searchsorted(used, own.columns)
        count = np.bincount(place, minlength=used.size)
        sums = np.bincount(place, own.values, minlength=used.size)
        common = count > _MOSTLY * ids
        centre = np.where(common, sums / max(ids, 1), 0.0)
        squares = np.bincount(place, (own.values - centre[place]) ** 2, minlength=used.size)
        squares += (ids - count) * centre**2
        scale = np.sqrt(squares / np.where(common, max(ids, 1), np.maximum(count, 1)))
        # a column that is the same for all says what the intercept says
        varies = scale > 1e-9 * np.abs(centre)
        self.columns, self.centre, self.scale = used[varies], centre[varies], scale[varies]
        common = common[varies]
        number = np.full(used.size, -1)
        number[varies] = np.arange(self.columns.size)
        place = number[place]
        row, value = own.row_of()[place >= 0], own.values[place >= 0]
        place = place[place >= 0]
        rest = ~common[place]
        # what is mostly there is stored for all, the rest where it is not 0
        full = np.zeros((ids, int(common.sum())))
        dense = (np.cumsum(common) - 1)[place[~rest]]
        full[row[~rest], dense] = value[~rest]
        full = (full - self.centre[common]) / self.scale[common]
        column = np.flatnonzero(common)
        self._row = np.concatenate([np.repeat(np.arange(ids), column.size), row[rest]])
        self._column = np.concatenate([np.tile(column, ids), place[rest]])
        self._value = np.concatenate([full.ravel(), value[rest] / self.scale[place[rest]]])

    def _by_column(self) -> None:
        """Lay values out by column and by row, behind an intercept of every id."""
        ids = self.known.size
        row = np.concatenate([np.arange(ids), self._row])
        column = np.concatenate([np.zeros(ids, np.int64), self._column + 1])
        value = np.concatenate([np.ones(ids), self._value])
        order = np.lexsort((row, column))
        width = self.columns.size + 1
        self._csc = _starts(column, width), row[order].astype(np.int32), value[order]
        order = np.lexsort((column, row))
        self._csr = _starts(row, ids), column[order].astype(np.int32), value[order]
        del self._row, self._column, self._value

    def start(self, side: Side) -> None:
        """Give a side a prior mean of its own that sweeps will move."""
        ids, width = side.mean.shape
        self.given = np.zeros((ids, width), np.float32)
        shape = self.columns.size + 1, width
        self.weights = np.zeros(shape)
        self._var = np.full(shape, _FIRST_VARIANCE)
        self._prior_var = np.full(shape, _FIRST_VARIANCE)
        side.prior_mean = np.zeros((ids, width), np.float32) + side.prior_mean

    def learn(self, side: Side, threads: int) -> None:
        """Learn the weights from the posteriors of a side, in place: (17).

        Prior means of the side move along, and its posterior means by c / v of that, as in (10).
        """
        known = self.known
        v = side.prior_var[0].astype(np.float64)
        c = side.var[known].astype(np.float64)
        precision = np.clip((v - c) / v**2, 0.0, None)
        pull = (side.mean[known].astype(np.float64) - side.prior_mean[known]) / v
        before = self.weights.copy()
        self._regress(precision, pull, self.weights, self._var, self._prior_var, _PASSES, threads)
        moved = np.zeros_like(pull)
        add_products(*self._csr, self.weights - before, moved)
        side.prior_mean[known] += moved.astype(np.float32)
        side.mean[known] += (c / v * moved).astype(np.float32)
        side.bound(known)
        self.given[known] += moved.astype(np.float32)
        _learn_variance(self.weights, self._var, self._prior_var)

    def finish(self, side: Side, threads: int) -> FeatureWeights:
        """Return what was learned, and the weights of ids without ratings: (18)."""
        v = side.prior_var[0].astype(np.float64)
        c = side.var[self.known].astype(np.float64)
        mean = side.mean[self.known].astype(np.float64)
        precision = 1.0 / (v + c)
        weights, variances, prior_var = (
            array.copy() for array in (self.weights, self._var, self._prior_var)
        )
        for _ in range(_START_ROUNDS):
            apart = mean.copy()
            add_products(*self._csr, -weights, apart)
            self._regress(
                precision, precision * apart, weights, variances, prior_var, _START_PASSES, threads
            )
            _learn_variance(weights, variances, prior_var)
        means = np.zeros_like(mean)
        add_products(*self._csr, weights, means)
        if means.size:
            # on average new ids have no bias, as without features
            weights[0, 0] -= means[:, 0].mean()
            means[:, 0] -= means[:, 0].mean()
        spread = np.mean((mean - means) ** 2 + c, axis=0) if means.size else v
        return FeatureWeights(
            size=self.size,
            names=self.names,
            columns=self.columns.astype(np.int32),
            centres=self.centre.astype(np.float32),
            prior=self._unscaled(self.weights),
            start=self._unscaled(weights),
            start_var=spread.astype(np.float32),
        )

    def _unscaled(self, weights: F64) -> F32:
        whole = weights.copy()
        whole[1:] /= self.scale[:, None]
        return whole.astype(np.float32)

    def _regress(
        self, precision: F64, pull: F64, weights: F64, variances: F64, prior_var: F64, passes: int,
        threads: int,
    ) -> None:  # fmt: skip
        width = weights.shape[1]
        # coordinates do not depend on each other: the result is the same for any number of threads
        run_all(
            [
                partial(
                    regress,
                    *self._csc,
                    precision,
                    pull,
                    weights,
                    variances,
                    prior_var,
                    passes,
                    first,
                    min(first + _TARGETS, width),
                )
                for first in range(0, width, _TARGETS)
            ],
            threads,
        )


def _learn_variance(weights: F64, variances: F64, prior_var: F64) -> None:
    """Set the prior variance of each column, of biases and of features, from its weights: (19)."""
    squares = weights**2 + variances
    prior_var[:, 0] = squares[:, 0]
    if squares.shape[1] > 1:
        prior_var[:, 1:] = squares[:, 1:].mean(axis=1)[:, None]
    np.maximum(prior_var, _LEAST_VARIANCE, out=prior_var)


def _starts(groups: npt.NDArray[Any], count: int) -> I64:
    starts = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(groups, minlength=count), out=starts[1:])
    return starts
