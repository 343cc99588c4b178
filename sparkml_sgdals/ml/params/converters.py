"""Converters of Params: a value of the right type and range, or a message that names the Param."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from pyspark.ml.param import Param, Params, TypeConverters

__all__ = [
    "at_least", "bounds", "count_or_time", "flag", "interval", "microseconds", "non_negative",
    "one_of", "param", "place", "positive", "text",
]  # fmt: skip

Converter = Callable[[Any], Any]
_UNITS: Final = {
    "microsecond": 1, "millisecond": 1_000, "second": 1_000_000, "minute": 60_000_000,
    "hour": 3_600_000_000, "day": 86_400_000_000, "week": 604_800_000_000,
}  # fmt: skip
"""in microseconds; months and years are not all as long"""
_PART: Final = rf"(\d+(?:\.\d+)?)\s*({'|'.join(_UNITS)})s?"
_LONGEST: Final = 1 << 60
"""36,000 years in microseconds: sums with times stay within 64 bits"""
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


def count_or_time(name: str) -> Converter:
    """Return a converter to an int of at least 0, or to a time as text, such as "30 days"."""
    return _CountOrTime(name)


def microseconds(time: str) -> int | None:
    """How long a time such as "1 day 12 hours" is; None for a text that is none."""
    given = time.strip().lower().removeprefix("interval ").strip()
    if not re.fullmatch(rf"{_PART}(\s+{_PART})*", given):
        return None
    return round(sum(float(n) * _UNITS[unit] for n, unit in re.findall(_PART, given)))


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
class _CountOrTime:
    name: str

    def __call__(self, value: Any) -> int | str:
        if isinstance(value, timedelta):
            value = f"{value // timedelta(microseconds=1)} microseconds"
        if not isinstance(value, str):
            count: int = at_least(self.name, 0)(value)
            return count
        time = value.strip()
        if not 0 < (microseconds(time) or 0) < _LONGEST:
            raise ValueError(
                f'{self.name} must be a whole number, or a time above 0 such as "30 days" or '
                f'"12 hours", got {value!r}.'
            )
        return time


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
