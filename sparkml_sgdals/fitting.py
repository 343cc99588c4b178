"""From a user's table to a model state: select, pack, count, train as its size asks (driver)."""

from __future__ import annotations

import logging
import time
import warnings
from dataclasses import dataclass, replace

from pyspark.sql import DataFrame

from sparkml_sgdals.blocked import train_in_blocks
from sparkml_sgdals.index import IdKind
from sparkml_sgdals.minibatch import train_in_mini_batches
from sparkml_sgdals.packing import PackedCounts, count_packed, explain_problems, pack
from sparkml_sgdals.ratings import ZERO_WEIGHT, Problems
from sparkml_sgdals.schema import RatingColumns, select_ratings
from sparkml_sgdals.settings import Settings
from sparkml_sgdals.state import ModelState
from sparkml_sgdals.training import Plan, TrainingReport, local_threads, train_in_one_task

__all__ = ["FitOptions", "column_names", "learn_table", "refuse_invalid"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitOptions:
    """How a table is read and spread, as the Params say."""

    columns: RatingColumns
    kinds: tuple[IdKind, IdKind]
    handle_invalid: str
    num_blocks: int
    num_threads: int
    max_ratings_per_task: int
    checkpoint_interval: int


def learn_table(
    df: DataFrame,
    settings: Settings,
    options: FitOptions,
    prior: ModelState | None = None,
    allow_empty: bool = False,
) -> tuple[ModelState, TrainingReport, PackedCounts]:
    """Learn a table of any size, fresh or onto a model; the state given is left as it is.

    Raises
    ------
    ValueError : where a column is missing, where there is nothing to learn, or where rows cannot
        be learned and `handle_invalid` is "error"
    TypeError : where a column has a wrong type
    DivergenceError : where the solver ran away
    """
    clock = time.perf_counter()
    ratings = select_ratings(df, options.columns, options.kinds)
    packed = pack(ratings, keep=options.handle_invalid == "keep").persist()
    try:
        counts = count_packed(packed)
        if options.handle_invalid == "error":
            refuse_invalid(counts.problems, options.columns)
        if counts.ratings == 0 and prior is None and not allow_empty:
            raise ValueError(
                "There are no ratings to learn from: the table is empty"
                + (f" but for rows set aside: {dict(counts.problems)}." if counts.problems else ".")
                + " Start a model without ratings with fitStream."
            )
        seconds = {"pack": time.perf_counter() - clock}
        threads = options.num_threads or local_threads(df.sparkSession)
        if settings.solver == "minibatch" and prior is None and counts.ratings:
            state, report = train_in_mini_batches(packed, settings, options.kinds, threads)
        else:
            plan = Plan.of(
                counts.ratings,
                options.num_blocks,
                options.max_ratings_per_task,
                threads,
                options.checkpoint_interval,
            )
            if settings.solver == "minibatch":
                # onto a model one pass, which a task does without a join a mini-batch
                plan = replace(plan, num_blocks=1)
            if counts.ratings == 0:
                state = (
                    ModelState.empty(settings, *options.kinds) if prior is None else prior.copy()
                )
                report = TrainingReport("nothing", [], {})
            elif plan.num_blocks == 1:
                state, report = train_in_one_task(packed, settings, options.kinds, threads, prior)
            else:
                if settings.tol > 0:
                    warnings.warn("tol is not used in a fit in blocks.", UserWarning, stacklevel=2)
                state, report = train_in_blocks(packed, settings, options.kinds, plan, prior)
    finally:
        packed.unpersist()
    if counts.problems:
        logger.warning("rows not learned: %s", counts.problems)
    return (
        state,
        TrainingReport(report.form, report.rmse, seconds | report.seconds),
        counts,
    )


def column_names(columns: RatingColumns) -> dict[str, str]:
    """The user's columns by our names, each with its Param, for messages."""
    return {
        "user": f"userCol {columns.user!r}",
        "item": f"itemCol {columns.item!r}",
        "rating": f"ratingCol {columns.rating!r}",
        "time": f"timestampCol {columns.time!r}",
        "weight": f"weightCol {columns.weight!r}",
    }


def refuse_invalid(problems: Problems, columns: RatingColumns) -> None:
    """Raise ValueError where rows cannot be learned."""
    if any(fault != ZERO_WEIGHT for fault in problems):
        raise ValueError(
            f"{explain_problems(problems, column_names(columns))}. Repair or remove these rows, "
            "or set handleInvalid='skip' to learn the others."
        )
