"""What features say of an id: weights that a fit learned, and what to do with them (no Spark).

algorithm.md, "Features of users and items". One side of a model has one of these.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sparkml_sgdals.arrays.sparse_rows import SparseRows
from sparkml_sgdals.kernels.checks import check_rows
from sparkml_sgdals.kernels.features import add_products

__all__ = ["MOST_COLUMNS", "FeatureSums", "FeatureWeights", "feature_names"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

MOST_COLUMNS: Final = 8192
"""Columns of one side that may have weights: these are in every version of a model."""


@dataclass(frozen=True)
class FeatureSums:
    """What a stream from nothing has learned the weights of one side from; used columns rise.

    Sums are over the ids that came with features and ratings; a column of ones stands first.

    Attributes
    ----------
    columns : I32
        int32, shape (used,), places in the vector
    counts : F64
        float64, shape (used + 1,), ids that have a value
    products : F64
        float64, shape (used + 1, used + 1), of each two columns
    targets : F64
        float64, shape (used + 1, rank + 1), of each column and the ids' means
    weights : F64
        float64, of the same shape, as last learned, in the columns' own units about 0
    prior_var : F64
        float64, of the same shape, prior variances of weights of standardised columns
    """

    columns: I32
    counts: F64
    products: F64
    targets: F64
    weights: F64
    prior_var: F64

    def to_json(self) -> dict[str, str]:
        """Return a dict of JSON types, the inverse of `from_json`."""
        return {
            name: _packed(getattr(self, name)[np.tril_indices(self.counts.size)])
            if name == "products"
            else _packed(getattr(self, name))
            for name in _SUMS
        }

    @classmethod
    def from_json(cls, values: dict[str, Any], width: int) -> FeatureSums:
        """Return sums for `width` coordinates from what `to_json` gave.

        Raises
        ------
        ValueError
            they do not go together
        """
        arrays = {name: _unpacked(values[name], dtype) for name, dtype in _SUMS.items()}
        used = arrays["columns"].size + 1
        half = np.tril_indices(used)
        products = np.zeros((used, used))
        if arrays["products"].size != half[0].size or arrays["counts"].size != used:
            raise ValueError("sums of features do not go together")
        products[half] = arrays["products"]
        arrays["products"] = products + np.tril(products, -1).T
        for name in ("targets", "weights", "prior_var"):
            arrays[name] = arrays[name].reshape(used, width)
        if (
            not all(np.isfinite(array).all() for array in arrays.values())
            or (np.diff(arrays["columns"]) <= 0).any()
            or (arrays["prior_var"] <= 0).any()
        ):
            raise ValueError("sums of features do not go together")
        return cls(**arrays)


_SUMS: Final[dict[str, Any]] = {
    "columns": np.int32, "counts": np.float64, "products": np.float64, "targets": np.float64,
    "weights": np.float64, "prior_var": np.float64,
}  # fmt: skip


@dataclass(frozen=True)
class FeatureWeights:
    """Weights of one side; in units of the standardised rating, one unit of the column's own.

    Attributes
    ----------
    size : int
        numbers of a vector
    names : tuple[str, ...]
        of its places; empty where none were told
    columns : I32
        int32, shape (used,), places that have weights, rising
    centres : F32
        float32, shape (used,), what a value counts from
    prior : F32
        float32, shape (used + 1, rank + 1): of the prior mean beside what partners say, the
        intercept first; (used + 1, 0) of models of events
    start : F32
        float32, shape (used + 1, rank + 1): of the mean of an id without ratings; of models of
        events (used + 1, table rank + 1), of its `taste`
    start_var : F32
        float32, as many as `start` has columns: variance of an id without ratings about that
    sums : FeatureSums | None
        what a stream that began from nothing goes on learning them from; None: they stay
    furthest : F32 | None
        float32, as many as `start` has columns: how far from what a usual vector gives ids of the
        fit lie at most, by their prior means, of models of events by `taste`; None: not noted
    """

    size: int
    names: tuple[str, ...]
    columns: I32
    centres: F32
    prior: F32
    start: F32
    start_var: F32
    sums: FeatureSums | None = None
    furthest: F32 | None = None

    def reaching(self, means: F32) -> FeatureWeights:
        """Return the same weights, with how far the means of ids of a fit lie from a usual one."""
        usual = self.prior[0] if self.prior.shape[1] else self.start[0]
        furthest = np.abs(means - usual).max(axis=0, initial=np.float32(0.0))
        return replace(self, furthest=furthest)

    def prior_means(self, rows: SparseRows, most: F32 | None = None) -> F32:
        """Prior means beside what partners say, float32, shape (rows, rank + 1).

        They lie at most so far from those of usual vectors, by coordinate; None for any distance.
        """
        return self._means(rows, self.prior, most)

    def start_means(self, rows: SparseRows, most: F32 | None = None) -> F32:
        """Means of ids without ratings, float32, shape (rows, rank + 1); as `prior_means`."""
        return self._means(rows, self.start, most)

    def dense(self, which: F32) -> F64:
        """Weights by place in the vector, (size, rank + 1), 0 where a place has none."""
        full = np.zeros((self.size, which.shape[1]))
        full[self.columns] = which[1:]
        return full

    def base(self, which: F32) -> F64:
        """Means of a vector of zeros, float64, shape (rank + 1,)."""
        centred: F64 = which[0].astype(np.float64) - self.centres.astype(np.float64) @ which[1:]
        return centred

    def _means(self, rows: SparseRows, which: F32, most: F32 | None) -> F32:
        if rows.size != self.size:
            raise ValueError(f"vectors of {rows.size} numbers, the model knows {self.size}")
        sums = np.tile(self.base(which), (len(rows), 1))
        check_rows(rows.columns, self.size, "feature")
        add_products(rows.starts, rows.columns, rows.values, self.dense(which), sums)
        if most is not None:
            np.clip(sums, which[0] - most, which[0] + most, out=sums)
        return sums.astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON types, the inverse of `from_json`."""
        return {
            "size": self.size,
            "names": list(self.names),
            "width": int(self.start.shape[1]),
            **{name: _packed(getattr(self, name)) for name in _ARRAYS},
            **({} if self.sums is None else {"sums": self.sums.to_json()}),
            **({} if self.furthest is None else {"furthest": _packed(self.furthest)}),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> FeatureWeights:
        """Return weights from what `to_json` gave.

        Raises
        ------
        ValueError
            they do not go together
        """
        size, width = int(values["size"]), int(values["width"])
        arrays = {name: _unpacked(values[name], dtype) for name, dtype in _ARRAYS.items()}
        used = arrays["columns"].size
        for name in ("prior", "start"):
            drawn = width if arrays[name].size or name == "start" else 0
            arrays[name] = arrays[name].reshape(used + 1, drawn)
        columns = arrays["columns"]
        if (
            arrays["centres"].size != used
            or arrays["start_var"].size != width
            or (used and (columns[0] < 0 or columns[-1] >= size or (np.diff(columns) <= 0).any()))
            or not isinstance(values["names"], list)
            or len(values["names"]) not in (0, size)
            or not all(np.isfinite(array).all() for array in arrays.values())
        ):
            raise ValueError("weights of features do not go together")
        furthest = None
        if values.get("furthest") is not None:
            furthest = _unpacked(values["furthest"], np.float32)
            if furthest.size != width or not (furthest >= 0).all() or np.isinf(furthest).any():
                raise ValueError("weights of features do not go together")
        held = values.get("sums")
        sums = None if held is None else FeatureSums.from_json(held, width)
        return cls(
            size=size,
            names=tuple(map(str, values["names"])),
            sums=sums,
            furthest=furthest,
            **arrays,
        )


_ARRAYS: Final[dict[str, Any]] = {
    "columns": np.int32, "centres": np.float32, "prior": np.float32, "start": np.float32,
    "start_var": np.float32,
}  # fmt: skip


def feature_names(weights: FeatureWeights) -> list[str]:
    """Return a name for each place of a vector: as told, else its number."""
    return list(weights.names) or [str(place) for place in range(weights.size)]


def _packed(array: npt.NDArray[Any]) -> str:
    little = array.astype(array.dtype.newbyteorder("<"))
    return base64.b64encode(little.tobytes()).decode("ascii")


def _unpacked(text: str, dtype: Any) -> npt.NDArray[Any]:
    little = np.frombuffer(base64.b64decode(text, validate=True), np.dtype(dtype).newbyteorder("<"))
    return little.astype(dtype)
