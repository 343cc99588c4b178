"""What features say, learned in blocks: each tells sums over its ids, all learn the same of them.

Weights come to rest where those of one task do: the gradient of (17) is told whole. How it changes
with them is told of each column alone, and how columns go together is taken from a sample of the
ids, so that nothing of the size of columns by columns travels in a step. Arrays in, arrays out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from sparkml_sgdals.arrays.sparse_rows import SparseRows
from sparkml_sgdals.fit.blocks.block import BlockState
from sparkml_sgdals.kernels.features import add_pairs, add_products, add_to_columns, regress_near
from sparkml_sgdals.learn.features.columns import FIRST_VARIANCE, ColumnScales, learn_variance
from sparkml_sgdals.state.columns import bound_features, prior_variances
from sparkml_sgdals.state.feature_weights import FeatureWeights
from sparkml_sgdals.state.settings import Settings

__all__ = [
    "FeatureTotals", "SideColumns", "feature_sums", "furthest_in", "likeness_of", "own_rows",
    "put_features", "vectors_in",
]  # fmt: skip

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Array = npt.NDArray[Any]

_TOGETHER: Final = 1_000_000
"""Values, and rows, that are taken at once."""
_ROWS: Final = 65_536
"""Ids whose sums are taken at once."""
_PASSES: Final = 1
_START_ROUNDS: Final = 2
_START_PASSES: Final = 2


@dataclass(frozen=True)
class SideColumns:
    """Columns of the features of one side, as all blocks and the driver know them.

    Attributes
    ----------
    size : int
        numbers of a vector
    scales : ColumnScales
        of the columns that have values
    """

    size: int
    scales: ColumnScales

    def to_arrays(self) -> dict[str, Array]:
        """Return the columns as named arrays."""
        of_scales = vars(self.scales) | {"common": self.scales.common.astype(np.int8)}
        return of_scales | {"size": np.array([self.size])}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> SideColumns:
        """Return the inverse of `to_arrays`."""
        scales = ColumnScales(
            arrays["places"], arrays["centre"], arrays["scale"], arrays["common"].astype(bool)
        )
        return cls(int(arrays["size"][0]), scales)

    def weights(self, totals: FeatureTotals, names: tuple[str, ...] = ()) -> FeatureWeights:
        """Return what was learned, and the weights of ids without ratings."""
        start, ids = totals.start.copy(), max(totals.ids, 1.0)
        # on average new ids have no bias, as without features
        bias = float(totals.sums @ start[:, 0]) / ids
        start[0, 0] -= bias
        spread = totals.spread / ids
        spread[0] += 2.0 * bias * totals.apart[0] / ids + bias**2
        there = totals.squares[1:] > 0
        return FeatureWeights(
            size=self.size,
            names=names,
            columns=self.scales.places[there].astype(np.int32),
            centres=self.scales.centre[there].astype(np.float32),
            prior=self._unscaled(totals.weights, there),
            start=self._unscaled(start, there),
            start_var=spread.astype(np.float32),
        )

    def _unscaled(self, weights: F64, there: npt.NDArray[np.bool_]) -> F32:
        whole: F64 = weights[np.append(True, there)]
        whole[1:] /= self.scales.scale[there][:, None]
        return whole.astype(np.float32)


def vectors_in(
    table: pa.Table, size: int, rows: I64 | None = None
) -> Iterator[tuple[slice, SparseRows, list[Any]]]:
    """Yield the vectors of a table piece by piece, as memory needs ten times as much for each.

    Parameters
    ----------
    table : pa.Table
        of `vector_schema`, each of its chunks sorted by id
    size : int
        numbers that a vector has to have
    rows : I64 | None
        int64, rising: the rows that are wanted; None for all

    Returns
    -------
    which of the rows, those of them that are vectors, and ids of the others
    """
    begins, taken = 0, 0
    # Arrow copies all chunks to take rows of several
    for batch in table.to_batches():
        chunk = pa.Table.from_batches([batch])
        wanted = np.arange(batch.num_rows)
        if rows is not None:
            ends = np.searchsorted(rows, [begins, begins + batch.num_rows])
            wanted = rows[slice(*ends)] - begins
        lengths = pa.compute.fill_null(pa.compute.list_value_length(batch.column("values")), 0)
        filled = np.cumsum(lengths.to_numpy(zero_copy_only=False)[wanted] + 1)
        cuts = np.arange(_TOGETHER, filled[-1] if filled.size else 0, _TOGETHER)
        bounds = np.unique([0, *np.searchsorted(filled, cuts), filled.size])
        for first, last in pairwise(bounds.tolist()):
            some = (
                chunk.slice(first, last - first)
                if rows is None
                else chunk.take(pa.array(wanted[first:last]))
            )
            yield slice(taken + first, taken + last), *SparseRows.of(some, size)
        begins, taken = begins + batch.num_rows, taken + wanted.size


def likeness_of(columns: SideColumns, sample: SparseRows) -> F64:
    """Return the cosine of each two columns, over some of the ids."""
    count = columns.scales.places.size + 1
    starts, column, value = columns.scales.by_row(sample)
    products = np.zeros((count, count))
    add_pairs(starts, column, value, np.ones(len(sample), bool), products)
    root = np.sqrt(np.diag(products))
    root[root == 0.0] = 1.0
    likeness: F64 = products / root[:, None] / root
    np.fill_diagonal(likeness, 1.0)
    return likeness


def own_rows(columns: SideColumns, table: pa.Table, ids: pa.Array | None) -> dict[str, Array]:
    """Return the features of those ids of a block that have ratings, on one scale.

    Parameters
    ----------
    columns : SideColumns
        of the side
    table : pa.Table
        vectors of all ids of the block, as `vectors_in` takes them
    ids : pa.Array | None
        of the block that have ratings; None where none has
    """
    known = table.column("id").combine_chunks()
    places = np.empty(0, np.int64)
    if ids is not None:
        found = pa.compute.index_in(ids, value_set=known.cast(ids.type)).fill_null(-1)
        places = found.to_numpy(zero_copy_only=False).astype(np.int64)
    at = np.flatnonzero(places >= 0)
    at = at[np.argsort(places[at], kind="stable")]
    lengths = pa.compute.fill_null(pa.compute.list_value_length(table.column("values")), 0)
    told = int(lengths.to_numpy()[places[at]].sum()) if at.size else 0
    # what is not written to takes no memory
    most = told + at.size * (1 + int(columns.scales.common.sum()))
    rows, starts = np.empty(at.size, np.int32), np.zeros(at.size + 1, np.int64)
    column, value = np.empty(most, np.int32), np.empty(most)
    count, end = 0, 0
    for part, vectors, bad in vectors_in(table, columns.size, places[at]):
        own = at[part]
        if bad:
            own = own[vectors.places(known.take(pa.array(places[own]))) >= 0]
        ends, some_columns, some_values = columns.scales.by_row(vectors)
        rows[count : count + own.size] = own
        starts[count + 1 : count + 1 + own.size] = end + ends[1:]
        column[end : end + some_columns.size] = some_columns
        value[end : end + some_values.size] = some_values
        count, end = count + own.size, end + some_values.size
    return {
        "rows": rows[:count],
        "starts": starts[: count + 1],
        "columns": column[:end],
        "values": value[:end],
    }


def furthest_in(table: pa.Table, weights: FeatureWeights) -> F32:
    """Return how far the prior means of the ids of a table lie at most from a usual vector's."""
    most = np.zeros(weights.start.shape[1], np.float32)
    for _, vectors, _ in vectors_in(table, weights.size):
        own = weights.reaching(weights.prior_means(vectors)).furthest
        assert own is not None
        most = np.maximum(most, own)
    return most


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
    starts = own["starts"]
    told: dict[str, Array] = {}
    for first in range(0, max(own["rows"].size, 1), _ROWS):
        last = min(first + _ROWS, own["rows"].size)
        part = slice(starts[first], starts[last])
        some = {
            "rows": own["rows"][first:last],
            "starts": starts[first : last + 1] - starts[first],
            "columns": own["columns"][part],
            "values": own["values"][part],
        }
        sums = _sums_of(some, state, start, prior, settings)
        told = {name: told[name] + sums[name] for name in sums} if told else sums
    return told


def _sums_of(
    own: Mapping[str, Any], state: BlockState, start: F64, prior: F32, settings: Settings
) -> dict[str, Array]:
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
