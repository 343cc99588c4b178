"""The state of one side of a model: ids, and their rows (driver and executor)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.id_index import IdIndex
from sparkml_sgdals.arrays.id_kinds import IdKind, id_array_type
from sparkml_sgdals.state.columns import Array, Column, FactorColumns, bound_features, grown
from sparkml_sgdals.state.event_memory import EventMemory, memory_for
from sparkml_sgdals.state.settings import Settings

__all__ = ["FactorRows", "FactorTable", "arrow_schema", "drop_ids", "put_features"]

I64 = npt.NDArray[np.int64]

_NO_ROWS: Final[I64] = np.empty(0, np.int64)


class FactorRows(FactorColumns):
    """Copies of some rows of a `FactorTable`, to be learned and then put back, or dropped.

    Attributes
    ----------
    rows
        int64, where they came from
    """

    def __init__(self, rows: I64, arrays: dict[str, Array]) -> None:
        self.rows = rows
        self.arrays = arrays

    def copy(self) -> FactorRows:
        """Return an independent copy: rows side by side, so cheaper than to take them again."""
        arrays = {name: array.copy() for name, array in self.arrays.items()}
        return FactorRows(self.rows, arrays)


class FactorTable(FactorColumns):
    """Factors of users or of items, one row an id.

    Attributes
    ----------
    index
        the ids and their rows
    memory
        what is remembered besides where the model learns events, and of users where it ranks
        ratings; else None
    """

    def __init__(self, side: int, kind: IdKind, settings: Settings) -> None:
        self.side = side
        self.settings = settings
        self.index = IdIndex(kind)
        # with room for ids to come
        self.arrays = {column.name: column.zeros(settings) for column in self.registry()}
        self.memory: EventMemory | None = memory_for(side, settings)

    @property
    def size(self) -> int:
        """Number of ids."""
        return self.index.size

    def array(self, name: str) -> Array:
        """Return the rows of the ids there are, of one column."""
        return self.arrays[name][: self.size]

    def set_array(self, name: str, array: Array) -> None:
        """Write all rows of one column."""
        self.arrays[name][: self.size] = array

    def ensure(self, ids: pa.Array) -> tuple[I64, int]:
        """Rows of distinct `ids`, new ones starting from (seed, side, id); and how many are new."""
        rows = self.index.find(ids)
        missing = np.flatnonzero(rows < 0)
        if missing.size:
            new = ids.take(pa.array(missing))
            rows[missing] = self._append(new)
            added = slice(self.size - missing.size, self.size)
            for column in self.registry():
                start = column.start(self.settings, self.side, new)
                self.arrays[column.name][added] = start
        return rows, int(missing.size)

    def take(self, rows: I64) -> FactorRows:
        """Return copies of these rows."""
        return FactorRows(rows, {name: array[rows] for name, array in self.arrays.items()})

    def put_rows(self, learned: FactorRows) -> None:
        """Put rows that were taken back into their places."""
        for name, array in self.arrays.items():
            array[learned.rows] = learned.arrays[name]

    def put(self, ids: pa.Array, arrays: Mapping[str, Any]) -> None:
        """Set the state of distinct `ids`, known or not.

        Parameters
        ----------
        ids : pa.Array
            pyarrow.Array of int64 or string, by the kind of the table, shape (n,)
        arrays : Mapping[str, Any]
            with a row an id, by the names of columns; what is missing stands as with new ids
        """
        rows = self.index.find(ids)
        missing = np.flatnonzero(rows < 0)
        if missing.size:
            rows[missing] = self._append(ids.take(pa.array(missing)))
        for column in self.registry():
            values = arrays.get(column.name)
            if values is None:
                values = column.start(self.settings, self.side, ids)
            self.arrays[column.name][rows] = values

    def to_arrow(self, rows: I64 | None = None) -> pa.Table:
        """State of `rows` (all by default) as Arrow, sorted by id: see `arrow_schema`."""
        ids = self.index.ids(rows)
        order = pa.compute.array_sort_indices(ids).to_numpy(zero_copy_only=False)
        picked = order if rows is None else rows[order]
        columns = {"id": ids.take(pa.array(order))} | self.to_columns(picked)
        table = pa.table(columns, schema=arrow_schema(self.index.kind))
        if self.memory is not None:
            for name, column in self.memory.to_columns(picked).items():
                table = table.append_column(name, column)
        return table

    def schema(self) -> pa.Schema:
        """Return the schema of what `to_arrow` gives."""
        return self.to_arrow(_NO_ROWS).schema

    def put_arrow(self, table: pa.Table) -> None:
        """Set the state of the ids in what `to_arrow` gave; integers may be narrower.

        Raises
        ------
        ValueError
            a column is missing or of another width; all is as it was
        """
        ids = table.column("id").cast(id_array_type(self.index.kind)).combine_chunks()
        columns = self.registry()
        self.put(ids, {column.name: column.from_arrow(table, self.settings) for column in columns})
        if self.memory is not None:
            self.memory.put(self.index.find(ids), table)

    def finite(self, rows: Any = slice(None)) -> bool:
        """Whether every number in `rows` is a finite one."""
        return super().finite(rows) and (self.memory is None or self.memory.finite(rows))

    def told(self, column: Column[Any]) -> bool:
        """Whether a fingerprint tells a column: not where it only stands as it starts."""
        if not column.used(self.settings) or column.told:
            return column.used(self.settings)
        start = column.start(self.settings, self.side, self.index.ids())
        return bool(np.any(self.array(column.name) != start))

    def truncate(self, size: int) -> None:
        """Forget the ids that were added last, down to `size` of them."""
        self.index.truncate(size)
        if self.memory is not None:
            self.memory.resize(self.size)

    def without(self, ids: pa.Array) -> FactorTable:
        """Return a table of the same state but for some ids, known or not."""
        twin = FactorTable(self.side, self.index.kind, self.settings)
        twin.put_arrow(drop_ids(self.to_arrow(), "id", ids))
        return twin

    def rescale(self, bias_shift: float, ratio: float) -> None:
        """Change units: biases become (b + shift) * ratio, features f * sqrt(ratio)."""
        for column in self.registry():
            column.rescale(self.array(column.name), bias_shift, ratio)
        self.bound()

    def bound(self, rows: I64 | slice = slice(None)) -> None:
        """Raise features below what the settings allow to that."""
        bound_features(self.mean, self.settings.lowest, rows)
        if self.settings.nonnegative:
            bound_features(self.taste, 0.0, rows)

    def under(self, settings: Settings) -> FactorTable:
        """Return the same factors, shared, under settings that differ in ranking, memory empty.

        For models of ratings.
        """
        twin = copy.copy(self)
        twin.settings = settings
        twin.memory = memory_for(self.side, settings)
        if twin.memory is not None:
            twin.memory.resize(self.size)
        return twin

    def copy(self) -> FactorTable:
        """Return an independent copy."""
        twin = copy.copy(self)
        twin.index = self.index.copy()
        twin.arrays = grown(self.arrays, self.size)
        twin.memory = None if self.memory is None else self.memory.copy()
        return twin

    def _append(self, ids: pa.Array) -> I64:
        rows = self.index.add(ids)
        room = next(iter(self.arrays.values())).shape[0]
        if self.size > room:
            self.arrays = grown(self.arrays, max(self.size, 2 * room))
        if self.memory is not None:
            self.memory.resize(self.size)
        return rows


def put_features(table: FactorTable, features: pa.Table) -> None:
    """Set features of a table of id and features, without biases: the factors of Spark's ALS.

    Variances, baseline and counts are those of new ids.

    Raises
    ------
    ValueError
        a feature is negative, and none may be
    """
    ids = features.column("id").cast(id_array_type(table.index.kind)).combine_chunks()
    column = features.column("features").combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False)
    rows, _ = table.ensure(ids)
    settings = table.settings
    if settings.nonnegative and values.size and not values.min() >= 0.0:
        raise ValueError(
            f"nonnegative=True, and a feature is {values.min():.3g}: fit ALS with "
            "nonnegative=True, or leave it out here."
        )
    centre = np.float32(settings.centre)
    held = values.reshape(len(ids), settings.rank) - centre
    table.mean[rows, 1:] = held
    table.mean[rows, 0] = centre * (held.sum(axis=1) + settings.rank * centre / 2)


def drop_ids(table: pa.Table, column: str, ids: pa.Array) -> pa.Table:
    """Return the rows of a table whose id in `column` is not among `ids`."""
    known = pa.compute.is_in(table.column(column), value_set=ids.cast(table[column].type))
    return table.filter(pa.compute.invert(known))


def arrow_schema(kind: IdKind) -> pa.Schema:
    """Return the schema of a factor table: the columns of `FactorColumns` by their stored names.

    Models that remember more add the columns of `event_memory`.
    """
    columns = [(column.stored, column.arrow_type) for column in FactorColumns.registry()]
    return pa.schema([("id", id_array_type(kind)), *columns])
