"""Results on a terminal, in a file or for a machine: tables, facts, bars and JSON."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

__all__ = ["Output", "Phase"]


class Phase:
    """What a command does just now, and how far it is."""

    def __init__(self, progress: Progress | None = None, task: Any = None) -> None:
        self._progress, self._task = progress, task

    def update(self, done: float, total: float | None = None, note: str = "") -> None:
        """Say how far it is; `total` None where nobody knows."""
        if self._progress is not None:
            self._progress.update(
                self._task, completed=done, total=total, note=note, ends=total is not None
            )


class _Bar(BarColumn):
    """A bar of what has an end, and nothing of what has none."""

    def render(self, task: Task) -> Any:
        return super().render(task) if task.fields["ends"] else Text("")


class _Count(ProgressColumn):
    """5 of 10 sweeps; of what has no known end the number alone, where there is one."""

    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        if not unit or not (task.fields["ends"] or task.completed):
            return Text("")
        of = f" of {task.total:,.0f}" if task.fields["ends"] else ""
        return Text(f"{task.completed:,.0f}{of} {unit}")


class Output:
    """Results to stdout, progress and remarks to stderr.

    Attributes
    ----------
    json : bool
        whether results are printed as JSON
    terminal : bool
        whether somebody looks on: bars are shown
    """

    def __init__(self, as_json: bool = False) -> None:
        self.json = as_json
        self._out = Console(highlight=False)
        if not self._out.is_terminal:
            # a file or a pipe has no width that a line should break at
            self._out = Console(highlight=False, width=10_000)
        self._err = Console(stderr=True, highlight=False)
        self.terminal = self._err.is_terminal and not as_json
        if self.terminal and sys.stderr.fileno() == 2:
            # one of its own: stderr is Spark's log while Spark starts
            self._err = Console(file=os.fdopen(os.dup(2), "w"), highlight=False)
        # on one screen one console has to know of both, or rows run into bars
        self._live = self._out if self.terminal and self._out.is_terminal else self._err

    def facts(self, values: Mapping[str, Any]) -> None:
        """Names with values; as JSON one object."""
        if self.json:
            self.line(values)
            return
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        for name, value in values.items():
            table.add_row(name, _text(value))
        self._out.print(table)

    def table(
        self,
        title: str,
        rows: Sequence[Mapping[str, Any]],
        columns: Sequence[str],
        headings: Mapping[str, str] | None = None,
    ) -> None:
        """Rows under headings, as JSON a list of objects with the columns' own names."""
        if self.json:
            self.line([{name: row.get(name) for name in columns} for row in rows])
            return
        table = Table(title=title or None, title_justify="left", expand=False)
        for name in columns:
            numeric = any(_is_number(row.get(name)) for row in rows)
            heading = (headings or {}).get(name, name)
            table.add_column(heading, justify="right" if numeric else "left")
        for row in rows:
            table.add_row(*(_text(row.get(name)) for name in columns))
        self._out.print(table)

    def line(self, value: Any) -> None:
        """One line of JSON."""
        # not by rich, which would wrap it
        self._out.file.write(json.dumps(plain(value), ensure_ascii=False) + "\n")
        self._out.file.flush()

    def say(self, text: str) -> None:
        """Print a remark to a person, on stderr; nothing where output is JSON."""
        if not self.json:
            self._err.print(text, markup=False)

    def row(self, cells: Sequence[str], widths: Sequence[int]) -> None:
        """One line of a table that grows, flushed at once."""
        text = "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        self._out.print(text, markup=False)
        self._out.file.flush()

    @contextmanager
    def phase(self, what: str, unit: str = "") -> Iterator[Phase]:
        """Show on a terminal what is done while the body runs; a line of it stays.

        Parameters
        ----------
        what : str
            such as "Learning"
        unit : str
            of what `Phase.update` counts; empty where nothing is counted
        """
        if not self.terminal:
            yield Phase()
            return
        columns = (
            SpinnerColumn(finished_text="[green]✓[/green]"), TextColumn(f"{what:<16}"),
            TimeElapsedColumn(), _Bar(), _Count(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        with Progress(*columns, console=self._live) as progress:
            task = progress.add_task("", total=None, unit=unit, note="", ends=False)
            yield Phase(progress, task)
            done = progress.tasks[0].completed
            # ended, if earlier than announced
            progress.update(task, total=done)


def plain(value: Any) -> Any:
    """Return a value as JSON has it: NaN, infinity and what is missing become null."""
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(one) for one in value]
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime | date):
        return value.isoformat()
    return value if isinstance(value, int | str | bool) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _text(value: Any) -> str:
    value = plain(value)
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(one)}" for name, one in value.items())
    return str(value)
