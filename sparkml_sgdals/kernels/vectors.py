"""Eight float32 values as one value of a kernel, to be loaded, reckoned with and stored. No Spark.

A row of factors has rank + 1 values: too few for the loops that a compiler makes of a length it
does not know, whose vectors start at 32 values. A kernel that takes its row by `load`, eight values
at a time, and writes its equation with + - * / for all of them, has vectors at any rank.

Numba's way to add a type: https://numba.readthedocs.io/en/stable/extending/low-level.html
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Final

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.errors import NumbaTypeError
from numba.extending import (
    intrinsic,
    lower_builtin,
    models,
    register_model,
    type_callable,
)

__all__ = [
    "LANES",
    "code_of",
    "fill",
    "lanes_at",
    "larger",
    "load",
    "load_first",
    "load_pair",
    "smaller",
    "square_root",
    "store",
    "store_first",
    "store_pair",
    "summed",
]

LANES: Final = 8
"""values of a vector"""
_FLAGS: Final = ("reassoc", "contract", "arcp", "nsz")
"""Those of kernels.FAST: NaN and infinity keep their meaning."""

_WORD: Final = ir.IntType(64)
_VALUES: Final = ir.VectorType(ir.FloatType(), LANES)
_PAIR: Final = ir.VectorType(ir.FloatType(), 2)
_ALIGNED: Final = 4
"""bytes: a row may start anywhere"""


def code_of(function: Callable[..., Any]) -> Any:
    """Numba's, as what a type checker takes any arguments for: kernels do not give the first."""
    return intrinsic(function)


class Vector(types.Type):
    """Numba's type of eight float32 values."""

    def __init__(self) -> None:
        super().__init__(name="Vector")


VECTOR: Final = Vector()


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VALUES)  # type: ignore[no-untyped-call]


def lanes_at(context: Any, builder: Any, array: Any, kind: Any, place: Any, place_kind: Any) -> Any:
    """Pointer to eight values of an array as if flat, for code generation.

    Raises
    ------
    NumbaTypeError
        an array that need not be C-contiguous: its places would be others
    """
    if kind.layout != "C":
        raise NumbaTypeError(f"vectors are of C-contiguous arrays, not of {kind}")
    held = context.make_array(kind)(context, builder, array)
    index = context.cast(builder, place, place_kind, types.int64)
    return builder.bitcast(builder.gep(held.data, [index]), _VALUES.as_pointer())


def _repeated(builder: Any, value: Any) -> Any:
    """Return a vector of one value."""
    some = ir.VectorType(value.type, LANES)
    nothing = ir.Constant(some, ir.Undefined)
    first = builder.insert_element(nothing, value, ir.IntType(32)(0))
    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(first, nothing, everywhere)


def _first(builder: Any, count: Any) -> Any:
    """Which of eight values are among the first `count`."""
    numbers = ir.Constant(ir.VectorType(_WORD, LANES), list(range(LANES)))
    return builder.icmp_signed("<", numbers, _repeated(builder, count))


def _masked(builder: Any, name: str, given: list[Any], result: Any) -> Any:
    """Call LLVM's masked load or store, which does not touch what is masked out."""
    kind = ir.FunctionType(result, [value.type for value in given])
    function = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
        builder.module, kind, f"llvm.masked.{name}.v{LANES}f32.p0v{LANES}f32"
    )
    return builder.call(function, given)


@code_of
def load(_typing, array, at):  # type: ignore[no-untyped-def]
    """Load array[at : at + 8], of a C-contiguous array as if flat; nothing is checked."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        place = lanes_at(context, builder, given[0], signature.args[0], given[1], signature.args[1])
        return builder.load(place, align=_ALIGNED)

    return VECTOR(array, at), generate


@code_of
def load_first(_typing, array, at, count):  # type: ignore[no-untyped-def]
    """As `load`, but only the first `count` values are read, and the others are 0."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kinds = signature.args
        place = lanes_at(context, builder, given[0], kinds[0], given[1], kinds[1])
        count = context.cast(builder, given[2], kinds[2], types.int64)
        found = cgutils.alloca_once(builder, _VALUES)  # type: ignore[no-untyped-call]
        # a whole vector is the usual case, and not all processors are quick with a mask
        with builder.if_else(builder.icmp_signed(">=", count, _WORD(LANES))) as (whole, part):
            with whole:
                builder.store(builder.load(place, align=_ALIGNED), found)
            with part:
                mask, zeros = _first(builder, count), ir.Constant(_VALUES, [0.0] * LANES)
                inputs = [place, ir.IntType(32)(_ALIGNED), mask, zeros]
                builder.store(_masked(builder, "load", inputs, _VALUES), found)
        return builder.load(found)

    return VECTOR(array, at, count), generate


@code_of
def store(_typing, array, at, vector):  # type: ignore[no-untyped-def]
    """array[at : at + 8] = vector, of a C-contiguous array as if flat; nothing is checked."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kinds = signature.args
        place = lanes_at(context, builder, given[0], kinds[0], given[1], kinds[1])
        builder.store(given[2], place, align=_ALIGNED)
        return context.get_dummy_value()

    return types.void(array, at, vector), generate


@code_of
def store_first(_typing, array, at, count, vector):  # type: ignore[no-untyped-def]
    """As `store`, but only the first `count` values are written."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kinds = signature.args
        place = lanes_at(context, builder, given[0], kinds[0], given[1], kinds[1])
        count = context.cast(builder, given[2], kinds[2], types.int64)
        with builder.if_else(builder.icmp_signed(">=", count, _WORD(LANES))) as (whole, part):
            with whole:
                builder.store(given[3], place, align=_ALIGNED)
            with part:
                inputs = [given[3], place, ir.IntType(32)(_ALIGNED), _first(builder, count)]
                _masked(builder, "store", inputs, ir.VoidType())
        return context.get_dummy_value()

    return types.void(array, at, count, vector), generate


def _two_at(context: Any, builder: Any, array: Any, kind: Any, place: Any, place_kind: Any) -> Any:
    pointer = lanes_at(context, builder, array, kind, place, place_kind)
    return builder.bitcast(pointer, _PAIR.as_pointer())


@code_of
def load_pair(_typing, array, at):  # type: ignore[no-untyped-def]
    """Load array[at : at + 2], as `load`, and six zeros behind them."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        place = _two_at(context, builder, given[0], signature.args[0], given[1], signature.args[1])
        two = builder.load(place, align=_ALIGNED)
        places = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0, 1] + [2] * (LANES - 2))
        return builder.shuffle_vector(two, ir.Constant(_PAIR, [0.0, 0.0]), places)

    return VECTOR(array, at), generate


@code_of
def store_pair(_typing, array, at, vector):  # type: ignore[no-untyped-def]
    """array[at : at + 2] = the first two values of a vector, as `store`."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        place = _two_at(context, builder, given[0], signature.args[0], given[1], signature.args[1])
        places = ir.Constant(ir.VectorType(ir.IntType(32), 2), [0, 1])
        nothing = ir.Constant(_VALUES, ir.Undefined)
        builder.store(builder.shuffle_vector(given[2], nothing, places), place, align=_ALIGNED)
        return context.get_dummy_value()

    return types.void(array, at, vector), generate


@code_of
def fill(_typing, value):  # type: ignore[no-untyped-def]
    """Return a vector of one float32."""

    def generate(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        return _repeated(builder, given[0])

    return VECTOR(types.float32), generate


@code_of
def summed(_typing, vector):  # type: ignore[no-untyped-def]
    """Return the sum of the eight values, a float32."""

    def generate(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType(), _VALUES])
        function = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
            builder.module, kind, f"llvm.vector.reduce.fadd.v{LANES}f32"
        )
        return builder.call(function, [ir.FloatType()(0.0), given[0]], fastmath=_FLAGS)

    return types.float32(vector), generate


@code_of
def square_root(_typing, vector):  # type: ignore[no-untyped-def]
    """Return the root of each value."""

    def generate(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        function = cgutils.get_or_insert_function(  # type: ignore[no-untyped-call]
            builder.module, ir.FunctionType(_VALUES, [_VALUES]), f"llvm.sqrt.v{LANES}f32"
        )
        return builder.call(function, given, fastmath=_FLAGS)

    return VECTOR(vector), generate


@code_of
def smaller(_typing, one, two):  # type: ignore[no-untyped-def]
    """Of each two values the smaller one; the first where either is NaN."""

    def generate(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        return builder.select(builder.fcmp_unordered("<", *given), *given)

    return VECTOR(one, two), generate


@code_of
def larger(_typing, one, two):  # type: ignore[no-untyped-def]
    """Of each two values the larger one; the first where either is NaN."""

    def generate(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        return builder.select(builder.fcmp_unordered(">", *given), *given)

    return VECTOR(one, two), generate


def _arithmetic(operation: Callable[..., Any], instruction: str) -> None:
    """Let kernels write an operation for vectors, and for a vector and a float32 on either side."""
    kinds = (VECTOR, types.float32)

    def typing(_context: Any) -> Callable[[Any, Any], Any]:
        def typer(one: Any, two: Any) -> Any:
            return VECTOR if VECTOR in (one, two) and one in kinds and two in kinds else None

        return typer

    def generate(_context: Any, builder: Any, signature: Any, given: Any) -> Any:
        both = (
            value if kind == VECTOR else _repeated(builder, value)
            for value, kind in zip(given, signature.args, strict=True)
        )
        return getattr(builder, instruction)(*both, flags=_FLAGS)

    type_callable(operation)(typing)
    for one, two in ((VECTOR, VECTOR), (VECTOR, types.float32), (types.float32, VECTOR)):
        lower_builtin(operation, one, two)(generate)  # type: ignore[no-untyped-call]


for _operation, _instruction in (
    (operator.add, "fadd"), (operator.iadd, "fadd"), (operator.sub, "fsub"),
    (operator.isub, "fsub"), (operator.mul, "fmul"), (operator.imul, "fmul"),
    (operator.truediv, "fdiv"),
):  # fmt: skip
    _arithmetic(_operation, _instruction)
