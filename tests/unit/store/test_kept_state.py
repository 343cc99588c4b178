"""What Spark keeps between batches: told by each commit, and a changed file of it is named.

Spark's store is played by rule: a delta a batch and partition, snapshots some time later, and no
file longer than needed for the versions that it retains. `tests/spark/test_repeats.py` has the
real one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparkml_sgdals.store.checkpoint.kept_state import (
    KeptState,
    changed_files,
    drop_untold,
    with_all_files,
)
from sparkml_sgdals.store.described import COMMIT
from sparkml_sgdals.store.objects import ObjectStore

PARTITIONS = 3


class Keeper:
    """One operator of Spark's, whose files say what they are of, and the commits about them."""

    def __init__(self, root: Path, retained: int, rng: np.random.Generator) -> None:
        self.root, self.retained, self.rng = root, retained, rng
        self.store = ObjectStore(str(root))
        self.top = root / "checkpoint/state/0"
        self.version = 0
        self.told: dict[str, Any] = {}
        for folder, name in (("_metadata", "metadata"), ("0/_metadata", "schema")):
            (self.top / folder).mkdir(parents=True)
            (self.top / folder / name).write_text(f"of {name}")
        for partition in range(PARTITIONS):
            (self.top / f"{partition}").mkdir(exist_ok=True)
        self.kept = KeptState(retained)

    def batch(self, busy: float = 0.3) -> None:
        """Run a batch and commit it; in the background a partition in so many is seen to."""
        self.version += 1
        self.run()
        for partition in range(PARTITIONS):
            if self.rng.random() < busy:
                self.maintain(partition)
        self.told = self.kept.after(self.store, "checkpoint", self.version - 1, self.told)

    def run(self) -> None:
        """Write the deltas of the batch."""
        for partition in range(PARTITIONS):
            # rows come in any order
            order = self.rng.integers(1 << 40)
            self.write(partition, f"{self.version}.delta", f"delta {self.version} {order}")

    def write(self, partition: int, name: str, text: str) -> None:
        (self.top / f"{partition}" / name).write_text(f"{partition} {text}")
        (self.top / f"{partition}" / f".{name}.crc").write_text(f"sums of {name}")

    def maintain(self, partition: int) -> None:
        self.write(partition, f"{self.version}.snapshot", f"snapshot {self.version} whole")
        self.clean(partition)

    def clean(self, partition: int) -> None:
        oldest = self.version - self.retained
        folder = self.top / f"{partition}"
        needed = max((s for s in snapshots(folder) if s <= oldest), default=0)
        for file in folder.glob("[0-9]*"):
            if int(file.name.partition(".")[0]) < needed:
                file.unlink()
                (folder / f".{file.name}.crc").unlink()

    def reads(self, partition: int, version: int) -> bool:
        """Whether Spark finds all that it kept in a partition, and nothing else."""
        folder = self.top / f"{partition}"
        base = max((s for s in snapshots(folder) if s <= version), default=0)
        names = [f"{base}.snapshot"] * bool(base)
        names += [f"{number}.delta" for number in range(base + 1, version + 1)]
        return all(
            (folder / name).read_text().startswith(f"{partition} {_kind(name)} ") for name in names
        )

    def changed(self, done: bool = True) -> list[str]:
        return changed_files(self.store, "checkpoint", self.told, done)

    def start(self) -> None:
        """What a stream does at its start, once nothing is found changed."""
        drop_untold(self.store, "checkpoint", self.told)
        self.kept = KeptState(self.retained)


def snapshots(folder: Path) -> list[int]:
    return [int(file.stem) for file in folder.glob("*.snapshot")]


def _kind(name: str) -> str:
    number, _, kind = name.partition(".")
    return f"{kind} {number}"


def files_of(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("retained", [1, 2, 5, 40, 100])
def test_nothing_is_named_where_nothing_was_changed(tmp_path: Path, retained: int) -> None:
    """Whenever Spark writes snapshots and deletes files, and whenever a stream starts again."""
    rng = np.random.default_rng(retained)
    keeper = Keeper(tmp_path, retained, rng)
    for number in range(90):
        keeper.batch(busy=(0.02, 0.3, 1.0)[number % 3])
        assert not keeper.changed()
        for partition in range(PARTITIONS):
            assert keeper.reads(partition, keeper.version)
        if rng.random() < 0.2:
            keeper.start()
            assert not keeper.changed()
            for partition in range(PARTITIONS):
                assert keeper.reads(partition, keeper.version)
                assert keeper.reads(partition, keeper.version - 1)
    told = keeper.told["0"]
    assert min(told["bases"]) > keeper.version - max(40, retained)
    assert COMMIT.optional["offsets"].fault(
        {"plan": "", "files": {}, "state": keeper.told}, "it"
    ) is None  # fmt: skip


def test_a_batch_that_runs_again_is_told_of_anew(tmp_path: Path) -> None:
    """Spark writes other bytes: as long as it will do so they are not looked at."""
    keeper = Keeper(tmp_path, 100, np.random.default_rng(1))
    for _ in range(5):
        keeper.batch()
    keeper.run()
    assert keeper.changed()
    assert not keeper.changed(done=False)
    keeper.start()
    keeper.told = keeper.kept.after(keeper.store, "checkpoint", 4, keeper.told)
    assert not keeper.changed()
    keeper.batch()
    assert not keeper.changed()


def test_files_that_spark_deleted_are_not_asked_for(tmp_path: Path) -> None:
    """Of an older version, as its checkpoint is copied for a rollback."""
    keeper = Keeper(tmp_path, 3, np.random.default_rng(1))
    for _ in range(6):
        keeper.batch(busy=0)
    told = keeper.told
    assert with_all_files(keeper.store, "checkpoint", told) == told
    for _ in range(20):
        keeper.batch(busy=1)
    assert with_all_files(keeper.store, "checkpoint", told) == {}
    assert with_all_files(keeper.store, "checkpoint", keeper.told) == keeper.told


def test_no_state_and_other_stores_are_not_told_of(tmp_path: Path) -> None:
    kept = KeptState()
    assert kept.after(ObjectStore(str(tmp_path)), "checkpoint", 0, {}) == {}
    # RocksDB
    folder = tmp_path / "checkpoint/state/0/0"
    folder.mkdir(parents=True)
    (folder / "1.zip").write_bytes(b"")
    for told_by in (KeptState(), kept):
        assert told_by.after(ObjectStore(str(tmp_path)), "checkpoint", 0, {}) == {}


def change(keeper: Keeper, other: dict[Path, bytes], rng: np.random.Generator) -> str:
    """Change a file of a partition, or exchange two; says what was done."""
    files = files_of(keeper.top)
    names = sorted(files)
    name = names[rng.integers(len(names))]
    kind = ["flip", "cut", "delete", "copy", "copy", "swap", "add"][rng.integers(7)]
    alike = [f for f in names if f.suffix == name.suffix]
    twin = alike[rng.integers(len(alike))]
    if kind == "flip":
        data = bytearray(files[name])
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        name.write_bytes(bytes(data))
    elif kind == "cut":
        name.write_bytes(files[name][: rng.integers(len(files[name]))])
    elif kind == "delete":
        name.unlink()
    elif kind == "copy":
        # with its sums or without, from this path or another
        name.write_bytes(files[twin] if rng.random() < 0.6 else [*other.values()][len(files) % 7])
    elif kind == "swap":
        name.write_bytes(files[twin])
        twin.write_bytes(files[name])
    else:
        number = rng.integers(1, keeper.version + 3)
        name = name.with_name(f"{number}.{['snapshot', 'delta'][rng.integers(2)]}")
        name.write_bytes(files[twin])
    return f"{kind} {name.relative_to(keeper.top)} {twin.relative_to(keeper.top)}"


@pytest.mark.parametrize(
    ("seed", "changes"),
    [(0, 30), (1, 30), (2, 30), *(pytest.param(s, 500, marks=pytest.mark.nightly) for s in (3, 4))],
)
def test_no_change_is_read_unnoticed(tmp_path: Path, seed: int, changes: int) -> None:
    """It is named, or Spark reads what it kept."""
    rng = np.random.default_rng(seed)
    made = [Keeper(tmp_path / name, (100, 20, 4)[seed % 3], rng) for name in ("one", "other")]
    for keeper in made:
        for _ in range(40):
            keeper.batch(busy=0.1)
    keeper, whole = made[0], files_of(made[0].top)
    other = files_of(made[1].top)
    named = 0
    for _ in range(changes):
        told = change(keeper, other, rng)
        done = bool(rng.random() < 0.7)
        if keeper.changed(done):
            named += 1
        else:
            keeper.start()
            for partition in range(PARTITIONS):
                assert keeper.reads(partition, keeper.version - (not done)), told
        for path in files_of(keeper.top).keys() - whole.keys():
            path.unlink()
        for path, payload in whole.items():
            if not path.exists() or path.read_bytes() != payload:
                path.write_bytes(payload)
    assert named
