"""The table of peers: what it reads, what it holds out, how it chooses, and a peer that fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

FOLDER = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture
def accuracy(monkeypatch):
    if not (FOLDER / "accuracy.py").is_file():
        pytest.skip("the benchmarks are not part of a source distribution")
    monkeypatch.syspath_prepend(str(FOLDER))
    import accuracy

    return accuracy


def table(n=400):
    rng = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "user": rng.integers(0, 40, n),
            "item": rng.integers(0, 30, n),
            "rating": rng.integers(1, 6, n).astype(float),
            "time": np.arange(n) * 60,
        }
    )


class OnlyOurs:
    """Three ways without Spark, so that the arranging alone is tried."""

    @staticmethod
    def fit(train, held, point):
        return np.full(len(held), train.rating.mean())

    stream = half = fit


def test_every_form_of_file_reads_alike_and_others_are_passed_over(accuracy, tmp_path):
    ratings = table()
    for name in ("a", "b", "c", "d"):
        (tmp_path / name).mkdir()
    ratings.to_csv(tmp_path / "a" / "ratings.csv", index=False)
    heads = ["userId", "movieId", "rating", "timestamp"]
    ratings.set_axis(heads, axis=1).to_csv(tmp_path / "b" / "ratings.csv", index=False)
    rows = ("::".join(map(str, row)) for row in ratings.itertuples(index=False))
    (tmp_path / "c" / "ratings.dat").write_text("\n".join(rows) + "\n")
    named = ratings.assign(user="u" + ratings.user.astype(str))
    named.to_parquet(tmp_path / "d" / "some.parquet")
    (tmp_path / "movies.dat").write_text("1::Heat (1995)::Crime\n")
    (tmp_path / "movies.csv").write_text("movieId,title\n1,Heat\n")

    found = dict(accuracy.find_sets(tmp_path, []))
    assert list(found) == ["a", "b", "c", "some"]
    for name in ("a", "b", "c"):
        pd.testing.assert_frame_equal(found[name], ratings)
    assert found["some"].user.nunique() == ratings.user.nunique()
    assert list(dict(accuracy.find_sets(tmp_path, ["c"]))) == ["c"]


def test_held_out_parts(accuracy):
    assert (accuracy.outer_splits(9, 1)[0] == (np.random.default_rng(42).random(9) < 0.2)).all()
    assert (np.sum(accuracy.outer_splits(1000, 5), axis=0) == 1).all()
    ratings = table()
    ratings.loc[0, "user"] = 99
    test = np.arange(400) < 40
    train, held = accuracy.split(ratings, test)
    assert len(train) == 360
    assert 0 < len(held) < 40
    assert held.user.isin(train.user).all()
    assert held["item"].isin(train["item"]).all()


def test_errors_are_of_clipped_predictions_and_the_best_point_comes_first(accuracy):
    def learn(train, held, point):
        return held.rating.to_numpy() + point["off"]

    train, held = accuracy.split(table(), np.arange(400) < 80)
    held = held.assign(rating=5.0)
    assert accuracy.score(train, held, learn, {"off": 3.0})["rmse"] == 0.0
    assert accuracy.score(train, held, learn, {"off": -2.0})["mae"] == 2.0
    points = accuracy.ranked(train, learn, ({"off": -2.0}, {"off": np.nan}, {"off": -1.0}))
    assert [point["off"] for point in points[:2]] == [-1.0, -2.0]


def test_folds_share_what_the_first_one_chose(accuracy):
    tried = []

    def learn(train, held, point):
        tried.append(point["off"])
        return held.rating.to_numpy() + point["off"]

    grid = ({"off": -2.0}, {"off": -1.0})
    peers = [accuracy.Peer("Peer", "numpy", "none", grid, learn)]
    found = accuracy.measure(OnlyOurs, table(), 5, 0, peers, with_als=False)
    assert tried == [-2.0, -1.0] + [-1.0] * 5
    assert len(found["rows"]["Peer"]) == len(found["rows"]["ours: fit"]) == 5


def test_a_peer_that_is_missing_or_fails_is_a_line_with_the_reason(accuracy):
    def fail(train, held, point):
        raise RuntimeError("no such luck")

    peers = [
        accuracy.Peer("Missing", "no_such_module", "none", ({},), fail),
        accuracy.Peer("Failing", "numpy", "numpy", ({},), fail),
    ]
    found = accuracy.measure(OnlyOurs, table(), 1, 2, peers, with_als=False)
    page = accuracy.as_markdown({"a set": found})
    assert "| Missing | | | | | no result: ModuleNotFoundError: No module named" in page
    assert "| Failing | | | | | no result: RuntimeError: no such luck |" in page
    assert "| ours: fit |" in page
    assert "`fit` over 2 seeds" in page
