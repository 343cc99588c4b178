"""Forget users: in a new version, and in every file that is kept under the path (no Spark)."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from typing import Any, Final

import pyarrow as pa

from sparkml_sgdals.arrays.id_kinds import id_array_type
from sparkml_sgdals.errors import DamagedError, GoneError, StorageError
from sparkml_sgdals.state.factors import drop_ids
from sparkml_sgdals.state.ranges import Ranges
from sparkml_sgdals.state.settings import Settings
from sparkml_sgdals.store.commit import Commit
from sparkml_sgdals.store.large.in_runs import commit_in_runs, drop_unnamed
from sparkml_sgdals.store.large.rewriting import known_users, runs_of
from sparkml_sgdals.store.lease import check_holder
from sparkml_sgdals.store.maintenance import lease_for_maintenance
from sparkml_sgdals.store.overlay import Overlay
from sparkml_sgdals.store.packed_rows import RowShape
from sparkml_sgdals.store.sorted_runs import Run, RunWriter, merge_runs
from sparkml_sgdals.store.version_store import VersionStore

__all__ = ["forget_users"]

_FEW: Final = 10_000
"""Ids in memory where rows are read by id."""


def forget_users(store: VersionStore, ids: pa.Array) -> Commit:
    """Remove users from a new version and from everything that is kept under the path.

    Files of older versions are written anew without the rows of these users, then the old ones
    are deleted; so are rows set aside and held-out ratings of theirs. Broken off, it is to be
    called again.

    Raises
    ------
    LeaseError
        a stream writes to the path
    StorageError
        there is no version, or it is damaged; or a file cannot be read or written
    """
    lease = lease_for_maintenance(store)
    try:
        found, meta = store.newest(), store.meta() or {}
        in_runs = found is not None and found.runs is not None
        if found is None or not in_runs:
            state, newest = store.load()
        else:
            # without its rows in memory
            for file in found.run_files():
                store.check_file(file)
            opened, newest = Overlay(store, found, _FEW), found
        if "race" in meta:
            raise ValueError(
                f"{store.path} holds a race, whose candidates and batches know the users as well. "
                "Load its model, let it go on at another path, forget there, and delete this one."
            )
        last = store.numbers()[-1]
        if last != newest.version:
            # a new version would take its number, and it could not be put back any more
            raise StorageError(
                f"The commit object of version {last} at {store.path} is damaged, and it may hold "
                "users too. Put it back, or go back to a whole version: "
                f"StreamingBiasedALSModel.rollback(path, {newest.version})."
            )
        runs = _ForgetfulRuns(store, meta, ids)
        told: dict[str, Any] = {"check": lambda: check_holder(store, lease.token)}
        if in_runs:
            made = _commit_without(store, opened, newest, ids, runs, told)
        else:
            state.users = state.users.without(ids)
            state.ranges = state.ranges.without_users(ids)
            made = store.commit(state, None, newest.batch, newest, None, **told)
        for number in store.numbers():
            commit = store.read_commit(number)
            if commit is not None and number != made.version:
                check_holder(store, lease.token)
                _rewrite(store, commit, ids, runs)
        check_holder(store, lease.token)
        # files of batches that were never committed hold users, too, also those written meanwhile
        drop_unnamed(store)
        validation = store.read_table("validation.parquet")
        if validation is not None:
            kept = drop_ids(validation, "user", ids)
            if kept.num_rows:
                store.replace_table("validation.parquet", kept)
            else:
                # a stream goes on without held-out ratings
                store.delete("validation.parquet")
        _forget_invalid(store, meta.get("params", {}).get("userCol", "user"), ids)
    finally:
        lease.release()
    return made


def _commit_without(
    store: VersionStore, opened: Overlay, newest: Commit, ids: pa.Array, runs: _ForgetfulRuns,
    told: dict[str, Any],
) -> Commit:  # fmt: skip
    """Commit a version in runs once more, without users."""
    kind = opened.state.users.index.kind
    gone = ids.cast(id_array_type(kind)).unique()
    left = newest.ids[0] - known_users(opened, gone), newest.ids[1]
    held = runs_of(store, opened, newest.version + 1, newest, without=gone)
    new = [entry for entry in held["users"] if entry not in (newest.runs or {})["users"]]
    kept = runs.of(newest)
    assert kept is not None
    held["users"] = [*kept["users"], *new]
    state = opened.state
    state.ranges = state.ranges.without_users(ids)
    return commit_in_runs(store, state, held, left, newest, batch=newest.batch, **told)


class _ForgetfulRuns:
    """Runs of users written anew without some, each once, however many versions name it."""

    def __init__(self, store: VersionStore, meta: dict[str, Any], ids: pa.Array) -> None:
        self._store, self._ids = store, ids
        self._shape = RowShape.of(meta["kinds"][0], Settings.from_json(meta["settings"]))
        self._made: dict[str, dict[str, Any]] = {}

    def of(self, commit: Commit) -> dict[str, Any] | None:
        """Return the runs of a version, the same where they hold none of the users."""
        if commit.runs is None:
            return None
        return commit.runs | {"users": [self._without(entry) for entry in commit.runs["users"]]}

    def _without(self, entry: dict[str, Any]) -> dict[str, Any]:
        name = entry["rows"]["name"]
        if name not in self._made:
            self._made[name] = self._write(entry, name.removesuffix(".rows"))
        return self._made[name]

    def _write(self, entry: dict[str, Any], name: str) -> dict[str, Any]:
        try:
            run = Run(self._store, self._shape, entry)
            try:
                if not run.find(self._ids.cast(id_array_type(self._shape.kind)).unique())[0].size:
                    return entry
                # prune looks at the number; what one that was broken off wrote may be in use
                fresh = f"{name[: len('files/') + 12]}-{uuid.uuid4().hex[:8]}-users"
                with RunWriter(self._store, self._shape, fresh) as writer:
                    merge_runs([run], writer, without=self._ids)
            finally:
                run.close()
        except (DamagedError, GoneError):
            # who is in a damaged file cannot be told, and nobody can load it
            for part in ("rows", "keys", "names"):
                self._store.delete(f"{name}.{part}")
            return entry
        return writer.entry()


def _rewrite(store: VersionStore, commit: Commit, ids: pa.Array, runs: _ForgetfulRuns) -> None:
    """Put a commit anew whose files of users lack some, if they have any of them."""
    file, files, held = commit.files["users"], commit.files, runs.of(commit)
    try:
        table = store.read_checked(file)
    except (DamagedError, GoneError):
        # who is in a damaged file cannot be told, and nobody can load it
        store.delete(file["name"])
    else:
        kept = drop_ids(table, "id", ids)
        if kept.num_rows < table.num_rows:
            name = file["name"].replace("-users.parquet", "-kept-users.parquet")
            files = files | {"users": store.write_table(name, kept)}
    scalars = commit.scalars
    if "ranges" in scalars:
        ranges = Ranges.from_json(scalars["ranges"]).without_users(ids)
        scalars = scalars | {"ranges": ranges.to_json()}
    if files == commit.files and held == commit.runs and scalars == commit.scalars:
        return
    store.sync("files")
    was = commit.replaces or commit.digest
    store.put_commit(replace(commit, files=files, runs=held, scalars=scalars, replaces=was))
    if files != commit.files:
        store.delete(file["name"])


def _forget_invalid(store: VersionStore, user_column: str, ids: pa.Array) -> None:
    forgotten = set(ids.cast(pa.string()).to_pylist())
    for name in store.names("invalid"):
        try:
            table = store.read_table(f"invalid/{name}")
        except DamagedError:
            # who is in a damaged file cannot be told
            store.delete(f"invalid/{name}")
            continue
        if table is None:
            continue
        rows = table.column("row").to_pylist()
        kept = [row for row in rows if not _users_of(json.loads(row), user_column) & forgotten]
        if len(kept) < len(rows):
            store.replace_table(f"invalid/{name}", pa.table({"row": pa.array(kept, pa.string())}))


def _users_of(row: dict[str, Any], user_column: str) -> set[str]:
    """Ids that a row set aside may be of: its user's, and that in the message it came from."""
    found = [_field(row, user_column)]
    message = row.get("message")
    if isinstance(message, dict) and isinstance(message.get("value"), str):
        try:
            inner = json.loads(message["value"])
        except ValueError:
            inner = None
        if isinstance(inner, dict):
            found.append(_field(inner, user_column))
    return {
        str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
        for value in found
        if value is not None
    }


def _field(row: dict[str, Any], name: str) -> Any:
    """Return a row's column as Spark finds it: case does not count, dots reach into structs."""
    fields = {key.lower(): value for key, value in row.items()}
    name = name.lower()
    if name in fields or "." not in name:
        return fields.get(name)
    first, _, rest = name.partition(".")
    inner = fields.get(first)
    return _field(inner, rest) if isinstance(inner, dict) else None
