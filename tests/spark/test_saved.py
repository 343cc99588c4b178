"""Saved models and estimators through Spark: damage is named, kinds of folders are not mixed."""

from __future__ import annotations

import random
import shutil
from collections import Counter

import pytest
from damaging import CHANGES, change, files_in, tally
from formats import PRESENT, digest
from helpers import ONCE, assert_same_bits
from pyspark.errors import StreamingQueryException
from pyspark.ml import Pipeline, PipelineModel

from sparkml_sgdals import StreamingBiasedALS, StreamingBiasedALSModel
from sparkml_sgdals.errors import StorageError
from sparkml_sgdals.store.saved_model import read_saved

EACH = 16
"""changes of a chunk"""
# dates, versions of Spark and folders of a run are told nowhere else
KEPT = ("uid", "class", "paramMap", "defaultParamMap", "fingerprint", "contents", "idTypes")


@pytest.fixture(scope="module")
def als():
    return StreamingBiasedALS(rank=3, maxIter=1, timestampCol="time", seed=4)


@pytest.fixture(scope="module")
def models(spark, ratings, als, tmp_path_factory):
    """Two saved models, learned from the same ratings by two seeds, without Spark's own .crc."""
    top, found = tmp_path_factory.mktemp("saved"), {}
    for name, learner in (("one", als), ("other", als.copy({als.seed: 5}))):
        found[top / name] = learner.fit(ratings)
        found[top / name].setColdStartStrategy("drop").save(str(top / name))
        for crc in (top / name).rglob(".*.crc"):
            crc.unlink()
    return found


@pytest.mark.long
@pytest.mark.parametrize(
    "chunk", [0, *(pytest.param(n, marks=pytest.mark.nightly) for n in (1, 2, 3))]
)
def test_any_change_of_a_file_is_named_or_does_nothing(models, tmp_path, chunk):
    rng, outcomes = random.Random(chunk), Counter()
    (source, model), (other, _) = models.items()
    for _ in range(EACH):
        path = tmp_path / f"model {len(outcomes)}-{rng.random()}"
        shutil.copytree(source, path)
        told = change(rng, path, [other])
        kind = next(k for k in sorted(CHANGES, key=len, reverse=True) if told.startswith(k))
        try:
            loaded = StreamingBiasedALSModel.load(str(path))
        except StorageError as failure:
            said = str(failure)
        else:
            said = ""
            assert_same(loaded, model)
        missing = said.startswith(f"There is no readable model at {path}: ")
        damaged = f"{path}/" in said and " is damaged" in said and "Restore it" in said
        assert not said or missing or damaged, f"{told}: {said}"
        outcomes[kind, "named" if said else "no effect"] += 1
    print(tally(outcomes))
    assert sum(n for (_, how), n in outcomes.items() if how == "named") > EACH / 3


def assert_same(loaded, model):
    assert_same_bits(loaded, model)
    assert loaded.idTypes == model.idTypes
    assert loaded.version == model.version
    assert loaded.uid == model.uid
    params = [{p.name: v for p, v in m.extractParamMap().items()} for m in (loaded, model)]
    assert params[0] == params[1]


def test_spark_s_own_checksums_are_named_as_damage(spark, models, tmp_path):
    """A file that does not fit its .crc, before anything of ours is looked at."""
    ((_, model), _) = models.items()
    model.save(str(tmp_path / "m"))
    assert_same(StreamingBiasedALSModel.load(str(tmp_path / "m")), model)
    for folder in ("users", "metadata"):
        (part,) = (tmp_path / "m" / folder).glob("part-*")
        held = part.read_bytes()
        part.write_bytes(held[:60] + bytes([held[60] ^ 1]) + held[61:])
        with pytest.raises(StorageError, match=rf"m/{folder} is damaged.*Restore it"):
            StreamingBiasedALSModel.load(str(tmp_path / "m"))
        part.write_bytes(held)


def test_both_readers_find_the_same(models):
    for path, model in models.items():
        saved, loaded = read_saved(str(path)), StreamingBiasedALSModel.load(str(path))
        assert saved.metadata.keys() >= set(KEPT)
        assert saved.metadata["fingerprint"] == model.state.fingerprint()
        assert saved.state.fingerprint() == loaded.state.fingerprint() == model.state.fingerprint()
        assert saved.state.users.to_arrow().equals(model.state.users.to_arrow())


def test_bits_that_a_table_may_lose(spark, ratings, als, tmp_path):
    """Negative zeros and the smallest numbers."""
    model = als.fit(ratings)
    model.state.users.mean[:3, :2] = [[-0.0, 1e-45], [0.0, -1e-45], [1e38, -0.0]]
    model.save(str(tmp_path / "m"))
    assert_same(StreamingBiasedALSModel.load(str(tmp_path / "m")), model)


def test_an_empty_model_and_one_of_events(spark, ratings, tmp_path):
    events = StreamingBiasedALS(rank=2, implicitPrefs=True, timestampCol="time").fit(ratings)
    for name, model in (("empty", StreamingBiasedALSModel()), ("events", events)):
        model.save(str(tmp_path / name))
        loaded = StreamingBiasedALSModel.load(str(tmp_path / name))
        assert loaded.state.fingerprint() == model.state.fingerprint()
        assert loaded.state.users.to_arrow().equals(model.state.users.to_arrow())


class TestOneForAnother:
    """Each kind of folder is loaded by its own class, and the others say by which."""

    def test_an_estimator_of_a_model(self, models):
        path = str(next(iter(models)))
        with pytest.raises(
            StorageError, match=r"load it with StreamingBiasedALSModel\.load\(path\)"
        ):
            StreamingBiasedALS.load(path)

    def test_a_model_of_an_estimator(self, spark, als, tmp_path):
        als.save(str(tmp_path / "e"))
        for load in (StreamingBiasedALSModel.load, read_saved):
            with pytest.raises(
                StorageError, match=r"load it with StreamingBiasedALS\.load\(path\)"
            ):
                load(str(tmp_path / "e"))
        with pytest.raises(StorageError, match="no readable model at"):
            StreamingBiasedALS.load(str(tmp_path / "none"))

    def test_an_estimator_of_a_model_path(self, spark):
        with pytest.raises(StorageError, match=r"model path of a stream.*ALSModel\.load\(path\)"):
            StreamingBiasedALS.load(str(PRESENT / "path"))

    def test_pipelines(self, spark, als, ratings, tmp_path):
        Pipeline(stages=[als]).save(str(tmp_path / "p"))
        (stage,) = Pipeline.load(str(tmp_path / "p")).getStages()
        assert stage.extractParamMap() == als.extractParamMap()
        with pytest.raises(StorageError, match=r"load it with Pipeline\.load\(path\)"):
            StreamingBiasedALS.load(str(tmp_path / "p"))
        fitted = Pipeline(stages=[als]).fit(ratings)
        fitted.save(str(tmp_path / "m"))
        (stage,) = PipelineModel.load(str(tmp_path / "m")).stages
        assert_same(stage, fitted.stages[0])
        with pytest.raises(StorageError, match=r"load it with PipelineModel\.load\(path\)"):
            StreamingBiasedALSModel.load(str(tmp_path / "m"))

    def test_a_damaged_estimator(self, spark, als, tmp_path):
        """Each byte of its metadata that says something, one at a time."""
        als.save(str(tmp_path / "e"))
        for crc in (tmp_path / "e" / "metadata").glob(".*.crc"):
            crc.unlink()
        (part,) = files_in(tmp_path / "e", hidden=False)
        held, rng = part.read_bytes(), random.Random(2)
        for place in rng.sample(range(len(held)), 8):
            part.write_bytes(held[:place] + bytes([held[place] ^ 4]) + held[place + 1 :])
            with pytest.raises(StorageError, match="/metadata is damaged"):
                StreamingBiasedALS.load(str(tmp_path / "e"))


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("what", ["its own model", "an estimator"])
def test_versions_are_not_saved_over(spark, als, tmp_path, what, overwrite):
    """Whether or not a stream holds the lease; nothing under the path changes."""
    path = tmp_path / "films"
    shutil.copytree(PRESENT / "path", path)
    saved = als if what == "an estimator" else StreamingBiasedALSModel.load(str(path))
    before = digest(path)
    for spelled in (str(path), f"file:{path}", f"file://{path}", f"{path}/"):
        writer = saved.write().overwrite() if overwrite else saved.write()
        with pytest.raises(StorageError, match=r"model path of a stream.*Save to another path"):
            writer.save(spelled)
    assert digest(path) == before
    saved.write().overwrite().save(str(tmp_path / "elsewhere"))


@pytest.mark.long
def test_a_pipeline_saved_over_versions_is_no_silent_start(
    spark, als, ratings, small, files, stream, tmp_path
):
    """Spark deletes what is there before it asks a stage: no stream goes on, or begins, there."""
    folder, path = files(small.iloc[:500], 500), tmp_path / "films"
    job = als.fitStream(stream(folder), str(path), trigger={"processingTime": "100 milliseconds"})
    job.query.processAllAvailable()
    pipeline = Pipeline(stages=[als]).fit(ratings)
    pipeline.write().overwrite().save(str(path))
    files(small.iloc[500:1000], 500, first=1)
    with pytest.raises((StreamingQueryException, StorageError)):
        job.awaitTermination(60)
    assert not (path / "commits").exists()
    assert_same(PipelineModel.load(str(path)).stages[0], pipeline.stages[0])
    for start in (als.fitStream, pipeline.stages[0].updateStream):
        with pytest.raises(ValueError, match=r"holds a PipelineModel.*restore the folder"):
            start(stream(folder), str(path), trigger=ONCE)
