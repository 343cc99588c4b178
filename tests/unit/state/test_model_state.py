"""A model's state: scalars, fingerprint, scale, predictions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import reference
from building import (
    F32,
    contents,
    filled_table,
    id_array,
    low_rank,
    ratings_of,
    rows_of,
    seen_state,
    settings_of,
)
from hypothesis import given
from hypothesis import strategies as st

from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.model_state import SETTLING_RATINGS, Counters, ModelState, Scale
from sparkml_sgdals.state.settings import Solver

FLOATS = st.floats(-1e6, 1e6)
COUNTS = st.integers(0, 2**40)
VALUES = st.integers(-4, 10).map(lambda n: n / 2)


def small_state(seed: int = 0, users: tuple[Any, ...] = (3, 1, 2)) -> ModelState:
    """A state of random numbers."""
    settings = settings_of(rank=2)
    return ModelState(
        settings,
        filled_table(settings, users, 1, seed),
        filled_table(settings, ["b", "a"], 2, seed),
        Scale(3.5, 1.25, 20.0, 31.0, 20, False),
        Counters(20, 1.0, 5.0, 12, 9.5, 10.5),
        0.4,
        20.0,
    )


@given(
    st.builds(Scale, FLOATS, FLOATS, FLOATS, FLOATS, COUNTS, st.booleans()),
    st.one_of(
        st.just(Counters()),
        st.builds(Counters, st.integers(1, 2**40), FLOATS, FLOATS, COUNTS, FLOATS, FLOATS),
    ),
    FLOATS,
    FLOATS,
)
def test_scalars_through_json(
    scale: Scale, counters: Counters, noise: float, weight: float
) -> None:
    """Every number survives to the bit, in strict JSON, also where nothing was seen."""
    state = ModelState.empty(settings_of(), "int", "int")
    state.scale, state.counters, state.noise, state.noise_weight = scale, counters, noise, weight
    text = json.dumps(state.scalars(), allow_nan=False)
    back = ModelState.empty(settings_of(), "int", "int")
    back.set_scalars(json.loads(text))
    assert (back.scale, back.counters) == (scale, counters)
    assert (back.noise, back.noise_weight) == (noise, weight)
    assert back.fingerprint() == state.fingerprint()


def test_fingerprint_ignores_the_order_of_rows() -> None:
    """The same ids in other rows are the same model."""
    state, other = small_state(), small_state()
    other.users = FactorTable(1, "int", state.settings)
    other.items = FactorTable(2, "str", state.settings)
    for name in ("users", "items"):
        side, fresh = getattr(state, name), getattr(other, name)
        fresh.put_arrow(side.to_arrow())
        assert fresh.index.ids().to_pylist() != side.index.ids().to_pylist()
    assert other.fingerprint() == state.fingerprint()


def nudge(side: str, array: str) -> Callable[[ModelState], None]:
    """A change of one number of one row by the smallest step."""

    def change(state: ModelState) -> None:
        values = getattr(getattr(state, side), array)
        last = (-1,) * values.ndim
        values[last] += 1 if array == "count" else np.spacing(values[last])

    return change


def set_scalar(**values: Any) -> Callable[[ModelState], None]:
    """A change of one number beside the factors."""

    def change(state: ModelState) -> None:
        for name, value in values.items():
            current = getattr(state, name)
            setattr(state, name, replace(current, **value) if isinstance(value, dict) else value)

    return change


@pytest.mark.parametrize(
    "change",
    [
        *[
            nudge(side, array)
            for side in ("users", "items")
            for array in (
                "mean", "var", "base_mean", "base_var", "count", "drawn", "influence",
                "evidence", "noise_factor",
            )
        ],
        *[
            set_scalar(scale={name: value})
            for name, value in (
                ("mean", 3.6), ("spread", 1.3), ("weight", 21.0), ("squares", 31.5),
                ("seen", 21), ("frozen", True),
            )
        ],
        *[
            set_scalar(counters={name: value})
            for name, value in (
                ("ratings", 21), ("low", 0.5), ("high", 4.5), ("prequential_ratings", 13),
                ("prequential_squares", 9.6), ("baseline_squares", 10.6),
            )
        ],
        set_scalar(noise=0.41),
        set_scalar(noise_weight=21.0),
        lambda state: state.users.ensure(id_array([77])),
    ],
)  # fmt: skip
def test_fingerprint_sees_every_number(change: Callable[[ModelState], None]) -> None:
    """Any single change gives another fingerprint."""
    state = small_state()
    before = state.fingerprint()
    change(state)
    assert state.fingerprint() != before


@pytest.mark.parametrize("users", [(3, 1, 4), ("3", "1", "2")])
def test_fingerprint_sees_the_ids(users: tuple[Any, ...]) -> None:
    """The same numbers under other ids are another model."""
    assert small_state(users=users).fingerprint() != small_state().fingerprint()


def test_copy_is_independent() -> None:
    """Learning on a copy leaves the original."""
    state = seen_state(settings_of(rank=2))
    before = state.fingerprint()
    twin = state.copy()
    assert twin.fingerprint() == before
    learn_batch(twin, ratings_of([-100, 12345], [0, 3], [1.0, 5.0]))
    assert twin.fingerprint() != before
    assert state.fingerprint() == before


@given(st.lists(st.tuples(VALUES, st.sampled_from([0.5, 1.0, 2.0])), min_size=1), st.data())
def test_scale_of_chunks_is_the_scale_of_all(
    rows: list[tuple[float, float]], data: st.DataObject
) -> None:
    """Merged in any chunks, mean and spread are those of the whole."""
    values, weights = (list(column) for column in zip(*rows, strict=True))
    size = data.draw(st.integers(1, len(rows)))
    scale = Scale()
    for first in range(0, len(rows), size):
        part = slice(first, first + size)
        chunk = ratings_of(
            [1] * len(values[part]), [1] * len(values[part]), values[part], weights=weights[part]
        )
        scale = scale.merged(chunk.moments(), len(chunk), True)
    mean = np.average(values, weights=weights)
    spread = math.sqrt(np.average((np.array(values) - mean) ** 2, weights=weights))
    assert scale.mean == pytest.approx(mean)
    assert scale.spread == pytest.approx(spread if spread > 0 else 1.0)
    assert scale.weight == pytest.approx(sum(weights))
    assert scale.squares == pytest.approx(spread**2 * sum(weights), abs=1e-9)
    assert scale.seen == len(rows)
    whole = ratings_of([1] * len(rows), [1] * len(rows), values, weights=weights)
    at_once = Scale.of(whole.moments(), len(whole), True)
    assert (at_once.mean, at_once.spread) == pytest.approx((scale.mean, scale.spread))


@pytest.mark.parametrize("value", [0.0, 3.3, -1e6, 0.1])
def test_equal_ratings_have_spread_one(value: float) -> None:
    """Rounding is no spread, neither at once nor merged."""
    chunk = ratings_of([1] * 7, [1] * 7, [value] * 7)
    scale = Scale.of(chunk.moments(), 7, True)
    assert scale.spread == 1.0
    assert scale.mean == pytest.approx(F32(value))
    for _ in range(3):
        scale = scale.merged(chunk.moments(), 7, True)
    assert scale.spread == 1.0


def test_solvers_of_b_sgd_only_centre() -> None:
    """Without standardising, the spread stays 1."""
    chunk = ratings_of([1, 2], [1, 1], [1.0, 5.0])
    assert Scale.of(chunk.moments(), 2, False).spread == 1.0
    assert Scale().merged(chunk.moments(), 2, False).mean == 3.0


@given(st.lists(VALUES, min_size=1))
def test_standardise(values: list[float]) -> None:
    """Units of the spread about the mean."""
    found = Scale(2.0, 4.0).standardise(np.array(values, F32))
    np.testing.assert_array_equal(found, [(v - 2) / 4 for v in values])
    assert found.dtype == F32


@pytest.mark.parametrize("solver", ["bayes", "sgd", "minibatch"])
@pytest.mark.parametrize(
    "size", [1, 300, 999, 1000, *(pytest.param(n, marks=pytest.mark.long) for n in (2, 7, 1001))]
)
def test_predictions_stay_while_the_scale_settles(solver: Solver, size: int) -> None:
    """A batch moves mean and spread, but no prediction of known ids that it does not touch."""
    table, _ = low_rank(1300)
    first = ratings_of([901, 902], [901, 902], [1.0, 4.0])
    state = ModelState.empty(settings_of(solver=solver, rank=3), "int", "int")
    learn_batch(state, first)
    known = np.repeat(rows_of(state, first)[0], 2), np.tile(rows_of(state, first)[1], 2)
    before, variances = state.predict(*known)
    baseline = state.predict_baseline(*known)
    # one by one is slow and settles no differently after some dozens
    for start in range(0, 40 if size == 1 else 1300, size):
        batch = encode_ratings(table[start : start + size])
        learn_batch(state, batch)
        after, after_variances = state.predict(*known)
        np.testing.assert_allclose(after, before, rtol=2e-4, atol=2e-4)
        np.testing.assert_allclose(after_variances, variances, rtol=2e-3)
        np.testing.assert_allclose(state.predict_baseline(*known), baseline, rtol=2e-4, atol=2e-4)
    assert state.scale.mean != 2.5
    assert (state.scale.spread == 1.0) == (solver != "bayes")


@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.long), 300, 999, 1000, 5000])
def test_scale_is_that_of_the_first_thousand(size: int) -> None:
    """Then it is frozen, whatever the size of the batches."""
    table, _ = low_rank(1300)
    state = ModelState.empty(settings_of(rank=1), "int", "int")
    for start in range(0, 1300, size):
        seen = min(start, SETTLING_RATINGS)
        assert (state.scale.seen, state.scale.frozen) == (seen, seen == SETTLING_RATINGS)
        learn_batch(state, encode_ratings(table[start : start + size]))
    first = table.column("rating").to_numpy()[:SETTLING_RATINGS].astype(float)
    assert state.scale.frozen
    assert state.scale.seen == SETTLING_RATINGS
    assert state.scale.mean == pytest.approx(first.mean(), rel=1e-9)
    assert state.scale.spread == pytest.approx(first.std(), rel=1e-9)


@pytest.mark.parametrize("solver", ["bayes", "sgd", "minibatch"])
@pytest.mark.parametrize("rating", [0.0, 4.0, -250.0, 1e6])
@pytest.mark.parametrize("batches", [[1], [1, 1, 1], [5], [3, 1500, 2]])
def test_equal_ratings_are_predicted(solver: Solver, rating: float, batches: list[int]) -> None:
    """One rating, or equal ones only, learn without error and give that rating again."""
    state = ModelState.empty(settings_of(solver=solver, rank=4), "int", "str")
    rng = np.random.default_rng(0)
    for size in batches:
        users = rng.integers(0, 9, size).tolist()
        batch = ratings_of(users, [f"i{n}" for n in rng.integers(0, 9, size)], [rating] * size)
        learn_batch(state, batch)
    found, variances = state.predict(*rows_of(state, batch))
    np.testing.assert_allclose(found, rating, atol=0.05, rtol=1e-6)
    np.testing.assert_array_equal(state.clip(found), np.full(batches[-1], rating, F32))
    unknown = state.predict(np.array([-1]), np.array([-1]))[0]
    assert unknown[0] == pytest.approx(rating)
    assert (variances >= 0).all()
    assert math.isfinite(state.noise)


def test_predict_in_rating_units() -> None:
    """mean + spread * (b_user + b_item + U . P), and spread^2 * V; unknown ids from the prior."""
    state = small_state()
    prior = np.array([0.2, 0.1, 0.1])
    zero = np.zeros(3)
    users, items = np.array([0, 2, -1, 1, -1]), np.array([1, -1, 0, 0, -1])
    predictions, variances = state.predict(users, items)
    baseline = state.predict_baseline(users, items)
    for n, (x, y) in enumerate(zip(users, items, strict=True)):
        um, uv = (state.users.mean[x], state.users.var[x]) if x >= 0 else (zero, prior)
        im, iv = (state.items.mean[y], state.items.var[y]) if y >= 0 else (zero, prior)
        expected = 3.5 + 1.25 * reference.predict(um, im)
        assert predictions[n] == pytest.approx(expected, rel=1e-5)
        expected = 1.25**2 * reference.variance(um, uv, im, iv)
        assert variances[n] == pytest.approx(expected, rel=1e-5)
        biases = (state.users.base_mean[x, 0] if x >= 0 else 0.0) + (
            state.items.base_mean[y, 0] if y >= 0 else 0.0
        )
        assert baseline[n] == pytest.approx(3.5 + 1.25 * biases, rel=1e-5)


def test_predict_without_variances() -> None:
    """The solvers of B-SGD state a variance of 0."""
    state = seen_state(settings_of(solver="sgd", rank=2))
    assert not state.predict(np.array([0, -1]), np.array([0, 1]))[1].any()


def test_clip() -> None:
    """Into the range of ratings seen; before any, not at all."""
    found = np.array([-3.0, 2.0, 9.0], F32)
    assert small_state().clip(found).tolist() == [1.0, 2.0, 5.0]
    assert ModelState.empty(settings_of(), "int", "int").clip(found).tolist() == [-3.0, 2.0, 9.0]


def test_rmse_of_counters() -> None:
    """Root of the mean, NaN where nothing was predicted."""
    counters = Counters(9, 1.0, 5.0, 4, 16.0, 36.0)
    assert (counters.prequential_rmse(), counters.baseline_rmse()) == (2.0, 3.0)
    assert math.isnan(Counters().prequential_rmse())
    assert math.isnan(Counters().baseline_rmse())


def test_empty_state_predicts_zero() -> None:
    """A model that has seen nothing answers, and holds nothing."""
    state = ModelState.empty(settings_of(noise=0.7), "str", "int")
    assert state.predict(np.array([-1]), np.array([-1]))[0].tolist() == [0.0]
    assert contents(state.users) == {}
    assert state.noise == 0.7


def test_a_state_is_restored_as_a_copy_kept_it() -> None:
    """Every field, those to come included."""
    state = seen_state(settings_of(rank=2))
    kept, before = state.copy(), state.fingerprint()
    for each in fields(state):
        setattr(state, each.name, None)
    state.restore(kept)
    assert state.fingerprint() == before
    assert all(getattr(state, each.name) is getattr(kept, each.name) for each in fields(state))
