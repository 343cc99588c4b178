"""States as parts: what comes back is what was sent."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from building import contents, filled_table, seen_state, settings_of

from sparkml_sgdals.state.model_state import Counters, ModelState, Scale
from sparkml_sgdals.state.parts import PART_SCHEMA, part_batch, state_from_parts, state_parts
from sparkml_sgdals.state.settings import Settings


def assert_same_state(one: ModelState, other: ModelState) -> None:
    """Both hold the same settings, ids and bits."""
    assert one.settings == other.settings
    assert one.scalars() == other.scalars()
    for left, right in ((one.users, other.users), (one.items, other.items)):
        assert (left.side, left.index.kind) == (right.side, right.index.kind)
        assert contents(left) == contents(right)
    assert one.fingerprint() == other.fingerprint()


@pytest.mark.parametrize(
    "settings",
    [settings_of(rank=3), settings_of(solver="sgd", rank=0, regs=(1.0, 2.0, 3.0, 4.0), drift=0.1)],
)
@pytest.mark.parametrize("users", [[5, -(2**63), 7], ["a", "", "é"]])
@pytest.mark.parametrize("items", [[1], ["x", "y"]])
def test_state_through_parts(settings: Settings, users: list[Any], items: list[Any]) -> None:
    """A whole state, with both kinds of ids and both widths of variances, in any order of parts."""
    state = ModelState(
        settings, filled_table(settings, users, 1), filled_table(settings, items, 2),
        Scale(1 / 3, 0.1, 5.0, 6.0, 7, True), Counters(9, 0.1, 5.0, 3, 1 / 7, 2.0), 0.3, 4.0,
    )  # fmt: skip
    parts = list(state_parts(state, {"rmse": [0.1, 1 / 3]}))
    assert [kind for kind, _ in parts] == ["state", "users", "items"]
    for order in (parts, parts[::-1]):
        back, extra = state_from_parts(iter(order))
        assert_same_state(back, state)
        assert extra == {"rmse": [0.1, 1 / 3]}


def test_a_large_side_is_several_parts() -> None:
    """A part is small enough for one row; together they are the side."""
    state = seen_state(settings_of(rank=0))
    state.users.ensure(pa.array(np.arange(10**9, 10**9 + 600_000)))
    parts = list(state_parts(state))
    assert [kind for kind, _ in parts] == ["state", "users", "users", "users", "items"]
    assert max(len(payload) for _, payload in parts) < 2**25
    back, extra = state_from_parts(parts[::-1])
    assert back.users.size == state.users.size
    assert back.fingerprint() == state.fingerprint()
    assert extra == {}


def test_empty_state_through_parts() -> None:
    """A state that has seen nothing is its header only."""
    state = ModelState.empty(settings_of(rank=4), "str", "int")
    parts = list(state_parts(state))
    assert [kind for kind, _ in parts] == ["state"]
    # other readers than Python's know no Infinity
    json.loads(parts[0][1], parse_constant=pytest.fail)
    assert_same_state(state_from_parts(parts)[0], state)


def test_part_batch() -> None:
    """One row of the promised schema."""
    batch = part_batch("users", b"\x00\xff")
    assert batch.schema.equals(PART_SCHEMA)
    assert batch.to_pylist() == [{"kind": "users", "payload": b"\x00\xff"}]
