"""Open a version: whole, or, where it lies in runs and is too large, where it lies (no Spark)."""

from __future__ import annotations

from collections.abc import Callable

from sparkml_sgdals.errors import StorageError
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.store.commit import Commit
from sparkml_sgdals.store.overlay import Overlay
from sparkml_sgdals.store.version_store import VersionStore

__all__ = ["in_place", "open_version", "refuse_whole"]


def in_place(commit: Commit, limit: int) -> bool:
    """Whether a version is read where it lies by whoever keeps `limit` ids in memory; 0 = all."""
    settings = commit.scalars.get("settings", {})
    whole = any(settings.get(name) for name in ("positive", "ranking_size"))
    return bool(commit.runs is not None and limit and sum(commit.ids) > limit and not whole)


def open_version(
    store: VersionStore, version: int | None, limit: Callable[[], int]
) -> tuple[ModelState, Commit, Overlay | None]:
    """Return a version's state and commit, and what reads the rest of it by id where there is more.

    Parameters
    ----------
    store : VersionStore
        the model path
    version : int | None
        its number; None for the newest
    limit : Callable[[], int]
        users and items that are kept in memory at most; 0 = all

    Raises
    ------
    StorageError
        there is no such version, or a file of it is missing or damaged
    """

    def read() -> tuple[ModelState, Commit, Overlay | None]:
        commit = store.newest() if version is None else store.read_commit(version)
        if commit is None or store.meta() is None or not in_place(commit, limit()):
            return *store.load(version), None
        overlay = Overlay(store, commit, limit())
        return overlay.state, commit, overlay

    return store.steadily(read)


def refuse_whole(state: ModelState, what: str) -> None:
    """Refuse what needs all rows of a model in memory.

    Raises
    ------
    StorageError
        a part of it is there
    """
    if state.partial:
        raise StorageError(
            f"{what} the whole model has to be in memory, and this one is read from its path: load "
            "it with maxResidentIds=0 where its users and items fit into memory."
        )
