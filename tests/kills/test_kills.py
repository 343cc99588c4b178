"""Whatever dies and whenever: the same bits in the end, and every batch once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from harness import POINTS, run_trial

SHORT = ("half of the users written", "after the commit object", "before Spark's commit")


@pytest.mark.timeout(900)
def test_a_few_kills():
    """One at random, three at named points of a commit."""
    figures = run_trial("classic", "files", 1, SHORT, seed=3, batches=14, size=40)
    assert figures.differences == []
    assert figures.random_kills == 1
    assert figures.points == list(SHORT)


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
