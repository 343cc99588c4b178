"""Ranks and their means against scikit-learn, loops and hand calculations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sparkml_sgdals.metrics import mrr_at, rank_of_rated, recall_at, sample_items


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
