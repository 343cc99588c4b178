"""Whatever is changed of a model path, no reader gives another model: it is named, or no matter.

A change flips a bit of a file, cuts it off, deletes it, puts another file of the path (or of a path
of the same batches but one) over it, or exchanges the two.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from building import ratings_of, settings_of
from writing import plan

from sparkml_sgdals.errors import StorageError
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.state.model_state import SETTLING_RATINGS, ModelState, Scale
from sparkml_sgdals.store import overlay
from sparkml_sgdals.store.checkpoint.agreement import check_checkpoint, end_of_batch, reading
from sparkml_sgdals.store.checkpoint.file_log import FileLog
from sparkml_sgdals.store.checkpoint.kept_state import KeptState
from sparkml_sgdals.store.commit import Commit
from sparkml_sgdals.store.maintenance import list_versions
from sparkml_sgdals.store.overlay import Overlay
from sparkml_sgdals.store.version_store import VersionStore

pytestmark = pytest.mark.usefixtures("first_version")

BATCHES = 8
SNAPSHOT = 5
"""version that Spark has a snapshot of, in one partition of two"""
KINDS = ["rows", pytest.param("int", marks=pytest.mark.long), "str"]


class Made:
    """A model path of some batches: whole, or larger than memory with ids of a kind."""

    def __init__(self, root: Path, kind: str, twist: float) -> None:
        self.kind, self.root, settings = kind, root, settings_of(rank=2)
        store = VersionStore(str(root))
        ids = "str" if kind == "str" else "int"
        state = ModelState.empty(settings, ids, ids)
        state.scale = Scale(2.5, 1.2, 1000.0, 1440.0, SETTLING_RATINGS, True)
        self.path_id = f"path {kind}"
        meta = {"settings": settings.to_json(), "kinds": [ids, ids], "pathId": self.path_id}
        commit = store.create(state, meta)
        self.fingerprints = [state.fingerprint()]
        check_checkpoint(store, commit, self.path_id)
        part = None if kind == "rows" else Overlay(store, commit, 20)
        # looks for snapshots after each batch
        kept = KeptState(retained=2)
        for number in range(BATCHES):
            plan(root, number)
            keep(root, number + 1, twist)
            named = [f"é{n}" if ids == "str" else n for n in range(number, number + 9)]
            values = [1.0 + (n * n + number * twist) % 5 for n in range(9)]
            batch = ratings_of(named, named[::-1], values)
            whole = learn_batch(state, batch)
            report = whole
            if part is not None:
                part.fetch(batch.user_ids, batch.item_ids)
                report = learn_batch(part.state, batch)
            rows = (report.user_rows, report.item_rows)
            commit = store.commit(
                state if part is None else part.state,
                None if part is None and number % 5 == 4 else rows,
                number,
                commit,
                {"batch": number, "rmse": float(number)},
                onto=None if part is None else part.onto(report.new_users, report.new_items),
                offsets=reading(store, "checkpoint", number, commit.offsets, kept),
            )
            if part is not None:
                part.committed(commit, rows)
            self.fingerprints.append(state.fingerprint())
        if part is not None:
            assert commit.runs is not None
            part.stop()
        self.metrics = store.metrics()
        table = list_versions(store, True)
        self.loadable = set(table.version[table.loadable.astype(bool)])
        self.ids = state.users.index.ids(), state.items.index.ids()
        self.files = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())


@pytest.fixture(scope="module", params=KINDS)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Made, Made]]:
    """A path, and one that differs in its ratings alone."""
    folder = tmp_path_factory.mktemp("damage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        # every compaction ends at once
        patch.setattr(overlay, "_FULL", 4)
        paths = [Made(folder / name, request.param, twist) for name, twist in
                 (("one", 1.0), ("other", 2.0))]  # fmt: skip
        yield paths[0], paths[1]


def keep(root: Path, version: int, twist: float) -> None:
    """Write what Spark keeps after a batch."""
    for partition in ("0", "1"):
        folder = root / "checkpoint/state/0" / partition
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{version}.delta").write_text(f"{partition} {version} {twist}")
    if version == SNAPSHOT:
        (folder / f"{version}.snapshot").write_text(f"all of {partition} {version} {twist}")


def kept(root: Path) -> list[bytes]:
    """What Spark reads of that."""
    top = root / "checkpoint/state/0"
    names = [f"0/{version}.delta" for version in range(1, BATCHES + 1)]
    names += [f"1/{SNAPSHOT}.snapshot"]
    names += [f"1/{version}.delta" for version in range(SNAPSHOT + 1, BATCHES + 1)]
    return [(top / name).read_bytes() for name in names]


def change(root: Path, path: Made, other: Made, rng: np.random.Generator) -> tuple[str, Path]:
    """Make one change under `root`, a copy of the path; what it was, and of which file."""
    name = path.files[rng.integers(len(path.files))]
    file = root / name
    kind = ["flip", "flip", "flip", "cut", "delete", "copy", "copy", "swap"][rng.integers(8)]
    if kind == "flip" and file.stat().st_size:
        data = bytearray(file.read_bytes())
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        file.write_bytes(bytes(data))
    elif kind == "cut" and file.stat().st_size:
        file.write_bytes(file.read_bytes()[: rng.integers(file.stat().st_size)])
    elif kind in ("copy", "swap"):
        # files that are of the same kind are the ones that are taken for each other
        alike = [f for f in path.files if f.parent == name.parent and f.suffix == name.suffix]
        twin = alike[rng.integers(len(alike))]
        if kind == "copy" and rng.random() < 0.5:
            pool = [f for f in other.files if f.parent == name.parent and f.suffix == name.suffix]
            file.write_bytes((other.root / pool[rng.integers(len(pool))]).read_bytes())
        elif kind == "copy":
            file.write_bytes((path.root / twin).read_bytes())
        else:
            file.write_bytes((path.root / twin).read_bytes())
            (root / twin).write_bytes((path.root / name).read_bytes())
    else:
        file.unlink()
    return kind, name


def named(read: Callable[[], object]) -> bool:
    """Whether a reader raises what says what is wrong; any other error comes through."""
    try:
        read()
    except StorageError:
        return True
    return False


def look(root: Path, path: Made) -> bool:
    """Read all that can be read; whether something was named."""
    store = VersionStore(str(root))
    newest_name = root / "commits" / f"{BATCHES:012d}.json"
    payload = newest_name.read_bytes() if newest_name.exists() else None
    # one that is not there, or broken off, never was: the batch comes again
    gone = payload is None or (
        Commit.broken_off(payload) and Commit.from_bytes(payload, "") is None
    )
    found = []

    def newest() -> None:
        state, commit = store.load()
        assert commit.version == BATCHES - gone
        assert state.fingerprint() == path.fingerprints[commit.version]

    def history() -> None:
        told = store.metrics()
        assert told == path.metrics[: len(told)]
        assert len(told) == BATCHES - gone

    def checkpoint() -> None:
        commit = store.newest()
        assert commit is not None
        check_checkpoint(store, commit, path.path_id)
        done = (root / "checkpoint/commits" / str(commit.batch)).exists()
        assert commit.version < BATCHES or not done or kept(root) == kept(path.root)
        # where Spark reads on, and what it takes for read
        end = end_of_batch(store, "checkpoint", commit.batch)
        whole = VersionStore(str(path.root))
        assert end == end_of_batch(whole, "checkpoint", commit.batch)
        logs = [FileLog.read(s, "checkpoint/sources/0") for s in (store, whole)]
        assert logs[0] is not None
        assert logs[1] is not None
        assert logs[0].digest_until(commit.batch) == logs[1].digest_until(commit.batch)

    def part() -> None:
        commit = store.newest()
        assert commit is not None
        opened = Overlay(store, commit, 20)
        opened.fetch(*path.ids)
        assert opened.state.fingerprint() == path.fingerprints[commit.version]

    readers: list[Callable[[], None]] = [newest, history, checkpoint]
    if path.kind != "rows":
        readers.append(part)
    for read in readers:
        found.append(named(read))
    for version in range(BATCHES + 1):

        def by_number(version: int = version) -> None:
            state, _ = store.load(version)
            assert state.fingerprint() == path.fingerprints[version]

        found.append(named(by_number) and version in path.loadable)
    listed: list[int] = []

    def listing() -> None:
        table = list_versions(store, True)
        listed.extend(table.version[table.loadable.astype(bool)])

    found.append(named(listing))
    for version in listed:
        state, _ = store.load(version)
        assert state.fingerprint() == path.fingerprints[version]
    return any(found)


def try_changes(made: tuple[Made, Made], tmp_path: Path, seeds: range) -> dict[str, int]:
    """How many changes were named, and how many had no effect."""
    path, other = made
    told = {"named": 0, "without effect": 0}
    for seed in seeds:
        root = tmp_path / "changed"
        shutil.copytree(path.root, root)
        what = change(root, path, other, np.random.default_rng(seed))
        try:
            told["named" if look(root, path) else "without effect"] += 1
        except BaseException as failure:
            failure.add_note(f"seed {seed}: {what[0]} of {what[1]}")
            raise
        shutil.rmtree(root)
    return told


def test_a_path_that_is_not_changed_names_nothing(made: tuple[Made, Made]) -> None:
    assert not look(made[0].root, made[0])


def test_no_change_gives_another_model(made: tuple[Made, Made], tmp_path: Path) -> None:
    told = try_changes(made, tmp_path, range(12))
    assert told["named"] > 3


@pytest.mark.parametrize(
    "seeds",
    [
        pytest.param(range(100, 220), marks=pytest.mark.nightly),
        # some minutes a kind
        pytest.param(range(1000, 2700), marks=[pytest.mark.slow, pytest.mark.timeout(3000)]),
    ],
    ids=len,
)
def test_no_change_of_many_gives_another_model(
    made: tuple[Made, Made], tmp_path: Path, seeds: range
) -> None:
    told = try_changes(made, tmp_path, seeds)
    print(made[0].kind, told)
    assert told["named"] > len(seeds) // 4
