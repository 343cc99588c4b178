"""Ranks of events before they are learned, against the slow reference and by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from sparkml_sgdals import event_ranks
from sparkml_sgdals.event_scores import serving_state
from sparkml_sgdals.prequential import mrr_at, rank_of_rated, rank_sums, recall_at
from sparkml_sgdals.ratings import encode_ratings
from sparkml_sgdals.settings import Settings
from sparkml_sgdals.state import ModelState
from sparkml_sgdals.updating import learn_batch

EVENTS = Settings(
    positive=True, rank=3, num_negatives=4, factor_prior=0.5, bias_prior=0.1, init_std=0.3,
    ranking_size=5,
)  # fmt: skip
DESCENT = replace(EVENTS, solver="isgd", num_negatives=0, step_size=0.1)


def events(rng, count, users=30, items=40, unwanted=0.0):
    return pa.table(
        {
            "user": pa.array(rng.integers(0, users, count)),
            "item": pa.array((items * rng.random(count) ** 2).astype(np.int64)),
            "rating": pa.array(np.where(rng.random(count) < unwanted, 0, 1).astype(np.float32)),
            "time": pa.array(np.arange(count)),
        }
    )


def slow_ranks(state, done, ratings):
    """Event by event: (rank by the model, rank by popularity) of those that count."""
    served = serving_state(state)
    users, items = served.users.mean, served.items.mean
    names = state.items.index.ids().to_pylist()
    place = {item: row for row, item in enumerate(names)}
    people = {u: row for row, u in enumerate(state.users.index.ids().to_pylist())}
    done = {user: set(own) for user, own in done.items()}
    found = []
    for x, y, value in zip(ratings.users, ratings.items, ratings.values, strict=True):
        user, item = ratings.user_ids[int(x)].as_py(), ratings.item_ids[int(y)].as_py()
        own = done.setdefault(user, set())
        if value > 0 and user in people and item in place and item not in own:
            seen = np.array([place[i] for i in own if i in place], np.int64)
            starts = np.array([0, seen.size])
            what = (np.array([place[item]]), starts, seen)
            u = users[people[user]][None, 1:]
            by_model = rank_of_rated(u, items[:, 1:], items[:, 0], *what)
            by_count = rank_of_rated(
                u * 0, items[:, 1:], state.items.count.astype(np.float64), *what
            )
            found.append((int(by_model[0]), int(by_count[0])))
        if value > 0:
            own.add(item)
    return np.array(found, np.int64).reshape(-1, 2), done


@pytest.mark.parametrize("settings", [EVENTS, DESCENT, replace(EVENTS, implicit_prior=False)])
def test_ranks_are_those_of_the_slow_reference(settings):
    rng = np.random.default_rng(3)
    state, done, judged = ModelState.empty(settings, "int", "int"), {}, 0
    for number in range(6):
        # ids that nobody knows keep coming, and pairs come again
        table = events(rng, 150, users=20 + 10 * number, items=30 + 10 * number, unwanted=0.1)
        ratings = encode_ratings(table)
        ranks, done = slow_ranks(state, done, ratings)
        sums = learn_batch(state, ratings).sums
        assert sums == rank_sums(ranks[:, 0], ranks[:, 1], 5)
        assert sums.ranked == len(ranks)
        judged += sums.ranked
    assert judged > 200


def test_sums_by_hand():
    found = rank_sums(np.array([1, 3, 12, 2]), np.array([11, 10, 1, 40]), 10).metrics()
    assert (found["ranked"], found["recall"], found["baselineRecall"]) == (4, 0.75, 0.5)
    assert found["mrr"] == pytest.approx((1 + 1 / 3 + 1 / 2) / 4)
    assert found["baselineMrr"] == pytest.approx((1 / 10 + 1) / 4)
    assert found["rmse"] is None


def test_sums_are_the_metrics_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(5)
    scores, truth = rng.normal(0, 1, (300, 25)), rng.integers(0, 25, 300)
    own = scores[np.arange(300), truth]
    ranks = (scores >= own[:, None]).sum(axis=1)
    found = rank_sums(ranks, ranks, 5).metrics()
    assert found["recall"] == pytest.approx(
        metrics.top_k_accuracy_score(truth, scores, k=5, labels=np.arange(25))
    )
    # with one relevant item the label ranking average precision is the reciprocal rank
    whole = rank_sums(ranks, ranks, 25).metrics()
    assert whole["mrr"] == pytest.approx(
        metrics.label_ranking_average_precision_score(np.eye(25)[truth], scores)
    )
    assert found["recall"] == recall_at(ranks, 5)
    assert found["mrr"] == pytest.approx(mrr_at(ranks, 5))


def learned(settings, seed=4, batches=4, items=40, count=200):
    rng = np.random.default_rng(seed)
    state = ModelState.empty(settings, "int", "int")
    return state, [
        learn_batch(state, encode_ratings(events(rng, count, items=items))).sums
        for _ in range(batches)
    ]


def test_a_large_sample_is_the_catalogue_and_a_small_one_is_not():
    _, whole = learned(EVENTS)
    _, many = learned(replace(EVENTS, ranking_sample=2000))
    _, few = learned(replace(EVENTS, ranking_sample=8))
    assert many == whole
    assert [sums.ranked for sums in few] == [sums.ranked for sums in whole]
    assert all(a.hits > b.hits for a, b in zip(few[1:], whole[1:], strict=True))


def test_samples_do_not_depend_on_rows_in_memory(tmp_path):
    """A state whose rows stand in another order ranks the same."""
    settings = replace(EVENTS, ranking_sample=10)
    state, _ = learned(settings)
    twin = ModelState.empty(settings, "int", "int")
    twin.set_scalars(state.scalars())
    for own, other in ((twin.users, state.users), (twin.items, state.items)):
        # sorted by id, not by first sight
        own.put_arrow(other.to_arrow())
    assert twin.items.index.ids().to_pylist() != state.items.index.ids().to_pylist()
    batch = encode_ratings(events(np.random.default_rng(8), 200))
    found = learn_batch(state, batch).sums
    assert found.ranked > 20
    assert learn_batch(twin, batch).sums == found


def test_of_many_events_some_are_ranked(monkeypatch):
    state, whole = learned(EVENTS)
    monkeypatch.setattr(event_ranks, "_SCORES", 40 * 25)
    _, some = learned(EVENTS)
    assert state.items.size == 40
    assert min(sums.ranked for sums in whole[1:]) > 26
    # the first batch did not name all items
    assert [sums.ranked for sums in some] == [0, 26, 25, 25]
    _, again = learned(EVENTS)
    assert again == some


def test_ranking_changes_nothing_that_is_learned():
    for settings in (EVENTS, DESCENT):
        ranked, _ = learned(settings)
        plain, sums = learned(replace(settings, ranking_size=0))
        assert ranked.fingerprint() == plain.fingerprint()
        assert {each.ranked for each in sums} == {0}


def test_an_item_without_taste_ties_and_gains_nothing():
    state, _ = learned(replace(DESCENT, init_std=0.0, step_size=0.0))
    batch = encode_ratings(events(np.random.default_rng(8), 50))
    sums = learn_batch(state, batch).sums
    assert sums.ranked > 5
    assert sums.hits == 0
