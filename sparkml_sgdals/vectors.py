"""Follow the vectors of a model path: all of them, or those that versions changed (no Spark)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.vectors import describe_vectors, vector_table
from sparkml_sgdals.store.commit import Commit
from sparkml_sgdals.store.objects import Location
from sparkml_sgdals.store.version_store import VersionStore

__all__ = ["VectorChanges", "VectorFeed"]


@dataclass(frozen=True)
class VectorChanges:
    """What leads from one version's vectors to another's.

    Attributes
    ----------
    version : int
        the version that they lead to
    position : str
        what to give `VectorFeed.changes` next time; keep it where the vectors go, in one
        transaction with them
    complete : bool
        whether these are all vectors that there are, so that others have to go: at first, and after
        a rollback, where users were forgotten or versions in between are kept no longer
    users, items : pa.Table
        id (int64 or string) and vector (list of float), each id once, sorted
    mean : float
        a prediction is this and the inner product of both vectors
    exact : bool
        False for models of events, whose score is more than a product
    """

    version: int
    position: str
    complete: bool
    users: pa.Table
    items: pa.Table
    mean: float
    exact: bool


class VectorFeed:
    """Vectors of the versions under a model path, for a database or index that serves them.

    A stream may learn, or be killed, meanwhile: a version is there as a whole or not at all.

    Parameters
    ----------
    path : Location
        the model path, a folder or URI
    """

    def __init__(self, path: Location) -> None:
        self._store = VersionStore(path)

    def changes(
        self, since: str | int | None = None, until: int | None = None
    ) -> VectorChanges | None:
        """Return the vectors that changed after one version, up to another.

        Parameters
        ----------
        since : str | int | None
            the `position` of the changes taken up last, or a number of a version; None for all
        until : int | None
            a version that is kept; the newest by default

        Returns
        -------
        the changes; None where there is nothing new

        Raises
        ------
        StorageError
            there is no such version, or it is damaged
        ValueError
            `since` is no position
        """
        number, digest = _position(since)
        return self._store.steadily(lambda: self._changes(number, digest, until))

    def _changes(self, number: int, digest: str, until: int | None) -> VectorChanges | None:
        store = self._store
        meta, commit = store.meta_and_commit(until)
        if number == commit.version and digest in ("", commit.digest):
            return None
        state = self._changed(meta, number, digest, commit)
        complete = state is None
        if state is None:
            state, _ = store.load(commit.version)
        told = describe_vectors(state.settings, state.scale)
        return VectorChanges(
            commit.version,
            f"{commit.version}-{commit.digest}",
            complete,
            vector_table(state.users, state.scale),
            vector_table(state.items, state.scale),
            told["mean"],
            told["exact"],
        )

    def _changed(
        self, meta: dict[str, Any], number: int, digest: str, commit: Commit
    ) -> ModelState | None:
        """Return a state of the ids that versions since wrote; None where all are needed."""
        store = self._store
        if number < 0 or number > commit.version:
            return None
        held = store.sound_commit(number)
        if held is None or digest not in ("", held.digest):
            return None
        if commit.runs is None and commit.base > number:
            return None
        parts = [store.sound_commit(n) for n in range(number + 1, commit.version)]
        whole = [part for part in [*parts, commit] if part is not None and part.restored is None]
        if len(whole) <= len(parts):
            return None
        settings, spread = commit.settings(meta), commit.scalars["scale"]["spread"]
        others = [held, *whole]
        if any(
            part.settings(meta) != settings or part.scalars["scale"]["spread"] != spread
            for part in others
        ):
            return None
        state = ModelState.empty(settings, meta["kinds"][0], meta["kinds"][1])
        sides: list[tuple[str, FactorTable]] = [("users", state.users), ("items", state.items)]
        for part in whole:
            for name, side in sides:
                if name not in part.files:
                    return None
                store.put_rows(part.files[name], side)
        state.set_scalars(commit.scalars)
        return state


def _position(since: Any) -> tuple[int, str]:
    """Return number and digest of a position; -1 for none."""
    if since is None:
        return -1, ""
    if isinstance(since, str):
        number, _, digest = since.partition("-")
        if number.isdigit() and len(digest) == 64:
            return int(number), digest
    elif isinstance(since, int) and not isinstance(since, bool) and since >= 0:
        return since, ""
    raise ValueError(
        f"since is the position of changes, a number of a version, or None, got {since!r}."
    )
