"""Runs read by ranges, as from an object store: how much, and what is said where it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from building import contents, filled_table, settings_of

from sparkml_sgdals.errors import GoneError
from sparkml_sgdals.store import sorted_runs
from sparkml_sgdals.store.packed_rows import pack_rows, unpack_rows
from sparkml_sgdals.store.sorted_runs import Run, RunWriter
from sparkml_sgdals.store.version_store import StorageError, VersionStore

ROWS = 60_000


class Recorded:
    """A file whose reads are noted: bytes of each."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.sizes: list[int] = []

    def read_at(self, size: int, start: int) -> bytes:
        """Bytes from there."""
        self.sizes.append(size)
        return bytes(self.file.read_at(size, start))

    def close(self) -> None:
        """Close it."""
        self.file.close()


def remote(folder: Path) -> VersionStore:
    """A store that is not taken for a local one."""
    store = VersionStore(str(folder))
    store.fs, store.local = pafs.SubTreeFileSystem("/", pafs.LocalFileSystem()), False
    return store


def opened(folder: Path, ids: Any) -> tuple[Any, Run, Recorded]:
    """A table, a run of it, and its file of rows."""
    table = filled_table(settings_of(rank=3), ids)
    store = remote(folder)
    store.write("files/none", b"")
    packed = pack_rows(table)
    with RunWriter(store, packed.shape, "files/a") as writer:
        writer.add(packed)
    run = Run(store, packed.shape, writer.entry())
    run._rows = Recorded(run._rows)
    return table, run, run._rows


def test_rows_far_apart_are_read_alone(tmp_path: Path) -> None:
    """What is read grows with what is asked for, not with the run."""
    _, run, file = opened(tmp_path, range(ROWS))
    found, _ = run.find(pa.array(np.arange(0, ROWS, 200)))
    assert found.size == ROWS // 200
    assert sum(file.sizes) == found.size * 8 * run.shape.width


@pytest.mark.parametrize("span", [4 << 20, 1000])
def test_no_request_reads_more_than_some_megabytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, span: int
) -> None:
    """All rows, in any order: the bits that were written, in requests of a limited size."""
    monkeypatch.setattr(sorted_runs, "_REMOTE_SPAN", span)
    count = ROWS if span > 1000 else 500
    table, run, file = opened(tmp_path, range(count))
    ids = np.random.default_rng(1).permutation(count)
    found, rows = run.find(pa.array(ids))
    np.testing.assert_array_equal(found, np.arange(count))
    assert max(file.sizes) <= span
    assert sum(file.sizes) == count * 8 * run.shape.width
    back = filled_table(settings_of(rank=3), [0])
    unpack_rows(rows, back)
    some = pa.array(range(0, count, 97))
    for one, other in zip(
        *(t.to_arrow(t.index.find(some)).column("mean").to_pylist() for t in (back, table)),
        strict=True,
    ):
        assert one == other
    if count < 1000:
        assert contents(back) == contents(table)


class Failing(Recorded):
    """A file whose reads fail, as those of an S3 object that was deleted since."""

    def read_at(self, size: int, start: int) -> bytes:
        """Fail."""
        raise OSError("AWS Error NO_SUCH_KEY during GetObject operation")


@pytest.mark.parametrize("gone", [True, False])
def test_a_run_that_cannot_be_read(tmp_path: Path, gone: bool) -> None:
    """Gone, a reader looks again at what there is; else the file and what to do are named."""
    _, run, file = opened(tmp_path, range(9))
    run._rows = Failing(file)
    if gone:
        (tmp_path / "files/a.rows").unlink()
    kind, message = (
        (GoneError, r"files/a\.rows is missing") if gone else
        (StorageError, r"files/a\.rows could not be read: AWS .* Look after the storage")
    )  # fmt: skip
    for read in (lambda: run.find(pa.array([3])), lambda: run.part(0, 2)):
        with pytest.raises(StorageError, match=message) as failure:
            read()
        assert failure.type is kind


def test_a_file_that_cannot_be_checked(tmp_path: Path) -> None:
    """An object store's refusal is explained."""
    store = remote(tmp_path)
    written = store.write_table("files/a.parquet", pa.table({"id": [1]}))
    store.check_file(written)

    class Refusing:
        def open_input_stream(self, path: str) -> Any:
            raise OSError("AWS Error SLOW_DOWN")

        def get_file_info(self, path: str) -> Any:
            return pafs.LocalFileSystem().get_file_info(path)

    store.fs = Refusing()  # type: ignore[assignment]
    with pytest.raises(StorageError, match=r"a\.parquet could not be read: AWS Error SLOW_DOWN"):
        store.check_file(written)
    (tmp_path / "files/a.parquet").unlink()
    with pytest.raises(GoneError, match="is missing"):
        store.check_file(written)
