"""Vectors by id: dense and sparse ones, and those that are none."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkml_sgdals.arrays.ipc import from_bytes, to_bytes
from sparkml_sgdals.arrays.sparse_rows import SparseRows, vector_schema, with_names


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
