"""Versions that lie in sorted runs from their beginning: written by tasks, named by one commit.

A version of that kind is its own base: its commit names the runs, and its Parquet files are empty.
Versions after it add rows to it as to any base.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.arrays.threads import Together
from sparkml_sgdals.errors import StorageError
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.settings import Settings
from sparkml_sgdals.store.commit import Commit
from sparkml_sgdals.store.objects import ObjectStore
from sparkml_sgdals.store.packed_rows import RowShape, pack_arrays, search_keys
from sparkml_sgdals.store.sorted_runs import RunWriter
from sparkml_sgdals.store.version_store import VersionStore

__all__ = ["RunSink", "commit_in_runs", "drop_unnamed"]

_ROWS: Final = 16_384
"""Rows that are packed at once."""


@dataclass(frozen=True)
class RunSink:
    """Where tasks write the rows of a new model path; plain values only, so that it travels."""

    path: str

    def write(
        self, side: str, kind: IdKind, settings: Settings, ids: pa.Array,
        arrays: Mapping[str, npt.NDArray[Any]],
    ) -> dict[str, Any]:  # fmt: skip
        """Write rows of one side as a run of version 0, and return its entry.

        No two calls write the same file, so a task may be tried again.

        Parameters
        ----------
        side : str
            "users" or "items"
        kind : IdKind
            of the ids
        settings : Settings
            of the model
        ids : pa.Array
            distinct, shape (n,)
        arrays : Mapping[str, npt.NDArray[Any]]
            by the names of `FactorColumns`, a row an id

        Raises
        ------
        StorageError
            the storage is full or may not be written
        """
        shape = RowShape.of(kind, settings)
        names = ["count", *(name for name, _ in shape.columns)]
        order = np.argsort(search_keys(ids), kind="stable")
        writer = RunWriter(
            ObjectStore(self.path), shape, f"files/{0:012d}-{uuid.uuid4().hex[:12]}-{side}"
        )
        with writer:
            for first in range(0, order.size, _ROWS):
                rows = order[first : first + _ROWS]
                some = {name: arrays[name][rows] for name in names}
                writer.add(pack_arrays(shape, ids.take(pa.array(rows)), some))
        return writer.entry()


def commit_in_runs(
    store: VersionStore,
    state: ModelState,
    runs: dict[str, Any],
    ids: tuple[int, int],
    previous: Commit | None,
    *,
    batch: int = -1,
    restored: Commit | None = None,
    checkpoint: str | None = None,
    check: Callable[[], None] = lambda: None,
    offsets: dict[str, Any] | None = None,
    meta: str | None = None,
    after: int | None = None,
) -> Commit:
    """Commit the next version, all of which is in `runs`; parameters as `VersionStore.commit`.

    Parameters
    ----------
    store : VersionStore
        the model path
    state : ModelState
        the model but for its rows
    runs : dict[str, Any]
        as `Commit.runs`
    ids : tuple[int, int]
        users and items in them
    previous : Commit | None
        the newest version so far; None for the first
    batch, restored, checkpoint, check, offsets, meta, after
        as `VersionStore.commit` takes them

    Raises
    ------
    StorageError
        a file of the runs is not there, something cannot be written, or another process has
        committed this version
    """
    version = 0 if previous is None else 1 + (previous.version if after is None else after)
    name = f"{version:012d}-{uuid.uuid4().hex[:8]}"
    nothing = np.empty(0, np.int64)
    written = [f"files/{name}-{side}.parquet" for side in ("users", "items")]
    together = Together()
    with store.or_without(written, Exception, together):
        files = {
            side: store.write_table(file, table.to_arrow(nothing), together)
            for side, file, table in zip(
                ("users", "items"), written, (state.users, state.items), strict=True
            )
        }
    commit = Commit(
        version=version,
        batch=batch,
        base=version,
        files=files,
        scalars=state.scalars() | {"settings": state.settings.to_json()},
        metrics=None,
        committed=datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        delta_rows=0,
        checkpoint=checkpoint or (previous.checkpoint if previous else "checkpoint"),
        restored=None if restored is None else restored.version,
        runs=runs,
        ids=list(ids),
        previous=None if previous is None or after is not None else previous.digest,
        meta=meta if previous is None else previous.meta,
        offsets=offsets,
    )

    def ready() -> None:
        _see(store, commit)
        check()

    store.put_version(commit, written, ready, together)
    return commit


def drop_unnamed(store: VersionStore) -> None:
    """Delete files that no commit names: of tasks that were tried again. For the lease's holder."""
    commits = [store.read_commit(number) for number in store.numbers()]
    named = {
        file["name"]
        for commit in commits
        if commit is not None
        for file in [*commit.files.values(), *commit.run_files()]
    }
    for name in store.names("files"):
        if f"files/{name}" not in named:
            store.delete(f"files/{name}")


def _see(store: VersionStore, commit: Commit) -> None:
    """See that what tasks have written is here, too."""
    there = {f"files/{name}" for name in store.names("files")}
    missing = [file["name"] for file in commit.run_files() if file["name"] not in there]
    if missing:
        raise StorageError(
            f"{store.path}/{missing[0]}, which a task has written, is not there for the driver: "
            "driver and executors do not see the same folder. Choose a path that all of them share."
        )
