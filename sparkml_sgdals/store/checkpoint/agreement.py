"""Spark's checkpoint under a model path: does it fit the model, and where does it read on (driver).

Of a checkpoint (Spark's "Recovering from Failures with Checkpointing") this module knows

    offsets/N       planned end of batch N: a version, a line of JSON, one line a source
    commits/N       batch N is done
    sources/I/N     files of batch N of a file source, N.compact those of all batches up to N
    state/O/P/N.*   state of operator O, partition P, before batch N: see `kept_state`

and beside them owner.json, which names the model path that the checkpoint was made for, and
done.json: see `bookkeeping`.
"""

from __future__ import annotations

import json
from typing import Any, Final
from urllib.parse import unquote

from sparkml_sgdals.errors import StorageError
from sparkml_sgdals.store.checkpoint.bookkeeping import DONE, damaged_files, last_number
from sparkml_sgdals.store.checkpoint.file_log import (
    BATCH,
    NO_FILES,
    FileLog,
    lines_of,
    number_of,
    sha256_of,
)
from sparkml_sgdals.store.checkpoint.kept_state import KeptState, changed_files, with_all_files
from sparkml_sgdals.store.commit import Commit
from sparkml_sgdals.store.objects import ObjectStore, same_place
from sparkml_sgdals.store.shapes import Fields, parse_json

__all__ = [
    "check_checkpoint", "copy_until", "drop_unplanned_files", "end_of_batch", "last_done",
    "offsets_of", "reading", "refuse_own_files",
]  # fmt: skip

_OWNER: Final = "owner.json"
_PLACE: Final = Fields({"logOffset": BATCH})
_ROLL_BACK: Final = "StreamingBiasedALSModel.rollback(path, {version})"


def check_checkpoint(store: ObjectStore, newest: Commit, path_id: str) -> None:
    """See that the checkpoint is of this model and of its newest version; claim a new one.

    Raises StorageError that says what is wrong and what to do.
    """
    folder = newest.checkpoint
    planned, done = last_number(store, f"{folder}/offsets"), last_done(store, folder)
    place, batch = f"{store.path}/{folder}", newest.batch
    owner = store.read(f"{folder}/{_OWNER}")
    if owner is None and planned < 0:
        if batch >= 0:
            raise StorageError(
                f"{store.path} has learned up to batch {batch}, but Spark's checkpoint under it "
                "is gone: the source would be read from its start and its batches taken for "
                "replays. Restore the checkpoint, or go on under a new path: "
                "StreamingBiasedALSModel.load(path).updateStream(stream, new_path)."
            )
        store.replace(f"{folder}/{_OWNER}", json.dumps({"pathId": path_id}).encode())
        return
    if owner is None or _owner(owner) != path_id:
        raise StorageError(
            f"{place} belongs to another model: {_OWNER} in it does not name this one. Its offsets "
            "are not those that this model has learned up to. Put this model's own checkpoint "
            "back, or go on under a new path: "
            "StreamingBiasedALSModel.load(path).updateStream(stream, new_path)."
        )
    if planned < batch:
        raise StorageError(
            f"{place} ends at batch {planned}, the model has learned up to batch {batch}: it is an "
            "older copy, and batches up to there would be taken for replays. Put the newer one "
            "back, or go back to a version of that batch (StreamingBiasedALSModel.versions(path)): "
            f"{_ROLL_BACK.format(version='n')}."
        )
    if done > batch:
        raise StorageError(
            f"{place} says that batch {done} is done, the newest whole version is {newest.version} "
            f"of batch {batch}: later versions are lost or damaged. Put their files back, or read "
            f"the batches since again: {_ROLL_BACK.format(version=newest.version)}."
        )
    damaged = damaged_files(store, folder, planned, done, batch)
    if damaged:
        raise StorageError(
            f"{place}/{damaged[0]} is damaged, missing or an older copy (or, of commits, {DONE} "
            "beside them is): Spark would not go on from where the model stands. Put it back, or "
            "go on under a new path: "
            "StreamingBiasedALSModel.load(path).updateStream(stream, new_path)."
        )
    told = newest.offsets
    if told is None:
        return
    plan = _plan_of(store, folder, batch)
    wrong = [] if plan is not None and sha256_of(plan) == told["plan"] else [f"offsets/{batch}"]
    for source, (last, digest) in told["files"].items():
        log = FileLog.read(store, f"{folder}/sources/{source}")
        if log is None or log.digest_until(last) != digest:
            wrong.append(f"sources/{source}")
    wrong += changed_files(store, folder, told.get("state", {}), done == batch)
    if wrong:
        raise StorageError(
            f"{place}/{wrong[0]} is not as it was when version {newest.version} was committed: it "
            "is damaged, missing or an older copy, and ratings would be learned twice or not at "
            "all. Put it back, or go on under a new path: "
            "StreamingBiasedALSModel.load(path).updateStream(stream, new_path)."
        )


def refuse_own_files(store: ObjectStore, folder: str, batch: int) -> None:
    """See that a batch is not read from files that lie under the model path.

    Raises ValueError where it is: what a stream writes it would learn from.
    """
    plan = _plan_of(store, folder, batch)
    top = same_place(store.path)
    for source, last in ({} if plan is None else _places_in(plan)).items():
        log = FileLog.of_batch(store, f"{folder}/sources/{source}", last)
        for lines in log.batches().values():
            for line in lines:
                file = same_place(unquote(parse_json(line)["path"]))
                if f"{file}/".startswith(f"{top}/"):
                    raise ValueError(
                        f"The stream reads {file}, which lies under the model path {store.path}: "
                        "what a stream writes there would be read as ratings. Choose a model path "
                        "beside the stream's source folder."
                    )


def reading(
    store: ObjectStore,
    folder: str,
    batch: int,
    before: dict[str, Any] | None,
    kept: KeptState | None = None,
) -> dict[str, Any] | None:
    """Return what a batch is read from, as its commit tells; None where Spark has not planned it.

    Parameters
    ----------
    store : ObjectStore
        the model path
    folder : str
        of the checkpoint
    batch : int
        its number
    before : dict[str, Any] | None
        the same of the commit before
    kept : KeptState | None
        tells what Spark keeps after the batch, which it has run

    Returns
    -------
    plan, the SHA-256 of Spark's plan of the batch; files, of each file source by its number: the
    place in its log after the batch, and a digest of all files that it names up to there; and
    state, where Spark keeps any
    """
    plan = _plan_of(store, folder, batch)
    if plan is None:
        return None
    files: dict[str, Any] = {}
    known = {} if before is None else before["files"]
    for source, last in _places_in(plan).items():
        log = FileLog.of_batch(store, f"{folder}/sources/{source}", last)
        place, digest = known.get(source, (-1, NO_FILES))
        if last != place + 1 and last != place:
            # batches that are not known one by one, as after a checkpoint of its own
            whole = FileLog.read(store, log.folder)
            digest = NO_FILES if whole is None else whole.digest_until(last)
        elif last > place:
            digest = log.digest_until(last, since=place, digest=digest)
        files[source] = [last, digest]
    told = {"plan": sha256_of(plan), "files": files}
    held = {} if before is None else before.get("state", {})
    state = {} if kept is None else kept.after(store, folder, batch, held)
    return told | ({"state": state} if state else {})


def _owner(payload: bytes) -> Any:
    """Return the id of the path that a checkpoint was made for, None where it cannot be told."""
    try:
        owner = parse_json(payload)
    except ValueError:
        return None
    return owner.get("pathId") if isinstance(owner, dict) else None


def drop_unplanned_files(store: ObjectStore, folder: str) -> None:
    """Take files from a file source's log that are in no planned batch.

    Spark notes the files of a batch before it plans the batch. Killed in between, it would put
    them together with the next ones, and the batches would not be those of an undisturbed stream.
    """
    planned = last_number(store, f"{folder}/offsets")
    if planned < 0:
        for source in store.names(f"{folder}/sources"):
            log = FileLog.read(store, f"{folder}/sources/{source}")
            if log is not None:
                for name in log.names:
                    _delete(store, f"{log.folder}/{name}")
        return
    for source, last in _log_offsets(store, folder, planned).items():
        log = FileLog.read(store, f"{folder}/sources/{source}")
        # without the single files of before, what was compacted beyond the plan has to stay
        if log is not None and log.whole_until(last):
            for name in log.names:
                if number_of(name) > last:
                    _delete(store, f"{log.folder}/{name}")


def end_of_batch(store: ObjectStore, folder: str, batch: int) -> list[str] | None:
    """Where each source stands after a batch, as Spark writes it; None where it is not kept."""
    plan = _plan_of(store, folder, batch)
    return None if plan is None else _ends_in(plan)


def last_done(store: ObjectStore, folder: str) -> int:
    """Return the last batch that Spark has finished, -1 for none."""
    return last_number(store, f"{folder}/commits")


def copy_until(store: ObjectStore, folder: str, target: str, batch: int) -> None:
    """Copy a checkpoint as it was after a batch (-1: before the first one).

    Raises StorageError where Spark no longer keeps the offsets of that batch.
    """
    planned = last_number(store, f"{folder}/offsets")
    if batch >= 0 and end_of_batch(store, folder, batch) is None:
        kept = [n for n in map(number_of, store.names(f"{folder}/offsets")) if n >= 0]
        raise StorageError(
            f"{store.path}/{folder}/offsets no longer holds batch {batch} (kept: "
            f"{f'{min(kept)} to {max(kept)}' if kept else 'none'}): the source cannot be read on "
            "from there. Choose a later version, or reread=False to go on from now."
        )
    logs = {} if planned < 0 else _log_offsets(store, folder, planned)
    last = {} if batch < 0 else _log_offsets(store, folder, batch)
    for name in store.walk(folder):
        top, _, rest = name.partition("/")
        source = rest.partition("/")[0]
        number = number_of(name.rpartition("/")[2])
        late = (
            (top in ("offsets", "commits") and number > batch)
            # the state before the next batch is that after this one
            or (top == "state" and number > batch + 1)
            or top == DONE
            or (top == "sources" and source in logs)
        )
        if not late:
            store.write(f"{target}/{name}", store.read(f"{folder}/{name}") or b"")
    for source in logs:
        log = FileLog.read(store, f"{folder}/sources/{source}")
        if log is not None:
            log.write_until(f"{target}/sources/{source}", last.get(source, -1))


def offsets_of(store: ObjectStore, folder: str, version: Commit) -> dict[str, Any] | None:
    """Return what a version's batch was read from, of a copy of its checkpoint.

    Without the state of which the copy lacks files, as Spark had deleted them.
    """
    told = version.offsets
    if told is None or "state" not in told:
        return told
    state = with_all_files(store, folder, told["state"])
    told = {name: value for name, value in told.items() if name != "state"}
    return told | ({"state": state} if state else {})


def _log_offsets(store: ObjectStore, folder: str, batch: int) -> dict[str, int]:
    """Return the place in its log of each file source after a batch."""
    plan = _plan_of(store, folder, batch)
    return {} if plan is None else _places_in(plan)


def _plan_of(store: ObjectStore, folder: str, batch: int) -> bytes | None:
    return store.read(f"{folder}/offsets/{batch}")


def _ends_in(plan: bytes) -> list[str]:
    """Return where each source stands in Spark's plan of a batch: it follows two lines."""
    return lines_of(plan)[2:]


def _places_in(plan: bytes) -> dict[str, int]:
    """Return the place in its log of each file source, in Spark's plan of a batch."""
    found = {}
    for source, line in enumerate(_ends_in(plan)):
        try:
            offset: Any = parse_json(line)
        except ValueError:
            continue
        if _PLACE.fault(offset, "it") is None:
            found[str(source)] = offset["logOffset"]
    return found


def _delete(store: ObjectStore, name: str) -> None:
    folder, _, base = name.rpartition("/")
    # without its sums first: sums without their file would be taken for those of the next one
    store.delete(f"{folder}/.{base}.crc")
    store.delete(name)
