"""Protocols of rankings on tables: what is read, held out and counted, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture
def protocols(monkeypatch):
    if not (FOLDER / "ranking_protocols.py").is_file():
        pytest.skip("the benchmarks are not part of a source distribution")
    monkeypatch.syspath_prepend(str(FOLDER))
    import ranking_protocols

    return ranking_protocols


def triples(events):
    return list(zip(events.users.tolist(), events.items.tolist(), events.order.tolist(),
                    strict=True))  # fmt: skip


def drawn(protocols, n=400, seed=5):
    rng = np.random.default_rng(seed)
    return protocols.kept_events(
        rng.integers(0, 30, n), rng.integers(0, 20, n), rng.integers(0, 90, n), True
    )


def test_events_of_a_file(protocols, monkeypatch, tmp_path):
    """Good ratings, the first of equal pairs; users that have two, then items that have two.

    User 9 has one event and goes, then item 5 has one of user 7 and goes; user 7 keeps item 3.
    """
    monkeypatch.setattr(protocols, "LEAST_EVENTS", 2)
    rows = ["7,3,4.0,60", "7,5,5.0,50", "9,5,4.5,40", "8,3,3.5,30", "8,3,4.0,20", "8,3,5.0,10",
            "8,4,4.0,9", "6,4,5.0,8", "6,3,4.0,7"]  # fmt: skip
    folder = tmp_path / "ml-latest-small"
    folder.mkdir()
    (folder / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *rows]))
    events = protocols.read_events(tmp_path, "ml-latest-small")
    assert triples(events) == [(1, 0, 60), (2, 0, 20), (2, 1, 9), (0, 1, 8), (0, 0, 7)]
    assert events.timed


def test_a_fifth_is_drawn_and_the_inner_part_is_drawn_from_the_rest(protocols):
    events = drawn(protocols)
    (split,) = protocols.splits(events, "random")
    test = np.random.default_rng(42).random(len(events)) < 0.2
    assert triples(split.train) == triples(events.where(~test))
    assert triples(split.test) == triples(events.where(test))
    (inner,) = protocols.splits(events, "random", inner=True)
    test = np.random.default_rng(43).random(len(split.train)) < 0.2
    assert triples(inner.test) == triples(split.train.where(test))
    assert triples(inner.train) == triples(split.train.where(~test))


def test_cuts_in_time_by_hand(protocols):
    """Ten events, the cut at .5 tests one of them, that at .6 the next.

    time  0    1    2    3    4    5    6    7    8    9
    pair  a,0  a,1  b,1  c,0  c,2  a,2  d,0  b,0  b,3  c,1
    cut                            .5   .6   .7   .8   .9
    counts                         yes  no   yes  no   yes
    """
    pairs = ["a0", "a1", "b1", "c0", "c2", "a2", "d0", "b0", "b3", "c1"]
    shuffled = [3, 0, 7, 9, 1, 5, 2, 8, 6, 4]
    events = protocols.Events(
        np.array(["abcd".index(pairs[n][0]) for n in shuffled]),
        np.array([int(pairs[n][1]) for n in shuffled]), np.array(shuffled), True,
    )  # fmt: skip
    found = protocols.splits(events, "time")
    assert [len(split.train) for split in found] == [5, 6, 7, 8, 9]
    assert [triples(split.test) for split in found] == [
        [(0, 2, 5)], [], [(1, 0, 7)], [], [(2, 1, 9)],
    ]  # fmt: skip
    assert triples(found[1].train) == [
        ("abcd".index(pair[0]), int(pair[1]), time) for time, pair in enumerate(pairs[:6])
    ]


def test_last_events_by_hand(protocols):
    """Of equal times the later one in the file; a user of one event is learned, not judged."""
    events = protocols.Events(
        np.array([0, 1, 0, 1, 2, 0]), np.array([0, 0, 1, 1, 1, 2]), np.array([5, 7, 9, 7, 3, 1])
    )
    (split,) = protocols.splits(events, "leave-one-out")
    assert triples(split.test) == [(0, 1, 9), (1, 1, 7)]
    assert triples(split.train) == [(0, 0, 5), (1, 0, 7), (2, 1, 3), (0, 2, 1)]


@pytest.mark.parametrize("protocol", ["random", "time", "leave-one-out"])
def test_inner_parts_keep_away_from_what_is_tested(protocols, protocol):
    events = drawn(protocols)
    tested = {e for split in protocols.splits(events, protocol) for e in triples(split.test)}
    assert tested
    for split in protocols.splits(events, protocol, inner=True):
        assert len(split.test)
        assert not tested & {*triples(split.train), *triples(split.test)}


def test_lists_are_judged_by_hand(protocols):
    """Three places. User 0: items 3 and 4 held out, hits at the second and third place.

    User 2: five held out, of which the list has one, at the first place, and ends after it; item 9
    was never learned. User 1 has nothing held out.
    """
    split = protocols.Split(
        protocols.Events(np.array([0, 1, 2]), np.array([0, 1, 2])),
        protocols.Events(np.array([2, 0, 2, 2, 0, 2, 2]), np.array([5, 3, 9, 0, 4, 6, 7])),
    )
    assert split.users.tolist() == [0, 2]
    judged = protocols.judge(np.array([[5, 3, 4], [7, -1, -1]]), split, 3)
    second, third = 1 / np.log2(3), 1 / 2
    assert judged.recall == pytest.approx([1.0, 1 / 3])
    assert judged.ndcg == pytest.approx([(second + third) / (1 + second), 1 / (1 + second + third)])
    row = judged.row()
    assert row["users"] == 2
    assert row["recall"] == pytest.approx(2 / 3)
    # deviation of two values about their mean, over the root of two: half their distance
    assert row["recallError"] == pytest.approx(1 / 3)
    pooled = protocols.Judged.pooled([judged, judged]).row()
    assert (pooled["users"], pooled["recall"]) == (4, pytest.approx(2 / 3))


def test_a_list_of_what_was_done_is_refused(protocols):
    split = protocols.Split(
        protocols.Events(np.array([0, 1]), np.array([0, 1])),
        protocols.Events(np.array([0]), np.array([1])),
    )
    with pytest.raises(ValueError, match="done before"):
        protocols.judge(np.array([[1, 0]]), split, 3)
    with pytest.raises(ValueError, match="lists of at most 3"):
        protocols.judge(np.array([[1], [1]]), split, 3)
    with pytest.raises(ValueError, match="behind the end"):
        protocols.judge(np.array([[-1, 1]]), split, 3)


def test_what_has_no_times_is_not_cut_in_time(protocols):
    events = protocols.Events(np.array([0, 0]), np.array([0, 1]), np.array([0, 1]))
    with pytest.raises(ValueError, match="no times"):
        protocols.splits(events, "time")
    with pytest.raises(ValueError, match="came last"):
        protocols.splits(protocols.Events(events.users, events.items), "leave-one-out")
    assert protocols.SETS["beauty"].protocols == ("random", "leave-one-out")
