"""Tell good rows from bad ones, and say what is wrong with them (no Spark)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from sparkml_sgdals.arrays.value_range import FAR_WIDTHS, width_of

__all__ = ["NO_LIMITS", "ZERO_WEIGHT", "Limits", "Problems", "is_far", "screen", "set_far_aside"]

F32 = npt.NDArray[np.float32]
Problems = dict[str, int]
"""Rows not learned, counted by fault; a key is "column: fault"."""
ZERO_WEIGHT: Final = "weight: zero"
"""Not a fault: rows of weight 0 are counted and not learned."""
_LARGEST: Final = 1e12
"""Ratings beyond it leave the numbers that factors are kept in before their range is known."""
_FAR: Final = ("outside ", "more than ten ", "beyond ")
"""How faults begin that say that a value lies too far out."""


@dataclass(frozen=True)
class Limits:
    """How far out a rating or a weight may lie; plain numbers, so that tasks can have it.

    Attributes
    ----------
    rating : tuple[float, float] | None
        least and greatest rating that is learned; None for any
    weight : float | None
        greatest weight that is learned; None for any
    why : tuple[str, str]
        what a rating, and a weight, beyond it is, as a fault
    """

    rating: tuple[float, float] | None = None
    weight: float | None = None
    why: tuple[str, str] = ("", "")

    @classmethod
    def of(
        cls,
        given: tuple[float, float] | None,
        ratings: tuple[float, float] | None,
        weights: tuple[float, float] | None,
    ) -> Limits:
        """Return the limits by a range that the user gave, else by those that were learned."""
        far, heaviest = given or (-_LARGEST, _LARGEST), None
        why = [f"{_FAR[2]}{_LARGEST:g}", ""]
        if given is not None:
            why[0] = f"{_FAR[0]}ratingRange {given[0]:g} to {given[1]:g}"
        elif ratings is not None:
            room = FAR_WIDTHS * width_of(*ratings)
            far = ratings[0] - room, ratings[1] + room
            why[0] = f"{_FAR[1]}widths outside {ratings[0]:g} to {ratings[1]:g}"
        if weights is not None:
            heaviest = (1.0 + FAR_WIDTHS) * weights[1]
            why[1] = f"{_FAR[1]}widths above {weights[1]:g}"
        return cls(far, heaviest, (why[0], why[1]))


NO_LIMITS: Final = Limits()


def is_far(fault: str) -> bool:
    """Whether a fault, as a key of Problems, says that a value lies too far out."""
    return fault.partition(": ")[2].startswith(_FAR)


def screen(table: pa.Table, keep: bool = False) -> tuple[pa.Table, npt.NDArray[np.bool_], Problems]:
    """Find the rows that can be learned.

    Parameters
    ----------
    table : pa.Table
        columns user, item, rating and perhaps time, weight, nulls and NaN allowed; and perhaps
        future, whether a row's time has not come yet
    keep : bool
        keep rows whose only fault is the time (then it counts as the earliest) or the weight (then
        it counts as 1)

    Returns
    -------
    table : the rows to learn, without nulls and without `future`
    bad : bool, shape (rows of the table given,): rows with a fault; a weight of 0 is none
    problems : how many rows have which fault, zero weights included
    """
    names = table.column_names
    bad = np.zeros(table.num_rows, bool)
    problems: Problems = {}

    def found(fault: str, rows: npt.NDArray[np.bool_]) -> None:
        count = int(rows.sum())
        if count:
            problems[fault] = count
            np.logical_or(bad, rows, out=bad)

    for name in ("user", "item"):
        column = table.column(name)
        if column.null_count:
            what = "null or no 64-bit whole number" if pa.types.is_integer(column.type) else "null"
            found(f"{name}: {what}", column.is_null().to_numpy())
    rating = _floats(table.column("rating"))
    finite = np.isfinite(rating)
    if not finite.all():
        found("rating: null, NaN or infinite", ~finite)
    learn = None
    if "future" in names:
        future = table.column("future").to_numpy().astype(bool)
        table = table.drop_columns("future")
        names = table.column_names
        if keep and future.any():
            unknown = pa.nulls(table.num_rows, pa.int64())
            times = pa.compute.if_else(pa.array(future), unknown, table.column("time"))
            table = table.set_column(names.index("time"), "time", times)
        else:
            found("time: later than now", future)
    if "time" in names and table.column("time").null_count:
        if keep:
            # earliest of all, not of this part of the table: parts are screened by themselves
            filled = table.column("time").fill_null(-(2**63))
            table = table.set_column(names.index("time"), "time", filled)
        else:
            found("time: null or too large", table.column("time").is_null().to_numpy())
    if "weight" in names:
        weight = _floats(table.column("weight"))
        valid = np.isfinite(weight) & (weight >= 0)
        if keep:
            weight = np.where(valid, weight, np.float32(1.0))
            table = table.set_column(names.index("weight"), "weight", pa.array(weight))
        elif not valid.all():
            found("weight: null, NaN, infinite or negative", ~valid)
        zero = (weight == 0) & ~bad
        if zero.any():
            problems[ZERO_WEIGHT] = int(zero.sum())
            learn = ~bad & ~zero
    if learn is None and bad.any():
        learn = ~bad
    return (table if learn is None else table.filter(pa.array(learn))), bad, problems


def set_far_aside(
    table: pa.Table, limits: Limits, keep: bool = False
) -> tuple[pa.Table, npt.NDArray[np.bool_], Problems]:
    """Find the rows of a table as `screen` gives it whose rating or weight is within limits.

    With `keep` a weight beyond them counts as 1. Returns what `screen` returns.
    """
    far = np.zeros(table.num_rows, bool)
    problems: Problems = {}
    if limits.rating is not None:
        rating = _floats(table.column("rating"))
        # in double precision, as Spark compares when it is asked for these rows
        beyond = (rating < np.float64(limits.rating[0])) | (rating > np.float64(limits.rating[1]))
        if beyond.any():
            problems[f"rating: {limits.why[0]}"] = int(beyond.sum())
            far |= beyond
    if limits.weight is not None and "weight" in table.column_names:
        weight = _floats(table.column("weight"))
        beyond = weight > np.float64(limits.weight)
        if beyond.any() and keep:
            place = table.column_names.index("weight")
            weight = np.where(beyond, np.float32(1.0), weight)
            table = table.set_column(place, "weight", pa.array(weight))
        elif beyond.any():
            problems[f"weight: {limits.why[1]}"] = int(beyond.sum())
            far |= beyond
    return (table.filter(pa.array(~far)) if far.any() else table), far, problems


def _floats(column: pa.ChunkedArray) -> F32:
    """Values as float32, null as NaN."""
    if column.null_count:
        column = column.fill_null(float("nan"))
    values: F32 = column.to_numpy().astype(np.float32, copy=False)
    return values
