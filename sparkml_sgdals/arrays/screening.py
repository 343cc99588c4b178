"""Tell good rows from bad ones, and say what is wrong with them (no Spark)."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["ZERO_WEIGHT", "Problems", "screen"]

F32 = npt.NDArray[np.float32]
Problems = dict[str, int]
"""Rows not learned, counted by fault; a key is "column: fault"."""
ZERO_WEIGHT: Final = "weight: zero"
"""Not a fault: rows of weight 0 are counted and not learned."""


def screen(table: pa.Table, keep: bool = False) -> tuple[pa.Table, npt.NDArray[np.bool_], Problems]:
    """Find the rows that can be learned.

    Parameters
    ----------
    table : pa.Table
        columns user, item, rating and perhaps time, weight; nulls and NaN allowed
    keep : bool
        keep rows whose only fault is the time (then it counts as the earliest) or the weight (then
        it counts as 1)

    Returns
    -------
    table : the rows to learn, without nulls
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


def _floats(column: pa.ChunkedArray) -> F32:
    """Values as float32, null as NaN."""
    if column.null_count:
        column = column.fill_null(float("nan"))
    values: F32 = column.to_numpy().astype(np.float32, copy=False)
    return values
