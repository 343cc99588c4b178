"""Streams whose process keeps a part of the model in memory: same bits, same metrics."""

from __future__ import annotations

import itertools
import os
from functools import partial

import numpy as np
import pandas as pd
import pytest
from helpers import IN_RUNS_NIGHTLY, ONCE, assert_same_bits

from sparkml_sgdals import StreamingBiasedALS, StreamingBiasedALSModel
from sparkml_sgdals.store.version_store import StorageError, VersionStore
from sparkml_sgdals.stream.report import CLOCK_METRICS
from sparkml_sgdals.stream.residents import forget_resident

pytestmark = pytest.mark.usefixtures("first_version")


def run(job):
    job.awaitTermination()
    return job


def assert_same_metrics(one, other):
    columns = list(CLOCK_METRICS)
    pd.testing.assert_frame_equal(one.drop(columns=columns), other.drop(columns=columns))


@pytest.fixture
def als():
    return StreamingBiasedALS(timestampCol="time", rank=4)


def commit_of(path):
    return VersionStore(str(path)).newest()


@pytest.mark.long
def test_the_same_as_all_in_memory(als, files, stream, small, spark, tmp_path, first_version):
    """In one go, with held-out ratings; and through restarts with other limits."""
    folder = files(small.iloc[:1500], 250)
    held = spark.createDataFrame(small.tail(100))
    whole, part, path = (str(tmp_path / name) for name in ("whole", "part", "restarted"))
    few = als.copy({als.maxResidentIds: 60})
    run(few.fitStream(stream(folder), path, trigger=ONCE, validation=held))
    files(small.iloc[1500:3000], 250, first=6)
    other = als.copy({als.maxResidentIds: 20})
    run(other.fitStream(stream(folder), path, trigger=ONCE))
    assert commit_of(path).runs is not None
    # the resident form goes on with what the other one wrote, and back
    files(small.iloc[3000:3500], 250, first=12)
    run(als.fitStream(stream(folder), path, trigger=ONCE))
    files(small.iloc[3500:], 250, first=14)
    jobs = [run(few.fitStream(stream(folder), path, trigger=ONCE))]
    jobs.append(run(few.fitStream(stream(folder), part, trigger=ONCE, validation=held)))
    expected = run(als.fitStream(stream(folder), whole, trigger=ONCE, validation=held))
    assert (commit_of(whole).runs is None) == (first_version == "whole")
    for job in jobs:
        assert commit_of(job.path).runs is not None
        assert_same_bits(job.model, expected.model)
        assert_same_metrics(job.metrics(), expected.metrics())


@IN_RUNS_NIGHTLY
@pytest.mark.long
def test_the_real_thing(files, stream, real, tmp_path):
    """ml-latest-small in time order, 1,000 a batch, 500 ids in memory, string users."""
    train, _ = real("ml-latest-small")
    train = train.sort_values("time", kind="stable").head(15_000)
    folder = files(train.assign(user="u" + train.user.astype(str)), 1000)
    schema = "user string, item long, rating double, time long"
    found = []
    for limit in (500, 0):
        als = StreamingBiasedALS(timestampCol="time", rank=8, maxResidentIds=limit)
        path = str(tmp_path / f"m{limit}")
        found.append(run(als.fitStream(stream(folder, schema), path, trigger=ONCE)))
    assert commit_of(found[0].path).runs is not None
    assert sum(commit_of(found[0].path).ids) > 2000
    assert_same_bits(found[0].model, found[1].model)
    assert_same_metrics(found[0].metrics(), found[1].metrics())


@IN_RUNS_NIGHTLY
@pytest.mark.long
def test_a_fitted_model_goes_on(als, files, stream, small, spark, tmp_path, first_version):
    """From its Parquet base, by updateStream and by resumeStream, which loads no model."""
    model = als.fit(spark.createDataFrame(small.iloc[:2000]))
    path, folder = str(tmp_path / "m"), files(small.iloc[2000:3000], 500)
    run(model.copy({model.maxResidentIds: 50}).updateStream(stream(folder), path, trigger=ONCE))
    first = commit_of(path)
    assert (first.version, first.runs is not None) == (2, True)
    files(small.iloc[3000:], 500, first=2)
    forget_resident(path)
    job = run(StreamingBiasedALSModel.resumeStream(stream(folder), path, trigger=ONCE))
    assert commit_of(path).runs is not None
    whole = run(model.updateStream(stream(folder), str(tmp_path / "n"), trigger=ONCE))
    assert (commit_of(whole.path).runs is None) == (first_version == "whole")
    assert_same_bits(job.model, whole.model)
    assert job.model.getMaxResidentIds() == 50
    with pytest.raises(StorageError, match="does not hold a model"):
        StreamingBiasedALSModel.resumeStream(stream(folder), str(tmp_path / "none"))


@IN_RUNS_NIGHTLY
def test_a_batch_too_large_to_collect(
    classic_only, als, files, stream, small, tmp_path, monkeypatch
):
    """It is learned by the whole model, which is then a base; the next batch goes on in part."""
    monkeypatch.setattr("sparkml_sgdals.ingest.collecting.COLLECT_LIMIT", 1200)
    monkeypatch.setattr("sparkml_sgdals.ingest.collecting._FIRST_LOOK", 100)
    folder = files(small.iloc[:1000], 500)
    files(small.iloc[1000:3000], 2000, first=2)
    files(small.iloc[3000:], 500, first=3)
    found = []
    for limit in (40, 0):
        few = als.copy({als.maxResidentIds: limit})
        found.append(run(few.fitStream(stream(folder), str(tmp_path / f"{limit}"), trigger=ONCE)))
    assert commit_of(found[0].path).base >= 3
    assert found[0].metrics().ratings.tolist() == [500, 500, 2000, 500, 500]
    assert_same_bits(found[0].model, found[1].model)
    assert_same_metrics(found[0].metrics(), found[1].metrics())


class TestVersions:
    @pytest.fixture
    def path(self, als, files, stream, small, tmp_path):
        """Eight batches, 40 ids in memory; and the folder that they came from."""
        few = als.copy({als.maxResidentIds: 40})
        folder = files(small.iloc[:3200], 400, "parts")
        run(few.fitStream(stream(folder), str(tmp_path / "m"), trigger=ONCE, keepVersions=20))
        return tmp_path / "m"

    def test_each_loads(self, path, als, files, stream, small, tmp_path):
        folder = str(tmp_path / "parts")
        whole = str(tmp_path / "whole")
        run(als.fitStream(stream(folder), whole, trigger=ONCE, keepVersions=20))
        listed = StreamingBiasedALSModel.versions(str(path))
        assert listed.loadable.all()
        assert len(listed) == 9
        for version in (3, 5, 8):
            assert_same_bits(
                StreamingBiasedALSModel.load(str(path), version),
                StreamingBiasedALSModel.load(whole, version),
            )

    @IN_RUNS_NIGHTLY
    @pytest.mark.long
    def test_a_damaged_run(self, path, als, stream, small, files, tmp_path):
        """Named, with what to do; versions without it load, and can be gone back to."""
        (entry,) = commit_of(path).runs["users"][-1:]
        file = path / entry["rows"]["name"]
        payload = bytearray(file.read_bytes())
        payload[len(payload) // 2] ^= 1
        file.write_bytes(payload)
        with pytest.raises(StorageError, match=r"\.rows is damaged.*rollback\(path, n\)"):
            StreamingBiasedALSModel.load(str(path), maxResidentIds=0)
        with pytest.raises(Exception, match=r"\.rows is damaged.*rollback\(path, n\)"):
            StreamingBiasedALSModel.load(str(path)).userFactors.collect()
        listed = StreamingBiasedALSModel.versions(str(path))
        good = listed[listed.loadable].version.max()
        assert listed.loadable.tolist()[-1] is False
        folder = files(small.iloc[3200:], 400, "parts", first=8)
        few = als.copy({als.maxResidentIds: 40})
        forget_resident(str(path))
        with pytest.raises(Exception, match="is damaged"):
            run(few.fitStream(stream(folder), str(path), trigger=ONCE))
        StreamingBiasedALSModel.rollback(str(path), int(good))
        job = run(few.fitStream(stream(folder), str(path), trigger=ONCE))
        whole = run(als.fitStream(stream(folder), str(tmp_path / "whole"), trigger=ONCE))
        assert_same_bits(job.model, whole.model)

    @pytest.mark.long
    def test_forget(self, path, spark, small):
        """No version that is kept knows them, nor do the files."""
        gone = small.user.iloc[:5].unique().tolist()
        whole = partial(StreamingBiasedALSModel.load, str(path), maxResidentIds=0)
        before = {version: whole(version) for version in (4, 8)}
        model = StreamingBiasedALSModel.load(str(path))
        users = spark.createDataFrame([(u,) for u in gone], "user long")
        model.forget(users, modelPath=str(path))
        store = VersionStore(str(path))
        assert StreamingBiasedALSModel.versions(str(path)).loadable.all()
        for number in store.numbers():
            known = whole(number).state.users.index
            assert not any(user in known for user in gone)
        for version, old in before.items():
            old.forget(users)
            assert whole(version).state.fingerprint() == old.state.fingerprint()
        named = {
            file["name"]
            for number in store.numbers()
            for commit in [store.read_commit(number)]
            for file in [*commit.files.values(), *commit.run_files()]
        }
        assert named == {f"files/{name}" for name in store.names("files")}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_million_ratings_in_one_batch(stream, spark, tmp_path):
    """Learned as a table, in blocks: held-out RMSE within 1% of the same in 50 small batches."""
    rng = np.random.default_rng(3)
    users, items, rank, first, size = 60_000, 8_000, 4, 100_000, 5_000_000
    taste = rng.normal(0, 0.5, (users, rank)), rng.normal(0, 0.5, (items, rank))
    bias = rng.normal(0, 0.4, users), rng.normal(0, 0.4, items)

    def made(count):
        u, i = rng.integers(0, users, count), (items * rng.random(count) ** 2).astype(int)
        values = 3.5 + bias[0][u] + bias[1][i] + (taste[0][u] * taste[1][i]).sum(axis=1)
        values = (values + rng.normal(0, 0.8, count)).astype(np.float64)
        return pd.DataFrame({"user": u, "item": i, "rating": values, "time": np.arange(count)})

    table, held = made(first + size), spark.createDataFrame(made(20_000))
    rmse, ratings = {}, {}
    for name, limit in (("large", size), ("small", 100_000)):
        folder = tmp_path / name
        folder.mkdir()
        cuts = [0, first, *range(first + limit, first + size + 1, limit)]
        for number, (a, b) in enumerate(itertools.pairwise(cuts)):
            file = folder / f"{number:06d}.parquet"
            table.iloc[a:b].to_parquet(file, index=False)
            os.utime(file, (1_000_000_000 + number,) * 2)
        reader = spark.readStream.schema("user long, item long, rating double, time long")
        frame = reader.option("maxFilesPerTrigger", 1).parquet(str(folder))
        als = StreamingBiasedALS(timestampCol="time", numBlocks=4)
        path = str(tmp_path / f"{name}-model")
        job = run(als.fitStream(frame, path, trigger=ONCE, validation=held))
        metrics = job.metrics()
        rmse[name] = metrics.validationRmse.iloc[-1]
        ratings[name] = metrics.ratings.tolist()
        print(name, rmse[name], metrics.seconds.sum())
    assert ratings["large"] == [first, size]
    assert ratings["small"] == [100_000] * 51
    assert rmse["large"] <= 1.01 * rmse["small"]
