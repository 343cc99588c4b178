"""The tables of rankings: lists from scores, what is popular, EASE, and how rows become a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

FOLDER = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture
def peers(monkeypatch):
    if not (FOLDER / "ranking_peers.py").is_file():
        pytest.skip("the benchmarks are not part of a source distribution")
    monkeypatch.syspath_prepend(str(FOLDER))
    import ranking_peers

    return ranking_peers


@pytest.fixture
def ranking(peers, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import ranking

    return ranking


def events(peers, pairs, order=None):
    users, items = np.array(pairs).T
    return peers.Events(users, items, None if order is None else np.array(order), order is not None)


def test_lists_by_hand(peers):
    """User 0 did items 0 and 2, user 1 item 4; nobody did item 1; user 5 is not known.

    The scores of items 0 to 4 are 5 9 4 7 7 for user 0 and 1 9 2 3 8 for user 1.
    """
    train = events(peers, [(0, 2), (1, 4), (0, 0), (2, 4), (2, 3), (3, 2), (3, 4)])
    scores = np.array([[5, 9, 4, 7, 7], [1, 9, 2, 3, 8], [0] * 5, [0] * 5])
    found = peers.ranked(train, np.array([0, 1, 5]), lambda asked: scores[asked], 3)
    assert found.tolist() == [[3, 4, -1], [3, 2, 0], [4, 2, 0]]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), top=st.integers(1, 9), at_once=st.integers(1, 5))
def test_lists_are_those_of_sorting_everything(seed, top, at_once):
    with pytest.MonkeyPatch.context() as patch:
        if not (FOLDER / "ranking_peers.py").is_file():
            pytest.skip("the benchmarks are not part of a source distribution")
        patch.syspath_prepend(str(FOLDER))
        import ranking_peers as peers

        patch.setattr(peers, "USERS_AT_ONCE", at_once)
        rng = np.random.default_rng(seed)
        pairs = np.unique(rng.integers(0, [12, 8], (rng.integers(1, 40), 2)), axis=0)
        train = events(peers, pairs)
        # scores that differ, or which of equal ones is in the list is left open
        scores = rng.permutation(12 * 8).reshape(12, 8).astype(float)[:, : pairs[:, 1].max() + 1]
        users = np.flatnonzero(rng.random(12) < 0.6)
        found = peers.ranked(train, users, lambda asked: scores[asked], top)
    popular = sorted(set(pairs[:, 1]), key=lambda item: (-np.sum(pairs[:, 1] == item), item))
    for user, own in zip(users, found, strict=True):
        done = set(pairs[pairs[:, 0] == user, 1])
        best = (
            popular if not done else sorted(set(pairs[:, 1]) - done, key=lambda y: -scores[user, y])
        )
        assert [item for item in own if item >= 0] == best[:top]


def test_what_is_popular_of_all_and_of_the_last_week(peers):
    """Item 1 three times long ago, items 0 and 4 twice: 4 today and long ago, 0 a week ago."""
    day = 86_400
    pairs = [(0, 1), (1, 1), (2, 1), (0, 0), (1, 0), (3, 4), (4, 4)]
    train = events(peers, pairs, [0, 1, 2, 93 * day, 92 * day, 100 * day, 3])
    assert peers.popular_order(train).tolist() == [1, 0, 4]
    users = np.array([0, 3, 9])
    assert peers.popular(train, users, {})[:, :3].tolist() == [[4, -1, -1], [1, 0, -1], [1, 0, 4]]
    # the event of 93 days is the week's first second
    assert peers.popular_order(train, 93 * day).tolist() == [0, 4, 1]
    assert peers.popular_last_week(train, np.array([2]), {})[0, :3].tolist() == [0, 4, -1]


def test_ease_is_a_ridge_regression_of_each_item_on_the_others(peers):
    rng = np.random.default_rng(3)
    pairs = np.unique(rng.integers(0, [30, 6], (90, 2)), axis=0)
    done = peers.sparse(events(peers, pairs)).astype(float)
    found = peers.ease_weights(done, 2.5)
    table = done.toarray()
    for item in range(6):
        others = np.delete(np.arange(6), item)
        own = table[:, others]
        solved = np.linalg.solve(own.T @ own + 2.5 * np.eye(5), own.T @ table[:, item])
        assert found[others, item] == pytest.approx(solved)
        assert found[item, item] == 0.0


def test_the_best_point_is_shown_and_what_fails_is_a_line(ranking, peers):
    train = events(peers, [(0, 0), (1, 1), (1, 2), (2, 0)])
    split = ranking.Split(train, events(peers, [(0, 1), (2, 1)]))

    def recommend(train, users, point):
        return np.full((2, 1), point["item"])

    peer = peers.RankingPeer("Peer", recommend, ({"item": 2}, {"item": 1}, {"item": -1}))
    found = ranking.measure(peer, train, [split])
    assert found["point"] == {"item": 1}
    assert [one["recall"] for one in found["tried"]] == [0.0, 1.0, 0.0]
    # what the user has done
    failing = peers.RankingPeer("Failing", recommend, ({"item": 1}, {"item": 0}))
    assert "ValueError: A list holds" in ranking.measure(failing, train, [split])["reason"]
    lacking = peers.RankingPeer("Lacking", recommend, module="no_such_module")
    assert "no_such_module" in ranking.measure(lacking, train, [split])["reason"]
    timed = peers.RankingPeer("Timed", recommend, ({"item": 1},), timed=True)
    assert ranking.measure(timed, train, [split]) == {"reason": "there are no times"}


def test_a_table_of_rows_old_and_new(ranking):
    def row(model, name, recall, **more):
        return {
            "set": name, "protocol": "random", "inner": False, "model": model, "learned": [1234],
            "users": 10, "recall": recall, "recallError": 0.01, "ndcg": recall / 2,
            "ndcgError": 0.01, "point": {"lambda": 200.0}, "tried": [{}, {}],
        } | more  # fmt: skip

    known = [row("EASE", "douban", 0.25), row("EASE", "ml-latest-small", 0.1)]
    lacking = {key: row("EASE", "movietweetings", 0)[key]
               for key in ("set", "protocol", "inner", "model", "learned")}  # fmt: skip
    new = [row("EASE", "ml-latest-small", 0.3), lacking | {"reason": "RuntimeError: no luck"},
           row("most popular", "ml-latest-small", 0.2, tried=[{}]),
           row("EASE", "ml-latest-small", 0.5, inner=True)]  # fmt: skip
    rows = ranking.merged(known, new)
    assert [(one["model"], one["set"], one["inner"]) for one in rows] == [
        ("most popular", "ml-latest-small", False), ("EASE", "ml-latest-small", False),
        ("EASE", "ml-latest-small", True), ("EASE", "movietweetings", False),
        ("EASE", "douban", False),
    ]  # fmt: skip
    lines = ranking.as_markdown(rows).splitlines()
    assert "| Recall@20 / NDCG@20 | ml-latest-small | movietweetings | douban |" in lines
    assert "| EASE | 0.300 ± 0.010 / 0.150 |  | 0.250 ± 0.010 / 0.125 |" in lines
    assert "| most popular | 0.200 ± 0.010 / 0.100 |  |  |" in lines
    assert "- EASE, ml-latest-small: lambda 200; best of 2" in lines
    assert "- EASE, movietweetings: no result, RuntimeError: no luck" in lines
    assert "### random, within what it learns" in lines
