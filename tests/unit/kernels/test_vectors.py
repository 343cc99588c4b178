"""Vectors of eight values against NumPy, value by value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba as nb
import numpy as np
import pytest

from sparkml_sgdals.kernels.vectors import (
    LANES,
    fill,
    larger,
    load,
    load_first,
    load_pair,
    smaller,
    square_root,
    store,
    store_first,
    store_pair,
    summed,
)

F32 = np.float32
AT = 3
"""Where vectors lie in arrays of eight values more: not on a boundary of any kind."""


def iadd(one: Any, two: Any) -> Any:
    one += two
    return one


def isub(one: Any, two: Any) -> Any:
    one -= two
    return one


def imul(one: Any, two: Any) -> Any:
    one *= two
    return one


BINARY: dict[str, tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]] = {
    "add": (lambda one, two: one + two, np.add),
    "sub": (lambda one, two: one - two, np.subtract),
    "mul": (lambda one, two: one * two, np.multiply),
    "div": (lambda one, two: one / two, np.divide),
    "iadd": (iadd, np.add),
    "isub": (isub, np.subtract),
    "imul": (imul, np.multiply),
}


def arrays() -> tuple[Any, Any, Any]:
    """Two arrays of values, and one to write to."""
    rng = np.random.default_rng(7)
    return (*rng.uniform(0.5, 2.0, (2, LANES * 2)).astype(F32), np.full(LANES * 2, 9, F32))


def check(out: Any, expected: Any, count: int = LANES) -> None:
    """`expected` at AT, and nothing written besides."""
    np.testing.assert_allclose(out[AT : AT + count], expected[:count], rtol=1e-6)
    assert (out[:AT] == 9).all()
    assert (out[AT + count :] == 9).all()


@pytest.mark.parametrize("name", BINARY)
def test_arithmetic(name: str) -> None:
    """Of two vectors, and of a vector and a number on either side."""
    written, expected = BINARY[name]
    operation = nb.njit(written)

    @nb.njit
    def both(one, two, out):  # type: ignore[no-untyped-def]
        store(out, AT, operation(load(one, AT), load(two, AT)))

    @nb.njit
    def number_right(one, two, out):  # type: ignore[no-untyped-def]
        store(out, AT, operation(load(one, AT), two))

    one, two, out = arrays()
    both(one, two, out)
    check(out, expected(one, two)[AT:])
    number_right(one, F32(1.7), out)
    check(out, expected(one, F32(1.7))[AT:])
    if not name.startswith("i"):

        @nb.njit
        def number_left(one, two, out):  # type: ignore[no-untyped-def]
            store(out, AT, operation(one, load(two, AT)))

        number_left(F32(1.7), two, out)
        check(out, expected(F32(1.7), two)[AT:])


def test_a_float64_is_refused() -> None:
    """It would be rounded without a word."""

    @nb.njit
    def add(one, two):  # type: ignore[no-untyped-def]
        return summed(load(one, 0) + two)

    with pytest.raises(nb.TypingError):
        add(arrays()[0], 1.7)


def test_strided_arrays_are_refused() -> None:
    """Their eight values lie elsewhere."""

    @nb.njit
    def add(one):  # type: ignore[no-untyped-def]
        return summed(load(one, 0))

    with pytest.raises(nb.core.errors.NumbaError, match="C-contiguous"):
        add(arrays()[0][::2])


@nb.njit
def part(source, at, count, out):  # type: ignore[no-untyped-def]
    """The first values of a vector, and the sum of all eight."""
    vector = load_first(source, at, count)
    store_first(out, at, count, vector)
    return summed(vector)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 20])
def test_the_first_values_alone(count: int) -> None:
    """Are read, and are written; the others are 0."""
    source, _, out = arrays()
    taken = min(count, LANES)
    added = part(source, AT, count, out)
    check(out, source[AT:], taken)
    np.testing.assert_allclose(added, source[AT : AT + taken].sum(), rtol=1e-6)


def test_two_values_alone() -> None:
    """Six zeros behind what is read, and nothing else written."""

    @nb.njit
    def double(source: Any, whole: Any, two: Any) -> None:
        vector = load_pair(source, AT)
        store(whole, 0, vector + vector)
        store_pair(two, AT, vector + vector)

    source, _, two = arrays()
    whole = np.ones(LANES, F32)
    double(source[: AT + 2].copy(), whole, two)
    assert whole.tolist() == [*(2 * source[AT : AT + 2]).tolist(), *[0.0] * 6]
    assert two[AT : AT + 2].tolist() == whole[:2].tolist()
    assert set(np.delete(two, [AT, AT + 1]).tolist()) == {9.0}


def test_nothing_is_read_behind_the_end() -> None:
    """NaN there does not come in, not even times 0."""
    source, _, out = arrays()
    source[AT + 2 :] = np.nan
    assert np.isfinite(part(source, AT, 2, out))


@nb.njit
def chosen(one, two, low, high, roots, same):  # type: ignore[no-untyped-def]
    """The smaller, the larger, the root of one, and one number eight times."""
    store(low, AT, smaller(load(one, AT), load(two, AT)))
    store(high, AT, larger(load(one, AT), load(two, AT)))
    store(roots, AT, square_root(load(one, AT)))
    store(same, AT, fill(two[0]))


def test_choices() -> None:
    """NaN in the first stays NaN: a variance that is none must be seen."""
    one, two, low = arrays()
    high, roots, same = low.copy(), low.copy(), low.copy()
    chosen(one, two, low, high, roots, same)
    check(low, np.minimum(one, two)[AT:])
    check(high, np.maximum(one, two)[AT:])
    check(roots, np.sqrt(one)[AT:])
    check(same, np.full(LANES, two[0]))
    one[AT + 1] = np.nan
    chosen(one, two, low, high, roots, same)
    assert np.isnan(low[AT + 1])
    assert np.isnan(high[AT + 1])
    assert np.isnan(roots[AT + 1])
