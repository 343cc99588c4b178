"""Whatever dies and whenever: the same bits in the end, and every batch once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from fits import run_trial as run_fits
from trials import COMPACTION, POINTS, run_trial

SHORT = ("half of the users written", "after the commit object", "before Spark's commit")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_few_kills():
    """One at random, three at named points of a commit."""
    figures = run_trial("classic", "files", 1, SHORT, seed=3, batches=14, size=40)
    assert figures.differences == []
    assert figures.random_kills == 1
    assert figures.points == list(SHORT)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kills_of_a_stream_that_goes_on_from_a_table_of_events():
    """Killed in the first batch, which teaches the filter the table, and after its commit."""
    points = ("half of the users written", "after the commit object")
    figures = run_trial("classic", "files", 0, points, seed=3, batches=6, size=40, model="fitted")
    assert figures.differences == []
    assert figures.points == list(points)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kills_of_a_stream_of_events():
    """With what stands together, and users that are forgotten."""
    figures = run_trial("classic", "files", 1, SHORT, seed=3, batches=20, size=40, model="events")
    assert figures.differences == []
    assert figures.forgotten > 40
    assert figures.points == list(SHORT)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kills_while_a_part_is_in_memory():
    """While runs are written, and once they count; the end is that of all in memory."""
    points = COMPACTION[1:4:2]
    figures = run_trial("classic", "files", 0, points, seed=4, batches=20, size=100, resident=60)
    assert figures.differences == []
    assert figures.points == list(points)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_fifty_kills_while_a_part_is_in_memory():
    """The same with random kills, and every point."""
    figures = run_trial("classic", "files", 50, COMPACTION, 5, 150, 40, resident=100)
    assert figures.differences == []
    assert figures.points == list(COMPACTION)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("way", ["classic", pytest.param("connect", marks=pytest.mark.connect)])
def test_fifty_kills_and_every_point(way):
    """The figures go into the folder KILLS_FIGURES, where it is set."""
    figures = run_trial(way, "files", 50, POINTS, seed=1, batches=150, size=40)
    folder = os.environ.get("KILLS_FIGURES")
    if folder:
        target = Path(folder) / f"kills-{way}-files.json"
        target.write_text(json.dumps(figures.to_json(), indent=1) + "\n")
    assert figures.differences == []
    assert figures.random_kills == 50
    assert figures.points == list(POINTS)


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_kills_of_fits_to_a_path():
    """At random, and while tasks write: nothing loads, nothing stays."""
    figures = run_fits(4, seed=2)
    assert figures.differences == []
    assert figures.kills == 4


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_kills_of_fits_to_a_path():
    """The same fifty times."""
    figures = run_fits(50, seed=1)
    assert figures.differences == []
    assert figures.stages["while tasks write"] >= 5
