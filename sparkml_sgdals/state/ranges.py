"""Where the ratings and weights that a model has learned lie, and the first ones of a stream.

What lies far outside is not learned: `learn.far_values`. Nothing that is predicted depends on it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from sparkml_sgdals.arrays.value_range import Tally, ValueRange

__all__ = ["Ranges", "tally_of"]


@dataclass(frozen=True)
class Ranges:
    """What a model of ratings knows of their values.

    Attributes
    ----------
    rating, weight : ValueRange
        of the rows learned so far; of weights where there is such a column
    first : tuple[dict[str, Any], ...]
        the rows of a stream from nothing while there are too few to tell which lie outside, by the
        names of `Ratings`' columns: they may have to be taken back
    """

    rating: ValueRange = field(default_factory=ValueRange)
    weight: ValueRange = field(default_factory=ValueRange)
    first: tuple[dict[str, Any], ...] = ()

    def after(self, rating: Tally, weight: Tally) -> Ranges:
        """Return the ranges after more rows; those held first are dropped."""
        return Ranges(self.rating.after(rating), self.weight.after(weight))

    def without_users(self, ids: pa.Array) -> Ranges:
        """Return the same without the first rows of some users."""
        gone = set(ids.to_pylist())
        first = tuple(row for row in self.first if row["user"] not in gone)
        return Ranges(self.rating, self.weight, first)

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON types, the inverse of `from_json`."""
        return {
            "rating": self.rating.to_json(),
            "weight": self.weight.to_json(),
            "first": [dict(row) for row in self.first],
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Ranges:
        """Return the ranges that `to_json` gave."""
        rating, weight = (ValueRange.from_json(values[name]) for name in ("rating", "weight"))
        return cls(rating, weight, tuple(values["first"]))


def tally_of(table: pa.Table, name: str) -> Tally:
    """Count the values of a column of checked rows; none where there is no such column."""
    if name not in table.column_names:
        return Tally()
    return Tally.of(table.column(name).to_numpy())
