"""Train: packed ratings in, a model state out, in one task (driver).

The one-task form: all packed ratings go to one task, which filters and sweeps with threads and
moves nothing more. What is larger than `max_ratings_per_task` goes to `fit.blocks`.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.arrays.ipc import from_bytes, to_bytes
from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.arrays.sparse_rows import SparseRows
from sparkml_sgdals.fit.plan import Plan, Trained, TrainingReport
from sparkml_sgdals.fit.progress import TaskProgress
from sparkml_sgdals.learn.whole_table import NO_FEATURES, Features, fit_stops
from sparkml_sgdals.spark_jobs import collect_payloads, task_threads
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.parts import (
    PART_DDL,
    PART_SCHEMA,
    part_batch,
    state_from_parts,
    state_parts,
)
from sparkml_sgdals.state.settings import Settings

__all__ = ["parts_frame", "train_in_one_task"]

logger = logging.getLogger(__name__)

_FEATURES: Final = ("user features", "item features")


def parts_frame(spark: SparkSession, state: ModelState) -> DataFrame:
    """Return a state as a DataFrame of parts."""
    kinds, payloads = zip(*state_parts(state), strict=True)
    table = pa.table([pa.array(kinds), pa.array(payloads, pa.binary())], schema=PART_SCHEMA)
    return spark.createDataFrame(table)


@dataclass(frozen=True)
class _Train:
    """The function of the training task: plain values only, so that it pickles by reference."""

    settings: dict[str, Any]
    kinds: tuple[IdKind, IdKind]
    threads: int
    stops: tuple[int, ...]
    progress_path: str

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        clock = time.perf_counter()
        tables, prior = [], []
        features: dict[str, SparseRows] = {}
        for batch in batches:
            for kind, payload in zip(
                batch.column("kind").to_pylist(), batch.column("payload"), strict=True
            ):
                if kind == "ratings":
                    tables.append(from_bytes(payload.as_buffer()))
                elif kind in _FEATURES:
                    features[kind] = SparseRows.of(from_bytes(payload.as_buffer()))[0]
                else:
                    prior.append((kind, payload.as_py()))
        settings = Settings.from_json(self.settings)
        state = state_from_parts(prior)[0] if prior else ModelState.empty(settings, *self.kinds)
        # integers are as narrow as each cell's values let them be
        table = pa.concat_tables(tables, promote_options="permissive")
        # many passes in shuffled orders have no use for it
        if settings.solver in ("sgd", "minibatch") and "time" in table.column_names:
            table = table.drop_columns("time")
        threads = task_threads(self.threads)
        ratings = encode_ratings(table, threads, settings.forget_after_micros > 0)
        del tables, table
        encoded = time.perf_counter()
        passes = max(self.stops)
        if settings.learns_events:
            # what learns them one by one takes one pass
            passes = max(passes, 1) if settings.fits_events else 1
        note = TaskProgress(self.progress_path, 0, 1 + passes)
        note.write(1, None)
        kept = fit_stops(
            ratings, state, self.stops, threads, lambda number, rmse: note.write(1 + number, rmse),
            (features.get(_FEATURES[0]), features.get(_FEATURES[1])),
        )  # fmt: skip
        history = kept[-1][1]
        if len(history) < passes and (history or not settings.learns_events):
            # it settled: these were all the steps
            note = replace(note, total=1 + len(history))
            note.write(note.total, history[-1] if history else None)
        seconds = {"encode": encoded - clock, "learn": time.perf_counter() - encoded}
        for number, (learned, history) in enumerate(kept):
            for kind, payload in state_parts(learned, {"rmse": history, "seconds": seconds}):
                yield part_batch(f"{number}:{kind}", payload)


def train_in_one_task(
    packed: DataFrame,
    settings: Settings,
    kinds: tuple[IdKind, IdKind],
    plan: Plan,
    prior: ModelState | None = None,
    features: Features = NO_FEATURES,
) -> list[Trained]:
    """Learn packed ratings in one task: one Spark job of one narrow stage.

    Parameters
    ----------
    packed : DataFrame
        cells as `ingest.packing` makes them, columns of PACK_DDL
    settings : Settings
        of the model to learn
    kinds : tuple[IdKind, IdKind]
        of the ids of users and of items
    plan : Plan
        threads, stops, and where progress is noted
    prior : ModelState | None
        the model that they are added to; None for a fresh fit
    features : Features
        what is known of users and items beside

    Returns
    -------
    one state and report for each of the plan's stops
    """
    clock = time.perf_counter()
    parts = packed.select(F.lit("ratings").alias("kind"), "payload")
    if prior is not None:
        parts = parts.unionByName(parts_frame(packed.sparkSession, prior))
    known = [(kind, rows) for kind, rows in zip(_FEATURES, features, strict=True) if rows]
    if known:
        kinds_of, payloads_of = zip(*[(k, to_bytes(r.to_table())) for k, r in known], strict=True)
        held = pa.table([pa.array(kinds_of), pa.array(payloads_of, pa.binary())], PART_SCHEMA)
        parts = parts.unionByName(packed.sparkSession.createDataFrame(held))
    trainer = _Train(settings.to_json(), kinds, plan.threads, plan.stops, plan.progress_path)
    learned = collect_payloads(parts.coalesce(1).mapInArrow(trainer, PART_DDL))
    by_stop: list[list[tuple[str, bytes]]] = [[] for _ in plan.stops]
    names, payloads = (learned.column(name).to_pylist() for name in ("kind", "payload"))
    for name, payload in zip(names, payloads, strict=True):
        number, _, kind = name.partition(":")
        by_stop[int(number)].append((kind, payload))
    trained = []
    for own in by_stop:
        state, extra = state_from_parts(own)
        seconds = extra["seconds"]
        seconds["job"] = time.perf_counter() - clock - sum(seconds.values())
        logger.info("one task: %s", json.dumps(seconds))
        trained.append(
            (state, TrainingReport("one task", extra["rmse"], seconds, len(extra["rmse"])))
        )
    return trained
