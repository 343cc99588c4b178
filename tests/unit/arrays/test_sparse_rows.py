"""Vectors by id: dense and sparse ones, and those that are none."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkml_sgdals.arrays.ipc import from_bytes, to_bytes
from sparkml_sgdals.arrays.sparse_rows import (
    SparseRows,
    newest_vectors,
    vector_schema,
    with_names,
)


def vectors(rows: list[tuple[object, object, object, object]], kind: str = "int") -> pa.Table:
    """A table of id, size, indices, values."""
    columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], [], []]
    schema = vector_schema(kind)  # type: ignore[arg-type]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def dense(rows: SparseRows) -> np.ndarray:
    full = np.zeros((len(rows), rows.size))
    full[rows.row_of(), rows.columns] = rows.values
    return full


values = st.sampled_from([0.0, 1.0, -2.5, 3.0])


@given(st.lists(st.lists(values, min_size=4, max_size=4), min_size=1, max_size=8), st.data())
def test_dense_and_sparse_vectors_say_the_same(matrix: list[list[float]], data: st.DataObject):
    """Whatever the order of rows and of indices."""
    rows: list[tuple[object, object, object, object]] = []
    for number, row in enumerate(matrix):
        if data.draw(st.booleans()):
            rows.append((number, 4, None, row))
        else:
            some = data.draw(st.permutations([n for n in range(4) if row[n]]))
            rows.append((number, 4, list(some), [row[n] for n in some]))
    found, bad = SparseRows.of(vectors(list(data.draw(st.permutations(rows)))))
    assert bad == []
    np.testing.assert_array_equal(dense(found), matrix)
    assert (found.values != 0).all()
    again, _ = SparseRows.of(from_bytes(to_bytes(found.to_table())))
    np.testing.assert_array_equal(dense(again), matrix)


@pytest.mark.parametrize(
    ("size", "indices", "row"),
    [
        (3, None, [1.0, 2.0, 3.0]),
        (2, None, [1.0]),
        (2, None, [1.0, float("nan")]),
        (2, [0], [float("inf")]),
        (2, [0], [1e13]),
        (2, [2], [1.0]),
        (2, [-1], [1.0]),
        (2, [0, 0], [1.0, 2.0]),
        (2, [0, 1], [1.0]),
        (2, None, [None, 1.0]),
        (None, None, None),
    ],
)
def test_what_is_no_vector_is_told(size, indices, row) -> None:  # type: ignore[no-untyped-def]
    """By its id; the others stand."""
    rows = [(7, 2, None, [1.0, 0.0]), (5, size, indices, row), (9, 2, [1], [4.0])]
    found, bad = SparseRows.of(vectors(rows))
    assert bad == [5]
    assert found.ids.to_pylist() == [7, 9]
    np.testing.assert_array_equal(dense(found), [[1.0, 0.0], [0.0, 4.0]])


def test_a_size_that_is_asked_for() -> None:
    """The most frequent one else."""
    rows = [(1, 2, None, [1.0, 1.0]), (2, 3, None, [1.0, 1.0, 1.0]), (3, 3, None, [0.0, 0.0, 0.0])]
    assert SparseRows.of(vectors(rows))[1] == [1]
    assert SparseRows.of(vectors(rows), 2)[1] == [2, 3]


def test_rows_by_id_and_names() -> None:
    """Places of ids that are there or not; rows in another order; names travel as bytes."""
    rows = [("b", 2, None, [1.0, 0.0]), ("a", 2, [1], [4.0])]
    found, _ = SparseRows.of(with_names(vectors(rows, "str"), ("x", "y")))
    places = found.places(pa.array(["b", "c", "a"]))
    assert places.tolist() == [1, -1, 0]
    np.testing.assert_array_equal(dense(found.take(np.array([1, 0, 1]))), [[1, 0], [0, 4], [1, 0]])
    assert SparseRows.of(from_bytes(to_bytes(found.to_table())))[0].names == ("x", "y")
    assert len(SparseRows.empty("str", 2)) == 0


numbers = st.sampled_from([None, float("nan"), -2.0, 2.0, 10.0])
told = st.tuples(
    st.integers(0, 3), st.sampled_from([None, 1, 2]),
    st.none() | st.lists(st.sampled_from([0, 9, 10]), max_size=2),
    st.none() | st.lists(numbers, max_size=2),
)  # fmt: skip


@given(st.lists(st.tuples(told, st.integers(-2, 2)), max_size=12), st.booleans())
def test_the_newest_vector_of_each_id(rows: list[tuple[tuple, int]], timed: bool) -> None:
    """Of equal times the greatest, as Spark orders them: null first, then numbers, then NaN."""
    rank = {None: 0, -2.0: 1, 2.0: 2, 10.0: 3}

    def key(row: tuple) -> tuple:
        """Ascending as Spark has them."""
        _, size, indices, values = row
        listed = None if values is None else [rank.get(value, 4) for value in values]
        parts = (size, indices, listed)
        return tuple((part is not None, part if part is not None else 0) for part in parts)

    table = vectors([row for row, _ in rows])
    best: dict[int, tuple] = {}
    keys: dict[int, dict[int, set]] = {}
    for row, told_time in rows:
        time = told_time if timed else 0
        keys.setdefault(row[0], {}).setdefault(time, set()).add(repr(key(row)))
        if row[0] not in best or (time, key(row)) > best[row[0]][0]:
            best[row[0]] = (time, key(row)), row
    if timed:
        table = table.append_column("time", pa.array([time for _, time in rows], pa.int64()))
    found, differ = newest_vectors(table)
    assert found.column_names == ["id", "size", "indices", "values"]
    assert {row["id"]: repr(tuple(row.values())) for row in found.to_pylist()} == {
        one: repr(row) for one, (_, row) in best.items()
    }
    assert found.num_rows == len(best)
    assert set(differ) == {one for one, times in keys.items() if len(times[max(times)]) > 1}
