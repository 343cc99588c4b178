"""What a notebook shows of our objects: small tables, and pictures where matplotlib is there."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from html import escape
from importlib import import_module
from typing import Any, Final

__all__ = ["Live", "html_table", "number", "pictures", "show_live"]

logger = logging.getLogger(__name__)

_CELL: Final = "text-align:left;padding:2px 12px 2px 0"

_EVERY: Final = 2.0
"""seconds between two looks at what changes"""


class Live:
    """A display of a notebook that is brought up to date until what it shows has ended."""

    def __init__(self, handle: Any, look: Callable[[], str], alive: Callable[[], bool]) -> None:
        self._handle, self._look, self._alive = handle, look, alive
        self._ended = threading.Event()
        threading.Thread(target=self._follow, daemon=True).start()

    def end(self) -> None:
        """Leave the display as it is."""
        self._ended.set()

    def _follow(self) -> None:
        shown, alive = "", True
        while alive and not self._ended.wait(_EVERY):
            try:
                # asked before the look, which then sees all that it has done
                alive = self._alive()
                now = self._look()
            except Exception as failure:
                # the session or the path may be gone: the last look stands
                logger.debug("a display is no longer brought up to date: %s", failure)
                return
            if now != shown:
                shown = now
                self._handle.update({"text/html": now}, raw=True)


def show_live(
    look: Callable[[], str], text: str, alive: Callable[[], bool], before: Live | None = None
) -> Live | None:
    """Show HTML in a notebook, and again while it changes; text in a terminal.

    Parameters
    ----------
    look : Callable[[], str]
        what to show, as it is now
    text : str
        the same in a word, for a terminal
    alive : Callable[[], bool]
        whether it may still change
    before : Live | None
        an earlier display of the same, which stays as it is

    Returns
    -------
    the display, None where it does not change
    """
    ipython, display = import_module("IPython"), import_module("IPython.display").display
    if before is not None:
        before.end()
    shell = ipython.get_ipython()
    if getattr(shell, "kernel", None) is None:
        # a terminal would show each look below the last one
        print(text)
        return None
    going_on = alive()
    handle = display({"text/html": look(), "text/plain": text}, raw=True, display_id=True)
    return Live(handle, look, alive) if going_on else None


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
