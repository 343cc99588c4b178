"""A prior drawn from features, of a whole table in memory: it moves where ids start.

algorithm.md, "Features of users and items". Arrays in and out, no Spark.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.sparse_rows import SparseRows
from sparkml_sgdals.arrays.threads import run_all
from sparkml_sgdals.kernels.features import add_products, regress
from sparkml_sgdals.learn.features.columns import (
    FIRST_VARIANCE,
    ColumnMoments,
    ColumnScales,
    learn_variance,
)
from sparkml_sgdals.learn.solvers import Side
from sparkml_sgdals.state.feature_weights import MOST_COLUMNS, FeatureWeights

__all__ = ["FeaturePrior"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_PASSES: Final = 1
_START_ROUNDS: Final = 6
_START_PASSES: Final = 2
_EVENT_ROUNDS: Final = 6
_LEAST_SHARE: Final = 1e-8
"""of a target's spread, that a weight may have as its variance"""
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
        moments = ColumnMoments.of(own)
        used = moments.columns
        if used.size > MOST_COLUMNS:
            raise ValueError(
                f"{used.size} columns of features have values, at most {MOST_COLUMNS} may: lower "
                "numFeatures of HashingTF, raise minDF of CountVectorizer, or take PCA first."
            )
        scales = ColumnScales.of(moments, len(own))
        self.columns, self.centre, self.scale = scales.places, scales.centre, scales.scale
        self._csc, self._csr = scales.by_column(own), scales.by_row(own)
        self.weights: F64 = np.empty((0, 0))

    def start(self, side: Side) -> None:
        """Give a side a prior mean of its own that sweeps will move."""
        ids, width = side.mean.shape
        self.given = np.zeros((ids, width), np.float32)
        shape = self.columns.size + 1, width
        self.weights = np.zeros(shape)
        self._var = np.full(shape, FIRST_VARIANCE)
        self._prior_var = np.full(shape, FIRST_VARIANCE)
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
        learn_variance(self.weights, self._var, self._prior_var)

    def finish(self, side: Side, threads: int) -> FeatureWeights:
        """Return what was learned, and the weights of ids without ratings."""
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
            learn_variance(weights, variances, prior_var)
        means = np.zeros_like(mean)
        add_products(*self._csr, weights, means)
        if means.size:
            # on average new ids have no bias, as without features
            weights[0, 0] -= means[:, 0].mean()
            means[:, 0] -= means[:, 0].mean()
        spread = np.mean((mean - means) ** 2 + c, axis=0) if means.size else v
        found = FeatureWeights(
            size=self.size,
            names=self.names,
            columns=self.columns.astype(np.int32),
            centres=self.centre.astype(np.float32),
            prior=self._unscaled(self.weights),
            start=self._unscaled(weights),
            start_var=spread.astype(np.float32),
        )
        return found.reaching(self.given[self.known])

    def of_events(self, means: F64, shares: F64, threads: int) -> FeatureWeights:
        """Return what features say of ids without events: docs/positive-only.md, (13).

        Parameters
        ----------
        means : F64
            float64, shape (known, features), of the ids that have a vector, once they are learned
        shares : F64
            float64, shape (known,), how much each says
        threads : int
            at most so many at once; they change no result
        """
        shape = self.columns.size + 1, means.shape[1]
        weights = np.zeros(shape)
        relative = shares[:, None] / max(float(shares.sum()), 1e-300) * shares.size
        spread = _about(means, relative)
        prior_var = np.repeat(spread[None, :], shape[0], axis=0)
        variances = prior_var.copy()
        apart = means.copy()
        for _ in range(_EVENT_ROUNDS):
            known = relative / spread
            self._regress(
                known, known * apart, weights, variances, prior_var, _START_PASSES, threads
            )
            prior_var[:] = (weights**2 + variances).mean(axis=1, keepdims=True)
            np.maximum(prior_var, _LEAST_SHARE * spread, out=prior_var)
            apart = means.copy()
            add_products(*self._csr, -weights, apart)
            spread = _about(apart, relative)
        if means.size:
            # new ids are on average what those are that have events, each counted once
            weights[0] += apart.mean(axis=0)
        return FeatureWeights(
            size=self.size,
            names=self.names,
            columns=self.columns.astype(np.int32),
            centres=self.centre.astype(np.float32),
            prior=np.empty((shape[0], 0), np.float32),
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


def _about(means: F64, precision: F64) -> F64:
    """Weighted mean square of each column, and never nothing."""
    squares: F64 = (precision * means**2).sum(axis=0) / max(1, means.shape[0])
    return np.maximum(squares, 1e-12)
