"""What a JSON object under a model path has to look like, and what is said of one that does not.

Checksums say whether an object is as it was written; these say whether this release can use it.
So a reader may take fields as they come, whoever wrote them.
"""

from __future__ import annotations

import json
import marshal
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Final, Protocol

__all__ = [
    "ANYTHING", "COMMITTED", "COUNT", "INSTANT", "NUMBER", "SIGNED", "TEXT", "TRUTH", "Fields",
    "ListOf", "Maybe", "OneOf", "Plain", "Repeated", "Shape", "named", "parse_json",
]  # fmt: skip

_LARGEST: Final = 2**63 - 1
_LATELY: Final = 8
"""values that are remembered as fitting"""
_LATEST: Final = 10.0**11
"""seconds since 1970 that a calendar still shows"""


def parse_json(payload: bytes | str) -> Any:
    """Return what JSON says; raises ValueError where it is none, or nests beyond reason."""
    try:
        return json.loads(payload)
    except RecursionError:
        raise ValueError("nested too deep") from None


class Shape(Protocol):
    """What a value has to be."""

    def fits(self, value: Any) -> bool:
        """Whether a value is that; in a fraction of the time that naming a fault takes."""

    def fault(self, value: Any, name: str) -> str | None:
        """Say what is wrong with a value, by its name; None where nothing is."""


@dataclass(frozen=True)
class Plain:
    """A value that a function judges."""

    told: str
    fits: Callable[[Any], bool]

    def fault(self, value: Any, name: str) -> str | None:
        """As `Shape` says."""
        if self.fits(value):
            return None
        shown = repr(value)
        return f"{name} is {shown if len(shown) <= 40 else f'{shown[:40]}...'}, not {self.told}"


@dataclass(frozen=True)
class Maybe:
    """A value or null."""

    shape: Shape

    def fits(self, value: Any) -> bool:
        """As `Shape` says."""
        return value is None or self.shape.fits(value)

    def fault(self, value: Any, name: str) -> str | None:
        """As `Shape` says."""
        return None if value is None else self.shape.fault(value, name)


@dataclass(frozen=True)
class ListOf:
    """A list of like values, of so many where that is told."""

    shape: Shape
    length: int | None = None

    def fits(self, value: Any) -> bool:
        """As `Shape` says."""
        if not isinstance(value, list) or self.length not in (None, len(value)):
            return False
        fits = self.shape.fits
        for each in value:  # noqa: SIM110
            # twice as fast as all(), whose generator has to be made
            if not fits(each):
                return False
        return True

    def fault(self, value: Any, name: str) -> str | None:
        """As `Shape` says."""
        if not isinstance(value, list) or self.length not in (None, len(value)):
            return f"{name} is no list" + ("" if self.length is None else f" of {self.length}")
        for place, each in enumerate(value):
            if found := self.shape.fault(each, f"{name}[{place}]"):
                return found
        return None


@dataclass(frozen=True)
class OneOf:
    """A list with a shape of its own at each place."""

    shapes: tuple[Shape, ...]

    def fits(self, value: Any) -> bool:
        """As `Shape` says."""
        if not isinstance(value, list) or len(value) != len(self.shapes):
            return False
        return all(shape.fits(each) for shape, each in zip(self.shapes, value, strict=True))

    def fault(self, value: Any, name: str) -> str | None:
        """As `Shape` says."""
        if not isinstance(value, list) or len(value) != len(self.shapes):
            return f"{name} is no list of {len(self.shapes)}"
        for place, (shape, each) in enumerate(zip(self.shapes, value, strict=True)):
            if found := shape.fault(each, f"{name}[{place}]"):
                return found
        return None


@dataclass(frozen=True)
class Fields:
    """An object with these fields.

    Attributes
    ----------
    needed, optional : Mapping[str, Shape]
        fields by name
    others : Shape | None
        what fields of other names are; None where there may be none
    names : Plain | None
        what names of fields have to be
    """

    needed: Mapping[str, Shape] = field(default_factory=dict)
    optional: Mapping[str, Shape] = field(default_factory=dict)
    others: Shape | None = None
    names: Plain | None = None

    @cached_property
    def _known(self) -> dict[str, Callable[[Any], bool]]:
        return {name: one.fits for name, one in (*self.optional.items(), *self.needed.items())}

    @cached_property
    def _needed(self) -> frozenset[str]:
        return frozenset(self.needed)

    def fits(self, value: Any) -> bool:
        """As `Shape` says."""
        if not isinstance(value, dict) or not value.keys() >= self._needed:
            return False
        known, others = self._known, self.others
        for name, held in value.items():
            fits = known.get(name)
            if fits is None:
                if others is None or (others is not ANYTHING and not others.fits(held)):
                    return False
            elif not fits(held):
                return False
        return self.names is None or all(map(self.names.fits, value))

    def fault(self, value: Any, name: str) -> str | None:
        """As `Shape` says."""
        if self.fits(value):
            return None
        if not isinstance(value, dict):
            return f"{name} is no object"
        for missing in self.needed.keys() - value.keys():
            return f"{name} lacks {missing}"
        for each, held in value.items():
            shape = self.needed.get(each) or self.optional.get(each) or self.others
            if shape is None:
                return f"{name} holds {each}, which this release does not know"
            if self.names is not None and (found := self.names.fault(each, f"a name in {name}")):
                return found
            if found := shape.fault(held, f"{name}.{each}"):
                return found
        return None


@dataclass(frozen=True)
class Repeated:
    """A value that is mostly the same from object to object: what fitted lately fits at once."""

    shape: Shape
    _lately: set[bytes] = field(default_factory=set, compare=False)

    def fits(self, value: Any) -> bool:
        """As `Shape` says."""
        try:
            # values and their types, True not being 1; without references, which tell more
            told = marshal.dumps(value, 2)
        except ValueError:
            return self.shape.fits(value)
        if told in self._lately:
            return True
        if not self.shape.fits(value):
            return False
        if len(self._lately) >= _LATELY:
            self._lately.clear()
        self._lately.add(told)
        return True

    def fault(self, value: Any, name: str) -> str | None:
        """As `Shape` says."""
        return self.shape.fault(value, name)


def _number(value: Any) -> bool:
    if type(value) is float:
        return math.isfinite(value)
    return type(value) is int and abs(value) <= _LARGEST


def _time(value: Any) -> bool:
    try:
        when = datetime.fromisoformat(value)
    except (ValueError, TypeError):
        return False
    return when.tzinfo is not None and 1970 <= when.year < 2200


def named(pattern: str, told: str) -> Plain:
    """Return the shape of texts that match a regular expression as a whole."""
    compiled = re.compile(pattern, re.ASCII)
    return Plain(told, lambda v: isinstance(v, str) and compiled.fullmatch(v) is not None)


ANYTHING: Final = Plain("anything", lambda v: True)
TEXT: Final = Plain("a text", lambda v: isinstance(v, str))
TRUTH: Final = Plain("true or false", lambda v: isinstance(v, bool))
NUMBER: Final = Plain("a number", _number)
SIGNED: Final = Plain("a whole number", lambda v: type(v) is int and abs(v) <= _LARGEST)
COUNT: Final = Plain("a whole number from 0 on", lambda v: type(v) is int and 0 <= v <= _LARGEST)
INSTANT: Final = Plain("seconds since 1970", lambda v: _number(v) and 0 <= v < _LATEST)
COMMITTED: Final = Plain("a time with its zone", _time)
