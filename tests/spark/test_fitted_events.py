"""Tables of events on Spark: fitted as a whole, scored by one judge or two."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import long_after, predictions
from pyspark.sql import functions as F

from sparkml_sgdals import Predictor, StreamingBiasedALS


@pytest.fixture(scope="module")
def liked(small):
    good = small[small.rating >= 3.5].sort_values("time", kind="stable")
    return good.drop_duplicates(["user", "item"])[["user", "item", "time"]].reset_index(drop=True)


@pytest.fixture(scope="module", params=long_after(1, ["", "time"]))
def fitted(request, liked, spark):
    """A model without times, by the table alone, and one with them, by table and filter."""
    frame = spark.createDataFrame(liked)
    return StreamingBiasedALS(timestampCol=request.param, rank=8, implicitPrefs=True).fit(frame)


def test_transform_orders_as_lists_do(fitted, liked, spark):
    seen = spark.createDataFrame(liked)
    users = spark.createDataFrame(
        [(u,) for u in [*liked.user.unique()[:9].tolist(), -1]], "user long"
    )
    lists = fitted.recommendForUserSubset(users, 8, excludeSeen=seen).collect()
    assert len(lists) == 10
    rows = [(r.user, s.item, s.rating) for r in lists for s in r.recommendations]
    frame = spark.createDataFrame(rows, "user long, item long, rating float")
    again = predictions(fitted.transform(frame), ["user", "item"])
    np.testing.assert_allclose(
        again, predictions(frame, ["user", "item"], "rating"), rtol=1e-3, atol=1e-3
    )
    done = set(zip(liked.user, liked.item, strict=True))
    assert not done & {row[:2] for row in rows}
    assert all(
        r.recommendations == sorted(r.recommendations, key=lambda s: -s.rating) for r in lists
    )


def test_one_process_says_what_spark_says(fitted, liked, spark, tmp_path):
    path = str(tmp_path / "model")
    fitted.write().save(path)
    users = liked.user.unique()[:5].tolist()
    found = Predictor.load(path).recommend([*users, -1], 6)
    asked = spark.createDataFrame([(u,) for u in [*users, -1]], "user long")
    lists = {
        r.user: [s.item for s in r.recommendations]
        for r in fitted.recommendForUserSubset(asked, 6).collect()
    }
    assert found.groupby("user").item.apply(list).to_dict() == lists


def test_users_for_items_have_the_same_scores(fitted, liked, spark):
    items = spark.createDataFrame([(i,) for i in liked.item.unique()[:4].tolist()], "item long")
    lists = fitted.recommendForItemSubset(items, 5).collect()
    rows = [(s.user, r.item, s.rating) for r in lists for s in r.recommendations]
    frame = spark.createDataFrame(rows, "user long, item long, rating float")
    np.testing.assert_allclose(
        predictions(fitted.transform(frame), ["user", "item"]),
        predictions(frame, ["user", "item"], "rating"), rtol=1e-3, atol=1e-3,
    )  # fmt: skip


def test_factors_are_those_of_the_table(fitted, liked):
    users, items = fitted.userFactors.toPandas(), fitted.itemFactors.toPandas()
    assert fitted.rank == 8
    assert {len(f) for f in [*users.features, *items.features]} == {8}
    products = np.stack(users.features) @ np.stack(items.features).T
    done = np.zeros(products.shape, bool)
    rows = (
        users.reset_index().set_index("id")["index"],
        items.reset_index().set_index("id")["index"],
    )
    done[rows[0][liked.user], rows[1][liked.item]] = True
    assert products[done].mean() > 1.3 * products[~done].mean()


def test_nobody_is_folded_in(fitted, liked):
    """It is refused before anything is asked of the table."""
    for given in (liked.head(3), liked[["user", "item"]].head(3)):
        with pytest.raises(ValueError, match=r"learned from events.*model.copy\(\).update"):
            fitted.recommendForRatings(given, 5)


def test_an_explanation_says_nothing_of_rounding(fitted, liked):
    for user, item in liked[["user", "item"]].drop_duplicates().head(40).to_numpy().tolist():
        for part in fitted.explain(user, item).collect():
            if part.part == "stands together":
                assert part.value == 0 or abs(part.value) > 1e-5
                assert (part.value > 0) == part.note.startswith("often")


def test_the_summary_tells_the_sweeps(fitted, liked):
    summary = fitted.summary
    assert (summary.ratings, summary.form) == (len(liked), "one task")
    assert 3 <= summary.totalIterations == len(summary.rmse) <= 16
    assert summary.rmse[-1] < summary.rmse[0] < 1


def test_partitions_change_nothing(liked, spark):
    als = StreamingBiasedALS(rank=4, implicitPrefs=True)
    one = als.fit(spark.createDataFrame(liked).coalesce(1))
    many = als.fit(spark.createDataFrame(liked.sample(frac=1, random_state=3)).repartition(5))
    assert one.state.fingerprint() == many.state.fingerprint()


def test_params_of_the_fit(liked, spark):
    """regParam and unobservedWeight change it, and a grid of sweeps is learned on one way."""
    frame = spark.createDataFrame(liked).cache()
    als = StreamingBiasedALS(rank=4, implicitPrefs=True, maxIter=3)
    free = als.fit(frame)
    assert free.state.regularisation[0] > 0
    strong = als.copy({als.regParam: 0.5}).fit(frame)
    assert strong.state.regularisation == (0.5, 0.5)
    heavy = als.copy({als.unobservedWeight: 1.0}).fit(frame)
    sizes = [np.abs(m.state.users.taste[:, 1:]).mean() for m in (free, strong, heavy)]
    assert sizes[0] > max(sizes[1:])
    grid = [{als.maxIter: n} for n in (2, 3)]
    models = dict(als.fitMultiple(frame, grid))
    assert models[1].state.fingerprint() == free.state.fingerprint()
    assert models[0].summary.totalIterations == 2


@pytest.mark.long
def test_a_table_beats_what_is_popular(liked, spark):
    """Judged on a fifth held out at random, whole catalogue."""
    test = np.random.default_rng(0).random(len(liked)) < 0.2
    train = spark.createDataFrame(liked[~test])
    held = spark.createDataFrame(liked[test])
    model = StreamingBiasedALS(implicitPrefs=True).fit(train)
    judged = model.evaluateRanking(held, 20, excludeSeen=train)
    popular = (
        train.groupBy("item").count().orderBy(F.desc("count"), "item").limit(60).toPandas().item
    )
    hits = []
    seen = liked[~test].groupby("user").item.apply(set)
    for user, own in liked[test].groupby("user").item:
        best = [item for item in popular if item not in seen.get(user, set())][:20]
        hits.append(len(set(best) & set(own)) / min(20, len(own)))
    assert judged.recall > np.mean(hits)


def test_an_update_goes_on_from_a_table(fitted, liked, spark):
    model = fitted.copy()
    more = spark.createDataFrame(
        [(10**6, int(liked.item[0]), 10**9)], "user long, item long, time long"
    )
    model.update(more)
    assert model.state.users.size == fitted.state.users.size + 1
    assert model.state.events_learned == len(liked) + 1
    assert fitted.state.users.size == liked.user.nunique()
