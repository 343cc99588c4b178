"""Learn from a stream: one micro-batch, one committed version, exactly once (driver or its like).

`StreamUpdater` is what foreachBatch calls. It is made of strings and numbers only, finds the model
by its path and keeps it resident in the process that runs it: the driver, or under Spark Connect
a Python process beside the server.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
from pyspark.sql import DataFrame

from sparkml_sgdals.checkpoint import check_checkpoint, drop_unplanned_files
from sparkml_sgdals.collecting import COLLECT_LIMIT, Collected, collect_ratings, invalid_rows
from sparkml_sgdals.fitting import FitOptions, column_names, learn_table, refuse_invalid
from sparkml_sgdals.lease import Lease, check_holder
from sparkml_sgdals.packing import explain_problems
from sparkml_sgdals.ratings import ZERO_WEIGHT, Problems, encode_ratings, screen
from sparkml_sgdals.repeats import drop_repeats
from sparkml_sgdals.schema import RatingColumns, select_ratings
from sparkml_sgdals.settings import Settings
from sparkml_sgdals.state import ModelState
from sparkml_sgdals.storage import Commit, VersionStore, full_path, spark_path
from sparkml_sgdals.updating import learn_batch
from sparkml_sgdals.versions import drop_old_checkpoints

if TYPE_CHECKING:
    from pyspark.sql.connect.streaming.query import StreamingQuery as ConnectQuery
    from pyspark.sql.streaming.query import StreamingQuery

    Query = StreamingQuery | ConnectQuery

__all__ = [
    "METRICS",
    "StreamJob",
    "StreamStart",
    "StreamUpdater",
    "learn_collected",
    "start_stream",
]

logger = logging.getLogger(__name__)


class Versioned(Protocol):
    """What a stream has to know of the model that it gives back."""

    version: int

    def copy(self) -> Any: ...


M = TypeVar("M", bound=Versioned)

_READERS_SECONDS: Final = 60.0
"""How long a version stays, once it is not the newest any more, for those who are reading it."""

NOTHING: Final = "nothing"
"""Origin of a model that a stream starts from nothing."""

METRICS: Final = (
    "batch",
    "version",
    "committed",
    "ratings",
    "invalid",
    "zeroWeight",
    "newUsers",
    "newItems",
    "rmse",
    "baselineRmse",
    "validationRmse",
    "seconds",
)
"""Columns of `StreamJob.metrics`; rmse and baselineRmse are from before the batch was learned."""


@dataclass
class _Resident:
    """A model in memory between batches."""

    state: ModelState
    commit: Commit
    token: str
    validation: tuple[pa.Table, Any] | None


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
                _residents.pop(self.path, None)
                raise

    def _resident(self) -> _Resident:
        store = VersionStore(self.path)
        newest = store.newest()
        resident = _residents.get(self.path)
        if resident is None or resident.commit != newest or resident.token != self.token:
            state, commit = store.load()
            table = store.read_table("validation.parquet")
            resident = _Resident(
                state, commit, self.token, None if table is None else (table, None)
            )
            _residents[self.path] = resident
        return resident

    def _learn(self, resident: _Resident, batch: DataFrame, batch_id: int) -> None:
        clock = time.perf_counter()
        store = VersionStore(self.path)
        options = self.options
        keep = options.handle_invalid == "keep"
        collected = collect_ratings(batch, options.columns, options.kinds, keep)
        if collected is None:
            learned = self._learn_large(resident, batch)
        else:
            if options.handle_invalid == "error":
                refuse_invalid(collected.problems, options.columns)
            learned = learn_collected(resident.state, collected)
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
            "rmse": _json_number(learned.rmse),
            "baselineRmse": _json_number(learned.baseline_rmse),
            "validationRmse": _json_number(validation),
            "seconds": time.perf_counter() - clock,
        }
        resident.commit = store.commit(
            resident.state,
            learned.rows,
            batch_id,
            resident.commit,
            metrics,
            check=lambda: check_holder(store, self.token),
        )
        store.prune(self.keep_versions, self.keep_seconds)

    def _learn_large(self, resident: _Resident, batch: DataFrame) -> Learned:
        """A batch too large to collect goes the way of fit, with the model as its prior."""
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
            rmse=math.sqrt(squares / judged) if judged else math.nan,
            baseline_rmse=math.sqrt(baseline / judged) if judged else math.nan,
            rows=None,
        )

    def _validate(self, resident: _Resident) -> float:
        if resident.validation is None:
            return math.nan
        table, encoded = resident.validation
        if encoded is None:
            encoded = encode_ratings(table)
            resident.validation = (table, encoded)
        state = resident.state
        users = state.users.index.find(encoded.user_ids)[encoded.users]
        items = state.items.index.find(encoded.item_ids)[encoded.items]
        predictions = state.clip(state.predict(users, items)[0])
        return float(np.sqrt(np.mean((encoded.values.astype(np.float64) - predictions) ** 2)))


@dataclass(frozen=True)
class Learned:
    """What a batch did; `rows` are those of users and items that changed, None for all."""

    ratings: int
    bad_rows: int
    problems: Problems
    invalid: list[str]
    new_users: int
    new_items: int
    rmse: float
    baseline_rmse: float
    rows: tuple[Any, Any] | None


def learn_collected(state: ModelState, collected: Collected) -> Learned:
    """Learn a collected batch onto `state`, in place."""
    table = collected.table
    report = learn_batch(state, encode_ratings(table))
    return Learned(
        ratings=report.ratings,
        bad_rows=collected.bad_rows,
        problems=collected.problems,
        invalid=collected.invalid,
        new_users=report.new_users,
        new_items=report.new_items,
        rmse=report.rmse,
        baseline_rmse=report.baseline_rmse,
        rows=(report.user_rows, report.item_rows),
    )


class StreamJob(Generic[M]):
    """A model that is learning from a stream.

    Attributes
    ----------
    query : Spark's StreamingQuery
    path : the model path
    """

    def __init__(
        self,
        query: Query,
        path: str,
        lease: Lease,
        load: Callable[[VersionStore], M],
    ) -> None:
        self.query = query
        self.path = path
        self._lease = lease
        self._load = load
        self._model: M | None = None

    @property
    def model(self) -> M:
        """The newest committed version, a model of its own that does not move on."""
        store = VersionStore(self.path)
        newest = store.newest()
        if self._model is None or newest is None or self._model.version != newest.version:
            self._model = self._load(store)
        snapshot: M = self._model.copy()
        return snapshot

    def metrics(self) -> pd.DataFrame:
        """All batches so far, one row each, columns METRICS; a batch is there when committed."""
        frame = pd.DataFrame(VersionStore(self.path).metrics(), columns=list(METRICS))
        frame["committed"] = pd.to_datetime(frame["committed"])
        numbers = ["rmse", "baselineRmse", "validationRmse", "seconds"]
        frame[numbers] = frame[numbers].astype(float)
        return frame

    def awaitTermination(self, timeout: float | None = None) -> bool:
        """Wait until the stream ends, or `timeout` seconds; whether it has ended.

        Raises what Spark raises where the stream failed.
        """
        try:
            ended = (
                self.query.awaitTermination()
                if timeout is None
                else (self.query.awaitTermination(math.ceil(timeout)))
            )
            finished = True if timeout is None else bool(ended)
        except BaseException:
            if not self.query.isActive:
                self._end()
            raise
        if finished:
            self._end()
        return finished

    def stop(self, drain: bool = True, timeout: float = 60.0) -> None:
        """Stop the stream.

        Parameters
        ----------
        drain : wait (at most `timeout` seconds) until a running batch has been committed; else
            it may be broken off, and is learned after the next start
        """
        if drain:
            store = VersionStore(self.path)
            first = store.newest()
            until = time.monotonic() + timeout
            while self.query.isActive and time.monotonic() < until:
                if not self.query.status["isTriggerActive"]:
                    break
                newest = store.newest()
                if newest is not None and first is not None and newest.version > first.version:
                    break
                time.sleep(0.05)
        self.query.stop()
        self._end()

    def _end(self) -> None:
        self._lease.release()
        # the state in memory is of no use without its stream
        _residents.pop(self.path, None)


def _json_number(value: float) -> float | None:
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class StreamStart:
    """What a stream starts from, and what has to agree with the path where it resumes.

    Attributes
    ----------
    origin : "nothing", or the fingerprint of the model that an empty path starts from
    path_id : the id of the path that this model was loaded from, None where from none
    meta : what else is kept in model.json of a new path
    """

    state: ModelState
    origin: str
    path_id: str | None
    meta: dict[str, Any]


def start_stream(
    stream: DataFrame,
    path: str,
    start: StreamStart,
    options: FitOptions,
    load: Callable[[VersionStore], M],
    *,
    trigger: dict[str, Any] | None,
    validation: DataFrame | None,
    queryName: str | None,
    keepVersions: int,
    keepDays: float,
    leaseSeconds: float,
    eventIdCol: str | None,
    watermark: str,
) -> StreamJob[M]:
    """Start or resume learning from `stream` under the model path `path`.

    Raises
    ------
    ValueError : `stream` is a table, lacks a column, or the path was learned otherwise
    TypeError : a column has a wrong type
    LeaseError : another stream writes to the path
    StorageError : the path is damaged
    """
    if not stream.isStreaming:
        raise ValueError(
            "The DataFrame is a table, not a stream: read it with spark.readStream, or call "
            "update or fit."
        )
    if keepVersions < 1:
        raise ValueError(f"keepVersions must be at least 1, got {keepVersions}.")
    if not keepDays >= 0:
        raise ValueError(f"keepDays must be at least 0, got {keepDays}.")
    select_ratings(stream, options.columns, options.kinds, raw=True)
    if eventIdCol is not None:
        stream = drop_repeats(stream, eventIdCol, options.columns.time, watermark)
    path = full_path(path)
    store = VersionStore(path)
    lease = Lease.acquire(store, leaseSeconds)
    try:
        meta = store.meta()
        if meta is not None:
            _check_same(meta, start, path)
        newest = store.newest()
        if meta is None or newest is None:
            meta = start.meta | _identity(start)
            newest = store.create(start.state, meta)
        check_checkpoint(store, newest, meta["pathId"])
        drop_unplanned_files(store, newest.checkpoint)
        drop_old_checkpoints(store)
        if validation is not None:
            _keep_validation(store, validation, options)
        keep_seconds = max(keepDays * 86400.0, _READERS_SECONDS)
        updater = StreamUpdater(path, lease.token, options, keepVersions, keep_seconds)
        writer = stream.writeStream.foreachBatch(updater).option(
            "checkpointLocation", f"{spark_path(path)}/{newest.checkpoint}"
        )
        if queryName is not None:
            writer = writer.queryName(queryName)
        if trigger is not None:
            writer = writer.trigger(**trigger)
        query = writer.start()
    except BaseException:
        lease.release()
        raise
    lease.keep_while(lambda: bool(query.isActive))
    return StreamJob(query, path, lease, load)


def _identity(start: StreamStart) -> dict[str, Any]:
    state = start.state
    return {
        "settings": state.settings.to_json(),
        "kinds": [state.users.index.kind, state.items.index.kind],
        "origin": start.origin,
        "pathId": uuid.uuid4().hex,
    }


def _check_same(meta: dict[str, Any], start: StreamStart, path: str) -> None:
    """Refuse a path that was learned with other params, ids or from another start."""
    wanted = _identity(start)
    remedy = "Use the params of the path, or another path."
    learned_with = Settings.from_json(meta["settings"]).to_json()
    for name, value in wanted["settings"].items():
        held = learned_with[name]
        if held != value:
            raise ValueError(
                f"The model at {path} was learned with {name} = {held}, now it is {value}. {remedy}"
            )
    if meta["kinds"] != wanted["kinds"]:
        raise ValueError(
            f"The model at {path} has ids of kinds {meta['kinds']} (user, item), the stream has "
            f"{wanted['kinds']}. {remedy}"
        )
    if meta["origin"] != start.origin and meta["pathId"] != start.path_id:
        held = "nothing" if meta["origin"] == NOTHING else f"model {meta['origin'][:12]}"
        given = "nothing" if start.origin == NOTHING else f"model {start.origin[:12]}"
        raise ValueError(
            f"The model at {path} started from {held}, this stream would start from {given}. Call "
            "fitStream for the first and updateStream for the second, with the same start, or "
            "use another path."
        )


def _keep_validation(store: VersionStore, validation: DataFrame, options: FitOptions) -> None:
    columns = RatingColumns(options.columns.user, options.columns.item, options.columns.rating)
    rows = select_ratings(validation, columns, options.kinds).limit(COLLECT_LIMIT).toArrow()
    table, _, problems = screen(rows)
    if problems:
        faults = explain_problems(problems, column_names(columns))
        raise ValueError(f"validation cannot be scored: {faults}. Remove these rows.")
    if not table.num_rows:
        raise ValueError("validation holds no ratings: leave it out, or give some.")
    store.replace_table("validation.parquet", table)
