"""Learn one micro-batch and commit the version that follows, exactly once (driver or its like).

`StreamUpdater` is what foreachBatch calls. It is made of strings and numbers only, finds the model
by its path and keeps it resident in the process that runs it: the driver, or under Spark Connect
a Python process beside the server. Of a model with more ids than `maxResidentIds` it keeps a part:
see `overlay`.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
from pyspark.sql import DataFrame

from sparkml_sgdals.arrays.ratings import Ratings, encode_ratings
from sparkml_sgdals.arrays.screening import ZERO_WEIGHT, Problems
from sparkml_sgdals.fit.fitting import learn_table
from sparkml_sgdals.fit.plan import FitOptions
from sparkml_sgdals.ingest.collecting import Collected, collect_ratings, invalid_rows
from sparkml_sgdals.ingest.problems import refuse_invalid
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.learn.prequential import BatchSums
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.store.commit import Commit
from sparkml_sgdals.store.lease import check_holder
from sparkml_sgdals.store.overlay import Overlay
from sparkml_sgdals.store.version_store import VersionStore
from sparkml_sgdals.stream.report import Report

__all__ = ["Learned", "StreamUpdater", "forget_resident", "learn_collected"]

logger = logging.getLogger(__name__)

_READERS_SECONDS: Final = 60.0
"""How long a version stays, once it is not the newest any more, for those who are reading it."""


@dataclass
class _Resident:
    """A model in memory between batches, or a part of it and an overlay that reads the rest."""

    state: ModelState
    commit: Commit
    token: str
    validation: Ratings | None
    overlay: Overlay | None = None
    largest: int = 0
    """rows of the largest partition of the last batch"""
    partitions: int = 0
    """partitions of the last batch"""

    def stop(self) -> None:
        """Break off what goes on in the background."""
        if self.overlay is not None:
            self.overlay.stop()


_residents: dict[str, _Resident] = {}
_locks: dict[str, threading.Lock] = {}
_locks_guard = threading.Lock()


@dataclass(frozen=True)
class StreamUpdater:
    """Learns a micro-batch and commits the version that follows: the function of foreachBatch."""

    path: str
    token: str
    options: FitOptions
    keep_versions: int
    keep_seconds: float
    report: Report = field(default_factory=Report)

    def __call__(self, batch: DataFrame, batch_id: int) -> None:
        with _locks_guard:
            lock = _locks.setdefault(self.path, threading.Lock())
        # a stopped query may leave its last call running while the next query starts
        with lock:
            resident = self._resident()
            if batch_id <= resident.commit.batch:
                logger.info("batch %d of %s is committed already", batch_id, self.path)
                return
            try:
                self._learn(resident, batch, batch_id)
            except BaseException:
                # what is in memory may be half learned; the files are not
                forget_resident(self.path)
                raise

    def _resident(self) -> _Resident:
        store = VersionStore(self.path)
        newest = store.newest()
        resident = _residents.get(self.path)
        if resident is None or resident.commit != newest or resident.token != self.token:
            forget_resident(self.path)
            resident = self._open(store, newest)
            with _locks_guard:
                _residents[self.path] = resident
        return resident

    def _open(self, store: VersionStore, newest: Commit | None) -> _Resident:
        table = store.read_table("validation.parquet")
        validation = None if table is None else encode_ratings(table)
        limit = self.options.max_resident_ids
        if newest is None or not self._too_large(store, newest):
            state, commit = store.load()
            return _Resident(state, commit, self.token, validation)
        overlay = Overlay(store, newest, limit)
        if validation is not None:
            overlay.pin(validation.user_ids, validation.item_ids)
        return _Resident(overlay.state, newest, self.token, validation, overlay)

    def _too_large(self, store: VersionStore, commit: Commit) -> bool:
        """Whether a version is kept in part; not while its scale settles and all rows change."""
        limit = self.options.max_resident_ids
        settled = bool(commit.scalars["scale"]["frozen"])
        return bool(limit and settled and store.count_ids(commit) > limit)

    def _learn(self, resident: _Resident, batch: DataFrame, batch_id: int) -> None:
        clock = time.perf_counter()
        store = VersionStore(self.path)
        options = self.options
        keep = options.handle_invalid == "keep"
        collected = collect_ratings(
            batch, options.columns, options.kinds, keep, resident.largest, resident.partitions
        )
        collect_seconds = time.perf_counter() - clock
        if collected is None:
            learned = self._learn_large(resident, batch)
        else:
            resident.largest = collected.largest
            resident.partitions = collected.partitions
            if options.handle_invalid == "error":
                refuse_invalid(collected.problems, options.columns)
            overlay = resident.overlay
            learned = learn_collected(
                resident.state, collected, _nothing if overlay is None else overlay.fetch
            )
        learn_seconds = time.perf_counter() - clock - collect_seconds
        validation = self._validate(resident)
        if learned.invalid:
            rows = pa.table({"row": pa.array(learned.invalid, pa.string())})
            store.replace_table(f"invalid/batch-{batch_id:012d}.parquet", rows)
        metrics: dict[str, Any] = {
            "batch": batch_id,
            "version": resident.commit.version + 1,
            "committed": pd.Timestamp.now("UTC").isoformat(timespec="milliseconds"),
            "ratings": learned.ratings,
            "invalid": learned.bad_rows,
            "zeroWeight": learned.problems.get(ZERO_WEIGHT, 0),
            "newUsers": learned.new_users,
            "newItems": learned.new_items,
            "users": learned.users,
            "items": learned.items,
            **learned.sums.metrics(),
            "validationRmse": _json_number(validation),
            "collectSeconds": collect_seconds,
            "learnSeconds": learn_seconds,
            "seconds": time.perf_counter() - clock,
        }
        self.report.before_commit(store, metrics)
        resident.commit = store.commit(
            resident.state,
            learned.rows,
            batch_id,
            resident.commit,
            metrics,
            check=lambda: check_holder(store, self.token),
            onto=None
            if resident.overlay is None
            else resident.overlay.onto(learned.new_users, learned.new_items),
        )
        if resident.overlay is not None:
            assert learned.rows is not None
            resident.overlay.committed(resident.commit, learned.rows)
        elif self._too_large(store, resident.commit):
            # the next batch opens it again, in part
            forget_resident(self.path)
        store.prune(self.keep_versions, max(self.keep_seconds, _READERS_SECONDS))
        self.report.after_commit(metrics, resident.state.counters.ratings)

    def _learn_large(self, resident: _Resident, batch: DataFrame) -> Learned:
        """A batch too large to collect goes the way of fit, with the model as its prior."""
        if resident.overlay is not None:
            # a table is learned from the whole model
            resident.stop()
            resident.overlay = None
            resident.state, _ = VersionStore(self.path).load()
        before = resident.state
        prior = None if before.blank else before
        state, _, packed = learn_table(
            batch, before.settings, self.options, prior, allow_empty=True
        )
        resident.state = state
        options = self.options
        keep = options.handle_invalid == "keep"
        bad = packed.bad_rows
        now, old = state.counters, before.counters
        judged = now.prequential_ratings - old.prequential_ratings
        squares = now.prequential_squares - old.prequential_squares
        baseline = now.baseline_squares - old.baseline_squares
        return Learned(
            ratings=now.ratings - old.ratings,
            bad_rows=bad,
            problems=packed.problems,
            invalid=invalid_rows(batch, options.columns, options.kinds, keep) if bad else [],
            new_users=state.users.size - before.users.size,
            new_items=state.items.size - before.items.size,
            # the distinct ids of a batch of this size are not counted, nor its errors kept
            users=None,
            items=None,
            sums=BatchSums(judged, squares, math.nan, baseline, math.nan),
            rows=None,
        )

    def _validate(self, resident: _Resident) -> float:
        encoded = resident.validation
        if encoded is None or not len(encoded):
            return math.nan
        state = resident.state
        users = state.users.index.find(encoded.user_ids)[encoded.users]
        items = state.items.index.find(encoded.item_ids)[encoded.items]
        predictions = state.clip(state.predict(users, items)[0])
        return float(np.sqrt(np.mean((encoded.values.astype(np.float64) - predictions) ** 2)))


@dataclass(frozen=True)
class Learned:
    """What a batch did; `rows` are those of users and items that changed, None for all.

    `users` and `items` are how many distinct ones it named, None where not counted.
    """

    ratings: int
    bad_rows: int
    problems: Problems
    invalid: list[str]
    new_users: int
    new_items: int
    users: int | None
    items: int | None
    sums: BatchSums
    rows: tuple[Any, Any] | None


def _nothing(user_ids: pa.Array, item_ids: pa.Array) -> None:
    """All rows are in memory."""


def learn_collected(
    state: ModelState,
    collected: Collected,
    fetch: Callable[[pa.Array, pa.Array], None] = _nothing,
) -> Learned:
    """Learn a collected batch onto `state`, in place.

    Parameters
    ----------
    fetch : called before, with the distinct ids of the users and items, to bring their rows
    """
    ratings = encode_ratings(collected.table)
    fetch(ratings.user_ids, ratings.item_ids)
    report = learn_batch(state, ratings)
    return Learned(
        ratings=report.ratings,
        bad_rows=collected.bad_rows,
        problems=collected.problems,
        invalid=collected.invalid,
        new_users=report.new_users,
        new_items=report.new_items,
        users=len(ratings.user_ids),
        items=len(ratings.item_ids),
        sums=report.sums,
        rows=(report.user_rows, report.item_rows),
    )


def forget_resident(path: str, token: str | None = None) -> None:
    """Drop the model of a path from this process's memory, if it is there.

    Nothing is written in the background any more after that. With `token`, only the one of the
    stream that has that lease: the next one may have begun.
    """
    with _locks_guard:
        resident = _residents.get(path)
        if resident is not None and token in (None, resident.token):
            del _residents[path]
        else:
            resident = None
    if resident is not None:
        resident.stop()


def _json_number(value: float) -> float | None:
    return value if math.isfinite(value) else None
