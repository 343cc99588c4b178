"""What learns under a model path, in memory between batches (driver or its like; no Spark).

An updater is pickled for the process that runs foreachBatch, and finds there by its path what it
goes on with: a model, a part of one, or a race. One process holds one resident a path, and lets
one batch of it be learned at a time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar, cast

from sparkml_sgdals.store.checkpoint.kept_state import KeptState
from sparkml_sgdals.store.commit import Commit
from sparkml_sgdals.store.version_store import VersionStore

if TYPE_CHECKING:
    from sparkml_sgdals.ingest.plain_batches import PlainBatches

__all__ = ["Resident", "forget_resident", "learn_once"]

logger = logging.getLogger(__name__)


@dataclass
class Resident:
    """What a stream holds in memory between batches; its kinds say what that is.

    Attributes
    ----------
    commit : Commit
        the version that it is at
    token : str
        of the lease that its stream writes by
    largest, partitions, rows, tasks : int
        rows of the largest partition of the last batch, its partitions, its rows, and how many
        tasks of a job cores can use
    plain : PlainBatches | None
        how batches are collected as they are, where they can be
    kept : KeptState
        tells what Spark keeps from batch to batch in its checkpoint
    """

    commit: Commit
    token: str
    largest: int = field(default=0, kw_only=True)
    partitions: int = field(default=0, kw_only=True)
    tasks: int = field(default=0, kw_only=True)
    rows: int = field(default=0, kw_only=True)
    plain: PlainBatches | None = field(default=None, kw_only=True)
    kept: KeptState = field(default_factory=KeptState, kw_only=True)

    def stop(self) -> None:
        """Break off what goes on in the background, and wait for that; again and again."""


R = TypeVar("R", bound=Resident)


@dataclass
class _Place:
    """A path, for as long as a call learns there, or waits to, or something is in memory."""

    turn: threading.Lock = field(default_factory=threading.Lock)
    calls: int = 0
    resident: Resident | None = None
    ended: set[str] = field(default_factory=set)
    """tokens of streams that ended while there were calls"""


_places: dict[str, _Place] = {}
_guard = threading.Lock()


def learn_once(
    path: str,
    token: str,
    batch_id: int,
    open_resident: Callable[[], R],
    learn: Callable[[R], None],
    run_again: Callable[[R], None] = lambda resident: None,
) -> None:
    """Learn and commit a batch by what is in memory, unless it is committed already.

    Parameters
    ----------
    path : str
        the model path
    token : str
        of the lease of the stream, which has one kind of residents
    batch_id : int
        the number of the batch
    open_resident : Callable[[], R]
        makes a resident of the newest version, where none is in memory
    learn : Callable[[R], None]
        learns the batch and commits it; where it raises, the resident is dropped
    run_again : Callable[[R], None]
        does what there is to do with a batch that is committed already
    """
    with _guard:
        place = _places.setdefault(path, _Place())
        place.calls += 1
    try:
        # a stopped query may leave its last call running while the next query starts
        with place.turn:
            resident = cast("R | None", _at_newest(place, path, token))
            if resident is None:
                # two need not be in memory at once
                forget_resident(path)
                resident = open_resident()
                with _guard:
                    if token not in place.ended:
                        place.resident = resident
            if batch_id <= resident.commit.batch:
                logger.info("batch %d of %s is committed already", batch_id, path)
                run_again(resident)
                return
            try:
                learn(resident)
            except BaseException:
                # what is in memory may be half learned; the files are not
                forget_resident(path)
                raise
    finally:
        with _guard:
            place.calls -= 1
            _leave(path, place)


def forget_resident(path: str, token: str | None = None) -> None:
    """Drop what is in memory of a path, if it is there; a call that learns goes on by itself.

    Nothing is written in the background any more after that.

    Parameters
    ----------
    path : str
        the model path
    token : str | None
        of the lease of a stream that has ended: nothing but its own is dropped, as the next one may
        have begun; None for whatever is there
    """
    with _guard:
        place = _places.get(path)
        if place is None:
            return
        if token is not None:
            # what its last call may be opening is not to stay
            place.ended.add(token)
        resident = place.resident
        if resident is not None and token not in (None, resident.token):
            resident = None
    if resident is not None:
        # before it is dropped: another who looks for it must not find it gone and still writing
        resident.stop()
    with _guard:
        if resident is not None and place.resident is resident:
            place.resident = None
        _leave(path, place)


def _at_newest(place: _Place, path: str, token: str) -> Resident | None:
    resident = place.resident
    if resident is None or resident.token != token:
        return None
    return resident if resident.commit == VersionStore(path).newest() else None


def _leave(path: str, place: _Place) -> None:
    """Drop a path that nobody uses; under the guard, by which calls come in."""
    if not place.calls:
        place.ended.clear()
        if place.resident is None and _places.get(path) is place:
            del _places[path]
