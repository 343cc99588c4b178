"""How a table is learned, by Params and its size alone, and what a fit says of itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from pyspark.sql import DataFrame

from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.ingest.columns import RatingColumns
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.settings import Settings

__all__ = [
    "FitOptions", "Plan", "Trained", "TrainingReport", "blocks_for", "blocks_to_path",
    "choose_blocks",
]  # fmt: skip

_BLOCK_ON_DISK: Final = 10_000_000
"""Ratings of a block of a fit to a model path, at most: each may be of another id, 330 bytes."""
_BLOCK_IN_SPARK: Final = 5_000_000
"""The same where its rows may go through Spark as one value, at most 2 GB."""


@dataclass(frozen=True)
class Plan:
    """How a table is learned: its form follows from Params and its size alone.

    Attributes
    ----------
    stops : tuple[int, ...]
        passes after which to keep a model, ascending; the last one ends the learning
    progress_path : str
        where tasks note how far they are, empty for nowhere
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
    rmse : list[float]
        training RMSE after each sweep or pass, in rating units
    seconds : dict[str, float]
        time by phase, in seconds
    passes : int
        sweeps or passes done
    runs : dict[str, Any] | None
        the sorted runs that tasks wrote, as a commit names them; None where the driver has the rows
    """

    form: str
    rmse: list[float]
    seconds: dict[str, float]
    passes: int
    runs: dict[str, Any] | None = None


Trained = tuple[ModelState, TrainingReport]


def choose_blocks(
    ratings: int, settings: Settings, options: FitOptions, stops: tuple[int, ...], fresh: bool
) -> int:
    """Return in how many blocks a table is learned; 1 for one task.

    Parameters
    ----------
    ratings : int
        rows of the table that can be learned
    settings : Settings
        of the model
    options : FitOptions
        what the Params say of blocks
    stops : tuple[int, ...]
        passes after which to keep a model, ascending
    fresh : bool
        whether the table is not added to a model

    Raises
    ------
    ValueError
        events that only one task can learn ask for more than one block
    """
    wanted = options.num_blocks or blocks_for(ratings, options.max_ratings_per_task)
    if wanted == 1 or not settings.learns_events:
        return wanted
    if settings.fits_events and not fresh and ratings <= options.max_ratings_per_task:
        # numBlocks is what the model was fitted with
        return 1
    why = _why_in_one_task(settings, options, stops, fresh)
    if not why:
        return wanted
    reason, remedy = why
    if options.num_blocks > 1:
        raise ValueError(
            f"numBlocks is {options.num_blocks}, and {reason}: set numBlocks to 1, {remedy}."
        )
    raise ValueError(
        f"The table has {ratings} events, maxRatingsPerTask is {options.max_ratings_per_task}, "
        f"and {reason}: raise maxRatingsPerTask, {remedy}."
    )


def blocks_for(ratings: int, max_per_task: int) -> int:
    """One block up to `max_per_task` ratings, else blocks of at most half of that."""
    return 1 if ratings <= max_per_task else 2 * -(-ratings // max_per_task)


def blocks_to_path(ratings: int, options: FitOptions, on_disk: bool) -> int:
    """Return in how many blocks a table is learned whose blocks write their rows themselves.

    `on_disk` says whether states of blocks surely lie in files of a local disk.
    """
    least = -(-ratings // (_BLOCK_ON_DISK if on_disk else _BLOCK_IN_SPARK))
    return options.num_blocks or max(2, least, blocks_for(ratings, options.max_ratings_per_task))


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
    show_progress: bool = False
    progress_path: str = ""
    rating_range: tuple[float, float] | None = None
    """least and greatest rating that is learned; None: ratingRange is not set"""
    newest: bool = False
    """whether of a pair's ratings in a table or batch the newest counts alone"""
    max_resident_ids: int = 0
    """of a stream: users and items that its process keeps in memory; 0 = all"""
    feature_tables: tuple[DataFrame | None, DataFrame | None] = field(
        default=(None, None), compare=False
    )
    """of a fit: users' and items' features in tables of their own, of id and vector"""


def _why_in_one_task(
    settings: Settings, options: FitOptions, stops: tuple[int, ...], fresh: bool
) -> tuple[str, str] | None:
    """Return why events are learned in one task, and what else than a larger one there is."""
    in_parts = "or learn the table in parts with update or a stream"
    if not settings.fits_events:
        return (
            f"events are learned in one task by what learns them one by one, as solver "
            f"'{settings.solver}' does here",
            in_parts,
        )
    if not fresh:
        return "events are added to a model in one task", in_parts
    if options.columns.time is not None:
        return (
            f"events with times (timestampCol {options.columns.time!r}) are learned in one task, "
            "as the filter takes them in their order",
            "or leave timestampCol out to rank by the table alone",
        )
    if stops[0] == 0:
        return (
            "maxIter=0 leaves events to the filter, which learns them in one task",
            "or set maxIter to 1 or more",
        )
    return None
