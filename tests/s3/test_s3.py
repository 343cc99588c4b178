"""Model path and checkpoint on S3: Spark's S3A for its part, pyarrow.fs for ours."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from helpers import ONCE, assert_same_bits
from s3_server import BUCKET

from sparkml_sgdals import StreamingBiasedALS, StreamingBiasedALSModel
from sparkml_sgdals.errors import LeaseError
from sparkml_sgdals.store.lease import Lease
from sparkml_sgdals.store.version_store import StorageError, VersionStore

pytestmark = pytest.mark.s3


@pytest.fixture
def als():
    return StreamingBiasedALS(timestampCol="time", rank=4)


def learn(als, frame, path, **options):
    """Run a stream to its end."""
    job = als.fitStream(frame, path, trigger=ONCE, **options)
    job.awaitTermination()
    return job


class TestStreams:
    def test_as_on_a_disk(self, als, ratings, small, files, stream, place, tmp_path):
        """From nothing, resumed, read by another name of the scheme: the bits of a local path."""
        folder = files(small[:2000], 500)
        learn(als, stream(folder), place, validation=ratings)
        files(small[2000:], 500, first=4)
        job = learn(als, stream(folder), place)
        local = learn(als, stream(folder), str(tmp_path / "m"), validation=ratings)
        assert_same_bits(job.model, local.model)
        ours, theirs = job.metrics(), local.metrics()
        assert ours.batch.tolist() == list(range(8))
        assert ours.validationRmse.tolist() == theirs.validationRmse.tolist()
        other = "s3" + place[3:] if place.startswith("s3a") else "s3a" + place[2:]
        assert_same_bits(StreamingBiasedALSModel.load(other), local.model)
        assert VersionStore(place).read("lease.json") is None

    def test_update_stream_after_save_and_load(self, als, ratings, small, files, stream, place):
        """Spark writes and reads a saved model: by S3A's own name alone."""
        fitted = als.fit(ratings)
        saved = f"s3a://{place.partition('://')[2]}-saved"
        fitted.write().overwrite().save(saved)
        loaded = StreamingBiasedALSModel.load(saved)
        assert_same_bits(loaded, fitted)
        job = loaded.updateStream(stream(files(small[:1000], 500)), place, trigger=ONCE)
        job.awaitTermination()
        by_hand = fitted.copy()
        for start in (0, 500):
            by_hand.update(ratings.sparkSession.createDataFrame(small[start : start + 500]))
        assert_same_bits(job.model, by_hand)

    def test_bad_rows_and_pruning(self, als, small, files, stream, place, monkeypatch):
        monkeypatch.setattr("sparkml_sgdals.store.version_store._MIN_ROWS_OF_BASE", 100)
        monkeypatch.setattr("sparkml_sgdals.stream.micro_batch._READERS_SECONDS", 0.0)
        frame = small[:2000].astype({"rating": object})
        frame.iloc[[3, 700], 2] = "bad"
        learn(als, stream(files(frame, 250)), place, keepVersions=1)
        store = VersionStore(place)
        assert len(store.names("invalid")) == 2
        assert len(StreamingBiasedALSModel.load(place).state.users.index.ids())


class TestVersions:
    def test_list_roll_back_and_read_again(self, als, small, files, stream, place):
        folder = files(small, 1000)
        job = learn(als, stream(folder), place)
        end = job.model
        table = StreamingBiasedALSModel.versions(place)
        assert table.version.tolist() == [0, 1, 2, 3, 4]
        assert table.loadable.all()
        second = StreamingBiasedALSModel.load(place, version=2)
        done = StreamingBiasedALSModel.rollback(place, 2)
        assert (done.version, done.batch) == (5, 1)
        assert_same_bits(StreamingBiasedALSModel.load(place), second)
        again = learn(als, stream(folder), place)
        assert_same_bits(again.model, end)
        assert again.metrics().batch.tolist() == [0, 1, 2, 3]

    def test_damage_is_an_error(self, als, small, files, stream, place):
        learn(als, stream(files(small[:1000], 500)), place)
        store = VersionStore(place)
        newest = store.newest()
        assert newest is not None
        name = newest.files["users"]["name"]
        store.write(name, (store.read(name) or b"")[:-100])
        with pytest.raises(StorageError, match="checksum does not fit"):
            StreamingBiasedALSModel.load(place)
        assert StreamingBiasedALSModel.load(place, version=1).version == 1

    def test_forget(self, spark, als, ratings, small, files, stream, place):
        job = learn(als, stream(files(small[:1000], 500)), place, validation=ratings)
        gone = int(small.user.iloc[0])
        job.model.forget(users=spark.createDataFrame([(gone,)], "user long"), modelPath=place)
        for version in VersionStore(place).numbers():
            model = StreamingBiasedALSModel.load(place, version=version)
            assert gone not in model.state.users.index.ids().to_pylist()
        table = VersionStore(place).read_table("validation.parquet")
        assert gone not in table.column("user").to_pylist()


class TestOneWriter:
    def test_a_second_stream_is_refused(self, als, small, files, stream, place):
        frame = stream(files(small[:500], 500))
        store = VersionStore(place)
        lease = Lease.acquire(store, 60.0)
        lease.keep_while(lambda: True)
        with pytest.raises(LeaseError, match="is written by"):
            als.fitStream(frame, place, trigger=ONCE)
        lease.release()
        learn(als, frame, place)

    @pytest.mark.parametrize("boto", [True, False])
    def test_of_many_at_once_one_gets_the_lease(self, place, boto, monkeypatch):
        """With boto3 by S3's own exclusive put; without it nobody fails, and at most one holds."""
        if not boto:
            monkeypatch.setattr(VersionStore, "_put_if_none", lambda *_: False)
        store, won, start = VersionStore(place), [], threading.Barrier(8)

        def take():
            start.wait()
            try:
                won.append(Lease.acquire(store, 60.0).token)
            except LeaseError:
                return

        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        holder = json.loads(store.read("lease.json") or b"{}")
        assert holder["token"] in won
        if boto:
            assert len(won) == 1

    def test_a_new_object_takes_no_place(self, place):
        store = VersionStore(place)
        assert store.put_new("commits/0.json", b"one")
        assert not store.put_new("commits/0.json", b"two")
        assert store._put_if_none("commits/0.json", b"three")
        assert store.read("commits/0.json") == b"one"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_kills_and_every_point(monkeypatch):
    """The harness of tests/kills, its models in the bucket."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "kills"))
    from trials import POINTS, run_trial

    monkeypatch.setenv("KILLS_BASE", f"s3a://{BUCKET}")
    figures = run_trial("classic", "files", 10, POINTS, seed=2, batches=40, size=40)
    assert figures.differences == []
    assert figures.random_kills == 10
    assert figures.points == list(POINTS)
