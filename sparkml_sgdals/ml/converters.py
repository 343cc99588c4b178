"""Converters of Params: a value of the right type and range, or a message that names the Param."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

from pyspark.ml.param import Param, Params, TypeConverters

__all__ = [
    "at_least",
    "flag",
    "interval",
    "non_negative",
    "one_of",
    "param",
    "place",
    "positive",
    "text",
]

text = TypeConverters.toString
flag = TypeConverters.toBoolean


def place(value: Any) -> str:
    """Return a folder or file as text, also where it is a pathlib.Path."""
    return text(os.fspath(value) if isinstance(value, os.PathLike) else value)


def param(name: str, doc: str, converter: Callable[[Any], Any]) -> Param[Any]:
    """Return a Param of a class, as pyspark.ml declares them."""
    return Param(Params._dummy(), name, doc, typeConverter=converter)


def at_least(name: str, low: int) -> Callable[[Any], int]:
    """Return a converter to an int of at least `low`; ValueError for less."""
    return _number(name, TypeConverters.toInt, low)


def non_negative(name: str) -> Callable[[Any], float]:
    """Return a converter to a finite float of at least 0; ValueError for anything else."""
    return _number(name, TypeConverters.toFloat, 0)


def positive(name: str) -> Callable[[Any], float]:
    """Return a converter to a finite float above 0; ValueError for anything else."""
    return _number(name, TypeConverters.toFloat, 0, inclusive=False)


def interval(name: str) -> Callable[[Any], int]:
    """Return a converter to an int of at least 1, or -1 for never; ValueError for the rest."""

    def convert(value: Any) -> int:
        number: int = TypeConverters.toInt(value)
        if number != -1 and number < 1:
            raise ValueError(f"{name} must be at least 1, or -1 for never, got {value!r}.")
        return number

    return convert


def one_of(name: str, allowed: tuple[str, ...]) -> Callable[[Any], str]:
    """Return a converter to one of some words, in any case as in Spark; ValueError for the rest."""
    words = {word.lower(): word for word in allowed}

    def convert(value: Any) -> str:
        given = TypeConverters.toString(value)
        if given.lower() not in words:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {given!r}.")
        return words[given.lower()]

    return convert


def _number(
    name: str, kind: Callable[[Any], Any], low: float, inclusive: bool = True
) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        try:
            number = kind(value)
        except TypeError as failure:
            whole = "a whole number" if kind is TypeConverters.toInt else "a number"
            raise TypeError(f"{name} must be {whole}, got {value!r}.") from failure
        if not (math.isfinite(number) and (number >= low if inclusive else number > low)):
            bound = "at least" if inclusive else "greater than"
            raise ValueError(f"{name} must be {bound} {low:g}, got {value!r}.")
        return number

    return convert
