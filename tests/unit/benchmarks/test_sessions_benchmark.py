"""The benchmark of sessions: its batches, its ranks by hand, and ours against `Predictor`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sparkml_sgdals.predictor import Predictor

FOLDER = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    if not (FOLDER / "sessions.py").is_file():
        pytest.skip("the benchmarks are not part of a source distribution")
    monkeypatch.syspath_prepend(str(FOLDER))
    import sessions

    return sessions


def test_batches_end_with_periods(bench):
    found = [(b.start, b.stop) for b in bench.batches(np.array([0, 0, 0, 1, 1, 3]), 2)]
    assert found == [(0, 2), (2, 3), (3, 5), (5, 6)]


def clicks(*rows):
    return pd.DataFrame(rows, columns=["session", "item", "period"])


def test_ranks_by_hand(bench):
    """Session 0 is judged by the last three clicks, or by 1, 1 and 2 of the period before."""
    table = clicks((1, 1, 0), (2, 1, 0), (3, 2, 0), (0, 2, 1), (0, 1, 1), (0, 3, 1), (0, 2, 1))
    ranks, seconds = bench.judge(table, bench.Popular(4), frozen=False, size=1)
    # the first click is not judged, nor is an item that nobody has clicked; equal ones are before
    assert ranks.tolist() == [0, 0, 0, 0, 2, 0, 3]
    assert set(seconds) == {"learning", "judging"}
    frozen, _ = bench.judge(table, bench.Popular(4), frozen=True, size=1)
    assert frozen.tolist() == [0, 0, 0, 0, 1, 0, 2]
    found = bench.summarised(ranks, table.period.to_numpy())
    assert found["MRR@10"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert found["Recall@20"] == 1.0


def test_neighbours_by_hand(bench):
    """Sessions 1 and 2 share item 5 with what was clicked: 1 has one item more, 2 two more."""
    knn = bench.Neighbours(10)
    knn.learn(np.array([1, 1, 2, 2, 2, 3]), np.array([5, 6, 5, 7, 8, 9]))
    scores = knn.scores(0, [5])
    assert scores[6] == pytest.approx(1 / np.sqrt(2))
    assert scores[7] == scores[8] == pytest.approx(1 / np.sqrt(3))
    assert scores[9] == 0.0


def test_ours_scores_as_the_predictor_does(bench):
    rng = np.random.default_rng(1)
    ours = bench.Ours(30)
    sessions, items = rng.integers(0, 40, 600), rng.integers(0, 30, 600)
    ours.learn(sessions, items)
    order = items[sessions == 7].tolist()
    found = ours.scores(7, order)
    predicted = Predictor(ours.state, {}, 0).predict([7] * 30, range(30))["prediction"]
    apart = found - predicted.to_numpy(float)
    # the benchmark leaves out what is added to all scores
    np.testing.assert_allclose(apart, apart[0], atol=1e-4)
    alone = bench.Ours(30, only_partners=True)
    alone.learn(sessions, items)
    assert np.isfinite(alone.scores(7, order)).all()
    assert np.argmax(alone.scores(7, order)) != np.argmin(found)
