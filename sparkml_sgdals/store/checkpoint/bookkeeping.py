"""What Spark reads of a checkpoint when a stream starts, beside plans and state (driver).

    metadata     the id of the query
    offsets/N    planned end of batch N, of which no commit tells before the batch is learned
    commits/N    batch N is done, and the watermark after it: when ids of events are forgotten

A commit is made before Spark notes its batch as done, so done.json tells, once a stream has ended,
of the last note; after a kill there is none for it. Sums that Hadoop keeps of files on a local disk
are looked at here, for Spark takes some files without.
"""

from __future__ import annotations

import json
import re
import struct
import zlib
from typing import Final

from sparkml_sgdals.errors import StorageError
from sparkml_sgdals.store.checkpoint.file_log import lines_of, sha256_of
from sparkml_sgdals.store.objects import ObjectStore
from sparkml_sgdals.store.shapes import ANYTHING, TEXT, Fields, parse_json

__all__ = ["DONE", "damaged_files", "fits_sums", "last_number", "note_end"]

DONE: Final = "done.json"
_DONE: Final = Fields({"batch": TEXT, "sha256": TEXT})
_METADATA: Final = Fields({"id": TEXT})
_OBJECT: Final = Fields(others=ANYTHING)
_SUMS: Final = b"crc\0"
_LARGEST_PIECE: Final = 1 << 20
"""bytes that have one sum; Hadoop's are 512 unless somebody says so"""


def note_end(store: ObjectStore, folder: str) -> None:
    """Note what Spark says of the last batch that it has done, as its stream has ended."""
    last = last_number(store, f"{folder}/commits")
    payload = None if last < 0 else store.read(f"{folder}/commits/{last}")
    if payload is None:
        return
    told = json.dumps({"batch": str(last), "sha256": sha256_of(payload)}).encode()
    try:
        if store.read(f"{folder}/{DONE}") != told:
            store.replace(f"{folder}/{DONE}", told)
    except StorageError:
        # what is not noted is not looked at
        return


def damaged_files(
    store: ObjectStore, folder: str, planned: int, done: int, batch: int
) -> list[str]:
    """Return files that Spark cannot start by, or would start wrongly, below the folder.

    Parameters
    ----------
    store : ObjectStore
        the model path
    folder : str
        of the checkpoint
    planned, done : int
        the last batch that Spark has planned, and done; -1 for none
    batch : int
        the last one that is learned
    """
    damaged = []
    if planned >= 0 and not _is(_METADATA, store.read(f"{folder}/metadata")):
        damaged.append("metadata")
    if planned > batch and not _is_log_entry(store, f"{folder}/offsets", planned):
        damaged.append(f"offsets/{planned}")
    if done >= 0 and not (
        _is_log_entry(store, f"{folder}/commits", done) and _as_noted(store, folder, done)
    ):
        damaged.append(f"commits/{done}")
    logs = [f"sources/{source}" for source in store.names(f"{folder}/sources")]
    read = [(log, name) for log in logs for name in store.names(f"{folder}/{log}")]
    read += [("offsets", str(planned - 1)), ("offsets", str(planned)), (".", "metadata")]
    for log, name in read if store.local else []:
        payload = None if name.startswith(".") else store.read(f"{folder}/{log}/{name}")
        if payload is not None and not fits_sums(store, f"{folder}/{log}", name, payload):
            damaged.append(f"{log}/.{name}.crc or {name}".removeprefix("./"))
    return damaged


def last_number(store: ObjectStore, folder: str) -> int:
    """Return the greatest number that an entry of one of Spark's logs has, -1 for none."""
    # digits that Spark takes for such, as many as it takes: it passes over other names
    numbers = [int(n) for n in store.names(folder) if n.isdecimal() and len(n) < 19]
    return max(numbers, default=-1)


def _is_log_entry(store: ObjectStore, folder: str, number: int) -> bool:
    """Whether an entry begins with a version and JSON, and fits its sums where it has any."""
    payload = store.read(f"{folder}/{number}") or b""
    lines = lines_of(payload)
    if len(lines) < 2 or not re.fullmatch(r"v\d+", lines[0]) or not _is(_OBJECT, lines[1]):
        return False
    return fits_sums(store, folder, str(number), payload)


def fits_sums(store: ObjectStore, folder: str, name: str, payload: bytes) -> bool:
    """Whether a file is what the sums say that Hadoop keeps beside it, where it does."""
    sums = store.read(f"{folder}/.{name}.crc") if store.local else None
    # Spark passes over sums that do not begin as such
    return sums is None or not sums.startswith(_SUMS) or sums == _sums_of(payload, sums)


def _sums_of(payload: bytes, like: bytes) -> bytes | None:
    """Return the sums that Hadoop keeps of a file, of pieces as large as in these."""
    if len(like) < 8:
        return None
    (size,) = struct.unpack(">i", like[4:8])
    if not 0 < size <= _LARGEST_PIECE:
        return None
    pieces = [payload[first : first + size] for first in range(0, len(payload), size)]
    return like[:8] + b"".join(struct.pack(">I", zlib.crc32(piece)) for piece in pieces)


def _as_noted(store: ObjectStore, folder: str, done: int) -> bool:
    """Whether what Spark says of a batch is what was noted of it, where anything was."""
    note = store.read(f"{folder}/{DONE}")
    if note is None or not _is(_DONE, note):
        return True
    told = parse_json(note)
    payload = store.read(f"{folder}/commits/{done}") or b""
    return bool(told["batch"] != str(done) or told["sha256"] == sha256_of(payload))


def _is(shape: Fields, payload: bytes | str | None) -> bool:
    try:
        return payload is not None and shape.fits(parse_json(payload))
    except ValueError:
        return False
