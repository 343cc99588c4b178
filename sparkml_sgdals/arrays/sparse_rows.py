"""Vectors of numbers by id, as sparse rows (CSR): what is known of ids beside ratings (no Spark).

They come in as Arrow with the columns `id` and `size`, `indices`, `values` of each vector, as
pyspark.ml's vectors hold them: `indices` is null where all values stand in their order.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from sparkml_sgdals.arrays.id_kinds import IdKind, id_array_type

__all__ = ["SparseRows", "newest_vectors", "vector_schema", "with_names"]

F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

_LARGEST: Final = 1e12
"""Numbers beyond it, as those that are not finite, are no features."""
_NAMES: Final = b"features"
_PARTS: Final = ("size", "indices", "values")


def vector_schema(kind: IdKind) -> pa.Schema:
    """Return the schema of vectors by id."""
    return pa.schema(
        [
            ("id", id_array_type(kind)),
            ("size", pa.int32()),
            ("indices", pa.list_(pa.int32())),
            ("values", pa.list_(pa.float64())),
        ]
    )


@dataclass(frozen=True)
class SparseRows:
    """Vectors of one size, a row an id.

    Attributes
    ----------
    ids : pa.Array
        int64 or string, each once, shape (n,)
    size : int
        numbers of a vector
    starts : I64
        int64, shape (n + 1,): what is not zero in row r lies at starts[r]..starts[r+1]-1
    columns : I32
        int32, positions in the vector, rising within a row
    values : F64
        float64, none of them 0
    names : tuple[str, ...]
        of the places in a vector; empty where none were told
    """

    ids: pa.Array
    size: int
    starts: I64
    columns: I32
    values: F64
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of ids."""
        return len(self.ids)

    @classmethod
    def empty(cls, kind: IdKind, size: int) -> SparseRows:
        """Return no rows, of vectors of a size."""
        return cls.of(vector_schema(kind).empty_table(), size)[0]

    @classmethod
    def of(cls, table: pa.Table, size: int = 0) -> tuple[SparseRows, list[Any]]:
        """Read vectors, ids in any order and each once.

        Parameters
        ----------
        table : pa.Table
            of `vector_schema`, perhaps with names in its metadata
        size : int
            numbers that a vector has to have; 0 for as many as most of them have

        Returns
        -------
        the rows, by id; and the ids whose vector has another size, or holds what is no number
        """
        table = table.sort_by("id").combine_chunks()
        sizes = _numbers(table.column("size").fill_null(-1), np.int64)
        if not size and sizes.size:
            found, counts = np.unique(sizes[sizes > 0], return_counts=True)
            size = int(found[np.argmax(counts)]) if found.size else 0
        indices, values = (table.column(name).combine_chunks() for name in ("indices", "values"))
        lengths = _numbers(pa.compute.fill_null(pa.compute.list_value_length(values), 0), np.int64)
        flat = _numbers(values.flatten().fill_null(np.nan), np.float64)
        row_of = np.repeat(np.arange(sizes.size), lengths)
        begins = np.cumsum(lengths) - lengths
        columns = np.arange(flat.size) - begins[row_of]
        told = _numbers(pa.compute.is_valid(indices), bool)
        given = _numbers(pa.compute.fill_null(pa.compute.list_value_length(indices), 0), np.int64)
        bad = (sizes != size) | (np.where(told, given, sizes) != lengths)
        if told.any() and not bad.all():
            places = _numbers(indices.flatten().fill_null(-1), np.int64)
            place_row = np.repeat(np.arange(sizes.size), given)
            fits = told & ~bad
            columns[fits[row_of]] = places[fits[place_row]]
        with np.errstate(invalid="ignore"):
            odd = ~(np.abs(flat) <= _LARGEST) | (columns < 0) | (columns >= max(size, 1))
        bad[row_of[odd]] = True
        kept = ~bad[row_of] & (flat != 0.0)
        row_of, columns, flat = row_of[kept], columns[kept], flat[kept]
        if ((np.diff(row_of) == 0) & (np.diff(columns) < 0)).any():
            order = np.lexsort((columns, row_of))
            row_of, columns, flat = row_of[order], columns[order], flat[order]
        twice = (np.diff(row_of) == 0) & (np.diff(columns) == 0)
        bad[row_of[1:][twice]] = True
        kept = ~bad[row_of]
        row_of = (np.cumsum(~bad) - 1)[row_of[kept]]
        starts = np.zeros(int((~bad).sum()) + 1, np.int64)
        np.cumsum(np.bincount(row_of, minlength=starts.size - 1), out=starts[1:])
        ids = table.column("id").combine_chunks()
        told_names = (table.schema.metadata or {}).get(_NAMES)
        names = tuple(json.loads(told_names)) if told_names else ()
        rows = cls(
            ids.filter(pa.array(~bad)), size, starts, columns[kept].astype(np.int32), flat[kept],
            (*names[:size], *map(str, range(len(names), size))) if names else (),
        )  # fmt: skip
        return rows, ids.filter(pa.array(bad)).to_pylist()

    def to_table(self) -> pa.Table:
        """Return the rows as `of` takes them."""
        lists = pa.array(self.starts.astype(np.int32))
        kind: IdKind = "str" if pa.types.is_string(self.ids.type) else "int"
        columns = [
            self.ids,
            pa.array(np.full(len(self), self.size, np.int32)),
            pa.ListArray.from_arrays(lists, pa.array(self.columns)),
            pa.ListArray.from_arrays(lists, pa.array(self.values)),
        ]
        return with_names(pa.Table.from_arrays(columns, schema=vector_schema(kind)), self.names)

    def places(self, ids: pa.Array) -> I64:
        """Row of each of these ids, -1 where there is none."""
        found = pa.compute.index_in(ids, value_set=self.ids.cast(ids.type))
        return _numbers(found.fill_null(-1), np.int64)

    def take(self, rows: I64) -> SparseRows:
        """Return some rows, in this order."""
        lengths = np.diff(self.starts)[rows]
        starts = np.zeros(rows.size + 1, np.int64)
        np.cumsum(lengths, out=starts[1:])
        places = np.arange(starts[-1]) + np.repeat(self.starts[rows] - starts[:-1], lengths)
        return SparseRows(
            self.ids.take(pa.array(rows)), self.size, starts,
            self.columns[places], self.values[places], self.names,
        )  # fmt: skip

    def row_of(self) -> I64:
        """Row of each value."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))


def with_names(table: pa.Table, names: tuple[str, ...]) -> pa.Table:
    """Return a table of vectors that tells the names of their places."""
    return table.replace_schema_metadata({_NAMES: json.dumps(list(names))}) if names else table


def newest_vectors(table: pa.Table) -> tuple[pa.Table, list[Any]]:
    """Return one vector an id: the last by time, of equal times the greatest.

    Parameters
    ----------
    table : pa.Table
        columns of `vector_schema`, perhaps time; an id may come several times

    Returns
    -------
    the table without times, and the ids whose vectors of the last time differ, in no order
    """
    ids = table.column("id").combine_chunks().dictionary_encode()
    group = ids.indices.to_numpy(zero_copy_only=False)
    at_last = np.arange(group.size)
    if "time" in table.column_names:
        time = table.column("time").to_numpy()
        last = np.full(len(ids.dictionary), np.iinfo(np.int64).min)
        np.maximum.at(last, group, time)
        at_last = np.flatnonzero(time == last[group])
        table = table.drop_columns("time")
    again = np.bincount(group[at_last], minlength=len(ids.dictionary))[group[at_last]] > 1
    best: dict[int, tuple[Any, int]] = {}
    differ: set[int] = set()
    told = table.select(list(_PARTS)).take(pa.array(at_last[again])).to_pylist()
    for row, vector in zip(at_last[again].tolist(), told, strict=True):
        key, one = tuple(_ordered(vector[part]) for part in _PARTS), int(group[row])
        held = best.get(one)
        if held is not None and held[0] != key:
            differ.add(one)
        if held is None or key > held[0]:
            best[one] = key, row
    kept = [at_last[~again], np.array([row for _, row in best.values()], np.int64)]
    named = ids.dictionary.take(pa.array(sorted(differ), pa.int64())).to_pylist()
    if at_last.size == table.num_rows and not best:
        return table, named
    return table.take(pa.array(np.concatenate(kept))), named


def _ordered(value: Any) -> tuple[Any, ...]:
    """Return a key by which values stand as in Spark: null first, NaN is the greatest number."""
    if value is None:
        return (0,)
    if isinstance(value, list):
        return 1, tuple(map(_ordered, value))
    return (2,) if value != value else (1, value)


def _numbers(column: Any, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = (
        column.to_numpy(zero_copy_only=False) if isinstance(column, pa.Array) else column.to_numpy()
    )
    return found.astype(dtype)
