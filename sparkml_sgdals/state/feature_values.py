"""Values of named features as a vector: numbers, categories and lists of these (no Spark).

A number stands under its name, a category under `name=value`, where it is 1: the names that weights
remember say how the table of a fit was read, so that one id alone can be read as it was.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import pyarrow as pa

from sparkml_sgdals.arrays.sparse_rows import SparseRows, vector_schema
from sparkml_sgdals.state.columns import F32, widest_starts
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.feature_weights import FeatureWeights, feature_names

__all__ = ["SEPARATORS", "FeatureNames", "category", "start_featured", "told"]

SEPARATORS: Final = "|;,"
"""Each may part the values of a list that is written as text."""
_LEAST_EVENTS: Final = np.float32(0.1)
"""that features may count an id for, as a logarithm: of what has none nothing is known"""
_APART: Final = re.compile("[|;,]")


def category(name: str, value: str) -> str:
    """Return the name under which a category stands."""
    return f"{name}={value}"


def told(name: str) -> str:
    """Return a name as people are told it: of a category its value alone."""
    return name.rpartition("=")[2] or name


class FeatureNames:
    """Reads what is known of an id by the names of a model's features.

    Parameters
    ----------
    weights : FeatureWeights
        of one side of the model
    """

    def __init__(self, weights: FeatureWeights) -> None:
        self.size = weights.size
        self.names = feature_names(weights)
        self._place = {name: place for place, name in enumerate(self.names)}
        centres = zip(weights.columns.tolist(), weights.centres.tolist(), strict=True)
        self._centres = {place: centre for place, centre in centres if centre}
        self._categories = {name.partition("=")[0] for name in self.names if "=" in name}

    def vector(self, given: Mapping[str, Any]) -> tuple[dict[int, float], list[str]]:
        """Return the numbers of a vector by place, and what is known by no name.

        A number that is not given counts as what is usual, so that it says nothing.

        Parameters
        ----------
        given : Mapping[str, Any]
            by name: a number, a text, or a list of texts; null where nothing is known

        Raises
        ------
        ValueError
            a number is none
        """
        found, unknown = {}, []
        for name, value in given.items():
            if value is None or value == "":
                continue
            place = self._place.get(name)
            if place is not None:
                found[place] = _number(name, value)
                continue
            for text in self._texts(name, value):
                one = self._place.get(category(name, text))
                if one is None:
                    unknown.append(category(name, text))
                else:
                    found[one] = 1.0
        if found:
            found = {k: v for k, v in self._centres.items() if not self._is_category(k)} | found
        return found, unknown

    def rows(self, ids: pa.Array, vectors: list[dict[int, float]]) -> SparseRows:
        """Return vectors of distinct ids as the model takes them."""
        ordered = [dict(sorted(one.items())) for one in vectors]
        kind = "str" if pa.types.is_string(ids.type) else "int"
        table = pa.table(
            {
                "id": ids,
                "size": pa.array([self.size] * len(ordered), pa.int32()),
                "indices": [list(one) for one in ordered],
                "values": [list(one.values()) for one in ordered],
            },
            schema=vector_schema(kind),  # type: ignore[arg-type]
        )
        rows, bad = SparseRows.of(table, self.size)
        if bad:
            raise ValueError(f"The features of {bad[0]!r} hold what is no finite number.")
        return rows

    def knows(self, name: str) -> bool:
        """Whether anything is learned of what stands under a name."""
        return name in self._place or name in self._categories

    def _texts(self, name: str, value: Any) -> Iterator[str]:
        for one in value if isinstance(value, list | tuple | np.ndarray) else [value]:
            text = str(one).lower() if isinstance(one, bool) else str(one).strip()
            if category(name, text) in self._place or not _APART.search(text):
                yield text
            else:
                yield from (part.strip() for part in _APART.split(text) if part.strip())

    def _is_category(self, place: int) -> bool:
        return "=" in self.names[place]


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} is a number, got {value!r}.")
    return number


def start_featured(
    table: FactorTable, ids: pa.Array, rows: SparseRows | None, weights: FeatureWeights | None
) -> int:
    """Let those of `ids` that a table does not know start where their features say; how many.

    Parameters
    ----------
    table : FactorTable
        of one side, gets the ids that it does not know and that have a row
    ids : pa.Array
        distinct ids
    rows : SparseRows | None
        what is known of some of them
    weights : FeatureWeights | None
        of that side; None where the model has none
    """
    if rows is None or weights is None or not len(rows):
        return 0
    places = rows.places(ids)
    fresh = np.flatnonzero((table.index.find(ids) < 0) & (places >= 0))
    if not fresh.size:
        return 0
    at, _ = table.ensure(ids.take(pa.array(fresh)))
    own = rows.take(places[fresh])
    most = _most_apart(table, weights)
    means = weights.start_means(own, most)
    if table.settings.fits_events:
        table.taste[at] = means
        table.taste[at, 0] = np.maximum(means[:, 0], _LEAST_EVENTS)
        table.featured[at] = 1.0
    else:
        # the start of features that differs from id to id stays, so that tastes can part
        table.mean[at] += means
        table.var[at] = weights.start_var
        if not table.settings.learns_events:
            table.featured[at] = weights.prior_means(own, most)
    table.bound(at)
    return int(fresh.size)


def _most_apart(table: FactorTable, weights: FeatureWeights) -> F32 | None:
    """How far from usual ids features may put one, None for any distance.

    Who rates it learns from where it stands. Ordinary vectors put one no further than ids of the
    fit, or of ratings than a prior would; beyond lies what one number far outside makes of it.
    """
    if table.settings.fits_events:
        return weights.furthest
    widest = widest_starts(table.settings)
    return widest if weights.furthest is None else np.maximum(widest, weights.furthest)
