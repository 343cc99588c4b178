"""Users and items that no version holds yet, known by their features alone (arrays, no Spark)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.id_index import IdIndex
from sparkml_sgdals.arrays.id_kinds import IdKind, id_array_type
from sparkml_sgdals.serving.model.ids import Key
from sparkml_sgdals.serving.model.titles import read_file
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.feature_values import FeatureNames, start_featured
from sparkml_sgdals.state.feature_weights import FeatureWeights

__all__ = ["Given", "KnownFeatures", "Newcomers", "read_features"]

logger = logging.getLogger(__name__)

I64 = npt.NDArray[np.int64]
Given = Mapping[str, Any]
"""What is known of an id: a number, a text or a list of texts by name."""
_ID_NAMES: Final = (
    ("userid", "user", "id"),
    ("movieid", "itemid", "item", "id"),
)


class KnownFeatures:
    """What the service knows of the users, or of the items, beside ratings.

    Parameters
    ----------
    kind : IdKind
        of the ids
    table : pa.Table | None
        ids in its first column, and what is known of each
    """

    def __init__(self, kind: IdKind, table: pa.Table | None = None) -> None:
        self._kind = kind
        self._index = IdIndex(kind)
        self._rows = np.empty(0, np.int64)
        self._table = table
        self._posted: dict[Key, Given] = {}
        if table is not None:
            ids = table.column(0).combine_chunks().cast(id_array_type(kind))
            self._index.add(ids.unique())
            # of several rows of an id the last one counts
            self._rows = np.zeros(self._index.size, np.int64)
            places = self._index.find(ids)
            self._rows[places] = np.arange(len(ids))

    def add(self, key: Key, given: Given) -> None:
        """Know an id that was posted."""
        self._posted[key] = given

    def of(self, key: Key | None) -> Given | None:
        """Return what is known of an id, None where nothing is."""
        if key is None:
            return None
        if key in self._posted:
            return self._posted[key]
        if self._table is None:
            return None
        row = int(self._index.find(pa.array([key], id_array_type(self._kind)))[0])
        return None if row < 0 else self._row(int(self._rows[row]))

    def beyond(self, known: IdIndex) -> dict[Key, Given]:
        """Return what is known of ids that an index does not know."""
        found: dict[Key, Given] = {}
        if self._table is not None:
            ids = self._index.ids()
            new = np.flatnonzero(known.find(ids) < 0)
            keys = ids.take(pa.array(new)).to_pylist()
            found = dict(zip(keys, (self._row(int(self._rows[n])) for n in new), strict=True))
        return found | self._posted

    def _row(self, place: int) -> Given:
        assert self._table is not None
        row: dict[str, Any] = self._table.slice(place, 1).to_pylist()[0]
        row.pop(self._table.column_names[0])
        return row


def read_features(path: str, side: int, kind: IdKind, name: str) -> KnownFeatures:
    """Read what is known of users (side 0) or items (1) from .csv, .json, .jsonl or .parquet.

    Raises ValueError where its column of ids, called `name` or alike, cannot be told or read.
    """
    table = read_file(path)
    names = {one.casefold().replace("_", ""): one for one in table.column_names}
    own = name if name in table.column_names else next(
        (names[one] for one in _ID_NAMES[side] if one in names), None
    )  # fmt: skip
    if own is None:
        raise ValueError(
            f"{path} has the columns {', '.join(table.column_names)}: name that of ids {name!r}."
        )
    table = table.select([own, *[one for one in table.column_names if one != own]])
    table = table.filter(table.column(own).is_valid())
    try:
        return KnownFeatures(kind, table)
    except pa.ArrowInvalid as failure:
        raise ValueError(f"{path} holds other ids than the model: {failure}") from failure


class Newcomers:
    """Ids that count as known by their features until a version holds them."""

    def __init__(self) -> None:
        self._given: tuple[dict[Key, Given], dict[Key, Given]] = {}, {}

    @property
    def sizes(self) -> tuple[int, int]:
        """Users and items that no version holds."""
        return len(self._given[0]), len(self._given[1])

    def add(self, side: int, given: Mapping[Key, Given]) -> None:
        """Let ids of a side join."""
        self._given[side].update(given)

    def settle(self, *tables: FactorTable) -> None:
        """Forget those that a version holds, of users and of items."""
        for held, table in zip(self._given, tables, strict=True):
            if held and table.size:
                self._drop(held, table.index)

    def settle_in(self, indexes: Iterable[IdIndex]) -> None:
        """Forget those that are in these indexes, of users and of items."""
        for held, index in zip(self._given, indexes, strict=True):
            if held:
                self._drop(held, index)

    def keys(self, side: int) -> list[Key]:
        """Return the ids of a side."""
        return list(self._given[side])

    def start(self, side: int, table: FactorTable, weights: FeatureWeights | None) -> None:
        """Let those of a side start in an empty table; those that features tell nothing of, go."""
        held = self._given[side]
        if not held:
            return
        if weights is None:
            logger.warning("the model has no features any more: %d ids are left out", len(held))
            held.clear()
            return
        names, vectors = FeatureNames(weights), {}
        for key, given in list(held.items()):
            try:
                vector, _ = names.vector(given)
            except ValueError as fault:
                logger.warning("%r is left out: %s", key, fault)
                vector = {}
            if vector:
                vectors[key] = vector
            else:
                del held[key]
        ids = pa.array(list(vectors), id_array_type(table.index.kind))
        rows = names.rows(ids, list(vectors.values()))
        start_featured(table, rows.ids, rows, weights)

    @staticmethod
    def _drop(held: dict[Key, Given], index: IdIndex) -> None:
        keys = list(held)
        there = index.find(pa.array(keys, id_array_type(index.kind))) >= 0
        for key, known in zip(keys, there.tolist(), strict=True):
            if known:
                del held[key]
