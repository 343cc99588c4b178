"""Converters of Params: a value of the right type and range, or a message that names the Param."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyspark.ml.param import Param, Params, TypeConverters

__all__ = [
    "at_least", "bounds", "flag", "interval", "non_negative", "one_of", "param", "place",
    "positive", "text",
]  # fmt: skip

Converter = Callable[[Any], Any]
text = TypeConverters.toString
flag = TypeConverters.toBoolean


def place(value: Any) -> str:
    """Return a folder or file as text, also where it is a pathlib.Path."""
    return text(os.fspath(value) if isinstance(value, os.PathLike) else value)


def param(name: str, doc: str, converter: Converter) -> Param[Any]:
    """Return a Param of a class, as pyspark.ml declares them."""
    return Param(Params._dummy(), name, doc, typeConverter=converter)


def at_least(name: str, low: int) -> Converter:
    """Return a converter to an int of at least `low`; ValueError for less."""
    return _Number(name, TypeConverters.toInt, low)


def non_negative(name: str) -> Converter:
    """Return a converter to a finite float of at least 0; ValueError for anything else."""
    return _Number(name, TypeConverters.toFloat, 0)


def positive(name: str) -> Converter:
    """Return a converter to a finite float above 0; ValueError for anything else."""
    return _Number(name, TypeConverters.toFloat, 0, inclusive=False)


def interval(name: str) -> Converter:
    """Return a converter to an int of at least 1, or -1 for never; ValueError for the rest."""
    return _Interval(name)


def bounds(name: str) -> Converter:
    """Return a converter to two finite numbers, the first below the second; else ValueError."""
    return _Bounds(name)


def one_of(name: str, allowed: tuple[str, ...]) -> Converter:
    """Return a converter to one of some words, in any case as in Spark; ValueError for the rest."""
    return _Word(name, allowed)


# objects, not functions made in functions: a Param is pickled with its converter
@dataclass(frozen=True)
class _Number:
    name: str
    kind: Converter
    low: float
    inclusive: bool = True

    def __call__(self, value: Any) -> Any:
        try:
            number = self.kind(value)
        except TypeError as failure:
            whole = "a whole number" if self.kind is TypeConverters.toInt else "a number"
            raise TypeError(f"{self.name} must be {whole}, got {value!r}.") from failure
        enough = number >= self.low if self.inclusive else number > self.low
        if not (math.isfinite(number) and enough):
            bound = "at least" if self.inclusive else "greater than"
            raise ValueError(f"{self.name} must be {bound} {self.low:g}, got {value!r}.")
        return number


@dataclass(frozen=True)
class _Interval:
    name: str

    def __call__(self, value: Any) -> int:
        number: int = TypeConverters.toInt(value)
        if number != -1 and number < 1:
            raise ValueError(f"{self.name} must be at least 1, or -1 for never, got {value!r}.")
        return number


@dataclass(frozen=True)
class _Bounds:
    name: str

    def __call__(self, value: Any) -> list[float]:
        meant = f"{self.name} must be two numbers, the lowest and the highest, got {value!r}."
        try:
            numbers: list[float] = TypeConverters.toListFloat(value)
        except TypeError as failure:
            raise TypeError(meant) from failure
        if len(numbers) != 2 or not -math.inf < numbers[0] < numbers[1] < math.inf:
            raise ValueError(meant)
        return numbers


@dataclass(frozen=True)
class _Word:
    name: str
    allowed: tuple[str, ...]

    def __call__(self, value: Any) -> str:
        given = TypeConverters.toString(value)
        words = {word.lower(): word for word in self.allowed}
        if given.lower() not in words:
            raise ValueError(
                f"{self.name} must be one of {', '.join(self.allowed)}, got {given!r}."
            )
        return words[given.lower()]
