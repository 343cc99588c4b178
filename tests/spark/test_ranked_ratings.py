"""Ratings that are ranked before they are learned: streams, tables, files, races."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import ONCE, assert_same_bits, long_after, predictions

from sparkml_sgdals import (
    Predictor,
    StreamingBiasedALS,
    StreamingBiasedALSModel,
    StreamingGridSearch,
)
from sparkml_sgdals.arrays.hashing import id_keys
from sparkml_sgdals.store.version_store import VersionStore
from sparkml_sgdals.stream.residents import forget_resident

RANKS = ["ranked", "recall", "mrr", "baselineRecall", "baselineMrr"]


@pytest.fixture
def als():
    return StreamingBiasedALS(timestampCol="time", rank=4, rankingSize=4)


@pytest.fixture
def timed(small):
    """`small` in time order, each time once, so that files cut it where time does."""
    ordered = small.sort_values("time", kind="stable").reset_index(drop=True)
    return ordered.assign(time=np.arange(len(ordered)) + 1)


def run(job):
    job.awaitTermination()
    return job


def rated(model):
    """Pairs that a model says were rated."""
    state = model.state
    ids = state.items.index.ids()
    names = dict(zip(id_keys(ids).view(np.int64).tolist(), ids.to_pylist(), strict=True))
    return {
        (user, names[key])
        for user, keys in zip(
            state.users.index.ids().to_pylist(), state.users.memory.done, strict=True
        )
        for key in keys.tolist()
    }


def pairs(frame):
    return set(zip(frame.user, frame["item"], strict=True))


def first_ones(frame, seen):
    """The ratings of a batch that are ranked after `seen`."""
    known = frame[frame.user.isin(seen.user) & frame["item"].isin(seen["item"])]
    known = known.drop_duplicates(["user", "item"])
    gone = pairs(seen)
    return known[[pair not in gone for pair in zip(known.user, known["item"], strict=True)]]


def ranks_by_hand(model, frame, seen, spark):
    """Ranks of a batch by the recommendations of the model before it."""
    best = model.recommendForUserSubset(
        spark.createDataFrame(frame[["user"]].drop_duplicates()), 90,
        excludeSeen=spark.createDataFrame(seen),
    )  # fmt: skip
    lists = {row.user: [r.item for r in row.recommendations] for row in best.collect()}
    done, ranks = {}, []
    for user, item in zip(frame.user, frame["item"], strict=True):
        left = [i for i in lists[user] if i not in done.setdefault(user, set())]
        ranks.append(left.index(item) + 1)
        done[user].add(item)
    return np.array(ranks)


@pytest.mark.long
def test_a_stream_ranks_ratings_and_a_restart_changes_nothing(
    als, timed, files, stream, spark, tmp_path
):
    """The model of a version ranks the next batch as the stream did, by recommendations."""
    path, size = str(tmp_path / "path"), 500
    folder = files(timed, size)
    job = run(
        als.fitStream(stream(folder), path, trigger=ONCE, keepVersions=100, metricsTable=True)
    )
    metrics = job.metrics()
    assert metrics.ranked[0] == 0
    assert np.isnan(metrics.recall[0])
    for version in (1, 7):
        seen, batch = timed[: version * size], timed[version * size :][:size]
        batch = first_ones(batch, seen)
        before = StreamingBiasedALSModel.load(path, version=version)
        ranks = ranks_by_hand(before, batch, seen, spark)
        told = metrics.iloc[version]
        assert told.ranked == len(batch) > 100
        assert told.recall == pytest.approx(np.mean(ranks <= 4))
        assert told.mrr == pytest.approx(np.mean((ranks <= 4) / ranks))
    assert metrics.recall.iloc[-1] > 0
    assert metrics.baselineMrr.iloc[-1] > 0
    table = spark.read.parquet(f"file:{path}/metrics").orderBy("batch").toPandas()
    assert table.recall.iloc[-1] == metrics.recall.iloc[-1]
    assert rated(job.model) == pairs(timed)
    # broken off twice and begun anew
    other = str(tmp_path / "other")
    for first, last in ((0, 1500), (1500, 2000), (2000, 4000)):
        half = files(timed[first:last], size, "half", first=first // size)
        again = run(als.fitStream(stream(half), other, trigger=ONCE))
        forget_resident(other)
    assert again.metrics()[RANKS].equals(metrics[RANKS])
    assert_same_bits(again.model, job.model)
    # what is learned is learned without ranks as well, and its files are what they were
    plain = run(
        als.copy({als.rankingSize: 0}).fitStream(
            stream(folder), str(tmp_path / "plain"), trigger=ONCE
        )
    )
    learned = job.model.state
    assert_same_bits(
        plain.model, StreamingBiasedALSModel(learned.under(plain.model.state.settings))
    )
    assert plain.metrics().rmse.equals(metrics.rmse)
    assert (plain.metrics().ranked == 0).all()
    store = VersionStore(plain.path)
    written = store.read_checked(store.newest().files["users"]).column_names
    assert "done" not in written


@pytest.mark.long
@pytest.mark.parametrize(
    ("solver", "blocks"),
    long_after(2, [("bayes", 1), ("sgd", 2), ("bayes", 3), ("sgd", 1), ("minibatch", 0)]),
)
def test_a_fitted_model_knows_what_its_table_has(als, timed, spark, solver, blocks):
    als = als.copy({als.solver: solver, als.numBlocks: blocks, als.maxIter: 1})
    twice = pd.concat([timed[:1500], timed[:40]])
    model = als.fit(spark.createDataFrame(twice))
    assert rated(model) == pairs(timed[:1500])
    assert "who rated what" in model.summary.seconds
    plain = als.copy({als.rankingSize: 0}).fit(spark.createDataFrame(twice))
    assert plain.state.users.memory is None
    assert_same_bits(plain, StreamingBiasedALSModel(model.state.under(plain.state.settings)))
    shuffled = spark.createDataFrame(twice.sample(frac=1.0, random_state=1)).repartition(5)
    assert_same_bits(als.fit(shuffled), model)


def test_stops_of_a_grid_know_it_too(als, timed, spark):
    maps = [{als.maxIter: 1}, {als.maxIter: 3}, {als.maxIter: 1, als.rankingSize: 0}]
    models = dict(als.fitMultiple(spark.createDataFrame(timed[:900]), maps))
    for number in (0, 1):
        assert rated(models[number]) == pairs(timed[:900])
    assert models[2].state.users.memory is None


@pytest.mark.long
def test_a_stream_goes_on_from_a_fitted_model(als, timed, files, stream, spark, tmp_path):
    """As text ids, saved and loaded on the way: ranks are right in the first batch already."""
    names = timed.assign(user=[f"u{n}" for n in timed.user])
    seen, batch = names[:2000], names[2000:2500]
    model = als.fit(spark.createDataFrame(seen))
    model.save(str(tmp_path / "saved"))
    loaded = StreamingBiasedALSModel.load(str(tmp_path / "saved"))
    assert_same_bits(loaded, model)
    folder = files(names[2000:], 500)
    schema = "user string, item long, rating double, time long"
    path = str(tmp_path / "m")
    job = run(loaded.updateStream(stream(folder, schema), path, trigger=ONCE, keepVersions=100))
    first = first_ones(batch, seen)
    ranks = ranks_by_hand(model, first, seen, spark)
    told = job.metrics().iloc[0]
    assert told.ranked == len(first) > 100
    assert told.mrr == pytest.approx(np.mean((ranks <= 4) / ranks))
    # updates by hand note the same
    for start in range(2000, 4000, 500):
        model.update(spark.createDataFrame(names[start : start + 500]))
    assert_same_bits(job.model, model)
    assert rated(model) == pairs(names)
    # used without Spark, and without the stream
    some = names[:50]
    scored = predictions(job.model.transform(spark.createDataFrame(some)), ["time"])
    for held in (path, str(tmp_path / "saved")):
        found = Predictor.load(held).predict(some.user, some["item"]).prediction
        assert np.isfinite(found).all()
    assert Predictor.load(path).predict(some.user, some["item"]).prediction.tolist() == (
        pytest.approx(scored.tolist(), rel=1e-5)
    )
    # gone back, and without a user
    StreamingBiasedALSModel.rollback(path, 1)
    back = StreamingBiasedALSModel.load(path)
    assert rated(back) == pairs(names[:2500])
    again = run(back.updateStream(stream(folder, schema), path, trigger=ONCE))
    assert again.metrics()[RANKS].equals(job.metrics()[RANKS])
    assert_same_bits(again.model, model)
    user = names.user[0]
    left = again.model.forget(spark.createDataFrame([(user,)], "user string"), path)
    assert rated(left) == {pair for pair in pairs(names) if pair[0] != user}
    assert rated(StreamingBiasedALSModel.load(path)) == rated(left)


def test_batches_too_large_to_collect(
    classic_only, als, timed, files, stream, spark, tmp_path, monkeypatch
):
    """They are learned as tables, not ranked, and known to the batches after them."""
    monkeypatch.setattr("sparkml_sgdals.ingest.collecting.COLLECT_LIMIT", 1200)
    monkeypatch.setattr("sparkml_sgdals.ingest.collecting._FIRST_LOOK", 100)
    folder = files(timed[:500], 500)
    files(timed[500:2500], 2000, first=1)
    files(timed[2500:3000], 500, first=2)
    job = run(als.fitStream(stream(folder), str(tmp_path / "m"), trigger=ONCE))
    first = first_ones(timed[2500:3000], timed[:2500])
    assert job.metrics().ranked.tolist() == [0, 0, len(first)]
    assert rated(job.model) == pairs(timed[:3000])
    by_hand = StreamingBiasedALSModel.load(str(tmp_path / "m"), version=1)
    for part in (timed[500:2500], timed[2500:3000]):
        by_hand.update(spark.createDataFrame(part))
    assert_same_bits(by_hand, job.model)


def test_a_limit_of_ids_in_memory_is_refused(als, timed, files, stream, spark, tmp_path):
    folder, path = files(timed[:1000], 1000), str(tmp_path / "m")
    limited = als.copy({als.maxResidentIds: 50})
    both = r"rankingSize is 4 and maxResidentIds 50\b"
    with pytest.raises(ValueError, match=both):
        limited.fitStream(stream(folder), path, trigger=ONCE)
    model = limited.fit(spark.createDataFrame(timed[:500]))
    with pytest.raises(ValueError, match=both):
        model.updateStream(stream(folder), path, trigger=ONCE)
    search = StreamingGridSearch(
        estimator=limited, estimatorParamMaps=[{als.rank: 2}, {als.rank: 3}]
    )
    with pytest.raises(ValueError, match=both):
        search.fitStream(stream(folder), path, trigger=ONCE)
    assert not Path(path).exists()
    # no limit may be said aloud
    run(als.copy({als.maxResidentIds: 0}).fitStream(stream(folder), path, trigger=ONCE))
    with pytest.raises(ValueError, match=both):
        StreamingBiasedALSModel.resumeStream(stream(folder), path, maxResidentIds=50)
    run(StreamingBiasedALSModel.resumeStream(stream(folder), path, trigger=ONCE))


@pytest.mark.long
def test_candidates_that_rank(als, timed, files, stream, tmp_path):
    """They rank the same ratings, are judged by errors as ever, and go on to the bit."""
    maps = [{als.rank: 2}, {als.rank: 4}, {als.solver: "sgd", als.stepSize: 1e-6}]

    def search(of=als):
        return StreamingGridSearch(
            estimator=of, estimatorParamMaps=maps, keep=1, minRatings=500, challengers=1,
            errorProbability=0.3,
        )  # fmt: skip

    folder = files(timed, 250)
    whole = run(search().fitStream(stream(folder), str(tmp_path / "w"), trigger=ONCE))
    race, metrics = whole.race(), whole.metrics()
    assert race.dropped.any()
    assert race.entered.any()
    ranked = race[race.mrr.notna() & ~race.entered]
    assert len(ranked) > 20
    seen, batch = timed[:3750], timed[3750:]
    assert metrics.ranked.iloc[-1] == len(first_ones(batch, seen)) > 50
    assert rated(whole.model) == pairs(timed)
    plain = run(
        search(als.copy({als.rankingSize: 0})).fitStream(
            stream(folder), str(tmp_path / "plain"), trigger=ONCE
        )
    )
    same = [name for name in race.columns if name != "mrr"]
    assert plain.race()[same].equals(race[same])
    assert plain.race().mrr.isna().all()
    some = tmp_path / "some"
    some.mkdir()
    names = sorted(Path(folder).iterdir())
    for part in (names[:7], names[7:]):
        for file in part:
            shutil.copy2(file, some)
        job = run(search().fitStream(stream(str(some)), str(tmp_path / "r"), trigger=ONCE))
    assert_same_bits(job.model, whole.model)
    assert job.race().equals(race)
    assert job.metrics()[RANKS].equals(metrics[RANKS])
    with pytest.raises(ValueError, match="rank differently"):
        StreamingGridSearch(
            estimator=als, estimatorParamMaps=[{als.rankingSize: 3}, {als.rankingSize: 4}]
        ).fitStream(stream(folder), str(tmp_path / "differ"))


def test_defaults_of_ranking():
    ratings, events = StreamingBiasedALS(), StreamingBiasedALS(implicitPrefs=True)
    assert (ratings.getRankingSize(), events.getRankingSize()) == (0, 10)
    assert events.setSolver("isgd").getRankingSize() == 10
    assert events.copy({events.rankingSize: 0}).getRankingSize() == 0
    assert not ratings.settings().ranks_ratings
    # a sample without a size changes no setting that a path is compared by
    alone = StreamingBiasedALS(rankingSample=50)
    assert alone.settings() == ratings.settings()
    with pytest.warns(UserWarning, match="does not use rankingSample:"):
        alone.warnOfUnused()
    assert alone.setRankingSize(5).settings().ranking_sample == 50
    assert "under implicitPrefs 10" in ratings.explainParam("rankingSize")
