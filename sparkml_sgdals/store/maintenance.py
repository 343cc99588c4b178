"""Versions under a model path: list them, go back to one, forget users in all of them (driver)."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass, replace
from typing import Any, Final

import pandas as pd
import pyarrow as pa

from sparkml_sgdals.arrays.id_index import id_array_type
from sparkml_sgdals.state.factors import drop_ids
from sparkml_sgdals.state.settings import Settings
from sparkml_sgdals.store.lease import Lease, check_holder
from sparkml_sgdals.store.objects import DamagedError, GoneError, StorageError
from sparkml_sgdals.store.packed_rows import RowShape
from sparkml_sgdals.store.sorted_runs import Run, RunWriter, merge_runs
from sparkml_sgdals.store.spark_checkpoint import copy_until, end_of_batch, last_done
from sparkml_sgdals.store.version_store import Commit, VersionStore

__all__ = ["VERSIONS", "Rollback", "drop_later_invalid", "drop_old_checkpoints", "forget_users",
           "list_versions", "roll_back"]  # fmt: skip

VERSIONS: Final = (
    "version",
    "batch",
    "committed",
    "ratings",
    "rmse",
    "validationRmse",
    "restored",
    "loadable",
)
"""Columns of `list_versions`."""

_LEASE_SECONDS: Final = 600.0


@dataclass(frozen=True)
class Rollback:
    """What a rollback did.

    Attributes
    ----------
    version : the new version, which holds the factors of version `restored`
    restored : the version gone back to
    batch : the stream goes on with the batch after this one; -1: with its first
    offsets : where each source reads on, as Spark writes it; None where that is not kept, or
        from the start of the source
    """

    version: int
    restored: int
    batch: int
    offsets: tuple[str, ...] | None

    def __str__(self) -> str:
        if self.offsets is not None:
            place = f"after batch {self.batch}, offset {', '.join(self.offsets)}"
        elif self.batch < 0:
            place = "from where the source starts"
        else:
            place = f"after batch {self.batch}"
        return (
            f"Version {self.version} holds the factors of version {self.restored}; the stream "
            f"reads on {place}."
        )


def list_versions(store: VersionStore, verify: bool) -> pd.DataFrame:
    """The versions kept, oldest first, columns VERSIONS; rmse as in `StreamJob.metrics`.

    Parameters
    ----------
    verify : read every file and compare checksums for the column loadable, else only see that
        the files are there

    Raises StorageError where there is no model.
    """
    if store.meta() is None:
        raise StorageError(f"{store.path} is no model path: there is no model.json in it.")
    whole: dict[str, bool] = {}
    there = set(store.names("files"))

    def good(file: dict[str, Any]) -> bool:
        name = file["name"]
        if name not in whole:
            whole[name] = name.rpartition("/")[2] in there
            if whole[name] and verify:
                try:
                    store.check_file(file)
                except StorageError:
                    whole[name] = False
        return whole[name]

    rows: list[dict[str, Any]] = []
    own: dict[int, bool] = {}
    # the first version of the unbroken row that a version ends
    since: dict[int, int] = {}
    for number in store.numbers():
        commit = store.read_commit(number)
        if commit is None:
            rows.append({"version": number, "loadable": False})
            continue
        own[number] = all(good(commit.files[side]) for side in ("users", "items"))
        since[number] = number
        if own[number] and own.get(number - 1, False):
            since[number] = since[number - 1]
        # whole are the files that it adds to, and those of all versions from there to itself; runs
        # lack the metrics of the version that they hold, so its commit object is needed too
        first = commit.base + (commit.runs is not None)
        history = (commit.runs or {}).get("metrics")
        runs = all(good(file) for file in commit.run_files() if file != history)
        metrics = commit.metrics or {}
        rows.append(
            {
                "version": number,
                "batch": commit.batch,
                "committed": commit.committed,
                "ratings": commit.scalars["counters"]["ratings"],
                "rmse": metrics.get("rmse"),
                "validationRmse": metrics.get("validationRmse"),
                "restored": commit.restored,
                "loadable": commit.base in own and runs and own[number] and since[number] <= first,
            }
        )
    frame = pd.DataFrame(rows, columns=list(VERSIONS))
    frame["committed"] = pd.to_datetime(frame["committed"])
    frame[["rmse", "validationRmse"]] = frame[["rmse", "validationRmse"]].astype(float)
    frame[["batch", "ratings", "restored"]] = frame[["batch", "ratings", "restored"]].astype(
        "Int64"
    )
    return frame


def roll_back(store: VersionStore, version: int, reread: bool) -> Rollback:
    """Make the factors of an older version the newest one.

    Nothing is changed until one commit object stands: the new version, with a checkpoint of its
    own that was copied from that of `version` and cut after its batch.

    Parameters
    ----------
    reread : the stream reads on from where it stood after `version`; else from where it stands
        now, and what it read since counts as not learned

    Raises
    ------
    LeaseError : a stream writes to the path
    StorageError : the version is not kept or damaged, or Spark no longer keeps its offsets
    """
    lease = _acquire(store)
    try:
        state, wanted = store.load(version)
        numbers = store.numbers()
        # the last one may be damaged: that is what one goes back for
        following = numbers[-1] + 1
        newest = next(c for n in reversed(numbers) if (c := store.read_commit(n)) is not None)
        if reread:
            checkpoint, batch = f"checkpoint-{following:012d}", wanted.batch
            # of a rollback that was broken off
            store.delete_folder(checkpoint)
            copy_until(store, wanted.checkpoint, checkpoint, batch)
        else:
            checkpoint = newest.checkpoint
            batch = max(newest.batch, last_done(store, checkpoint))
        store.commit(
            state,
            None,
            batch,
            replace(newest, version=following - 1),
            None,
            restored=wanted,
            checkpoint=checkpoint,
            check=lambda: check_holder(store, lease.token),
        )
        drop_later_invalid(store, batch)
        offsets = end_of_batch(store, checkpoint, batch) if batch >= 0 else None
    finally:
        lease.release()
    return Rollback(following, version, batch, None if offsets is None else tuple(offsets))


def drop_later_invalid(store: VersionStore, batch: int) -> None:
    """Delete rows set aside of batches after `batch`. Only for the holder of the lease.

    They were rolled back, or their batch was never committed and will set them aside again.
    """
    for name in store.names("invalid"):
        number = name.removeprefix("batch-").removesuffix(".parquet")
        if number.isdigit() and int(number) > batch:
            store.delete(f"invalid/{name}")


def drop_old_checkpoints(store: VersionStore) -> None:
    """Delete checkpoints that no kept version goes with. Only for the holder of the lease."""
    commits = [store.read_commit(number) for number in store.numbers()]
    if not commits or None in commits:
        # a damaged one may come back from a copy, and needs its checkpoint then
        return
    used = {commit.checkpoint for commit in commits if commit is not None}
    for name in store.names(""):
        if re.fullmatch(r"checkpoint(-\d{12})?", name) and name not in used:
            store.delete_folder(name)


def forget_users(store: VersionStore, ids: pa.Array) -> Commit:
    """Remove users from a new version and from everything that is kept under the path.

    Files of older versions are written anew without the rows of these users, then the old ones
    are deleted; so are rows set aside and held-out ratings of theirs. Broken off, it is to be
    called again.

    Raises
    ------
    LeaseError : a stream writes to the path
    StorageError : there is no version, or it is damaged; or a file cannot be read or written
    """
    lease = _acquire(store)
    try:
        state, newest = store.load()
        meta = store.meta() or {}
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
        state.users = state.users.without(ids)
        made = store.commit(
            state, None, newest.batch, newest, None,
            check=lambda: check_holder(store, lease.token),
        )  # fmt: skip
        runs = _ForgetfulRuns(store, meta, ids)
        for number in store.numbers():
            commit = store.read_commit(number)
            if commit is not None and number != made.version:
                check_holder(store, lease.token)
                _rewrite(store, commit, ids, runs)
        check_holder(store, lease.token)
        named = {
            file["name"].rpartition("/")[2]
            for number in store.numbers()
            if (commit := store.read_commit(number)) is not None
            for file in [*commit.files.values(), *commit.run_files()]
        }
        # files of batches that were never committed hold users, too, also those written meanwhile
        for name in store.names("files"):
            if name not in named:
                store.delete(f"files/{name}")
        validation = store.read_table("validation.parquet")
        if validation is not None:
            kept = drop_ids(validation, "user", ids)
            if kept.num_rows:
                store.replace_table("validation.parquet", kept)
            else:
                # a stream goes on without held-out ratings
                store.delete("validation.parquet")
        _forget_invalid(store, meta["params"].get("userCol", "user"), ids)
    finally:
        lease.release()
    return made


class _ForgetfulRuns:
    """Runs of users written anew without some, each once, however many versions name it."""

    def __init__(self, store: VersionStore, meta: dict[str, Any], ids: pa.Array) -> None:
        self._store, self._ids = store, ids
        self._shape = RowShape.of(meta["kinds"][0], Settings.from_json(meta["settings"]))
        self._made: dict[str, dict[str, Any]] = {}

    def of(self, commit: Commit) -> dict[str, Any] | None:
        """The runs of a version, the same where they hold none of the users."""
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
    if files == commit.files and held == commit.runs:
        return
    store.sync("files")
    store.put_commit(replace(commit, files=files, runs=held))
    if files != commit.files:
        store.delete(file["name"])


def _acquire(store: VersionStore) -> Lease:
    """The lease of a path that holds a model, renewed until it is released."""
    if store.meta() is None:
        raise StorageError(f"{store.path} holds no model: look whether the path is spelt right.")
    lease = Lease.acquire(store, _LEASE_SECONDS)
    # a broken write may hold users that are to be forgotten
    store.drop_broken_writes()
    lease.keep_while(lambda: True)
    return lease


def _forget_invalid(store: VersionStore, user_column: str, ids: pa.Array) -> None:
    forgotten = set(ids.cast(pa.string()).to_pylist())
    for name in store.names("invalid"):
        try:
            table = store.read_table(f"invalid/{name}")
        except pa.ArrowInvalid:
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
    """A column of a row, found as Spark finds it: case does not count, dots reach into structs."""
    fields = {key.lower(): value for key, value in row.items()}
    name = name.lower()
    if name in fields or "." not in name:
        return fields.get(name)
    first, _, rest = name.partition(".")
    inner = fields.get(first)
    return _field(inner, rest) if isinstance(inner, dict) else None
