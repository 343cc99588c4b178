"""Tell the processor which rows a kernel is going to read: hides most of a cache miss. No Spark.

A kernel that walks over ratings in the order of their users, say, reads the factors of their items
from anywhere in memory. Prefetching changes no result.
"""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from sparkml_sgdals import _compiling as nb

__all__ = ["AHEAD", "prefetch_lines", "prefetch_row"]

AHEAD: Final = 8
"""How many ratings ahead: long enough for a miss, short enough for the first-level cache."""
_LINE: Final = 16
"""float32 values in a cache line"""


@intrinsic
def _prefetch(_typing, array, row, column):  # type: ignore[no-untyped-def]
    """LLVM's prefetch of array[row, column]; never faults, whatever the address."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        held = context.make_array(signature.args[0])(context, builder, given[0])
        word, byte = ir.IntType(64), ir.IntType(8).as_pointer()
        address = builder.ptrtoint(held.data, word)
        strides = cgutils.unpack_tuple(builder, held.strides, 2)  # type: ignore[no-untyped-call]
        for index, kind, stride in zip(given[1:], signature.args[1:], strides, strict=True):
            wide = context.cast(builder, index, kind, types.int64)
            address = builder.add(address, builder.mul(wide, stride))
        flag = ir.IntType(32)
        declared = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        name = "llvm.prefetch.p0i8"
        function = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
            builder.module, declared, name
        )
        # to read, into the nearest cache, as data
        builder.call(function, [builder.inttoptr(address, byte), flag(0), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.void(array, row, column), generate


@nb.njit(cache=True, nogil=True, inline="always")
def prefetch_row(matrix, row):  # type: ignore[no-untyped-def]
    """Fetch a row of a float32 matrix, whose rows need not start on cache lines."""
    for column in range(0, matrix.shape[1], _LINE):
        _prefetch(matrix, row, column)  # type: ignore[call-arg]
    _prefetch(matrix, row, matrix.shape[1] - 1)  # type: ignore[call-arg]


@nb.njit(cache=True, nogil=True, inline="always")
def prefetch_lines(matrix, row):  # type: ignore[no-untyped-def]
    """Fetch a row of `padded_rows`, which starts on a cache line or half-way of one."""
    for column in range(0, matrix.shape[1], _LINE):
        _prefetch(matrix, row, column)  # type: ignore[call-arg]
