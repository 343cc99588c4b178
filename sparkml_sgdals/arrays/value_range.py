"""Where most of a column's values lie, learned so that a few of any size do not move it (no Spark).

Values are counted in buckets of their first 16 bits, sign, exponent and seven bits of the fraction,
each with the least and the greatest value in it. Counts of parts add up to those of the whole,
whatever the parts, so that nothing here depends on batches or partitions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sparkml_sgdals import _compiling as nb

__all__ = [
    "ENOUGH", "FAR_WIDTHS", "FIRST_LOOK", "LEARNED_FROM", "Tally", "ValueRange", "width_of",
]  # fmt: skip

F32 = npt.NDArray[np.float32]

LEARNED_FROM: Final = 1000
"""Values after which a range is settled."""
FIRST_LOOK: Final = 20
"""Values before which nothing can be said to lie outside."""
ENOUGH: Final = 100
"""Values from which on what lies somewhat outside is brought nearer."""
FAR_WIDTHS: Final = 10.0
"""Widths of a range outside it from which on a value is set aside."""
_OFTEN: Final = 200
"""Of so many values one on either side may be of any size, and one more."""
_BUCKETS: Final = 1 << 16


@nb.njit(cache=True, nogil=True)
def _count(keys, values, counts, least, greatest):  # type: ignore[no-untyped-def]
    for n in range(keys.size):
        key, value = keys[n] >> np.uint32(16), values[n]
        if counts[key] == 0 or value < least[key]:
            least[key] = value
        if counts[key] == 0 or value > greatest[key]:
            greatest[key] = value
        counts[key] += 1


@dataclass(frozen=True)
class Tally:
    """How many values lie where: rows (count, least, greatest) of the buckets that have some."""

    buckets: tuple[tuple[int, float, float], ...] = ()

    @classmethod
    def of(cls, values: F32) -> Tally:
        """Count finite values."""
        counts = np.zeros(_BUCKETS, np.int64)
        least, greatest = np.zeros((2, _BUCKETS), np.float32)
        # a view of what may be Arrow's own buffer would be read-only, another type to Numba
        values = np.ascontiguousarray(values, np.float32) + np.float32(0.0)
        _count(values.view(np.uint32), values, counts, least, greatest)
        found = np.flatnonzero(counts)
        return cls._sorted(
            zip(
                counts[found].tolist(), least[found].tolist(), greatest[found].tolist(), strict=True
            )
        )

    @classmethod
    def _sorted(cls, buckets: Iterable[tuple[int, float, float]]) -> Tally:
        return cls(tuple(sorted(buckets, key=lambda bucket: bucket[1])))

    @property
    def size(self) -> int:
        """Number of values."""
        return sum(count for count, _, _ in self.buckets)

    def plus(self, other: Tally) -> Tally:
        """Return the counts of both."""
        merged: dict[int, tuple[int, float, float]] = {}
        for count, least, greatest in (*self.buckets, *other.buckets):
            key = int(np.float32(least).view(np.uint32)) >> 16
            held = merged.get(key, (0, least, greatest))
            merged[key] = (held[0] + count, min(held[1], least), max(held[2], greatest))
        return self._sorted(merged.values())

    def outside(self, low: float, high: float) -> int:
        """How many values lie in buckets that are outside as a whole."""
        return sum(
            count for count, least, greatest in self.buckets if greatest < low or least > high
        )

    def range(self) -> tuple[float, float] | None:
        """Least and greatest value but for what lies apart from the rest; None of too few.

        Of n values 1 + n / 200 on either side do not count, unless they lie within one width of
        what is left.
        """
        size = self.size
        if size < FIRST_LOOK:
            return None
        spare = 1 + size // _OFTEN
        low = _beyond(((count, least) for count, least, _ in self.buckets), spare)
        high = _beyond(((count, greatest) for count, _, greatest in reversed(self.buckets)), spare)
        near = width_of(low, high)
        kept = [b for b in self.buckets if b[2] >= low - near and b[1] <= high + near]
        return kept[0][1], kept[-1][2]


def _beyond(buckets: Iterable[tuple[int, float]], spare: int) -> float:
    """Value of the first bucket that is not all of spare ones."""
    seen = 0
    for count, value in buckets:
        seen += count
        if seen > spare:
            return value
    raise ValueError("All values are spare ones.")


def width_of(low: float, high: float) -> float:
    """Width of a range; of a single value its size, 1 of zero."""
    return (high - low) or abs(high) or 1.0


@dataclass(frozen=True)
class ValueRange:
    """The range of values that a model has learned from: still being learned, or settled.

    Attributes
    ----------
    tally : Tally
        of the values so far; empty once settled
    settled : tuple[float, float] | None
        the range for good
    """

    tally: Tally = Tally()
    settled: tuple[float, float] | None = None

    def after(self, more: Tally) -> ValueRange:
        """Return the range after more values, none of which lies far outside."""
        if self.settled is not None:
            return self
        tally = self.tally.plus(more)
        if tally.size < LEARNED_FROM:
            return ValueRange(tally)
        return ValueRange(settled=tally.range())

    @property
    def seen(self) -> int:
        """Values so far while it is being learned; LEARNED_FROM once settled."""
        return LEARNED_FROM if self.settled is not None else self.tally.size

    def range(self, more: Tally = Tally()) -> tuple[float, float] | None:
        """Return the range, with more values while it is being learned; None of too few."""
        return self.settled if self.settled is not None else self.tally.plus(more).range()

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON types, the inverse of `from_json`."""
        return {
            "settled": None if self.settled is None else list(self.settled),
            "buckets": [list(bucket) for bucket in self.tally.buckets],
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ValueRange:
        """Return the range that `to_json` gave."""
        buckets = tuple((int(n), float(a), float(b)) for n, a, b in values["buckets"])
        settled = values["settled"]
        return cls(Tally(buckets), None if settled is None else (settled[0], settled[1]))
