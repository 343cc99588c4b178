"""The blocked form of training, for tables too large for one task (driver; closures on executors).

Each step hands *messages* to blocks, which meet there what is laid out once: `route` and `lay out`,
the filter over B strata, then half-sweeps of users and items in turn. Between steps only factors
move, on shared disks their places alone; the driver takes no part until the last one is collected,
or written by the blocks themselves.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.fit.blocks.ends import (
    FINAL,
    first_messages,
    read_final,
    told_by_one,
    whole_known,
)
from sparkml_sgdals.fit.blocks.events.exchange import StartEvents
from sparkml_sgdals.fit.blocks.events.regularisation import lambdas_in_one_task
from sparkml_sgdals.fit.blocks.exchange import Start
from sparkml_sgdals.fit.blocks.features.given import NO_MORE, GivenFeatures, spread
from sparkml_sgdals.fit.blocks.files import BlockFiles, block_folder, static_name
from sparkml_sgdals.fit.blocks.inbox import Inbox
from sparkml_sgdals.fit.blocks.layout import PIECE_DDL, Encode, Route, lay_out, measured
from sparkml_sgdals.fit.blocks.messages import (
    MESSAGE_DDL,
    MESSAGE_SCHEMA,
    Job,
    partition_keys,
    placed,
)
from sparkml_sgdals.fit.blocks.on_rows import OnRows
from sparkml_sgdals.fit.blocks.side_by_side import SideBySide, run_side_by_side
from sparkml_sgdals.fit.blocks.steps import (
    HANDED_ON,
    Naming,
    Noted,
    Step,
    Steps,
    event_steps,
    last_step,
    may_settle,
    rating_steps,
    stops_of,
)
from sparkml_sgdals.fit.plan import Plan, Trained, TrainingReport
from sparkml_sgdals.fit.progress import TaskProgress
from sparkml_sgdals.ingest.side_vectors import NO_VECTORS, TableVectors
from sparkml_sgdals.learn.features.tables_of_events import learn_event_features
from sparkml_sgdals.learn.whole_table import check_finite, settle_scale
from sparkml_sgdals.spark_jobs import collect_payloads, explained, local_threads, phase
from sparkml_sgdals.state.model_state import ModelState, Scale
from sparkml_sgdals.state.settings import Settings
from sparkml_sgdals.store.large.in_runs import RunSink

__all__ = ["train_in_blocks"]


def train_in_blocks(
    packed: DataFrame,
    settings: Settings,
    kinds: tuple[IdKind, IdKind],
    plan: Plan,
    prior: ModelState | None = None,
    sink: RunSink | None = None,
    features: TableVectors = NO_VECTORS,
) -> list[Trained]:
    """Learn packed ratings in `plan.num_blocks` blocks of users and of items.

    Parameters
    ----------
    packed : DataFrame
        cells as `ingest.packing` makes them, columns of PACK_DDL
    settings : Settings
        of the model to learn
    kinds : tuple[IdKind, IdKind]
        of the ids of users and of items
    plan : Plan
        number of blocks and threads, stops, how often a step is materialised
    prior : ModelState | None
        the model that they are added to; None for a fresh fit
    sink : RunSink | None
        where the blocks write their rows, of ratings learned afresh up to one stop; the state then
        holds none of them, and the report says the runs. None: the driver collects them
    features : TableVectors
        what is known of users and items beside

    Returns
    -------
    one state and report for each of the plan's stops

    Raises
    ------
    StorageError
        where a file of the blocks cannot be written, or is lost
    DivergenceError
        where factors are not finite
    ValueError
        features have more columns than are learned in blocks, or a vector is none
    """
    clock = time.perf_counter()
    spark = packed.sparkSession
    keys = partition_keys(spark, plan.num_blocks)
    job = Job(settings, kinds, keys, plan.threads, fresh=prior is None)
    if prior is not None:
        job = replace(job, features=prior.features)
    known = NO_MORE
    trained: list[Trained] = []
    with ExitStack() as stack:
        folder = stack.enter_context(block_folder(spark))
        held = _Held(stack)
        files = None if folder is None else BlockFiles(folder)
        if settings.featured and not settings.fits_events:
            known = (
                GivenFeatures.to_model(features.rows, job)
                if prior is not None
                else spread(features, job, files, held.keep)
            )
        timed = settings.solver == "bayes"
        pieces = placed(packed.mapInArrow(Route(job, timed, files), PIECE_DDL), job)
        cells = pieces.mapInArrow(Encode(job, files), MESSAGE_DDL)
        if files is None:
            cells = held.keep(placed(cells, job))
        with phase(spark, "route"):
            job, moments = measured(cells, job)
        if files is not None:
            files.drop_tables()
        routed = time.perf_counter()
        lams = (0.0, 0.0)
        if settings.fits_events:
            # events have no unit
            scale = Scale()
            lams = lambdas_in_one_task(packed, settings, kinds, plan.threads, moments.ratings)
        elif prior is None:
            scale = replace(moments.scale, frozen=True)
        else:
            prior = prior.copy()
            weight = moments.scale.weight, moments.scale.mean, moments.scale.squares
            settle_scale(prior, weight, moments.ratings, freeze=True)
            scale = prior.scale
        job = replace(job, scale=(scale.mean, scale.spread))
        tidy = local_threads(spark) > 0
        blocks = (
            OnRows(cells, job, held.keep, known.given)
            if files is None
            else _OnFiles(files, job, tidy)
        )
        steps = (
            event_steps(job, plan, lams)
            if settings.fits_events
            else rating_steps(job, plan, known.moves)
        )
        first = first_messages(job, prior, known.messages)
        for stop, rows in _learned(blocks, spark, job, plan, first, steps, held, sink):
            state, history, runs = read_final(rows, job, moments, prior, stop, sink is not None)
            state.settings = settings if prior else replace(settings, max_iter=stop)
            state.scale = scale
            known.put_weights(state, rows)
            if settings.fits_events and settings.featured:
                learn_event_features(state, features.rows, plan.threads)
            if settings.fits_events:
                state.regularisation = lams
            check_finite(state, np.arange(state.users.size), np.arange(state.items.size))
            now = time.perf_counter()
            seconds = {"route": routed - clock, "learn": now - routed}
            # fewer sweeps than the stop where learning settled before it
            passes = min(stop, len(history)) if timed else stop
            report = TrainingReport(f"{plan.num_blocks} blocks", history, seconds, passes, runs)
            trained.append((state, report))
    return trained


@dataclass
class _Held:
    """Persisted frames, until Spark may forget them."""

    stack: ExitStack

    def keep(self, frame: DataFrame) -> DataFrame:
        """Persist a frame for the rest of the fit."""
        self.stack.callback(frame.persist().unpersist)
        return frame


# ---- learn ----------------------------------------------------------------------------------


class _Blocks(Protocol):
    """Runs steps on all blocks: messages in, messages out."""

    def start(
        self, step: Start | StartEvents, messages: DataFrame, note: TaskProgress | None = None
    ) -> DataFrame:
        """Lay the blocks out, and run their first step."""

    def run(self, step: Step, messages: DataFrame, note: TaskProgress | None = None) -> DataFrame:
        """Run a step; `note` says how far it is, the number of its block left open."""

    def name(self, step: Naming, messages: DataFrame) -> DataFrame:
        """Run the last step, which needs what all blocks told in the one before."""


def _learned(
    blocks: _Blocks, spark: SparkSession, job: Job, plan: Plan, first: pa.Table, steps: Steps,
    held: _Held, sink: RunSink | None,
) -> Iterator[tuple[int, pa.Table]]:  # fmt: skip
    """Yield what the driver is told at each stop."""
    naming, stops = last_step(job, sink), stops_of(job, plan)
    messages = spark.createDataFrame(first, MESSAGE_DDL)
    if (
        isinstance(blocks, _OnFiles)
        and len(stops) == 1
        and steps
        and run_side_by_side(spark, plan.num_blocks)
    ):
        with phase(spark, "learn"):
            yield stops[0], collect_payloads(blocks.side_by_side(steps, naming, messages, plan))
        return
    for stop, reached in _learn(blocks, spark, job, plan, messages, steps):
        if stop != plan.stops[-1]:
            held.keep(reached)
        final = reached.where(F.col("kind").isin(*FINAL))
        with phase(spark, f"sweep {stop}" if stop else "filter"):
            yield stop, collect_payloads(blocks.name(naming, final))


def _learn(
    blocks: _Blocks, spark: SparkSession, job: Job, plan: Plan, messages: DataFrame,
    steps: Steps,
) -> Iterator[tuple[int, DataFrame]]:  # fmt: skip
    """Chain the steps from the start of all blocks, and yield their states at each stop."""
    bayes, stops = job.settings.solver == "bayes", stops_of(job, plan)
    if not bayes and 0 in stops:
        messages = blocks.start(Start(job, False), messages)
        yield 0, messages
    for number, (name, step, stop) in enumerate(steps, 1):
        note = TaskProgress(plan.progress_path, number, len(steps))
        messages = (
            blocks.start(step, messages, note)
            if isinstance(step, (Start, StartEvents))
            else blocks.run(step, messages, note)
        )
        asked = may_settle(job, plan, stop)
        if plan.checkpoint_interval > 0 and (asked or number % plan.checkpoint_interval == 0):
            with phase(spark, name):
                messages = _cut(messages)
                if isinstance(blocks, _OnFiles):
                    blocks.files.drop_states(number - HANDED_ON)
                settled = asked and _settled(messages, job)
            if settled:
                # what blocks would hand on to the last step is here
                later = [n for _, _, n in steps[number - 1 :] if n is not None and n in stops]
                yield from ((same, messages) for same in later)
                return
        if stop in stops:
            yield stop, messages


def _cut(messages: DataFrame) -> DataFrame:
    """Run what leads to these messages; raises as `collect_payloads`."""
    try:
        return messages.localCheckpoint()
    except Exception as failure:
        raise explained(failure) from failure


def _settled(messages: DataFrame, job: Job) -> bool:
    """Whether the blocks have found, in the step before these messages, that sweeps may end."""
    rows = collect_payloads(messages.where(F.col("kind").isin("learned", "sums")))
    return told_by_one(rows, job).settled(job.settings.tol)


# ---- statics in files -----------------------------------------------------------------------


@dataclass(frozen=True)
class _TaskOnFiles:
    """Run a step on the blocks whose messages come to a task."""

    work: Noted
    files: BlockFiles
    first: bool = False
    tidy: bool = False
    """whether no task of an earlier step runs again, so that its states may go"""

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        if self.tidy:
            self.files.drop_states(self.files.step - HANDED_ON - 1)
        table = pa.Table.from_batches(list(batches), MESSAGE_SCHEMA)
        # one block, but where Spark's hash or some plan puts two together
        for block in sorted(pc.unique(table.column("target")).to_pylist()):
            if self.first:
                _lay_out_files(self.work.step.job, self.files, block)
            yield from self.work(self.files, Inbox.among(table, block))


def _lay_out_files(job: Job, files: BlockFiles, block: int) -> None:
    """Lay out the two blocks of a number, in files."""
    for kind, side, own, partner, arrays in lay_out(files, block, job):
        files.put(static_name(kind, side, own, partner), arrays)


def _block_settled(job: Job, inbox: Inbox) -> bool:
    return whole_known(inbox, job).settled(job.settings.tol)


@dataclass(frozen=True)
class _OnFiles:
    """Steps whose statics lie in files: only messages go through Spark."""

    files: BlockFiles
    job: Job
    tidy: bool

    def start(
        self, step: Start | StartEvents, messages: DataFrame, note: TaskProgress | None = None
    ) -> DataFrame:
        task = _TaskOnFiles(Noted(step, note), self._at(note), first=True)
        return placed(messages, self.job).mapInArrow(task, MESSAGE_DDL)

    def run(self, step: Step, messages: DataFrame, note: TaskProgress | None = None) -> DataFrame:
        task = _TaskOnFiles(Noted(step, note), self._at(note), tidy=self.tidy)
        return placed(messages, self.job).mapInArrow(task, MESSAGE_DDL)

    def name(self, step: Naming, messages: DataFrame) -> DataFrame:
        task = _TaskOnFiles(Noted(step, None), self.files)
        return placed(messages, self.job).mapInArrow(task, MESSAGE_DDL)

    def side_by_side(
        self, steps: Steps, naming: Naming, messages: DataFrame, plan: Plan
    ) -> DataFrame:
        """Run all steps in one stage, whose tasks wait for each other after each."""
        notes = (TaskProgress(plan.progress_path, n, len(steps)) for n in range(1, len(steps) + 1))
        task = SideBySide(
            self.files,
            partial(_lay_out_files, self.job),
            [Noted(step, note) for (_, step, _), note in zip(steps, notes, strict=True)],
            [may_settle(self.job, plan, stop) for _, _, stop in steps],
            partial(_block_settled, self.job),
            Noted(naming, None),
        )
        return placed(messages, self.job).mapInArrow(task, MESSAGE_DDL, barrier=True)

    def _at(self, note: TaskProgress | None) -> BlockFiles:
        return replace(self.files, step=0 if note is None else note.task)
