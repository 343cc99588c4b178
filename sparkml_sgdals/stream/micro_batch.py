"""Learn one micro-batch and commit the version that follows, exactly once (driver or its like).

`StreamUpdater` is what foreachBatch calls. It is made of strings and numbers only, and finds the
model by its path in the process that runs it: the driver, or under Spark Connect a Python process
beside the server (`residents`). Of a model with more ids than `maxResidentIds` a part is there:
see `overlay`. What a race does alike stands in `BatchUpdater`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from pyspark.sql import DataFrame

from sparkml_sgdals.arrays.ratings import Ratings, encode_ratings
from sparkml_sgdals.arrays.screening import ZERO_WEIGHT, Problems, is_far
from sparkml_sgdals.fit.fitting import learn_table
from sparkml_sgdals.fit.plan import FitOptions
from sparkml_sgdals.ingest.bad_rows import (
    as_invalid,
    column_names,
    explain_problems,
    invalid_rows,
    refuse_invalid,
)
from sparkml_sgdals.ingest.collecting import (
    PLAIN_LIMIT,
    Collected,
    announced_in,
    collect_ratings,
    rated,
)
from sparkml_sgdals.ingest.features import features_of_table
from sparkml_sgdals.ingest.plain_batches import plain_batches
from sparkml_sgdals.learn.far_values import (
    DIVERGES,
    FAR_BEFORE,
    Prepared,
    learn_without_extremes,
    limits_for,
    prepare,
    take_back,
)
from sparkml_sgdals.learn.one_batch import BatchReport, learn_batch
from sparkml_sgdals.learn.prequential import BatchSums
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.store.checkpoint.agreement import reading, refuse_own_files
from sparkml_sgdals.store.commit import Base, Commit
from sparkml_sgdals.store.lease import check_holder
from sparkml_sgdals.store.overlay import Overlay
from sparkml_sgdals.store.version_store import VersionStore
from sparkml_sgdals.stream.announced import Announced, all_in_memory, start_announced
from sparkml_sgdals.stream.kept_state import run_again, versions_retained
from sparkml_sgdals.stream.report import Report
from sparkml_sgdals.stream.residents import Resident, forget_resident, learn_once

__all__ = [
    "BatchClock", "BatchUpdater", "LearnedBatch", "StreamUpdater", "batch_metrics",
    "learn_collected", "with_set_aside",
]  # fmt: skip

logger = logging.getLogger(__name__)

_READERS_SECONDS: Final = 60.0
"""How long a version stays, once it is not the newest any more, for those who are reading it."""


@dataclass
class _Resident(Resident):
    """A model in memory between batches, or a part of it and an overlay that reads the rest."""

    state: ModelState
    validation: Ratings | None
    overlay: Overlay | None = None

    def stop(self) -> None:
        """Break off a compaction."""
        if self.overlay is not None:
            self.overlay.stop()


@dataclass(frozen=True)
class BatchUpdater:
    """What a stream of one model and a race do alike: collect a batch, tell of it, commit it.

    Attributes
    ----------
    path : str
        the model path
    token : str
        of the lease on it
    options : FitOptions
        how rows are read and spread
    keep_versions : int
        how many of the newest versions stay
    keep_seconds : float
        younger versions than so many seconds stay as well
    report : Report
        who is told of a batch
    """

    path: str
    token: str
    options: FitOptions
    keep_versions: int
    keep_seconds: float
    report: Report

    def collect(
        self, batch: DataFrame, resident: Resident, batch_id: int, state: ModelState
    ) -> Collected | None:
        """Return the ratings of a batch, None where too many; raises where bad rows shall.

        `state` is a model that has learned what came before.
        """
        if resident.commit.batch < 0:
            refuse_own_files(VersionStore(self.path), resident.commit.checkpoint, batch_id)
        options = self.options
        keep = options.handle_invalid == "keep"
        if not resident.tasks:
            resident.kept.retained = versions_retained(batch.sparkSession)
            # a query's batches have one schema
            resident.plain = plain_batches(
                batch.sparkSession, batch.schema, options.columns, options.kinds
            )
        few = 0 < resident.rows <= PLAIN_LIMIT and resident.partitions <= resident.tasks
        collected = collect_ratings(
            batch, options.columns, options.kinds, keep, resident.largest, resident.partitions,
            lambda table: limits_for(state, options.rating_range, table), resident.tasks,
            options.newest, resident.plain if few else None,
        )  # fmt: skip
        resident.rows = 0
        if collected is not None:
            resident.largest, resident.partitions = collected.largest, collected.partitions
            resident.tasks, resident.rows = collected.tasks, collected.rows
            if options.handle_invalid == "error":
                rows = rated(batch, options.columns)
                refuse_invalid(collected.problems, options.columns, rows, options.kinds)
        return collected

    def commit(
        self,
        resident: Resident,
        state: ModelState,
        learned: LearnedBatch,
        batch_id: int,
        clock: BatchClock,
        told: dict[str, Any],
        *,
        onto: Base | None = None,
        extra: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Keep the rows set aside, and commit `state` as the next version; returns its metrics.

        Parameters
        ----------
        resident : Resident
            moves on to the new version
        state : ModelState
            the model that the path goes on with
        learned : LearnedBatch
            what the batch did
        batch_id : int
            its number
        clock : BatchClock
            its seconds so far
        told : dict[str, Any]
            metrics beside those of `batch_metrics`
        onto : Base | None
            runs to which rows are added, where `state` holds a part of the model alone
        extra : dict[str, Any] | None
            more to keep among the commit's `scalars`, of JSON types
        """
        store = VersionStore(self.path)
        self._warn_of_set_aside(learned, batch_id)
        if learned.invalid:
            rows = pa.table({"row": pa.array(learned.invalid, pa.string())})
            store.replace_table(f"invalid/batch-{batch_id:012d}.parquet", rows)
        before = resident.commit
        version = before.version + 1
        metrics = batch_metrics(batch_id, version, learned, clock) | state.shares() | told
        self.report.before_commit(store, metrics)
        resident.commit = store.commit(
            state,
            learned.rows,
            batch_id,
            before,
            metrics,
            check=lambda: check_holder(store, self.token),
            onto=onto,
            extra=extra,
            offsets=reading(store, before.checkpoint, batch_id, before.offsets, resident.kept),
        )
        return metrics

    def _warn_of_set_aside(self, learned: LearnedBatch, batch_id: int) -> None:
        if learned.bad_rows:
            logger.warning(
                "batch %d: %s%d rows were set aside under %s/invalid: %s",
                batch_id, "" if learned.ratings else "nothing was learned, all ",
                learned.bad_rows, self.path,
                explain_problems(learned.problems, column_names(self.options.columns)),
            )  # fmt: skip

    def finish(self, state: ModelState, metrics: dict[str, Any]) -> None:
        """Prune old versions, and tell of the batch that is committed."""
        store = VersionStore(self.path)
        store.prune(self.keep_versions, max(self.keep_seconds, _READERS_SECONDS))
        self.report.after_commit(metrics, state.counters.ratings)


@dataclass(frozen=True)
class StreamUpdater(BatchUpdater):
    """Learns a micro-batch and commits the version that follows: the function of foreachBatch."""

    def __call__(self, batch: DataFrame, batch_id: int) -> None:
        """Learn and commit a micro-batch, unless it is committed already."""
        learn_once(
            self.path, self.token, batch_id, self._open,
            lambda resident: self._learn(resident, batch, batch_id),
            lambda resident: run_again(batch, batch_id, resident, self.path),
        )  # fmt: skip

    def _open(self) -> _Resident:
        store = VersionStore(self.path)
        newest = store.newest()
        table = store.read_table("validation.parquet")
        validation = None if table is None else encode_ratings(table)
        if newest is None or not self._too_large(newest):
            state, commit = store.load()
            return _Resident(commit, self.token, state, validation)
        overlay = Overlay(store, newest, self.options.max_resident_ids)
        if validation is not None:
            overlay.pin(validation.user_ids, validation.item_ids)
        return _Resident(newest, self.token, overlay.state, validation, overlay)

    def _too_large(self, commit: Commit) -> bool:
        """Whether a version is kept in part; not while its scale settles and all rows change."""
        limit = self.options.max_resident_ids
        settled = bool(commit.scalars["scale"]["frozen"])
        return bool(limit and settled and sum(commit.ids) > limit)

    def _learn(self, resident: _Resident, batch: DataFrame, batch_id: int) -> None:
        clock = BatchClock()
        collected = self.collect(batch, resident, batch_id, resident.state)
        clock.collected()
        if collected is None:
            learned = self._learn_large(resident, batch)
        else:
            overlay = resident.overlay
            learned = learn_collected(
                resident.state,
                collected,
                self.options,
                all_in_memory if overlay is None else overlay.fetch,
            )
        clock.learned()
        told = {"validationRmse": self._validate(resident)}
        overlay = resident.overlay
        metrics = self.commit(
            resident, resident.state, learned, batch_id, clock, told,
            onto=None if overlay is None else overlay.onto(learned.new_users, learned.new_items),
        )  # fmt: skip
        if overlay is not None:
            assert learned.rows is not None
            overlay.committed(resident.commit, learned.rows)
        elif self._too_large(resident.commit):
            # the next batch opens it again, in part
            forget_resident(self.path)
        self.finish(resident.state, metrics)

    def _learn_large(self, resident: _Resident, batch: DataFrame) -> LearnedBatch:
        """Learn a batch too large to collect the way of fit, with the model as its prior."""
        if resident.overlay is not None:
            # a table is learned from the whole model
            resident.stop()
            resident.overlay = None
            resident.state, _ = VersionStore(self.path).load()
        before = resident.state
        prior = None if before.blank else before
        options = self.options
        told = announced_in(batch, options.columns, options.kinds)
        batch = rated(batch, options.columns)
        state, _, packed, limits = learn_table(
            batch, before.settings, options, prior, allow_empty=True, screened=True
        )
        start_announced(state, told, options)
        resident.state = state
        keep = options.handle_invalid == "keep"
        bad = packed.bad_rows
        now, old = state.counters, before.counters
        judged = now.prequential_ratings - old.prequential_ratings
        squares = now.prequential_squares - old.prequential_squares
        baseline = now.baseline_squares - old.baseline_squares
        return LearnedBatch(
            ratings=now.ratings - old.ratings,
            bad_rows=bad,
            problems=packed.problems,
            invalid=invalid_rows(batch, options.columns, options.kinds, keep, limits)
            if bad
            else [],
            new_users=state.users.size - before.users.size,
            new_items=state.items.size - before.items.size,
            # the distinct ids of a batch of this size are not counted, nor its errors kept
            users=None,
            items=None,
            sums=BatchSums(judged, squares, math.nan, baseline, math.nan),
            rows=None,
        )

    def _validate(self, resident: _Resident) -> float | None:
        encoded = resident.validation
        if encoded is None or not len(encoded):
            return None
        state = resident.state
        users = state.users.index.find(encoded.user_ids)[encoded.users]
        items = state.items.index.find(encoded.item_ids)[encoded.items]
        predictions = state.clip(state.predict(users, items)[0])
        rmse = float(np.sqrt(np.mean((encoded.values.astype(np.float64) - predictions) ** 2)))
        return rmse if math.isfinite(rmse) else None


@dataclass(frozen=True)
class LearnedBatch:
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
    forgotten_users: int = 0

    @classmethod
    def of(
        cls, collected: Collected, ratings: Ratings, report: BatchReport, announced: Announced,
        earlier: int | None = None,
    ) -> LearnedBatch:  # fmt: skip
        """Of a collected batch, encoded as `ratings`, that was learned, with ids that it told of.

        In the place of so many `earlier` rows, of which some may be among them; None where the
        model went on.
        """
        return cls(
            ratings=report.ratings - (earlier or 0),
            bad_rows=collected.bad_rows,
            problems=collected.problems,
            invalid=collected.invalid,
            new_users=report.new_users + announced.count(0),
            new_items=report.new_items + announced.count(1),
            users=len(ratings.user_ids),
            items=len(ratings.item_ids),
            sums=report.sums,
            rows=announced.with_rows(report.rows if earlier is None else None),
            forgotten_users=report.forgotten_users,
        )


def learn_collected(
    state: ModelState,
    collected: Collected,
    options: FitOptions,
    fetch: Callable[[pa.Array, pa.Array], None] = all_in_memory,
) -> LearnedBatch:
    """Learn a collected batch onto `state`, in place.

    Parameters
    ----------
    state : ModelState
        the model before the batch; has learned it after
    collected : Collected
        the batch's ratings, as Arrow, with what was set aside
    options : FitOptions
        how rows were read, and whether one that makes learning diverge is set aside
    fetch : Callable[[pa.Array, pa.Array], None]
        called before, with the distinct ids of the users and items, to bring their rows
    """
    ready = prepare(state, collected.table, options.rating_range)
    announced = Announced(state, collected.announced, options)

    def learn(table: pa.Table) -> tuple[Ratings, BatchReport]:
        ratings = encode_ratings(table, keep_times=state.settings.forget_after_micros > 0)
        fetch(ratings.user_ids, ratings.item_ids)
        announced.start(fetch)
        features = features_of_table(
            state, collected.vectors, options.columns, options.handle_invalid == "error", True
        )
        return ratings, learn_batch(state, ratings, features)

    kept = None
    if ready.again is not None:
        # few rows ago there was nothing
        kept = state.copy()
        take_back(state)
    try:
        if options.handle_invalid == "error":
            ratings, report = learn(ready.table)
        else:
            (ratings, report), out = learn_without_extremes(ready.table, learn)
            collected = with_set_aside(collected, ready, out, options)
    except BaseException:
        if kept is not None:
            state.restore(kept)
        announced.take_back()
        raise
    state.ranges = ready.ranges
    return LearnedBatch.of(collected, ratings, report, announced, ready.earlier)


def with_set_aside(
    collected: Collected, ready: Prepared, out: npt.NDArray[np.bool_], options: FitOptions
) -> Collected:
    """Return a batch with the rows that were set aside only while it was learned.

    Parameters
    ----------
    collected : Collected
        as it came
    ready : Prepared
        as it was to be learned; tells of rows of earlier batches that lie far outside
    out : npt.NDArray[np.bool_]
        rows of it that make learning diverge
    options : FitOptions
        names the columns
    """
    diverged = ready.table.filter(pa.array(out)).to_pylist() if out.any() else []
    rows = [*ready.far, *diverged]
    if not rows:
        return collected
    problems = dict(collected.problems)
    for fault, some in ((FAR_BEFORE, ready.far), (DIVERGES, diverged)):
        if some:
            problems[fault] = len(some)
    return replace(
        collected,
        bad_rows=collected.bad_rows + len(rows),
        problems=problems,
        invalid=[*collected.invalid, *as_invalid(rows, options.columns)],
    )


class BatchClock:
    """Stops the seconds of a batch, from when it is made."""

    def __init__(self) -> None:
        self._began = self._collected = self._learned = time.perf_counter()

    def collected(self) -> None:
        """Note that the batch is on the driver."""
        self._collected = time.perf_counter()

    def learned(self) -> None:
        """Note that the model knows it."""
        self._learned = time.perf_counter()

    def seconds(self) -> dict[str, float]:
        """By the names of job.metrics()."""
        return {
            "collectSeconds": self._collected - self._began,
            "learnSeconds": self._learned - self._collected,
            "seconds": time.perf_counter() - self._began,
        }


def batch_metrics(
    batch_id: int, version: int, learned: LearnedBatch, clock: BatchClock
) -> dict[str, Any]:
    """Return what a commit says of its batch, by the names of job.metrics(); None where unknown."""
    faults = sorted((f, n) for f, n in learned.problems.items() if f != ZERO_WEIGHT)
    told = [f"{fault}: {count}" for fault, count in faults]
    return {
        "batch": batch_id,
        "version": version,
        "committed": pd.Timestamp.now("UTC").isoformat(timespec="milliseconds"),
        "ratings": learned.ratings,
        "invalid": learned.bad_rows,
        "outside": sum(n for fault, n in learned.problems.items() if is_far(fault)),
        "faults": "; ".join(told) or None,
        "zeroWeight": learned.problems.get(ZERO_WEIGHT, 0),
        "newUsers": learned.new_users,
        "newItems": learned.new_items,
        "forgottenUsers": learned.forgotten_users,
        "users": learned.users,
        "items": learned.items,
        **learned.sums.metrics(),
        "filterShare": None,
        "partnerShare": None,
        "validationRmse": None,
        **clock.seconds(),
    }
