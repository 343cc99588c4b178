"""Versions on a real disk: what was committed loads, what is damaged says so."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from building import ratings_of, seen_state, settings_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from writing import META, Writer, store_of

from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.store.commit import FORMAT_VERSION, Commit
from sparkml_sgdals.store.version_store import StorageError, VersionStore, spark_path

pytestmark = pytest.mark.usefixtures("first_version")

FILE = {"name": "files/some.parquet", "rows": 0, "bytes": 9, "sha256": "ab" * 32}
SCALARS = ModelState.empty(settings_of(rank=2), "int", "str").scalars()


def a_commit(version: int = 3, **fields: Any) -> Commit:
    """A commit object's content; what is not given is as of an empty model."""
    known: dict[str, Any] = {
        "batch": version - 1, "base": 0, "files": {"users": FILE, "items": FILE},
        "scalars": SCALARS, "metrics": None, "committed": "2024-01-01T00:00:00.000+00:00",
        "delta_rows": 0, "ids": [0, 0], "checkpoint": "checkpoint", "restored": None, "runs": None,
    }  # fmt: skip
    return Commit(version=version, **known | fields)


@pytest.fixture(params=["settling", "settled"])
def writer(tmp_path: Path, request: pytest.FixtureRequest) -> Writer:
    """A store with version 0, the scale moving with every batch or frozen."""
    return Writer(tmp_path / "model", request.param == "settled")


@pytest.fixture
def versions(writer: Writer) -> Writer:
    """A store with the versions 0 to 6, 0 and 4 being bases."""
    for number in range(1, 7):
        writer.learn(base=number == 4)
    return writer


def test_every_version_loads(versions: Writer) -> None:
    """A base and the deltas since give each state to the bit."""
    for version in range(7):
        versions.assert_loads(version)
    state, commit = versions.store.load()
    assert commit == versions.store.newest() == versions.commit
    assert state.fingerprint() == versions.fingerprints[6]
    assert [versions.store.read_commit(n).base for n in range(7)] == [0, 0, 0, 0, 4, 4, 4]
    assert versions.store.numbers() == list(range(7))
    assert state.settings == settings_of(rank=2)


def test_a_loaded_model_learns_on(versions: Writer) -> None:
    """Loaded or kept in memory, the next batch gives the same state."""
    state, _ = versions.store.load()
    batch = ratings_of([1, 99], ["a", "new"], [5.0, 1.0])
    learn_batch(state, batch)
    learn_batch(versions.state, batch)
    assert state.fingerprint() == versions.state.fingerprint()


def test_deltas_hold_the_rows_of_their_batch(tmp_path: Path) -> None:
    """With a scale that has settled, a small batch writes a few rows and not the model."""
    versions = Writer(tmp_path)
    for number in range(1, 7):
        versions.learn(base=number == 4)
    commit = versions.store.read_commit(6)
    assert (commit.files["users"]["rows"], commit.files["items"]["rows"]) == (2, 2)
    assert commit.delta_rows == 8
    assert versions.store.read_commit(4).delta_rows == 0
    assert versions.store.read_commit(4).files["users"]["rows"] == 4


def test_metrics_are_complete(versions: Writer) -> None:
    """Every batch from the first, in order, across a base."""
    assert versions.store.metrics() == versions.metrics
    assert [row["version"] for row in versions.metrics] == [1, 2, 3, 4, 5, 6]
    assert versions.metrics[0]["rmse"] is None
    assert isinstance(versions.metrics[-1]["rmse"], float)


def test_nothing_there(tmp_path: Path) -> None:
    """An empty path has no meta, no version and no metrics; loading says that it is empty."""
    store = VersionStore(str(tmp_path / "none"))
    assert store.meta() is None
    assert store.newest() is None
    assert store.read_commit(0) is None
    assert store.metrics() == []
    assert store.numbers() == []
    with pytest.raises(StorageError, match=r"does not hold a version of a model \(kept: none\)"):
        store.load()
    store.prune(1)
    assert not (tmp_path / "none").exists()


def test_a_version_that_is_not_there(versions: Writer) -> None:
    """The message names the versions that are."""
    with pytest.raises(StorageError, match=r"version 9 .*kept: 0, 1, 2, 3, 4, 5, 6"):
        versions.store.load(9)


def test_enough_deltas_become_a_base(tmp_path: Path) -> None:
    """Where the rows written since the base outgrow the model, all of it is written."""
    store = VersionStore(str(tmp_path / "model"))
    state = ModelState.empty(settings_of(rank=0), "int", "str")
    commit = store.create(state, META | {"settings": settings_of(rank=0).to_json()})
    rows, _ = state.users.ensure(pa.array(np.arange(9_000)))
    bases = []
    for batch in range(6):
        state.users.mean[0, 0] = batch
        changed = rows, np.empty(0, np.int64)
        commit = store.commit(state, changed, batch, commit, {"batch": batch})
        bases.append(commit.base)
        assert store.load()[0].fingerprint() == state.fingerprint()
    # 9,000 and 18,000 rows lie beside the base, 27,000 would be too many
    assert bases == [0, 0, 3, 3, 3, 6]
    assert [row["batch"] for row in store.metrics()] == list(range(6))


# ---- commits that are not whole -------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
def test_a_broken_off_commit_does_not_count(versions: Writer, keep: float) -> None:
    """The version before it is the newest, and the next commit takes its number."""
    path = versions.commit_path(6)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    newest = versions.store.newest()
    assert newest.version == 5
    assert versions.store.load()[0].fingerprint() == versions.fingerprints[5]
    assert versions.store.metrics() == versions.metrics[:5]
    # the batch is learned again from the version before
    versions.state, versions.commit = versions.store.load()
    del versions.fingerprints[6], versions.metrics[5]
    versions.learn()
    assert versions.commit.version == 6
    assert versions.store.newest() == versions.commit
    versions.assert_loads(6)
    assert versions.store.metrics() == versions.metrics


def test_a_replayed_batch_gives_the_same_bits(versions: Writer) -> None:
    """Learned again from the version before, a version has the fingerprint that it had."""
    before = versions.fingerprints.pop()
    versions.metrics.pop()
    versions.commit_path(6).write_bytes(b"{")
    versions.state, versions.commit = versions.store.load()
    versions.learn()
    assert versions.fingerprints[6] == before


def test_only_the_first_commit_broken_off(writer: Writer) -> None:
    """A path whose only commit is not whole holds no version."""
    writer.commit_path(0).write_bytes(b"")
    assert writer.store.newest() is None
    with pytest.raises(StorageError, match="does not hold a version"):
        writer.store.load()


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b"nonsense", b"\xff\xfe\x00"])
def test_a_damaged_commit_before_the_last(versions: Writer, damage: bytes) -> None:
    """Versions that build on it say which commit is damaged; the others load."""
    versions.commit_path(2).write_bytes(damage)
    for version in (0, 1, 4, 5, 6):
        versions.assert_loads(version)
    with pytest.raises(StorageError, match=r"Version 3 .* needs commit 2, .* damaged"):
        versions.store.load(3)
    with pytest.raises(StorageError, match="does not hold version 2"):
        versions.store.load(2)


def test_two_damaged_commits_at_the_end(versions: Writer) -> None:
    """One may have been broken off, two are damage; older versions load by number."""
    for version in (5, 6):
        versions.commit_path(version).write_bytes(b"{")
    with pytest.raises(StorageError, match=r"commits/0+5.json is damaged.*rollback"):
        versions.store.load()
    versions.assert_loads(4)


def test_a_missing_commit_between(versions: Writer) -> None:
    """A deleted commit object is missed by those that build on it."""
    versions.commit_path(5).unlink()
    with pytest.raises(StorageError, match="needs commit 5"):
        versions.store.load()
    with pytest.raises(StorageError, match="commit 5, which is missing"):
        versions.store.metrics()
    versions.assert_loads(4)


def test_no_flipped_bit_of_a_commit_goes_unseen() -> None:
    """A flipped bit gives no commit, or the very same one; never another and no other error."""
    commit = a_commit(
        files={side: FILE | {"name": f"files/some-{side}"} for side in ("users", "items")},
        scalars=SCALARS | {"noise": 1 / 3}, metrics={"é": None}, delta_rows=5,
    )  # fmt: skip
    payload = commit.to_bytes()
    assert Commit.from_bytes(payload, "here") == commit
    format_digit = payload.index(b"3")
    for place in range(len(payload)):
        for bit in range(8):
            damaged = bytearray(payload)
            damaged[place] ^= 1 << bit
            if place == format_digit and damaged[place] in b"0123456789":
                with pytest.raises(StorageError, match="The commit here has format"):
                    Commit.from_bytes(bytes(damaged), "here")
            else:
                assert Commit.from_bytes(bytes(damaged), "here") in (None, commit)


@pytest.mark.parametrize("name", ["format", "sha256", "commit"])
def test_a_commit_without_a_field_is_not_whole(name: str) -> None:
    """A damaged name is damage too."""
    outer = json.loads(a_commit().to_bytes())
    outer[name.upper()] = outer.pop(name)
    assert Commit.from_bytes(json.dumps(outer).encode(), "here") is None


@given(st.integers(0, 400))
def test_no_beginning_of_a_commit_is_whole(length: int) -> None:
    """However a write breaks off, what is there does not count."""
    payload = a_commit(7, metrics={"batch": 6}).to_bytes()
    if length < len(payload):
        assert Commit.from_bytes(payload[:length], "here") is None


def test_commits_are_strict_json() -> None:
    """NaN is no JSON: other readers would fail on it."""
    with pytest.raises(ValueError, match="JSON"):
        a_commit(scalars=SCALARS | {"noise": float("nan")}).to_bytes()


# ---- damaged files --------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["users", "items"])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.7, 0.999])
def test_a_flipped_bit_of_a_file(versions: Writer, side: str, place: float) -> None:
    """Versions that need the file say that it is damaged and how to go back; others load."""
    name = versions.store.read_commit(2).files[side]["name"]
    path = versions.path / name
    payload = bytearray(path.read_bytes())
    payload[int(place * len(payload))] ^= 1
    path.write_bytes(payload)
    for version in (2, 3):
        with pytest.raises(StorageError, match=r"damaged: its checksum .* version=n") as raised:
            versions.store.load(version)
        assert name in str(raised.value)
    for version in (0, 1, 4, 5, 6):
        versions.assert_loads(version)


def test_a_missing_file(versions: Writer) -> None:
    """A file that was deleted by hand is named."""
    name = versions.store.read_commit(6).files["users"]["name"]
    (versions.path / name).unlink()
    with pytest.raises(StorageError, match=rf"{name} is missing"):
        versions.store.load()
    versions.assert_loads(5)


def test_a_damaged_history(versions: Writer) -> None:
    """The metrics kept with a base are checked as well; the model does not need them."""
    path = versions.path / versions.store.read_commit(4).files["metrics"]["name"]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(StorageError, match="damaged"):
        versions.store.metrics()
    versions.assert_loads(6)


@pytest.mark.parametrize("damage", [b"", b"[1]", b"{}", b"\xff", b'{"format": "new"}'])
def test_damaged_meta(versions: Writer, damage: bytes) -> None:
    """model.json that cannot be read is an error that says what to do."""
    (versions.path / "model.json").write_bytes(damage)
    with pytest.raises(StorageError, match=r"model\.json is damaged .* restore it"):
        versions.store.meta()
    with pytest.raises(StorageError, match=r"model\.json is damaged"):
        versions.store.load()


def test_newer_format_of_a_model(versions: Writer) -> None:
    """A path of a newer release asks for an upgrade."""
    path = versions.path / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": FORMAT_VERSION + 1}))
    with pytest.raises(StorageError, match=f"format {FORMAT_VERSION + 1}.*upgrade"):
        versions.store.load()


def test_newer_format_of_a_commit(versions: Writer) -> None:
    """So does a commit: it is not overwritten as if it were broken off."""
    path = versions.commit_path(6)
    outer = json.loads(path.read_text()) | {"format": FORMAT_VERSION + 1}
    path.write_text(json.dumps(outer))
    with pytest.raises(StorageError, match=f"format {FORMAT_VERSION + 1}.*upgrade"):
        versions.store.newest()
    versions.assert_loads(5)


def test_meta_round_trip(writer: Writer) -> None:
    """What create was given, and the format."""
    meta = writer.store.meta()
    assert meta is not None
    assert meta == META | {"format": FORMAT_VERSION, "sha256": meta["sha256"]}


# ---- prune ----------------------------------------------------------------------------------


def files_of(path: Path) -> set[str]:
    """Names of all factor files."""
    return set(os.listdir(path / "files"))


@pytest.mark.parametrize("keep", [1, 2, 3, 4, 6, 7, 100])
def test_prune_keeps_the_last(versions: Writer, keep: int) -> None:
    """The last `keep` versions load, what only older ones need goes, no metrics are lost."""
    versions.store.prune(keep)
    for version in range(max(0, 7 - keep), 7):
        versions.assert_loads(version)
    # the oldest kept stands on a base, which stays with all since
    first = 4 if 7 - keep >= 4 else 0
    assert versions.store.numbers() == list(range(first, 7))
    named = {
        os.path.basename(file["name"])
        for number in versions.store.numbers()
        for commit in [versions.store.read_commit(number)]
        for file in [*commit.files.values(), *commit.run_files()]
    }
    assert files_of(versions.path) == named
    assert versions.store.metrics() == versions.metrics
    assert versions.store.load()[0].fingerprint() == versions.fingerprints[6]


@pytest.mark.parametrize("settled", [False, True])
@given(
    bases=st.lists(st.booleans(), max_size=12),
    keep=st.integers(1, 5),
    every=st.integers(1, 5),
)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_prune_in_turns_with_commits(
    tmp_path_factory: pytest.TempPathFactory,
    settled: bool,
    bases: list[bool],
    keep: int,
    every: int,
) -> None:
    """However bases fall, the last versions load and the metrics are complete."""
    writer = Writer(tmp_path_factory.mktemp("store") / "model", settled)
    for number, base in enumerate(bases, 1):
        writer.learn(base)
        if number % every == 0:
            writer.store.prune(keep)
        last = len(writer.fingerprints) - 1
        for version in range(max(0, last - keep + 1), last + 1):
            writer.assert_loads(version)
        assert writer.store.metrics() == writer.metrics


# ---- paths and objects ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/a/b", "file:/a/b"),
        ("/a/b/", "file:/a/b"),
        ("a b/ü", f"file:{os.getcwd()}/a b/ü"),
        ("file:/a/b", "file:/a/b"),
        ("file:///a/b", "file:///a/b"),
        ("s3a://bucket/key", "s3a://bucket/key"),
        ("s3://bucket/key", "s3a://bucket/key"),
        ("hdfs://host:9000/a", "hdfs://host:9000/a"),
    ],
)
def test_spark_path(path: str, expected: str) -> None:
    """Without a scheme it is local, whatever Spark's default file system is."""
    assert spark_path(path) == expected


@pytest.mark.parametrize("form", ["{}", "file:{}", "file://{}", "{}/", "{}/../{name}"])
def test_forms_of_a_local_path(versions: Writer, form: str) -> None:
    """Each names the same model."""
    store = VersionStore(form.format(versions.path, name=versions.path.name))
    assert store.newest() == versions.commit
    assert store.load()[0].fingerprint() == versions.fingerprints[6]


def test_a_relative_path(versions: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken once, from where the process stands then."""
    monkeypatch.chdir(versions.path.parent)
    store = VersionStore(versions.path.name)
    monkeypatch.chdir(tmp_path.parent)
    assert store.newest() == versions.commit


@pytest.mark.parametrize("name", ["with blank", "ünï", "per%20cent", "a#b?c"])
def test_odd_names_of_folders(tmp_path: Path, name: str) -> None:
    """A path and its file: form mean the same folder."""
    writer = Writer(tmp_path / name)
    writer.learn()
    for path in (str(tmp_path / name), spark_path(str(tmp_path / name))):
        assert VersionStore(path).load()[0].fingerprint() == writer.fingerprints[1]
    assert os.listdir(tmp_path) == [name]


def test_objects(tmp_path: Path) -> None:
    """Write makes folders, overwrites; delete does not mind; names are sorted."""
    store = VersionStore(str(tmp_path))
    assert store.read("a/b") is None
    assert store.names("a") == []
    store.write("a/c", b"1")
    store.write("a/b", b"22")
    store.write("a/c", b"")
    assert store.read("a/b") == b"22"
    assert store.read("a/c") == b""
    assert store.names("a") == ["b", "c"]
    store.delete("a/c")
    store.delete("a/c")
    assert store.names("a") == ["b"]


def test_tables(tmp_path: Path) -> None:
    """A Parquet object says its rows, size and checksum."""
    store = VersionStore(str(tmp_path))
    assert store.read_table("t.parquet") is None
    table = pa.table({"x": pa.array([1, None], pa.int64()), "y": ["a", "b"]})
    file = store.write_table("t.parquet", table)
    payload = (tmp_path / "t.parquet").read_bytes()
    assert file == {
        "name": "t.parquet",
        "rows": 2,
        "bytes": len(payload),
        "sha256": hashlib.sha256(payload).hexdigest(),
    }
    assert store.read_table("t.parquet").equals(table)


@pytest.mark.parametrize("solver", ["bayes", "sgd"])
def test_a_fitted_model_is_stored_to_the_bit(tmp_path: Path, solver: Any) -> None:
    """Also one without variances, created whole as version 0."""
    params = settings_of(solver=solver, rank=3, regs=(0.1, 0.2, 0.3, 0.4))
    state = seen_state(params)
    store = VersionStore(str(tmp_path))
    commit = store.create(state, {"settings": params.to_json(), "kinds": ["int", "int"]})
    assert (commit.version, commit.batch, commit.base) == (0, -1, 0)
    back, found = store.load()
    assert found == commit
    assert back.fingerprint() == state.fingerprint()
    assert back.settings == params
    assert dataclasses.asdict(back.scale) == dataclasses.asdict(state.scale)


@pytest.mark.parametrize("path", ["hdfs:/models/x", "dbfs:/models/x"])
def test_a_uri_of_one_slash_is_refused(path: str) -> None:
    """It would otherwise be a local folder of that name."""
    with pytest.raises(ValueError, match="two slashes"):
        VersionStore(path)


def test_a_commit_is_put_over_nothing_but_a_broken_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the put was refused and nothing is there by now, it is asked for again."""
    store = store_of(VersionStore)
    commit = a_commit()
    there: list[bytes | None] = [None, b"{"]
    refused: list[bytes] = []
    written: list[bytes] = []
    monkeypatch.setattr(store, "put_new", lambda *given: bool(refused.append(given[1])))
    monkeypatch.setattr(store, "read", lambda name: there.pop(0))
    monkeypatch.setattr(store, "replace", lambda name, payload: written.append(payload))
    store.put_commit(commit, new=True)
    assert (len(refused), len(written)) == (2, 1)
    there[:] = [commit.to_bytes()]
    with pytest.raises(StorageError, match="has a version 3 already"):
        store.put_commit(commit, new=True)
    assert len(written) == 1
