"""What a notebook shows of our objects: small tables, and pictures where matplotlib is there."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from importlib import import_module
from typing import Any, Final

__all__ = ["html_table", "number", "pictures"]

_CELL: Final = "text-align:left;padding:2px 12px 2px 0"


def html_table(title: str, rows: Iterable[tuple[str, Any]], note: str = "") -> str:
    """Return names and values as an HTML table, everything in it taken for text.

    Parameters
    ----------
    title : str
        above it
    rows : Iterable[tuple[str, Any]]
        a name and a value each
    note : str
        a sentence below it; empty for none
    """
    lines = "".join(
        f'<tr><th style="{_CELL};font-weight:normal;opacity:0.7">{escape(name)}</th>'
        f'<td style="{_CELL}">{escape(str(value))}</td></tr>'
        for name, value in rows
    )
    below = f"<div><b>{escape(note)}</b></div>" if note else ""
    return f"<div><b>{escape(title)}</b><table>{lines}</table>{below}</div>"


def number(value: float) -> str:
    """Return a number as people read it: whole ones in threes, others with four places."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def pictures() -> Any:
    """Return the package `plotting`.

    Raises
    ------
    ImportError
        there is no matplotlib
    """
    # by name: nothing here needs matplotlib but what draws
    return import_module("sparkml_sgdals.plotting")
