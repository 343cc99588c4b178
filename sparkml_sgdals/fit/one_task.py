"""Train: packed ratings in, a model state out, in one task or in blocks (driver).

The one-task form: all packed ratings go to one task, which filters and sweeps with threads and
moves nothing more. What is larger than `max_ratings_per_task` goes to `blocked`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkml_sgdals.arrays.id_index import IdKind
from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.fit.progress import TaskProgress
from sparkml_sgdals.learn.solvers import DivergenceError
from sparkml_sgdals.learn.whole_table import fit_stops
from sparkml_sgdals.state.exchange import (
    PART_DDL,
    PART_SCHEMA,
    from_bytes,
    part_batch,
    state_from_parts,
    state_parts,
)
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.settings import Settings
from sparkml_sgdals.store.objects import StorageError

__all__ = [
    "BROADCAST_IDS",
    "Plan",
    "Trained",
    "TrainingReport",
    "blocks_for",
    "collect_payloads",
    "explained",
    "local_threads",
    "parts_frame",
    "phase",
    "train_in_one_task",
]

logger = logging.getLogger(__name__)

BROADCAST_IDS: Final = 500_000
"""Factors of up to that many ids, some 100 MB at rank 16, are broadcast instead of shuffled."""


@dataclass(frozen=True)
class Plan:
    """How a table is learned: its form follows from Params and its size alone.

    Attributes
    ----------
    stops : passes after which to keep a model, ascending; the last one ends the learning
    progress_path : where tasks note how far they are, empty for nowhere
    """

    num_blocks: int
    threads: int
    checkpoint_interval: int
    stops: tuple[int, ...]
    progress_path: str = ""


@dataclass(frozen=True)
class TrainingReport:
    """What a fit did.

    Attributes
    ----------
    rmse : training RMSE after each sweep or pass, in rating units
    seconds : time by phase, in seconds
    passes : sweeps or passes done
    """

    form: str
    rmse: list[float]
    seconds: dict[str, float]
    passes: int


Trained = tuple[ModelState, TrainingReport]


def blocks_for(ratings: int, max_per_task: int) -> int:
    """One block up to `max_per_task` ratings, else blocks of at most half of that."""
    return 1 if ratings <= max_per_task else 2 * -(-ratings // max_per_task)


def local_threads(spark: SparkSession) -> int:
    """Threads of a task under local[N], 0 where the master is no local one."""
    master = spark.conf.get("spark.master", "") or ""
    if master == "local":
        return 1
    match = re.match(r"local\[(\d+|\*)", master)
    if match is None:
        return 0
    return (os.cpu_count() or 1) if match[1] == "*" else int(match[1])


@contextmanager
def phase(spark: SparkSession, name: str) -> Iterator[None]:
    """Tag the jobs of a phase of a fit, for Spark's pages and for `spark.interruptTag`."""
    tag = f"sparkml_sgdals: {name}"
    spark.addTag(tag)
    try:
        yield
    finally:
        spark.removeTag(tag)


def parts_frame(spark: SparkSession, state: ModelState) -> DataFrame:
    """A state as a DataFrame of parts."""
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
        for batch in batches:
            for kind, payload in zip(
                batch.column("kind").to_pylist(), batch.column("payload"), strict=True
            ):
                if kind == "ratings":
                    tables.append(from_bytes(payload.as_buffer()))
                else:
                    prior.append((kind, payload.as_py()))
        settings = Settings.from_json(self.settings)
        state = state_from_parts(prior)[0] if prior else ModelState.empty(settings, *self.kinds)
        # integers are as narrow as each cell's values let them be
        table = pa.concat_tables(tables, promote_options="permissive")
        # many passes in shuffled orders have no use for it
        if settings.solver in ("sgd", "minibatch") and "time" in table.column_names:
            table = table.drop_columns("time")
        context = TaskContext.get()
        threads = self.threads or (context.cpus() if context else 1)
        ratings = encode_ratings(table, threads)
        del tables, table
        encoded = time.perf_counter()
        passes = 1 if settings.positive else max(self.stops)
        note = TaskProgress(self.progress_path, 0, 1 + passes)
        note.write(1, None)
        kept = fit_stops(
            ratings, state, self.stops, threads, lambda number, rmse: note.write(1 + number, rmse)
        )
        history = kept[-1][1]
        if len(history) < passes and not settings.positive:
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
) -> list[Trained]:
    """Learn packed ratings in one task: one Spark job of one narrow stage.

    Parameters
    ----------
    prior : the model that they are added to; None for a fresh fit

    Returns
    -------
    one state and report for each of the plan's stops
    """
    clock = time.perf_counter()
    parts = packed.select(F.lit("ratings").alias("kind"), "payload")
    if prior is not None:
        parts = parts.unionByName(parts_frame(packed.sparkSession, prior))
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


def explained(failure: Exception) -> Exception:
    """What a task reported of divergence or storage, without Spark's wrapping; else the failure."""
    found = re.search(r"(DivergenceError|StorageError): ([^\n]+)", str(failure))
    if found is None:
        return failure
    return {"DivergenceError": DivergenceError, "StorageError": StorageError}[found[1]](
        found[2].strip()
    )


def collect_payloads(frame: DataFrame) -> pa.Table:
    """Collect a small frame of binary payloads.

    Raises DivergenceError or StorageError where a task raised it, else what Spark raises.
    """
    try:
        return frame.toArrow()
    except Exception as failure:
        raise explained(failure) from failure
