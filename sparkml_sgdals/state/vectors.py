"""A model's factors as vectors whose inner product others can search by (no Spark).

Of ratings the product of a user's and an item's vector is the prediction less the mean of all
ratings, in their units: features, and each side's bias beside a 1 of the other. Of events it is the
part of the score that is a product, that of the features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.hashing import USER_SIDE
from sparkml_sgdals.state.columns import list_column
from sparkml_sgdals.state.event_scores import tastes_of
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.model_state import Scale
from sparkml_sgdals.state.settings import Settings

__all__ = ["describe_vectors", "public_means", "vector_table", "vectors_of"]

F32 = npt.NDArray[np.float32]


def public_means(mean: F32, settings: Settings) -> F32:
    """Return biases and features of ids as the outside knows them: algorithm.md (20).

    Features that are not negative are held less of `settings.centre`, and the biases of what knows
    only one side of a pair.
    """
    centre = np.float32(settings.centre)
    if not centre:
        return mean
    shown = mean + centre
    shown[:, 0] = mean[:, 0] - centre * (mean[:, 1:].sum(axis=1) + settings.rank * centre / 2)
    return shown


def vectors_of(table: FactorTable, scale: Scale) -> F32:
    """Return the vectors of one side, float32, a row an id: (ids, rank + 2), or features alone."""
    settings = table.settings
    root = np.float32(np.sqrt(scale.spread))
    if settings.learns_events:
        return tastes_of(table)[:, 1:] * root
    mean = public_means(table.mean, settings)
    bias = mean[:, :1] * np.float32(scale.spread)
    ones = np.ones_like(bias)
    sides = [ones, bias] if table.side == USER_SIDE else [bias, ones]
    return np.hstack([mean[:, 1:] * root, *sides])


def vector_table(table: FactorTable, scale: Scale) -> pa.Table:
    """Return ids and vectors of one side, sorted by id: id, vector list<float>."""
    ids = table.index.ids()
    order = pa.compute.array_sort_indices(ids)
    vectors = np.ascontiguousarray(vectors_of(table, scale)[order.to_numpy(zero_copy_only=False)])
    return pa.table({"id": ids.take(order), "vector": list_column(vectors)})


def describe_vectors(settings: Settings, scale: Scale) -> dict[str, Any]:
    """Return what their product is, as JSON types."""
    if settings.learns_events:
        width = settings.table_rank or settings.rank
        score = (
            "the part of a score that is a product, that of tastes; how popular an item is, what "
            "a user did last and what stands together are not in it"
        )
        return {"dimension": width, "product": score, "exact": False, "mean": 0.0}
    return {
        "dimension": settings.rank + 2,
        "product": "prediction - mean",
        "exact": True,
        "mean": scale.mean,
    }
