"""The blocked form of training, for tables too large for one task (driver; closures on executors).

Each step is one cogroup of a static, persisted layout with *messages* addressed to its blocks:
`route` and `lay out` once, `start`, the filter over B strata, then half-sweeps of users and items
in turn. Between steps only factors move; the driver takes no part until the last one is collected.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkml_sgdals.blocks import (
    BlockLayout,
    BlockState,
    Cell,
    Sums,
    arrays_from_bytes,
    arrays_to_bytes,
    draw,
    learn_cell,
    named_rows,
    standardised,
    sweep_block,
)
from sparkml_sgdals.exchange import from_bytes, to_bytes
from sparkml_sgdals.hashing import block_of, id_keys
from sparkml_sgdals.index import IdKind
from sparkml_sgdals.kernels import standardise
from sparkml_sgdals.learning import check_finite, settle_scale
from sparkml_sgdals.progress import TaskProgress
from sparkml_sgdals.routing import (
    CELL_DDL,
    MESSAGE_DDL,
    OTHER,
    SIDES,
    Job,
    Message,
    Moments,
    Route,
    SideName,
    lay_out_items,
    lay_out_users,
    measure,
    partition_keys,
    placed,
)
from sparkml_sgdals.settings import Settings
from sparkml_sgdals.state import Counters, ModelState
from sparkml_sgdals.training import Plan, Trained, TrainingReport, collect_payloads, phase

__all__ = ["train_in_blocks"]


def train_in_blocks(
    packed: DataFrame,
    settings: Settings,
    kinds: tuple[IdKind, IdKind],
    plan: Plan,
    prior: ModelState | None = None,
) -> list[Trained]:
    """Learn packed ratings in `plan.num_blocks` blocks of users and of items.

    Parameters
    ----------
    prior : the model that they are added to; None for a fresh fit

    Returns
    -------
    one state and report for each of the plan's stops
    """
    clock = time.perf_counter()
    spark = packed.sparkSession
    keys = partition_keys(spark, plan.num_blocks)
    job = Job(settings, kinds, keys, plan.threads, fresh=prior is None)
    cells = packed.mapInArrow(Route(job, settings.solver == "bayes"), CELL_DDL)
    held = [cells.persist()]
    trained: list[Trained] = []
    try:
        items = placed(lay_out_items(cells, job), job).persist()
        held.append(items)
        with phase(spark, "route"):
            job, moments = measure(items, job)
        if prior is None:
            scale = replace(moments.scale, frozen=True)
        else:
            prior = prior.copy()
            weight = moments.scale.weight, moments.scale.mean, moments.scale.squares
            settle_scale(prior, weight, moments.ratings, freeze=True)
            scale = prior.scale
        job = replace(job, scale=(scale.mean, scale.spread))
        users = placed(lay_out_users(cells, items, job), job).persist()
        held.append(users)
        for stop, messages in _learn(users, items, job, plan, prior):
            final = messages.persist()
            held.append(final)
            with phase(spark, f"sweep {stop}" if stop else "filter"):
                state = _collect(users, items, final, job, prior)
                state.settings = settings if prior else replace(settings, max_iter=stop)
                state.scale = scale
                history = _take_sums(final, state, job, moments, stop)
            check_finite(state, np.arange(state.users.size), np.arange(state.items.size))
            seconds = {"learn": time.perf_counter() - clock}
            report = TrainingReport(f"{plan.num_blocks} blocks", history, seconds, stop)
            trained.append((state, report))
        return trained
    finally:
        for frame in held:
            frame.unpersist()


# ---- learn ----------------------------------------------------------------------------------


_Function = Callable[[pa.Table, pa.Table], pa.Table]


def _learn(
    users: DataFrame, items: DataFrame, job: Job, plan: Plan, prior: ModelState | None
) -> Iterator[tuple[int, DataFrame]]:
    """The chain of steps from the start of all blocks: their states at each stop of the plan."""
    spark = users.sparkSession
    known = _prior_messages(spark, job, prior)
    messages = _step(users, ["ids"], known.where("side = 'users'"), _start("users", job), job)
    messages = messages.unionByName(
        _step(items, ["ids"], known.where("side = 'items'"), _start("items", job), job)
    )
    # name of the phase, layout, its rows, what to do, and the stop that is reached by it
    steps: list[tuple[str, DataFrame, Column, _Function, int | None]] = []
    stops = plan.stops if job.fresh or job.settings.solver == "bayes" else (1,)
    bayes = job.settings.solver == "bayes"
    strata = (1 if bayes else stops[-1]) * job.num_blocks
    for stratum in range(strata):
        wanted = (F.col("kind") == "cell") & (
            F.col("source") == F.pmod(F.col("target") + stratum, F.lit(job.num_blocks))
        )
        passes, rest = divmod(stratum + 1, job.num_blocks)
        stop = None if rest else (0 if bayes else passes)
        steps.append(("filter", users, wanted, _stratum(stratum, job), stop))
    if bayes:
        of_layout = F.col("kind") == "layout"
        if stops[-1]:
            send = _half("items", job, learn=False)
            steps.append(("sweep 1", items, of_layout, send, None))
        for sweep in range(1, stops[-1] + 1):
            name = f"sweep {sweep}"
            steps.append((name, users, of_layout, _half("users", job), None))
            steps.append((name, items, of_layout, _half("items", job), sweep))
    if not bayes and 0 in stops:
        yield 0, messages
    for number, (name, layout, rows, function, stop) in enumerate(steps, 1):
        noted = _noted(function, plan.progress_path, number, len(steps), job)
        messages = _cogroup(layout.where(rows), messages, noted, job)
        if plan.checkpoint_interval > 0 and number % plan.checkpoint_interval == 0:
            with phase(spark, name):
                messages = messages.localCheckpoint()
        if stop in stops:
            yield stop, messages


def _noted(function: _Function, path: str, number: int, total: int, job: Job) -> _Function:
    """The same function, which notes that its block has done so many steps."""

    def noted(layout: pa.Table, messages: pa.Table) -> pa.Table:
        given = function(layout, messages)
        inbox = _Inbox(layout, messages)
        history = _Learned.read(inbox, job).history
        rmse = history[-1] * job.scale[1] if history else None
        TaskProgress(path, inbox.block, total).write(number, rmse)
        return given

    return noted


def _prior_messages(spark: SparkSession, job: Job, prior: ModelState | None) -> DataFrame:
    messages: list[Message] = []
    if prior is not None:
        for side, table in (("users", prior.users), ("items", prior.items)):
            if table.size:
                blocks = block_of(id_keys(table.index.ids()), job.num_blocks)
                for block in range(job.num_blocks):
                    rows = np.flatnonzero(blocks == block)
                    payload = to_bytes(table.to_arrow(rows))
                    messages.append((block, side, block, "known", payload))  # type: ignore[arg-type]
    return spark.createDataFrame(job.batch(messages), MESSAGE_DDL)


def _step(
    layout: DataFrame, kinds: list[str], messages: DataFrame, function: _Function,
    job: Job,
) -> DataFrame:  # fmt: skip
    return _cogroup(layout.where(F.col("kind").isin(kinds)), messages, function, job)


def _cogroup(layout: DataFrame, messages: DataFrame, function: _Function, job: Job) -> DataFrame:
    return (
        layout.groupBy("key")
        .cogroup(placed(messages, job).groupBy("key"))
        .applyInArrow(function, MESSAGE_DDL)
    )


class _Inbox:
    """Messages of one block by side and kind."""

    def __init__(self, layout: pa.Table, messages: pa.Table) -> None:
        self.block: int = (layout if layout.num_rows else messages).column("target")[0].as_py()
        self._rows: dict[tuple[str, str], dict[int, pa.Scalar]] = {}
        for table in (layout, messages):
            for side, source, kind, payload in zip(
                table.column("side").to_pylist(), table.column("source").to_pylist(),
                table.column("kind").to_pylist(), table.column("payload"), strict=True,
            ):  # fmt: skip
                self._rows.setdefault((side, kind), {})[source] = payload

    def all(self, side: SideName, kind: str) -> dict[int, pa.Buffer]:
        """Payloads by source block, in its order."""
        found = self._rows.get((side, kind), {})
        return {source: found[source].as_buffer() for source in sorted(found)}

    def state(self, side: SideName, source: int) -> BlockState | None:
        payload = self.all(side, "state").get(source)
        return None if payload is None else BlockState(arrays_from_bytes(payload))


def _state_message(target: int, side: SideName, source: int, state: BlockState) -> Message:
    return (target, side, source, "state", arrays_to_bytes(state.arrays))


def _start(side: SideName, job: Job) -> _Function:
    def start(layout: pa.Table, messages: pa.Table) -> pa.Table:
        inbox = _Inbox(layout, messages)
        known = inbox.all(side, "known")
        messages_out: list[Message] = []
        for block, payload in inbox.all(side, "ids").items():
            ids = from_bytes(payload)
            state = BlockState.start(
                SIDES[side],
                ids.column("id").combine_chunks(),
                ids.column("count").to_numpy(),
                job.settings,
                from_bytes(known[block]) if known else (None if job.fresh else _no_rows(side, job)),
            )
            if side == "users":
                state.arrays["prequential"] = np.zeros(3)
            messages_out.append(_state_message(block, side, block, state))
        return job.batch(messages_out)

    return start


def _no_rows(side: SideName, job: Job) -> pa.Table:
    empty = ModelState.empty(job.settings, *job.kinds)
    return (empty.users if side == "users" else empty.items).to_arrow()


def _stratum(number: int, job: Job) -> _Function:
    def learn(layout: pa.Table, messages: pa.Table) -> pa.Table:
        inbox = _Inbox(layout, messages)
        blocks, own = job.num_blocks, inbox.block
        partner = (own + number) % blocks
        users, items = inbox.state("users", own), inbox.state("items", partner)
        cells = inbox.all("users", "cell")
        if cells and users is not None and items is not None:
            a = arrays_from_bytes(cells[partner])
            z = standardise(a["values"], *job.scale)
            cell = Cell(a["users"], a["items"], z, a["weights"])
            errors, baseline = learn_cell(cell, users, items, job.settings, number < blocks)
            # the later half of the first pass: what a model has learned so far is judged
            if blocks // 2 <= number < blocks:
                counted = users.arrays["prequential"]
                counted += _clipped_squares(a["values"], errors, baseline, job)
        messages_out = []
        if users is not None:
            messages_out.append(_state_message(own, "users", own, users))
        if items is not None:
            # where the next stratum wants it; after a whole pass that is at home
            target = (partner - number - 1) % blocks
            messages_out.append(_state_message(target, "items", partner, items))
        return job.batch(messages_out)

    return learn


def _clipped_squares(
    values: npt.NDArray[np.float32],
    errors: npt.NDArray[np.float32],
    baseline: npt.NDArray[np.float32],
    job: Job,
) -> npt.NDArray[np.float64]:
    truth = values.astype(np.float64)
    sums = [float(truth.size)]
    for apart in (errors, baseline):
        predicted = np.clip(truth - apart.astype(np.float64) * job.scale[1], *job.value_range)
        sums.append(float(np.sum((truth - predicted) ** 2)))
    return np.array(sums)


def _half(side: SideName, job: Job, learn: bool = True) -> _Function:
    def sweep(layout: pa.Table, messages: pa.Table) -> pa.Table:
        inbox = _Inbox(layout, messages)
        own, partner_side = inbox.block, OTHER[side]
        state, passenger = inbox.state(side, own), inbox.state(partner_side, own)
        learned = _Learned.read(inbox, job)
        messages_out: list[Message] = [(own, side, own, "learned", learned.to_bytes())]
        if passenger is not None:
            messages_out.append(_state_message(own, partner_side, own, passenger))
        if state is None:
            return job.batch(messages_out)
        block = BlockLayout.from_bytes(inbox.all(side, "layout")[own])
        if learn:
            sent = [arrays_from_bytes(b) for b in inbox.all(partner_side, "send").values()]
            partners = {name: np.concatenate([s[name] for s in sent]) for name in sent[0]}
            block = standardised(block, *job.scale)
            prior = learned.priors.get(side)
            if job.fresh and job.settings.implicit:
                priors = prior, learned.priors.get(partner_side)
                threads = job.task_threads()
                draw(block, state, partners, priors, side, job.settings, threads)
            sums = sweep_block(
                block, state, (partners["mean"], partners["var"]), prior, learned.noise,
                job.settings, job.task_threads(),
            )  # fmt: skip
            payload = arrays_to_bytes({"sums": sums.to_array()})
            for target in range(job.num_blocks):
                messages_out.append((target, side, own, "sums", payload))
        messages_out.append(_state_message(own, side, own, state))
        for target, rows in enumerate(block.sends):
            if rows.size:
                named = named_rows(state, rows, job.settings, job.fresh)
                messages_out.append((target, side, own, "send", arrays_to_bytes(named)))
        return job.batch(messages_out)

    return sweep


@dataclass(frozen=True)
class _Learned:
    """What every block knows of the whole: noise, prior variances by side, training RMSE."""

    noise: float
    priors: dict[SideName, npt.NDArray[np.float32]]
    history: tuple[float, ...]

    @classmethod
    def read(cls, inbox: _Inbox, job: Job) -> _Learned:
        """What the block knew, brought up to date by the sums that have come in."""
        noise = job.settings.noise
        priors: dict[SideName, npt.NDArray[np.float32]] = {}
        history: tuple[float, ...] = ()
        for side in SIDES:
            for payload in inbox.all(side, "learned").values():
                held = arrays_from_bytes(payload)
                noise, history = float(held["noise"][0]), tuple(held["history"].tolist())
                priors = {name: held[name] for name in SIDES if name in held}
        for side in SIDES:
            rows = [arrays_from_bytes(b)["sums"] for b in inbox.all(side, "sums").values()]
            if rows:
                total = Sums.total(rows)
                if job.fresh:
                    priors[side] = total.prior()
                if side == "items":
                    if job.fresh:
                        noise = (total.squares + total.variances) / job.total_weight
                    history = (*history, math.sqrt(total.squares / job.total_weight))
        return cls(noise, priors, history)

    def to_bytes(self) -> bytes:
        arrays: dict[str, npt.NDArray[Any]] = {
            "noise": np.array([self.noise]),
            "history": np.array(self.history, np.float64),
        }
        return arrays_to_bytes(arrays | dict(self.priors))


# ---- collect --------------------------------------------------------------------------------


def _collect(
    users: DataFrame, items: DataFrame, final: DataFrame, job: Job, prior: ModelState | None
) -> ModelState:
    """Put the ids back to the final states and gather them into one model."""
    state = ModelState.empty(job.settings, *job.kinds) if prior is None else prior.copy()
    sides: list[tuple[SideName, DataFrame]] = [("users", users), ("items", items)]
    for side, layout in sides:
        own = final.where((F.col("kind") == "state") & (F.col("side") == side))
        rows = _step(layout, ["ids"], own, _name_rows(side, job), job)
        table = state.users if side == "users" else state.items
        for payload in collect_payloads(rows.select("payload")).column("payload"):
            table.put_arrow(from_bytes(payload.as_buffer()))
    return state


def _name_rows(side: SideName, job: Job) -> _Function:
    def name_rows(layout: pa.Table, messages: pa.Table) -> pa.Table:
        inbox = _Inbox(layout, messages)
        state = inbox.state(side, inbox.block)
        messages_out: list[Message] = []
        if state is not None:
            ids = from_bytes(inbox.all(side, "ids")[inbox.block]).column("id").combine_chunks()
            payload = to_bytes(state.table(SIDES[side], ids, job.settings))
            messages_out.append((inbox.block, side, inbox.block, "rows", payload))
        return job.batch(messages_out)

    return name_rows


def _take_sums(
    final: DataFrame, state: ModelState, job: Job, moments: Moments, sweeps: int
) -> list[float]:
    """Set noise and counters of the collected model; the training RMSE of each sweep."""
    kinds = F.col("kind").isin("learned", "sums") | (
        (F.col("kind") == "state") & (F.col("side") == "users")
    )
    rows = collect_payloads(final.where(kinds))
    target = rows.column("target").to_numpy()
    history: list[float] = []
    if job.settings.solver == "bayes" and sweeps:
        first = _Inbox(rows.slice(0, 0), rows.filter(pa.array(target == target.min())))
        learned = _Learned.read(first, job)
        history = [rmse * job.scale[1] for rmse in learned.history]
        if job.fresh:
            state.noise, state.noise_weight = learned.noise, job.total_weight
    counted = np.zeros(3)
    for block in np.unique(target):
        own = _Inbox(rows.slice(0, 0), rows.filter(pa.array(target == block)))
        users = own.state("users", int(block))
        if users is not None:
            counted += users.arrays["prequential"]
    before = state.counters
    state.counters = Counters(
        ratings=before.ratings + moments.ratings,
        low=min(before.low, moments.low),
        high=max(before.high, moments.high),
        prequential_ratings=before.prequential_ratings + int(counted[0]),
        prequential_squares=before.prequential_squares + float(counted[1]),
        baseline_squares=before.baseline_squares + float(counted[2]),
    )
    return history
