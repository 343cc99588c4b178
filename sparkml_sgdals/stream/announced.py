"""Ids that a batch tells of without rating them: known from then on by their features (driver)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.id_kinds import id_array_type
from sparkml_sgdals.fit.plan import FitOptions
from sparkml_sgdals.ingest.features import Vectors, features_of_table
from sparkml_sgdals.learn.features.streams import begin_features
from sparkml_sgdals.state.feature_values import start_featured
from sparkml_sgdals.state.model_state import ModelState

__all__ = ["Announced", "all_in_memory", "start_announced"]

I64 = npt.NDArray[np.int64]


def start_announced(
    state: ModelState, told: Vectors, options: FitOptions
) -> tuple[pa.Array | None, pa.Array | None]:
    """Let ids that a model does not know start where their features say; returns these ids.

    Raises ValueError where a vector is none and `handle_invalid` is "error".
    """
    refuse = options.handle_invalid == "error"
    known = features_of_table(state, told, options.columns, refuse)
    begin_features(state, known)
    for table, rows, weights in zip((state.users, state.items), known, state.features, strict=True):
        if rows is not None:
            start_featured(table, rows.ids, rows, weights)
    users, items = (None if rows is None else rows.ids for rows in known)
    return users, items


def all_in_memory(user_ids: pa.Array, item_ids: pa.Array) -> None:
    """Bring nothing, in the place of what brings the rows of ids from files."""


class Announced:
    """Ids that a batch tells of, and what became of them.

    Parameters
    ----------
    state : ModelState
        the model before the batch
    told : Vectors
        their features
    options : FitOptions
        how rows were read
    """

    def __init__(self, state: ModelState, told: Vectors, options: FitOptions) -> None:
        self._state, self._told, self._options = state, told, options
        self._any = any(table is not None and table.num_rows for table in told)
        self._sizes = state.users.size, state.items.size
        self._features = state.features
        self._new: tuple[list[pa.Array], list[pa.Array]] = [], []

    def start(self, fetch: Callable[[pa.Array, pa.Array], None]) -> None:
        """Add those that the model does not know, once `fetch` has brought those that it knows."""
        if not self._any:
            return
        users, items = (
            pa.array([], id_array_type(kind))
            if table is None
            else table.column("id").combine_chunks().unique()
            for table, kind in zip(self._told, self._options.kinds, strict=True)
        )
        fetch(users, items)
        started = start_announced(self._state, self._told, self._options)
        for held, new in zip(self._new, started, strict=True):
            if new is not None and len(new):
                held.append(new)

    def take_back(self) -> None:
        """Forget them, as the batch was not learned."""
        if self._any:
            self._state.users.truncate(min(self._sizes[0], self._state.users.size))
            self._state.items.truncate(min(self._sizes[1], self._state.items.size))
            self._state.features = self._features

    def count(self, side: int) -> int:
        """Return how many were new."""
        return sum(map(len, self._new[side]))

    def with_rows(self, rows: tuple[I64, I64] | None) -> tuple[I64, I64] | None:
        """Return the rows that a batch changed with theirs; None stands for all."""
        if rows is None or not self._any:
            return rows
        found = []
        tables = self._state.users, self._state.items
        for table, own, new in zip(tables, rows, self._new, strict=True):
            more = [table.index.find(ids) for ids in new]
            found.append(np.unique(np.concatenate([own, *more])) if more else own)
        return found[0], found[1]
