"""Blocks: layouts against naive ones, one block against the plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import reference
from building import F32, contents, filled_table, id_array, low_rank, ratings_of, settings_of
from hypothesis import given
from hypothesis import strategies as st

from sparkml_sgdals.arrays.hashing import USER_SIDE
from sparkml_sgdals.arrays.ratings import Ratings, encode_ratings
from sparkml_sgdals.fit.blocks.block import (
    BlockLayout,
    BlockState,
    Cell,
    Sums,
    build_layout,
    draw,
    learn_cell,
    standardised,
    sweep_block,
)
from sparkml_sgdals.learn.influences import influence_shares
from sparkml_sgdals.state.columns import prior_variances
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.settings import Settings


@st.composite
def cells(draw: st.DrawFn, own_side: str) -> list[Ratings | None]:
    """Cells of one block: own ids shared by the cells, each partner in one cell only."""
    weighted, names = draw(st.booleans()), draw(st.booleans())
    count = draw(st.integers(1, 4))
    filled = draw(st.lists(st.booleans(), min_size=count, max_size=count).filter(any))
    found: list[Ratings | None] = []
    for block, has_ratings in enumerate(filled):
        if not has_ratings:
            found.append(None)
            continue
        pairs = draw(
            st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 3)), min_size=1, max_size=12)
        )
        own = [f"o{x}" if names else x for x, _ in pairs]
        partners = [f"p{y + 10 * block}" if names else y + 10 * block for _, y in pairs]
        sides = (own, partners) if own_side == "users" else (partners, own)
        values = [100.0 * block + n for n in range(len(pairs))]
        weights = [n % 3 + 0.5 for n in range(len(pairs))] if weighted else None
        found.append(ratings_of(*sides, values, weights=weights, times=range(len(pairs))))
    return found


@pytest.mark.parametrize("own_side", ["users", "items"])
@given(data=st.data())
def test_layout_of_a_block(own_side: str, data: st.DataObject) -> None:
    """Every rating lies with its own id, by cell and in order, and names the right partner."""
    parts = data.draw(cells(own_side))
    ids, block = build_layout(parts, own_side)
    named: list[Any] = []
    by_id: dict[Any, list[tuple[Any, float, float]]] = {}
    own_by_part: list[set[Any]] = []
    for part in parts:
        if part is None:
            own_by_part.append(set())
            continue
        users, items = part.user_ids.to_pylist(), part.item_ids.to_pylist()
        own_ids, partner_ids = (users, items) if own_side == "users" else (items, users)
        own_rows, partner_rows = part.users, part.items
        if own_side == "items":
            own_rows, partner_rows = partner_rows, own_rows
        named += partner_ids
        own_by_part.append(set(own_ids))
        for n in range(len(part)):
            weight = float(part.weights[n]) if part.weights.size else 1.0
            by_id.setdefault(own_ids[own_rows[n]], []).append(
                (partner_ids[partner_rows[n]], float(part.values[n]), weight)
            )
    assert ids.to_pylist() == sorted(by_id)
    layout = block.layout
    for row, an_id in enumerate(ids.to_pylist()):
        mine = slice(layout.starts[row], layout.starts[row + 1])
        weights = layout.weights[mine] if layout.weights.size else np.ones(len(by_id[an_id]))
        found = [
            (named[partner], value, weight)
            for partner, value, weight in zip(
                layout.partners[mine].tolist(), layout.values[mine].tolist(), weights.tolist(),
                strict=True,
            )
        ]  # fmt: skip
        assert found == by_id[an_id]
    assert layout.starts[-1] == layout.partners.size == sum(map(len, by_id.values()))
    assert layout.partners.dtype == np.int32
    # what a block sends to a partner block is in the order in which that block names it
    assert len(block.sends) == len(parts)
    for sent, own, part in zip(block.sends, own_by_part, parts, strict=True):
        assert sent.dtype == np.int32
        assert ids.take(pa.array(sent)).to_pylist() == sorted(own)
        if part is not None:
            held = part.user_ids if own_side == "users" else part.item_ids
            assert ids.take(pa.array(sent)).equals(held)


@pytest.mark.parametrize("own_side", ["users", "items"])
@given(data=st.data())
def test_layout_through_bytes(own_side: str, data: st.DataObject) -> None:
    """A layout comes back as it was, partner blocks without ratings included."""
    _, block = build_layout(data.draw(cells(own_side)), own_side)
    back = BlockLayout.from_arrays(block.to_arrays())
    for name in ("starts", "partners", "values", "weights"):
        found, expected = getattr(back.layout, name), getattr(block.layout, name)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
    assert len(back.sends) == len(block.sends)
    for found, expected in zip(back.sends, block.sends, strict=True):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype


def one_block(weighted: bool = False) -> Ratings:
    """Ratings of one cell that is everything."""
    table, _ = low_rank(200, 12, 9)
    if weighted:
        weights = np.random.default_rng(1).choice([0.5, 2.0], 200)
        table = table.append_column("weight", pa.array(weights, pa.float32()))
    return encode_ratings(table)


def start(ratings: Ratings, settings: Settings, known: pa.Table | None = None) -> BlockState:
    """The users of a block before it learns."""
    counts = np.bincount(ratings.users, minlength=len(ratings.user_ids))
    return BlockState.start(USER_SIDE, ratings.user_ids, counts, settings, known)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("learned_prior", [False, True])
def test_sweep_of_a_block(weighted: bool, known: bool, learned_prior: bool) -> None:
    """Posteriors and sums are those of the plain loops; priors of its own win over learned ones."""
    settings, ratings = settings_of(rank=2), one_block(weighted)
    ids, block = build_layout([ratings], "users")
    block = standardised(block, 3.0, 2.0)
    table = None
    if known:
        table = filled_table(settings, ids.to_pylist()[:4]).to_arrow()
    state = start(ratings, settings, table)
    a = state.arrays
    mean, var = a["mean"].astype(float), a["var"].astype(float)
    prior = np.array([[0.3, 0.2, 0.4]], F32) if learned_prior else None
    prior_mean = np.zeros_like(mean)
    prior_var = np.tile(prior_variances(settings) if prior is None else prior[0], (len(mean), 1))
    if known:
        counted = a["count"] - np.bincount(ratings.users) > 0
        prior_mean[counted] = mean[counted]
        prior_var = var.copy()
    rng = np.random.default_rng(0)
    shape = (len(ratings.item_ids), 3)
    partners = rng.normal(0, 1, shape).astype(F32), rng.uniform(0.01, 1, shape).astype(F32)
    sums = sweep_block(block, state, partners, prior, 0.4, settings, 2)
    squares, variances = reference.sweep(
        ratings.users, ratings.items, (ratings.values.astype(float) - 3) / 2,
        ratings.weights.astype(float) if weighted else np.ones(200), mean, var, prior_mean,
        prior_var.astype(float), partners[0].astype(float), partners[1].astype(float), 0.4,
    )  # fmt: skip
    np.testing.assert_allclose(a["mean"], mean, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(a["var"], var, rtol=1e-4)
    assert sums.ids == len(mean)
    assert sums.squares == pytest.approx(squares.sum(), rel=1e-4)
    assert sums.variances == pytest.approx(variances.sum(), rel=1e-4)
    spread = ((mean - prior_mean) ** 2 + var).sum(axis=0)
    np.testing.assert_allclose(sums.spread, spread, rtol=1e-4)
    assert sums.weight == pytest.approx(float(ratings.weights.sum()) if weighted else 200.0)
    np.testing.assert_allclose(sums.prior(), [spread / len(mean)], rtol=1e-4)


def test_sums_add_up() -> None:
    """The total over rows of several blocks, and of one."""
    one = Sums(3, np.array([1.0, 2.0]), 5.0, 7.0, 11.0)
    other = Sums(1, np.array([0.5, 0.25]), 1.0, 2.0, 3.0)
    total = Sums.total([one.to_array(), other.to_array()])
    assert (total.ids, total.squares, total.variances, total.weight) == (4, 6.0, 9.0, 14.0)
    assert total.spread.tolist() == [1.5, 2.25]
    assert total.prior().tolist() == [[0.375, 0.5625]]
    same = Sums.total([one.to_array()])
    assert (same.ids, same.squares, same.variances, same.weight) == (3, 5.0, 7.0, 11.0)
    assert same.spread.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("swept", [False, True])
def test_a_block_draws_its_prior(swept: bool) -> None:
    """The only block: prior means from the partners' influences, then its own from theirs."""
    settings, ratings = settings_of(rank=2), one_block()
    _, block = build_layout([ratings], "users")
    state = start(ratings, settings)
    a, rng = state.arrays, np.random.default_rng(1)
    items = len(ratings.item_ids), 3
    partners = {
        "mean": rng.normal(0, 1, items).astype(F32),
        "var": rng.uniform(0.01, 0.2, items).astype(F32),
        "drawn": rng.normal(0, 1, items).astype(F32),
        "influence": rng.normal(0, 0.2, items).astype(F32),
        "root": np.bincount(ratings.items).astype(F32) ** F32(-0.5),
    }  # fmt: skip
    drawn = np.zeros_like(a["drawn"])
    np.add.at(drawn, ratings.users, partners["influence"][ratings.items])
    drawn /= np.sqrt(np.bincount(ratings.users))[:, None]
    own, partner = np.array([[0.3, 0.2, 0.4]], F32), np.array([[0.25, 0.3, 0.5]], F32)
    mean = a["mean"] + (a["var"] / own * drawn if swept else 0.0)
    influence = a["influence"].astype(float)
    if swept:
        taking = [partners[name].astype(float) for name in ("mean", "var", "drawn")]
        reference.learn_influence(
            ratings.users, ratings.items, influence, 0.05, *taking, partner.astype(float)
        )
    sent = partners["mean"].copy()
    theirs, given = dict(partners), (own, partner) if swept else (None, None)
    draw(block, state, theirs, given, "users", settings, 2)
    np.testing.assert_allclose(a["drawn"], drawn, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(a["mean"], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(a["influence"], influence, rtol=2e-3, atol=2e-4)
    assert a["influence"].any() == swept
    assert np.array_equal(theirs["mean"], sent)
    if swept:
        evidence = influence_shares(block.layout, partners["root"])
        np.testing.assert_array_equal(a["evidence"], evidence)


@pytest.mark.parametrize("solver", ["bayes", "sgd"])
def test_block_of_known_and_new_ids(solver: Any) -> None:
    """Known ids stand where the model left them, new ones at their start; counts go on."""
    settings = settings_of(solver=solver, rank=2, seed=3)
    known = filled_table(settings, [5, 9, 70], seed=1)
    ids, counts = id_array([4, 5, 9]), np.array([1, 2, 3])
    state = BlockState.start(USER_SIDE, ids, counts, settings, known.to_arrow())
    found = contents(filled_like(state.table(USER_SIDE, ids, settings), settings))
    fresh = FactorTable(USER_SIDE, "int", settings)
    fresh.ensure(id_array([4]))
    expected = {4: contents(fresh)[4]} | {i: contents(known)[i] for i in (5, 9)}
    assert found == {
        i: (*expected[i][:4], expected[i][4] + n, *expected[i][5:])
        for i, n in zip((4, 5, 9), counts, strict=True)
    }
    without = BlockState.start(USER_SIDE, ids, counts, settings, None)
    assert "prior_mean" not in without.arrays
    assert without.arrays["count"].tolist() == [1, 2, 3]


def filled_like(table: pa.Table, settings: Settings) -> FactorTable:
    """The factor table that an Arrow table describes."""
    found = FactorTable(USER_SIDE, "int", settings)
    found.put_arrow(table)
    return found


@pytest.mark.parametrize("solver", ["bayes", "sgd"])
def test_a_cell_learns_as_its_solver(solver: Any) -> None:
    """One pass over a cell, and the baseline beside it."""
    settings = settings_of(solver=solver, rank=2, step_size=0.02)
    ratings = one_block()
    users = start(ratings, settings)
    items = BlockState.start(2, ratings.item_ids, np.bincount(ratings.items), settings, None)
    values = ratings.values - F32(3.5)
    cell = Cell(ratings.users, ratings.items, values, ratings.weights)
    expected = [
        {name: array.astype(float) for name, array in side.arrays.items()}
        for side in (users, items)
    ]
    what = (ratings.users, ratings.items, values.astype(float), np.ones(200))
    u, i = expected
    baseline = reference.learn_filter(
        *what, u["base_mean"], u["base_var"], i["base_mean"], i["base_var"], settings.noise, 0.0
    )
    if solver == "bayes":
        errors = reference.learn_filter(
            *what, u["mean"], u["var"], i["mean"], i["var"], settings.noise, 0.0
        )
    else:
        errors = reference.learn_sgd(*what, u["mean"], i["mean"], 0.02, settings.regs)
    found, found_baseline = learn_cell(cell, users, items, settings, True)
    np.testing.assert_allclose(found, errors, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found_baseline, baseline, rtol=1e-3, atol=1e-4)
    for side, wanted in zip((users, items), expected, strict=True):
        for name, array in wanted.items():
            np.testing.assert_allclose(side.arrays[name], array, rtol=1e-3, atol=1e-4)
