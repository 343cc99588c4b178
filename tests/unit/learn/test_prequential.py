"""Prequential metrics against scikit-learn, SciPy-free references and hand calculations."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkml_sgdals.learn import prequential
from sparkml_sgdals.learn.prequential import BatchSums, faded_means, judge_batch, window_means


def random_batch(seed=3, count=400):
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.5, 5.0, count)
    predictions = truth + rng.normal(0, 0.8, count)
    return truth, predictions, np.full(count, 3.5), rng.uniform(0.3, 1.2, count)


class TestJudgeBatch:
    def test_by_hand(self):
        sums = judge_batch(
            np.array([4.0, 2.0]), np.array([3.0, 2.5]), np.array([3.0, 3.0]), np.array([0.25, 1.0])
        )
        found = sums.metrics()
        assert found["judged"] == 2
        assert found["rmse"] == pytest.approx(math.sqrt((1.0 + 0.25) / 2))
        assert found["mae"] == pytest.approx(0.75)
        assert found["baselineRmse"] == pytest.approx(1.0)
        assert found["baselineMae"] == pytest.approx(1.0)
        # errors of 2 and 0.5 deviations
        assert found["within1"] == 0.5
        assert found["within2"] == 1.0

    def test_errors_are_those_of_scikit_learn(self):
        metrics = pytest.importorskip("sklearn.metrics")
        truth, predictions, baseline, variances = random_batch()
        found = judge_batch(truth, predictions, baseline, variances).metrics()
        assert found["rmse"] == pytest.approx(metrics.root_mean_squared_error(truth, predictions))
        assert found["mae"] == pytest.approx(metrics.mean_absolute_error(truth, predictions))
        assert found["baselineRmse"] == pytest.approx(
            metrics.root_mean_squared_error(truth, baseline)
        )
        assert found["baselineMae"] == pytest.approx(metrics.mean_absolute_error(truth, baseline))

    def test_likelihood_is_that_of_the_standard_library(self):
        truth, predictions, baseline, variances = random_batch()
        found = judge_batch(truth, predictions, baseline, variances).metrics()
        each = [
            math.log(NormalDist(p, math.sqrt(v)).pdf(t))
            for t, p, v in zip(truth, predictions, variances, strict=True)
        ]
        assert found["logLikelihood"] == pytest.approx(sum(each) / len(each))

    def test_an_honest_normal_deviation_holds_68_and_95_percent(self):
        rng = np.random.default_rng(1)
        deviations = rng.uniform(0.5, 2.0, 200_000)
        truth = rng.normal(3.0, deviations)
        found = judge_batch(truth, np.full(truth.size, 3.0), truth, deviations**2).metrics()
        assert found["within1"] == pytest.approx(0.6827, abs=0.004)
        assert found["within2"] == pytest.approx(0.9545, abs=0.002)

    def test_nothing_judged_is_none_not_nan(self):
        found = BatchSums().metrics()
        assert [found.pop(name) for name in ("judged", "ranked", "uncounted")] == [0, 0, 0]
        assert set(found.values()) == {None}

    def test_without_deviations_there_is_no_likelihood(self):
        found = judge_batch(*random_batch()[:3], None).metrics()
        assert found["rmse"] is not None
        assert (found["logLikelihood"], found["within1"], found["within2"]) == (None, None, None)


class TestOverBatches:
    def test_window_by_hand(self):
        sums, counts = np.array([2.0, 6.0, 1.0, 8.0]), np.array([2, 2, 1, 4])
        # 3 ratings are held by: 1; 1+2; 2+3; 4 alone
        assert window_means(sums, counts, 3) == pytest.approx([1.0, 2.0, 7 / 3, 2.0])

    def test_window_of_nothing(self):
        assert np.isnan(window_means(np.zeros(2), np.zeros(2, np.int64), 5)).all()

    def test_an_empty_batch_keeps_the_window(self):
        means = window_means(np.array([3.0, 0.0]), np.array([3, 0]), 3)
        assert means == pytest.approx([1.0, 1.0])

    @given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(1, 25))
    def test_window_is_the_shortest_tail_that_is_long_enough(self, counts, window):
        counts = np.array(counts, np.int64)
        sums = np.random.default_rng(counts.size).uniform(0, 1, counts.size)
        found = window_means(sums, counts, window)
        for last in range(counts.size):
            start = last
            while start > 0 and counts[start : last + 1].sum() < window:
                start -= 1
            count = counts[start : last + 1].sum()
            if count:
                assert found[last] == pytest.approx(sums[start : last + 1].sum() / count)
            else:
                assert np.isnan(found[last])

    def test_fading_by_hand(self):
        sums, counts = np.array([4.0, 0.0, 3.0]), np.array([2, 0, 1])
        # first batch: 4/2; second adds nothing; third: (4 * 0.5 + 3) / (2 * 0.5 + 1)
        assert faded_means(sums, counts, 0.5) == pytest.approx([2.0, 2.0, 2.5])

    def test_fading_of_single_ratings_is_that_of_the_literature(self):
        losses = np.random.default_rng(2).uniform(0, 1, 50)
        alpha = 0.9
        # Gama, Sebastiao and Rodrigues 2013, equation of the fading-factor estimator
        weights = alpha ** np.arange(49, -1, -1)
        expected = (weights * losses).sum() / weights.sum()
        assert faded_means(losses, np.ones(50, np.int64), alpha)[-1] == pytest.approx(expected)

    def test_no_fading_is_the_mean_of_all(self):
        sums, counts = np.array([1.0, 5.0, 3.0]), np.array([1, 2, 3])
        assert faded_means(sums, counts, 1.0) == pytest.approx([1.0, 2.0, 1.5])


@pytest.mark.parametrize("threads", [1, 3])
def test_squares_of_a_table_by_hand(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of predictions clipped to the range, in the unit of ratings; part by part the same."""
    rng = np.random.default_rng(2)
    truth = rng.uniform(1, 5, 500).astype(np.float32)
    errors = rng.normal(0, 2, 500).astype(np.float32)
    clipped = np.clip(truth - 0.5 * errors.astype(float), 1.5, 4.5)
    for together in (10**6, 60):
        monkeypatch.setattr(prequential, "_TOGETHER", together)
        found = prequential.sum_squares(truth, errors, 0.5, (1.5, 4.5), threads)
        assert found == pytest.approx(np.sum((truth - clipped) ** 2), rel=1e-6)
