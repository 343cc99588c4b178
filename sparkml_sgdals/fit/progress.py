"""Progress of a fit: tasks note how far they are in a folder, the driver shows a bar (no Spark).

A task cannot call the driver, so it overwrites one small file of its own in a folder that both
see: a temporary one under local[N], one on shared storage (`progressPath`) on a cluster.
"""

from __future__ import annotations

import json
import logging
import math
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from sparkml_sgdals.errors import StorageError
from sparkml_sgdals.store.objects import ObjectStore, full_path

__all__ = ["TaskProgress", "clear_progress", "read_progress", "show_phase", "show_progress"]

logger = logging.getLogger(__name__)

_POLL_SECONDS: Final = 0.25
_UNREACHABLE: Final = (OSError, ValueError, StorageError, pa.ArrowException)
_NOTE: Final = re.compile(r"block-\d{5}\.json")


@dataclass(frozen=True)
class TaskProgress:
    """What one task notes; plain values only, so that it may travel.

    Attributes
    ----------
    path : str
        folder or URI, empty for nowhere
    task : int
        number of the task among those of the fit: its block
    total : int
        steps that the task will take
    """

    path: str
    task: int
    total: int

    def write(self, done: int, rmse: float | None) -> None:
        """Note that `done` steps are done, and the training RMSE after the last where known."""
        logger.info("block %d: step %d of %d, training RMSE %s", self.task, done, self.total, rmse)
        if not self.path:
            return
        known = rmse is not None and math.isfinite(rmse)
        note = {"done": done, "total": self.total, "rmse": rmse if known else None}
        try:
            _store(self.path).replace(f"block-{self.task:05d}.json", json.dumps(note).encode())
        except _UNREACHABLE as failure:
            # a fit must not fail because nobody can watch it
            logger.warning("no progress is written to %s: %s", self.path, failure)


def _store(path: str) -> ObjectStore:
    return ObjectStore(full_path(path))


def _notes(store: ObjectStore) -> list[str]:
    return [name for name in store.names("") if _NOTE.fullmatch(name)]


def read_progress(path: str) -> tuple[int, int, float | None]:
    """Return steps done and steps to do, all tasks together, and the latest training RMSE noted."""
    store = _store(path)
    done, total, rmse = 0, 0, None
    for name in _notes(store):
        note: dict[str, Any] = json.loads(store.read(name) or b"{}")
        done += note.get("done", 0)
        total += note.get("total", 0)
        rmse = rmse if note.get("rmse") is None else note["rmse"]
    return done, total, rmse


def clear_progress(path: str) -> None:
    """Remove what tasks of an earlier fit noted in a folder, and nothing else there."""
    try:
        store = _store(path)
        for name in _notes(store):
            store.delete(name)
    except _UNREACHABLE as failure:
        logger.warning("no progress can be written to %s: %s", path, failure)


@contextmanager
def show_progress(path: str, description: str) -> Iterator[str]:
    """Show a bar in the terminal or notebook while the body runs; yield the folder to note in.

    Parameters
    ----------
    path : str
        folder or URI; empty for a temporary local one
    description : str
        what stands before the bar

    Raises
    ------
    ImportError
        tqdm is not installed
    """
    tqdm = _tqdm()
    with tempfile.TemporaryDirectory(prefix="sparkml-sgdals-progress-") as scratch:
        folder = path or scratch
        with tqdm(desc=description, unit="step", total=None) as bar:

            def refresh() -> None:
                try:
                    done, total, rmse = read_progress(folder)
                except _UNREACHABLE as failure:
                    logger.warning("no progress is read from %s: %s", folder, failure)
                    return
                bar.total = total or None
                bar.n = done
                if rmse is not None:
                    bar.set_postfix({"RMSE": f"{rmse:.4f}"}, refresh=False)
                bar.refresh()

            with _repeated(refresh):
                yield folder
            # fewer steps than announced where learning settled
            bar.total = bar.n or None
            bar.refresh()


@contextmanager
def show_phase(description: str) -> Iterator[None]:
    """Show for how long the body runs, in the terminal or notebook; raises as `show_progress`.

    Parameters
    ----------
    description : str
        what stands before the time
    """
    with _tqdm()(desc=description, bar_format="{desc}: {elapsed}") as bar, _repeated(bar.refresh):
        yield


def _tqdm() -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError as missing:
        raise ImportError(
            "showProgress needs tqdm: pip install tqdm, or set showProgress to False."
        ) from missing
    return tqdm


@contextmanager
def _repeated(refresh: Callable[[], Any]) -> Iterator[None]:
    """Call a function again and again while the body runs, and once after it."""
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(_POLL_SECONDS):
            refresh()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        finished.set()
        watcher.join()
        refresh()
