"""Versions in sorted runs made of others, without having them in memory (no Spark).

What changed since the runs were written becomes one more run; the others are named again, or
copied file by file.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import pyarrow as pa

from sparkml_sgdals.errors import StorageError
from sparkml_sgdals.store.commit import Commit
from sparkml_sgdals.store.compaction import SIDES
from sparkml_sgdals.store.large.in_runs import commit_in_runs
from sparkml_sgdals.store.large.unfinished import drop_unfinished, mark_unfinished
from sparkml_sgdals.store.objects import bad_file
from sparkml_sgdals.store.overlay import Overlay
from sparkml_sgdals.store.packed_rows import pack_rows
from sparkml_sgdals.store.sorted_runs import RunWriter
from sparkml_sgdals.store.version_store import VersionStore

__all__ = ["copy_version", "known_users", "put_changes", "runs_of"]

_PART: Final = 1 << 22
"""Bytes that are copied at once."""


def runs_of(
    store: VersionStore, opened: Overlay, number: int, history: Commit,
    without: pa.Array | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return runs that hold an opened version, as `Commit.runs`; what had changed is written.

    Parameters
    ----------
    store : VersionStore
        its model path
    opened : Overlay
        the version
    number : int
        of the version to come, which the new files are named by
    history : Commit
        the version whose metrics, with all before it, are kept
    without : pa.Array | None
        users that are left out of what is written
    """
    runs: dict[str, Any] = {}
    for side in SIDES:
        runs[side] = [run.entry for run in opened.runs(side)]
        gone = without if side == "users" else None
        runs[side] += put_changes(store, opened, side, number, gone)
    name = f"{number:012d}-{uuid.uuid4().hex[:8]}"
    runs["metrics"] = store.write_history(name, store.metrics(history)).get("metrics")
    return runs


def put_changes(
    store: VersionStore, opened: Overlay, side: str, number: int, without: pa.Array | None = None
) -> list[dict[str, Any]]:
    """Write the rows of a side that differ from the runs; the entries of what that made."""
    table = opened.state.users if side == "users" else opened.state.items
    rows = opened.changed(side)
    if without is not None:
        gone = pa.compute.is_in(table.index.ids(rows), value_set=without)
        rows = rows[~gone.to_numpy(zero_copy_only=False)]
    if not rows.size:
        return []
    token = uuid.uuid4().hex[:8]
    with RunWriter(store, opened.shape(side), f"files/{number:012d}-{token}-{side}") as writer:
        writer.add(pack_rows(table, rows))
    return [writer.entry()]


def copy_version(
    opened: Overlay, target: VersionStore, meta: dict[str, Any],
    check: Callable[[], None] = lambda: None,
) -> Commit:  # fmt: skip
    """Copy an opened version, with what was learned since, to a new model path as its version 0.

    Parameters
    ----------
    opened : Overlay
        the version
    target : VersionStore
        the new model path
    meta : dict[str, Any]
        what is kept in its model.json
    check : Callable[[], None]
        called when all files stand; raises where another holds the lease by then

    Raises
    ------
    StorageError
        a file is missing or damaged, or cannot be written
    """
    mark_unfinished(target)
    runs: dict[str, Any] = {"metrics": None}
    for side in SIDES:
        runs[side] = [_copied(opened.store, target, side, run.entry) for run in opened.runs(side)]
        runs[side] += put_changes(target, opened, side, 0)
    digest = target.put_meta(meta)
    state = opened.state
    made = commit_in_runs(target, state, runs, state.ids, None, check=check, meta=digest)
    drop_unfinished(target)
    return made


def _copied(
    store: VersionStore, target: VersionStore, side: str, entry: dict[str, Any]
) -> dict[str, Any]:
    token = uuid.uuid4().hex[:12]
    copied = dict(entry)
    for end in ("rows", "keys", "names"):
        if end in entry:
            name = f"files/{0:012d}-{token}-{side}.{end}"
            _copy_file(store, target, entry[end], name)
            copied[end] = entry[end] | {"name": name}
    return copied


def _copy_file(store: VersionStore, target: VersionStore, file: dict[str, Any], name: str) -> None:
    check = hashlib.sha256()
    target.fs.create_dir(f"{target.root}/files", recursive=True)
    with (
        store.reading(file["name"]),
        store.fs.open_input_stream(f"{store.root}/{file['name']}") as source,
        target.explaining(name),
        target.fs.open_output_stream(f"{target.root}/{name}") as sink,
    ):
        while part := source.read(_PART):
            check.update(part)
            sink.write(part)
    if check.hexdigest() != file["sha256"]:
        target.delete(name)
        raise StorageError(bad_file(store.path, file["name"], missing=False))
    target.sync_file(name)


def known_users(opened: Overlay, ids: pa.Array) -> int:
    """Return how many of these ids are users of an opened version."""
    nothing = opened.state.items.index.ids(np.empty(0, np.int64))
    return opened.rows_of(ids, nothing).users.size
