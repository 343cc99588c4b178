"""Ranks and their means against scikit-learn, loops and hand calculations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkml_sgdals.metrics import (
    average_precision_at,
    chance_of_lists,
    gini,
    list_hits,
    list_recall_at,
    mrr_at,
    ndcg_at,
    precision_at,
    rank_of_rated,
    recall_at,
    reciprocal_rank_at,
    sample_items,
    self_information,
)


def csr(lists):
    starts = np.concatenate([[0], np.cumsum([len(part) for part in lists])]).astype(np.int64)
    return starts, np.array([row for part in lists for row in part], np.int64)


class TestRanking:
    ITEMS = np.eye(4)
    USERS = np.array([[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]])

    def ranks(self, rated, seen, among=None, offsets=(0, 0, 0, 0)):
        return rank_of_rated(
            self.USERS, self.ITEMS, np.array(offsets, float), np.array(rated), *csr(seen), among
        )

    def test_by_hand(self):
        assert self.ranks([2, 2], [[], []]).tolist() == [3, 2]

    def test_what_was_seen_does_not_compete(self):
        assert self.ranks([2, 2], [[0], [3, 0]]).tolist() == [2, 1]

    def test_a_rated_item_that_was_seen_competes_itself(self):
        assert self.ranks([2, 2], [[2], [2, 3]]).tolist() == [3, 1]

    def test_offsets_count(self):
        assert self.ranks([2, 2], [[], []], offsets=(0, 0, 10, 0)).tolist() == [1, 1]

    def test_ties_count_against_it(self):
        ranks = rank_of_rated(
            np.zeros((1, 2)), np.zeros((5, 2)), np.zeros(5), np.array([0]), *csr([[]])
        )
        assert ranks.tolist() == [5]

    def test_a_sample_of_the_catalogue(self):
        among = np.array([[0, 0, 3], [1, 3, 2]])
        # of user 0's better items 0 and 1 only 0 is in the sample, twice drawn, one rival
        assert self.ranks([2, 2], [[], []], among).tolist() == [2, 2]

    def test_many_are_ranked_as_one_by_one(self, monkeypatch):
        rng = np.random.default_rng(4)
        users, items = rng.normal(0, 1, (60, 3)), rng.normal(0, 1, (40, 3))
        offsets, rated = rng.normal(0, 1, 40), rng.integers(0, 40, 60)
        seen = [rng.choice(40, rng.integers(0, 20), replace=False).tolist() for _ in range(60)]
        monkeypatch.setattr("sparkml_sgdals.metrics._SCORES", 7 * 40)
        found = rank_of_rated(users, items, offsets, rated, *csr(seen))
        for n in range(60):
            scores = items @ users[n] + offsets
            rivals = [i for i in range(40) if i not in seen[n] and i != rated[n]]
            assert found[n] == 1 + sum(scores[i] >= scores[rated[n]] for i in rivals)

    def test_recall_and_mrr_by_hand(self):
        ranks = np.array([1, 3, 12, 2])
        assert recall_at(ranks, 10) == 0.75
        assert mrr_at(ranks, 10) == pytest.approx((1 + 1 / 3 + 0 + 1 / 2) / 4)
        assert recall_at(ranks, 1) == 0.25
        assert math.isnan(recall_at(np.empty(0, np.int64), 10))
        assert math.isnan(mrr_at(np.empty(0, np.int64), 10))

    def test_recall_is_top_k_accuracy_of_scikit_learn(self):
        metrics = pytest.importorskip("sklearn.metrics")
        rng = np.random.default_rng(5)
        users, items = rng.normal(0, 1, (200, 3)), rng.normal(0, 1, (30, 3))
        rated = rng.integers(0, 30, 200)
        ranks = rank_of_rated(users, items, np.zeros(30), rated, *csr([[]] * 200))
        expected = metrics.top_k_accuracy_score(rated, users @ items.T, k=5, labels=np.arange(30))
        assert recall_at(ranks, 5) == pytest.approx(expected)

    def test_samples_are_a_function_of_seed_and_batch(self):
        first = sample_items(5, 100, 8, seed=1, batch=2)
        assert first.shape == (5, 8)
        assert np.array_equal(first, sample_items(5, 100, 8, seed=1, batch=2))
        assert not np.array_equal(first, sample_items(5, 100, 8, seed=1, batch=3))
        assert first.min() >= 0
        assert first.max() < 100


def judged(lists, held, n):
    """All that is told of each user's list, by the functions under test."""
    (starts, found), (held_starts, wanted) = csr(lists), csr(held)
    hits, sizes = list_hits(found, starts, wanted, held_starts, n)
    assert hits.shape == (len(lists), n)
    return {
        "held": sizes,
        "recall": list_recall_at(hits, sizes, n),
        "ndcg": ndcg_at(hits, sizes, n),
        "mrr": reciprocal_rank_at(hits, n),
        "map": average_precision_at(hits, sizes, n),
        "precision": precision_at(hits, n),
    }


def by_loops(items, held, n):
    """The same of one user, as the page of the metrics says it."""
    wanted = set(held)
    taken, hit = set(), []
    for item in items[:n]:
        hit.append(item in wanted and item not in taken)
        taken.add(item)
    places = [place for place, there in enumerate(hit, 1) if there]
    best = min(n, len(wanted))
    ideal = sum(1 / math.log2(1 + place) for place in range(1, best + 1))
    return {
        "held": len(wanted),
        "recall": len(places) / best if best else math.nan,
        "ndcg": sum(1 / math.log2(1 + p) for p in places) / ideal if best else math.nan,
        "mrr": 1 / places[0] if places else 0.0,
        "map": sum(sum(hit[:p]) / p for p in places) / best if best else math.nan,
        "precision": len(places) / n,
    }


class TestLists:
    def test_by_hand(self):
        found = judged([[7, 3, 9, 1], [5]], [[3, 1, 8, 3], [6]], 4)
        assert found["held"].tolist() == [3, 1]
        assert found["recall"].tolist() == [2 / 3, 0.0]
        # places 2 and 4, of three that could be 1, 2 and 3
        ideal = 1 + 1 / math.log2(3) + 1 / 2
        assert found["ndcg"][0] == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / ideal)
        assert found["mrr"].tolist() == [0.5, 0.0]
        assert found["map"].tolist() == [pytest.approx((1 / 2 + 2 / 4) / 3), 0.0]
        assert found["precision"].tolist() == [0.5, 0.0]

    def test_recall_is_of_what_fits_in_the_list(self):
        assert judged([[1, 2]], [[1, 2, 3, 4, 5]], 2)["recall"].tolist() == [1.0]
        assert judged([[1, 2]], [[1, 2, 3, 4, 5]], 2)["ndcg"].tolist() == [1.0]

    def test_a_shorter_cut_of_longer_lists(self):
        starts, found = csr([[4, 2, 1]])
        hits, held = list_hits(found, starts, np.array([1, 2]), np.array([0, 2]), 3)
        assert list_recall_at(hits, held, 2).tolist() == [0.5]
        assert reciprocal_rank_at(hits, 1).tolist() == [0.0]
        assert precision_at(hits, 2).tolist() == [0.5]

    @given(
        st.lists(
            st.tuples(
                st.lists(st.integers(0, 9), max_size=12), st.lists(st.integers(0, 12), max_size=9)
            ),
            max_size=6,
        ),
        st.integers(1, 12),
    )
    def test_any_lists_as_by_loops(self, users, n):
        """Repeated items in lists and in what was held out, empty ones, more places than items."""
        found = judged([u[0] for u in users], [u[1] for u in users], n)
        for row, (items, held) in enumerate(users):
            for name, value in by_loops(items, held, n).items():
                assert found[name][row] == pytest.approx(value, nan_ok=True), name

    def test_ndcg_is_that_of_scikit_learn(self):
        metrics = pytest.importorskip("sklearn.metrics")
        rng = np.random.default_rng(3)
        scores = rng.permuted(np.tile(np.arange(30.0), (20, 1)), axis=1)
        liked = rng.random((20, 30)) < 0.2
        liked[:, 0] = True
        lists = np.argsort(-scores, axis=1)[:, :8].tolist()
        found = judged(lists, [np.flatnonzero(row).tolist() for row in liked], 8)["ndcg"]
        expected = [
            metrics.ndcg_score([row], [own], k=8)
            for row, own in zip(liked.astype(float), scores, strict=True)
        ]
        np.testing.assert_allclose(found, expected)


class TestCatalogue:
    def test_gini_by_hand(self):
        assert gini(np.array([3, 3, 3])) == 0.0
        assert gini(np.array([0, 0, 9])) == 1.0
        # sorted 0, 1, 2, 5: (-3 * 0 - 1 * 1 + 1 * 2 + 3 * 5) / (3 * 8)
        assert gini(np.array([2, 0, 5, 1])) == pytest.approx(16 / 24)
        assert gini(np.array([4])) == 0.0
        assert math.isnan(gini(np.zeros(3, np.int64)))

    @given(st.lists(st.integers(0, 50), min_size=2, max_size=12).filter(sum))
    def test_gini_is_the_mean_difference(self, counts):
        """Half the mean difference of two different items, in units of the mean."""
        n = len(counts)
        apart = sum(abs(a - b) for a in counts for b in counts) / (n * (n - 1))
        assert gini(np.array(counts)) == pytest.approx(apart / 2 / (sum(counts) / n))

    def test_self_information_by_hand(self):
        assert self_information(np.array([8, 4, 1, 0]), 8).tolist() == [0.0, 1.0, 3.0, 3.0]


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_chance_of_lists(candidates, n, seed):
    """As the mean over all turns of a list: each candidate is in each place as often."""
    held = np.random.default_rng(seed).integers(1, candidates + 1, 3)
    recall, ndcg = chance_of_lists(held, candidates, n)
    turns = np.array([np.roll(np.arange(candidates), k) for k in range(candidates)])
    starts = np.arange(candidates + 1) * candidates
    for x, size in enumerate(held):
        own = np.tile(np.arange(size), candidates)
        hits, sizes = list_hits(turns.ravel(), starts, own, np.arange(candidates + 1) * size, n)
        assert recall[x] == pytest.approx(list_recall_at(hits, sizes, n).mean())
        assert ndcg[x] == pytest.approx(ndcg_at(hits, sizes, n).mean())
