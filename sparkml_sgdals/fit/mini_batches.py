"""The solver `minibatch` on Spark: joins, a vectorised gradient UDF, sums by id (driver).

For each mini-batch the ratings are joined with the factors of their users and items by id, an
Arrow UDF computes the gradients against them, the gradients are summed by id, and a full outer
join with the known factors adds the sums: known ids are kept, new ones get their start.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from sparkml_sgdals.arrays.hashing import ITEM_SIDE, USER_SIDE, id_keys, pair_hash
from sparkml_sgdals.arrays.id_kinds import IdKind, id_array_type
from sparkml_sgdals.arrays.ipc import packed_tables
from sparkml_sgdals.fit.one_task import train_in_one_task
from sparkml_sgdals.fit.plan import Plan, Trained, TrainingReport
from sparkml_sgdals.fit.progress import TaskProgress
from sparkml_sgdals.kernels.sgd import rating_gradients
from sparkml_sgdals.learn.solvers import check_mini_batch
from sparkml_sgdals.spark_jobs import BROADCAST_IDS, explained
from sparkml_sgdals.state.columns import list_column, start_means
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.settings import Settings

__all__ = ["train_in_mini_batches"]

F32 = npt.NDArray[np.float32]

_UNITS: Final = float(2**32)
"""Gradients are summed as integers of 1 / _UNITS: exact, so in any order."""
_LARGEST: Final = float(2**30)


def train_in_mini_batches(
    packed: DataFrame, settings: Settings, kinds: tuple[IdKind, IdKind], plan: Plan
) -> list[Trained]:
    """Learn packed ratings by mini-batch gradient descent, `blockSize` ratings a step.

    Returns one state and report for each of the plan's stops; raises DivergenceError where the
    summed gradients overshoot.
    """
    clock = time.perf_counter()
    # the mean, the counts and the baseline; ids stand at their start
    start = replace(plan, stops=(0,), progress_path="")
    ((state, _),) = train_in_one_task(packed, replace(settings, max_iter=0), kinds, start)
    trained: list[Trained] = []
    in_order, ratings = _numbered(packed, settings, kinds, state.scale.mean)
    try:
        batches = -(-state.counters.ratings // settings.block_size)
        small = state.users.size + state.items.size <= BROADCAST_IDS
        # ids of two kinds share one table as strings
        id_type = "bigint" if set(kinds) == {"int"} else "string"
        factors = packed.sparkSession.createDataFrame([], f"side int, id {id_type}, f array<float>")
        note = TaskProgress(plan.progress_path, 0, plan.stops[-1] * batches)
        for number in range(plan.stops[-1] + 1):
            if number in plan.stops:
                own = replace(state.copy(), settings=replace(settings, max_iter=number))
                _take_factors(own, factors.toArrow())
                seconds = {"learn": time.perf_counter() - clock}
                trained.append((own, TrainingReport("mini-batches", [], seconds, number)))
            for batch in range(batches if number < plan.stops[-1] else 0):
                rows = ratings.where(F.col("batch") == batch).drop("batch")
                stepped = _step(rows, factors, settings, kinds, id_type, small).persist()
                try:
                    # of a cached table Spark knows the size; its guess after joins grows with
                    # the cube of the last one, step by step, until it is no number any more
                    factors = stepped.localCheckpoint()
                except Exception as failure:
                    raise explained(failure) from failure
                finally:
                    stepped.unpersist()
                note.write(number * batches + batch + 1, None)
    finally:
        in_order.unpersist()
    return trained


def _take_factors(state: ModelState, learned: pa.Table) -> None:
    """Put learned factors (side, id, f) into a state that knows the ids, in place."""
    width = state.settings.rank + 1
    for side, table in ((USER_SIDE, state.users), (ITEM_SIDE, state.items)):
        own = learned.filter(pa.compute.equal(learned.column("side"), side))
        if own.num_rows:
            ids = own.column("id").cast(id_array_type(table.index.kind)).combine_chunks()
            flat = own.column("f").combine_chunks().flatten().to_numpy(zero_copy_only=False)
            table.mean[table.index.find(ids)] = flat.reshape(own.num_rows, width)


@dataclass(frozen=True)
class _Unpack:
    """Ratings as rows again, about their mean, each with the hash that orders them."""

    kinds: tuple[IdKind, IdKind]
    mean: float

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return map(self._rows, packed_tables(batches))

    def _rows(self, table: pa.Table) -> pa.RecordBatch:
        ids = [
            table.column(name).cast(id_array_type(kind)).combine_chunks()
            for name, kind in zip(("user", "item"), self.kinds, strict=True)
        ]
        each = np.arange(table.num_rows, dtype=np.int32)
        order = pair_hash(id_keys(ids[0]), id_keys(ids[1]), each, each)
        ratings = table.column("rating").to_numpy()
        values = (ratings.astype(np.float64) - self.mean).astype(np.float32)
        weights = (
            table.column("weight").to_numpy()
            if "weight" in table.column_names
            else np.ones(values.size, np.float32)
        )
        # flipping the sign bit turns the order of unsigned numbers into that of signed ones
        signed = (order ^ np.uint64(1 << 63)).view(np.int64)
        return pa.RecordBatch.from_arrays(
            [*ids, pa.array(values), pa.array(weights), pa.array(signed)],
            names=["user", "item", "value", "weight", "ordinal"],
        )


def _numbered(
    packed: DataFrame, settings: Settings, kinds: tuple[IdKind, IdKind], mean: float
) -> tuple[DataFrame, DataFrame]:
    """Ratings in hashed order, persisted, and the same with the number of each's mini-batch."""
    types = [("bigint" if kind == "int" else "string") for kind in kinds]
    ddl = f"user {types[0]}, item {types[1]}, value float, weight float, ordinal bigint"
    rows = packed.select("payload").mapInArrow(_Unpack(kinds, mean), ddl)
    place = F.monotonically_increasing_id()
    in_order = (
        rows.sort("ordinal", "user", "item", "value", "weight")
        .withColumn("part", F.shiftright(place, 33).cast("int"))
        .withColumn("place", place.bitwiseAND(F.lit((1 << 33) - 1)))
        .drop("ordinal")
        .persist()
    )
    sizes = {row.part: row["count"] for row in in_order.groupBy("part").count().collect()}
    first, offsets = 0, []
    for part in range(max(sizes, default=-1) + 1):
        offsets.append(first)
        first += sizes.get(part, 0)
    offset = F.get(F.array(*[F.lit(o).cast("bigint") for o in offsets]), F.col("part"))
    batch = F.floor((offset + F.col("place")) / F.lit(settings.block_size)).cast("int")
    return in_order, in_order.withColumn("batch", batch).drop("part", "place")


@dataclass(frozen=True)
class _Gradients:
    """The gradient UDF: joined ratings in, one row of gradients for each user and item out."""

    settings: dict[str, Any]
    kinds: tuple[IdKind, IdKind]
    as_text: bool

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        settings = Settings.from_json(self.settings)
        regs = np.array(settings.regs, np.float32)
        for batch in batches:
            if not batch.num_rows:
                continue
            values = batch.column("value").to_numpy(zero_copy_only=False)
            weights = batch.column("weight").to_numpy(zero_copy_only=False)
            users = _factors_or_start(batch, "user", USER_SIDE, self.kinds[0], settings)
            items = _factors_or_start(batch, "item", ITEM_SIDE, self.kinds[1], settings)
            user_part, item_part, errors = rating_gradients(values, weights, users, items, regs)
            squares = float(np.sum(values.astype(np.float64) ** 2))
            check_mini_batch(float(errors @ errors), squares, len(errors), settings)
            yield self._rows(USER_SIDE, batch.column("user"), users, user_part, settings)
            yield self._rows(ITEM_SIDE, batch.column("item"), items, item_part, settings)

    def _rows(
        self, side: int, ids: pa.Array, factors: F32, gradients: npt.NDArray[np.float64],
        settings: Settings,
    ) -> pa.RecordBatch:  # fmt: skip
        largest = float(np.abs(gradients).max(initial=0.0))
        if not largest < _LARGEST:
            # the squared errors are as large as that, so this names the divergence
            check_mini_batch(float("nan"), 0.0, len(gradients), settings)
        units = np.rint(gradients * _UNITS).astype(np.int64)
        width = factors.shape[1]
        columns = [
            pa.array(np.full(len(ids), side, np.int32)),
            ids.cast(pa.string()) if self.as_text else ids.cast(pa.int64()),
            list_column(factors),
            *[pa.array(units[:, f]) for f in range(width)],
        ]
        names = ["side", "id", "start", *[f"g{f}" for f in range(width)]]
        return pa.RecordBatch.from_arrays(columns, names=names)


def _factors_or_start(
    batch: pa.RecordBatch, name: str, side: int, kind: IdKind, settings: Settings
) -> F32:
    """Return the joined factors of each row, the start of its id where it has none yet."""
    joined = batch.column(f"{name}_f")
    factors = np.empty((batch.num_rows, settings.rank + 1), np.float32)
    known = joined.is_valid().to_numpy(zero_copy_only=False)
    flat = joined.drop_null().flatten().to_numpy(zero_copy_only=False)
    factors[known] = flat.reshape(-1, settings.rank + 1)
    if not known.all():
        ids = batch.column(name).filter(pa.array(~known)).cast(id_array_type(kind))
        factors[~known] = start_means(settings, side, ids)
    return factors


def _step(
    ratings: DataFrame, factors: DataFrame, settings: Settings, kinds: tuple[IdKind, IdKind],
    id_type: str, small: bool,
) -> DataFrame:  # fmt: skip
    """Factors after one mini-batch, all gradients from before it."""
    width = settings.rank + 1
    joined = ratings
    for side, name in ((USER_SIDE, "user"), (ITEM_SIDE, "item")):
        own = factors.where(F.col("side") == side).select(
            F.col("id").alias(f"{name}_id"), F.col("f").alias(f"{name}_f")
        )
        own = F.broadcast(own) if small else own
        joined = joined.join(own, F.col(name).cast(id_type) == F.col(f"{name}_id"), "left").drop(
            f"{name}_id"
        )
    columns = ", ".join(f"g{f} bigint" for f in range(width))
    gradients = joined.mapInArrow(
        _Gradients(settings.to_json(), kinds, id_type == "string"),
        f"side int, id {id_type}, start array<float>, {columns}",
    )
    sums = gradients.groupBy("side", "id").agg(
        F.max("start").alias("start"), *[F.sum(f"g{f}").alias(f"g{f}") for f in range(width)]
    )
    moved = [
        (
            F.get(F.coalesce("f", "start"), F.lit(f)).cast("double")
            + F.coalesce(F.col(f"g{f}"), F.lit(0)) * F.lit(settings.step_size / _UNITS)
        ).cast("float")
        for f in range(width)
    ]
    if settings.nonnegative:
        low = F.lit(settings.lowest).cast("float")
        moved[1:] = [F.greatest(each, low) for each in moved[1:]]
    return factors.join(sums, ["side", "id"], "full_outer").select(
        "side", "id", F.array(*moved).alias("f")
    )
