"""How a table is learned, by Params and its size alone, and what a fit says of itself."""

from __future__ import annotations

from dataclasses import dataclass

from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.ingest.columns import RatingColumns
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.settings import Settings

__all__ = ["FitOptions", "Plan", "Trained", "TrainingReport", "blocks_for", "choose_blocks"]


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
    """

    form: str
    rmse: list[float]
    seconds: dict[str, float]
    passes: int


Trained = tuple[ModelState, TrainingReport]


def choose_blocks(ratings: int, settings: Settings, options: FitOptions) -> int:
    """Return in how many blocks a table is learned; 1 for one task.

    Parameters
    ----------
    ratings : int
        rows of the table that can be learned
    settings : Settings
        of the model
    options : FitOptions
        what the Params say of blocks

    Raises
    ------
    ValueError
        events ask for more than one block
    """
    if settings.learns_events:
        _refuse_blocks(ratings, options)
    return options.num_blocks or blocks_for(ratings, options.max_ratings_per_task)


def blocks_for(ratings: int, max_per_task: int) -> int:
    """One block up to `max_per_task` ratings, else blocks of at most half of that."""
    return 1 if ratings <= max_per_task else 2 * -(-ratings // max_per_task)


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
    max_resident_ids: int = 0
    """of a stream: users and items that its process keeps in memory; 0 = all"""


def _refuse_blocks(events: int, options: FitOptions) -> None:
    if options.num_blocks > 1:
        raise ValueError(
            f"numBlocks is {options.num_blocks}, and events (implicitPrefs=True) are learned in "
            "one task: set numBlocks to 1."
        )
    if events > options.max_ratings_per_task:
        raise ValueError(
            f"The table has {events} events, maxRatingsPerTask is {options.max_ratings_per_task}, "
            "and events (implicitPrefs=True) are learned in one task: raise it, or learn the "
            "table in parts with update or a stream."
        )
