"""Tables of other libraries as Arrow, in types that Spark has; what is told of the rest."""

from __future__ import annotations

import datetime
import decimal
import uuid

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyspark.sql.pandas.types import from_arrow_type

from sparkml_sgdals.arrays.given_ids import given_ids, listed, lists_ids
from sparkml_sgdals.ingest.frames import as_arrow

NAMES = ["user", "item", "rating"]
FRAME = pd.DataFrame({"user": [1, 2], "item": [3, 4], "rating": [2.5, 1.0]})
ONE = uuid.uuid4()


def arrow(given):
    return as_arrow(given, "dataset", NAMES)


COLUMNS = {
    "uuids": ([ONE, None], pa.string()),
    "periods": (pd.period_range("2020", periods=2), pa.int64()),
    "intervals": (pd.interval_range(0, periods=2), None),
    "texts as a category": (pd.Categorical(["a", None]), pa.string()),
    "sparse": (pd.arrays.SparseArray([1.0, 0.0]), pa.float64()),
    "views": (pa.array(["a", None], pa.string_view()), pa.string()),
    "lists of views": (pa.array([["a"], None], pa.list_(pa.string_view())), None),
    "bytes as views": (pa.array([b"a", None], pa.binary_view()), pa.binary()),
    "runs": (pa.RunEndEncodedArray.from_arrays(pa.array([2], pa.int32()), [7.0]), pa.float64()),
    "a category of views": (
        pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array(["a", "b"], pa.string_view())),
        pa.string(),
    ),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_column_of_any_type_is_one_that_spark_has(kind):
    values, expected = COLUMNS[kind]
    table = arrow({"user": [1, 2], "own": values})
    from_arrow_type(table.schema.field("own").type)
    assert expected in (None, table.schema.field("own").type)
    if isinstance(values, pa.Array):
        assert table["own"].to_pylist() == values.to_pylist()


def test_polars_of_any_type():
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame({"user": ["a", "b"], "item": [1, 2], "genres": [["x"], []]})
    enum = pl.Enum(["a", "b"])
    frame = frame.with_columns(pl.col("user").cast(enum), pl.lit(b"x").alias("bytes"))
    table = arrow(frame)
    assert table["user"].to_pylist() == ["a", "b"]
    assert table["genres"].to_pylist() == [["x"], []]


@pytest.mark.parametrize("values", [[1, "a"], [{"a": 1}, 2], [1j, 2j], [object(), 1]])
def test_a_column_that_spark_has_no_type_for_is_named(values):
    with pytest.raises(
        TypeError, match=r"Column 'own' of dataset .*dataset\['own'\].astype\(str\)"
    ):
        arrow(FRAME.assign(own=pd.Series(values)))


def test_what_set_index_and_groupby_leave_in_an_index_is_a_column():
    for frame in (FRAME.set_index("user"), FRAME.groupby(["user", "item"]).mean()):
        assert sorted(arrow(frame).column_names) == sorted(NAMES)
    again = FRAME.set_index("user", drop=False)
    assert arrow(again).column_names == NAMES
    assert arrow(FRAME.rename_axis(index=None)).column_names == NAMES


@pytest.mark.parametrize("kind", [iter, tuple, list, lambda rows: (row for row in rows)])
def test_rows_however_they_come(kind):
    rows = [(1, 3, 2.5), (2, 4, 1.0)]
    assert arrow(kind(rows)).equals(pa.table(FRAME))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([(1, 2, 3.0, 4, 5)], r"columns=\['user', 'item', 'rating', 'other1', 'other2'\]"),
        (np.zeros((20, 15)), r"u, i = dataset.nonzero\(\).*'rating': dataset\[u, i\]"),
        (np.array(3), r"shape \(\)"),
        (np.zeros(3), "give the whole table"),
        (FRAME["user"], "give the whole table"),
        ({1, 2}, "give the whole table"),
        ((n for n in "ab"), "got a list of str"),
        ([], "got an empty list"),
    ],
)
def test_the_line_to_write(given, said):
    with pytest.raises(TypeError, match=said):
        arrow(given)


def test_columns_of_different_lengths():
    with pytest.raises(ValueError, match=r"not of one length: \{'user': 1, 'item': 2\}"):
        arrow({"user": [1], "item": [1, 2]})


@pytest.mark.parametrize(
    "ids",
    [[decimal.Decimal(1)], [ONE], [datetime.date(2020, 1, 1)], [b"a"], [2**70], [1, "2"], [1j]],
)
def test_ids_of_a_wrong_kind_are_told_as_ids(ids):
    assert lists_ids(ids)
    with pytest.raises(TypeError, match="Ids of users are whole numbers in this model"):
        given_ids(ids, "int", "user")


@pytest.mark.parametrize(
    "ids", [iter([1, 2]), {1: 0, 2: 0}.keys(), pd.Categorical([1, 2]), pd.array([1, 2], "Int32")],
    ids=lambda given: type(given).__name__,
)  # fmt: skip
def test_ids_however_they_come(ids):
    found = listed(ids)
    assert lists_ids(found)
    assert given_ids(found, "int", "user").to_pylist() == [1, 2]
