"""From a user's table to a model state: select, pack, count, train as its size asks (driver)."""

from __future__ import annotations

import logging
import time
import warnings
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace

from pyspark.sql import DataFrame, SparkSession

from sparkml_sgdals.arrays.screening import NO_LIMITS, ZERO_WEIGHT, Limits, Problems
from sparkml_sgdals.arrays.value_range import Tally
from sparkml_sgdals.fit.blocks.driver import train_in_blocks
from sparkml_sgdals.fit.mini_batches import train_in_mini_batches
from sparkml_sgdals.fit.one_task import train_in_one_task
from sparkml_sgdals.fit.plan import (
    FitOptions,
    Plan,
    Trained,
    TrainingReport,
    blocks_to_path,
    choose_blocks,
)
from sparkml_sgdals.fit.progress import clear_progress, show_phase, show_progress
from sparkml_sgdals.fit.who_rated import remember_table
from sparkml_sgdals.ingest.bad_rows import column_names, explain_problems, refuse_invalid
from sparkml_sgdals.ingest.columns import select_ratings
from sparkml_sgdals.ingest.features import SIDES
from sparkml_sgdals.ingest.newest import newest_of_table
from sparkml_sgdals.ingest.packing import PackedCounts, batches_by_rows, count_packed, pack
from sparkml_sgdals.ingest.side_vectors import (
    NO_VECTORS,
    TableVectors,
    side_vectors,
    vectors_beside,
)
from sparkml_sgdals.learn.far_values import limits_for
from sparkml_sgdals.learn.features.streams import learn_features_of_table
from sparkml_sgdals.spark_jobs import local_threads, phase
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.ranges import Ranges
from sparkml_sgdals.state.settings import Settings
from sparkml_sgdals.store.large.in_runs import RunSink

__all__ = [
    "PackedTable",
    "learn_packed",
    "learn_table",
    "pack_for_fit",
    "pack_screened",
    "pack_table",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackedTable:
    """A table packed and persisted, to be learned from as often as wanted, then released.

    Attributes
    ----------
    features : TableVectors
        what is known of users and items beside their ratings
    """

    cells: DataFrame
    counts: PackedCounts
    seconds: float
    features: TableVectors = NO_VECTORS

    def release(self) -> None:
        """Let Spark forget it."""
        self.cells.unpersist()


def learn_table(
    df: DataFrame,
    settings: Settings,
    options: FitOptions,
    prior: ModelState | None = None,
    allow_empty: bool = False,
    cells: DataFrame | None = None,
    screened: bool = False,
    sink: RunSink | None = None,
) -> tuple[ModelState, TrainingReport, PackedCounts, Limits]:
    """Learn a table of any size, fresh or onto a model; the state given is left as it is.

    Parameters
    ----------
    df : DataFrame
        the user's table, in the columns that `options` names
    settings : Settings
        of the model to learn
    options : FitOptions
        how the table is read and spread
    prior : ModelState | None
        the model that it is added to; None for a fresh fit
    allow_empty : bool
        whether a fresh fit may be of no ratings; else it raises
    cells : DataFrame | None
        the table as packed already, not persisted
    screened : bool
        whether the table is of a stream or an update, which set aside what lies far outside the
        ratings learned; so does a fit where ratingRange is set
    sink : RunSink | None
        where tasks write the rows of the model, which the state then lacks: in blocks

    Returns
    -------
    the state, what was done, what was packed, and how far out a row of it might lie

    Raises
    ------
    ValueError
        where a column is missing, where there is nothing to learn, or where rows cannot be learned
        and `handle_invalid` is "error"
    TypeError
        where a column has a wrong type
    DivergenceError
        where the solver ran away
    """
    before = ModelState.empty(settings, *options.kinds) if prior is None else prior
    # onto a model there may be nothing to learn
    allow_empty = allow_empty or prior is not None
    if screened or options.rating_range is not None:
        packed, limits = pack_screened(df, options, before, allow_empty, cells)
    else:
        packed, limits = pack_table(df, options, allow_empty, cells), NO_LIMITS
        if not settings.learns_events:
            _warn_of_far(packed.counts, options)
    try:
        if settings.featured:
            packed = replace(packed, features=read_features(df, options, before))
        stops = (settings.max_iter,)
        ((state, report),) = learn_packed(packed, settings, options, stops, prior, sink)
        if prior is not None and any(prior.learns_features):
            learn_features_of_table(state, prior, packed.features.rows)
    finally:
        packed.release()
    return state, report, packed.counts, limits


def read_features(df: DataFrame, options: FitOptions, before: ModelState) -> TableVectors:
    """Return what a table, or tables beside it, say of users and items; vectors are read later.

    Parameters
    ----------
    df : DataFrame
        the user's table of ratings
    options : FitOptions
        how it is read
    before : ModelState
        the model that it is added to, empty for a fresh fit

    Raises
    ------
    ValueError
        a column is missing
    TypeError
        a column holds no vectors
    """
    refuse = options.handle_invalid == "error"
    users, items = (
        side_vectors(df, options.columns, side, kind, refuse)
        if table is None
        else vectors_beside(table, side, kind, refuse)
        for side, kind, table in zip(SIDES, options.kinds, options.feature_tables, strict=True)
    )
    return TableVectors((users, items), before.features)


def pack_screened(
    df: DataFrame, options: FitOptions, before: ModelState, allow_empty: bool = False,
    cells: DataFrame | None = None,
) -> tuple[PackedTable, Limits]:  # fmt: skip
    """Pack a table without what lies far outside the ratings that a model has learned, or its own.

    Returns the table, and how far out a row of it might lie; raises as `learn_table` says.
    """
    limits = limits_for(before, options.rating_range)
    packed = pack_table(df, options, allow_empty, cells, limits)
    ranges = _after(before.ranges, packed.counts)
    known = Limits.of(options.rating_range, ranges.rating.range(), ranges.weight.range())
    if not before.settings.learns_events and _far_in(packed.counts, known):
        # only now is it known what lies far outside
        packed.release()
        limits = known
        packed = pack_table(df, options, allow_empty, None, limits)
    return packed, limits


def _after(ranges: Ranges, counts: PackedCounts) -> Ranges:
    tallies = counts.tallies
    return ranges.after(tallies.get("rating", Tally()), tallies.get("weight", Tally()))


def _far_in(counts: PackedCounts, limits: Limits) -> Problems:
    """How many packed rows lie beyond limits, by fault, as far as their tallies tell."""
    far: Problems = {}
    weight = None if limits.weight is None else (0.0, limits.weight)
    for name, bounds, why in zip(
        ("rating", "weight"), (limits.rating, weight), limits.why, strict=True
    ):
        if bounds is not None and name in counts.tallies:
            count = counts.tallies[name].outside(*bounds)
            far |= {f"{name}: {why}": count} if count else {}
    return far


def pack_for_fit(df: DataFrame, settings: Settings, options: FitOptions) -> PackedTable:
    """Pack a table for a fit of it, or several."""
    empty = ModelState.empty(settings, *options.kinds)
    if options.rating_range is not None:
        packed = pack_screened(df, options, empty)[0]
    else:
        packed = pack_table(df, options)
        if not settings.learns_events:
            _warn_of_far(packed.counts, options)
    if settings.featured:
        packed = replace(packed, features=read_features(df, options, empty))
    return packed


def _warn_of_far(counts: PackedCounts, options: FitOptions) -> None:
    ranges = _after(Ranges(), counts)
    found = Limits.of(options.rating_range, ranges.rating.range(), ranges.weight.range())
    far = _far_in(counts, found)
    if far:
        warnings.warn(
            f"{explain_problems(far, column_names(options.columns))}. A fit learns from these as "
            "well, and they may spoil it: repair or remove them, or set ratingRange to the lowest "
            "and the highest rating.",
            UserWarning,
            stacklevel=4,
        )


def pack_table(
    df: DataFrame,
    options: FitOptions,
    allow_empty: bool = False,
    cells: DataFrame | None = None,
    limits: Limits = NO_LIMITS,
) -> PackedTable:
    """Select, check, pack and count a table; raises as `learn_table` says."""
    clock = time.perf_counter()
    ratings = select_ratings(df, options.columns, options.kinds)
    if options.newest:
        ratings = newest_of_table(ratings, options.rating_range)
    if cells is None:
        cells = pack(ratings, options.handle_invalid == "keep", limits)
    with batches_by_rows(df.sparkSession):
        cells = cells.persist()
        try:
            shown = show_phase("read") if options.show_progress else nullcontext()
            with phase(df.sparkSession, "pack"), shown:
                counts = count_packed(cells)
            if options.handle_invalid == "error":
                refuse_invalid(counts.problems, options.columns, df, options.kinds)
            if counts.ratings == 0 and not allow_empty:
                told = explain_problems(counts.problems, column_names(options.columns))
                faults = f" but for rows set aside ({told})" if told else ""
                raise ValueError(
                    f"There are no ratings to learn from: the table is empty{faults}. Start a "
                    "model without ratings with fitStream."
                )
        except BaseException:
            cells.unpersist()
            raise
    if counts.problems:
        told = explain_problems(counts.problems, column_names(options.columns))
        zero = counts.problems.get(ZERO_WEIGHT, 0)
        weights = f"{zero} of weight 0" if zero else ""
        logger.warning("rows not learned: %s", "; ".join(filter(None, (told, weights))))
    return PackedTable(cells, counts, time.perf_counter() - clock)


def learn_packed(
    packed: PackedTable,
    settings: Settings,
    options: FitOptions,
    stops: tuple[int, ...],
    prior: ModelState | None = None,
    sink: RunSink | None = None,
) -> list[Trained]:
    """Learn a packed table in the form that its size asks for.

    Where the settings rank ratings, one more job then brings who has rated what: tasks neither
    have to know it nor to learn otherwise for it.

    Parameters
    ----------
    packed : PackedTable
        the cells, and what was counted of them
    settings : Settings
        of the models to learn
    options : FitOptions
        how learning is spread
    stops : tuple[int, ...]
        passes after which to keep a model, ascending; the settings' own `max_iter` is not used
    prior : ModelState | None
        the model that it is added to, left as it is; None for a fresh fit
    sink : RunSink | None
        where tasks write the rows of the one model, in blocks whatever the table's size

    Returns
    -------
    one state and report for each stop, each as a fit with that `max_iter` gives it
    """
    settings = replace(settings, max_iter=stops[-1])
    if packed.counts.ratings == 0:
        state = ModelState.empty(settings, *options.kinds) if prior is None else prior.copy()
        return [(state.copy(), TrainingReport("nothing", [], {}, 0)) for _ in stops]
    if settings.ranks_ratings:
        before = None if prior is None else prior.under(prior.settings.unranked())
        plain = learn_packed(packed, settings.unranked(), options, stops, before)
        return remember_table(packed.cells, options.kinds, plain, settings, prior)
    spark = packed.cells.sparkSession
    ratings = packed.counts.ratings
    plan = Plan(
        choose_blocks(ratings, settings, options, stops, fresh=prior is None)
        if sink is None
        else blocks_to_path(ratings, options, on_disk=local_threads(spark) > 0),
        options.num_threads or local_threads(spark),
        options.checkpoint_interval,
        stops,
        options.progress_path,
    )
    with ExitStack() as stack:
        if options.show_progress:
            folder = stack.enter_context(show_progress(plan.progress_path, "fit"))
            plan = replace(plan, progress_path=folder)
            _warn_of_unseen(spark, options)
        if plan.progress_path:
            clear_progress(plan.progress_path)
        trained = _train(packed, settings, options, plan, prior, sink)
    if not settings.learns_events:
        ranges = _after(Ranges() if prior is None else prior.ranges, packed.counts)
        for state, _ in trained:
            state.ranges = ranges
    return [
        (state, replace(report, seconds={"pack": packed.seconds} | report.seconds))
        for state, report in trained
    ]


def _train(
    packed: PackedTable, settings: Settings, options: FitOptions, plan: Plan,
    prior: ModelState | None, sink: RunSink | None,
) -> list[Trained]:  # fmt: skip
    cells = packed.cells
    if settings.solver == "minibatch":
        if prior is None:
            return train_in_mini_batches(cells, settings, options.kinds, plan)
        # onto a model one pass, which a task does without a join a mini-batch
        plan = replace(plan, num_blocks=1)
    if plan.num_blocks == 1 and sink is None:
        rows = packed.features.rows
        with phase(cells.sparkSession, "learn in one task"):
            return train_in_one_task(cells, settings, options.kinds, plan, prior, rows)
    if settings.tol > 0 and settings.solver != "bayes":
        warnings.warn("tol is not used in a fit in blocks.", UserWarning, stacklevel=2)
    return train_in_blocks(cells, settings, options.kinds, plan, prior, sink, packed.features)


def _warn_of_unseen(spark: SparkSession, options: FitOptions) -> None:
    if not options.progress_path and not local_threads(spark):
        warnings.warn(
            "showProgress shows nothing on a cluster without progressPath: set it to a folder that "
            "driver and executors share.",
            UserWarning,
            stacklevel=2,
        )
