"""Tables and named arrays as bytes: what comes back is what was sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from building import F32
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from sparkml_sgdals.arrays.ipc import (
    arrays_from_buffer,
    arrays_to_buffer,
    from_bytes,
    narrow,
    to_bytes,
)

SHAPES = st.one_of(
    npst.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=6),
    st.sampled_from([(0,), (0, 3), (3, 0), (0, 0)]),
)
ARRAYS = st.sampled_from([np.float32, np.float64, np.int32, np.int64]).flatmap(
    lambda dtype: npst.arrays(dtype, SHAPES)
)


SCHEMA = pa.schema([("id", pa.int64()), ("name", pa.string()), ("values", pa.list_(pa.float32()))])


@pytest.mark.parametrize("rows", [0, 1, 1000])
def test_table_through_bytes(rows: int) -> None:
    """Types, nulls, lists and chunks survive, from bytes and from a buffer."""
    table = pa.table(
        [
            pa.array(range(rows), pa.int64()),
            pa.array([None if n % 3 else f"é{n}" for n in range(rows)], pa.string()),
            pa.array([[1.5] * (n % 4) for n in range(rows)], pa.list_(pa.float32())),
        ],
        schema=SCHEMA,
    )
    payload = to_bytes(table)
    assert isinstance(payload, bytes)
    assert from_bytes(payload).equals(table)
    assert from_bytes(pa.py_buffer(payload)).equals(table)
    chunked = pa.concat_tables([table[: rows // 2], table[rows // 2 :]])
    assert from_bytes(to_bytes(chunked)).equals(table)


@pytest.mark.parametrize(
    ("values", "narrowed"),
    [
        ([0, 5], True),
        ([-(2**31), 2**31 - 1], True),
        ([0, 2**31], False),
        ([-(2**31) - 1, 0], False),
        ([None, 7], True),
        ([], False),
    ],
)
def test_narrow_where_all_values_fit(values: list[Any], narrowed: bool) -> None:
    """bigint becomes int where every value fits; other columns and all values stay."""
    table = pa.table(
        {
            "n": pa.array(values, pa.int64()),
            "s": pa.array(["a"] * len(values), pa.string()),
            "x": pa.array([1.0] * len(values), pa.float32()),
        }
    )
    found = narrow(table)
    assert found.to_pylist() == table.to_pylist()
    assert found.schema.names == table.schema.names
    assert found.schema.field("n").type == (pa.int32() if narrowed else pa.int64())
    assert found.drop_columns("n").schema.equals(table.drop_columns("n").schema)


@given(st.lists(st.tuples(*[st.integers(-(2**33), 2**33)] * 2), min_size=1))
def test_narrow_decides_by_column(rows: list[tuple[int, int]]) -> None:
    """Each column by its own values."""
    columns = dict(zip("ab", zip(*rows, strict=True), strict=True))
    table = pa.table({name: pa.array(values, pa.int64()) for name, values in columns.items()})
    found = narrow(table)
    assert found.to_pylist() == table.to_pylist()
    for name, values in columns.items():
        fits = all(-(2**31) <= value < 2**31 for value in values)
        assert found.schema.field(name).type == (pa.int32() if fits else pa.int64())


@given(st.dictionaries(st.text(min_size=1, max_size=5), ARRAYS, min_size=1, max_size=5))
def test_arrays_through_bytes(arrays: dict[str, np.ndarray]) -> None:
    """Names, types, shapes and bits survive, empty ones too; what comes back can be written."""
    payload = arrays_to_buffer(arrays)
    for given_as in (payload, payload.to_pybytes()):
        back = arrays_from_buffer(given_as)
        assert list(back) == list(arrays)
        for name, array in arrays.items():
            assert back[name].dtype == array.dtype
            assert back[name].shape == array.shape
            assert back[name].tobytes() == array.tobytes()
            assert back[name].flags.writeable
            assert back[name].flags.c_contiguous


def test_arrays_that_are_not_contiguous() -> None:
    """A column or a transpose is sent as it reads."""
    square = np.arange(12, dtype=F32).reshape(3, 4)
    back = arrays_from_buffer(arrays_to_buffer({"column": square[:, 1], "turned": square.T}))
    np.testing.assert_array_equal(back["column"], [1, 5, 9])
    np.testing.assert_array_equal(back["turned"], square.T)
