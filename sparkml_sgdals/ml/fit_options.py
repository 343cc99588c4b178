"""What Params say of how rows are read and a fit is spread, as plain values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sparkml_sgdals.fit.plan import FitOptions
from sparkml_sgdals.ml.params import ModelParams
from sparkml_sgdals.state.settings import Settings

__all__ = ["fit_options"]


def fit_options(
    params: ModelParams, kinds: tuple[Any, Any], invalid: str, settings: Settings
) -> FitOptions:
    """How the Params say that tables and streams are read and spread, for a model so set.

    Raises ValueError where the newest rating of a pair is to count, or users are forgotten after a
    time, and there are no times.
    """
    columns = replace(params.ratingColumns(), moments=settings.forget_after_micros > 0)
    if columns.moments and columns.time is None:
        raise ValueError(
            "forgetUsersAfter is a time, and without times nobody knows when a user came last: set "
            "timestampCol, or forgetUsersAfter to a number of events."
        )
    if not settings.featured:
        columns = replace(columns, features=(None, None))
    newest = params.getRepeatedPairs() == "newest" and not settings.learns_events
    if newest and columns.time is None:
        raise ValueError(
            "repeatedPairs is 'newest', and without times no rating is newer than another: set "
            "timestampCol, or repeatedPairs to 'count'."
        )
    optional = settings.learns_events and (not columns.rating or not params.isSet("ratingCol"))
    return FitOptions(
        columns=replace(columns, rating_needed=not optional),
        kinds=kinds,
        handle_invalid=invalid,
        num_blocks=params.getNumBlocks(),
        num_threads=params.getNumThreads(),
        max_ratings_per_task=params.getMaxRatingsPerTask(),
        checkpoint_interval=params.getCheckpointInterval(),
        show_progress=params.getShowProgress(),
        progress_path=params.getProgressPath(),
        rating_range=None if settings.learns_events else params.getRatingRange(),
        newest=newest,
        # events draw their negatives from all items, and ratings are ranked among all of them
        max_resident_ids=0
        if settings.learns_events or (settings.ranks_ratings and not params.isSet("maxResidentIds"))
        else params.getMaxResidentIds(),
    )


def stream_invalid(params: ModelParams) -> str:
    """Return handleInvalid of a stream: 'skip' unless it was set."""
    return params.getHandleInvalid() if params.isSet("handleInvalid") else "skip"
