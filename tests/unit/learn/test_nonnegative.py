"""Features that are not negative: every way to learn keeps them so, and means the same model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from building import low_rank, ratings_of, settings_of, table_of
from hypothesis import given
from hypothesis import settings as trying
from hypothesis import strategies as st

from sparkml_sgdals.arrays.hashing import ITEM_SIDE, USER_SIDE, id_keys, start_factors
from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.arrays.ratings import encode_ratings, layout_by
from sparkml_sgdals.arrays.sparse_rows import SparseRows
from sparkml_sgdals.fit.blocks.block import BlockState, build_layout, draw, named_rows, sweep_block
from sparkml_sgdals.kernels.events.least_squares import solve_nonnegative
from sparkml_sgdals.kernels.lanes import padded_rows
from sparkml_sgdals.learn.event_tables import folded_in
from sparkml_sgdals.learn.least_squares import descend_half, gram_of
from sparkml_sgdals.learn.one_batch import HeldItems, fold_in, learn_batch
from sparkml_sgdals.learn.solvers import Side, half_sweep
from sparkml_sgdals.learn.whole_table import fit_ratings
from sparkml_sgdals.race.candidates import warm_start
from sparkml_sgdals.state import settings as state_settings
from sparkml_sgdals.state.event_memory import ItemMemory
from sparkml_sgdals.state.factors import put_features
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.settings import Settings
from sparkml_sgdals.state.vectors import public_means, vectors_of

# starts that the bound cuts, and few ratings that pull far
RATINGS = settings_of(nonnegative=True, rank=3, max_iter=3, tol=0.0, init_std=0.3)
EVENTS = settings_of(
    nonnegative=True, learns_events=True, rank=3, num_negatives=3, factor_prior=0.5, init_std=0.3,
    ranking_size=0, regs=(0.0, 0.0, 0.01, 0.01),
)  # fmt: skip
DESCENT = {"step_size": 0.05, "block_size": 5}
NONE = np.empty(0, np.float32)


def assert_nonnegative(state: ModelState) -> None:
    """No feature that is kept is below what the settings allow, none that is shown below 0."""
    if not state.settings.nonnegative:
        return
    low = np.float32(state.settings.lowest)
    for side in (state.users, state.items):
        assert (side.mean[:, 1:] >= low).all()
        assert (public_means(side.mean, state.settings)[:, 1:] >= 0.0).all()
        assert not side.taste.size or (side.taste[:, 1:] >= 0.0).all()
        if not state.settings.learns_events:
            assert (vectors_of(side, state.scale)[:, : state.settings.rank] >= 0.0).all()
    if isinstance(state.items.memory, ItemMemory):
        assert (state.items.memory.context >= 0.0).all()


@st.composite
def batches(draw: st.DrawFn) -> list[pa.Table]:
    """Three batches of ratings of few ids: nearly all coordinates meet the bound."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    found = []
    for first in (0, 100, 200):
        count = draw(st.integers(1, 40))
        users, items = rng.integers(0, 6, count), rng.integers(0, 8, count)
        said = np.where((users + items) % 2 == 0, 5.0, 1.0) + rng.normal(0, 0.3, count)
        weights = rng.choice([0.5, 1.0, 3.0], count) if draw(st.booleans()) else None
        times = range(first, first + count)
        found.append(table_of(users, items, said, weights, times))
    return found


def streamed(settings: Settings, tables: list[pa.Table]) -> ModelState:
    """Batch by batch."""
    state = ModelState.empty(settings, "int", "int")
    for table in tables:
        learn_batch(state, encode_ratings(table))
        assert_nonnegative(state)
    return state


def fitted(settings: Settings, tables: list[pa.Table]) -> ModelState:
    """The first as a table, the others as tables that are added."""
    state = ModelState.empty(settings, "int", "int")
    for table in tables:
        fit_ratings(encode_ratings(table), state)
        assert_nonnegative(state)
    return state


@trying(max_examples=25)
@given(batches(), st.booleans())
def test_ratings_in_batches_and_tables(tables: list[pa.Table], drawn: bool) -> None:
    """Filter, smoothing, sweeps, influences; people folded in; a model that starts from another."""
    own = replace(RATINGS, implicit_prior=drawn)
    state = streamed(own, tables)
    fitted(own, tables)
    new = encode_ratings(tables[0])
    mean, _ = fold_in(
        HeldItems.of(state), new, state.items.index.find(new.item_ids), state.users.index.kind
    )
    assert (public_means(mean, own)[:, 1:] >= 0.0).all()
    free = streamed(replace(own, nonnegative=False, init_std=1.0), tables)
    assert_nonnegative(warm_start(free, own))
    assert_nonnegative(warm_start(state, replace(own, rank=5, factor_prior=0.01)))


@trying(max_examples=15)
@given(batches(), st.sampled_from(["sgd", "minibatch"]))
def test_ratings_by_descent(tables: list[pa.Table], solver: Any) -> None:
    """Also where steps go beyond."""
    own = replace(RATINGS, solver=solver, **DESCENT)
    streamed(own, tables)
    fitted(own, tables)


@trying(max_examples=25)
@given(batches(), st.booleans())
def test_events_in_batches_and_tables(tables: list[pa.Table], context: bool) -> None:
    """The filter and what colours it, tables fitted as a whole and added to, users folded in."""
    likes = [
        table.set_column(2, "rating", pa.compute.subtract(table["rating"], 2.0)) for table in tables
    ]
    streamed(replace(EVENTS, implicit_prior=context), likes)
    streamed(replace(EVENTS, solver="isgd", num_negatives=2, step_size=0.3), likes)
    own = replace(EVENTS, table_rank=4, implicit_prior=context)
    state = fitted(own, likes)
    streamed(own, likes)
    new = encode_ratings(likes[0])
    someone = new.users == 0
    one = replace(new, **{
        name: getattr(new, name)[someone] for name in ("users", "items", "values")
    } | {"weights": NONE})  # fmt: skip
    tastes = state.items.taste[state.items.index.find(new.item_ids)][one.items]
    squares = gram_of(padded_rows(state.items.taste[:, 1:]))[:4, :4]
    taste = folded_in(own, 0.01, tastes, one, squares, state.items.size)
    assert (taste[1:] >= 0.0).all()


def test_features_of_ids_that_pull_below() -> None:
    """Where features of items say so, a new item starts at 0, and what is fitted stays above."""
    table, _ = low_rank(600, users=20, items=15)
    ratings = encode_ratings(table)
    ids = ratings.item_ids
    rng = np.random.default_rng(3)
    matrix = rng.normal(0, 2, (len(ids), 4))
    rows = _sparse(ids, matrix)
    own = replace(RATINGS, featured=True, factor_prior=0.02)
    state = ModelState.empty(own, "int", "int")
    fit_ratings(ratings, state, features=(None, rows))
    assert_nonnegative(state)
    new = pa.array([9001, 9002])
    far = _sparse(new, 40.0 * matrix[:2])
    batch = ratings_of([1, 1], [9001, 9002], [1.0, 5.0])
    learn_batch(state, batch, (None, far))
    assert_nonnegative(state)
    # the weights of a stream that starts from nothing
    begun = ModelState.empty(own, "int", "int")
    begun.learns_features = False, True
    for seed in (1, 2, 3):
        learn_batch(begun, encode_ratings(low_rank(1200, 20, 15, seed=seed)[0]), (None, rows))
        assert_nonnegative(begun)
    assert begun.features[1] is not None


def _sparse(ids: pa.Array, matrix: np.ndarray) -> SparseRows:
    width = matrix.shape[1]
    starts = np.arange(0, matrix.size + 1, width)
    columns = np.tile(np.arange(width, dtype=np.int32), matrix.shape[0])
    return SparseRows(ids, width, starts, columns, matrix.ravel())


@trying(max_examples=10)
@given(batches())
def test_a_block(tables: list[pa.Table]) -> None:
    """Sweeps of a block and its prior means."""
    ratings = encode_ratings(tables[0])
    own = replace(RATINGS, factor_prior=0.02)
    scaled = replace(ratings, values=(ratings.values - np.float32(3.0)) * np.float32(9.0))
    blocks, states = {}, {}
    for name, side in (("users", USER_SIDE), ("items", ITEM_SIDE)):
        ids, block = build_layout([scaled], name)
        counts = np.bincount(getattr(scaled, name), minlength=len(ids))
        blocks[name], states[name] = block, BlockState.start(side, ids, counts, own, None)
    prior = None
    for name, other in (("users", "items"), ("items", "users")) * 2:
        block, state, partner = blocks[name], states[name], states[other]
        rows = blocks[other].sends[0]
        partners = named_rows(partner, rows, own, True)
        draw(block, state, partners, (prior, prior), name, own, 1)
        assert (state.arrays["mean"][:, 1:] >= np.float32(own.lowest)).all()
        means = partners["mean"], partners["var"]
        prior = sweep_block(block, state, means, prior, 0.5, own, 1).prior()
        assert (state.arrays["mean"][:, 1:] >= np.float32(own.lowest)).all()


def test_starts() -> None:
    """As without, but mirrored at the bound: settings, side and id alone say where one starts."""
    keys = id_keys(pa.array(range(500)))
    free = start_factors(keys, USER_SIDE, 4, 1, 0.3)
    found = start_factors(keys, USER_SIDE, 4, 1, 0.3, -0.2)
    features = np.where(free[:, 1:] < -0.2, -0.4 - free[:, 1:], free[:, 1:])
    np.testing.assert_allclose(found[:, 1:], features, atol=1e-6)
    assert not found[:, 0].any()
    np.testing.assert_array_equal(start_factors(keys, USER_SIDE, 4, 1, 0.3, 0.0), np.abs(free))


def optimal(moments: np.ndarray, values: np.ndarray, low: float) -> None:
    """The conditions of Karush, Kuhn and Tucker: no way up, and at the bound none but down."""
    inside = values > low
    np.testing.assert_allclose(moments[inside], 0.0, atol=2e-3)
    assert (moments[~inside] <= 2e-3).all()
    assert inside.any()
    assert not inside.all()


def test_sweeps_end_at_the_best_features_above_the_bound() -> None:
    """With partners held, each id is a least squares problem under a bound on its features."""
    rng = np.random.default_rng(8)
    ids, partners, count, rank, low = 5, 12, 60, 3, -0.1
    width = rank + 1
    users, items = rng.integers(0, ids, count), rng.integers(0, partners, count)
    users[:ids] = range(ids)
    values = rng.normal(0, 1, count).astype(np.float32)
    layout = layout_by(users.astype(np.int32), items.astype(np.int32), values, NONE, ids)
    partner_mean = rng.normal(0, 0.7, (partners, width)).astype(np.float32)
    partner_var = rng.uniform(0.01, 0.1, (partners, width)).astype(np.float32)
    side = Side(
        np.zeros((ids, width), np.float32), np.full((ids, width), 0.1, np.float32),
        np.zeros((1, width), np.float32), np.full((1, width), 0.4, np.float32), low,
    )  # fmt: skip
    for _ in range(400):
        half_sweep(layout, side, partner_mean, partner_var, 0.5, 1)
    moments = np.empty((ids, width))
    for x in range(ids):
        mine = users == x
        own = side.mean[x].astype(float)
        regressors = partner_mean[items[mine]].astype(float)
        bias = regressors[:, 0].copy()
        regressors[:, 0] = 1.0
        error = values[mine] - bias - regressors @ own
        unsure = partner_var[items[mine]].sum(axis=0)
        unsure[0] = 0.0
        moments[x] = regressors.T @ error - own * unsure - 0.5 / 0.4 * own
    np.testing.assert_allclose(moments[:, 0], 0.0, atol=2e-3)
    optimal(moments[:, 1:], side.mean[:, 1:], np.float32(low))


def test_descent_ends_at_the_best_factors_above_zero() -> None:
    """The same of a table of events; and of one user by the equations alone."""
    rng = np.random.default_rng(4)
    ids, partners, rank, unobserved, reg = 4, 30, 5, 0.2, 0.3
    other = np.maximum(rng.normal(0.1, 0.5, (partners, rank)), 0.0).astype(np.float32)
    users, items = np.repeat(np.arange(ids), 6), rng.integers(0, partners, 6 * ids)
    ones = np.ones(items.size, np.float32)
    layout = layout_by(users.astype(np.int32), items.astype(np.int32), ones, NONE, ids)
    factors = padded_rows(np.ones((ids, rank), np.float32))
    squares = gram_of(padded_rows(other))
    regs = np.full(ids, reg, np.float32)
    for _ in range(400):
        descend_half(
            layout, factors, padded_rows(other), squares, unobserved, regs, 1, lowest=0.0
        )  # fmt: skip
    found = factors[:, :rank].astype(float)
    moments = np.empty((ids, rank))
    for x in range(ids):
        own = other[items[users == x]].astype(float)
        system = own.T @ own + unobserved * squares[:rank, :rank] + reg * np.eye(rank)
        moments[x] = own.sum(axis=0) - system @ found[x]
        np.testing.assert_allclose(solve_nonnegative(system, own.sum(axis=0)), found[x], atol=1e-4)
    optimal(moments, found, 0.0)


@pytest.mark.parametrize("kind", ["int", "str"])
def test_what_is_shown_predicts_the_same(kind: IdKind) -> None:
    """Features less of the centre and their biases, or both as they are shown: one prediction."""
    table, _ = low_rank(900)
    if kind == "str":
        table = table.set_column(0, "user", table["user"].cast(pa.string()))
    state = ModelState.empty(replace(RATINGS, rank=4), kind, "int")
    fit_ratings(encode_ratings(table), state)
    users, items = np.arange(30), np.arange(30)
    sides = [public_means(side.mean, state.settings) for side in (state.users, state.items)]
    u, i = sides[0][users], sides[1][items]
    shown = u[:, 0] + i[:, 0] + (u[:, 1:] * i[:, 1:]).sum(axis=1)
    predictions, _ = state.predict(users, items)
    expected = shown * state.scale.spread + state.scale.mean
    np.testing.assert_allclose(predictions, expected, atol=1e-4)
    mean = state.users.mean
    assert public_means(mean, replace(state.settings, nonnegative=False)) is mean


def test_factors_of_als() -> None:
    """They are shown as they were given; one below 0 is named."""
    own = replace(RATINGS, implicit_prior=False)
    features = pa.table({
        "id": pa.array([1, 2]), "features": pa.array([[0.0, 1.5, 0.2], [3.0, 0.0, 0.0]],
                                                     pa.list_(pa.float32())),
    })  # fmt: skip
    state = ModelState.empty(own, "int", "int")
    put_features(state.users, features)
    shown = public_means(state.users.mean, own)
    np.testing.assert_allclose(shown[:, 1:], [[0, 1.5, 0.2], [3, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(shown[:, 0], 0.0, atol=1e-6)
    assert_nonnegative(state)
    bad = features.set_column(
        1, "features", pa.array([[0.0, -0.1, 0.0]] * 2, pa.list_(pa.float32()))
    )
    with pytest.raises(ValueError, match=r"a feature is -0\.1: fit ALS with nonnegative=True"):
        put_features(state.items, bad)


def test_settings_in_files() -> None:
    """Named only where it is meant, so that files without it stay as they were."""
    assert "nonnegative" not in replace(RATINGS, nonnegative=False).to_json()
    assert Settings.from_json(RATINGS.to_json()) == RATINGS
    assert (replace(RATINGS, nonnegative=False).lowest, EVENTS.lowest) == (-np.inf, 0.0)


def test_a_bound_that_nothing_meets_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Far below all features the arithmetic is the one without."""
    monkeypatch.setattr(state_settings, "_CENTRE", 1e6)
    tables = [low_rank(400, seed=seed)[0] for seed in (1, 2)]
    free = replace(RATINGS, nonnegative=False)
    for solver, learn in (("bayes", streamed), ("bayes", fitted), ("sgd", streamed)):
        learned, expected = (
            learn(replace(own, solver=solver), tables)
            for own in (replace(free, nonnegative=True), free)
        )
        for own, other in zip(
            (learned.users, learned.items), (expected.users, expected.items), strict=True
        ):
            np.testing.assert_array_equal(own.mean, other.mean)
