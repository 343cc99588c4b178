"""Versions under a model path: list them, go back to one, clear up after both (driver)."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa

from sparkml_sgdals.arrays.threads import workers
from sparkml_sgdals.errors import StorageError
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.store.checkpoint.agreement import (
    copy_until,
    end_of_batch,
    last_done,
    offsets_of,
)
from sparkml_sgdals.store.commit import Commit
from sparkml_sgdals.store.large.in_runs import commit_in_runs
from sparkml_sgdals.store.large.rewriting import runs_of
from sparkml_sgdals.store.lease import Lease, check_holder
from sparkml_sgdals.store.overlay import Overlay
from sparkml_sgdals.store.version_store import MAX_DELTAS, VersionStore

__all__ = [
    "VERSIONS",
    "Rollback",
    "commit_added",
    "drop_later_invalid",
    "drop_old_checkpoints",
    "list_versions",
    "roll_back",
]

T = TypeVar("T")

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

_SIDES: Final = ("users", "items")
_READERS: Final = 16
"""threads that wait for a store that is not on this machine; files of its own are read in turn"""
_A_THREAD: Final = 10
"""objects that a thread reads at once"""
_LEASE_SECONDS: Final = 600.0
_FEW: Final = 10_000
"""Ids in memory where rows are read by id."""
_CHECKPOINT: Final = re.compile(r"checkpoint(-[0-9]{12})?")


@dataclass(frozen=True)
class Rollback:
    """What a rollback did.

    Attributes
    ----------
    version : int
        the new version, which holds the factors of version `restored`
    restored : int
        the version gone back to
    batch : int
        the stream goes on with the batch after this one; -1: with its first
    offsets : tuple[str, ...] | None
        where each source reads on, as Spark writes it; None where that is not kept, or from the
        start of the source
    """

    version: int
    restored: int
    batch: int
    offsets: tuple[str, ...] | None

    def __str__(self) -> str:
        """Return the outcome as one sentence."""
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
    """Return the versions kept, oldest first, columns VERSIONS; rmse as in `StreamJob.metrics`.

    Parameters
    ----------
    store : VersionStore
        the model path
    verify : bool
        whether, for the column loadable, every file is read and its checksum compared; else only
        that it is there

    Raises StorageError where there is no model.
    """
    meta = store.meta()
    if meta is None:
        raise StorageError(f"{store.path} is no model path: there is no model.json in it.")
    whole: dict[str, bool] = {}

    def good(file: dict[str, Any]) -> bool:
        return whole[file["name"]]

    rows: list[dict[str, Any]] = []
    own: dict[int, bool] = {}
    # the first version of the unbroken row that a version ends
    since: dict[int, int] = {}
    # and that of the row of commits of which each was added to the one before
    chained: dict[int, int] = {}
    before = None
    for number, commit in _each(store, verify, whole):
        if commit is None or commit.meta not in (None, meta.get("sha256")):
            rows.append({"version": number, "loadable": False})
            continue
        own[number] = all(good(commit.files[side]) for side in _SIDES)
        since[number] = chained[number] = number
        if own[number] and own.get(number - 1, False):
            since[number] = since[number - 1]
        if before is not None and before.version == number - 1 and before.followed_by(commit):
            chained[number] = chained[number - 1]
        before = commit
        # whole are the files that it adds to, and those of all versions from there to itself; runs
        # lack the metrics of the version that they hold, so its commit object is needed too
        first = commit.base + (commit.runs is not None)
        runs = all(map(good, _runs_without_history(commit)))
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
                "loadable": commit.base in own
                and runs
                and own[number]
                and since[number] <= first
                and chained[number] <= commit.base,
            }
        )
    frame = pd.DataFrame(rows, columns=list(VERSIONS))
    frame["committed"] = pd.to_datetime(frame["committed"], format="ISO8601", utc=True)
    frame[["rmse", "validationRmse"]] = frame[["rmse", "validationRmse"]].astype(float)
    frame[["batch", "ratings", "restored"]] = frame[["batch", "ratings", "restored"]].astype(
        "Int64"
    )
    return frame


def _each(
    store: VersionStore, verify: bool, whole: dict[str, bool]
) -> Iterator[tuple[int, Commit | None]]:
    """Yield each commit by its number, None where it cannot be used, some at a time.

    `whole` says of each of its files, by name, whether it is there, and with `verify` as it was.
    """
    numbers = store.numbers()
    there = set(store.names("files"))
    readers = 1 if store.local else _READERS
    with workers(readers) as run:

        def sound(some: list[int]) -> list[Commit | None]:
            return list(map(store.sound_commit, some))

        def verified(files: list[dict[str, Any]]) -> list[bool]:
            return [_is_whole(store, file) for file in files]

        for page in _pieces(numbers, readers * _A_THREAD):
            parts = run(functools.partial(sound, piece) for piece in _pieces(page, _A_THREAD))
            commits = list(itertools.chain(*parts))
            files = {
                file["name"]: file
                for commit in commits
                if commit is not None
                for file in (*map(commit.files.get, _SIDES), *_runs_without_history(commit))
                if file is not None and file["name"] not in whole
            }
            whole |= {name: name.rpartition("/")[2] in there for name in files}
            if verify:
                asked = [file for name, file in files.items() if whole[name]]
                pieces = _pieces(asked, _A_THREAD)
                found = itertools.chain(*run(functools.partial(verified, p) for p in pieces))
                whole |= {file["name"]: is_so for file, is_so in zip(asked, found, strict=True)}
            yield from zip(page, commits, strict=True)


def _pieces(things: list[T], size: int) -> list[list[T]]:
    return [things[first : first + size] for first in range(0, len(things), size)]


def _is_whole(store: VersionStore, file: dict[str, Any]) -> bool:
    try:
        store.check_file(file)
    except StorageError:
        return False
    return True


def _runs_without_history(commit: Commit) -> list[dict[str, Any]]:
    if commit.runs is None:
        return []
    history = commit.runs.get("metrics")
    return [file for file in commit.run_files() if file != history]


def roll_back(store: VersionStore, version: int, reread: bool) -> Rollback:
    """Make the factors of an older version the newest one.

    Nothing is changed until one commit object stands: the new version, with a checkpoint of its
    own that was copied from that of `version` and cut after its batch.

    Parameters
    ----------
    store : VersionStore
        the model path, which no stream may be writing to
    version : int
        the one to go back to
    reread : bool
        whether the stream reads on from where it stood after `version`; else from where it stands
        now, and what it read since counts as not learned

    Raises
    ------
    LeaseError
        a stream writes to the path
    StorageError
        the version is not kept or damaged, or Spark no longer keeps its offsets
    """
    lease = lease_for_maintenance(store)
    try:
        wanted = store.read_commit(version)
        in_runs = wanted is not None and wanted.runs is not None
        if wanted is None or not in_runs:
            state, wanted = store.load(version)
        numbers = store.numbers()
        # the last one may be damaged: that is what one goes back for
        following = numbers[-1] + 1
        newest = next(c for n in reversed(numbers) if (c := store.sound_commit(n)) is not None)
        if reread:
            checkpoint, batch = f"checkpoint-{following:012d}", wanted.batch
            # of a rollback that was broken off
            store.delete_folder(checkpoint)
            copy_until(store, wanted.checkpoint, checkpoint, batch)
        else:
            checkpoint = newest.checkpoint
            batch = max(newest.batch, last_done(store, checkpoint))
        told: dict[str, Any] = {
            "restored": wanted,
            "after": None if newest.version == following - 1 else following - 1,
            "offsets": offsets_of(store, checkpoint, wanted)
            if reread
            else (newest.offsets if batch == newest.batch else None),
            "checkpoint": checkpoint,
            "check": lambda: check_holder(store, lease.token),
        }
        if in_runs:
            # without its rows in memory
            for file in wanted.run_files():
                store.check_file(file)
            opened = Overlay(store, wanted, _FEW)
            runs = runs_of(store, opened, following, wanted)
            ids = wanted.ids[0], wanted.ids[1]
            commit_in_runs(store, opened.state, runs, ids, newest, batch=batch, **told)
        else:
            store.commit(state, None, batch, newest, None, **told)
        drop_later_invalid(store, batch)
        offsets = end_of_batch(store, checkpoint, batch) if batch >= 0 else None
    finally:
        lease.release()
    return Rollback(following, version, batch, None if offsets is None else tuple(offsets))


def commit_added(
    store: VersionStore, ids: tuple[pa.Array, pa.Array], add: Callable[[ModelState], None]
) -> Commit:
    """Commit a version in which a model has ids that no batch has brought.

    Of a version in sorted runs the rows of these ids alone are in memory.

    Parameters
    ----------
    store : VersionStore
        the model path, which no stream may be writing to
    ids : tuple[pa.Array, pa.Array]
        distinct users and items
    add : Callable[[ModelState], None]
        adds those of them that are not known behind those that are, in place

    Raises
    ------
    LeaseError
        a stream writes to the path
    StorageError
        there is no version, or it is damaged
    ValueError
        the path holds a race
    """
    lease = lease_for_maintenance(store)
    try:
        opened, found = None, store.newest()
        if found is None or found.runs is None:
            state, newest = store.load()
        else:
            opened, newest = Overlay(store, found, _FEW), found
            state = opened.state
        if "race" in (store.meta() or {}):
            raise ValueError(
                f"{store.path} holds a race, whose candidates would not know the new ids. Load its "
                "model, and let it go on at another path."
            )
        told: dict[str, Any] = {
            "check": lambda: check_holder(store, lease.token), "offsets": newest.offsets,
        }  # fmt: skip
        if opened is None:
            before = state.users.size, state.items.size
            add(state)
            rows = np.arange(before[0], state.users.size), np.arange(before[1], state.items.size)
            made = store.commit(state, rows, newest.batch, newest, None, **told)
        else:
            rows = opened.add(ids, add)
            if newest.version - newest.base >= MAX_DELTAS:
                runs = runs_of(store, opened, newest.version + 1, newest)
                told["batch"] = newest.batch
                made = commit_in_runs(store, state, runs, state.ids, newest, **told)
            else:
                told["onto"] = opened.onto(0, 0)
                made = store.commit(state, rows, newest.batch, newest, None, **told)
    finally:
        lease.release()
    return made


def drop_later_invalid(store: VersionStore, batch: int) -> None:
    """Delete rows set aside of batches after `batch`. Only for the holder of the lease.

    They were rolled back, or their batch was never committed and will set them aside again.
    """
    for name in store.names("invalid"):
        number = name.removeprefix("batch-").removesuffix(".parquet")
        if number.isdecimal() and int(number) > batch:
            store.delete(f"invalid/{name}")


def drop_old_checkpoints(store: VersionStore) -> None:
    """Delete checkpoints that no kept version goes with. Only for the holder of the lease.

    A version has the checkpoint of the one before it, but for one made by a rollback, whose
    checkpoint has its number: so a few commits tell of all.
    """
    there = [name for name in store.names("") if _CHECKPOINT.fullmatch(name)]
    numbers = store.numbers()
    oldest = store.sound_commit(numbers[0]) if numbers and len(there) > 1 else None
    if oldest is None:
        # a damaged one may come back from a copy, and needs its checkpoint then
        return
    for name in there:
        number = int(name.partition("-")[2] or -1)
        if name == oldest.checkpoint:
            continue
        if number in numbers:
            made = store.sound_commit(number)
            if made is None or made.checkpoint == name:
                continue
        store.delete_folder(name)


def lease_for_maintenance(store: VersionStore) -> Lease:
    """Return the lease of a path that holds a model, renewed until it is released."""
    if store.meta() is None:
        raise StorageError(f"{store.path} holds no model: look whether the path is spelt right.")
    lease = Lease.acquire(store, _LEASE_SECONDS)
    # a broken write may hold users that are to be forgotten
    store.drop_broken_writes()
    lease.keep_while(lambda: True)
    return lease
