"""Fit a table to a model path: tasks write the rows, the driver one commit object (driver)."""

from __future__ import annotations

import contextlib
import socket
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from sparkml_sgdals.errors import StorageError
from sparkml_sgdals.fit.fitting import learn_table
from sparkml_sgdals.fit.plan import FitOptions, TrainingReport
from sparkml_sgdals.spark_jobs import cores, phase
from sparkml_sgdals.spark_workers import need_workers
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.settings import Settings
from sparkml_sgdals.store.commit import Commit
from sparkml_sgdals.store.large.in_runs import RunSink, commit_in_runs, drop_unnamed
from sparkml_sgdals.store.large.unfinished import (
    MARK,
    drop_empty,
    drop_unfinished,
    mark_unfinished,
    refuse_filled,
)
from sparkml_sgdals.store.lease import Lease, check_holder
from sparkml_sgdals.store.version_store import VersionStore

__all__ = ["fit_to_path"]

_LEASE_SECONDS: Final = 600.0
_PROBES: Final = 8
"""tasks that look at the path, where nothing tells how many cores there are"""


def fit_to_path(
    df: DataFrame, settings: Settings, options: FitOptions, path: str, meta: dict[str, Any]
) -> tuple[ModelState, TrainingReport, Commit]:
    """Learn a table in blocks that write their rows under a model path, as its version 0.

    Broken off at any moment, there is the whole version or none.

    Parameters
    ----------
    df : DataFrame
        the user's table
    settings : Settings
        of the model to learn
    options : FitOptions
        how the table is read and spread
    path : str
        the model path, which holds nothing yet
    meta : dict[str, Any]
        what else is kept in model.json

    Returns
    -------
    the state without its rows, what was done, and the version

    Raises
    ------
    ValueError
        the path holds something, or the model is of a kind that is learned on the driver; others as
        `learn_table`
    LeaseError
        another process writes to the path
    StorageError
        driver and executors do not see the same folder, or it cannot be written
    """
    _refuse_settings(settings)
    store = VersionStore(path)
    refuse_filled(store)
    lease = Lease.acquire(store, _LEASE_SECONDS)
    try:
        lease.keep_while(lambda: True)
        drop_unfinished(store)
        mark_unfinished(store)
        with phase(df.sparkSession, "see the path"):
            _see_path(df.sparkSession, store)
        state, report, *_ = learn_table(df, settings, options, sink=RunSink(path))
        assert report.runs is not None
        meta = meta | {
            "settings": state.settings.to_json(),
            "kinds": list(options.kinds),
            "origin": f"fit {uuid.uuid4().hex}",
            "pathId": uuid.uuid4().hex,
        }
        digest = store.put_meta(meta)
        commit = commit_in_runs(
            store, state, report.runs, state.known_ids, None, meta=digest,
            check=lambda: check_holder(store, lease.token),
        )  # fmt: skip
        drop_unnamed(store)
        drop_unfinished(store)
    except BaseException:
        with contextlib.suppress(StorageError):
            drop_unfinished(store)
        lease.release()
        drop_empty(store)
        raise
    lease.release()
    return state, report, commit


def _refuse_settings(settings: Settings) -> None:
    why = None
    if settings.learns_events:
        why = "a model of events (implicitPrefs=True) is learned and kept on the driver: call fit"
    elif settings.ranks_ratings:
        why = (
            f"rankingSize is {settings.ranking_size}, and what each user has rated is remembered "
            "on the driver: set rankingSize to 0, or call fit"
        )
    elif settings.solver not in ("bayes", "sgd"):
        why = f"solver {settings.solver!r} does not learn in blocks: set 'bayes', or call fit"
    if why is not None:
        raise ValueError(f"fitPath leaves the rows of a model to tasks, and {why}.")


# ---- do all see it? -------------------------------------------------------------------------


def _see_path(spark: SparkSession, store: VersionStore) -> None:
    """See that tasks read what this process wrote under a path, and that it reads what they do."""
    need_workers(spark)
    written = f"{MARK}-{uuid.uuid4().hex}"
    store.write(written, written.encode())
    tasks = cores(spark) or _PROBES
    found = (
        spark.range(0, tasks, 1, tasks)
        .mapInArrow(_Probe(store.path, written), "host string, name string, fault string")
        .toArrow()
    )
    names = [name for name in found.column("name").to_pylist() if name is not None]
    for row in found.to_pylist():
        fault = row["fault"]
        if fault is None and store.read(row["name"]) is None:
            fault = "what it wrote there is not there for the driver"
        if fault is not None:
            raise StorageError(
                f"The executor on {row['host']} does not see modelPath {store.path} as the driver "
                f"does: {fault}. fitPath needs a folder, or a URI of an object store, that driver "
                "and executors share."
            )
    for name in (written, *names):
        store.delete(name)


@dataclass(frozen=True)
class _Probe:
    """Read what the driver wrote, and write something for it."""

    path: str
    written: str

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        name: str | None = None
        fault: str | None = None
        try:
            store = VersionStore(self.path)
            if store.read(self.written) != self.written.encode():
                fault = "what the driver wrote there is not there for it"
            else:
                store.write(f"{self.written}-{(token := uuid.uuid4().hex)}", b"")
                name = f"{self.written}-{token}"
        except (StorageError, OSError, ValueError) as failure:
            fault = str(failure)
        for _ in batches:
            yield pa.RecordBatch.from_pydict(
                {"host": [socket.gethostname()], "name": [name], "fault": [fault]},
                schema=pa.schema([(n, pa.string()) for n in ("host", "name", "fault")]),
            )
