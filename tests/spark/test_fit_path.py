"""Fits to a model path: tasks write the rows, one commit object makes the version."""

from __future__ import annotations

import os
import pickle
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from helpers import assert_same_bits

from sparkml_sgdals import StreamingBiasedALS, StreamingBiasedALSModel
from sparkml_sgdals.errors import DivergenceError
from sparkml_sgdals.store.large.unfinished import MARK
from sparkml_sgdals.store.version_store import StorageError, VersionStore


@pytest.fixture(scope="module")
def als():
    return StreamingBiasedALS(timestampCol="time", rank=4, maxIter=2, numBlocks=3)


@pytest.fixture(scope="module")
def fitted(als, ratings, tmp_path_factory):
    """A path that `fitPath` made, and its model; to be read only."""
    path = tmp_path_factory.mktemp("fitted") / "model"
    return path, als.fitPath(ratings, path)


@pytest.fixture(scope="module")
def whole(als, ratings):
    """The same table fitted in as many blocks, collected."""
    return als.fit(ratings)


def test_the_same_as_collected(fitted, whole):
    path, model = fitted
    store = VersionStore(str(path))
    commit = store.newest()
    assert (commit.version, commit.base, commit.delta_rows) == (0, 0, 0)
    assert [len(commit.runs[side]) for side in ("users", "items")] == [3, 3]
    assert commit.ids == [whole.state.users.size, whole.state.items.size]
    state, _ = store.load()
    assert state.fingerprint() == whole.state.fingerprint()
    assert model.summary.users == whole.summary.users
    assert model.summary.rmse == whole.summary.rmse
    assert model.summary.form == "3 blocks"
    assert StreamingBiasedALSModel.versions(path).loadable.tolist() == [True]
    # nothing else lies there
    assert sorted(p.name for p in path.iterdir()) == ["commits", "files", "model.json"]
    named = {file["name"] for file in [*commit.files.values(), *commit.run_files()]}
    assert {f"files/{p.name}" for p in (path / "files").iterdir()} == named


@pytest.mark.long
def test_strings_sgd_and_blocks_of_one(spark, small, tmp_path):
    frame = spark.createDataFrame(small.head(600).assign(item="ä" + small.item.astype(str)))
    als = StreamingBiasedALS(solver="sgd", rank=2, maxIter=1, numBlocks=1)
    als.fitPath(frame, tmp_path / "m")
    state, commit = VersionStore(str(tmp_path / "m")).load()
    expected = als.fit(frame).state
    assert [len(commit.runs[side]) for side in ("users", "items")] == [1, 1]
    for side in ("users", "items"):
        one, other = (getattr(s, side).to_arrow() for s in (state, expected))
        assert one.column("id").equals(other.column("id"))
        flat = [t.column("mean").combine_chunks().flatten().to_numpy() for t in (one, other)]
        # one task takes ratings in another order than blocks do
        np.testing.assert_allclose(flat[0], flat[1], atol=0.05)


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"implicitPrefs": True, "ratingCol": "rating"}, "implicitPrefs=True"),
        ({"rankingSize": 10}, "rankingSize is 10"),
        ({"solver": "minibatch"}, "solver 'minibatch'"),
    ],
)
def test_what_the_driver_has_to_hold_is_refused(ratings, tmp_path, params, told):
    als = StreamingBiasedALS(**params)
    with pytest.raises(ValueError, match=f"(?s)fitPath leaves the rows.*{told}"):
        als.fitPath(ratings, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_path_that_holds_something(fitted, als, ratings, tmp_path):
    with pytest.raises(ValueError, match=r"holds a model already.*updateStream"):
        als.fitPath(ratings, fitted[0])
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"holds 'notes\.txt' already"):
        als.fitPath(ratings, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_executors_that_do_not_see_the_path(classic_only, als, ratings, tmp_path, monkeypatch):
    """A path that is another folder in a process of another working directory."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match=r"executor on .* does not see modelPath .* share"):
        als.fitPath(ratings, f"/proc/self/cwd/{uuid.uuid4().hex}")
    assert not list(tmp_path.iterdir())


def test_a_fit_that_fails_leaves_nothing(spark, als, ratings, small, tmp_path):
    path = tmp_path / "m"
    bad = spark.createDataFrame(small.head(20).assign(rating=np.nan))
    with pytest.raises(ValueError, match="rating"):
        als.fitPath(bad, path)
    assert not path.exists()
    wild = StreamingBiasedALS(solver="sgd", rank=2, stepSize=1e6, numBlocks=2, maxIter=3)
    with pytest.raises(DivergenceError):
        wild.fitPath(ratings, path)
    assert not path.exists()


class _Passed:
    """Bytes of all tables that go to the driver, or come from it."""

    def __init__(self, monkeypatch, frame, session):
        self.most = 0
        for name in ("toArrow", "collect", "toPandas", "toLocalIterator", "head", "take"):
            monkeypatch.setattr(type(frame), name, self.noted(getattr(type(frame), name)))
        given = type(session).createDataFrame

        def create(session, data, *args, **kwargs):
            self.note(data)
            return given(session, data, *args, **kwargs)

        monkeypatch.setattr(type(session), "createDataFrame", create)

    def note(self, data):
        size = data.nbytes if isinstance(data, pa.Table) else len(pickle.dumps(data))
        self.most = max(self.most, size)
        return data

    def noted(self, method):
        return lambda *args, **kwargs: self.note(method(*args, **kwargs))


@pytest.mark.long
@pytest.mark.parametrize("beside", [True, False])
def test_vectors_of_features_do_not_pass_through_the_driver(spark, tmp_path, monkeypatch, beside):
    """Not even a number an id, also of ids that nobody rated."""
    users, items = 3_000, 12_000
    rated = spark.range(20_000).selectExpr(
        f"pmod(hash(id), {users}) AS user", f"pmod(hash(id, 7), {items}) AS item",
        "CAST(1 + pmod(hash(id, 9), 5) AS double) AS rating", "id AS time",
    )  # fmt: skip
    numbers = "transform(sequence(1, 4), n -> double(pmod(hash(item, n), 100))) AS vector"
    als = StreamingBiasedALS(timestampCol="time", rank=2, maxIter=1, numBlocks=2)
    if beside:
        als.setItemFeatures(spark.range(items).selectExpr("id AS item").selectExpr("*", numbers))
    else:
        als.setItemFeaturesCol("vector")
        rated = rated.selectExpr("*", numbers)
    passed = _Passed(monkeypatch, rated, spark)
    model = als.fitPath(rated, tmp_path / "m")
    assert 0 < passed.most < 2 * items
    assert model.featureWeights.count() == 4


@pytest.mark.long
def test_what_a_killed_fit_left_goes_with_the_next(als, ratings, whole, tmp_path):
    """Files, a mark and model.json, as kills leave them, do not load and do not stay."""
    path = tmp_path / "m"
    (path / "files").mkdir(parents=True)
    (path / "files" / f"{0:012d}-left-users.rows").write_bytes(b"half")
    (path / f"{MARK}-probe").write_bytes(b"")
    (path / "model.json").write_bytes(b"{")
    (path / MARK).write_bytes(b"")
    with pytest.raises(StorageError):
        StreamingBiasedALSModel.load(path)
    assert_same_bits(als.fitPath(ratings, path), whole)
    names = {p.relative_to(path).as_posix() for p in Path(path).rglob("*") if p.is_file()}
    assert not [name for name in names if "left" in name or MARK in name]
    assert os.listdir(path / "commits") == [f"{0:012d}.json"]
