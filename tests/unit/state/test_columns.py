"""One line describes a column of a factor row, and everything that holds rows follows from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from building import filled_table, id_array, settings_of
from writing import META

from sparkml_sgdals.arrays.hashing import ITEM_SIDE, USER_SIDE
from sparkml_sgdals.fit.blocks.block import BlockState
from sparkml_sgdals.ml.persistence import _ddl
from sparkml_sgdals.race.candidates import warm_start
from sparkml_sgdals.serving.model.mapped import MappedSide
from sparkml_sgdals.state.columns import Column, FactorColumns
from sparkml_sgdals.state.factors import FactorTable, arrow_schema
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.parts import state_from_parts, state_parts
from sparkml_sgdals.state.settings import Settings
from sparkml_sgdals.store.packed_rows import pack_rows, unpack_rows
from sparkml_sgdals.store.version_store import VersionStore

SETTINGS = settings_of(rank=2)
IDS = [30, -4, 7]

COLUMNS = {
    "list": lambda: Column[Any](lambda s: s.rank, start=0.5, unit="offset", predicts=True),
    "one": lambda: Column[Any](1, stored="another", start=0.5, unit="variance"),
    "number": lambda: Column[Any](None, start=lambda settings, side, ids: 0.5),
    "integer": lambda: Column[Any](None, dtype=np.int64, start=7),
}


@pytest.fixture(params=COLUMNS)
def added(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Column[Any]:
    """A further column: one line."""
    column = COLUMNS[request.param]()
    monkeypatch.setattr(FactorColumns, "age", column, raising=False)
    column.__set_name__(FactorColumns, "age")
    return column


def table_with(added: Column[Any], ids: list[int] = IDS, settings: Settings = SETTINGS) -> Any:
    """A table whose further column holds numbers of its own."""
    table: Any = filled_table(settings, ids)
    table.age[:] = np.arange(1, 1 + table.age.size).reshape(table.age.shape)
    return table


def assert_same(found: Any, expected: Any, ids: list[int] = IDS) -> None:
    """All columns of these ids are the same, the further one among them."""
    rows = found.index.find(id_array(ids)), expected.index.find(id_array(ids))
    for column in FactorColumns.registry():
        own, other = found.array(column.name)[rows[0]], expected.array(column.name)[rows[1]]
        np.testing.assert_array_equal(own, other, err_msg=column.name)
    assert found.age.any()


def test_new_ids_start_as_it_says(added: Column[Any]) -> None:
    table: Any = FactorTable(USER_SIDE, "int", SETTINGS)
    table.ensure(id_array(range(40)))
    expected = 7 if added.dtype == np.int64 else 0.5
    assert (table.age == expected).all()
    assert table.age.shape == (40, *added.shape(SETTINGS))


def test_taken_put_copied_and_forgotten(added: Column[Any]) -> None:
    table = table_with(added)
    twin = table.copy()
    taken = table.take(np.array([2, 0]))
    before = taken.copy()
    taken.age[:] += 1
    assert (before.age + 1 == taken.age).all()
    twin.put_rows(taken)
    assert (twin.age[[2, 0]] == table.age[[2, 0]] + 1).all()
    assert_same(table.without(id_array([-4])), table, [30, 7])


def test_through_arrow_and_parts(added: Column[Any]) -> None:
    table = table_with(added)
    assert table.to_arrow().schema.equals(arrow_schema("int"))
    assert added.stored in arrow_schema("int").names
    back = FactorTable(USER_SIDE, "int", SETTINGS)
    back.put_arrow(table.to_arrow())
    assert_same(back, table)
    state = ModelState(SETTINGS, table, filled_table(SETTINGS, [1], ITEM_SIDE))
    assert_same(state_from_parts(state_parts(state))[0].users, table)


def test_packed(added: Column[Any]) -> None:
    table = table_with(added)
    back = FactorTable(USER_SIDE, "int", SETTINGS)
    unpack_rows(pack_rows(table), back)
    assert_same(back, table)


def test_committed(added: Column[Any], tmp_path: Path) -> None:
    table = table_with(added)
    state = ModelState(SETTINGS, table, filled_table(SETTINGS, [1], ITEM_SIDE))
    store = VersionStore(str(tmp_path))
    store.create(state, META | {"kinds": ["int", "int"]})
    loaded = store.load()[0]
    assert_same(loaded.users, table)
    assert loaded.fingerprint() == state.fingerprint()
    table.age[0] += 1
    assert loaded.fingerprint() != state.fingerprint()


def test_in_a_block(added: Column[Any]) -> None:
    table = table_with(added)
    ids = id_array(sorted(IDS))
    block = BlockState.start(USER_SIDE, ids, np.zeros(3, np.int64), SETTINGS, table.to_arrow())
    back = FactorTable(USER_SIDE, "int", SETTINGS)
    back.put_arrow(block.table(USER_SIDE, ids, SETTINGS))
    assert_same(back, table)


def test_mapped_by_the_service(added: Column[Any], tmp_path: Path) -> None:
    table = table_with(added)
    for learns in (False, True):
        side = MappedSide(str(tmp_path), SETTINGS, learns)
        side.put(np.arange(3), table, 3)
        back: Any = side.table(USER_SIDE, "int", id_array(IDS), np.arange(3))
        if learns or added.predicts:
            np.testing.assert_array_equal(back.age, table.age)
        else:
            fresh: Any = FactorTable(USER_SIDE, "int", SETTINGS)
            fresh.ensure(id_array(IDS))
            np.testing.assert_array_equal(back.age, fresh.age)


def test_taken_over_by_another_rank(added: Column[Any]) -> None:
    leader = ModelState(SETTINGS, table_with(added), filled_table(SETTINGS, [1], ITEM_SIDE))
    users: Any = warm_start(leader, settings_of(rank=4)).users
    width = slice(None) if leader.users.age.ndim == 1 else slice(leader.users.age.shape[1])  # type: ignore[attr-defined]
    taken = users.age if users.age.ndim == 1 else users.age[:, width]
    np.testing.assert_array_equal(taken, leader.users.age)  # type: ignore[attr-defined]


def test_sees_what_is_not_finite(added: Column[Any]) -> None:
    table = table_with(added)
    assert table.finite()
    if added.dtype == np.float32:
        table.age[1] = np.nan
        assert not table.finite()
        assert table.finite(np.array([0, 2]))


def test_follows_the_unit(added: Column[Any], request: pytest.FixtureRequest) -> None:
    table = table_with(added)
    before = table.age.copy()
    table.rescale(0.5, 4.0)
    factors = {"list": [4.0, 2.0], "one": [16.0]}.get(request.node.callspec.params["added"], 1)
    np.testing.assert_allclose(table.age, before * factors, rtol=1e-6)


def test_saved_by_spark_under_its_type(added: Column[Any]) -> None:
    sql = "bigint" if added.dtype == np.int64 else "float"
    if pa.types.is_list(added.arrow_type):
        sql = f"array<{sql}>"
    assert f", {added.stored} {sql}" in _ddl(table_with(added))


def test_what_a_model_stores_is_what_it_always_stored() -> None:
    """Names and order of columns are part of the format."""
    assert [(c.name, c.stored) for c in FactorColumns.registry()] == [
        ("mean", "mean"), ("var", "variance"), ("base_mean", "base_mean"),
        ("base_var", "base_variance"), ("count", "count"), ("drawn", "prior_mean"),
        ("influence", "influence"), ("evidence", "evidence"), ("noise_factor", "noise_factor"),
        ("taste", "taste"), ("featured", "featured"),
    ]  # fmt: skip
    assert _ddl(filled_table(SETTINGS, [1])) == (
        "id bigint, mean array<float>, variance array<float>, base_mean float, base_variance "
        "float, count bigint, prior_mean array<float>, influence array<float>, evidence float, "
        "noise_factor float, taste array<float>, featured array<float>"
    )


@pytest.mark.parametrize("ids", [IDS, []])
def test_a_column_that_spark_reads_as_nulls_is_one_that_a_file_lacks(ids: list[int]) -> None:
    """Where it has no numbers; where it has some it is missing, and numbers too many are named."""
    column, nothing = FactorColumns.taste, pa.list_(pa.float32())
    nulls = pa.table({"taste": pa.nulls(len(ids), nothing)})
    assert column.from_arrow(nulls, SETTINGS).shape == (len(ids), 0)
    if ids:
        fitted = settings_of(rank=2, learns_events=True, num_negatives=2, table_rank=3)
        with pytest.raises(ValueError, match=r"'taste' holds 0 numbers .* expected 4 each"):
            column.from_arrow(nulls, fitted)
        some = pa.table({"taste": pa.array([[1.0]] + [None] * (len(ids) - 1), nothing)})
        with pytest.raises(ValueError, match=r"'taste' holds 1 numbers .* expected 0 each"):
            column.from_arrow(some, SETTINGS)
