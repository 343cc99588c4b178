"""A prior drawn from features: what is known of an id beside its ratings moves where it starts.

algorithm.md, "Features of users and items". Arrays in and out, no Spark.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.sparse_rows import SparseRows
from sparkml_sgdals.arrays.threads import run_all
from sparkml_sgdals.kernels.features import add_pairs, add_products, regress, regress_products
from sparkml_sgdals.learn.solvers import Side
from sparkml_sgdals.state.columns import (
    FactorColumns,
    bound_features,
    prior_variances,
    widest_starts,
)
from sparkml_sgdals.state.feature_values import start_featured
from sparkml_sgdals.state.feature_weights import MOST_COLUMNS, FeatureSums, FeatureWeights
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.settings import Settings

__all__ = [
    "FeaturePrior", "begin_features", "learn_features", "learn_features_of_table",
    "start_featured", "weights_at_rank",
]  # fmt: skip

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
_EVENT_ROUNDS: Final = 6
_LEAST_SHARE: Final = 1e-8
"""of a target's spread, that a weight may have as its variance"""
_TARGETS: Final = 8
"""Coordinates that are regressed at once."""
_MOST_IN_PAIRS: Final = 1024
"""Columns whose products, each with each, are kept in every version of a stream from nothing."""
_STREAM_PASSES: Final = 2


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


def _learn_variance(weights: F64, variances: F64, prior_var: F64) -> None:
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


# ---- in a stream from nothing ---------------------------------------------------------------


def begin_features(
    state: ModelState, features: tuple[SparseRows | None, SparseRows | None]
) -> None:
    """Give a model that learns what features say weights of 0 of those that it sees first."""
    users, items = (
        _begun(rows, state.settings)
        if learns and weights is None and rows is not None and len(rows)
        else weights
        for learns, weights, rows in zip(
            state.learns_features, state.features, features, strict=True
        )
    )
    state.features = users, items


def learn_features(
    state: ModelState, features: tuple[SparseRows | None, SparseRows | None],
    ids: tuple[pa.Array, pa.Array], before: tuple[FactorColumns, FactorColumns],
    learned: tuple[FactorColumns, FactorColumns],
) -> None:  # fmt: skip
    """Learn what features say from what a batch made of the ids that came with some: (19).

    Prior means of these ids, and their means, move along in place.

    Parameters
    ----------
    state : ModelState
        gets the weights
    features : tuple[SparseRows | None, SparseRows | None]
        of users and of items, by id
    ids : tuple[pa.Array, pa.Array]
        of the batch, those of `before` and `learned`
    before, learned : tuple[FactorColumns, FactorColumns]
        these ids before and after the batch, `count` being from before in both
    """
    users, items = (
        _weights_after(weights, rows, own, old, new, state.settings)
        if learns and weights is not None and rows is not None
        else weights
        for learns, weights, rows, own, old, new in zip(
            state.learns_features, state.features, features, ids, before, learned, strict=True
        )
    )
    state.features = users, items


def learn_features_of_table(
    state: ModelState, before: ModelState, features: tuple[SparseRows | None, SparseRows | None]
) -> None:
    """Learn what features say from a whole table that a model has learned, in place.

    Parameters
    ----------
    state : ModelState
        the model after the table
    before : ModelState
        the model that it was added to
    features : tuple[SparseRows | None, SparseRows | None]
        of users and of items of the table, by id
    """
    begin_features(state, features)
    tables, known = (state.users, state.items), (before.users, before.items)
    ids, old, new = [], [], []
    for table, held, rows in zip(tables, known, features, strict=True):
        some = table.index.ids(np.empty(0, np.int64)) if rows is None else rows.ids
        some = some.filter(pa.array(table.index.find(some) >= 0))
        at, earlier = table.index.find(some), held.index.find(some)
        counts = np.append(held.count, 0)[earlier]
        rated = table.count[at] > counts
        some, at, earlier = some.filter(pa.array(rated)), at[rated], earlier[rated]
        ids.append(some)
        new.append(table.take(at))
        then = table.take(at)
        then.count = counts[rated]
        for name in ("mean", "featured"):
            there = earlier >= 0
            then.arrays[name][there] = held.array(name)[earlier[there]]
        old.append(then)
    learn_features(state, features, (ids[0], ids[1]), (old[0], old[1]), (new[0], new[1]))
    for table, learned in zip(tables, new, strict=True):
        table.put_rows(learned)


def weights_at_rank(weights: FeatureWeights, settings: Settings) -> FeatureWeights:
    """Return weights for a model of other settings, as far as both have coordinates."""
    width = settings.rank + 1

    def fitted(array: npt.NDArray[Any], rest: float = 0.0) -> npt.NDArray[Any]:
        other = np.full((array.shape[0], width), rest, array.dtype)
        other[:, : array.shape[1]] = array[:, :width]
        return other

    sums = weights.sums
    if sums is not None:
        sums = replace(
            sums, targets=fitted(sums.targets), weights=fitted(sums.weights),
            prior_var=fitted(sums.prior_var, _FIRST_VARIANCE),
        )  # fmt: skip
    return replace(
        weights, prior=fitted(weights.prior), start=fitted(weights.start),
        start_var=prior_variances(settings), sums=sums,
    )  # fmt: skip


def _begun(rows: SparseRows, settings: Settings) -> FeatureWeights:
    """Return weights of 0, of vectors as these are."""
    width = settings.rank + 1
    nothing = np.zeros((1, width))
    return FeatureWeights(
        size=rows.size,
        names=rows.names,
        columns=np.empty(0, np.int32),
        centres=np.empty(0, np.float32),
        prior=nothing.astype(np.float32),
        start=nothing.astype(np.float32),
        start_var=prior_variances(settings),
        sums=FeatureSums(
            np.empty(0, np.int32), np.zeros(1), np.zeros((1, 1)), nothing, nothing,
            np.full((1, width), _FIRST_VARIANCE),
        ),
    )  # fmt: skip


def _weights_after(
    weights: FeatureWeights, rows: SparseRows, ids: pa.Array, before: FactorColumns,
    learned: FactorColumns, settings: Settings,
) -> FeatureWeights:  # fmt: skip
    places = rows.places(ids)
    at = np.flatnonzero(places >= 0)
    if not at.size:
        return weights
    own = rows.take(places[at])
    counted = (before.count[at] > 0) & before.featured[at].any(axis=1)
    mean = learned.mean[at].astype(np.float64)
    moves = mean - np.where(counted[:, None], before.mean[at], np.float32(0.0))
    assert weights.sums is not None
    weights = _solved(weights, _added(weights.sums, own, moves, ~counted))
    apart = weights.prior_means(own, widest_starts(settings)) - learned.featured[at]
    gain = np.minimum(learned.var[at] / prior_variances(settings), np.float32(1.0))
    learned.featured[at] += apart
    moved = learned.mean[at] + gain * apart
    bound_features(moved, settings.lowest)
    learned.mean[at] = moved
    assert weights.sums is not None
    moves = learned.mean[at] - mean
    return replace(weights, sums=_added(weights.sums, own, moves, np.zeros(at.size, bool)))


def _added(
    sums: FeatureSums, rows: SparseRows, moves: F64, new: npt.NDArray[np.bool_]
) -> FeatureSums:
    """Return sums after moves of ids' means; `new` are those that were not in them."""
    used = np.union1d(sums.columns, rows.columns).astype(np.int32)
    if used.size > _MOST_IN_PAIRS:
        raise ValueError(
            f"{used.size} columns of features have values, and a stream that starts from nothing "
            f"learns of at most {_MOST_IN_PAIRS}: fit a table, whose model may have "
            f"{MOST_COLUMNS}, and call updateStream on it, or lower numFeatures of HashingTF."
        )
    held = np.concatenate([[0], 1 + np.searchsorted(used, sums.columns)])
    size, width = used.size + 1, moves.shape[1]
    counts, products = np.zeros(size), np.zeros((size, size))
    targets, weights = np.zeros((size, width)), np.zeros((size, width))
    prior_var = np.full((size, width), _FIRST_VARIANCE)
    counts[held], products[np.ix_(held, held)] = sums.counts, sums.products
    targets[held], weights[held], prior_var[held] = sums.targets, sums.weights, sums.prior_var
    # an intercept before what each row has
    columns = np.insert(1 + np.searchsorted(used, rows.columns), rows.starts[:-1], 0)
    values = np.insert(rows.values, rows.starts[:-1], 1.0)
    starts = rows.starts + np.arange(len(rows) + 1)
    counts += np.bincount(columns[np.repeat(new, np.diff(starts))], minlength=size)
    add_pairs(starts, columns.astype(np.int32), values, moves, new, products, targets)
    return FeatureSums(used, counts, products, targets, weights, prior_var)


def _solved(weights: FeatureWeights, sums: FeatureSums) -> FeatureWeights:
    """Return weights after some passes towards the ridge regression of means on features."""
    ids = sums.counts[0]
    if not ids:
        return replace(weights, sums=sums)
    common = sums.counts > _MOSTLY * ids
    common[0] = False
    centre = np.where(common, sums.products[0] / ids, 0.0)
    squares = np.clip(np.diag(sums.products) - ids * centre**2, 0.0, None)
    scale = np.sqrt(squares / np.where(common, ids, np.maximum(sums.counts, 1.0)))
    # differences of sums of squares have half of the digits
    varies = scale > 1e-6 * np.abs(centre)
    centre, scale = centre[varies], scale[varies]
    across = centre[:, None] * sums.products[0, varies]
    products = sums.products[np.ix_(varies, varies)] - across - across.T
    products = (products + ids * centre[:, None] * centre) / (scale[:, None] * scale)
    targets = (sums.targets[varies] - centre[:, None] * sums.targets[0]) / scale[:, None]
    learned = sums.weights[varies] * scale[:, None]
    learned[0] += (centre[:, None] * sums.weights[varies]).sum(axis=0)
    prior_var = sums.prior_var[varies]
    noise, variances = weights.start_var.astype(np.float64), np.empty_like(learned)
    regress_products(products, targets, noise, learned, variances, prior_var, _STREAM_PASSES)
    _learn_variance(learned, variances, prior_var)
    learned[1:] /= scale[1:, None]
    means = learned.astype(np.float32)
    learned[0] -= (centre[1:, None] * learned[1:]).sum(axis=0)
    kept, kept_var = np.zeros_like(sums.weights), sums.prior_var.copy()
    kept[varies], kept_var[varies] = learned, prior_var
    return replace(
        weights,
        columns=sums.columns[varies[1:]],
        centres=centre[1:].astype(np.float32),
        prior=means,
        start=means,
        sums=replace(sums, weights=kept, prior_var=kept_var),
    )
