"""What Spark reads of a checkpoint at a start, beside plans and state: damage is named."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from writing import plan

from sparkml_sgdals.store.checkpoint.bookkeeping import DONE, damaged_files, note_end
from sparkml_sgdals.store.objects import ObjectStore


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkpoint of twelve batches, the last but planned, with the sums that Hadoop keeps."""
    for number in range(12):
        plan(tmp_path, number, done=number < 11)
        watermark = f'v1\n{{"nextBatchWatermarkMs":{1714518099000 + number}}}'
        if number < 11:
            (tmp_path / f"checkpoint/commits/{number}").write_text(watermark)
    for name in ("offsets", "commits"):
        for file in (tmp_path / "checkpoint" / name).glob("[0-9]*"):
            sums(file, 16)
    return tmp_path


def sums(file: Path, size: int) -> None:
    data = file.read_bytes()
    pieces = [data[first : first + size] for first in range(0, len(data), size)]
    told = b"".join(struct.pack(">I", zlib.crc32(piece)) for piece in pieces)
    file.with_name(f".{file.name}.crc").write_bytes(b"crc\0" + struct.pack(">i", size) + told)


def damaged(root: Path) -> list[str]:
    return damaged_files(ObjectStore(str(root)), "checkpoint", 11, 10, 10)


def test_whole(root: Path) -> None:
    assert not damaged(root)
    note_end(ObjectStore(str(root)), "checkpoint")
    assert not damaged(root)
    for file in root.rglob(".*.crc"):
        file.unlink()
    assert not damaged(root)
    # the stream went on, and was killed
    (root / "checkpoint" / DONE).write_text('{"batch": "9", "sha256": ""}')
    assert not damaged(root)


@pytest.mark.parametrize("name", ["offsets/11", "commits/10", "metadata"])
def test_each_cut_and_flip_is_named(root: Path, name: str) -> None:
    """By sums or by what was noted; of the id of the query what is no id."""
    file = root / "checkpoint" / name
    data, rng = file.read_bytes(), np.random.default_rng(1)
    file.unlink()
    assert damaged(root)[0] == name
    for size in range(len(data)):
        file.write_bytes(data[:size])
        assert damaged(root)[0] == name
    if name == "metadata":
        return
    note_end(ObjectStore(str(root)), "checkpoint")
    for bit in rng.integers(0, 8 * len(data), 60):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(bytes(flipped))
        assert damaged(root)[0] == name


def test_an_older_note_is_named_with_its_sums(root: Path) -> None:
    commits = root / "checkpoint/commits"
    note_end(ObjectStore(str(root)), "checkpoint")
    for name in ("{}", ".{}.crc"):
        (commits / name.format(10)).write_bytes((commits / name.format(4)).read_bytes())
    assert damaged(root) == ["commits/10"]
