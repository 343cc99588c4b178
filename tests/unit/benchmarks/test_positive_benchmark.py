"""The prequential table: its metric by hand, and what counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture
def positive(monkeypatch):
    if not (FOLDER / "positive.py").is_file():
        pytest.skip("the benchmarks are not part of a source distribution")
    monkeypatch.syspath_prepend(str(FOLDER))
    import positive

    return positive


def test_rank_of_an_item_by_hand(positive):
    """Scores 3 5 5 1 5, item 1 not allowed: item 4 has item 2 before it, item 0 has both."""
    scores = np.array([3.0, 5.0, 5.0, 1.0, 5.0])
    allowed = np.array([True, False, True, True, True])
    found = {
        item: [top for top in range(1, 6) if positive.is_hit(scores, item, allowed, top)]
        for item in (2, 4, 0, 3)
    }
    assert found == {2: [1, 2, 3, 4, 5], 4: [2, 3, 4, 5], 0: [3, 4, 5], 3: [4, 5]}


def test_recall_by_hand(positive, monkeypatch):
    """Most popular, one recommendation.

    user  item  seen before      counts then       best not done   hit
    0     0     neither                                            -
    0     1     the user                                           -
    1     1     the item                                           -
    1     0     both             0: 1, 1: 2        0 (1 is done)   yes
    2     2     neither                                            -
    2     0     both             0: 2, 1: 2, 2: 1  0 (tie)         yes
    2     1     both             0: 3, 1: 2, 2: 1  1               yes
    0     2     both             0: 3, 1: 3, 2: 1  2               yes
    3     0     the item                                           -
    3     2     both             0: 4, 1: 3, 2: 2  1               no
    """
    monkeypatch.setattr(positive.is_hit, "__defaults__", (1,))
    users = np.array([0, 0, 1, 1, 2, 2, 2, 0, 3, 3], np.int32)
    items = np.array([0, 1, 1, 0, 2, 0, 1, 2, 0, 2], np.int32)
    hits = positive.prequential(users, items, positive.Popular(users, items))
    assert hits.tolist() == [-1, -1, -1, 1, -1, 1, 1, 1, -1, 0]
    assert positive.recall(hits) == pytest.approx(4 / 5)


def test_events_of_a_file(positive, tmp_path):
    """Good ones in time order, the first of equal pairs, numbered as they come."""
    rows = ["userId,movieId,rating,timestamp", "7,3,5.0,20", "8,3,5.0,10", "7,3,5.0,30"]
    (tmp_path / "r.csv").write_text("\n".join([*rows, "7,4,4.5,5", "8,4,5.0,40"]) + "\n")
    users, items = positive.read_events(tmp_path / "r.csv", 5.0)
    assert (users.tolist(), items.tolist()) == ([0, 1, 0], [0, 0, 1])


@pytest.mark.parametrize("learner", ["ours", "isgd"])
def test_learners_beat_what_is_popular_where_tastes_differ(positive, learner):
    """Two groups of users, each with items of its own."""
    rng = np.random.default_rng(2)
    users = rng.integers(0, 30, 900).astype(np.int32)
    items = (rng.integers(0, 40, 900) * 2 + users % 2).astype(np.int32)
    _, first = np.unique(users * 1000 + items, return_index=True)
    users, items = users[np.sort(first)], items[np.sort(first)]
    # as read_events numbers them
    order = {item: n for n, item in enumerate(dict.fromkeys(items.tolist()))}
    items = np.array([order[item] for item in items.tolist()], np.int32)
    make = list(positive.LEARNERS[learner].values())[-1]
    later = slice(users.size // 2, None)
    ours = positive.prequential(users, items, make(users, items))[later]
    popular = positive.prequential(users, items, positive.Popular(users, items))[later]
    assert positive.recall(ours) > 1.2 * positive.recall(popular)
