"""Go back, forget, and refuse what does not fit, with Spark's own checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from helpers import IN_RUNS_NIGHTLY, ONCE, assert_same_bits
from pyspark.ml.tuning import ParamGridBuilder

from sparkml_sgdals import StreamingBiasedALS, StreamingBiasedALSModel, StreamingGridSearch
from sparkml_sgdals.errors import LeaseError
from sparkml_sgdals.store.version_store import StorageError, VersionStore


@pytest.fixture
def als():
    return StreamingBiasedALS(timestampCol="time", rank=4)


@pytest.fixture
def learn(als, stream):
    """Run a stream of files to its end."""

    def run(folder, path, **options):
        job = als.fitStream(stream(folder), str(path), trigger=ONCE, **options)
        job.awaitTermination()
        return job

    return run


@pytest.mark.usefixtures("first_version")
class TestReadFrom:
    """A commit knows what its batch was read from: no rating twice, none left out."""

    @staticmethod
    def put(file, payload):
        """Write a file of the checkpoint as somebody would who does not know of Spark's sums."""
        (file.parent / f".{file.name}.crc").unlink(missing_ok=True)
        file.write_bytes(payload)

    @IN_RUNS_NIGHTLY
    def test_a_plan_put_back(self, learn, files, small, tmp_path):
        """Spark would read the last batch again, and under another number."""
        path, folder = tmp_path / "m", files(small.iloc[:1200], 300)
        learn(folder, path)
        plans = path / "checkpoint/offsets"
        whole = (plans / "3").read_bytes()
        self.put(plans / "3", (plans / "2").read_bytes())
        files(small.iloc[1200:1500], 300, first=4)
        sentence = r"offsets/3 is not as it was when version 4 was committed"
        with pytest.raises(StorageError, match=sentence):
            learn(folder, path)
        self.put(plans / "3", whole)
        job = learn(folder, path)
        assert job.metrics().ratings.sum() == 1500

    @IN_RUNS_NIGHTLY
    def test_a_file_taken_from_the_log(self, learn, files, small, tmp_path):
        """Spark would take it for new."""
        path, folder = tmp_path / "m", files(small.iloc[:1200], 300)
        learn(folder, path)
        log = path / "checkpoint/sources/0/1"
        self.put(log, log.read_bytes().replace(b"000001.csv", b"000009.csv"))
        with pytest.raises(StorageError, match="sources/0 is not as it was when version 4"):
            learn(folder, path)

    @IN_RUNS_NIGHTLY
    @pytest.mark.long
    def test_across_compactions_of_the_log(self, learn, files, small, tmp_path):
        path, folder = tmp_path / "m", files(small.iloc[:900], 100)
        learn(folder, path)
        for first in (900, 1300, 2200):
            files(small.iloc[first : first + 900], 100, first=first // 100)
            job = learn(folder, path)
            told = VersionStore(str(path)).newest().offsets
            assert told["files"]["0"][0] == first // 100 + 8
        assert job.metrics().ratings.sum() == 3100
        whole = learn(folder, tmp_path / "whole")
        assert_same_bits(job.model, whole.model)
        assert VersionStore(str(tmp_path / "whole")).newest().offsets["files"] == told["files"]

    @IN_RUNS_NIGHTLY
    def test_kept_in_a_race_and_in_part(self, als, learn, files, stream, small, tmp_path):
        """Whatever learns under a path tells it."""
        folder = files(small.iloc[:600], 300)
        grid = ParamGridBuilder().addGrid(als.rank, [2, 3]).build()
        search = StreamingGridSearch(estimator=als, estimatorParamMaps=grid)
        search.fitStream(stream(folder), str(tmp_path / "race"), trigger=ONCE).awaitTermination()
        als.setMaxResidentIds(50)
        learn(folder, tmp_path / "part")
        for name in ("race", "part"):
            told = VersionStore(str(tmp_path / name)).newest().offsets
            assert told["files"]["0"][0] == 1
            self.put(tmp_path / name / "checkpoint/offsets/1", b"v1\n{}\n{}")
        with pytest.raises(StorageError, match="offsets/1 is not as it was"):
            search.fitStream(stream(folder), str(tmp_path / "race"), trigger=ONCE)
        with pytest.raises(StorageError, match="offsets/1 is not as it was"):
            learn(folder, tmp_path / "part")


@pytest.mark.usefixtures("first_version")
class TestRollback:
    @IN_RUNS_NIGHTLY
    @pytest.mark.long
    def test_bad_data_got_in(self, learn, files, small, tmp_path):
        """Back before it, the source cleaned: as if it had never been there."""
        path, folder = tmp_path / "m", files(small, 250)
        bad = Path(folder) / "000011.csv"
        pd.read_csv(bad).assign(rating=5.0).to_csv(bad, index=False)
        os.utime(bad, (1_000_000_011, 1_000_000_011))
        spoilt = learn(folder, path, keepVersions=10)
        listed = StreamingBiasedALSModel.versions(str(path))
        assert listed.batch.tolist() == list(range(-1, 16))
        assert listed.loadable.all()
        back = StreamingBiasedALSModel.rollback(str(path), 11)
        assert (back.version, back.batch) == (17, 10)
        assert 'reads on after batch 10, offset {"logOffset":10}' in str(back)
        bad.unlink()
        job = learn(folder, path)
        clean = learn(folder, tmp_path / "clean")
        assert_same_bits(job.model, clean.model)
        assert job.metrics().batch.tolist() == list(range(15))
        columns = ["batch", "ratings", "newUsers", "newItems", "rmse", "baselineRmse"]
        pd.testing.assert_frame_equal(job.metrics()[columns], clean.metrics()[columns])
        assert job.model.version == 21
        assert spoilt.model.version == 21

    def test_go_on_from_now(self, learn, files, small, tmp_path):
        """What came since the version is left out, what comes now is learned onto it."""
        path, folder = tmp_path / "m", files(small.iloc[:2000], 500)
        learn(folder, path)
        files(small.iloc[2000:3000], 500, first=4)
        learn(folder, path)
        back = StreamingBiasedALSModel.rollback(str(path), 4, reread=False)
        assert (back.batch, back.offsets) == (5, ('{"logOffset":5}',))
        files(small.iloc[3000:], 500, first=6)
        job = learn(folder, path)
        expected = files(small.iloc[:2000], 500, "without")
        files(small.iloc[3000:], 500, "without", first=4)
        assert_same_bits(job.model, learn(expected, tmp_path / "n").model)
        assert job.metrics().batch.tolist() == [0, 1, 2, 3, 6, 7]

    @IN_RUNS_NIGHTLY
    @pytest.mark.long
    def test_to_the_start(self, learn, files, small, tmp_path):
        path, folder = tmp_path / "m", files(small, 1000)
        whole = learn(folder, path).model
        assert StreamingBiasedALSModel.rollback(str(path), 0).batch == -1
        assert StreamingBiasedALSModel.load(str(path)).state.blank
        assert_same_bits(learn(folder, path).model, whole)

    @IN_RUNS_NIGHTLY
    def test_not_while_a_stream_runs(self, als, files, stream, small, tmp_path):
        path = str(tmp_path / "m")
        job = als.fitStream(stream(files(small, 2000)), path, trigger={"processingTime": "1 hour"})
        try:
            while len(job.metrics()) < 1:
                assert not job.awaitTermination(0.1)
            with pytest.raises(LeaseError, match="Stop that stream first"):
                StreamingBiasedALSModel.rollback(path, 0)
        finally:
            job.stop()
        StreamingBiasedALSModel.rollback(path, 0)

    @pytest.mark.long
    def test_back_from_a_damaged_commit(self, learn, files, small, tmp_path):
        """The message says how, and what was lost is read again."""
        path, folder = tmp_path / "m", files(small, 1000)
        whole = learn(folder, path).model
        commit = path / "commits/000000000004.json"
        commit.write_bytes(commit.read_bytes().replace(b"users", b"usErs", 1))
        for use in (StreamingBiasedALSModel.load, lambda path: learn(folder, path)):
            with pytest.raises(StorageError, match=r"4\.json is damaged.*rollback\(path, n\)"):
                use(str(path))
        # half of one, as of a write broken off, is none
        commit.write_bytes(commit.read_bytes()[:-9])
        assert StreamingBiasedALSModel.load(str(path)).version == 3
        with pytest.raises(StorageError, match=r"batch 3 is done.*rollback\(path, 3\)"):
            learn(folder, path)
        StreamingBiasedALSModel.rollback(str(path), 3)
        assert_same_bits(learn(folder, path).model, whole)

    def test_back_from_a_damaged_file(self, learn, files, small, tmp_path):
        path, folder = tmp_path / "m", files(small.iloc[:3000], 1000)
        learn(folder, path)
        (part,) = (path / "files").glob("000000000003-*-users.parquet")
        part.write_bytes(part.read_bytes()[:-100])
        files(small.iloc[3000:], 1000, first=3)
        with pytest.raises(Exception, match=r"users\.parquet is damaged.*rollback\(path, n\)"):
            learn(folder, path)
        listed = StreamingBiasedALSModel.versions(str(path))
        assert listed.loadable.tolist() == [True, True, True, False]
        StreamingBiasedALSModel.rollback(str(path), 2)
        job = learn(folder, path)
        assert_same_bits(job.model, learn(folder, tmp_path / "n").model)
        assert job.metrics().batch.tolist() == [0, 1, 2, 3]

    def test_left_by_kills(self, learn, files, small, tmp_path):
        """Rows set aside later than a rollback that was killed, and half-renamed files."""
        frame = small[:2000].astype({"rating": object})
        frame.iloc[1700, 2] = "bad"
        path, folder = tmp_path / "m", files(frame, 500)
        learn(folder, path)
        (left,) = (path / "invalid").glob("*.parquet")
        rows = left.read_bytes()
        StreamingBiasedALSModel.rollback(str(path), 2)
        assert not left.exists()
        left.write_bytes(rows)
        (path / "validation.parquet.0123abcd").write_bytes(b"PAR1")
        for file in Path(folder).glob("00000[23].csv"):
            file.unlink()
        learn(folder, path)
        assert not left.exists()
        assert not list(path.rglob("*.0123abcd"))

    @IN_RUNS_NIGHTLY
    def test_no_held_out_ratings_left(self, learn, ratings, files, small, tmp_path):
        """Every user of them forgotten, the stream goes on and says that there is no error."""
        path, folder = tmp_path / "m", files(small[:500], 500)
        held = ratings.where(f"user = {small.user.iloc[0]}")
        job = learn(folder, path, validation=held)
        assert job.metrics().validationRmse.notna().all()
        job.model.forget(users=held, modelPath=str(path))
        files(small[500:1000], 500, first=1)
        job = learn(folder, path)
        assert job.metrics().validationRmse.notna().tolist() == [True, False]


@pytest.mark.usefixtures("first_version")
class TestCheckpoint:
    def test_files_noted_but_not_planned(self, learn, files, small, tmp_path):
        """Killed between the two, Spark would put them into one batch with the next ones."""
        path, folder = tmp_path / "m", files(small.iloc[:2000], 500)
        learn(folder, path)
        files(small.iloc[2000:], 500, first=4)
        source = path / "checkpoint/sources/0"
        entry = json.loads((source / "3").read_text().splitlines()[1])
        entry |= {"path": entry["path"].replace("3.csv", "4.csv"), "batchId": 4}
        entry |= {"timestamp": entry["timestamp"] + 1000}
        (source / "4").write_text(f"v1\n{json.dumps(entry)}")
        job = learn(folder, path)
        assert job.metrics().ratings.tolist() == [500] * 8
        assert_same_bits(job.model, learn(folder, tmp_path / "n").model)

    @IN_RUNS_NIGHTLY
    @pytest.mark.long
    def test_of_another_model(self, learn, files, small, tmp_path):
        folder = files(small.iloc[:2000], 500)
        for name in "ab":
            learn(folder, tmp_path / name)
        shutil.rmtree(tmp_path / "a/checkpoint")
        shutil.copytree(tmp_path / "b/checkpoint", tmp_path / "a/checkpoint")
        with pytest.raises(StorageError, match=r"a/checkpoint belongs to another model.*new path"):
            learn(folder, tmp_path / "a")
        (tmp_path / "c").mkdir()
        shutil.copytree(tmp_path / "b/checkpoint", tmp_path / "c/checkpoint")
        with pytest.raises(StorageError, match="belongs to another model"):
            learn(folder, tmp_path / "c")

    @IN_RUNS_NIGHTLY
    @pytest.mark.long
    def test_an_older_or_newer_copy(self, learn, files, small, tmp_path):
        """Each would lose ratings without a word: the first is refused, and so is the second."""
        path, folder = tmp_path / "m", files(small.iloc[:1000], 500)
        learn(folder, path)
        shutil.copytree(path, tmp_path / "old")
        files(small.iloc[1000:2000], 500, first=2)
        whole = learn(folder, path).model
        shutil.move(path / "checkpoint", tmp_path / "new")
        shutil.copytree(tmp_path / "old/checkpoint", path / "checkpoint")
        with pytest.raises(StorageError, match=r"ends at batch 1, .* up to batch 3: .* older copy"):
            learn(folder, path)
        StreamingBiasedALSModel.rollback(str(path), 2)
        assert_same_bits(learn(folder, path).model, whole)
        shutil.rmtree(tmp_path / "old/checkpoint")
        shutil.move(tmp_path / "new", tmp_path / "old/checkpoint")
        with pytest.raises(StorageError, match=r"batch 3 is done, .* version is 2 of batch 1"):
            learn(folder, tmp_path / "old")
        StreamingBiasedALSModel.rollback(str(tmp_path / "old"), 2)
        assert_same_bits(learn(folder, tmp_path / "old").model, whole)


class TestForget:
    def test_in_memory(self, als, ratings, small, spark):
        model = als.fit(ratings)
        before = model.copy()
        gone = spark.createDataFrame([(int(u),) for u in small.user[:3]], "user long")
        assert model.forget(gone) is model
        assert model.version == 1
        known = {row.id for row in model.userFactors.select("id").collect()}
        assert known == set(small.user) - set(small.user[:3])
        assert before.state.users.size == small.user.nunique()
        assert model.state.items.to_arrow().equals(before.state.items.to_arrow())
        cold = model.transform(gone.selectExpr("user", "5L as item")).toPandas()
        assert cold.prediction.notna().all()

    @pytest.mark.usefixtures("first_version")
    def test_under_a_path(self, learn, als, stream, files, small, spark, tmp_path):
        path, folder = tmp_path / "m", files(small.iloc[:2000], 500)
        learn(folder, path, validation=spark.createDataFrame(small.tail(200)))
        user = int(small.user[0])
        model = StreamingBiasedALSModel.load(str(path))
        assert user in model.state.users.index
        model.forget(spark.createDataFrame([(user,)], "user long"), modelPath=str(path))
        assert model.version == 5
        for version in StreamingBiasedALSModel.versions(str(path)).version:
            loaded = StreamingBiasedALSModel.load(str(path), version=version)
            assert user not in loaded.state.users.index
        assert user not in pd.read_parquet(path / "validation.parquet").user.tolist()
        files(small.iloc[2000:], 500, first=4)
        job = model.updateStream(stream(folder), str(path), trigger=ONCE)
        job.awaitTermination()
        assert job.metrics().batch.tolist() == list(range(8))
        later = small.iloc[2000:]
        assert (user in job.model.state.users.index) == (user in set(later.user))


@pytest.mark.long
def test_kept_by_age(classic_only, learn, files, small, tmp_path, monkeypatch):
    """Versions of the last day stay, however many; a negative age is refused."""
    monkeypatch.setattr("sparkml_sgdals.store.version_store._MIN_ROWS_OF_BASE", 300)
    monkeypatch.setattr("sparkml_sgdals.stream.micro_batch._READERS_SECONDS", 0.0)
    path, folder = tmp_path / "m", files(small.iloc[:1500], 100)
    learn(folder, path, keepVersions=1, keepDays=1.0)
    assert len(StreamingBiasedALSModel.versions(str(path))) == 16
    files(small.iloc[1500:2000], 100, first=15)
    learn(folder, path, keepVersions=1)
    assert len(StreamingBiasedALSModel.versions(str(path))) < 16
    with pytest.raises(ValueError, match=r"keepDays must be at least 0, got -1"):
        learn(folder, path, keepDays=-1)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 400 KB, and a way to make it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mount is not permitted here")
    larger = ["mount", "-o", "remount,size=20m", str(folder)]
    yield folder, lambda: subprocess.run(larger, check=True)
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.long
def test_a_full_disk(learn, files, small, small_disk, tmp_path):
    """Batches are committed until it is full; with more room the stream goes on, to the bit."""
    disk, enlarge = small_disk
    path, folder = disk / "m", files(small, 100)
    with pytest.raises(Exception, match="No space left on device"):
        learn(folder, path)
    reached = StreamingBiasedALSModel.load(str(path)).version
    assert 2 < reached < 40
    assert not (path / "lease.json").exists()
    enlarge()
    job = learn(folder, path)
    assert job.metrics().batch.tolist() == list(range(40))
    assert_same_bits(job.model, learn(folder, tmp_path / "n").model)
