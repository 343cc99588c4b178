"""What happens to a bad row: refused in words that name its column, or set aside and counted.

Which rows are bad says `arrays.screening`; how far out a value may lie, `learn.far_values`. Under
handleInvalid "error" they are refused here; under "skip" and "keep" a table's are counted, and a
batch's go under `invalid/` of the model path as well (`stream.micro_batch`).
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Final

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.arrays.screening import NO_LIMITS, ZERO_WEIGHT, Limits, Problems, is_far
from sparkml_sgdals.ingest.bad_values import causes_of
from sparkml_sgdals.ingest.columns import RatingColumns, select_ratings

__all__ = [
    "KEPT_INVALID", "as_invalid", "column_names", "explain_problems", "invalid_rows",
    "refuse_invalid",
]  # fmt: skip

KEPT_INVALID: Final = 10_000


def explain_problems(
    problems: Problems, names: dict[str, str], causes: dict[str, str] | None = None
) -> str:
    """One sentence on the rows that cannot be learned.

    Parameters
    ----------
    problems : Problems
        rows by fault, each told as "column: what it is"
    names : dict[str, str]
        the user's column by our name for it, "user" and so on, each as "userCol 'userId'"
    causes : dict[str, str] | None
        what `causes_of` found, where it was asked
    """
    found = []
    for fault, count in sorted(problems.items()):
        column, _, what = fault.partition(": ")
        if causes and column in causes and what.startswith("null"):
            found.append(f"{names[column]} {causes[column]}")
        elif fault != ZERO_WEIGHT:
            found.append(f"{names[column]} is {what} in {count} row{'s' if count > 1 else ''}")
    return "; ".join(found)


def column_names(columns: RatingColumns) -> dict[str, str]:
    """Return the user's columns by our names, each with its Param, for messages."""
    return {
        "user": f"userCol {columns.user!r}",
        "item": f"itemCol {columns.item!r}",
        "rating": f"ratingCol {columns.rating!r}",
        "time": f"timestampCol {columns.time!r}",
        "weight": f"weightCol {columns.weight!r}",
    }


def refuse_invalid(
    problems: Problems, columns: RatingColumns, rows: DataFrame, kinds: tuple[IdKind, IdKind]
) -> None:
    """Raise ValueError where rows, those of `rows`, cannot be learned."""
    if any(fault != ZERO_WEIGHT for fault in problems):
        faulty = {fault.partition(":")[0] for fault in problems if ": null" in fault}
        causes = causes_of(rows, columns, kinds, sorted(faulty))
        told = explain_problems(problems, column_names(columns), causes)
        ranged = any(is_far(fault) and fault.startswith("rating") for fault in problems)
        raise ValueError(
            f"{told}. Repair or remove these rows, "
            + ("set ratingRange so that they are within it, " if ranged else "")
            + "or set handleInvalid='skip' to learn the others."
        )


def as_invalid(rows: list[dict[str, Any]], columns: RatingColumns) -> list[str]:
    """Return checked rows of a batch, by our names, as JSON in the user's columns."""
    names = {
        "user": columns.user, "item": columns.item, "rating": columns.rating,
        "time": columns.time, "weight": columns.weight,
    }  # fmt: skip
    return [json.dumps({names[name] or name: value for name, value in row.items()}) for row in rows]


def invalid_rows(
    df: DataFrame, columns: RatingColumns, kinds: tuple[IdKind, IdKind], keep: bool,
    limits: Limits = NO_LIMITS,
) -> list[str]:  # fmt: skip
    """Return some of the rows that cannot be learned, as JSON, for a batch too large to collect."""
    if keep:
        # a bad time or weight alone does not set a row aside
        columns = replace(columns, time=None, weight=None)
    raw = select_ratings(df, columns, kinds, raw=True, limits=limits).select("raw")
    found = raw.where(F.col("raw").isNotNull()).limit(KEPT_INVALID).toArrow()
    return [str(row) for row in found.column("raw").to_pylist()]
