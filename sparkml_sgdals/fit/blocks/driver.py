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
from typing import Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.arrays.ipc import arrays_to_buffer
from sparkml_sgdals.fit.blocks.ends import (
    FINAL,
    GivenFeatures,
    first_messages,
    read_final,
    told_by_one,
    whole_known,
)
from sparkml_sgdals.fit.blocks.event_exchange import (
    DescendHalf,
    NameEvents,
    StartEvents,
)
from sparkml_sgdals.fit.blocks.exchange import Half, NameRows, Start, Stratum
from sparkml_sgdals.fit.blocks.files import (
    BlockFiles,
    BlockRows,
    Statics,
    block_folder,
    static_name,
)
from sparkml_sgdals.fit.blocks.inbox import Inbox
from sparkml_sgdals.fit.blocks.layout import PIECE_DDL, Encode, Route, lay_out, measured
from sparkml_sgdals.fit.blocks.messages import (
    MESSAGE_DDL,
    MESSAGE_SCHEMA,
    Job,
    binary,
    partition_keys,
    placed,
)
from sparkml_sgdals.fit.blocks.regularisation import lambdas_in_one_task
from sparkml_sgdals.fit.blocks.to_path import WriteRuns
from sparkml_sgdals.fit.plan import Plan, Trained, TrainingReport
from sparkml_sgdals.fit.progress import TaskProgress
from sparkml_sgdals.learn.features.tables_of_events import learn_event_features
from sparkml_sgdals.learn.solvers import EARLIEST_STOP
from sparkml_sgdals.learn.whole_table import NO_FEATURES, Features, check_finite, settle_scale
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
    features: Features = NO_FEATURES,
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
    features : Features
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
        features have more columns than are learned in blocks
    """
    clock = time.perf_counter()
    spark = packed.sparkSession
    keys = partition_keys(spark, plan.num_blocks)
    job = Job(settings, kinds, keys, plan.threads, fresh=prior is None)
    if prior is not None:
        job = replace(job, features=prior.features)
    known = GivenFeatures.of(features, job)
    trained: list[Trained] = []
    with ExitStack() as stack:
        folder = stack.enter_context(block_folder(spark))
        held = _Held(stack)
        files = None if folder is None else BlockFiles(folder)
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
        blocks = _OnRows(cells, job, held) if files is None else _OnFiles(files, job, tidy)
        steps = (
            _event_steps(job, plan, lams)
            if settings.fits_events
            else _rating_steps(job, plan, known.moves)
        )
        first = first_messages(job, prior, known)
        for stop, messages in _learn(blocks, spark, job, plan, first, steps):
            if stop != plan.stops[-1]:
                held.keep(messages)
            with phase(spark, f"sweep {stop}" if stop else "filter"):
                final = messages.where(F.col("kind").isin(*FINAL))
                rows = collect_payloads(blocks.name(_naming(job, sink), final))
            state, history, runs = read_final(rows, job, moments, prior, stop, sink is not None)
            state.settings = settings if prior else replace(settings, max_iter=stop)
            state.scale = scale
            known.put_weights(state, rows)
            if settings.fits_events and settings.featured:
                learn_event_features(state, features, plan.threads)
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


_Naming = NameRows | NameEvents | WriteRuns
_Step = Start | Stratum | Half | StartEvents | DescendHalf | _Naming
_Steps = list[tuple[str, _Step, int | None]]
"""name of the phase, step, and the stop that is reached by it"""


class _Blocks(Protocol):
    """Runs steps on all blocks: messages in, messages out."""

    def start(
        self, step: Start | StartEvents, messages: DataFrame, note: TaskProgress | None = None
    ) -> DataFrame:
        """Lay the blocks out, and run their first step."""

    def run(self, step: _Step, messages: DataFrame, note: TaskProgress | None = None) -> DataFrame:
        """Run a step; `note` says how far it is, the number of its block left open."""

    def name(self, step: _Naming, messages: DataFrame) -> DataFrame:
        """Run the last step, which needs what all blocks told in the one before."""


def _naming(job: Job, sink: RunSink | None) -> _Naming:
    if sink is not None:
        return WriteRuns(job, sink)
    return NameEvents(job) if job.settings.fits_events else NameRows(job)


def _stops(job: Job, plan: Plan) -> tuple[int, ...]:
    return plan.stops if job.fresh or job.settings.solver == "bayes" else (1,)


def _event_steps(job: Job, plan: Plan, lams: tuple[float, float]) -> _Steps:
    steps: _Steps = [("start", StartEvents(job), None)]
    for sweep in range(1, plan.stops[-1] + 1):
        name, again = f"sweep {sweep}", sweep < plan.stops[-1]
        steps.append((name, DescendHalf(job, "users", lams[0]), None))
        steps.append((name, DescendHalf(job, "items", lams[1], send=again), sweep))
    return steps


def _rating_steps(job: Job, plan: Plan, moves: tuple[bool, bool] = (False, False)) -> _Steps:
    """Return the steps of ratings; the start learns a stratum too.

    Sides with features move to where these say in a step of their own, between what all blocks
    tell of them and what partners are sent.
    """
    bayes, stops = job.settings.solver == "bayes", _stops(job, plan)
    untouched = not bayes and 0 in stops
    steps: _Steps = []
    for stratum in range((1 if bayes else stops[-1]) * job.num_blocks):
        passes, rest = divmod(stratum + 1, job.num_blocks)
        stop = None if rest else (0 if bayes else passes)
        learned = stratum == 0 and not untouched
        steps.append(("filter", Start(job, True) if learned else Stratum(job, stratum), stop))
    if bayes and stops[-1]:
        steps.append(("sweep 1", Half(job, "items", learn=False, check=True), None))
        for sweep in range(1, stops[-1] + 1):
            name, again = f"sweep {sweep}", sweep < stops[-1]
            steps.append((name, Half(job, "users", send=not moves[0], check=sweep == 1), None))
            if moves[0]:
                steps.append((name, Half(job, "users", learn=False), None))
            steps.append((name, Half(job, "items", send=again and not moves[1]), sweep))
            if moves[1] and again:
                steps.append((name, Half(job, "items", learn=False), None))
    return steps


def _learn(
    blocks: _Blocks, spark: SparkSession, job: Job, plan: Plan, first: pa.Table,
    steps: _Steps,
) -> Iterator[tuple[int, DataFrame]]:  # fmt: skip
    """Chain the steps from the start of all blocks, and yield their states at each stop."""
    bayes, stops = job.settings.solver == "bayes", _stops(job, plan)
    messages = spark.createDataFrame(first, MESSAGE_DDL)
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
        may_settle = bayes and job.settings.tol > 0 and stop is not None
        asked = may_settle and stop in range(EARLIEST_STOP, stops[-1])
        if plan.checkpoint_interval > 0 and (asked or number % plan.checkpoint_interval == 0):
            with phase(spark, name):
                messages = _cut(messages)
                if isinstance(blocks, _OnFiles):
                    blocks.files.drop_states(number - 3)
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


@dataclass(frozen=True)
class _Noted:
    """A step that its block notes once it is done."""

    step: _Step
    note: TaskProgress | None

    def __call__(self, statics: Statics, inbox: Inbox) -> Iterator[pa.RecordBatch]:
        job = self.step.job
        for message in self.step(statics, inbox):
            yield job.batch(message)
        if self.note is not None:
            history = whole_known(inbox, job).history
            rmse = history[-1] * job.scale[1] if history else None
            place = replace(self.note, task=inbox.block)
            place.write(self.note.task, rmse)


# ---- statics in files -----------------------------------------------------------------------


@dataclass(frozen=True)
class _TaskOnFiles:
    """Run a step on the blocks whose messages come to a task."""

    work: _Noted
    files: BlockFiles
    first: bool = False
    tidy: bool = False
    """whether no task of an earlier step runs again, so that its states may go"""

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        if self.tidy:
            # a step reads states of the one before, and two in turn may hand them on
            self.files.drop_states(self.files.step - 4)
        table = pa.Table.from_batches(list(batches), MESSAGE_SCHEMA)
        # one block, but where Spark's hash or some plan puts two together
        for block in sorted(pc.unique(table.column("target")).to_pylist()):
            if self.first:
                job = self.work.step.job
                for kind, side, own, partner, arrays in lay_out(self.files, block, job):
                    self.files.put(static_name(kind, side, own, partner), arrays)
            yield from self.work(
                self.files, Inbox(block, table.filter(pc.field("target") == block))
            )


@dataclass(frozen=True)
class _OnFiles:
    """Steps whose statics lie in files: only messages go through Spark."""

    files: BlockFiles
    job: Job
    tidy: bool

    def start(
        self, step: Start | StartEvents, messages: DataFrame, note: TaskProgress | None = None
    ) -> DataFrame:
        task = _TaskOnFiles(_Noted(step, note), self._at(note), first=True)
        return placed(messages, self.job).mapInArrow(task, MESSAGE_DDL)

    def run(self, step: _Step, messages: DataFrame, note: TaskProgress | None = None) -> DataFrame:
        task = _TaskOnFiles(_Noted(step, note), self._at(note), tidy=self.tidy)
        return placed(messages, self.job).mapInArrow(task, MESSAGE_DDL)

    def name(self, step: _Naming, messages: DataFrame) -> DataFrame:
        task = _TaskOnFiles(_Noted(step, None), self.files)
        return placed(messages, self.job).mapInArrow(task, MESSAGE_DDL)

    def _at(self, note: TaskProgress | None) -> BlockFiles:
        return replace(self.files, step=0 if note is None else note.task)


# ---- statics in rows ------------------------------------------------------------------------


_STATIC_SCHEMA: Final = pa.schema(
    [("key", pa.int32()), ("kind", pa.string()), ("stratum", pa.int32()), ("name", pa.string()),
     ("payload", pa.binary())]
)  # fmt: skip
_STATIC_DDL: Final = "key int, kind string, stratum int, name string, payload binary"


def _run_on_rows(work: _Noted, statics: pa.Table, messages: pa.Table) -> pa.Table:
    """Run a step on a block and the statics that came with it."""
    if not messages.num_rows:
        return MESSAGE_SCHEMA.empty_table()
    block = messages.column("target")[0].as_py()
    given = work(_rows(statics), Inbox(block, messages))
    return pa.Table.from_batches(list(given), MESSAGE_SCHEMA)


def _rows(table: pa.Table) -> BlockRows:
    names, payloads = table.column("name").to_pylist(), table.column("payload")
    return BlockRows({n: p.as_buffer() for n, p in zip(names, payloads, strict=True)})


def _lay_out_rows(job: Job, cells: pa.Table) -> pa.Table:
    """Lay out the two blocks of a number, as rows."""
    own = job.keys.index(cells.column("key")[0].as_py())
    batches = []
    for kind, side, block, partner, arrays in lay_out(_rows(cells), own, job):
        target, stratum = own, None
        if kind == "rows":
            # a block of users learns its cells, and needs the places of both sides there
            u, i = (block, partner) if side == "users" else (partner, block)
            target, stratum = u, (i - u) % job.num_blocks
        values = [job.keys[target], kind, stratum, static_name(kind, side, block, partner)]
        columns = [pa.array([v], f.type) for v, f in zip(values, _STATIC_SCHEMA, strict=False)]
        columns.append(binary(arrays_to_buffer(arrays)))
        batches.append(pa.RecordBatch.from_arrays(columns, schema=_STATIC_SCHEMA))
    return pa.Table.from_batches(batches, _STATIC_SCHEMA)


class _OnRows:
    """Steps whose statics are persisted rows, cogrouped with the messages of each step."""

    def __init__(self, cells: DataFrame, job: Job, held: _Held) -> None:
        self.job = job
        cells = cells.where(F.col("kind") == "cell").select(
            "key",
            "kind",
            F.pmod(F.col("source") - F.col("target"), F.lit(job.num_blocks)).alias("stratum"),
            F.format_string("cell-users-%05d-%05d", "target", "source").alias("name"),
            "payload",
            "source",
        )
        keys = F.array(*[F.lit(key) for key in job.keys])
        by_item = cells.withColumn("key", F.get(keys, F.col("source")).cast("int"))
        both = placed(cells.unionByName(by_item), job).drop("source")

        def task(cells: pa.Table) -> pa.Table:
            return _lay_out_rows(job, cells)

        laid_out = both.groupBy("key").applyInArrow(task, _STATIC_DDL)
        self.cells = cells.drop("source")
        self.laid_out = held.keep(placed(laid_out, job))

    def start(
        self, step: Start | StartEvents, messages: DataFrame, note: TaskProgress | None = None
    ) -> DataFrame:
        return self.run(step, messages, note)

    def run(self, step: _Step, messages: DataFrame, note: TaskProgress | None = None) -> DataFrame:
        statics = self._wanted(self.laid_out, step)
        if "cell" in step.kinds:
            statics = statics.unionByName(self._wanted(self.cells, step))
        work = _Noted(step, note)

        # Spark counts the arguments, and takes an object's own self for one
        def task(statics: pa.Table, messages: pa.Table) -> pa.Table:
            return _run_on_rows(work, statics, messages)

        return (
            placed(statics, self.job)
            .groupBy("key")
            .cogroup(placed(messages, self.job).groupBy("key"))
            .applyInArrow(task, MESSAGE_DDL)
        )

    def name(self, step: _Naming, messages: DataFrame) -> DataFrame:
        return self.run(step, messages)

    @staticmethod
    def _wanted(statics: DataFrame, step: _Step) -> DataFrame:
        of_kind = statics.where(F.col("kind").isin(*step.kinds))
        if step.stratum is None:
            return of_kind
        return of_kind.where(F.col("stratum").isNull() | (F.col("stratum") == step.stratum))
