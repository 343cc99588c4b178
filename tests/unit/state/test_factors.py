"""Factor tables: starts, growth, Arrow, units."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from building import F32, contents, filled_table, id_array, settings_of
from hypothesis import given
from hypothesis import strategies as st

from sparkml_sgdals.arrays.hashing import ITEM_SIDE, USER_SIDE, id_keys, start_factors
from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.state.columns import prior_variances
from sparkml_sgdals.state.factors import FactorTable, arrow_schema
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.settings import Settings, Solver

SOLVERS = pytest.mark.parametrize("solver", ["bayes", "sgd"])
KINDS = pytest.mark.parametrize("kind", ["int", "str"])
NUMBERS = [30, -4, 2**62, 7, 0]


def some_ids(kind: IdKind) -> list[Any]:
    """Ids out of order, of a kind."""
    return NUMBERS if kind == "int" else [f"id {n}" for n in NUMBERS]


@SOLVERS
@KINDS
def test_new_ids_start_from_their_hash(kind: IdKind, solver: Solver) -> None:
    """Means from (seed, side, id), variances from the priors, nothing counted."""
    settings = settings_of(
        solver=solver, rank=3, seed=9, bias_prior=0.4, factor_prior=0.3, init_std=0.2
    )
    table = FactorTable(ITEM_SIDE, kind, settings)
    ids = id_array(some_ids(kind))
    rows, new = table.ensure(ids)
    assert rows.tolist() == list(range(5))
    assert new == 5
    start = start_factors(id_keys(ids), ITEM_SIDE, 3, 9, 0.2)
    np.testing.assert_array_equal(table.mean, start)
    prior = [0.4, 0.3, 0.3, 0.3] if solver == "bayes" else []
    np.testing.assert_array_equal(table.var, np.tile(np.array(prior, F32), (5, 1)))
    np.testing.assert_array_equal(table.base_mean, np.zeros((5, 1)))
    np.testing.assert_array_equal(table.base_var, np.full((5, 1), F32(0.4)))
    assert table.count.tolist() == [0] * 5
    np.testing.assert_array_equal(prior_variances(settings), np.array([0.4, 0.3, 0.3, 0.3], F32))


@given(st.lists(st.lists(st.integers(-6, 6), unique=True, max_size=8), max_size=6))
def test_order_of_arrival_does_not_matter(batches: list[list[int]]) -> None:
    """However ids arrive, each has one row and the start that it has alone."""
    settings = settings_of(rank=2)
    table = FactorTable(USER_SIDE, "int", settings)
    seen: set[int] = set()
    for batch in batches:
        before = contents(table)
        rows, new = table.ensure(id_array(batch))
        assert new == len(set(batch) - seen)
        assert table.index.ids(rows).to_pylist() == batch
        seen |= set(batch)
        assert {i: row for i, row in contents(table).items() if i in before} == before
    assert table.size == len(seen)
    for an_id, row in contents(table).items():
        alone = FactorTable(USER_SIDE, "int", settings)
        alone.ensure(id_array([an_id]))
        assert contents(alone) == {an_id: row}


def test_known_ids_keep_what_they_learned() -> None:
    """Ensuring a mix of known and new ids, and growing, changes no known row."""
    settings = settings_of(rank=2)
    table = filled_table(settings, [5, 3])
    before = contents(table)
    rows, new = table.ensure(id_array([9, 3, *range(100, 200), 5]))
    assert new == 101
    assert rows[[1, -1]].tolist() == [1, 0]
    after = contents(table)
    assert {i: after[i] for i in before} == before
    assert table.count[2:].tolist() == [0] * 101


@SOLVERS
@KINDS
@pytest.mark.parametrize("count", [0, 1, 5])
def test_arrow_round_trip(kind: IdKind, solver: Solver, count: int) -> None:
    """All rows, or some, through Arrow into an empty table; sorted by id on the way."""
    settings = settings_of(solver=solver, rank=3)
    ids = some_ids(kind)
    table = filled_table(settings, ids)
    rows = np.array([3, 0, 4, 1, 2][:count], np.int64)
    found = table.to_arrow(rows)
    assert found.schema.equals(arrow_schema(kind))
    assert found.column("id").to_pylist() == sorted(ids[row] for row in rows)
    back = FactorTable(USER_SIDE, kind, settings)
    back.put_arrow(found)
    expected = contents(table)
    assert contents(back) == {ids[row]: expected[ids[row]] for row in rows}


@SOLVERS
def test_all_rows_are_the_default(solver: Solver) -> None:
    """to_arrow() is to_arrow of every row."""
    table = filled_table(settings_of(solver=solver, rank=2), NUMBERS)
    assert table.to_arrow().equals(table.to_arrow(np.array([4, 2, 0, 1, 3])))
    assert table.to_arrow().num_rows == 5


@SOLVERS
def test_slices_and_chunks_of_arrow(solver: Solver) -> None:
    """A sliced table and one of several chunks put the rows that they show."""
    settings = settings_of(solver=solver, rank=2)
    table = filled_table(settings, NUMBERS)
    whole = table.to_arrow()
    back = FactorTable(USER_SIDE, "int", settings)
    back.put_arrow(whole[1:3])
    assert contents(back) == {i: contents(table)[i] for i in sorted(NUMBERS)[1:3]}
    back.put_arrow(pa.concat_tables([whole[:1], whole[4:], whole[1:4]]))
    assert contents(back) == contents(table)


@pytest.mark.parametrize("name", ["mean", "base_variance", "count", "prior_mean", "noise_factor"])
@pytest.mark.parametrize("as_null", [False, True])
def test_a_missing_column_is_refused(name: str, as_null: bool) -> None:
    """Also one of nulls; all is as it was."""
    table = filled_table(settings_of(rank=2), NUMBERS)
    before = contents(table)
    other = filled_table(settings_of(rank=2), NUMBERS, seed=3).to_arrow()
    part = other.drop_columns(name)
    if as_null:
        field = other.schema.field(name)
        part = part.append_column(field, pa.nulls(5, field.type))
    with pytest.raises(ValueError, match=f"column '{name}'"):
        table.put_arrow(part)
    assert contents(table) == before


def test_put_overwrites_and_appends() -> None:
    """A known id takes the new state at its old row, an unknown one a new row."""
    settings = settings_of(rank=2)
    table = filled_table(settings, [1, 2, 3], seed=1)
    other = filled_table(settings, [9, 2], seed=2)
    before, put = contents(table), contents(other)
    table.put_arrow(other.to_arrow())
    assert contents(table) == before | put
    assert table.index.ids().to_pylist() == [1, 2, 3, 9]


def test_narrow_ids_in_arrow() -> None:
    """Ids that travelled as int32 are cast back."""
    settings = settings_of(rank=2)
    table = filled_table(settings, [1, 2])
    found = table.to_arrow()
    narrow = found.set_column(0, "id", found.column("id").cast(pa.int32()))
    back = FactorTable(USER_SIDE, "int", settings)
    back.put_arrow(narrow)
    assert contents(back) == contents(table)


@pytest.mark.parametrize(
    ("held", "given_to", "column"),
    [
        (settings_of(rank=2), settings_of(rank=3), "mean"),
        (settings_of(rank=3), settings_of(rank=2), "mean"),
        (settings_of(rank=2), settings_of(solver="sgd", rank=2), "variance"),
        (settings_of(solver="sgd", rank=2), settings_of(rank=2), "variance"),
    ],
)
def test_wrong_width_is_refused(held: Settings, given_to: Settings, column: str) -> None:
    """A table of another rank or solver raises and leaves all as it was."""
    table = filled_table(given_to, [1, 2], seed=1)
    before = contents(table)
    with pytest.raises(ValueError, match=f"column '{column}' holds"):
        table.put_arrow(filled_table(held, [2, 3], seed=2).to_arrow())
    assert contents(table) == before


def test_copy_is_independent() -> None:
    """Neither a change of a row nor a new id reaches the other one."""
    settings = settings_of(rank=2)
    table = filled_table(settings, [1, 2])
    before = contents(table)
    twin = table.copy()
    assert contents(twin) == before
    twin.mean[0] += 1
    twin.var[1] = 7
    twin.base_mean[0] = 3
    twin.base_var[0] = 3
    twin.count[0] += 5
    twin.ensure(id_array(list(range(50))))
    assert contents(table) == before
    twin_before = contents(twin)
    table.mean[:] = 0
    table.ensure(id_array([70]))
    assert contents(twin) == twin_before
    assert table.size == 3


@SOLVERS
@pytest.mark.parametrize(("shift", "ratio"), [(0.0, 1.0), (0.3, 1.0), (-1.5, 0.25), (2.0, 3.0)])
def test_rescale_keeps_predictions(solver: Solver, shift: float, ratio: float) -> None:
    """In the new unit a prediction is (old + both shifts) * ratio, its variance * ratio^2."""
    settings = settings_of(solver=solver, rank=3)
    state = ModelState(settings, filled_table(settings, NUMBERS), filled_table(settings, [1, 2], 2))
    pairs = np.repeat(np.arange(5), 2), np.tile([0, 1], 5)
    before, variances = state.predict(*pairs)
    baseline = state.predict_baseline(*pairs)
    base_var = state.users.base_var.copy()
    user_prior, item_influence = state.users.drawn.copy(), state.items.influence.copy()
    state.users.rescale(shift, ratio)
    state.items.rescale(shift, ratio)
    # priors scale as what they are priors of, with no shift: they stay sums of influences
    units = np.array([ratio, *[np.sqrt(ratio)] * 3])[: 4 if settings.draws_prior else 0]
    np.testing.assert_allclose(state.users.drawn, user_prior * units, rtol=1e-5)
    np.testing.assert_allclose(state.items.influence, item_influence * units, rtol=1e-5)
    after, after_variances = state.predict(*pairs)
    np.testing.assert_allclose(after, (before + 2 * shift) * ratio, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(after_variances, variances * ratio**2, rtol=1e-5)
    np.testing.assert_allclose(
        state.predict_baseline(*pairs), (baseline + 2 * shift) * ratio, rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(state.users.base_var, base_var * ratio**2, rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("array", ["mean", "var", "drawn", "influence"])
def test_finite(value: float, array: str) -> None:
    """One bad number in the rows asked for is seen, elsewhere it is not."""
    table = filled_table(settings_of(rank=2), NUMBERS)
    assert table.finite(np.arange(5))
    getattr(table, array)[3, 2] = value
    assert not table.finite(np.arange(5))
    assert not table.finite(np.array([3]))
    assert table.finite(np.array([0, 1, 2, 4]))


def test_a_memory_that_is_not_finite_is_seen():
    """Of a side that remembers, its memory counts as its factors do, row by row."""
    table = ModelState.empty(settings_of(learns_events=True), "int", "int").items
    table.ensure(pa.array([1, 2]))
    assert table.finite()
    table.memory.popularity[1] = np.nan
    assert not table.finite()
    assert table.finite(np.array([0]))
