"""A model larger than memory: its base in sorted runs, the rows in use in memory (driver).

`state` holds rows of some ids: those changed since the base, which nothing else in memory or in
the runs has, and others read lately. Before a batch is learned, `fetch` reads the rows of its
ids that are missing; an id that neither has is new. What is learned is the same to the bit as
with all rows in memory, as learning looks at the rows of a batch's ids alone.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.errors import GoneError
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.settings import Settings
from sparkml_sgdals.store.commit import Base, Commit
from sparkml_sgdals.store.compaction import SIDES, Compaction, compact, convert
from sparkml_sgdals.store.packed_rows import RowShape, pack_rows, unpack_rows
from sparkml_sgdals.store.sorted_runs import Run
from sparkml_sgdals.store.version_store import MAX_DELTAS, VersionStore

__all__ = ["Overlay"]

logger = logging.getLogger(__name__)

I64 = npt.NDArray[np.int64]

_FULL: Final = 2
"""A compaction starts when more than the limit's share of 1 / _FULL has changed."""
_KEPT: Final = 0.75
"""Share of the limit that is left when rows are dropped, so that it is done now and then."""
_HERE: Final = 1 << 62
"""Version of rows that were learned in memory alone."""


class Overlay:
    """The newest version under a model path, with at most `limit` ids in memory between batches.

    Parameters
    ----------
    limit : int
        users and items in memory, at least 1; more only while one batch names more, or `pin` was
        told to keep more

    Raises
    ------
    StorageError
        a file of the version is missing or damaged; also from every method
    """

    def __init__(self, store: VersionStore, commit: Commit, limit: int) -> None:
        self._store = store
        self._limit = limit
        self.commit = commit
        """the version that was opened"""
        store.check_meta(commit)
        meta = store.meta()
        if meta is None:
            raise GoneError(f"{store.path}/model.json is not there: restore it.")
        kinds: tuple[IdKind, IdKind] = (meta["kinds"][0], meta["kinds"][1])
        settings = Settings.from_json(meta["settings"])
        self._shapes = {s: RowShape.of(k, settings) for s, k in zip(SIDES, kinds, strict=True)}
        self.state = ModelState.empty(settings, *kinds)
        self.state.set_scalars(commit.scalars)
        runs, base = commit.runs, commit.base
        if runs is None:
            logger.info("sorting version %d of %s by id", commit.version, store.path)
            runs, base = convert(store, commit, settings, kinds), commit.version
        self._files = runs
        self._runs = {s: [Run(store, self._shapes[s], e) for e in runs[s]] for s in SIDES}
        self._base = commit if base == commit.version else store.parts(commit)[0]
        # rows written since the base, and since the version that is being compacted
        self._written = commit.delta_rows if base < commit.version else 0
        self._written_since = 0
        # for each row in memory: the last version that changed it, -1 for none since the base,
        # and the last one that asked for it
        self._changed = {side: np.empty(0, np.int64) for side in SIDES}
        self._used = {side: np.empty(0, np.int64) for side in SIDES}
        self._pinned: dict[str, pa.Array] = {}
        self._compaction: Compaction | None = None
        # `stop` comes from another thread than the batches
        self._guard = threading.Lock()
        self._turn = threading.RLock()
        self._stopped = False
        self._ids = list(commit.ids)
        self.state.partial = sum(self._ids) > 0
        self.state.known_ids = self._ids[0], self._ids[1]
        if base < commit.version:
            for part in store.parts(commit)[1:]:
                for side in SIDES:
                    store.put_rows(part.files[side], self._table(side))
                    rows = store.read_checked(part.files[side])
                    self._mark(side, rows.column("id").combine_chunks(), part.version)

    @property
    def resident(self) -> int:
        """Users and items in memory."""
        return self.state.users.size + self.state.items.size

    @property
    def limit(self) -> int:
        """Users and items that are in memory at most."""
        return self._limit

    @property
    def store(self) -> VersionStore:
        """Its model path."""
        return self._store

    def shape(self, side: str) -> RowShape:
        """Return the shape of the rows of a side, "users" or "items"."""
        return self._shapes[side]

    def runs(self, side: str) -> list[Run]:
        """Return the runs of a side, oldest first."""
        return self._runs[side]

    def changed(self, side: str) -> I64:
        """Rows in memory that differ from the runs, or are not in them."""
        return np.flatnonzero(self._changed[side] >= 0)

    def rows_of(self, user_ids: pa.Array, item_ids: pa.Array) -> ModelState:
        """Return a model of its own that knows of these distinct ids alone, as far as they are.

        Threads may call it at once.
        """
        with self._turn:
            self.fetch(user_ids, item_ids)
            found = []
            for side, ids in zip(SIDES, (user_ids, item_ids), strict=True):
                rows = self._table(side).index.find(ids)
                found.append(rows[rows >= 0])
            state = self._only(*found)
            self.trim()
        return state

    def all_of(self, side: str) -> FactorTable:
        """Return all rows of a side, in memory."""
        with self._turn:
            held = self._table(side)
            rows = self.changed(side)
            ids, arrays = held.index.ids(rows), held.take(rows).arrays
        table = FactorTable(held.side, held.index.kind, held.settings)
        for run in self._runs[side]:
            for packed in run.parts():
                unpack_rows(packed, table)
        table.put(ids, arrays)
        return table

    def whole(self) -> ModelState:
        """Return the model with all its rows in memory."""
        users, items = self.all_of("users"), self.all_of("items")
        return replace(self.state, partial=False, known_ids=(0, 0), users=users, items=items)

    def fingerprint(self) -> str:
        """Return what tells the model from others, without a look at all of its rows."""
        users, items = (np.flatnonzero(self._changed[side] == _HERE) for side in SIDES)
        if not users.size and not items.size:
            return self.commit.digest
        return f"{self.commit.digest} {self._only(users, items).fingerprint()}"

    def learned(self, rows: tuple[I64, I64], new: tuple[int, int]) -> None:
        """Note rows that were learned here, for no version, and how many of these ids are new."""
        for side, some in zip(SIDES, rows, strict=True):
            self._seen(side)
            self._changed[side][some] = self._used[side][some] = _HERE
        self._ids = [known + more for known, more in zip(self._ids, new, strict=True)]
        self.state.known_ids = self._ids[0], self._ids[1]

    def add(
        self, ids: tuple[pa.Array, pa.Array], start: Callable[[ModelState], None]
    ) -> tuple[I64, I64]:
        """Add rows that no batch has brought, for no version; return which they are.

        Parameters
        ----------
        ids : tuple[pa.Array, pa.Array]
            distinct users and items
        start : Callable[[ModelState], None]
            adds those of them that are not known behind those that are, in place
        """
        with self._turn:
            self.fetch(*ids)
            before = [self._table(side).size for side in SIDES]
            start(self.state)
            users, items = (
                np.arange(size, self._table(side).size)
                for side, size in zip(SIDES, before, strict=True)
            )
            self.learned((users, items), (users.size, items.size))
        return users, items

    def trim(self) -> None:
        """Drop rows that the runs have, where there are too many."""
        for side in SIDES:
            self._seen(side)
        if self.resident > self._limit:
            self._drop()

    def fork(self) -> Overlay:
        """Return an independent copy, for readers: it has the same files open."""
        with self._turn:
            twin = copy.copy(self)
            twin.state = self.state.copy()
            twin._changed = {side: array.copy() for side, array in self._changed.items()}
            twin._used = {side: array.copy() for side, array in self._used.items()}
            twin._ids = list(self._ids)
            twin._guard, twin._turn = threading.Lock(), threading.RLock()
        return twin

    def __reduce__(self) -> Any:
        """Return how pickle makes it again: the files are opened where it arrives."""
        rows = {side: self.changed(side) for side in SIDES}
        kept = {
            side: (self._table(side).index.ids(some), self._table(side).take(some).arrays)
            for side, some in rows.items()
        }
        told = (self._store.path, self.commit, self._limit, kept, self._ids, self.state.scalars())
        return _reopened, told

    def fetch(self, user_ids: pa.Array, item_ids: pa.Array) -> None:
        """Read the rows of distinct ids that are not in memory; unknown ones are left out."""
        for side, ids in zip(SIDES, (user_ids, item_ids), strict=True):
            table = self._table(side)
            missing = ids.take(pa.array(np.flatnonzero(table.index.find(ids) < 0)))
            for run in reversed(self._runs[side]):
                if not len(missing):
                    break
                found, rows = run.find(missing)
                if found.size:
                    unpack_rows(rows, table)
                    rest = np.ones(len(missing), bool)
                    rest[found] = False
                    missing = missing.filter(pa.array(rest))
            self._seen(side)

    def pin(self, user_ids: pa.Array, item_ids: pa.Array) -> None:
        """Read the rows of distinct ids and keep them, and ids of these that come later."""
        self.fetch(user_ids, item_ids)
        self._pinned = dict(zip(SIDES, (user_ids, item_ids), strict=True))

    def onto(self, new_users: int, new_items: int) -> Base:
        """Return the runs that the next version, with so many new ids, adds its rows to."""
        return Base(
            self._base.version,
            self._written,
            self._files,
            [self._ids[0] + new_users, self._ids[1] + new_items],
        )

    def committed(self, commit: Commit, rows: tuple[I64, I64]) -> None:
        """Note that a batch that changed `rows` is committed; drop rows, or compact, when due.

        Nothing is done after `stop`.
        """
        if self._stopped:
            return
        self._ids = list(commit.ids)
        self.state.partial = sum(self._ids) > 0
        self.state.known_ids = self._ids[0], self._ids[1]
        written = sum(some.size for some in rows)
        self._written += written
        self._written_since += written
        for side, some in zip(SIDES, rows, strict=True):
            self._seen(side)
            self._used[side][some] = commit.version
            self._changed[side][some] = commit.version
        if self._compaction is not None and self._compaction.done():
            self._take_over()
        changed = sum(int((self._changed[side] >= 0).sum()) for side in SIDES)
        late = commit.version - self._base.version > MAX_DELTAS
        if self._compaction is None and (_FULL * changed > self._limit or late):
            self._compact(commit)
        while self._compaction is not None and changed > self._limit:
            # ratings come faster than the disk takes them
            self._take_over()
            changed = sum(int((self._changed[side] >= 0).sum()) for side in SIDES)
            if changed > self._limit:
                self._compact(commit)
        if self.resident > self._limit:
            self._drop()

    def stop(self) -> None:
        """Break a compaction off, and start none any more; what it wrote does not count."""
        with self._guard:
            self._stopped = True
            running = self._compaction
        if running is not None:
            running.stop()

    def _compact(self, commit: Commit) -> None:
        touched = {}
        for side in SIDES:
            rows = np.flatnonzero(self._changed[side] >= 0)
            touched[side] = pack_rows(self._table(side), rows)
        held = {side: list(self._runs[side]) for side in SIDES}
        self._written_since = 0
        # the next commit names the base of now; the one that this one names may be pruned then
        commit = replace(commit, base=self._base.version, runs=self._files)
        with self._guard:
            if not self._stopped:
                self._compaction = Compaction(
                    commit, lambda check: compact(self._store, commit, held, touched, check)
                )

    def _take_over(self) -> None:
        """Let what a compaction wrote be the base; commits name it from now on."""
        assert self._compaction is not None
        done, self._compaction = self._compaction, None
        self._files = done.result()
        self._base = done.commit
        self._written = self._written_since
        for side in SIDES:
            known = {run.entry["rows"]["name"]: run for run in self._runs[side]}
            self._runs[side] = [
                known.pop(name) if (name := entry["rows"]["name"]) in known
                else Run(self._store, self._shapes[side], entry)
                for entry in self._files[side]
            ]  # fmt: skip
            for run in known.values():
                run.close()
            self._changed[side][self._changed[side] <= done.commit.version] = -1

    def _drop(self) -> None:
        """Drop rows that the runs have, those that were asked for longest ago."""
        free = {side: self._changed[side] < 0 for side in SIDES}
        for side, ids in self._pinned.items():
            rows = self._table(side).index.find(ids)
            free[side][rows[rows >= 0]] = False
        used = np.concatenate([self._used[side][free[side]] for side in SIDES])
        many = self.resident - int(_KEPT * self._limit)
        if used.size and many > 0:
            # all of an age go together
            last = np.partition(used, min(many, used.size) - 1)[min(many, used.size) - 1]
            for side in SIDES:
                gone = free[side] & (self._used[side] <= last)
                if gone.any():
                    self._keep(side, np.flatnonzero(~gone))

    def _keep(self, side: str, rows: I64) -> None:
        old = self._table(side)
        new = FactorTable(old.side, old.index.kind, old.settings)
        new.put(old.index.ids(rows), old.take(rows).arrays)
        setattr(self.state, side, new)
        self._changed[side] = self._changed[side][rows]
        self._used[side] = self._used[side][rows]

    def _mark(self, side: str, ids: pa.Array, version: int) -> None:
        self._seen(side)
        rows = self._table(side).index.find(ids)
        self._used[side][rows] = version
        self._changed[side][rows] = version

    def _only(self, *rows: I64) -> ModelState:
        """Return a state of its own with these rows of users and of items."""
        sides = []
        for side, some in zip(SIDES, rows, strict=True):
            held = self._table(side)
            table = FactorTable(held.side, held.index.kind, held.settings)
            table.put(held.index.ids(some), held.take(some).arrays)
            sides.append(table)
        return replace(self.state, users=sides[0], items=sides[1])

    def _seen(self, side: str) -> None:
        """Have a place for each row in memory."""
        size = self._table(side).size
        self._used[side] = _grown(self._used[side], size)
        self._changed[side] = _grown(self._changed[side], size)

    def _table(self, side: str) -> Any:
        return self.state.users if side == "users" else self.state.items


def _reopened(
    path: str, commit: Commit, limit: int, kept: dict[str, Any], ids: list[int],
    scalars: dict[str, Any],
) -> Overlay:  # fmt: skip
    opened = Overlay(VersionStore(path), commit, limit)
    for side, (some, arrays) in kept.items():
        opened._table(side).put(some, arrays)
        opened._mark(side, some, _HERE)
    opened._ids = list(ids)
    opened.state.known_ids = ids[0], ids[1]
    opened.state.set_scalars(scalars)
    return opened


def _grown(array: I64, size: int) -> I64:
    """Return an array of that size, its new places -1."""
    if array.size == size:
        return array
    return np.append(array[:size], np.full(max(size - array.size, 0), -1))
