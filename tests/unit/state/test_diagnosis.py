"""The verdict on a model."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from building import low_rank, ratings_of, rows_of, seen_state, settings_of

from sparkml_sgdals.arrays.ratings import Ratings, encode_ratings
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.learn.whole_table import fit_ratings
from sparkml_sgdals.state.diagnosis import Diagnosis, RankingDiagnosis, diagnose_state
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.settings import Settings


def parts(count: int, held: int) -> tuple[Ratings, Ratings]:
    """Ratings to learn and ratings held out."""
    table, _ = low_rank(count + held)
    return encode_ratings(table[:count]), encode_ratings(table[count:])


def fitted(settings: Settings, ratings: Ratings) -> ModelState:
    """A model of a table."""
    state = ModelState.empty(settings, "int", "int")
    fit_ratings(ratings, state)
    return state


def test_yes_on_held_out_ratings() -> None:
    """Features that help are seen, with the RMSE of both by hand."""
    learned, held = parts(4000, 1200)
    state = fitted(settings_of(rank=4, max_iter=5, tol=0.0), learned)
    found = diagnose_state(state, held, 5)
    users, items = rows_of(state, held)
    truth = held.values.astype(float)
    low, high = learned.values.min(), learned.values.max()
    for rmse, predictions in (
        (found.rmse, state.predict(users, items)[0]),
        (found.baselineRmse, state.predict_baseline(users, items)),
    ):
        expected = math.sqrt(np.mean((truth - np.clip(predictions, low, high)) ** 2))
        assert rmse == pytest.approx(expected, rel=1e-6)
    assert (found.evidence, found.predicted) == ("held-out", 1200)
    assert found.beatsBaseline is True
    gain = 1 - found.rmse / found.baselineRmse
    assert found.verdict.startswith("Yes")
    assert f"{gain:.2%}" in found.verdict
    assert "held-out" in found.verdict


def test_no_where_features_do_harm() -> None:
    """Pure noise, overfitted: the verdict says by how much it is worse."""
    rng = np.random.default_rng(0)
    columns = rng.integers(0, 60, 4000), rng.integers(0, 60, 4000), rng.normal(3, 1, 4000)
    table = ratings_of(*(c[:2500] for c in columns))
    state = fitted(
        settings_of(solver="sgd", rank=8, max_iter=60, step_size=0.05, regs=(0.0,) * 4), table
    )
    found = diagnose_state(state, ratings_of(*(c[2500:] for c in columns)), 1)
    assert found.rmse > found.baselineRmse
    assert found.beatsBaseline is False
    worse = found.rmse / found.baselineRmse - 1
    assert found.verdict.startswith("Not yet")
    assert f"{worse:.2%} worse" in found.verdict


@pytest.mark.parametrize("count", [0, 1, 999, 1000])
def test_too_few_held_out(count: int) -> None:
    """Below 1,000 predictions there is no verdict, however good they are."""
    learned, held = parts(4000, 1000)
    state = fitted(settings_of(rank=4, max_iter=5, tol=0.0), learned)
    some = ratings_of(
        held.user_ids.take(pa.array(held.users[:count])).to_pylist(),
        held.item_ids.take(pa.array(held.items[:count])).to_pylist(),
        held.values[:count].tolist(),
    )
    found = diagnose_state(state, some, 5)
    assert found.predicted == count
    assert found.beatsBaseline is (count == 1000)
    assert ("Not yet: only" in found.verdict) is (count < 1000)
    assert ("Give more held-out ratings" in found.verdict) is (count in (1, 999))
    assert math.isnan(found.rmse) is (count == 0)
    assert str(found).count("\n") == 3


def test_prequential_evidence() -> None:
    """Without held-out ratings, those predicted before they were learned are the evidence."""
    state = seen_state(settings_of(rank=4))
    assert "only 0 ratings" in diagnose_state(state, None, 5).verdict
    assert "Give held-out ratings" in diagnose_state(state, None, 5).verdict
    table, _ = low_rank(4000)
    learn_batch(state, encode_ratings(table[1500:]))
    found = diagnose_state(state, None, 5)
    assert (found.evidence, found.predicted) == ("prequential", 2500)
    assert found.rmse == state.counters.prequential_rmse()
    assert found.baselineRmse == state.counters.baseline_rmse()
    assert found.ratings == 4000
    assert "prequential" in found.verdict


def test_thin_ids() -> None:
    """Shares of ids with fewer ratings than asked for."""
    state = ModelState.empty(settings_of(rank=1), "str", "int")
    batch = ratings_of(["a", "a", "a", "b", "b", "c"], [1, 2, 3, 1, 2, 1], [1, 2, 3, 4, 5, 6])
    learn_batch(state, batch)
    found = diagnose_state(state, None, 3)
    assert (found.ratings, found.users, found.items, found.minRatings) == (6, 3, 3, 3)
    assert found.thinUsers == pytest.approx(2 / 3)
    assert found.thinItems == pytest.approx(2 / 3)
    assert diagnose_state(state, None, 1).thinUsers == 0.0
    assert "67% of users" in str(found)


def test_a_model_that_has_seen_nothing() -> None:
    """It can be asked, and says that it is too early."""
    found = diagnose_state(ModelState.empty(settings_of(), "int", "int"), None, 5)
    assert (found.ratings, found.users, found.predicted) == (0, 0, 0)
    assert math.isnan(found.thinUsers)
    assert math.isnan(found.rmse)
    assert found.beatsBaseline is False
    assert "only 0" in str(found)


def test_equal_ratings_are_no_victory() -> None:
    """Where mean and biases are never wrong nothing can be better, and nothing fails."""
    state = ModelState.empty(settings_of(rank=2), "int", "int")
    for _ in range(3):
        learn_batch(state, ratings_of(list(range(600)), [n % 7 for n in range(600)], [4.0] * 600))
    found = diagnose_state(state, None, 1)
    assert (found.predicted, found.rmse, found.baselineRmse) == (1200, 0.0, 0.0)
    assert found.beatsBaseline is False
    assert found.verdict.startswith("Not yet")
    assert "serve it?" in str(found)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((1000, 0.8, 1.0), "Yes: its predictions beat mean and biases by 20.00%"),
        ((1000, 1.0, 1.0), "Not yet: its predictions are those of mean and biases"),
        ((1000, 1.5, 1.0), "Not yet: its predictions are 50.00% worse"),
        ((999, 0.8, 1.0), "Not yet: only 999 ratings"),
    ],
)
def test_verdict(numbers: tuple[Any, ...], expected: str) -> None:
    """One sentence, decided by the two numbers."""
    found = Diagnosis(9, 3, 3, 5, 0.0, 0.0, "held-out", *numbers)
    assert found.verdict.startswith(expected)
    assert found.beatsBaseline is expected.startswith("Yes")


def test_ids_that_were_not_learned_are_judged_apart() -> None:
    """Against what is said of them without features, and whichever is better is said."""
    rng = np.random.default_rng(1)
    items = rng.integers(0, 20, 3000)
    columns = rng.integers(0, 60, 3000), items, 2.0 + items % 2 + rng.normal(0, 0.1, 3000)
    old = items < 16
    state = fitted(settings_of(rank=2), ratings_of(*(c[old] for c in columns)))
    held = ratings_of(*(c[~old] for c in columns))
    plain = diagnose_state(state, held, 5)
    assert plain.coldPredicted == plain.predicted == (~old).sum()
    assert plain.coldRmse == plain.coldPlainRmse == plain.rmse
    assert plain.featuresHelp is False
    assert "by mean and biases" in str(plain)
    for right in (True, False):
        told = state.copy()
        rows, _ = told.items.ensure(pa.array([16, 17, 18, 19]))
        bias = np.array([-0.5, 0.5, -0.5, 0.5]) / state.scale.spread
        told.items.mean[rows, 0] = bias if right else -bias
        found = diagnose_state(state, held, 5, told)
        assert found.featuresHelp is right
        assert found.coldPlainRmse == plain.coldRmse
        assert f"{'better' if right else 'worse'} than the {plain.rmse:.4f}" in str(found)
        assert "New" not in found.verdict
        assert "RMSE of new ids" in found._repr_html_()


def ranked(**fields: Any) -> RankingDiagnosis:
    """A diagnosis of events, by what is told and what is usual."""
    usual = {"predicted": 1000, "judged": 90, "ndcg": 0.2, "baselineNdcg": 0.1, "recall": 0.3}
    return RankingDiagnosis(
        ratings=9000, users=100, items=50, minRatings=5, thinUsers=0.1, thinItems=0.2,
        evidence="held-out", k=10, **{"baselineRecall": 0.2, **usual, **fields},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, r"Yes: .* better than the most popular items \(NDCG@10 0.2000 for 0.1000, held-out\)"),
        ({"baselineNdcg": 0.2}, "Not yet: its lists are no better"),
        ({"predicted": 999}, "Not yet: only 999 events .* Give more held-out events"),
        ({"predicted": 0}, "Not yet: how well it ranks is not known.* Give held-out events"),
    ],
)
def test_verdict_of_events(fields: dict[str, Any], expected: str) -> None:
    """By lists, beside what is popular; of ratings there is no word."""
    found = ranked(**fields)
    assert re.match(expected, found.verdict)
    assert found.beatsBaseline is expected.startswith("Yes")
    shown = str(found) + found._repr_html_()
    assert "RMSE" not in shown
    assert ("Recall@10" in shown) is bool(found.predicted)
    assert math.isnan(found.rmse)


def test_features_help_lists_by_more_than_chance() -> None:
    """Fifty columns of noise do better than nothing every other time."""
    cold = {"coldLists": 40, "coldRecall": 0.4, "coldPlainRecall": 0.3, "coldNdcg": 0.25}
    for plain, helps in ((0.2, True), (0.24, False), (0.3, False)):
        found = ranked(**cold, coldPlainNdcg=plain, coldError=0.02)
        assert found.featuresHelp is helps
        assert f"0.2500 +- 0.0200 by their features in 40 lists, {plain:.4f} without" in str(found)
    assert not ranked().featuresHelp
    figure = ranked().plot()
    assert figure.axes[0].get_xlabel() == "NDCG@10"
