"""Rankings judged on tables: against loops over what is recommended, and Spark's own evaluator."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from pyspark.ml.evaluation import RankingEvaluator

from sparkml_sgdals import RankingEvaluation, StreamingBiasedALS
from sparkml_sgdals.ml.evaluate_methods import RANKING_METRICS
from sparkml_sgdals.spark_jobs import task_limit

K = 5
STRANGER, NOVELTY = -77, -5
"""A user and an item that the model does not know"""


@pytest.fixture(scope="module")
def parts(small):
    """Train and test, with what real tables have: pairs again, in both, of strangers, nulls."""
    test = np.random.default_rng(3).random(len(small)) < 0.25
    train, held = small[~test], small[test]
    seen = train.iloc[[5]]
    own = held[held.user == held.user.iloc[0]].iloc[[0]]
    more = [
        own, own, seen,
        own.assign(item=NOVELTY), own.assign(user=STRANGER),
        own.assign(user=STRANGER, item=NOVELTY),
        # all that this one did is in train too: nothing of it is held out
        seen.assign(user=-1),
    ]  # fmt: skip
    return pd.concat([train, seen.assign(user=-1)]), pd.concat([held, *more])


@pytest.fixture(scope="module")
def tables(spark, parts):
    return tuple(spark.createDataFrame(part) for part in parts)


@pytest.fixture(scope="module")
def model(tables):
    return StreamingBiasedALS(rank=4, timestampCol="time").fit(tables[0])


@pytest.fixture(scope="module")
def found(model, tables):
    return model.evaluateRanking(tables[1], K, excludeSeen=tables[0])


def lists_of(model, table, k, seen):
    frame = model.recommendForUserSubset(table, k, excludeSeen=seen)
    return {r.user: [i.item for i in r.recommendations] for r in frame.collect()}


def by_loops(lists, train, test, items, k):
    """Every field that is no count of the test, as the page of the metrics says it."""
    seen = set(zip(train.user, train.item, strict=True))
    held = {}
    for pair in zip(test.user, test.item, strict=True):
        if pair not in seen:
            held.setdefault(pair[0], set()).add(pair[1])
    rows, places = [], Counter()
    for user, liked in held.items():
        hits = [n for n, item in enumerate(lists[user], 1) if item in liked]
        best = min(k, len(liked))
        ideal = sum(1 / math.log2(1 + n) for n in range(1, best + 1))
        rows.append(
            {
                "recall": len(hits) / best,
                "ndcg": sum(1 / math.log2(1 + n) for n in hits) / ideal,
                "mrr": 1 / hits[0] if hits else 0.0,
                "map": sum((i + 1) / n for i, n in enumerate(hits)) / best,
                "hitRate": float(bool(hits)),
                "precision": len(hits) / k,
            }
        )
        places.update(lists[user])
    table = pd.DataFrame(rows)
    counts = sorted([0] * (items - len(places)) + list(places.values()))
    total = sum(counts)
    done = train.groupby("item").user.nunique()
    bits = {item: -math.log2(done[item] / train.user.nunique()) for item in places}
    return {
        "users": len(held),
        "heldOut": sum(map(len, held.values())),
        "coverage": len(places) / items,
        "gini": sum((2 * n - items - 1) * c for n, c in enumerate(counts, 1))
        / ((items - 1) * total),
        "novelty": sum(bits[item] * n for item, n in places.items()) / total,
        **table.mean().to_dict(),
    }, table.sem().to_dict()


def test_every_metric_as_by_loops(model, tables, parts, found):
    items = model.itemFactors.count()
    lists = lists_of(model, tables[1], K, tables[0])
    expected, errors = by_loops(lists, *parts, items, K)
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, abs=1e-12), name
    for name, value in errors.items():
        assert found.standardErrors[name] == pytest.approx(value, abs=1e-9), name
    assert 0.05 < found.recall < 1.0
    assert (found.k, found.items) == (K, items)
    # all that -1 did in the test is in train too
    assert found.usersLeftOut == parts[1].user.nunique() - expected["users"] > 0
    # the stranger is judged by what strangers get, and an unknown item is missed
    assert (found.coldUsers, found.unknownHeldOut) == (1, 2)


@pytest.mark.long
@pytest.mark.parametrize("k", [3, 10])
def test_spark_agrees_where_definitions_do(model, tables, k):
    train, test = tables
    found = model.evaluateRanking(test, k, excludeSeen=train)
    lists = model.recommendForUserSubset(test, k, excludeSeen=train)
    columns = model.rankingColumns(lists, test, excludeSeen=train)
    assert columns.dtypes == [
        ("user", "bigint"), ("prediction", "array<double>"), ("label", "array<double>"),
    ]  # fmt: skip
    assert columns.count() == found.users
    theirs = {
        "ndcg": "ndcgAtK",
        "map": "meanAveragePrecisionAtK",
        "precision": "precisionAtK",
    }
    for ours, name in theirs.items():
        evaluator = RankingEvaluator(metricName=name, k=k)
        assert evaluator.evaluate(columns) == pytest.approx(getattr(found, ours), abs=1e-12)
    # theirs is divided by all that was held out, though the list has k places
    recall = RankingEvaluator(metricName="recallAtK", k=k).evaluate(columns)
    rows = columns.toPandas()
    hits = [len(set(r.prediction) & set(r.label)) for r in rows.itertuples()]
    assert recall == pytest.approx(np.mean(hits / rows.label.str.len()))
    assert recall < found.recall


@pytest.mark.long
def test_strings_are_judged_alike(found, parts, spark):
    """The same table under names: equal numbers, by lists of places in the place of ids."""
    names = [p.assign(user="u" + p.user.astype(str), item="i" + p.item.astype(str)) for p in parts]
    train, test = (spark.createDataFrame(part) for part in names)
    named = StreamingBiasedALS(rank=4, timestampCol="time").fit(train)
    strings = named.evaluateRanking(test, K, excludeSeen=train)
    lists = named.recommendForUserSubset(test, K, excludeSeen=train)
    columns = named.rankingColumns(lists, test, excludeSeen=train)
    assert dict(columns.dtypes)["user"] == "string"
    rows = columns.collect()
    assert len(rows) == strings.users
    assert all(list(r.prediction) == [0.0, 1.0, 2.0, 3.0, 4.0] for r in rows)
    assert all(len(set(r.label)) == len(r.label) for r in rows)
    evaluator = RankingEvaluator(metricName="ndcgAtK", k=K)
    assert evaluator.evaluate(columns) == pytest.approx(strings.ndcg, abs=1e-12)
    counts = ("users", "heldOut", "items", "coldUsers", "usersLeftOut", "unknownHeldOut")
    assert [getattr(strings, n) for n in counts] == [getattr(found, n) for n in counts]


def test_ids_that_no_double_tells_apart_become_places(spark):
    large = 2**53
    frame = spark.createDataFrame(
        [(u, large + i, 3.0 + i) for u in range(3) for i in range(3) if u != i],
        "user long, item long, rating double",
    )
    model = StreamingBiasedALS(rank=1, maxIter=0).fit(frame)
    test = spark.createDataFrame([(0, large), (0, large + 9)], "user long, item long")
    lists = model.recommendForUserSubset(test, 3)
    (row,) = model.rankingColumns(lists, test).collect()
    (listed,) = lists.collect()
    assert list(row.prediction) == [0.0, 1.0, 2.0]
    place = [r.item for r in listed.recommendations].index(large)
    assert sorted(row.label) == [float(place), 4.0]


def test_users_without_a_list_have_an_empty_one(model, tables):
    _, test = tables
    some = model.recommendForUserSubset(test.where("user < 100"), K)
    rows = model.rankingColumns(some, test).collect()
    assert {len(r.prediction) for r in rows if r.user >= 100} == {0}
    assert {len(r.prediction) for r in rows if r.user < 100} == {K}


@pytest.mark.long
def test_order_and_partitions_do_not_matter(model, tables, found):
    train, test = tables
    other = model.evaluateRanking(
        test.orderBy("time").repartition(7), K, excludeSeen=train.repartition(4)
    )
    assert found == other


@pytest.mark.long
def test_only_what_was_liked_counts(model, tables, found):
    train, test = tables
    liked = model.evaluateRanking(test, K, train, threshold=4.0)
    same = model.evaluateRanking(test.where("rating >= 4"), K, train)
    # users of the test without anything that they liked are left out, and counted
    assert liked.usersLeftOut > same.usersLeftOut
    assert replace(liked, usersLeftOut=same.usersLeftOut) == same
    assert liked.heldOut < found.heldOut


@pytest.mark.long
def test_without_a_table_of_what_was_seen(model, tables):
    found = model.evaluateRanking(tables[1], K)
    assert math.isnan(found.novelty)
    assert found.usersLeftOut == 0
    assert found.recall > 0


def test_nothing_to_judge(model, tables):
    train, test = tables
    found = model.evaluateRanking(test.where("user = -1"), K, excludeSeen=train)
    assert (found.users, found.usersLeftOut, found.heldOut) == (0, 1, 0)
    for name in (*RANKING_METRICS, "coverage", "gini", "novelty"):
        assert math.isnan(getattr(found, name)), name
    assert "nan" in repr(found)


@pytest.fixture(scope="module")
def events(tables):
    return StreamingBiasedALS(rank=4, implicitPrefs=True).fit(tables[0].drop("rating"))


class TestEvents:
    @pytest.mark.long
    def test_they_are_judged_too(self, events, tables, parts):
        train, test = tables
        found = events.evaluateRanking(test.drop("rating"), K, excludeSeen=train)
        lists = lists_of(events, test, K, train)
        expected, _ = by_loops(lists, *parts, found.items, K)
        for name, value in expected.items():
            assert getattr(found, name) == pytest.approx(value, abs=1e-12), name

    @pytest.mark.long
    def test_strangers_are_judged_by_what_is_popular(self, events, tables, parts, spark):
        first = lists_of(events, spark.createDataFrame([(STRANGER,)], "user long"), 1, None)
        (popular,) = first[STRANGER]
        done = parts[0].groupby("item").size()
        assert done[popular] >= done.quantile(0.9)
        test = spark.createDataFrame([(STRANGER, popular)], "user long, item long")
        found = events.evaluateRanking(test, K, excludeSeen=tables[0])
        assert (found.ndcg, found.users, found.coldUsers) == (1.0, 1, 1)

    @pytest.mark.long
    def test_what_was_not_wanted_does_not_count(self, events, tables, spark, parts):
        train, test = tables
        turned = test.withColumn("rating", test.rating - 3.0)
        found = events.evaluateRanking(turned, K, excludeSeen=train)
        wanted = events.evaluateRanking(test.where("rating > 3"), K, excludeSeen=train)
        assert (found.recall, found.heldOut) == (wanted.recall, wanted.heldOut)
        assert found.heldOut < len(parts[1]) / 2 + 100


def test_it_reads_well(found):
    assert isinstance(found, RankingEvaluation)
    assert f"recall@{K} {found.recall:.4f} +- {found.standardErrors['recall']:.4f}" in repr(found)
    assert f"{found.usersLeftOut} left out" in repr(found)
    row = found.toPandas()
    assert row.shape[0] == 1
    assert row.recall[0] == found.recall
    assert row.recallStandardError[0] == found.standardErrors["recall"]


@pytest.mark.long
def test_nothing_stays_in_memory(model, tables, spark, classic_only):
    before = spark._jsparkSession.sharedState().cacheManager().numCachedEntries()
    model.evaluateRanking(tables[1], K, excludeSeen=tables[0])
    assert spark._jsparkSession.sharedState().cacheManager().numCachedEntries() == before


def test_bad_arguments(model, tables, spark, files, stream, small):
    _, test = tables
    with pytest.raises(ValueError, match="at least 1, got 0"):
        model.evaluateRanking(test, 0)
    with pytest.raises(TypeError, match=r"k must be an integer.*\[5, 10\]"):
        model.evaluateRanking(test, [5, 10])
    with pytest.raises(ValueError, match="itemCol 'item' is not a column"):
        model.evaluateRanking(test.drop("item"))
    with pytest.raises(ValueError, match="ratingCol 'rating' is not a column"):
        model.evaluateRanking(test.drop("rating"), threshold=4.0)
    with pytest.raises(TypeError, match="userCol 'user' has type string"):
        model.evaluateRanking(test.withColumn("user", test.user.cast("string")))
    with pytest.raises(ValueError, match="rankings are judged on a table"):
        model.evaluateRanking(stream(files(small.iloc[:20], 10)))
    with pytest.raises(ValueError, match="recommendations 'recommendations' is not a column"):
        model.rankingColumns(test, test)


def test_no_stage_has_a_task_for_each_of_200_partitions(classic_only, spark, parts):
    """Whatever the session shuffles into: few rows are judged in as many tasks as cores can use."""
    train, held = parts
    events = StreamingBiasedALS(rank=4, implicitPrefs=True, maxIter=2).fit(train)
    expected = events.evaluateRanking(held, K, excludeSeen=train)
    tracker = spark.sparkContext.statusTracker()
    before = set(tracker.getJobIdsForGroup())
    usual = spark.conf.get("spark.sql.shuffle.partitions")
    spark.conf.set("spark.sql.shuffle.partitions", 200)
    try:
        found = events.evaluateRanking(held, K, excludeSeen=train)
        judged = events.diagnose(held).judged
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", usual)
    jobs = set(tracker.getJobIdsForGroup()) - before
    stages = [tracker.getStageInfo(n) for job in jobs for n in tracker.getJobInfo(job).stageIds]
    tasks = [stage.numCompletedTasks for stage in stages if stage is not None]
    assert judged > 0
    assert found == expected
    assert 0 < max(tasks) <= task_limit(spark)
