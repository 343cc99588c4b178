"""Folders of fits whose driver was killed: each has an owner, and the next fit beside removes them.

Beside the folder of a fit lies a file, its name and `.owner`, that says which process it belongs
to. It is renewed while the fit runs, for those on other hosts, who cannot look whether it does.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pyarrow as pa
import pyarrow.fs as pafs

from sparkml_sgdals.errors import StorageError
from sparkml_sgdals.store.objects import ObjectStore
from sparkml_sgdals.store.processes import PROCESS, on_this_host, runs, this_process
from sparkml_sgdals.store.shapes import ANYTHING, INSTANT, TEXT, Fields, Maybe, parse_json

__all__ = ["UNREACHABLE", "drop_left_folders", "folder_name", "owned"]

logger = logging.getLogger(__name__)

UNREACHABLE: Final = (OSError, ValueError, StorageError, pa.ArrowException)
"""what a storage that cannot be used raises"""
_NAME: Final = "sparkml-sgdals-blocks-"
_OWNER: Final = ".owner"
_FOLDER: Final = re.compile(rf"{_NAME}[0-9a-f]{{32}}")
_RENEWED: Final = 3600.0
"""seconds between two signs of life"""
_LONG_AGO: Final = 7 * 86_400.0
"""seconds without one after which a fit on another host is taken for gone"""
_PROCESS: Final = Fields(
    PROCESS | {"namespace": Maybe(TEXT), "renewed": INSTANT}, others=ANYTHING
)  # fmt: skip


def folder_name(token: str) -> str:
    """Return the name of a folder of blocks, of a token of 32 hexadecimal digits."""
    return f"{_NAME}{token}"


@contextmanager
def owned(parent: str, name: str) -> Iterator[None]:
    """Say that a folder under `parent` is this process's, until the block ends."""
    store = ObjectStore(parent)
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(_RENEWED):
            _claim(store, name)

    _claim(store, name)
    thread = threading.Thread(target=renew, name="sparkml-sgdals-blocks", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        _quietly(lambda: store.delete(f"{name}{_OWNER}"), f"{parent}/{name}{_OWNER}")


def drop_left_folders(parent: str) -> None:
    """Remove folders of fits that are gone.

    On this host their process is; elsewhere they gave no sign of life for a week. What cannot be
    looked at stays.
    """
    try:
        store = ObjectStore(parent)
        names = store.names("")
    except UNREACHABLE:
        # the fit itself finds out whether it can be used
        return
    folders = {name for name in names if _FOLDER.fullmatch(name)}
    # an owner without a folder: killed before there was one, or after it was removed
    folders |= {n.removesuffix(_OWNER) for n in names if _FOLDER.fullmatch(n.removesuffix(_OWNER))}
    for name in sorted(folders):
        try:
            if _gone(store, name):
                logger.info("%s/%s was left behind by a fit that is gone: removed", parent, name)
                store.delete_folder(name)
                store.delete(f"{name}{_OWNER}")
        except UNREACHABLE as failure:
            logger.warning("%s/%s is left behind: %s", parent, name, failure)


def _claim(store: ObjectStore, name: str) -> None:
    told = this_process() | {"namespace": _namespace(), "renewed": time.time()}
    # without it the folder counts by its age
    _quietly(
        lambda: store.replace(f"{name}{_OWNER}", json.dumps(told).encode()),
        f"{store.path}/{name}{_OWNER}",
    )


def _gone(store: ObjectStore, name: str) -> bool:
    payload = store.read(f"{name}{_OWNER}")
    owner: Any = None
    with contextlib.suppress(ValueError):
        owner = None if payload is None else parse_json(payload)
    if _PROCESS.fault(owner, "it") is not None:
        # of a release that gave none, or damaged
        return _age(store, name if payload is None else f"{name}{_OWNER}") > _LONG_AGO
    if on_this_host(owner) and owner["namespace"] == _namespace():
        return not runs(owner)
    return bool(time.time() - owner["renewed"] > _LONG_AGO)


def _age(store: ObjectStore, name: str) -> float:
    """Seconds since something changed there, 0 where that is not known."""
    changed = store.fs.get_file_info(f"{store.root}/{name}")
    known = changed.type != pafs.FileType.NotFound and changed.mtime is not None
    return time.time() - changed.mtime.timestamp() if known else 0.0


def _namespace() -> str | None:
    """Which processes this one sees: containers may have one host's name, and numbers of theirs."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _quietly(work: Any, place: str) -> None:
    try:
        work()
    except UNREACHABLE as failure:
        logger.warning("%s cannot be written or removed: %s", place, failure)
