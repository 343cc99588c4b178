"""Bases of models larger than memory: merged from sorted runs, or made from a version's files.

Both hold some thousand rows at once. Nothing counts before a commit names what they wrote.
"""

from __future__ import annotations

import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.settings import Settings
from sparkml_sgdals.store.commit import Commit
from sparkml_sgdals.store.objects import ObjectStore
from sparkml_sgdals.store.packed_rows import Packed, RowShape, pack_rows
from sparkml_sgdals.store.sorted_runs import Run, RunWriter, merge_runs, stack_size
from sparkml_sgdals.store.version_store import VersionStore

__all__ = ["SIDES", "Compaction", "compact", "convert"]

SIDES: Final = ("users", "items")
_SPOOLED: Final = 65_536
"""Rows that are sorted in memory, before they are merged from a local disk."""


class StoppedError(Exception):
    """The compaction is not wanted any more."""


class Compaction:
    """A compaction in a thread of its own, so that the stream goes on meanwhile."""

    def __init__(self, commit: Commit, work: Callable[[Callable[[], None]], dict[str, Any]]):
        self.commit = commit
        self._stop = threading.Event()
        self._runs: dict[str, Any] | None = None
        self._failure: BaseException | None = None

        def run() -> None:
            try:
                self._runs = work(self._check)
            except BaseException as failure:
                self._failure = failure

        self._thread = threading.Thread(target=run, name="sparkml-sgdals-compaction", daemon=True)
        self._thread.start()

    def done(self) -> bool:
        """Whether it has ended."""
        return not self._thread.is_alive()

    def result(self) -> dict[str, Any]:
        """`Commit.runs` of its commit, as soon as they are there; raises what it failed with."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        assert self._runs is not None
        return self._runs

    def stop(self) -> None:
        """Break it off, and wait until nothing is written any more."""
        self._stop.set()
        self._thread.join()

    def _check(self) -> None:
        if self._stop.is_set():
            raise StoppedError


def compact(
    store: VersionStore,
    commit: Commit,
    held: dict[str, list[Run]],
    touched: dict[str, Packed],
    check: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Write the rows that were touched since the base as runs: `Commit.runs` of that version.

    Parameters
    ----------
    store : VersionStore
        the model path to write to
    commit : Commit
        the version
    held : dict[str, list[Run]]
        the runs of its base, each side oldest first
    touched : dict[str, Packed]
        rows of that version that differ from the runs, sorted
    check : Callable[[], None]
        called before each part; may raise to break off
    """
    token = uuid.uuid4().hex[:8]
    runs: dict[str, Any] = {}
    for side in SIDES:
        entries = [run.entry for run in held[side]]
        new = len(touched[side])
        if new:
            kept = stack_size([entry["count"] for entry in entries], new)
            name = f"files/{commit.version:012d}-{token}-{side}"
            with RunWriter(store, held[side][0].shape, name) as writer:
                merge_runs([*held[side][kept:], touched[side]], writer, check=check)
            entries = [*entries[:kept], writer.entry()]
        runs[side] = entries
    check()
    runs["metrics"] = _history(store, commit, token)
    store.sync("files")
    return runs


def convert(
    store: VersionStore, commit: Commit, settings: Settings, kinds: Sequence[IdKind]
) -> dict[str, Any]:
    """Sort a version whose base has no runs into one run a side: its `Commit.runs`.

    Rows are sorted part by part on a local disk, where they take as much room as in the model
    path, and merged.

    Raises
    ------
    StorageError
        a file of the version is missing or damaged
    """
    token = uuid.uuid4().hex[:8]
    runs: dict[str, Any] = {}
    for number, (side, kind) in enumerate(zip(SIDES, kinds, strict=True)):
        shape = RowShape.of(kind, settings)
        with tempfile.TemporaryDirectory(prefix="sparkml-sgdals-") as folder:
            local = ObjectStore(folder)
            spooled: list[Run] = []

            def spool(table: FactorTable) -> None:
                with RunWriter(local, shape, str(len(spooled))) as part:  # noqa: B023
                    part.add(pack_rows(table))
                spooled.append(Run(local, shape, part.entry()))  # noqa: B023

            table = FactorTable(number + 1, kind, settings)
            for rows in _tables(store, commit, side):
                table.put_arrow(rows)
                if table.size >= _SPOOLED:
                    spool(table)
                    table = FactorTable(number + 1, kind, settings)
            spool(table)
            with RunWriter(store, shape, f"files/{commit.version:012d}-{token}-{side}") as writer:
                merge_runs(spooled, writer)
            for run in spooled:
                run.close()
            runs[side] = [writer.entry()]
    runs["metrics"] = _history(store, commit, token)
    store.sync("files")
    return runs


def _tables(store: VersionStore, commit: Commit, side: str) -> Iterator[pa.Table]:
    """Yield the rows of a version of one side, older ones first, some at a time."""
    for part in store.parts(commit):
        file = part.files[side]
        store.check_file(file)
        with store.fs.open_input_file(f"{store.root}/{file['name']}") as source:
            for batch in pq.ParquetFile(source).iter_batches(_SPOOLED):
                yield pa.Table.from_batches([batch])


def _history(store: VersionStore, commit: Commit, token: str) -> dict[str, Any] | None:
    """Return the metrics of all batches before a version's own, as a file; None without any."""
    rows = store.metrics(commit)
    if commit.metrics is not None:
        rows = rows[:-1]
    return store.write_history(f"{commit.version:012d}-{token}", rows).get("metrics")
