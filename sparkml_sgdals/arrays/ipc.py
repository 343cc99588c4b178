"""Tables and named arrays as bytes: what travels in one value, or is kept as one (no Spark)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

__all__ = [
    "arrays_from_buffer",
    "arrays_in",
    "arrays_to_buffer",
    "digest_of",
    "from_bytes",
    "in_pieces",
    "narrow",
    "packed_tables",
    "row_of_arrays",
    "to_buffer",
    "to_bytes",
    "to_parquet",
]

Array = npt.NDArray[Any]

_ROW_GROUP: Final = 131_072
"""Rows that a reader of a table's parts has to hold at once, at most."""


def to_buffer(table: pa.Table) -> pa.Buffer:
    """Return a table as one Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def to_bytes(table: pa.Table) -> bytes:
    """Return a table as one Arrow IPC stream, copied into a value of Python's."""
    return bytes(to_buffer(table).to_pybytes())


def digest_of(table: pa.Table) -> bytes:
    """SHA-256 of what a table holds, in hexadecimal."""
    return hashlib.sha256(to_buffer(table.combine_chunks())).hexdigest().encode()


def to_parquet(table: pa.Table) -> bytes:
    """Return a table as Parquet."""
    sink = pa.BufferOutputStream()
    # floats and distinct ids: a dictionary would take ten times as long, and more room
    pq.write_table(
        table, sink, row_group_size=_ROW_GROUP, use_dictionary=False, write_statistics=False
    )
    return bytes(sink.getvalue().to_pybytes())


def from_bytes(payload: bytes | pa.Buffer) -> pa.Table:
    """Return the table in an Arrow IPC stream."""
    with pa.ipc.open_stream(payload) as reader:
        return reader.read_all()


def in_pieces(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """Yield batches put together until they hold so many rows; the last piece may hold fewer."""
    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        held.append(batch)
        count += batch.num_rows
        if count >= rows:
            yield pa.Table.from_batches(held)
            held, count = [], 0
    if count:
        yield pa.Table.from_batches(held)


def packed_tables(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Yield the ratings of packed rows, a table a row that has any, in types as `narrow` left."""
    for batch in batches:
        for payload in batch.column("payload"):
            table = from_bytes(payload.as_buffer())
            if table.num_rows:
                yield table


def narrow(table: pa.Table) -> pa.Table:
    """Return the table with int64 columns as int32 where all values fit: half the bytes to move."""
    for number, field in enumerate(table.schema):
        if field.type == pa.int64() and table.num_rows:
            bounds = pa.compute.min_max(table.column(number)).as_py()
            if bounds["min"] >= -(2**31) and bounds["max"] < 2**31:
                smaller = table.column(number).cast(pa.int32())
                table = table.set_column(number, field.name, smaller)
    return table


def arrays_to_buffer(arrays: Mapping[str, Array | pa.Array]) -> pa.Buffer:
    """Named arrays as one Arrow IPC stream of one row.

    Parameters
    ----------
    arrays : Mapping[str, Array | pa.Array]
        NumPy arrays of one dimension or two; Arrow arrays of strings
    """
    return to_buffer(row_of_arrays(arrays))


def row_of_arrays(arrays: Mapping[str, Array | pa.Array]) -> pa.Table:
    """Return named arrays as a table of one row, whose stream `arrays_from_buffer` reads."""
    fields, columns = [], []
    for name, array in arrays.items():
        if isinstance(array, pa.Array):
            flat, shape = array, str(len(array))
        else:
            flat = pa.array(np.ascontiguousarray(array).reshape(-1))
            shape = ",".join(map(str, array.shape))
        offsets = pa.array([0, len(flat)], pa.int64())
        columns.append(pa.LargeListArray.from_arrays(offsets, flat))
        fields.append(pa.field(name, columns[-1].type, metadata={"shape": shape}))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def arrays_from_buffer(payload: bytes | pa.Buffer, copy: bool = True) -> dict[str, Any]:
    """Return the named arrays that `arrays_to_buffer` was given.

    Parameters
    ----------
    payload : bytes | pa.Buffer
        the Arrow IPC stream that it gave
    copy : bool
        whether the arrays can be written; else they are views of the payload, perhaps not aligned,
        that can be read only
    """
    arrays: dict[str, Any] = {}
    for name, values, shape in _columns(payload):
        if pa.types.is_string(values.type):
            arrays[name] = values
        else:
            flat = values.to_numpy(zero_copy_only=False)
            arrays[name] = (flat.copy() if copy else flat).reshape(shape)
    return arrays


def arrays_in(memory: npt.NDArray[np.uint8]) -> dict[str, Any]:
    """Return what `arrays_to_buffer` was given, as aligned views of memory, writable as it is."""
    payload = pa.py_buffer(memory)
    arrays: dict[str, Any] = {}
    for name, values, shape in _columns(payload):
        if pa.types.is_string(values.type):
            arrays[name] = values
            continue
        dtype = np.dtype(values.type.to_pandas_dtype())
        first = values.buffers()[1].address - payload.address if len(values) else 0
        flat = memory[first : first + len(values) * dtype.itemsize].view(dtype)
        arrays[name] = flat.reshape(shape)
    return arrays


def _columns(payload: bytes | pa.Buffer) -> Iterator[tuple[str, pa.Array, list[int]]]:
    table = from_bytes(payload)
    for field, column in zip(table.schema, table.columns, strict=True):
        shape = field.metadata[b"shape"].decode().split(",")
        yield field.name, column.chunk(0).flatten(), [int(length) for length in shape]
