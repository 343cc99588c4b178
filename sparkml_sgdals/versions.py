"""Versions under a model path: list them, go back to one, forget users in all of them (driver)."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any, Final

import pandas as pd
import pyarrow as pa

from sparkml_sgdals.checkpoint import copy_until, end_of_batch, last_done
from sparkml_sgdals.factors import drop_ids
from sparkml_sgdals.lease import Lease, check_holder
from sparkml_sgdals.objects import StorageError
from sparkml_sgdals.storage import Commit, VersionStore

__all__ = ["VERSIONS", "Rollback", "drop_old_checkpoints", "forget_users", "list_versions",
           "roll_back"]  # fmt: skip

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
                    store.read_checked(file)
                except StorageError:
                    whole[name] = False
        return whole[name]

    rows: list[dict[str, Any]] = []
    # a version is whole if its own files are, and the one before it that it adds to
    loadable: dict[int, bool] = {}
    for number in store.numbers():
        commit = store.read_commit(number)
        if commit is None:
            rows.append({"version": number, "loadable": False})
            continue
        files = [good(commit.files[side]) for side in ("users", "items")]
        loadable[number] = all(files) and (commit.base == number or loadable.get(number - 1, False))
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
                "loadable": loadable[number],
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
        for name in store.names("invalid"):
            number = name.removeprefix("batch-").removesuffix(".parquet")
            if number.isdigit() and int(number) > batch:
                store.delete(f"invalid/{name}")
        offsets = end_of_batch(store, checkpoint, batch) if batch >= 0 else None
    finally:
        lease.release()
    return Rollback(following, version, batch, None if offsets is None else tuple(offsets))


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
    StorageError : there is no version, or it is damaged
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
        written = store.names("files")
        made = store.commit(
            state, None, newest.batch, newest, None,
            check=lambda: check_holder(store, lease.token),
        )  # fmt: skip
        for number in store.numbers():
            commit = store.read_commit(number)
            if commit is not None and number != made.version:
                check_holder(store, lease.token)
                _rewrite(store, commit, ids)
        check_holder(store, lease.token)
        named = {
            file["name"].rpartition("/")[2]
            for number in store.numbers()
            if (commit := store.read_commit(number)) is not None
            for file in commit.files.values()
        }
        # files of batches that were never committed hold users, too
        for name in written:
            if name not in named:
                store.delete(f"files/{name}")
        validation = store.read_table("validation.parquet")
        if validation is not None:
            store.replace_table("validation.parquet", drop_ids(validation, "user", ids))
        _forget_invalid(store, meta["params"].get("userCol", "user"), ids)
    finally:
        lease.release()
    return made


def _rewrite(store: VersionStore, commit: Commit, ids: pa.Array) -> None:
    """Put a commit anew whose file of users lacks some, if it has any of them."""
    file = commit.files["users"]
    try:
        table = store.read_checked(file)
    except StorageError:
        # who is in a damaged file cannot be told, and nobody can load it
        store.delete(file["name"])
        return
    kept = drop_ids(table, "id", ids)
    if kept.num_rows == table.num_rows:
        return
    name = file["name"].replace("-users.parquet", "-kept-users.parquet")
    files = commit.files | {"users": store.write_table(name, kept)}
    store.sync("files")
    store.put_commit(replace(commit, files=files))
    store.delete(file["name"])


def _acquire(store: VersionStore) -> Lease:
    """The lease of a path that holds a model, renewed until it is released."""
    if store.meta() is None:
        raise StorageError(f"{store.path} holds no model: look whether the path is spelt right.")
    lease = Lease.acquire(store, _LEASE_SECONDS)
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
