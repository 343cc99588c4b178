"""What a fit to a model path leaves where it is killed, and who removes it (no Spark).

While such a fit runs there is a mark beside its files. Without a version, what lies beside a mark
is of no use: whoever holds the lease next removes it.
"""

from __future__ import annotations

import contextlib
from typing import Final

from sparkml_sgdals.errors import StorageError
from sparkml_sgdals.store.version_store import VersionStore

__all__ = ["MARK", "drop_empty", "drop_unfinished", "mark_unfinished", "refuse_filled"]

MARK: Final = "fit-unfinished"
_LEASE: Final = "lease.json"
_WRITTEN: Final = ("files", "commits", "checkpoint")


def refuse_filled(store: VersionStore) -> None:
    """See that a path holds nothing but what a fit that was killed has left.

    Raises
    ------
    ValueError
        something is there
    StorageError
        it cannot be listed, or is a file
    """
    names = set(store.names("")) - {_LEASE}
    if not names or (MARK in names and not store.numbers()):
        return
    what = "a model" if store.read("model.json") is not None else f"{sorted(names)[0]!r}"
    raise ValueError(
        f"modelPath {store.path} holds {what} already, and fitPath begins a new model path: choose "
        "an empty one. Models there go on by "
        "StreamingBiasedALSModel.load(path).updateStream(stream, path)."
    )


def mark_unfinished(store: VersionStore) -> None:
    """Say that a fit is writing here."""
    store.write(MARK, b"A fit writes here. What it leaves where it is killed, the next removes.\n")


def drop_unfinished(store: VersionStore) -> None:
    """Remove what a fit that was killed left, where one did. Only for the holder of the lease."""
    if store.read(MARK) is None:
        return
    if not store.numbers():
        store.delete("model.json")
        for folder in _WRITTEN:
            store.delete_folder(folder)
        for name in store.names(""):
            if name.startswith((f"{MARK}-", "model.json.")):
                store.delete(name)
    store.delete(MARK)


def drop_empty(store: VersionStore) -> None:
    """Remove a local path that holds nothing any more."""
    with contextlib.suppress(StorageError):
        if store.local and not store.names(""):
            store.delete_folder("")
