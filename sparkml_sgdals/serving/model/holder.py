"""The version that is served: opened, followed as new ones are committed, swapped whole.

Two copies of the factors are kept. Requests read one; what a new version changed is written to the
other, then they change places in one assignment, and the first is brought up when its last reader
has left. So a request sees one version throughout, and none waits for another's learning.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparkml_sgdals.arrays.hashing import ITEM_SIDE, USER_SIDE
from sparkml_sgdals.arrays.id_index import IdIndex
from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.serving.model.changed_items import Changes
from sparkml_sgdals.serving.model.event_side import EventSide, ItemKeys
from sparkml_sgdals.serving.model.ids import Key, find_rows
from sparkml_sgdals.serving.model.mapped import Candidates, MappedSide
from sparkml_sgdals.serving.model.newcomers import Given, KnownFeatures, Newcomers
from sparkml_sgdals.serving.model.served_model import ServedModel
from sparkml_sgdals.state.event_memory import UserMemory
from sparkml_sgdals.state.event_scores import Anchors, table_biases
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.model_state import ModelState, Scale
from sparkml_sgdals.state.settings import Settings
from sparkml_sgdals.store.commit import Commit
from sparkml_sgdals.store.packed_rows import RowShape, unpack_rows
from sparkml_sgdals.store.sorted_runs import Run
from sparkml_sgdals.store.version_store import StorageError, VersionStore

__all__ = ["ModelHolder", "NoModelError"]

logger = logging.getLogger(__name__)

I64 = npt.NDArray[np.int64]

_HISTORY: Final = 20_000
"""batches whose metrics are kept"""
_PIECE: Final = 250_000
"""rows that are in memory twice while a version is loaded"""
_PATIENCE: Final = 30.0
"""Seconds that a new version waits for the readers of the last but one."""


class NoModelError(RuntimeError):
    """There is no version to serve yet."""


@dataclass
class _Copy:
    """One of the two copies of the factors."""

    users: MappedSide
    items: MappedSide
    candidates: Candidates
    events: EventSide | None = None
    readers: int = 0

    def settle(self, shell: ModelState, item_keys: ItemKeys | None) -> Anchors | None:
        """Bring up what a version changes in all rows: popularity, which fades.

        Returns what filter and table of a user are weighed by, where a table was fitted.
        """
        if self.events is None or item_keys is None:
            return None
        items, size = self.items, self.items.size
        popularity = self.events.popularity(shell, items.count)
        biases = items.mean[:, 0] + popularity[0]
        shell.scale = Scale(mean=popularity[1], frozen=True)
        if not shell.settings.fits_events:
            self.candidates.set_biases(biases)
            return None
        self.candidates.set_biases(biases, table_biases(shell, biases, items.taste[:, 0]))
        return Anchors(shell, items, biases, popularity, lambda: item_keys.order(size))


@dataclass(frozen=True)
class _Ids:
    """What stays from one whole load to the next: ids by row."""

    indexes: tuple[IdIndex, IdIndex]
    item_keys: ItemKeys | None
    changes: Changes = field(default_factory=Changes)
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class _Change:
    """Rows that a version wrote, of users and of items, with the sizes after it."""

    rows: tuple[I64, I64]
    parts: tuple[FactorTable, FactorTable]
    sizes: tuple[int, int]
    done: list[npt.NDArray[np.int32]]
    last: I64

    def write(self, to: _Copy) -> None:
        to.users.put(self.rows[0], self.parts[0], self.sizes[0])
        to.items.put(self.rows[1], self.parts[1], self.sizes[1])
        to.candidates.put(self.rows[1], self.parts[1], self.sizes[1])
        if to.events is not None:
            to.events.put(
                self.rows[0], self.done, self.last, self.rows[1], self.parts[1], self.sizes
            )


class ModelHolder:
    """Follows a model path and lends out its newest version.

    Parameters
    ----------
    path : str
        a model path, local or a URI
    folder : str
        where the factors are mapped from; private to this process
    poll_seconds : float
        how often to look for a new version
    on_version : Callable[[Commit], None]
        called after each swap, in the thread that polls
    """

    def __init__(
        self,
        path: str,
        folder: str,
        poll_seconds: float = 0.25,
        on_version: Callable[[Commit], None] = lambda commit: None,
    ) -> None:
        self.store = VersionStore(path)
        self.poll_seconds = poll_seconds
        self.on_version = on_version
        self.swaps = 0
        self.load_seconds = 0.0
        self.failure: str | None = None
        self.gone = False
        """whether the model path holds no version any more"""
        self.keeps_changes = False
        """whether versions note the items that they change, for an index of an earlier one"""
        self._folder = folder
        self._newcomers = Newcomers()
        # versions and newcomers are written to the copies one after another
        self._writing = threading.RLock()
        self._changed = threading.Condition()
        self._model: ServedModel | None = None
        self._copies: tuple[_Copy, _Copy] | None = None
        self._shown = 0
        self._ids: _Ids | None = None
        self._apart = False
        self._meta: dict[str, Any] = {}
        self._metrics: list[dict[str, Any]] = []
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    # ---- for requests -----------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[ServedModel]:
        """Yield the newest version, which does not change until the block ends.

        Raises NoModelError where there is none yet.
        """
        with self._changed:
            model = self._model
            if model is None or self._copies is None:
                raise NoModelError(self.failure or f"There is no model at {self.store.path} yet.")
            copy = self._copies[self._shown]
            copy.readers += 1
        try:
            yield model
        finally:
            with self._changed:
                copy.readers -= 1
                if not copy.readers:
                    self._changed.notify_all()

    @property
    def num_items(self) -> int:
        """Items of the version that is served."""
        model = self._model
        return 0 if model is None else model.items.size

    @property
    def commit(self) -> Commit | None:
        """The version that is served, None where there is none."""
        model = self._model
        return None if model is None else model.commit

    @property
    def params(self) -> dict[str, Any]:
        """Params that the model path was made with."""
        return dict(self._meta.get("params", {}))

    def metrics(self) -> list[dict[str, Any]]:
        """Metrics of the batches up to the served version, as in `StreamJob.metrics`."""
        return self._metrics[-_HISTORY:]

    @property
    def nbytes(self) -> int:
        """Bytes of the mapped arrays."""
        copies = self._copies or ()
        sides = [side for c in copies for side in (c.users, c.items, c.candidates, c.events)]
        return sum(side.nbytes for side in sides if side is not None)

    # ---- following --------------------------------------------------------------------------

    def start(self) -> None:
        """Take up what there is, then follow it in a thread."""
        self._look()
        self._thread = threading.Thread(target=self._follow, name="versions", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Follow no more; the version in hand stays."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(5.0)

    def close(self) -> None:
        """Follow no more, and let the arrays go with the files that they are mapped from.

        Who serves keeps a holder for longer than it serves: FastAPI remembers functions.
        """
        self.stop()
        with self._changed:
            self._model = self._copies = None

    def _follow(self) -> None:
        while not self._ended.wait(self.poll_seconds):
            self._look()

    def _look(self) -> None:
        try:
            self.poll()
            self.failure = None
        except Exception as failure:
            # whatever is wrong over there, what is in hand is whole and goes on being served
            if str(failure) != self.failure:
                logger.warning("cannot take up a new version: %s", failure)
            self.failure = str(failure)

    def join(self, side: int, given: Mapping[Key, Given]) -> None:
        """Let users (side 0) or items (1) count as known by their features.

        Until a version holds them; those that are known stay as they are. Raises NoModelError
        where there is no version.
        """
        with self._writing:
            model, ids, commit = self._model, self._ids, self.commit
            if model is None or ids is None or commit is None:
                raise NoModelError(f"There is no model at {self.store.path} yet.")
            keys = list(given)
            with ids.lock:
                there = find_rows(ids.indexes[side], keys, ids.indexes[side].size) >= 0
            new = {key: given[key] for key, known in zip(keys, there, strict=True) if not known}
            if not new:
                return
            self._newcomers.add(side, new)
            copies, shown = self._copies, self._shown
            assert copies is not None
            change = self._joined(model.shell, model.settings, ids)
            if self._apart or not self._left(copies[1 - shown]):
                self._load(commit)
                return
            change.write(copies[1 - shown])
            self._show(commit, copies[1 - shown], ids, 1 - shown)
            self._apart = True
            if self._left(copies[shown]):
                change.write(copies[shown])
                self._apart = False

    def unknown_of(self, side: int, about: KnownFeatures) -> dict[Key, Given]:
        """Return what is known of users (side 0) or items (1) that the version does not know."""
        with self._writing:
            return {} if self._ids is None else about.beyond(self._ids.indexes[side])

    def _joined(self, shell: ModelState, settings: Settings, ids: _Ids) -> _Change:
        """Return the newcomers as rows."""
        tables = _empty(settings, (ids.indexes[0].kind, ids.indexes[1].kind))
        for side, table in enumerate(tables):
            self._newcomers.start(side, table, shell.features[side])
        return self._change(ids, *tables)

    def poll(self) -> bool:
        """Take up the newest version where it is not the one in hand; whether it was not.

        Raises StorageError where it cannot be read; the version in hand is then served on.
        """
        with self._writing:
            return self._poll()

    def _poll(self) -> bool:
        newest = self.store.newest()
        held = self.commit
        gone = newest is None and held is not None
        if gone and not self.gone:
            logger.warning("%s holds no version any more: restore it", self.store.path)
        self.gone = gone
        if newest is None or newest == held:
            return False
        clock = time.perf_counter()
        parts = None if held is None else self._since(held, newest)
        if parts is None or not self._apply(newest, parts):
            self._load(newest)
        self.load_seconds = time.perf_counter() - clock
        self.swaps += 1
        self.on_version(newest)
        return True

    def _since(self, held: Commit, newest: Commit) -> list[Commit] | None:
        """Return the commits that lead from one version to another, None where they do not."""
        if self._apart or newest.version <= held.version or self.store.meta() != self._meta:
            return None
        again = self.store.read_commit(held.version)
        if again != held and (again is not None or newest.base <= held.version):
            # written anew, as when users are forgotten
            return None
        # what sorted runs hold, the commits since have written row by row as well
        first = held.version + 1
        if newest.runs is None:
            first = max(first, newest.base)
        parts = [self.store.read_commit(n) for n in range(first, newest.version)]
        whole = [part for part in parts if part is not None and part.restored is None]
        if len(whole) < len(parts) or newest.restored is not None:
            return None
        settings = held.settings(self._meta)
        if any(part.settings(self._meta) != settings for part in [*whole, newest]):
            # another leader of a race
            return None
        return [*whole, newest]

    def _apply(self, newest: Commit, parts: list[Commit]) -> bool:
        """Write what the commits changed, and show it; False where a whole load is needed."""
        model, copies, ids = self._model, self._copies, self._ids
        assert model is not None
        assert copies is not None
        assert ids is not None
        try:
            tables = [self._tables(part, model.settings, model.kinds) for part in parts]
        except StorageError:
            # pruned meanwhile, or damaged: a whole load finds out
            return False
        changes = []
        for part, (users, items) in zip(parts, tables, strict=True):
            self._newcomers.settle(users, items)
            change = self._change(ids, users, items)
            changes.append(change)
            whole = part.base == part.version
            if whole and self._held(change) != (users.size, items.size):
                # a base without some ids that are known here
                return False
        if self._held(changes[-1]) != tuple(newest.ids):
            return False
        shown = self._shown
        spare = copies[1 - shown]
        if not self._left(spare):
            return False
        for change in changes:
            change.write(spare)
            if self.keeps_changes:
                ids.changes.add(newest.version, change.rows[1])
        self._show(newest, spare, ids, 1 - shown)
        self._metrics.extend(part.metrics for part in parts if part.metrics is not None)
        del self._metrics[: -2 * _HISTORY]
        # until the other copy has the changes too, the next version has to be loaded whole
        self._apart = True
        if self._left(copies[shown]):
            for change in changes:
                change.write(copies[shown])
            self._apart = False
        return True

    def _held(self, change: _Change) -> tuple[int, int]:
        """Users and items that a version holds, of those that are known once it is written."""
        users, items = self._newcomers.sizes
        return change.sizes[0] - users, change.sizes[1] - items

    def _load(self, newest: Commit) -> None:
        """Take up a whole version into new copies."""
        meta = self.store.meta()
        if meta is None:
            raise StorageError(f"{self.store.path}/model.json is not there: restore it.")
        if self._meta and meta["kinds"] != self._meta["kinds"]:
            raise StorageError(
                f"The model at {self.store.path} has ids of kinds {meta['kinds']} now, those "
                f"served are {self._meta['kinds']}: start the service again."
            )
        settings = newest.settings(meta).unranked()
        kinds: tuple[IdKind, IdKind] = (meta["kinds"][0], meta["kinds"][1])
        ids = _Ids(
            (IdIndex(kinds[0]), IdIndex(kinds[1])), ItemKeys() if settings.learns_events else None
        )
        copies = self._copy(settings), self._copy(settings)
        for part in self.store.parts(newest):
            for users, items in self._whole(part, settings, kinds):
                change = self._change(ids, users, items)
                for copy in copies:
                    change.write(copy)
        self._newcomers.settle_in(ids.indexes)
        if any(self._newcomers.sizes):
            shell = ModelState.empty(settings, *kinds)
            shell.set_scalars(newest.scalars)
            change = self._joined(shell, settings, ids)
            for copy in copies:
                change.write(copy)
        metrics = self.store.metrics(newest)
        self._meta, self._ids = meta, ids
        with self._changed:
            self._copies = copies
        self._show(newest, copies[0], ids, 0)
        self._apart = False
        self._metrics = metrics

    def _copy(self, settings: Settings) -> _Copy:
        return _Copy(
            MappedSide(self._folder, settings, learns=False),
            MappedSide(self._folder, settings, learns=True),
            Candidates(self._folder, settings),
            EventSide(self._folder, settings) if settings.learns_events else None,
        )

    def _tables(
        self, part: Commit, settings: Settings, kinds: tuple[IdKind, IdKind]
    ) -> tuple[FactorTable, FactorTable]:
        """Return the rows of users and of items that a commit wrote."""
        tables = _empty(settings, kinds)
        for name, table in zip(("users", "items"), tables, strict=True):
            if name in part.files:
                self.store.put_rows(part.files[name], table)
        return tables

    def _whole(
        self, part: Commit, settings: Settings, kinds: tuple[IdKind, IdKind]
    ) -> Iterator[tuple[FactorTable, FactorTable]]:
        """Yield what a part of a version holds, a piece at a time."""
        if part.runs is None:
            # of events, what users did names items, which have to be there first
            for place, name in ((1, "items"), (0, "users")):
                if name not in part.files:
                    continue
                for piece in self.store.read_pieces(part.files[name], _PIECE):
                    tables = _empty(settings, kinds)
                    tables[place].put_arrow(piece)
                    yield tables
            return
        for place, name in enumerate(("users", "items")):
            shape = RowShape.of(kinds[place], settings)
            for entry in part.runs[name]:
                run = Run(self.store, shape, entry)
                for rows in run.parts():
                    tables = _empty(settings, kinds)
                    unpack_rows(rows, tables[place])
                    yield tables
                run.close()

    def _change(self, ids: _Ids, *parts: FactorTable) -> _Change:
        found, item_keys = [], ids.item_keys
        for index, part in zip(ids.indexes, parts, strict=True):
            given = part.index.ids()
            with ids.lock:
                rows = index.find(given)
                missing = np.flatnonzero(rows < 0)
                if missing.size:
                    new = given.take(pa.array(missing))
                    rows[missing] = index.add(new)
                    if item_keys is not None and index is ids.indexes[1]:
                        item_keys.add(new)
                found.append((rows, part, index.size))
        (user_rows, users, num_users), (item_rows, items, num_items) = found
        done = [] if item_keys is None else item_keys.done(users)
        memory = users.memory
        last = memory.last if isinstance(memory, UserMemory) else np.empty(0, np.int64)
        sizes = num_users, num_items
        return _Change((user_rows, item_rows), (users, items), sizes, done, last)

    def _show(self, newest: Commit, copy: _Copy, ids: _Ids, shown: int) -> None:
        meta = self._meta
        kinds: tuple[IdKind, IdKind] = (meta["kinds"][0], meta["kinds"][1])
        shell = ModelState.empty(newest.settings(meta).unranked(), *kinds)
        shell.set_scalars(newest.scalars)
        anchors = copy.settle(shell, ids.item_keys)
        types = meta.get("idTypes", ["bigint", "bigint"])
        model = ServedModel(
            newest,
            shell,
            copy.users,
            copy.items,
            copy.candidates,
            ids.indexes,
            kinds,
            (types[0], types[1]),
            bool(meta.get("params", {}).get("clipPredictions", True)) and copy.events is None,
            ids.lock,
            ids.changes,
            copy.events,
            ids.item_keys,
            anchors,
            find_rows(ids.indexes[1], self._newcomers.keys(1), copy.items.size),
        )
        with self._changed:
            self._model, self._shown = model, shown

    def _left(self, copy: _Copy) -> bool:
        """Wait until nobody reads a copy; False where one stays too long."""
        with self._changed:
            return self._changed.wait_for(lambda: not copy.readers, _PATIENCE)


def _empty(settings: Settings, kinds: tuple[IdKind, IdKind]) -> tuple[FactorTable, FactorTable]:
    return FactorTable(USER_SIDE, kinds[0], settings), FactorTable(ITEM_SIDE, kinds[1], settings)
