"""Bad rows in words that name columns, and their refusal."""

from __future__ import annotations

from sparkml_sgdals.arrays.screening import ZERO_WEIGHT, Problems
from sparkml_sgdals.ingest.columns import RatingColumns

__all__ = ["column_names", "explain_problems", "refuse_invalid"]


def explain_problems(problems: Problems, names: dict[str, str]) -> str:
    """One sentence on the rows that cannot be learned.

    Parameters
    ----------
    problems : Problems
        rows by fault, each told as "column: what it is"
    names : dict[str, str]
        the user's column by our name for it, "user" and so on, each as "userCol 'userId'"
    """
    found = []
    for fault, count in sorted(problems.items()):
        column, _, what = fault.partition(": ")
        if fault != ZERO_WEIGHT:
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


def refuse_invalid(problems: Problems, columns: RatingColumns) -> None:
    """Raise ValueError where rows cannot be learned."""
    if any(fault != ZERO_WEIGHT for fault in problems):
        raise ValueError(
            f"{explain_problems(problems, column_names(columns))}. Repair or remove these rows, "
            "or set handleInvalid='skip' to learn the others."
        )
