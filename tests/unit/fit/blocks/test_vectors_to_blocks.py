"""Vectors of features on their way to blocks: the same whatever the partitions."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from building import settings_of
from clusters import spread_in
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkml_sgdals.arrays.hashing import block_of, id_keys
from sparkml_sgdals.arrays.ipc import arrays_from_buffer, from_bytes
from sparkml_sgdals.arrays.sparse_rows import SparseRows, vector_schema
from sparkml_sgdals.fit.blocks.features import block, routing
from sparkml_sgdals.fit.blocks.features.block import SideColumns, furthest_in, own_rows, vectors_in
from sparkml_sgdals.fit.blocks.files import static_name
from sparkml_sgdals.fit.blocks.messages import Job
from sparkml_sgdals.state.feature_weights import FeatureWeights

NUMBERS = 5


def job_of(blocks: int, kind: Any) -> Job:
    return Job(settings_of(featured=True), (kind, kind), tuple(range(blocks)), threads=1)


def table_of(ids: list[Any], matrix: np.ndarray, kind: Any = "int") -> pa.Table:
    """Rows of a matrix as vectors, every other one sparse."""
    indices = [None if n % 2 else np.flatnonzero(row).tolist() for n, row in enumerate(matrix)]
    values = [row.tolist() if n % 2 else row[row != 0].tolist() for n, row in enumerate(matrix)]
    columns = {"id": ids, "size": [matrix.shape[1]] * len(ids), "indices": indices}
    return pa.table({**columns, "values": values}, schema=vector_schema(kind))


def columns_of(known: Any) -> dict[str, Any]:
    """What all blocks are told of the columns of items."""
    told = {message[-1].to_pybytes() for message in known.messages}
    assert len(told) == 1
    return arrays_from_buffer(told.pop())


@st.composite
def matrices(draw: Any) -> np.ndarray:
    """Some columns rare, one the same for all, one far from 0."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = draw(st.integers(1, 60))
    matrix = rng.normal(0, 1, (rows, NUMBERS)) * (rng.random((rows, NUMBERS)) < rng.random(NUMBERS))
    matrix[:, 3] = 2.5
    matrix[:, 4] = 1e6 + rng.normal(0, 1, rows)
    return matrix


@settings(max_examples=12)
@given(matrices(), st.integers(1, 4), st.integers(1, 5), st.sampled_from(["int", "str"]))
def test_columns_are_those_of_the_whole_table(matrix, blocks, parts, kind):
    ids: list[Any] = [7 * n for n in range(len(matrix))]
    ids = [f"i{n}" for n in ids] if kind == "str" else ids
    job, table = job_of(blocks, kind), table_of(ids, matrix, kind)
    known, held = spread_in(job, {"items": table}, parts)
    twice = pa.concat_tables([table, table.slice(0, 3)])
    again, also = spread_in(job, {"items": twice}, 6 - parts)
    assert known.messages == again.messages
    assert held == also
    told = columns_of(known)
    there = matrix != 0
    common = there.mean(axis=0) > 0.5
    centre = np.where(common, matrix.mean(axis=0), 0.0)
    squares = np.where(there | common, (matrix - centre) ** 2, 0.0).sum(axis=0)
    scale = np.sqrt(squares / np.where(common, len(matrix), np.maximum(there.sum(axis=0), 1)))
    varies = scale > 1e-9 * np.abs(centre)
    np.testing.assert_array_equal(told["places"], np.flatnonzero(varies))
    np.testing.assert_allclose(told["centre"], centre[varies], rtol=1e-12)
    np.testing.assert_allclose(told["scale"], scale[varies], rtol=1e-6)
    # of all ids, as there are few
    z = np.where(there | common, (matrix - centre) / np.where(varies, scale, 1.0), 0.0)[:, varies]
    whole = np.column_stack([np.ones(len(matrix)), z])
    length = np.sqrt((whole**2).sum(axis=0))
    likeness = whole.T @ whole / length / length[:, None]
    np.testing.assert_allclose(told["likeness"], likeness, atol=1e-6)
    columns, _ = known.columns["items"]
    rated = [one for n, one in enumerate(ids) if n % 3]
    seen = 0
    for own in range(blocks):
        vectors = from_bytes(held[static_name("given", "items", own, own)])
        array = pa.array(rated, vectors.schema.field("id").type)
        here = array.filter(pa.array(block_of(id_keys(array), blocks) == own))
        laid_out = own_rows(columns, vectors, here if len(here) else None)
        assert laid_out["rows"].size == len(here)
        seen += len(here)
        for row, first, last in zip(
            laid_out["rows"], laid_out["starts"][:-1], laid_out["starts"][1:], strict=True
        ):
            found = np.zeros(whole.shape[1])
            found[laid_out["columns"][first:last]] = laid_out["values"][first:last]
            place = ids.index(here[int(row)].as_py())
            np.testing.assert_allclose(found, whole[place], rtol=1e-6, atol=1e-9)
    assert seen == len(rated)


def test_pieces_do_not_change_what_is_laid_out(monkeypatch):
    """A block's vectors are taken a few at a time."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(0, 1, (200, 3)) * (rng.random((200, 3)) < 0.4)
    known, held = spread_in(job_of(1, "int"), {"items": table_of(list(range(200)), matrix)}, 3)
    columns, _ = known.columns["items"]
    vectors = from_bytes(held[static_name("given", "items", 0, 0)])
    ids = pa.array(range(0, 400, 2))
    weights = FeatureWeights(
        3, (), np.arange(3, dtype=np.int32), np.zeros(3, np.float32),
        rng.normal(0, 1, (4, 3)).astype(np.float32), np.zeros((4, 3), np.float32),
        np.ones(3, np.float32),
    )  # fmt: skip
    whole, most = own_rows(columns, vectors, ids), furthest_in(vectors, weights)
    monkeypatch.setattr(block, "_TOGETHER", 7)
    pieces = list(vectors_in(vectors, 3))
    assert len(pieces) > 30
    assert sum(len(rows) for _, rows, _ in pieces) == 200
    in_pieces = own_rows(columns, vectors, ids)
    for name, array in whole.items():
        np.testing.assert_array_equal(in_pieces[name], array)
    np.testing.assert_array_equal(furthest_in(vectors, weights), most)
    rows = SparseRows.of(table_of(list(range(200)), matrix))[0]
    np.testing.assert_array_equal(most, weights.reaching(weights.prior_means(rows)).furthest)


def test_some_ids_tell_how_columns_go_together(monkeypatch):
    rng = np.random.default_rng(0)
    matrix = rng.normal(0, 1, (4000, 2))
    matrix[:, 1] += matrix[:, 0]
    table = {"items": table_of(list(range(4000)), matrix)}
    whole = columns_of(spread_in(job_of(2, "int"), table, 2)[0])
    monkeypatch.setattr(routing, "_SAMPLE", 500)
    few, same = (columns_of(spread_in(job_of(2, "int"), table, parts)[0]) for parts in (1, 5))
    np.testing.assert_array_equal(few["likeness"], same["likeness"])
    assert (few["likeness"] != whole["likeness"]).any()
    np.testing.assert_allclose(few["likeness"], whole["likeness"], atol=0.1)
    np.testing.assert_array_equal(few["scale"], whole["scale"])


def test_vectors_that_are_none(caplog):
    """The first ids of all blocks are named."""
    matrix = np.ones((40, 3)) * np.arange(40)[:, None]
    table = table_of(list(range(40)), matrix).to_pylist()
    for n in (39, 3, 11, 12, 8, 5):
        table[n]["size"] = 4
    vectors = {"items": pa.Table.from_pylist(table, vector_schema("int"))}
    sentence = r"items 'vector' has another length than 3.*for 6 ids: 3, 5, 8, 11, 12, \.\.\."
    with pytest.raises(ValueError, match=sentence):
        spread_in(job_of(3, "int"), vectors, 2)
    with caplog.at_level(logging.WARNING):
        known, held = spread_in(job_of(3, "int"), vectors, 2, refuse=False)
    assert "for 6 ids: 3, 5, 8" in caplog.text
    good = pa.Table.from_pylist([row for row in table if row["size"] == 3], vector_schema("int"))
    expected, _ = spread_in(job_of(3, "int"), {"items": good}, 4)
    assert known.messages == expected.messages
    columns = SideColumns.from_arrays(columns_of(known))
    rows = 0
    for own in range(3):
        ids = pa.array(range(40)).filter(pa.array(block_of(id_keys(pa.array(range(40))), 3) == own))
        found = own_rows(columns, from_bytes(held[static_name("given", "items", own, own)]), ids)
        assert not {39, 3, 11, 12, 8, 5} & set(ids.take(pa.array(found["rows"])).to_pylist())
        rows += found["rows"].size
    assert rows == 34
    none = {"items": vectors["items"].slice(0, 0)}
    with pytest.raises(ValueError, match="There are no features of items: all vectors are null"):
        spread_in(job_of(2, "int"), none, 1)
