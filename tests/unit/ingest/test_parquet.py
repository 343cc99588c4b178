"""Which Parquet files tasks read themselves: those that Spark would read in the same way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql import types as T

from sparkml_sgdals.ingest.parquet import _between, _splits, row_group_splits
from sparkml_sgdals.store.objects import ObjectStore

WANTED = {"user": T.LongType(), "item": T.LongType(), "rating": T.FloatType()}
ROWS = pa.table(
    {
        "user": pa.array([1, 2, 3], pa.int64()),
        "item": pa.array([1, 1, 2], pa.int64()),
        "rating": pa.array([1.0, 2.0, 3.0], pa.float32()),
    }
)


def write(folder: Path, *names: str, rows: pa.Table = ROWS) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, folder / name, row_group_size=2)


def splits(path: Path):
    """What is read, by names of files."""
    root = str(path)
    found = row_group_splits(ObjectStore(root), WANTED)
    assert all((first, count) == (0, 3) for _, _, first, count in found or ())
    return found and {file[len(root) :].lstrip("/"): groups for file, groups, *_ in found}


def test_a_folder_and_a_file(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", "b.parquet")
    (tmp_path / "_SUCCESS").touch()
    assert splits(tmp_path) == {"a.parquet": [0, 1], "b.parquet": [0, 1]}
    assert splits(tmp_path / "a.parquet") == {"": [0, 1]}


def test_folders_of_values(tmp_path: Path) -> None:
    write(tmp_path, "year=2020/a.parquet", "year=2021/b.parquet")
    assert splits(tmp_path) == {"year=2020/a.parquet": [0, 1], "year=2021/b.parquet": [0, 1]}


@pytest.mark.parametrize(
    "names",
    [
        ("a.parquet", "archive/b.parquet"),
        ("archive/b.parquet",),
        ("year=2020/a.parquet", "b.parquet"),
        ("year=2020/a.parquet", "day=1/b.parquet"),
        ("year=2020/archive/a.parquet",),
    ],
)
def test_folders_that_spark_passes_over_are_left_to_it(tmp_path: Path, names) -> None:
    write(tmp_path, *names)
    assert splits(tmp_path) is None


def test_files_in_folders_that_spark_passes_over_are_not_opened(tmp_path: Path) -> None:
    write(tmp_path, "z.parquet")
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "a.parquet").write_bytes(b"not Parquet")
    assert splits(tmp_path) is None


@pytest.mark.parametrize(
    "other",
    [
        {"rating": None},
        {"rating": pa.float64()},
        {"rating": pa.int32()},
        {"user": pa.float64()},
        {"user": pa.int32()},
        {"item": pa.string()},
        {"item": pa.timestamp("us")},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["0.parquet", "b.parquet"])
def test_files_of_other_columns_or_types_are_left_to_spark(tmp_path: Path, other, name) -> None:
    """Spark refuses, converts or fills them as its settings say."""
    ((column, kind),) = other.items()
    place = ROWS.column_names.index(column)
    rows = ROWS.remove_column(place)
    if kind is not None:
        rows = rows.add_column(place, column, ROWS[column].cast(kind))
    write(tmp_path, "a.parquet")
    write(tmp_path, name, rows=rows)
    assert splits(tmp_path) is None


def test_a_column_that_is_there_twice_is_left_to_spark(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", rows=ROWS.append_column("rating", ROWS["rating"]))
    assert splits(tmp_path) is None


def test_strings_of_either_width(tmp_path: Path) -> None:
    for kind in (pa.string(), pa.large_string()):
        rows = ROWS.set_column(0, "user", ROWS["user"].cast(kind))
        write(tmp_path, f"{kind}.parquet", rows=rows)
    store = ObjectStore(str(tmp_path))
    assert len(row_group_splits(store, WANTED | {"user": T.StringType()})) == 2


@pytest.mark.parametrize("folder", ["rating=5", "year=1/RATING=5", "rat%69ng=5"])
def test_a_column_in_files_and_folders_is_left_to_spark(tmp_path: Path, folder: str) -> None:
    write(tmp_path, f"{folder}/a.parquet")
    assert splits(tmp_path) is None
    assert splits(tmp_path / folder) == {"a.parquet": [0, 1]}


@given(st.lists(st.integers(0, 700), max_size=6), st.integers(1, 300), st.integers(1, 90))
def test_splits_hold_each_row_once_and_are_not_too_large(sizes, most, batch) -> None:
    cut = list(_splits("a", sizes, most))
    assert all(count <= most for *_, count in cut)
    seen = []
    for _, groups, first, count in cut:
        starts = [sum(sizes[:group]) for group in groups]
        rows = np.concatenate(
            [np.arange(s, s + sizes[g]) for s, g in zip(starts, groups, strict=True)]
        )
        batches = pa.table({"row": rows}).to_batches(max_chunksize=batch)
        read = [one.column("row").to_numpy() for one in _between(batches, first, count)]
        assert sum(map(len, read)) == count
        seen += [*np.concatenate([np.empty(0, np.int64), *read])]
    assert seen == list(range(sum(sizes)))


@pytest.mark.parametrize(("tasks", "expected"), [(0, 1), (2, 2), (4, 4), (99, 5)])
def test_one_large_row_group_is_read_by_as_many_tasks_as_there_are(
    tmp_path: Path, tasks: int, expected: int
) -> None:
    rows = pa.table(
        {name: np.ones(500_000, kind) for name, kind in
         {"user": np.int64, "item": np.int64, "rating": np.float32}.items()}
    )  # fmt: skip
    pq.write_table(rows, tmp_path / "a.parquet", row_group_size=500_000)
    found = row_group_splits(ObjectStore(str(tmp_path)), WANTED, tasks)
    assert len(found) == expected
    assert sum(count for *_, count in found) == 500_000
