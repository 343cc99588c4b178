"""What features say, learned in blocks: each tells sums over its ids, all learn the same of them.

Weights come to rest where those of one task do: the gradient of (17) is told whole. How it changes
with them is told of each column alone, and how columns go together is taken from a sample of the
ids, so that nothing of the size of columns by columns travels in a step. Arrays in, arrays out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.hashing import block_of, id_keys
from sparkml_sgdals.arrays.sparse_rows import SparseRows
from sparkml_sgdals.fit.blocks.block import BlockState
from sparkml_sgdals.kernels.features import add_pairs, add_products, add_to_columns, regress_near
from sparkml_sgdals.learn.features.columns import (
    FIRST_VARIANCE,
    MOST_IN_PAIRS,
    Standardised,
    learn_variance,
)
from sparkml_sgdals.state.columns import bound_features, prior_variances
from sparkml_sgdals.state.feature_weights import MOST_COLUMNS, FeatureWeights
from sparkml_sgdals.state.settings import Settings

__all__ = ["FeatureTotals", "SideFeatures", "feature_sums", "own_rows", "put_features"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Array = npt.NDArray[Any]

_SAMPLE: Final = 100_000
"""Ids, at most, that tell how columns go together."""
_PASSES: Final = 1
_START_ROUNDS: Final = 2
_START_PASSES: Final = 2


@dataclass(frozen=True)
class SideFeatures:
    """Features of one side, as the driver has them.

    Attributes
    ----------
    rows
        of ids, as they were given
    places, centre, scale
        of the columns, as `Standardised` says
    """

    rows: SparseRows
    places: npt.NDArray[np.int64]
    centre: F64
    scale: F64

    @classmethod
    def of(cls, rows: SparseRows, blocks: int) -> tuple[SideFeatures, list[dict[str, Any]]]:
        """Return what the driver keeps, and what each block is told of its ids.

        Raises
        ------
        ValueError
            more columns have values than are learned in blocks
        """
        used = np.unique(rows.columns).astype(np.int64)
        if used.size > MOST_IN_PAIRS:
            raise ValueError(
                f"{used.size} columns of features have values, and a fit in blocks learns of at "
                f"most {MOST_IN_PAIRS}: lower numFeatures of HashingTF, or raise maxRatingsPerTask "
                f"and call fit, as one task learns of {MOST_COLUMNS}."
            )
        columns = Standardised.of(rows, used)
        starts, column, value = columns.by_row()
        whole = SparseRows(rows.ids, columns.places.size + 1, starts, column, value)
        likeness = _likeness(whole)
        of_ids = block_of(id_keys(rows.ids), blocks)
        told: list[dict[str, Any]] = []
        for block in range(blocks):
            own = whole.take(np.flatnonzero(of_ids == block))
            ids = own.ids if pa.types.is_string(own.ids.type) else own.ids.to_numpy()
            told.append({"id": ids, "starts": own.starts, "columns": own.columns,
                         "values": own.values, "likeness": likeness})  # fmt: skip
        return cls(rows, columns.places, columns.centre, columns.scale), told

    def weights(self, totals: FeatureTotals) -> FeatureWeights:
        """Return what was learned, and the weights of ids without ratings."""
        start, ids = totals.start.copy(), max(totals.ids, 1.0)
        # on average new ids have no bias, as without features
        bias = float(totals.sums @ start[:, 0]) / ids
        start[0, 0] -= bias
        spread = totals.spread / ids
        spread[0] += 2.0 * bias * totals.apart[0] / ids + bias**2
        there = totals.squares[1:] > 0
        found = FeatureWeights(
            size=self.rows.size,
            names=self.rows.names,
            columns=self.places[there].astype(np.int32),
            centres=self.centre[there].astype(np.float32),
            prior=self._unscaled(totals.weights, there),
            start=self._unscaled(start, there),
            start_var=spread.astype(np.float32),
        )
        return found.reaching(found.prior_means(self.rows))

    def _unscaled(self, weights: F64, there: npt.NDArray[np.bool_]) -> F32:
        whole: F64 = weights[np.append(True, there)]
        whole[1:] /= self.scale[there][:, None]
        return whole.astype(np.float32)


def _likeness(rows: SparseRows) -> F64:
    """Cosine of each two columns, over some of the ids."""
    some = rows.take(np.arange(0, len(rows), -(-max(len(rows), 1) // _SAMPLE)))
    products = np.zeros((rows.size, rows.size))
    add_pairs(some.starts, some.columns, some.values, np.ones(len(some), bool), products)
    root = np.sqrt(np.diag(products))
    root[root == 0.0] = 1.0
    likeness: F64 = products / root[:, None] / root
    np.fill_diagonal(likeness, 1.0)
    return likeness


def own_rows(told: Mapping[str, Any], ids: pa.Array | None) -> dict[str, Any]:
    """Return what a block is told of features, of those of its ids that have ratings.

    `rows` are their positions among `ids`; None where no id of the block has ratings.
    """
    known = told["id"] if isinstance(told["id"], pa.Array) else pa.array(told["id"])
    size = told["likeness"].shape[0]
    rows = SparseRows(known, size, told["starts"], told["columns"], told["values"])
    places = np.empty(0, np.int64) if ids is None else rows.places(ids)
    at = np.flatnonzero(places >= 0)
    own = rows.take(places[at])
    return {
        "rows": at.astype(np.int32),
        "starts": own.starts,
        "columns": own.columns,
        "values": own.values,
        "likeness": told["likeness"],
    }


@dataclass(frozen=True)
class FeatureTotals:
    """What all blocks know of the features of one side, in standardised units.

    Attributes
    ----------
    weights, start : F64
        float64, shape (columns + 1, rank + 1): B, and C of ids without ratings
    prior_var, start_prior_var : F64
        float64, of the same shape: t of both
    sums, squares : F64
        float64, shape (columns + 1,), of the features over the ids with ratings
    apart, spread : F64
        float64, shape (rank + 1,), over these ids: of what C leaves of their means; squares of that
        with variances
    ids : float
        how many these are
    """

    weights: F64
    prior_var: F64
    start: F64
    start_prior_var: F64
    sums: F64
    squares: F64
    apart: F64
    spread: F64
    ids: float

    @classmethod
    def begin(cls, columns: int, width: int) -> FeatureTotals:
        """Return weights of 0."""
        shape = columns, width
        return cls(
            np.zeros(shape), np.full(shape, FIRST_VARIANCE), np.zeros(shape),
            np.full(shape, FIRST_VARIANCE), np.zeros(columns), np.zeros(columns), np.zeros(width),
            np.zeros(width), 0.0,
        )  # fmt: skip

    def to_arrays(self) -> dict[str, Array]:
        """Return the totals as named arrays."""
        return vars(self) | {"ids": np.array([self.ids])}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> FeatureTotals:
        """Return the inverse of `to_arrays`."""
        return cls(**dict(arrays) | {"ids": float(arrays["ids"][0])})

    def after(self, parts: Sequence[Mapping[str, Any]], likeness: F64) -> FeatureTotals:
        """Return the totals after the sums that all blocks tell after a half-sweep of the side."""
        told = {name: np.sum([p[name] for p in parts], axis=0) for name in parts[0]}
        weights, prior_var = self.weights.copy(), self.prior_var.copy()
        scale = np.sqrt(told["curvature"])
        moved = np.zeros_like(weights)
        regress_near(likeness, scale, told["gradient"], weights, moved, prior_var, _PASSES)
        learn_variance(weights, 1.0 / (told["curvature"] + 1.0 / prior_var), prior_var)
        start, start_var = self.start.copy(), self.start_prior_var.copy()
        ids = float(told["ids"][0])
        curvature = told["squares"][:, None] * (told["precision"] / max(ids, 1.0))
        moved, scale = np.zeros_like(start), np.sqrt(curvature)
        for _ in range(_START_ROUNDS):
            pulled = told["start_gradient"]
            regress_near(likeness, scale, pulled, start, moved, start_var, _START_PASSES)
            learn_variance(start, 1.0 / (curvature + 1.0 / start_var), start_var)
        return replace(
            self, weights=weights, prior_var=prior_var, start=start, start_prior_var=start_var,
            sums=told["sums"], squares=told["squares"], apart=told["apart"], spread=told["spread"],
            ids=ids,
        )  # fmt: skip


def put_features(
    own: Mapping[str, Any], state: BlockState, weights: F64, prior: F32 | None, settings: Settings
) -> None:
    """Move the prior means that features give to a block's ids, and with them their means: (10)."""
    if prior is None:
        prior = prior_variances(settings)[None, :]
    rows, a = own["rows"], state.arrays
    given = np.zeros((rows.size, weights.shape[1]))
    add_products(own["starts"], own["columns"], own["values"], weights, given)
    moved = given.astype(np.float32) - a["featured"][rows]
    a["mean"][rows] += a["var"][rows] / prior * moved
    a["featured"][rows] += moved
    bound_features(a["mean"], settings.lowest, rows)


def feature_sums(
    own: Mapping[str, Any], state: BlockState, start: F64, prior: F32 | None, settings: Settings
) -> dict[str, Array]:
    """Return what a block tells all of its ids that have features, after their half-sweep."""
    if prior is None:
        prior = prior_variances(settings)[None, :]
    rows, a = own["rows"], state.arrays
    csr = own["starts"], own["columns"]
    values, v = own["values"], prior[0].astype(np.float64)
    mean, c = a["mean"][rows].astype(np.float64), a["var"][rows].astype(np.float64)
    given = state.drawn_from(settings, rows)
    shape = start.shape
    gradient, curvature, start_gradient = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    add_to_columns(*csr, values, (mean - given) / v, gradient)
    add_to_columns(*csr, values**2, np.clip((v - c) / v**2, 0.0, None), curvature)
    apart, precision = mean.copy(), 1.0 / (v + c)
    add_products(*csr, values, -start, apart)
    add_to_columns(*csr, values, precision * apart, start_gradient)
    return {
        "gradient": gradient,
        "curvature": curvature,
        "start_gradient": start_gradient,
        "sums": np.bincount(own["columns"], values, minlength=shape[0]),
        "squares": np.bincount(own["columns"], values**2, minlength=shape[0]),
        "precision": precision.sum(axis=0),
        "apart": apart.sum(axis=0),
        "spread": (apart**2 + c).sum(axis=0),
        "ids": np.array([float(rows.size)]),
    }
