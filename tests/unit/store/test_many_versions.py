"""Thousands of versions: what is done with them reads no more of them than it has to."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from writing import Writer

from sparkml_sgdals.store import version_store
from sparkml_sgdals.store.commit import Commit
from sparkml_sgdals.store.described import COMMIT
from sparkml_sgdals.store.maintenance import drop_old_checkpoints, list_versions
from sparkml_sgdals.store.shapes import parse_json
from sparkml_sgdals.store.version_store import VersionStore


class Counted(VersionStore):
    """A store that counts which objects are read."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.reads: Counter[str] = Counter()

    def read(self, name: str) -> bytes | None:
        self.reads[name.partition("/")[0]] += 1
        return super().read(name)


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Counted:
    """A path of 120 versions, a base at least every 51."""
    monkeypatch.setattr(version_store, "MAX_DELTAS", 50)
    writer = Writer(tmp_path / "model")
    for _ in range(119):
        writer.learn()
    return Counted(str(writer.path))


def test_cleaning_at_a_start_reads_a_few_commits(many: Counted) -> None:
    Path(many.path, "checkpoint").mkdir()
    drop_old_checkpoints(many)
    assert many.reads["commits"] == 0
    for number in (3, 77):
        Path(many.path, f"checkpoint-{number:012d}").mkdir()
    drop_old_checkpoints(many)
    assert many.reads["commits"] <= 3
    assert [p.name for p in Path(many.path).glob("checkpoint*")] == ["checkpoint"]


def test_letting_old_ones_go_reads_a_few_commits(many: Counted) -> None:
    many.prune(60)
    assert many.reads["commits"] <= 3
    assert many.numbers() == list(range(51, 120))
    files = {name[:12] for name in many.names("files")}
    assert files == {f"{number:012d}" for number in range(51, 120)}


def test_a_load_reads_from_the_base_on(many: Counted) -> None:
    _, commit = many.load()
    assert commit.base == 102
    assert many.reads["commits"] == 1 + 17
    assert many.reads["files"] == 2 * 18


def test_a_list_reads_each_commit_once(many: Counted) -> None:
    assert list_versions(many, verify=False).loadable.all()
    assert many.reads["commits"] == 120
    assert many.reads["files"] == 0


def test_a_list_is_the_same_where_threads_read_it(many: Counted) -> None:
    Path(many.path, "commits", f"{70:012d}.json").write_bytes(b"{")
    next(Path(many.path, "files").glob(f"{20:012d}-*users*")).unlink()
    next(Path(many.path, "files").glob(f"{110:012d}-*items*")).write_bytes(b"other")
    for verify in (False, True):
        in_turn = list_versions(many, verify)
        # as an object store is read, by pyarrow
        many.local = False
        pd.testing.assert_frame_equal(list_versions(many, verify), in_turn)
        many.local = True
    assert in_turn.loadable.sum() == 20 + 19 + (110 - 102)


@given(st.lists(st.sampled_from(["learn", "base", "rollback", "broken", "prune"]), max_size=14))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_a_checkpoint_stays_while_a_version_goes_with_it(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    """After any history: what is deleted is what no commit names, and nothing else."""
    writer = Writer(tmp_path_factory.mktemp("path") / "model")
    (writer.path / "checkpoint").mkdir()
    store = writer.store
    for step in steps:
        following = f"checkpoint-{writer.commit.version + 1:012d}"
        if step in ("rollback", "broken"):
            # a rollback makes its checkpoint first
            (writer.path / following).mkdir(exist_ok=True)
        if step == "rollback":
            before = store.read_commit(store.numbers()[0])
            writer.commit = store.commit(
                writer.state, None, -1, writer.commit, None, restored=before, checkpoint=following
            )
            writer.fingerprints.append(writer.state.fingerprint())
        elif step in ("learn", "base"):
            writer.learn(step == "base")
        elif step == "prune":
            store.prune(2)
    commits = [store.read_commit(number) for number in store.numbers()]
    used = {commit.checkpoint for commit in commits if commit is not None}
    there = {path.name for path in writer.path.glob("checkpoint*")}
    drop_old_checkpoints(store)
    left = {path.name for path in writer.path.glob("checkpoint*")}
    assert left == (there if len(there) == 1 else there & used)


def test_a_commit_that_was_read_has_the_digest_that_it_had(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "model")
    for _ in range(3):
        writer.learn()
    commit = writer.commit
    read = writer.store.read_commit(3)
    assert read == commit
    assert read.digest == commit.digest
    assert Commit.from_bytes(read.to_bytes(), "here").digest == commit.digest
    assert read.to_bytes() == commit.to_bytes()
    # a changed copy has its own
    other = replace(read, batch=77)
    assert other.digest == replace(commit, batch=77).digest != commit.digest
    for twin in (copy.copy(read), copy.deepcopy(read), pickle.loads(pickle.dumps(read))):
        assert (twin, twin.digest) == (read, read.digest)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_what_does_not_fit_is_told(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """The quick look and the one that names a fault agree."""
    folder = tmp_path_factory.getbasetemp() / "told"
    if not folder.exists():
        writer = Writer(folder)
        writer.learn()
    (file,) = folder.glob("commits/*1.json")
    values = parse_json(parse_json(file.read_bytes())["commit"])
    assert COMMIT.fits(values)
    place = values
    while True:
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(list(keys)))
        if place[key] and isinstance(place[key], dict | list) and data.draw(st.booleans()):
            place = place[key]
            continue
        break
    if data.draw(st.booleans()):
        place[key] = data.draw(JSON)
    elif isinstance(place, dict) and data.draw(st.booleans()):
        place[data.draw(st.text(max_size=8))] = data.draw(JSON)
    else:
        del place[key]
    assert COMMIT.fits(values) == (COMMIT.fault(values, "it") is None)
