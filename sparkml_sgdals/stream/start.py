"""Start a stream that learns under a model path, and the job that a caller holds (driver)."""

from __future__ import annotations

import functools
import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from pyspark.errors import PySparkException
from pyspark.sql import DataFrame
from pyspark.sql.utils import is_remote

from sparkml_sgdals.arrays.screening import screen
from sparkml_sgdals.fit.plan import FitOptions
from sparkml_sgdals.ingest.bad_rows import column_names, explain_problems
from sparkml_sgdals.ingest.collecting import COLLECT_LIMIT
from sparkml_sgdals.ingest.columns import RatingColumns, select_ratings
from sparkml_sgdals.ingest.deduplication import drop_repeats
from sparkml_sgdals.ingest.frames import as_stream, as_table
from sparkml_sgdals.spark_workers import need_workers, workers_see_folder
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.settings import Settings
from sparkml_sgdals.store.checkpoint.agreement import check_checkpoint, drop_unplanned_files
from sparkml_sgdals.store.checkpoint.bookkeeping import note_end
from sparkml_sgdals.store.checkpoint.kept_state import drop_untold
from sparkml_sgdals.store.commit import Commit
from sparkml_sgdals.store.large.rewriting import copy_version
from sparkml_sgdals.store.large.unfinished import drop_unfinished
from sparkml_sgdals.store.lease import Lease, check_holder
from sparkml_sgdals.store.maintenance import drop_later_invalid, drop_old_checkpoints
from sparkml_sgdals.store.objects import Location, ObjectStore
from sparkml_sgdals.store.overlay import Overlay
from sparkml_sgdals.store.version_store import (
    StorageError,
    VersionStore,
    full_path,
    spark_path,
)
from sparkml_sgdals.stream.job import M, StreamJob
from sparkml_sgdals.stream.late_rows import LateRows
from sparkml_sgdals.stream.metrics_table import METRICS
from sparkml_sgdals.stream.micro_batch import StreamUpdater
from sparkml_sgdals.stream.options import StreamOptions
from sparkml_sgdals.stream.paths import refuse_other_paths
from sparkml_sgdals.stream.residents import forget_resident

if TYPE_CHECKING:
    from pyspark.sql.connect.streaming.query import StreamingQuery as ConnectQuery
    from pyspark.sql.streaming.query import StreamingQuery

    Query = StreamingQuery | ConnectQuery

__all__ = ["METRICS", "NOTHING", "StreamStart", "start_query", "start_stream"]


logger = logging.getLogger(__name__)

_STARTS: Final = 4
"""How often a query is started whose worker Spark does not wait for long enough."""
_WORKER_LATE: Final = "Python worker failed to connect back"


NOTHING: Final = "nothing"
"""Origin of a model that a stream starts from nothing."""


@dataclass(frozen=True)
class StreamStart:
    """What a stream starts from, and what has to agree with the path where it resumes.

    Attributes
    ----------
    origin : str
        "nothing", or the fingerprint of the model that an empty path starts from
    path_id : str | None
        the id of the path that this model was loaded from, None where from none
    meta : dict[str, Any]
        what else is kept in model.json of a new path
    stored : Overlay | None
        reads the rows that `state` lacks, of a model that is read where it lies
    """

    state: ModelState
    origin: str
    path_id: str | None
    meta: dict[str, Any]
    stored: Overlay | None = None

    def create(
        self, store: VersionStore, check: Callable[[], None]
    ) -> tuple[dict[str, Any], Commit]:
        """Make a new path; returns what never changes there, and its version 0."""
        meta = self.meta | _identity(self)
        if self.stored is None:
            return meta, store.create(self.state, meta)
        return meta, copy_version(self.stored, store, meta, check)


def start_stream(
    stream: DataFrame,
    path: Location,
    start: StreamStart,
    fit_options: FitOptions,
    options: StreamOptions,
    load: Callable[[VersionStore], M],
    make_updater: Callable[..., Callable[[DataFrame, int], None]] = StreamUpdater,
) -> StreamJob[M]:
    """Start or resume learning from `stream` under the model path `path`.

    Parameters
    ----------
    stream : DataFrame
        a streaming DataFrame with the columns of ratings
    path : Location
        the model path
    start : StreamStart
        what an empty path starts from
    fit_options : FitOptions
        how rows are read and spread
    options : StreamOptions
        what the caller chose of the stream
    load : Callable[[VersionStore], M]
        gives the model of the newest version back
    make_updater : Callable[..., Callable[[DataFrame, int], None]]
        makes the function of foreachBatch from the fields of a `BatchUpdater`

    Raises
    ------
    ValueError
        `stream` is a table, lacks a column, or the path was learned otherwise; or it is that of a
        saved model, where the stream reads, or on the driver's disk where executors keep ids
    TypeError
        a column has a wrong type
    LeaseError
        another stream writes to the path
    StorageError
        the path is damaged
    """
    stream = as_stream(stream, "call update or fit")
    if options.validation is not None and start.state.settings.learns_events:
        raise ValueError(
            "validation is scored by RMSE, and events (implicitPrefs=True) have no ratings: leave "
            "it out."
        )
    if start.state.settings.ranks_ratings and fit_options.max_resident_ids:
        raise ValueError(
            f"rankingSize is {start.state.settings.ranking_size} and maxResidentIds "
            f"{fit_options.max_resident_ids}, but a model of ratings that ranks is kept in memory "
            "as a whole, with what each user has rated: set rankingSize to 0 before the model "
            "learns, or do not set maxResidentIds (0 is no limit)."
        )
    columns = fit_options.columns
    select_ratings(stream, columns, fit_options.kinds, raw=True)
    if is_remote():
        # there the function of a batch runs in a worker beside the server
        need_workers(stream.sparkSession)
    if options.event_id_col is not None:
        stream = drop_repeats(stream, options.event_id_col, columns.time, options.watermark)
    path = full_path(path)
    store = VersionStore(path)
    if options.event_id_col is not None:
        _need_shared(stream, path, options.event_id_col)
    if store.meta() is None:
        # before anything is written there
        refuse_other_paths(stream, path)
    lease = Lease.acquire(store, options.lease_seconds)
    try:
        drop_unfinished(store)
        meta = store.meta()
        if meta is not None:
            _check_same(meta, start, path)
        newest = store.newest()
        if meta is None or newest is None:
            meta, newest = start.create(store, lambda: check_holder(store, lease.token))
        if "pathId" not in meta:
            raise StorageError(
                f"{path}/model.json lacks pathId, which a stream writes there: restore it, or go "
                "on under a new path: "
                "StreamingBiasedALSModel.load(path).updateStream(stream, new_path)."
            )
        check_checkpoint(store, newest, meta["pathId"])
        drop_unplanned_files(store, newest.checkpoint)
        drop_untold(store, newest.checkpoint, (newest.offsets or {}).get("state", {}))
        drop_old_checkpoints(store)
        drop_later_invalid(store, newest.batch)
        store.drop_broken_writes()
        if options.validation is not None:
            _keep_validation(store, options.validation, fit_options)
        updater = make_updater(
            path=path,
            token=lease.token,
            options=fit_options,
            keep_versions=options.keep_versions,
            keep_seconds=options.keep_seconds,
            report=options.report(),
        )
        writer = stream.writeStream.foreachBatch(updater).option(
            "checkpointLocation", f"{spark_path(path)}/{newest.checkpoint}"
        )
        if options.query_name is not None:
            writer = writer.queryName(options.query_name)
        trigger = options.starts()
        if trigger:
            writer = writer.trigger(**trigger)
        query = start_query(writer)
    except BaseException:
        lease.release()
        raise
    late = LateRows(store, newest.batch, options.event_id_col is not None)

    def active() -> bool:
        running = bool(query.isActive)
        # once it has ended there is one more batch to tell of
        late.look(query, now=not running)
        return running

    def ended() -> None:
        forget_resident(path, lease.token)
        note()

    note = functools.partial(note_end, store, newest.checkpoint)
    lease.keep_while(active, ended)
    return StreamJob(query, path, lease, load, late, note)


def start_query(writer: Any) -> Query:
    """Start what a DataStreamWriter describes, again where its Python worker was late.

    The server of Spark Connect gives the process that runs foreachBatch ten seconds to connect
    (PythonWorkerFactory.createSimpleWorker), which a busy machine may need for its imports alone.
    Nothing has begun by then.
    """
    for _ in range(_STARTS - 1):
        try:
            return cast("Query", writer.start())
        except PySparkException as error:
            if _WORKER_LATE not in str(error):
                raise
            logger.warning("Spark did not wait for the stream's Python worker; starting it again")
    return cast("Query", writer.start())


def _need_shared(stream: DataFrame, path: str, event_id: str) -> None:
    """See that executors, who keep the ids of events in the checkpoint, find it again."""
    store = ObjectStore(path)
    if store.local and not workers_see_folder(stream.sparkSession, store.root):
        raise ValueError(
            f"eventIdCol {event_id!r} lets executors keep ids under the model path, and {path} is "
            "a folder that not all of them share with the driver: choose a path that they do, such "
            "as a URI of an object store or HDFS. Without eventIdCol the driver alone writes there."
        )


def _identity(start: StreamStart) -> dict[str, Any]:
    state = start.state
    return {
        "settings": state.settings.to_json(),
        "kinds": [state.users.index.kind, state.items.index.kind],
        "origin": start.origin,
        "pathId": uuid.uuid4().hex,
    } | ({"learnsFeatures": list(state.learns_features)} if any(state.learns_features) else {})


def _check_same(meta: dict[str, Any], start: StreamStart, path: str) -> None:
    """Refuse a path that was learned with other params, ids or from another start."""
    wanted = _identity(start)
    remedy = "Use the params of the path, or another path."
    if meta.get("race") != start.meta.get("race"):
        held = "a race" if "race" in meta else "one model"
        raise ValueError(
            f"The path {path} holds {held}, learned with other candidates or Params. Start "
            "StreamingGridSearch with those of the path, or use another path: a model loaded from "
            "here can go on there by updateStream."
        )
    learned_with = Settings.from_json(meta["settings"]).to_json()
    for name in {**wanted["settings"], **learned_with}:
        # features are not told where there are none
        held, value = (told.get(name, False) for told in (learned_with, wanted["settings"]))
        if held != value:
            raise ValueError(
                f"The model at {path} was learned with {name} = {held}, now it is {value}. {remedy}"
            )
    if meta["kinds"] != wanted["kinds"]:
        raise ValueError(
            f"The model at {path} has ids of kinds {meta['kinds']} (user, item), the stream has "
            f"{wanted['kinds']}. {remedy}"
        )
    learns = tuple(meta.get("learnsFeatures", (False, False)))
    begins = start.origin == NOTHING or "race" in start.meta
    if begins and learns != start.state.learns_features:
        told = " and ".join(
            f"{side}s" for side, own in zip(("user", "item"), learns, strict=True) if own
        )
        raise ValueError(
            f"The model at {path} learns what features of {told or 'nobody'} say, and this stream "
            f"has others: give those of the path, by column or by table. {remedy}"
        )
    origin = meta.get("origin")
    if origin != start.origin and meta.get("pathId") != start.path_id:
        held = "nothing" if origin == NOTHING else f"model {(origin or 'unknown')[:12]}"
        given = "nothing" if start.origin == NOTHING else f"model {start.origin[:12]}"
        raise ValueError(
            f"The model at {path} started from {held}, this stream would start from {given}. Call "
            "fitStream for the first and updateStream for the second, with the same start, or "
            "use another path."
        )


def _keep_validation(store: VersionStore, validation: DataFrame, options: FitOptions) -> None:
    columns = RatingColumns(options.columns.user, options.columns.item, options.columns.rating)
    validation = as_table(
        validation, "validation", columns.in_order, "validation is a table of held-out ratings"
    )
    rows = select_ratings(validation, columns, options.kinds).limit(COLLECT_LIMIT).toArrow()
    table, _, problems = screen(rows)
    if problems:
        faults = explain_problems(problems, column_names(columns))
        raise ValueError(f"validation cannot be scored: {faults}. Remove these rows.")
    if not table.num_rows:
        raise ValueError("validation holds no ratings: leave it out, or give some.")
    store.replace_table("validation.parquet", table)
