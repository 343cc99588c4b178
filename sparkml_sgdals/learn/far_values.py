"""One row must not ruin the rest: what is done with values far outside what was learned (no Spark).

A stream or an update sets aside ratings and weights that lie more than ten widths outside the range
of those learned, and takes a rating somewhat outside as one at a width outside. The range is
learned from the first thousand rows, or from the fit. Before twenty rows nothing can be told, and
little before a hundred; so these are remembered, and where some of them turn out to lie outside,
the stream begins anew from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.screening import NO_LIMITS, Limits, set_far_aside
from sparkml_sgdals.arrays.value_range import ENOUGH, FIRST_LOOK, ValueRange, width_of
from sparkml_sgdals.errors import DivergenceError
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.ranges import Ranges, tally_of

__all__ = [
    "DIVERGES", "FAR_BEFORE", "Prepared", "learn_without_extremes", "limits_for", "prepare",
    "take_back",
]  # fmt: skip

DIVERGES: Final = "rating: of a size that makes learning diverge"
"""The fault of rows that a batch could not be learned with."""
FAR_BEFORE: Final = "rating: more than ten widths outside the others among the first ones"
"""The fault of rows that were learned before it could be told that they lie far outside."""
_SHARE: Final = 20
"""One of so many rows of a batch, and one in any case, may be set aside because it diverges."""

T = TypeVar("T")


def limits_for(
    state: ModelState, given: tuple[float, float] | None, table: pa.Table | None = None
) -> Limits:
    """Return how far out ratings and weights of a batch may lie.

    Parameters
    ----------
    state : ModelState
        the model before the batch; events have no limits
    given : tuple[float, float] | None
        ratingRange, where it is set
    table : pa.Table | None
        the batch's own rows, from which ranges that are not settled are learned as well
    """
    if state.settings.learns_events:
        return NO_LIMITS

    def learned(held: ValueRange, name: str) -> tuple[float, float] | None:
        if held.settled is not None or table is None:
            return held.range()
        return held.range(tally_of(pairs_once(table, name), name))

    ranges = state.ranges
    return Limits.of(
        given,
        learned(ranges.rating, "rating") if given is None else None,
        learned(ranges.weight, "weight"),
    )


@dataclass(frozen=True)
class Prepared:
    """A batch as it is to be learned.

    Attributes
    ----------
    table : pa.Table
        its rows, ratings somewhat outside brought nearer; before them those of `again`
    ranges : Ranges
        those of the model once the batch is learned
    again : int | None
        how many rows of earlier batches, which were all there were, are learned anew from nothing;
        None where the model goes on
    far : tuple[dict[str, Any], ...]
        other rows of these batches, now known to lie far outside
    """

    table: pa.Table
    ranges: Ranges
    again: int | None = None
    far: tuple[dict[str, Any], ...] = ()

    @property
    def earlier(self) -> int | None:
        """How many rows of earlier batches are no longer learned as they were; None as `again`."""
        return None if self.again is None else self.again + len(self.far)


def prepare(
    state: ModelState, table: pa.Table, given: tuple[float, float] | None = None
) -> Prepared:
    """Say how a batch is learned, by its own rows and the ranges of the model; changes nothing.

    Parameters
    ----------
    state : ModelState
        the model before the batch
    table : pa.Table
        the batch, without rows beyond `limits_for`
    given : tuple[float, float] | None
        ratingRange: ratings within it are learned as they are
    """
    held = state.ranges
    if state.settings.learns_events:
        return Prepared(table, held)
    ranges = held
    if held.rating.settled is None or held.weight.settled is None:
        ranges = _learned(held, table)
    anew = False
    far: tuple[dict[str, Any], ...] = ()
    first = held.first
    if first and ranges.rating.seen >= FIRST_LOOK:
        earlier = _as_table(first, table.schema)
        limits = Limits.of(given, ranges.rating.range(), ranges.weight.range())
        good, out, _ = set_far_aside(earlier, limits)
        if out.any():
            ranges = Ranges()
            for part in (good, table):
                ranges = _learned(ranges, part)
            far = tuple(row for row, beyond in zip(first, out, strict=True) if beyond)
            first = tuple(row for row, beyond in zip(first, out, strict=True) if not beyond)
            anew = True
    again = _as_table(first, table.schema) if first else table.slice(0, 0)
    within = ranges.rating.range()
    if given is None and within is not None and ranges.rating.seen >= ENOUGH:
        near = _nearer(again, within)
        anew = anew or near is not again
        again, table = near, _nearer(table, within)
    # a model that a fit or ALS has begun is not to be taken back
    begun = state.scale.frozen or state.counters.ratings != len(held.first)
    if ranges.rating.seen < ENOUGH and not begun:
        rows = (*first, *table.to_pylist())
        ranges = Ranges(ranges.rating, ranges.weight, rows)
    if not anew:
        return Prepared(table, ranges)
    return Prepared(pa.concat_tables([again, table]), ranges, again.num_rows, far)


def _learned(ranges: Ranges, table: pa.Table) -> Ranges:
    """Return ranges after the rows of a table, of which each pair counts once."""
    tallies = [tally_of(pairs_once(table, name), name) for name in ("rating", "weight")]
    return ranges.after(*tallies)


def pairs_once(table: pa.Table, by: str) -> pa.Table:
    """Return one row of each pair of a table, that with the least value of a column."""
    if by not in table.column_names:
        return table
    user, item = (
        table.column(name).combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
        for name in ("user", "item")
    )
    pair = user * table.num_rows + item
    # by its value, as rows come in any order
    order = np.lexsort((table.column(by).to_numpy(), pair))
    first = np.ones(order.size, bool)
    first[1:] = pair[order[1:]] != pair[order[:-1]]
    return table if first.all() else table.take(pa.array(order[first]))


def _as_table(rows: tuple[dict[str, Any], ...], schema: pa.Schema) -> pa.Table:
    """Return rows held as a table like the batch, which may have columns that they lack."""
    filled = [{"time": 0, "weight": 1.0} | row for row in rows]
    return pa.Table.from_pylist(filled, schema=schema)


def take_back(state: ModelState) -> None:
    """Begin anew, in place."""
    kinds = state.users.index.kind, state.items.index.kind
    empty = ModelState.empty(state.settings, *kinds)
    state.restore(replace(empty, learns_features=state.learns_features))


def _nearer(table: pa.Table, within: tuple[float, float]) -> pa.Table:
    width = width_of(*within)
    rating = table.column("rating").to_numpy()
    near = np.clip(rating, np.float32(within[0] - width), np.float32(within[1] + width))
    if np.array_equal(near, rating):
        return table
    place = table.column_names.index("rating")
    return table.set_column(place, "rating", pa.array(near, pa.float32()))


def learn_without_extremes(
    table: pa.Table, learn: Callable[[pa.Table], T]
) -> tuple[T, npt.NDArray[np.bool_]]:
    """Learn a batch, and where it diverges the batch without the ratings that are most extreme.

    Parameters
    ----------
    table : pa.Table
        the batch
    learn : Callable[[pa.Table], T]
        learns rows of it, and leaves all as it was where it raises DivergenceError

    Returns
    -------
    what `learn` returns, and which rows were left out

    Raises
    ------
    DivergenceError
        the batch diverges without one of twenty rows, too
    """
    out = np.zeros(table.num_rows, bool)
    try:
        return learn(table), out
    except DivergenceError as failure:
        for extreme in _extremes(table):
            out[:] = False
            out[extreme] = True
            try:
                return learn(table.filter(pa.array(~out))), out
            except DivergenceError:
                continue
        raise failure


def _extremes(table: pa.Table) -> Iterator[npt.NDArray[np.int64]]:
    """Rows farthest from the median, a heavy one counting as farther: first one, then two, four."""
    rating = table.column("rating").to_numpy().astype(np.float64)
    apart = np.abs(rating - np.median(rating)) if rating.size else rating
    if "weight" in table.column_names:
        apart = (1.0 + apart) * np.maximum(table.column("weight").to_numpy().astype(np.float64), 1)
    order = np.argsort(-apart, kind="stable")
    most = max(table.num_rows // _SHARE, 1)
    count = 1
    while count < most:
        yield order[:count]
        count *= 2
    yield order[:most]
