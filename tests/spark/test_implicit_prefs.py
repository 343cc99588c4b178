"""Events on Spark: fit, update, streams, scores, recommendations, files."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from helpers import ONCE, assert_same_bits, long_after, predictions
from pyspark.sql import functions as F

from sparkml_sgdals import StreamingBiasedALS, StreamingBiasedALSModel
from sparkml_sgdals.store.version_store import VersionStore


@pytest.fixture(scope="module")
def liked(small):
    """The pairs of `small` with a good rating, in time order, without the rating."""
    good = small[small.rating >= 3.5].sort_values("time", kind="stable")
    return good.drop_duplicates(["user", "item"])[["user", "item", "time"]].reset_index(drop=True)


@pytest.fixture(params=long_after(1, ["bayes", "isgd"]))
def als(request):
    return StreamingBiasedALS(
        timestampCol="time", rank=4, implicitPrefs=True, solver=request.param, numNegatives=3
    )


def test_fit_score_recommend(als, liked, spark):
    frame = spark.createDataFrame(liked)
    model = als.fit(frame)
    assert (model.summary.ratings, model.summary.form) == (len(liked), "one task")
    scored = predictions(model.transform(frame), ["user", "item"])
    assert np.isfinite(scored).all()
    best = model.recommendForAllUsers(5, excludeSeen=frame).collect()
    assert len(best) == liked.user.nunique()
    rows = [(r.user, s.item, s.rating) for r in best for s in r.recommendations]
    done = set(zip(liked.user, liked.item, strict=True))
    assert not done & {(user, item) for user, item, _ in rows}
    ranked = spark.createDataFrame(rows, "user long, item long, rating float")
    again = predictions(model.transform(ranked), ["user", "item"])
    np.testing.assert_allclose(again, predictions(ranked, ["user", "item"], "rating"), rtol=1e-5)
    users, items = model.userFactors.toPandas(), model.itemFactors.toPandas()
    user, item, score = rows[0]
    (u,), (i,) = users[users.id == user].itertuples(), items[items.id == item].itertuples()
    if als.getSolver() == "isgd":
        # what the factors that it shows say: mean + bias + U . P
        by_hand = model.globalMean + u.bias + i.bias + np.dot(u.features, i.features)
        assert score == pytest.approx(by_hand, rel=1e-5)
    else:
        # of a table without times the logarithm of U . P alone, which goes on below 0
        table = als.copy({als.timestampCol: ""}).fit(frame)
        for name, factors in (("user", table.userFactors), ("item", table.itemFactors)):
            frame = frame.join(factors.toDF(name, f"{name}_features", f"{name}_bias"), name)
        found = table.transform(frame).toPandas()
        products = np.array(
            [np.dot(u, i) for u, i in zip(found.user_features, found.item_features, strict=True)]
        )
        soft = (products + np.sqrt(products**2 + 4e-4)) / 2
        np.testing.assert_allclose(found.prediction, np.log(soft), atol=2e-4)


def test_a_new_user_gets_what_is_popular(liked, spark):
    als = StreamingBiasedALS(timestampCol="time", rank=4, implicitPrefs=True)
    model = als.fit(spark.createDataFrame(liked))
    with pytest.raises(ValueError, match="rankBy='upper' needs deviations of ratings"):
        model.recommendForAllUsers(2, rankBy="upper")
    nobody = spark.createDataFrame([(-1,)], "user long")
    (row,) = model.recommendForUserSubset(nobody, 10).collect()
    counts = liked.item.value_counts()
    assert counts[[r.item for r in row.recommendations]].mean() > 2 * counts.mean()
    # the logarithm of a share of all events, but for what was learned beyond popularity
    assert abs(row.recommendations[0].rating - math.log(counts.iloc[0] / len(liked))) < 2


def test_partitions_do_not_matter(als, liked, spark):
    frame = spark.createDataFrame(liked)
    shuffled = frame.orderBy(F.rand(3)).repartition(7)
    assert_same_bits(als.fit(frame), als.fit(shuffled))


@pytest.mark.long
def test_stream_update_and_files(als, files, stream, liked, spark, tmp_path):
    """A stream that stops and starts, updates by hand, saved and loaded: the same bits."""
    schema = "user long, item long, time long"
    folder = files(liked.iloc[:900], 300)
    path = str(tmp_path / "m")
    als.fitStream(stream(folder, schema), path, trigger=ONCE).awaitTermination()
    start = StreamingBiasedALSModel.load(path, version=1)
    files(liked.iloc[900:], 300, first=3)
    job = als.fitStream(stream(folder, schema), path, trigger=ONCE)
    job.awaitTermination()
    assert job.metrics().ratings.sum() == len(liked)
    assert job.metrics().rmse.isna().all()
    for first in range(300, len(liked), 300):
        start.update(spark.createDataFrame(liked.iloc[first : first + 300]))
    assert_same_bits(job.model, start)
    start.save(str(tmp_path / "saved"))
    loaded = StreamingBiasedALSModel.load(str(tmp_path / "saved"))
    assert_same_bits(loaded, start)
    some = spark.createDataFrame(liked.iloc[:100])
    for model in (job.model, start, loaded):
        model.update(some)
    assert_same_bits(job.model.update(some), start)
    assert_same_bits(loaded, start)
    assert VersionStore(path).newest().scalars["events"] == len(liked)
    users = spark.createDataFrame([(int(liked.user[0]),)], "user long")
    loaded.forget(users)
    assert loaded.recommendForUserSubset(users, 3, coldCol="cold").first().cold


@pytest.mark.long
def test_ratings_are_confidence(liked, spark):
    """As ALS: used where the column is there or named, 1 where there is none."""
    als = StreamingBiasedALS(timestampCol="time", rank=4, implicitPrefs=True)
    plain = spark.createDataFrame(liked)
    expected = als.fit(plain)
    counted = plain.withColumn("rating", F.lit(1.0))
    assert_same_bits(als.fit(counted), expected)
    assert_same_bits(
        als.copy({als.ratingCol: ""}).fit(counted.withColumn("rating", F.lit(7))), expected
    )
    heavier = als.fit(plain.withColumn("rating", F.lit(7)))
    assert heavier.state.fingerprint() != expected.state.fingerprint()
    with pytest.raises(ValueError, match="ratingCol 'times' is not a column"):
        als.copy({als.ratingCol: "times"}).fit(plain)


def test_what_does_not_go_together(liked, spark, stream, files, tmp_path):
    frame = spark.createDataFrame(liked.assign(rating=1.0))
    events = StreamingBiasedALS(implicitPrefs=True, rank=2)
    for als, message in (
        (events.copy({events.solver: "sgd"}), "solver 'sgd' learns ratings.*'isgd'"),
        (StreamingBiasedALS(solver="isgd"), "'isgd' learns events.*implicitPrefs=True"),
        (events.copy({events.numNegatives: 0}), "numNegatives must be at least 1"),
        (
            events.copy({events.numBlocks: 3, events.timestampCol: "time"}),
            "numBlocks is 3, .*timestampCol 'time'.*set numBlocks to 1, or leave timestampCol out",
        ),
        (
            events.copy({events.maxRatingsPerTask: 10, events.solver: "isgd"}),
            "maxRatingsPerTask is 10, .*raise maxRatingsPerTask, or learn the table in parts",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            als.fit(frame)
    model = events.fit(frame)
    with pytest.raises(ValueError, match="learned from events"):
        model.copy({model.predictionStdCol: "std"}).transform(frame)
    with pytest.raises(ValueError, match="validation is scored by RMSE"):
        events.fitStream(
            stream(files(liked, 500), "user long, item long, time long"),
            str(tmp_path / "m"), validation=frame,
        )  # fmt: skip
    with pytest.warns(UserWarning, match="does not use maxIter"):
        events.copy({events.solver: "isgd", events.maxIter: 3}).fit(frame)


def test_defaults_of_events():
    ratings, events = StreamingBiasedALS(), StreamingBiasedALS(implicitPrefs=True)
    found = [
        (als.getRank(), als.getFactorPriorVariance(), als.getBiasPriorVariance())
        for als in (ratings, events, events.copy({events.rank: 8, events.biasPriorVariance: 0.3}))
    ]
    assert found == [(16, 0.1, 0.2), (128, 0.5, 0.1), (8, 0.5, 0.3)]
    # what a stream begins with is the filter alone, a table is fitted besides
    events = StreamingBiasedALS(implicitPrefs=True)
    both = events.settings(), events.settings(table=True)
    assert [(own.rank, own.table_rank) for own in both] == [(32, 0), (32, 128)]
    isgd = StreamingBiasedALS(implicitPrefs=True, solver="isgd", itemFactorRegParam=0.2)
    settings = isgd.settings()
    assert (settings.step_size, settings.regs[2:], settings.num_negatives) == (0.05, (0.01, 0.2), 0)


def test_metrics_rank_events_before_they_are_learned(als, liked, files, stream, spark, tmp_path):
    """The model of a version ranks the next batch as the stream did, by recommendations."""
    path, schema = str(tmp_path / "path"), "user long, item long, time long"
    known, size = 900, 300
    folder = files(liked[: known + size], size)
    als.setRankingSize(4)
    job = als.fitStream(
        stream(folder, schema), path, trigger=ONCE, keepVersions=100, metricsTable=True
    )
    job.awaitTermination()
    metrics = job.metrics()
    assert metrics.ranked[0] == 0
    assert np.isnan(metrics.recall[0])
    before = StreamingBiasedALSModel.load(path, version=int(metrics.version.iloc[-2]))
    seen, batch = liked[:known], liked[known : known + size]
    batch = batch[batch.user.isin(seen.user) & batch.item.isin(seen["item"])]
    best = before.recommendForUserSubset(
        spark.createDataFrame(batch[["user"]].drop_duplicates()), 90,
        excludeSeen=spark.createDataFrame(seen),
    )  # fmt: skip
    lists = {row.user: [r.item for r in row.recommendations] for row in best.collect()}
    done, hits, reciprocals = {}, 0, 0.0
    for user, item in zip(batch.user, batch["item"], strict=True):
        left = [i for i in lists[user] if i not in done.setdefault(user, set())]
        rank = left.index(item) + 1
        hits += rank <= 4
        reciprocals += (rank <= 4) / rank
        done[user].add(item)
    last = metrics.iloc[-1]
    assert last.ranked == len(batch) > 20
    assert last.recall == pytest.approx(hits / len(batch))
    assert last.mrr == pytest.approx(reciprocals / len(batch))
    table = spark.read.parquet(f"{path}/metrics").orderBy("batch").toPandas()
    assert table.recall.iloc[-1] == last.recall
    # a restart in between
    half = files(liked[:size], size, "half")
    other = str(tmp_path / "other")
    als.fitStream(stream(half, schema), other, trigger=ONCE).awaitTermination()
    files(liked[size : known + size], size, "half", first=1)
    again = als.fitStream(stream(half, schema), other, trigger=ONCE)
    again.awaitTermination()
    names = ["ranked", "recall", "mrr", "baselineRecall", "baselineMrr"]
    assert again.metrics()[names].equals(metrics[names])


def test_sessions_that_ended_are_forgotten(liked, files, stream, tmp_path):
    """Sessions of three events, one after another, in batches of a hundred."""
    rows = liked.iloc[:300].assign(user=np.arange(300) // 3, time=np.arange(300))
    folder = files(rows, 100)
    als = StreamingBiasedALS(
        timestampCol="time", rank=4, implicitPrefs=True, numNegatives=3, forgetUsersAfter=60
    )
    frame = stream(folder, "user long, item long, time long")
    job = als.fitStream(frame, tmp_path / "m", trigger=ONCE)
    job.awaitTermination()
    # of 34 users the 13 that ended before event 40, then those before event 140
    assert job.metrics(all=True).forgottenUsers.tolist() == [0, 13, 33]
    kept = StreamingBiasedALSModel.load(str(tmp_path / "m"))
    assert sorted(kept.userFactors.toPandas().id) == list(range(46, 100))
    assert_same_bits(kept, job.model)


def test_sessions_are_forgotten_after_a_time(liked, files, stream, tmp_path):
    """Sessions of three events, an event a minute, in batches of a hundred; a restart between."""
    start = pd.Timestamp("2026-01-01")
    times = start + pd.to_timedelta(np.arange(300), "min")
    rows = liked.iloc[:300].assign(user=np.arange(300) // 3, time=times)
    schema = "user long, item long, time timestamp"
    als = StreamingBiasedALS(
        timestampCol="time", rank=4, implicitPrefs=True, numNegatives=3, forgetUsersAfter="1 hour"
    )
    job = als.fitStream(stream(files(rows, 100), schema), tmp_path / "m", trigger=ONCE)
    job.awaitTermination()
    # by the medians of batches, minutes 149 and 249
    assert job.metrics(all=True).forgottenUsers.tolist() == [0, 29, 34]
    part = files(rows[:200], 100, "part")
    als.fitStream(stream(part, schema), tmp_path / "n", trigger=ONCE).awaitTermination()
    files(rows[200:], 100, "part", first=2)
    again = als.fitStream(stream(part, schema), tmp_path / "n", trigger=ONCE)
    again.awaitTermination()
    kept = StreamingBiasedALSModel.load(str(tmp_path / "n"))
    assert_same_bits(kept, job.model)
    assert sorted(kept.userFactors.toPandas().id) == list(range(63, 100))
    told = start.value // 1000 + 60_000_000 * np.arange(191, 300, 3)
    assert sorted(kept.state.users.memory.moment.tolist()) == told.tolist()


@pytest.mark.parametrize(
    ("column", "schema", "error", "said"),
    [
        ("", "user long, item long", ValueError, "set timestampCol"),
        ("time", "user long, item long, time long", TypeError, "'time' .* got bigint"),
    ],
)
def test_a_time_that_cannot_be_told_is_refused(
    spark, stream, tmp_path, column, schema, error, said
):
    als = StreamingBiasedALS(timestampCol=column, implicitPrefs=True, forgetUsersAfter="1 hour")
    with pytest.raises(error, match=said):
        als.fitStream(stream(str(tmp_path), schema), tmp_path / "m")
    with pytest.raises(error, match=said):
        als.fit(spark.createDataFrame([], schema))
    assert not (tmp_path / "m").exists()
