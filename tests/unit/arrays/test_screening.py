"""Bad rows are found, each fault under its name."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from building import assert_same, id_array, ratings_of
from hypothesis import given
from hypothesis import strategies as st

from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.arrays.screening import ZERO_WEIGHT, screen

RATING_FAULT = "rating: null, NaN or infinite"
WEIGHT_FAULT = "weight: null, NaN, infinite or negative"


def raw_table(**columns: list[Any]) -> pa.Table:
    """A table as Spark hands it over: nulls and NaN allowed."""
    types = {"rating": pa.float32(), "weight": pa.float32(), "time": pa.int64()}
    rows = max(len(values) for values in columns.values())
    columns = {"user": [1] * rows, "item": [2] * rows, "rating": [3.0] * rows} | columns
    return pa.table(
        {name: pa.array(values, types.get(name, pa.int64())) for name, values in columns.items()}
    )


@pytest.mark.parametrize(
    ("column", "values", "bad", "problems"),
    [
        ("user", [1, None, 3], [1], {"user: null or no 64-bit whole number": 1}),
        ("item", [None, None, 3], [0, 1], {"item: null or no 64-bit whole number": 2}),
        ("rating", [1.0, None, math.nan, math.inf, -math.inf], [1, 2, 3, 4], {RATING_FAULT: 4}),
        ("time", [5, None, 7], [1], {"time: null or too large": 1}),
        (
            "weight", [1.0, None, math.nan, math.inf, -math.inf, -0.5], [1, 2, 3, 4, 5],
            {WEIGHT_FAULT: 5},
        ),
        ("weight", [1.0, 0.0, 2.0, -0.0], [], {ZERO_WEIGHT: 2}),
        ("weight", [1.0, 0.0, -2.0], [2], {ZERO_WEIGHT: 1, WEIGHT_FAULT: 1}),
        ("rating", [1.0, 2.0], [], {}),
    ],
)  # fmt: skip
def test_screen_finds_every_fault(
    column: str, values: list[Any], bad: list[int], problems: dict[str, int]
) -> None:
    """Each fault is counted under its name; a weight of 0 is dropped without being one."""
    table = raw_table(**{column: values})
    good, found, counted = screen(table)
    assert np.flatnonzero(found).tolist() == bad
    assert counted == problems
    zero = [n for n, v in enumerate(values) if column == "weight" and v == 0]
    kept = [n for n in range(len(values)) if n not in bad and n not in zero]
    assert good.equals(table.take(kept))


def test_an_id_of_text_is_null_or_good() -> None:
    """Text is never too wide, nor does it have a fraction."""
    rating = pa.array([1.0, 2.0], pa.float32())
    ids = pa.table({"user": ["a", None], "item": ["b", "c"], "rating": rating})
    assert screen(ids)[2] == {"user: null": 1}


def test_a_row_may_have_several_faults() -> None:
    """Each is counted, the row is set aside once; with a fault, its weight of 0 is none."""
    table = raw_table(user=[None, 1], rating=[math.nan, 1.0], time=[None, 1], weight=[0.0, 1.0])
    good, bad, problems = screen(table)
    assert bad.tolist() == [True, False]
    user, time = "user: null or no 64-bit whole number", "time: null or too large"
    assert problems == {user: 1, RATING_FAULT: 1, time: 1}
    assert good.num_rows == 1


@given(st.data())
def test_screen_against_a_loop(data: st.DataObject) -> None:
    """Random faults together, in chunks: what is left is what a loop leaves."""
    floats = st.sampled_from([None, math.nan, math.inf, 0.0, -1.0, 1.0, 2.5])
    numbers = st.sampled_from([None, 1, 2])
    columns = {"user": numbers, "item": numbers, "rating": floats}
    if data.draw(st.booleans()):
        columns["time"] = numbers
    if data.draw(st.booleans()):
        columns["weight"] = floats
    found = data.draw(st.lists(st.fixed_dictionaries(columns), min_size=1, max_size=20))
    table = raw_table(**{name: [row[name] for row in found] for name in columns})
    cut = data.draw(st.integers(0, 20))
    good, bad, problems = screen(pa.concat_tables([table[:cut], table[cut:]]))

    def finite(value: float | None) -> bool:
        return value is not None and math.isfinite(value)

    expected_bad, kept, zeros = [], [], 0
    for n, row in enumerate(found):
        weight = row.get("weight", 1.0)
        fault = (
            row["user"] is None or row["item"] is None or not finite(row["rating"])
            or row.get("time", 0) is None or not finite(weight) or weight < 0
        )  # fmt: skip
        expected_bad.append(fault)
        zeros += not fault and weight == 0
        if not fault and weight != 0:
            kept.append(n)
    assert bad.tolist() == expected_bad
    assert problems.get(ZERO_WEIGHT, 0) == zeros
    assert good.to_pylist() == table.take(pa.array(kept, pa.int64())).to_pylist()


def test_keep_repairs_time_and_weight() -> None:
    """Without a time a row counts as the earliest, with a bad weight as 1; 0 stays 0."""
    table = raw_table(
        user=[1, 2, 3, 4, 5, None, 7],
        time=[50, None, 70, 80, 90, 10, None],
        weight=[2.0, 3.0, None, math.nan, -1.0, 1.0, 0.0],
    )
    good, bad, problems = screen(table, keep=True)
    assert np.flatnonzero(bad).tolist() == [5]
    assert problems == {"user: null or no 64-bit whole number": 1, ZERO_WEIGHT: 1}
    assert good.column("user").to_pylist() == [1, 2, 3, 4, 5]
    assert good.column("weight").to_pylist() == [2.0, 3.0, 1.0, 1.0, 1.0]
    times = good.column("time").to_pylist()
    assert [times[n] for n in (0, 2, 3, 4)] == [50, 70, 80, 90]
    assert times[1] is not None
    assert times[1] <= 50


@pytest.mark.parametrize("column", ["user", "item", "rating"])
def test_keep_cannot_repair_the_rest(column: str) -> None:
    """A row without user, item or rating is set aside all the same."""
    good, bad, _ = screen(raw_table(**{column: [None, 1]}), keep=True)
    assert bad.tolist() == [True, False]
    assert good.num_rows == 1


def test_keep_does_not_depend_on_the_partitioning() -> None:
    """Screened in parts, as tasks do, rows without a time end in the same order of learning."""
    table = raw_table(
        user=[1, 2, 3, 4, 5, 6], item=[1, 2, 3, 4, 5, 6], time=[70, None, 30, None, 50, None]
    )
    whole = encode_ratings(screen(table, keep=True)[0])
    parts = [screen(table[n : n + 2], keep=True)[0] for n in range(0, 6, 2)]
    assert_same(encode_ratings(pa.concat_tables(parts)), whole)


def test_keep_where_no_row_has_a_time() -> None:
    """The order is then that of the hash, and nothing is null."""
    good, bad, _ = screen(raw_table(user=[1, 2, 3], time=[None] * 3), keep=True)
    assert not bad.any()
    assert good.column("time").null_count == 0
    without = encode_ratings(raw_table(user=[1, 2, 3]))
    assert_same(encode_ratings(good), without)


@pytest.mark.parametrize("keep", [False, True])
def test_screen_of_no_rows(keep: bool) -> None:
    """An empty table stays empty, with its columns."""
    table = raw_table(user=[], time=[], weight=[])
    good, bad, problems = screen(table, keep)
    assert good.num_rows == 0
    assert good.column_names == table.column_names
    assert bad.shape == (0,)
    assert problems == {}


def test_codes_follow_the_ids() -> None:
    """A small table by hand."""
    ratings = ratings_of(["b", "a", "b"], [5, 9, 9], [1.0, 2.0, 3.0], times=[3, 2, 1])
    assert ratings.user_ids.equals(id_array(["a", "b"]))
    assert ratings.item_ids.equals(id_array([5, 9]))
    assert ratings.values.tolist() == [3.0, 2.0, 1.0]
    assert ratings.users.tolist() == [1, 0, 1]
    assert ratings.items.tolist() == [1, 1, 0]
