"""What features say, learned by a stream from nothing: batch by batch, from sums over ids.

algorithm.md, "A stream from nothing". Arrays in and out, no Spark.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.sparse_rows import SparseRows
from sparkml_sgdals.kernels.features import add_pairs, add_to_columns, regress_products
from sparkml_sgdals.learn.features.columns import (
    FIRST_VARIANCE,
    MOST_IN_PAIRS,
    MOSTLY,
    learn_variance,
)
from sparkml_sgdals.state.columns import (
    FactorColumns,
    bound_features,
    prior_variances,
    widest_starts,
)
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.feature_weights import MOST_COLUMNS, FeatureSums, FeatureWeights
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.settings import Settings

__all__ = [
    "begin_features", "learn_features", "learn_features_of_events", "learn_features_of_table",
    "need_room", "weights_at_rank",
]  # fmt: skip

F64 = npt.NDArray[np.float64]

_STREAM_PASSES: Final = 2


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


def need_room(state: ModelState, features: tuple[SparseRows | None, SparseRows | None]) -> None:
    """Raise ValueError where a batch has more columns than a stream from nothing learns of."""
    for weights, rows in zip(state.features, features, strict=True):
        if rows is not None and weights is not None and weights.sums is not None:
            _used(weights.sums, rows)


def learn_features_of_events(
    state: ModelState, features: tuple[SparseRows | None, SparseRows | None],
    ids: tuple[pa.Array, pa.Array],
) -> None:  # fmt: skip
    """Learn what features say from where a batch of events left its ids that came with some.

    Means of ids are moved by events of others, too: what the sums have of each is kept with it.

    Parameters
    ----------
    state : ModelState
        after the batch; gets the weights
    features : tuple[SparseRows | None, SparseRows | None]
        of users and of items, by id
    ids : tuple[pa.Array, pa.Array]
        of the batch
    """
    learned: list[FeatureWeights | None] = []
    for learns, weights, rows, own, table in zip(
        state.learns_features, state.features, features, ids, (state.users, state.items),
        strict=True,
    ):  # fmt: skip
        learned.append(weights)
        if not learns or weights is None or weights.sums is None or rows is None:
            continue
        places = rows.places(own)
        given = np.flatnonzero(places >= 0)
        if not given.size:
            continue
        at = table.index.find(own.take(pa.array(given)))
        before, mean = table.featured[at], table.mean[at]
        moves = mean.astype(np.float64) - before
        new: npt.NDArray[np.bool_] = np.logical_and.reduce(before == 0.0, axis=1)
        sums = _added(weights.sums, rows.take(places[given]), moves, new)
        solved = _solved(weights, sums)
        # how often others were done says nothing of a new one: its bias starts as without
        start = solved.start.copy()
        start[:, 0] = 0.0
        learned[-1] = replace(solved, start=start, prior=np.empty((len(start), 0), np.float32))
        table.featured[at] = mean
    state.features = learned[0], learned[1]


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
    tables = state.users, state.items
    told = [_told_of(table, rows) for table, rows in zip(tables, features, strict=True)]
    if state.settings.learns_events:
        need_room(state, features)
        learn_features_of_events(state, features, (told[0], told[1]))
        return
    ids, old, new = [], [], []
    for table, held, own in zip(tables, (before.users, before.items), told, strict=True):
        at, earlier = table.index.find(own), held.index.find(own)
        counts = np.append(held.count, 0)[earlier]
        rated = table.count[at] > counts
        at, earlier = at[rated], earlier[rated]
        ids.append(own.filter(pa.array(rated)))
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


def _told_of(table: FactorTable, rows: SparseRows | None) -> pa.Array:
    """Return the ids of a table that come with features."""
    if rows is None:
        return table.index.ids(np.empty(0, np.int64))
    return rows.ids.filter(pa.array(table.index.find(rows.ids) >= 0))


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
            prior_var=fitted(sums.prior_var, FIRST_VARIANCE),
        )  # fmt: skip
    start_var, furthest = prior_variances(settings), weights.furthest
    if sums is None:
        start_var[: weights.start_var.size] = weights.start_var[:width]
    if furthest is not None:
        (furthest,) = fitted(furthest[None, :])
    return replace(
        weights, prior=fitted(weights.prior), start=fitted(weights.start), start_var=start_var,
        sums=sums, furthest=furthest,
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
            np.full((1, width), FIRST_VARIANCE),
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
    used = _used(sums, rows)
    held = np.concatenate([[0], 1 + np.searchsorted(used, sums.columns)])
    size, width = used.size + 1, moves.shape[1]
    counts, products = np.zeros(size), np.zeros((size, size))
    targets, weights = np.zeros((size, width)), np.zeros((size, width))
    prior_var = np.full((size, width), FIRST_VARIANCE)
    counts[held], products[np.ix_(held, held)] = sums.counts, sums.products
    targets[held], weights[held], prior_var[held] = sums.targets, sums.weights, sums.prior_var
    # an intercept before what each row has
    columns = np.insert(1 + np.searchsorted(used, rows.columns), rows.starts[:-1], 0)
    csr_columns = columns.astype(np.int32)
    values = np.insert(rows.values, rows.starts[:-1], 1.0)
    starts = rows.starts + np.arange(len(rows) + 1)
    counts += np.bincount(columns[np.repeat(new, np.diff(starts))], minlength=size)
    add_pairs(starts, csr_columns, values, new, products)
    add_to_columns(starts, csr_columns, values, moves, targets)
    return FeatureSums(used, counts, products, targets, weights, prior_var)


def _used(sums: FeatureSums, rows: SparseRows) -> npt.NDArray[np.int32]:
    used = np.union1d(sums.columns, rows.columns).astype(np.int32)
    if used.size > MOST_IN_PAIRS:
        raise ValueError(
            f"{used.size} columns of features have values, and a stream that starts from nothing "
            f"learns of at most {MOST_IN_PAIRS}: fit a table, whose model may have "
            f"{MOST_COLUMNS}, and call updateStream on it, or lower numFeatures of HashingTF."
        )
    return used


def _solved(weights: FeatureWeights, sums: FeatureSums) -> FeatureWeights:
    """Return weights after some passes towards the ridge regression of means on features."""
    ids = sums.counts[0]
    if not ids:
        return replace(weights, sums=sums)
    common = sums.counts > MOSTLY * ids
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
    learn_variance(learned, variances, prior_var)
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
