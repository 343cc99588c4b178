"""Features of users and items for models of events: fitted, joined, streamed, served by Spark."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from helpers import ONCE, assert_same_bits, long_after, predictions
from pyspark.sql import functions as F

from sparkml_sgdals import Predictor, StreamingBiasedALS, StreamingBiasedALSModel

USERS, ITEMS, COLD = 60, 60, 48
GENRES = np.array(["Comedy", "War", "Drama"])[np.arange(ITEMS) % 3]
ALS = {"implicitPrefs": True, "rank": 8}


def events() -> pd.DataFrame:
    """Who did what: users like items of one genre each."""
    rng = np.random.default_rng(3)
    same = np.arange(USERS)[:, None] % 3 == np.arange(ITEMS) % 3
    user, item = np.nonzero(rng.random((USERS, ITEMS)) < np.where(same, 0.5, 0.03))
    order = rng.permutation(user.size)
    return pd.DataFrame(
        {"user": user[order], "item": item[order], "time": np.arange(user.size) + 1_000_000}
    )


EVENTS = events()
OLD, NEW = EVENTS[EVENTS.item < COLD], EVENTS[EVENTS.item >= COLD]


@pytest.fixture(scope="module")
def films(spark):
    """Genres of all items, in plain columns."""
    return spark.createDataFrame(pd.DataFrame({"item": np.arange(ITEMS), "genre": GENRES}))


@pytest.fixture(scope="module", params=long_after(1, ["", "time"]), ids=["alone", "timed"])
def model(request, spark, films):
    als = StreamingBiasedALS(timestampCol=request.param, **ALS).setItemFeatures(films)
    return als.fit(spark.createDataFrame(OLD))


@pytest.mark.long
def test_new_items_are_offered_to_those_who_should_like_them(spark, films, model, tmp_path):
    """By lists, by likeness, in one process, and once the model was saved."""
    path = str(tmp_path / "model")
    model.write().overwrite().save(path)
    again = StreamingBiasedALSModel.load(path)
    assert_same_bits(again, model)
    new = films.where(F.col("item") >= COLD)
    more = again.withItems(new)
    assert (more.version, more.state.items.size) == (model.version + 1, ITEMS)
    candidates = new.select("item")
    lists = more.recommendForAllUsers(4, candidates=candidates).toPandas()
    found = lists.explode("recommendations")
    right = (
        GENRES[[one["item"] for one in found.recommendations]] == GENRES[found.user.to_numpy() % 3]
    )
    assert right.mean() > 0.9
    best = Predictor.load(path).with_items({n: {"genre": GENRES[n]} for n in range(COLD, ITEMS)})
    one = best.recommend([5], 4, candidates=[list(range(COLD, ITEMS))])
    (own,) = (row for row in lists.itertuples() if row.user == 5)
    assert one["item"].tolist() == [row["item"] for row in own.recommendations]
    alike = more.similarItems(spark.createDataFrame([(COLD,)], "item long"), 5).first()
    assert {GENRES[row["item"]] for row in alike[1]} == {GENRES[COLD]}
    told = again.featureWeights.toPandas()
    assert sorted(told.feature) == ["genre=Comedy", "genre=Drama", "genre=War"]
    assert {len(each) for each in told.features} == {ALS["rank"]}


@pytest.mark.long
def test_transform_takes_the_column_for_unknown_items(spark, films, model):
    """As lists do that they have joined; who should like them gains by it, others do not."""
    pairs = spark.createDataFrame(NEW[["user", "item"]])
    given = model.copy().setItemFeaturesCol("itemFeatures")
    told = given.transform(pairs.join(model.itemVectors(films), "item", "left"))
    by = ["user", "item"]
    with_column = predictions(told, by)
    joined = predictions(model.withItems(films).transform(pairs), by)
    np.testing.assert_allclose(with_column, joined, atol=0.35)
    gained = with_column - predictions(model.transform(pairs), by)
    rows = NEW.sort_values(by)
    liked = GENRES[rows["item"]] == GENRES[rows.user % 3]
    assert gained[liked].mean() > gained[~liked].mean() + 0.5
    known = given.setColdStartStrategy("drop").transform(
        pairs.join(given.itemVectors(films), "item")
    )
    assert known.count() == len(NEW)


@pytest.mark.long
def test_it_is_judged_by_lists(spark, films, model):
    """Beside popular items; new items by their features among themselves."""
    vectors = model.itemVectors(films)
    held = spark.createDataFrame(EVENTS).join(vectors, "item", "left")
    given = model.copy().setItemFeaturesCol("itemFeatures")
    # what was learned is no evidence, and a pair counts once
    found = given.diagnose(held.unionByName(held.limit(30)))
    assert (found.predicted, found.judged) == (len(NEW), NEW.user.nunique())
    assert (found.ratings, found.users, found.items) == (len(OLD), USERS, COLD)
    assert found.coldPredicted == len(NEW)
    assert found.coldLists == NEW.user.nunique()
    assert found.featuresHelp
    assert found.coldNdcg > 1.3 * found.coldPlainNdcg
    more = model.withItems(films).evaluateRanking(held, 10, spark.createDataFrame(OLD))
    assert found.ndcg == pytest.approx(more.ndcg, abs=0.1)
    assert found.recall == pytest.approx(more.recall, abs=0.1)
    plain = model.diagnose(held)
    assert (plain.coldPredicted, plain.coldNdcg, plain.featuresHelp) == (len(NEW), None, False)
    # nothing that it knows of was held out
    assert plain.recall == plain.baselineNdcg == found.baselineNdcg == 0.0
    assert "Not yet: only" in plain.verdict
    assert model.diagnose().predicted == 0


def test_new_users_are_judged_beside_popular_items(spark):
    """By what features say of them; an event rated 0 is none."""
    people = spark.createDataFrame(
        pd.DataFrame({"user": np.arange(USERS), "likes": GENRES[np.arange(USERS) % 3]})
    )
    old = EVENTS.user < 48
    als = StreamingBiasedALS(timestampCol="", **ALS).setUserFeatures(people)
    model = als.fit(spark.createDataFrame(EVENTS[old]))
    model.setUserFeaturesCol("userFeatures")
    held = EVENTS[~old].assign(rating=np.where(np.arange((~old).sum()) % 5, 1.0, 0.0))
    found = model.diagnose(spark.createDataFrame(held).join(model.userVectors(people), "user"))
    assert found.predicted == found.coldPredicted == (held.rating > 0).sum()
    assert found.coldLists == found.judged == held[held.rating > 0].user.nunique()
    assert found.featuresHelp
    assert found.coldNdcg == pytest.approx(found.ndcg)
    assert found.coldPlainNdcg == pytest.approx(found.baselineNdcg, abs=0.1)


def test_a_stream_goes_on(spark, films, model, tmp_path):
    """A new item starts where its column says, exactly once; a row of an item alone adds it."""
    folder = tmp_path / "in"
    vectors = model.itemVectors(films)
    rows = spark.createDataFrame(NEW[: len(NEW) // 2]).join(vectors, "item", "left")
    only = vectors.where(F.col("item") == ITEMS - 1).withColumn("user", F.lit(None).cast("long"))
    only = only.withColumn("time", F.lit(0).cast("long"))
    rows.unionByName(only).coalesce(1).write.parquet(str(folder))
    stream = spark.readStream.schema(rows.schema).parquet(str(folder))
    start = model.copy().setItemFeaturesCol("itemFeatures")
    job = start.updateStream(stream, str(tmp_path / "m"), trigger=ONCE)
    job.awaitTermination()
    state = job.model.state
    assert state.items.size == ITEMS
    assert job.metrics().invalid.sum() == 0
    assert state.items.featured[COLD:].all()
    again = StreamingBiasedALSModel.load(str(tmp_path / "m"))
    assert_same_bits(again, job.model)
    another = spark.createDataFrame([(9001, "War")], films.schema)
    more = model.withItems(another, modelPath=str(tmp_path / "m"))
    assert (more.version, more.state.items.size) == (again.version + 1, ITEMS + 1)


@pytest.mark.long
def test_a_stream_from_nothing(spark, films, tmp_path):
    """It learns what features say as it goes; new items are scored by their column, and join."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number, part in enumerate(np.array_split(np.arange(len(OLD)), 4)):
        OLD.iloc[part].to_parquet(folder / f"{number}.parquet", index=False)
    als = StreamingBiasedALS(timestampCol="time", **ALS).setItemFeatures(films)

    def run(path):
        reader = spark.readStream.schema("user long, item long, time long")
        stream = reader.option("maxFilesPerTrigger", 1).parquet(str(folder))
        job = als.fitStream(stream, str(tmp_path / path), trigger=ONCE)
        job.awaitTermination()
        return job.model

    model = run("m")
    assert model.state.features[1].sums is not None
    assert_same_bits(StreamingBiasedALSModel.load(str(tmp_path / "m")), model)
    assert_same_bits(run("n"), model)
    pairs = spark.createDataFrame(NEW).join(model.itemVectors(films), "item")
    scored = model.copy().setItemFeaturesCol("itemFeatures").setColdStartStrategy("nan")
    found = predictions(scored.transform(pairs), ["user", "item"])
    assert np.isfinite(found).all()
    more = model.withItems(films.where(F.col("item") >= COLD), modelPath=str(tmp_path / "m"))
    joined = predictions(more.transform(pairs), ["user", "item"])
    # what joins has a start of its own besides
    assert np.corrcoef(joined, found)[0, 1] > 0.5


@pytest.mark.long
def test_in_blocks_as_in_one_task(spark, films):
    """What features say is learned from what blocks learned."""
    als = StreamingBiasedALS(timestampCol="", numBlocks=2, **ALS).setItemFeatures(films)
    model = als.fit(spark.createDataFrame(OLD))
    assert model.summary.form == "2 blocks"
    one = als.copy().setNumBlocks(1).fit(spark.createDataFrame(OLD))
    pairs = spark.createDataFrame(NEW).join(model.itemVectors(films), "item")
    found, expected = (
        predictions(m.copy().setItemFeaturesCol("itemFeatures").transform(pairs), ["user", "item"])
        for m in (model, one)
    )
    np.testing.assert_allclose(found, expected, rtol=0.05, atol=0.02)
