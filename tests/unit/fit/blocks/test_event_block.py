"""Events in blocks: all steps of all blocks in one process against a fit in memory."""

from __future__ import annotations

from typing import Any

import clusters
import numpy as np
import pyarrow as pa
import pytest
from building import settings_of
from clusters import packed_in
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from sparkml_sgdals.arrays.ipc import from_bytes
from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.errors import DivergenceError
from sparkml_sgdals.fit.blocks.events.block import EventTotals
from sparkml_sgdals.fit.blocks.events.exchange import (
    DescendHalf,
    NameEvents,
    StartEvents,
    read_totals,
)
from sparkml_sgdals.fit.blocks.events.regularisation import _Choose, _Sample
from sparkml_sgdals.learn import least_squares
from sparkml_sgdals.learn.event_tables import fit_events, lambda_of_sample
from sparkml_sgdals.learn.shares import pairs_that_count, some_of
from sparkml_sgdals.state.event_scores import memories_of
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.settings import CHOSEN, Settings


def event_settings(**fields: Any) -> Settings:
    """Settings of a small model of events."""
    small = {"learns_events": True, "rank": 2, "table_rank": 5, "regs": (0.0, 0.0, 0.03, 0.02)}
    return settings_of(**small | {"num_negatives": 3, "tol": 0.0} | fields)


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    """Events of few users and items, pairs repeated; some weighted, some not wanted.

    Perhaps one pair comes more often than it counts.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    once, more = draw(st.integers(1, 120)), draw(st.sampled_from([0, 0, 15, 100]))
    count = once + more
    users, items = rng.integers(-5, 10, count), rng.integers(0, 8, count)
    users[once:], items[once:] = users[0], items[0]
    names = draw(st.booleans())
    columns: dict[str, Any] = {
        "user": pa.array([f"u{u}" for u in users] if names else users),
        "item": pa.array([f"i{i}" for i in items] if names else items),
        "rating": pa.array(
            rng.choice([1.0, 2.0, 0.0, -1.5] if draw(st.booleans()) else [1.0], count), pa.float32()
        ),
    }
    if draw(st.booleans()):
        columns["weight"] = pa.array(rng.choice([0.5, 1.0, 3.0], count), pa.float32())
    return pa.table(columns)


class Cluster(clusters.Cluster):
    """Blocks of a table of events."""

    def fit(self, sweeps: int, lams: tuple[float, float]) -> tuple[ModelState, EventTotals]:
        """The model that the steps of a fit give."""
        job = self.job
        messages = self.run(StartEvents(job), [])
        for _ in range(sweeps):
            messages = self.run(DescendHalf(job, "users", lams[0]), messages)
            messages = self.run(DescendHalf(job, "items", lams[1]), messages)
        found = self.run(NameEvents(job), messages)
        state = ModelState.empty(job.settings, *job.kinds)
        for _, side, _, kind, payload in found:
            if kind == "rows":
                (state.users if side == "users" else state.items).put_arrow(from_bytes(payload))
        # what the driver is told by one block is what every block knows
        told = [message for message in found if message[3] != "rows"]
        totals = read_totals(self.inbox(0, told), job)
        for own in range(job.num_blocks):
            assert read_totals(self.inbox(own, messages), job).losses == totals.losses
        return state, totals


def assert_same_model(found: ModelState, expected: ModelState) -> None:
    """The same ids, counts and lists to the bit, the same features but for rounding."""
    for own, other in ((found.users, expected.users), (found.items, expected.items)):
        rows = own.index.find(other.index.ids())
        assert own.size == other.size
        assert sorted(rows.tolist()) == list(range(own.size))
        np.testing.assert_array_equal(own.count[rows], other.count)
        np.testing.assert_array_equal(own.taste[rows, 0], other.taste[:, 0])
        np.testing.assert_allclose(own.taste[rows], other.taste, rtol=2e-4, atol=2e-6)
        np.testing.assert_array_equal(own.mean[rows], other.mean)
    rows = found.users.index.find(expected.users.index.ids())
    lists = memories_of(found)[0].done
    for row, done in zip(rows.tolist(), memories_of(expected)[0].done, strict=True):
        np.testing.assert_array_equal(lists[row], done, strict=True)


def kind_of(table: pa.Table) -> str:
    """The kind of a table's ids."""
    return "str" if pa.types.is_string(table.schema.field("user").type) else "int"


@given(table=tables(), blocks=st.integers(1, 5), tol=st.sampled_from([0.0, 0.05]))
@hypothesis_settings(deadline=None)
def test_blocks_fit_as_one(table: pa.Table, blocks: int, tol: float) -> None:
    settings, kind = event_settings(tol=tol, max_iter=6), kind_of(table)
    empty = ModelState.empty(settings, kind, kind)
    ((expected, history),) = fit_events(empty, encode_ratings(table), [6], 1, lambda *_: None)
    cluster = Cluster.of(packed_in(table, 3), blocks, settings, kind)
    found, totals = cluster.fit(6, (0.03, 0.02))
    assert_same_model(found, expected)
    assert len(totals.history) == len(history)
    np.testing.assert_allclose(totals.history, history, rtol=1e-4, atol=1e-5)


@pytest.mark.long
@given(table=tables())
@hypothesis_settings(deadline=None, max_examples=20)
def test_the_cut_of_the_table_does_not_matter(table: pa.Table) -> None:
    settings, kind = event_settings(), kind_of(table)
    one, other = (
        Cluster.of(packed_in(table, parts), 3, settings, kind).fit(2, (0.03, 0.02))
        for parts in (1, 4)
    )
    assert one[0].fingerprint() == other[0].fingerprint()
    assert one[1].losses == other[1].losses


def test_a_weight_that_is_no_number_is_told() -> None:
    table = pa.table(
        {"user": [1, 2], "item": [3, 4], "rating": pa.array([1.0, 0.0], pa.float32()),
         "weight": pa.array([1.0, 1e-30], pa.float32())}
    )  # fmt: skip
    settings = event_settings(alpha=1e30)
    packed = packed_in(table, 1)
    with pytest.raises(DivergenceError, match="weights of an absurd size"):
        Cluster.of(packed, 2, settings, "int")


@pytest.mark.parametrize("parts", [1, 5])
@pytest.mark.parametrize("names", [False, True])
def test_lambda_is_chosen_as_in_one_task(
    monkeypatch: pytest.MonkeyPatch, parts: int, names: bool
) -> None:
    """From a share of the users that is more than is looked at: the same number.

    One pair comes again and again, and does not speak for all.
    """
    rng = np.random.default_rng(2)
    users = rng.integers(0, 300, 6000)
    items = rng.integers(0, 80, 6000) // (1 + users % 2)
    users[:400], items[:400] = 7, 3
    columns = [[f"x{n}" for n in side] if names else side for side in (users, items)]
    table = pa.table({"user": columns[0], "item": columns[1], "rating": np.ones(6000, np.float32)})
    settings, kind = event_settings(regs=(0.0, 0.0, CHOSEN, CHOSEN)), kind_of(table)
    monkeypatch.setattr(least_squares, "MOST_CHOOSING", 2000)
    whole = encode_ratings(table)
    counted = some_of(whole, pairs_that_count(whole, 6000))
    assert 5600 < len(counted) < 5800
    expected = lambda_of_sample(settings, (kind, kind), counted, whole.item_ids, 1)
    empty = ModelState.empty(settings, kind, kind)
    ((fitted, _),) = fit_events(empty, whole, [1], 1, lambda *_: None)
    assert fitted.regularisation == (expected, expected)
    sampled = _Sample((kind, kind), 0.5)(iter(packed_in(table, parts)))
    tables_of = pa.Table.from_batches(list(sampled))
    counts = [from_bytes(p).num_rows for k, p in zip(*tables_of.to_pydict().values(), strict=True)
              if k == "events"]  # fmt: skip
    assert 2000 < sum(counts) < 4500
    (found,) = _Choose(settings, (kind, kind), 2, 2000, 6000)(iter(tables_of.to_batches()))
    assert found.column("value")[0].as_py() == expected
    few = iter(tables_of.to_batches())
    (found,) = _Choose(settings, (kind, kind), 2, sum(counts), 6000)(few)
    assert found.column("value").to_pylist() == [None]
