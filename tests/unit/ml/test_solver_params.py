"""Which Params are said to have no effect."""

from __future__ import annotations

import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from building import settings_of

from sparkml_sgdals import StreamingBiasedALS, StreamingBiasedALSModel
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.settings import Settings
from sparkml_sgdals.store.version_store import VersionStore

SOLVERS_OF_EVENTS = pytest.mark.parametrize("solver", ["bayes", "isgd"])


@pytest.mark.parametrize(
    ("solver", "name"),
    [
        *(
            (solver, name)
            for solver in ("bayes", "isgd")
            for name in ("maxResidentIds", "noiseVariance")
        ),
        ("isgd", "checkpointInterval"),
    ],
)
def test_params_without_effect_on_events_are_named(solver: str, name: str) -> None:
    with pytest.warns(UserWarning, match=f"does not use {name}:"):
        StreamingBiasedALS(implicitPrefs=True, solver=solver, **{name: 7}).warnOfUnused()


@SOLVERS_OF_EVENTS
def test_threads_have_an_effect_on_events(solver: str) -> None:
    """They encode ids and sort rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        StreamingBiasedALS(implicitPrefs=True, solver=solver, numThreads=2).warnOfUnused()


def test_checkpoints_have_an_effect_on_tables_of_events() -> None:
    """They go in blocks."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        StreamingBiasedALS(implicitPrefs=True, checkpointInterval=2).warnOfUnused()


def test_a_limit_of_ids_in_memory_is_refused_for_events(tmp_path: Path) -> None:
    settings = settings_of(learns_events=True, num_negatives=3, rank=2)
    meta = {"settings": settings.to_json(), "kinds": ["int", "int"], "origin": "nothing"}
    VersionStore(str(tmp_path)).create(ModelState.empty(settings, "int", "int"), meta)
    with pytest.raises(ValueError, match=r"maxResidentIds is 9, .*events.*leave it out"):
        StreamingBiasedALSModel.resumeStream(None, str(tmp_path), maxResidentIds=9)


def test_ratings_are_ranked_only_where_it_is_asked() -> None:
    """The default of 10 is one of events."""
    als = StreamingBiasedALS()
    assert als.settings().ranking_size == 0
    assert als.copy({als.implicitPrefs: True}).settings().ranking_size == 10
    assert als.copy({als.rankingSize: 5}).settings().ranking_size == 5


DAY = 86_400_000_000


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (0, (0, 0)), (200_000, (200_000, 0)), ("30 days", (0, 30 * DAY)),
        (" 1 Day 12 hours", (0, 3 * DAY // 2)), ("interval 0.5 days", (0, DAY // 2)),
        (timedelta(days=2, microseconds=3), (0, 2 * DAY + 3)),
    ],
)  # fmt: skip
def test_users_are_forgotten_after_events_or_a_time(given: Any, told: tuple[int, int]) -> None:
    als = StreamingBiasedALS(implicitPrefs=True).setForgetUsersAfter(given)
    assert als.forgettingEvents() == told
    settings = als.settings()
    assert (settings.forget_after, settings.forget_after_micros) == told
    assert Settings.from_json(settings.to_json()) == settings
    assert StreamingBiasedALS(forgetUsersAfter=given).settings().forget_after_micros == 0


@pytest.mark.parametrize(
    "given",
    [
        -1,
        1.5,
        "30",
        "30 d",
        "soon",
        "0 days",
        "2 months",
        "-1 day",
        "9e9 weeks",
        "9" * 20 + " weeks",
    ],
)
def test_what_is_neither_events_nor_a_time_is_refused(given: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="forgetUsersAfter must be"):
        StreamingBiasedALS(forgetUsersAfter=given)
