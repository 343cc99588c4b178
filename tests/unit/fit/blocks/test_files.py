"""Static arrays of blocks: in files and in rows, and what is said of files that are not right."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow.fs import LocalFileSystem

from sparkml_sgdals.arrays.ipc import arrays_to_buffer
from sparkml_sgdals.errors import StorageError
from sparkml_sgdals.fit.blocks.files import (
    BlockFiles,
    BlockRows,
    local_parent,
    shared_parent,
    static_name,
)

NAME = static_name("layout", "users", 3, 12)
ARRAYS: dict[str, Any] = {
    "starts": np.array([0, 2, 3]),
    "values": np.array([1.5, -2.0, 0.25], np.float32),
    "square": np.arange(6, dtype=np.float64).reshape(2, 3),
    "none": np.empty(0, np.float32),
    "nobody": np.empty((0, 3), np.float32),
    "rows": np.array([7], np.int32),
    "id": pa.array(["a", "", "ß€"]),
}


@pytest.fixture(params=["{}", "file:{}", "file://{}"], ids=["path", "file:", "file://"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> BlockFiles:
    """A folder that is not there yet, by its path or a URI."""
    return BlockFiles(request.param.format(tmp_path / "some" / "where"))


def assert_arrays(found: dict[str, Any]) -> None:
    """All of `ARRAYS`, to the bit, and ready for a kernel."""
    assert list(found) == list(ARRAYS)
    for name, expected in ARRAYS.items():
        if isinstance(expected, pa.Array):
            assert found[name].equals(expected)
            continue
        assert type(found[name]) is np.ndarray
        assert found[name].dtype == expected.dtype
        assert found[name].shape == expected.shape
        assert found[name].tobytes() == expected.tobytes()
        # a kernel is compiled anew for arrays that differ in these
        assert found[name].flags.writeable
        assert found[name].flags.aligned
        assert found[name].flags.c_contiguous


def test_states_lie_in_files_for_a_few_steps(files: BlockFiles) -> None:
    payloads = [replace(files, step=n).park("users", 3, ARRAYS) for n in range(5)]
    for payload in payloads:
        assert payload.size < 100
        found = files.parked(payload, check=True)
        assert found is not None
        assert_arrays(found)
    files.drop_states(2)
    for payload in payloads[:3]:
        with pytest.raises(StorageError, match=r"state-.* is missing"):
            files.parked(payload)
    assert files.parked(payloads[3]) is not None
    # rows carry their states themselves
    payload = BlockRows({}).park("users", 3, ARRAYS)
    assert payload.equals(arrays_to_buffer(ARRAYS))
    assert BlockRows({}).parked(payload) is files.parked(payload) is None


def test_the_same_arrays_from_files_and_rows(files: BlockFiles) -> None:
    files.put(NAME, ARRAYS)
    assert_arrays(files.arrays(NAME))
    assert_arrays(files.arrays(NAME, check=True))
    rows = BlockRows({NAME: arrays_to_buffer(ARRAYS)})
    assert_arrays(rows.arrays(NAME))
    # nothing but the file itself: what was written beside it has its name now
    assert [path.name for path in Path(files.folder.split(":")[-1]).iterdir()] == [NAME]


def test_what_a_task_writes_stays_with_it(tmp_path: Path) -> None:
    files = BlockFiles(str(tmp_path))
    files.put(NAME, ARRAYS)
    before = (tmp_path / NAME).read_bytes()
    mapped = files.arrays(NAME)
    mapped["values"][:] = 9.0
    assert mapped["values"].tolist() == [9.0] * 3
    assert_arrays(files.arrays(NAME, check=True))
    assert (tmp_path / NAME).read_bytes() == before


def test_a_second_attempt_leaves_the_readers_of_the_first(tmp_path: Path) -> None:
    files = BlockFiles(str(tmp_path))
    files.put(NAME, ARRAYS)
    mapped = files.arrays(NAME)
    files.put(NAME, ARRAYS)
    assert_arrays(mapped)
    assert_arrays(files.arrays(NAME, check=True))


def test_a_table(files: BlockFiles) -> None:
    table = pa.table({"user": pa.array([3, 1], pa.int32()), "item": pa.array(["x", "y"])})
    files.put_table("pieces-1", table)
    files.put(NAME, ARRAYS)
    assert files.table("pieces-1").equals(table)
    files.drop_tables()
    assert_arrays(files.arrays(NAME, check=True))
    with pytest.raises(StorageError, match=r"pieces-1 .* missing"):
        files.table("pieces-1")


def test_a_missing_static_is_named(files: BlockFiles) -> None:
    with pytest.raises(StorageError, match=rf"where/{NAME} .* missing.*spark.checkpoint.dir"):
        files.arrays(NAME)
    with pytest.raises(StorageError, match=f"{NAME} .*not among the rows"):
        BlockRows({}).arrays(NAME)


@pytest.mark.parametrize("local", [True, False])
def test_a_table_written_part_by_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local: bool
) -> None:
    """Each part is a chunk; on an object store, too."""
    store = SimpleNamespace(local=local, fs=LocalFileSystem(), root=str(tmp_path))
    monkeypatch.setattr("sparkml_sgdals.fit.blocks.files.ObjectStore", lambda folder: store)
    files = BlockFiles(str(tmp_path))
    table = pa.table({"id": ["a", "b", "c"], "values": [[1.0], [], [2.0, 3.0]]})
    for count in (2, 0):
        files.put_parts(NAME, table.schema, (table.slice(0, 1 + n) for n in range(count)))
        found = files.table(NAME)
        assert found.equals(pa.concat_tables([table.slice(0, 1), table.slice(0, 2)][:count] or
                                             [table.slice(0, 0)]))  # fmt: skip
        assert found.column("id").num_chunks == count
    files.put_parts(NAME, table.schema, [table])
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    whole = bytearray((tmp_path / NAME).read_bytes())
    whole[-60] ^= 1
    (tmp_path / NAME).write_bytes(whole)
    with pytest.raises(StorageError, match=f"{NAME} .*damaged"):
        files.table(NAME)


@pytest.mark.parametrize("size", [0, 5, 24, -1])
def test_a_file_cut_short_is_named(tmp_path: Path, size: int) -> None:
    files = BlockFiles(str(tmp_path))
    files.put(NAME, ARRAYS)
    whole = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(whole[:size])
    with pytest.raises(StorageError, match=f"{NAME} .*(damaged|lost)"):
        files.arrays(NAME)


def test_a_changed_byte_is_found_where_it_is_looked_for(tmp_path: Path) -> None:
    files = BlockFiles(str(tmp_path))
    files.put(NAME, ARRAYS)
    whole = bytearray((tmp_path / NAME).read_bytes())
    place = bytes(whole).index(ARRAYS["values"].tobytes())
    whole[place] ^= 1
    (tmp_path / NAME).write_bytes(whole)
    assert files.arrays(NAME)["values"][0] != 1.5
    with pytest.raises(StorageError, match=f"{NAME} .*damaged"):
        files.arrays(NAME, check=True)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=rf"file/{NAME} .*cannot be written.*spark.local.dir"):
        BlockFiles(str(tmp_path / "file")).put(NAME, ARRAYS)


def test_the_folder_of_a_local_master(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where Spark's own scratch files are: the environment, its conf, the temporary folder."""
    monkeypatch.delenv("SPARK_LOCAL_DIRS", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert local_parent(None) == str(tmp_path)
    assert local_parent("/big,/small") == "/big"
    monkeypatch.setenv("SPARK_LOCAL_DIRS", "/given,/more")
    assert local_parent("/big") == "/given"


def test_the_folder_of_a_cluster(tmp_path: Path) -> None:
    """One that is named in full, can be written to and is seen by all; nothing is left there."""
    uri = f"file://{tmp_path}"
    assert shared_parent(f"{uri}/") == uri
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    asked = []

    def unseen(folder: str) -> bool:
        asked.append(folder)
        return False

    for given, why in {
        None: "is not set",
        # in the cluster's default file system, whatever that is
        str(tmp_path): f"{tmp_path}, is no full URI",
        f"{uri}/file": f"{uri}/file, cannot be used",
        "nosuch://host/path": "nosuch://host/path, cannot be used",
        uri: f"executors do not see what is written into spark.checkpoint.dir, {uri}",
    }.items():
        with pytest.warns(UserWarning, match=f"blocks of this fit are moved.*{re.escape(why)}"):
            assert shared_parent(given, unseen) is None
    assert asked == [str(tmp_path)]
