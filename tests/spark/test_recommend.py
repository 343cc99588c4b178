"""Recommend, similar ids, a start from Spark's ALS; against NumPy over the whole matrix."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from helpers import predictions
from pyspark.ml.recommendation import ALS
from pyspark.sql import functions as F

from sparkml_sgdals import StreamingBiasedALS, StreamingBiasedALSModel
from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.learn.one_batch import HeldItems, fold_in
from sparkml_sgdals.predict import recommending


@pytest.fixture(scope="module")
def model(ratings):
    als = StreamingBiasedALS(rank=4, timestampCol="time", clipPredictions=False)
    return als.fit(ratings.withColumn("item", F.col("item").cast("int")))


@pytest.fixture(scope="module")
def matrix(model):
    """All predictions as a matrix, with the ids of its rows and columns, sorted."""
    state = model.state
    users, items = (np.sort(t.index.ids().to_numpy()) for t in (state.users, state.items))
    rows = state.users.index.find(pa.array(np.repeat(users, items.size)))
    columns = state.items.index.find(pa.array(np.tile(items, users.size)))
    scores, variances = state.predict(rows, columns)
    shape = users.size, items.size
    return users, items, scores.reshape(shape).astype(float), variances.reshape(shape)


def best_of(scores, ids, count):
    return [ids[j] for j in np.argsort(-scores, kind="stable")[:count]]


def assert_ranked(frame, query, candidate, expected, ids, count):
    """Ids may swap where float32 cannot tell their scores apart."""
    rows = {row[query]: row.recommendations for row in frame.collect()}
    assert set(rows) == set(expected)
    for key, found in rows.items():
        scores = dict(zip(ids, expected[key], strict=True))
        given = [r[candidate] for r in found]
        wanted = best_of(expected[key], ids, count)
        assert len(given) == len(set(given)) == len(wanted)
        np.testing.assert_allclose(
            [scores[i] for i in given], [scores[i] for i in wanted], atol=1e-4
        )
        np.testing.assert_allclose([r.rating for r in found], [scores[i] for i in given], atol=1e-4)


def test_tables_of_many_partitions_are_gathered_where_python_runs(model, ratings, spark, capsys):
    """Each Python task costs as much as thousands of rows."""
    many = ratings.select("user", "item", "time").limit(600).repartition(60)
    model.recommendForAllUsers(3, excludeSeen=many).explain()
    assert "Coalesce 8" in capsys.readouterr().out
    model.transform(many).explain()
    # all of it runs in the JVM
    assert "Coalesce" not in capsys.readouterr().out
    events = StreamingBiasedALS(implicitPrefs=True, ratingCol="", timestampCol="time", rank=2)
    scored = events.fit(many).transform(many)
    scored.explain()
    assert "Coalesce 8" in capsys.readouterr().out
    assert scored.count() == 600


def test_for_all_users(model, matrix):
    users, items, scores, _ = matrix
    frame = model.recommendForAllUsers(7)
    assert frame.schema.simpleString() == (
        "struct<user:bigint,recommendations:array<struct<item:int,rating:float>>>"
    )
    assert_ranked(frame, "user", "item", dict(zip(users, scores, strict=True)), items, 7)


def test_for_all_items(model, matrix):
    users, items, scores, _ = matrix
    frame = model.recommendForAllItems(5)
    assert_ranked(frame, "item", "user", dict(zip(items, scores.T, strict=True)), users, 5)


@pytest.mark.long
def test_schema_is_that_of_spark(model, ratings):
    als = ALS(userCol="user", itemCol="item", rank=2, maxIter=1)
    theirs = als.fit(ratings).recommendForAllUsers(3).schema.simpleString()
    ours = model.recommendForAllUsers(3).schema.simpleString()
    assert ours == theirs.replace("user:int", "user:bigint")


@pytest.mark.parametrize(("rank_by", "sign"), [("upper", 1.0), ("lower", -1.0)])
def test_bounds(model, matrix, rank_by, sign):
    users, items, scores, variances = matrix
    expected = scores + sign * np.sqrt(variances)
    frame = model.recommendForAllUsers(6, rankBy=rank_by)
    assert_ranked(frame, "user", "item", dict(zip(users, expected, strict=True)), items, 6)


def test_without_what_was_seen(model, matrix, ratings, small):
    users, items, scores, _ = matrix
    found = model.recommendForAllUsers(8, excludeSeen=ratings).collect()
    seen = small.groupby("user").item.apply(set).to_dict()
    assert len(found) == len(users)
    for row in found:
        given = [r.item for r in row.recommendations]
        assert not seen[row.user] & set(given)
        position = int(np.searchsorted(users, row.user))
        rest = [j for j, item in enumerate(items) if item not in seen[row.user]]
        wanted = best_of(scores[position, rest], items[rest], 8)
        assert len(given) == len(wanted)


def lists(frame, query="user"):
    """By query, the candidates and their ratings, best first."""
    return {row[query]: [(r[0], r.rating) for r in row.recommendations] for row in frame.collect()}


def of_those(whole, among):
    """What is left of rankings of all candidates where each has some to choose from."""
    return {
        q: [pair for pair in found if pair[0] in among.get(q, ())] for q, found in whole.items()
    }


@pytest.fixture(scope="module")
def whole(model):
    return {
        side: lists(frame, side)
        for side, frame in (
            ("user", model.recommendForAllUsers(10**6)), ("item", model.recommendForAllItems(10**6))
        )
    }  # fmt: skip


def test_candidates_for_all(model, whole, matrix, spark):
    """As a list or a column, of items and of users; what is not known is not ranked."""
    users, items, _, _ = matrix
    chosen = [*items[::3].tolist(), -5]
    expected = of_those(whole["user"], dict.fromkeys(whole["user"], chosen))
    assert lists(model.recommendForAllUsers(10**6, candidates=chosen)) == expected
    column = spark.createDataFrame([(i,) for i in [*chosen, chosen[0], None]], "item int")
    first = {q: found[:4] for q, found in expected.items()}
    assert lists(model.recommendForAllUsers(4, candidates=column)) == first
    some = users[:7].tolist()
    found = lists(model.recommendForItemSubset(items[:5].tolist(), 3, candidates=some), "item")
    among = of_those(whole["item"], dict.fromkeys(whole["item"], some))
    assert found == {q: among[q][:3] for q in items[:5].tolist()}
    nothing = lists(model.recommendForUserSubset(some, 3, candidates=[-5]))
    assert nothing == {user: [] for user in some}


@pytest.mark.parametrize("side", ["user", "item"])
def test_candidates_of_each(model, whole, ratings, small, side):
    """The pairs of a table, each once, and without those that were seen."""
    other = "item" if side == "user" else "user"
    wanted = small[small.time % 2 == 0]
    seen = small[small.rating >= 4]
    among = wanted.groupby(side)[other].apply(set).to_dict()
    gone = seen.groupby(side)[other].apply(set).to_dict()
    left = {q: found - gone.get(q, set()) for q, found in among.items()}
    subset = model.recommendForUserSubset if side == "user" else model.recommendForItemSubset
    asked = sorted({*wanted[side].tolist()[:40], -3})
    found = lists(subset(asked, 5, candidates=wanted, excludeSeen=seen), side)
    expected = of_those(whole[side], left)
    assert found == {q: expected.get(q, [])[:5] for q in asked}
    for query in asked[1:]:
        assert found[query] == expected[query][:5]


def test_seen_may_be_lists_and_items(model, whole, matrix):
    """What another ranking gave, and items that nobody is to get."""
    _, items, _, _ = matrix
    given = model.recommendForAllUsers(3)
    rest = lists(model.recommendForAllUsers(2, excludeSeen=given))
    assert rest == {q: found[3:5] for q, found in whole["user"].items()}
    gone = set(items[::2].tolist())
    left = lists(model.recommendForAllUsers(10**6, excludeSeen=list(gone)))
    assert left == of_those(whole["user"], dict.fromkeys(whole["user"], {*items.tolist()} - gone))


def test_a_bound_orders_some_candidates_too(model, matrix, small):
    users, items, scores, variances = matrix
    among = small.groupby("user").item.apply(set).to_dict()
    frame = model.recommendForAllUsers(4, rankBy="upper", candidates=small)
    upper = np.where(
        [[item in among[user] for item in items] for user in users],
        scores + np.sqrt(variances), -np.inf,
    )  # fmt: skip
    assert_ranked(frame, "user", "item", dict(zip(users, upper, strict=True)), items, 4)


def test_candidates_of_one(model, whole, matrix):
    users, items, _, _ = matrix
    user, chosen = int(users[4]), items[::4].tolist()
    found = model.recommendOne(user, 4, excludeSeen=chosen[:2], candidates=[*chosen, -9])
    expected = [pair for pair in whole["user"][user] if pair[0] in chosen[2:]]
    assert [r.item for r in found] == [item for item, _ in expected[:4]]


def test_candidates_that_are_none(model, stream, tmp_path):
    with pytest.raises(TypeError, match=r"candidates is a list of ids, or a table, got 5: write"):
        model.recommendForAllUsers(3, candidates=5)
    for columns in ({"user": [1], "film": [2]}, {"film": [2]}):
        with pytest.raises(ValueError, match=r"no column 'item' among .*set itemCol"):
            model.recommendForAllUsers(3, candidates=columns)
    with pytest.raises(TypeError, match="Ids of items are whole numbers"):
        model.recommendForAllUsers(3, candidates=["a"])
    with pytest.raises(ValueError, match="candidates is a stream"):
        model.recommendForAllUsers(3, candidates=stream(str(tmp_path)))
    for what in ("candidates", "excludeSeen"):
        with pytest.raises(ValueError, match=f"{what} has no column 'user' among 'userId', 'item'"):
            model.recommendForAllUsers(3, **{what: {"userId": [1], "item": [5]}})
    with pytest.raises(ValueError, match="excludeSeen holds items alone"):
        model.evaluateRanking({"user": [1], "item": [5]}, excludeSeen=[5])


@pytest.fixture(scope="module")
def newcomers(small):
    """Ratings of 30 users, whose ids the model may know, and of an item that it does not know."""
    some = small[small.user < 30 * 7].copy()
    some["user"] = np.where(some.user % 2, -some.user, some.user)
    some.iloc[::17, some.columns.get_loc("item")] = -9
    return some[["user", "item", "rating", "time"]]


def test_for_people_not_known(model, matrix, newcomers, spark):
    """As folded in here, without what they rated; and nothing is stored."""
    _, items, _, _ = matrix
    before = model.state.fingerprint()
    # several partitions, and a type of ids that is not the model's
    frame = spark.createDataFrame(newcomers).withColumn("user", F.col("user").cast("int"))
    found = model.recommendForRatings(frame.repartition(3), 6)
    assert found.schema["user"].dataType.simpleString() == "int"
    encoded = encode_ratings(pa.Table.from_pandas(newcomers, preserve_index=False))
    held = HeldItems.of(model.state)
    rows = model.state.items.index.find(encoded.item_ids)
    unknown = encoded.item_ids.filter(pa.array(rows < 0))
    assert unknown.to_pylist() == [-9]
    rows[rows < 0] = model.state.items.size
    mean, _ = fold_in(held.with_new(unknown), encoded, rows, "int")
    own = model.state.items.mean[model.state.items.index.find(pa.array(items))]
    scores = mean[:, :1] + own[:, 0] + mean[:, 1:] @ own[:, 1:].T
    scores = scores * model.state.scale.spread + model.state.scale.mean
    users = encoded.user_ids.to_pylist()
    rated = newcomers.groupby("user").item.apply(set).to_dict()
    expected = {
        user: np.where([item in rated[user] for item in items], -np.inf, row)
        for user, row in zip(users, scores.astype(float), strict=True)
    }
    assert_ranked(found, "user", "item", expected, items, 6)
    assert model.state.fingerprint() == before


def test_people_not_known_get_what_the_stream_would_give(model, newcomers):
    """Where the stream moves items as well, by the ratings of one user: a little."""
    one = newcomers[(newcomers.user == newcomers.user.min()) & (newcomers.item >= 0)]
    user = int(one.user.iloc[0])
    held = lists(model.recommendForRatings(one, 10**6, excludeSeen=False))[user]
    moved = dict(
        lists(model.copy().update(one).recommendForUserSubset([user], 10**6))[user]
    )  # fmt: skip
    apart = [abs(rating - moved[item]) for item, rating in held]
    assert len(held) == len(moved)
    assert np.median(apart) < 0.02
    assert max(apart) < 0.3


def test_people_not_known_with_candidates_and_bad_rows(model, newcomers, matrix):
    _, items, _, _ = matrix
    some = items[::3].tolist()
    user = newcomers[newcomers.user == 8][["item", "rating"]].assign(user=10**12)
    whole = lists(model.recommendForRatings(user, 10**6))[10**12]
    among = lists(model.recommendForRatings(user, 4, candidates=some))[10**12]
    assert among == [pair for pair in whole if pair[0] in some][:4]
    upper = lists(model.recommendForRatings(user, 4, rankBy="upper"))[10**12]
    assert upper[0][1] > whole[0][1]
    with pytest.raises(ValueError, match="are the same for everybody"):
        model.recommendForRatings(user, 4, candidates=newcomers)
    with pytest.raises(TypeError, match=r"is True or False.*got a DataFrame"):
        model.recommendForRatings(user, 4, excludeSeen=user)
    bad = user.assign(rating=np.nan)
    with pytest.raises(Exception, match=r"ratingCol .rating. is .*Repair or remove these rows"):
        model.recommendForRatings(bad, 4).collect()
    skipping = model.copy({model.handleInvalid: "skip"})
    assert skipping.recommendForRatings(bad, 4).count() == 0


def test_more_than_there_are(model, matrix):
    _, items, _, _ = matrix
    for row in model.recommendForAllUsers(10_000).limit(3).collect():
        assert len(row.recommendations) == len(items)


def test_subset_with_a_cold_user(model, matrix, spark):
    users, items, scores, _ = matrix
    wanted = [int(users[3]), int(users[3]), -77, None]
    subset = spark.createDataFrame([(u,) for u in wanted], "user long")
    rows = {r.user: r for r in model.recommendForUserSubset(subset, 4, coldCol="cold").collect()}
    assert set(rows) == {int(users[3]), -77}
    assert (rows[-77].cold, rows[int(users[3])].cold) == (True, False)
    first = [r.item for r in rows[int(users[3])].recommendations]
    assert first[0] == best_of(scores[3], items, 1)[0]
    biases = model.state.items.mean[model.state.items.index.find(pa.array(items)), 0]
    assert [r.item for r in rows[-77].recommendations] == best_of(biases, items, 4)
    plain = model.recommendForUserSubset(subset, 4)
    assert plain.columns == ["user", "recommendations"]
    assert model.recommendForItemSubset(spark.createDataFrame([(5,)], "item int"), 2).count() == 1


@pytest.mark.long
def test_parts_and_blocks_do_not_matter(model, ratings, monkeypatch):
    def table(frame):
        return {r.user: [(i.item, i.rating) for i in r.recommendations] for r in frame.collect()}

    whole = [
        table(model.recommendForAllUsers(6, *given))
        for given in [(), (ratings,), (None, "prediction", ratings)]
    ]
    monkeypatch.setattr(recommending, "QUERIES_PER_BLOCK", 50)
    monkeypatch.setattr(recommending, "CANDIDATES_PER_PART", 25)
    parts = [
        table(model.recommendForAllUsers(6, *given))
        for given in [(), (ratings,), (None, "prediction", ratings)]
    ]
    assert whole == parts


def test_ratings_are_clipped_after_ranking(model, matrix):
    clipped = model.copy({model.clipPredictions: True}).recommendForAllUsers(5)
    free = {
        r.user: [i.item for i in r.recommendations] for r in model.recommendForAllUsers(5).collect()
    }
    for row in clipped.collect():
        assert [i.item for i in row.recommendations] == free[row.user]
        assert all(0.5 <= i.rating <= 5.0 for i in row.recommendations)


@pytest.mark.parametrize(
    ("count", "rank_by", "message"),
    [(0, "prediction", "at least 1, got 0"), (3, "best", "rankBy must be one of")],
)
def test_bad_arguments(model, count, rank_by, message):
    with pytest.raises(ValueError, match=message):
        model.recommendForAllUsers(count, rankBy=rank_by)


def test_strings(spark, small):
    named = small.assign(user="u" + small.user.astype(str), item="i" + small.item.astype(str))
    frame = spark.createDataFrame(named)
    model = StreamingBiasedALS(rank=3, maxIter=1).fit(frame)
    rows = model.recommendForAllUsers(3, excludeSeen=frame).collect()
    seen = named.groupby("user").item.apply(set).to_dict()
    assert len(rows) == named.user.nunique()
    assert not any(seen[r.user] & {i.item for i in r.recommendations} for r in rows)


def test_similar_items(model, spark, matrix):
    _, items, _, _ = matrix
    subset = spark.createDataFrame([(int(items[2]),), (-9,)], "item int")
    (row,) = model.similarItems(subset, 4).collect()
    features = model.state.items.mean[model.state.items.index.find(pa.array(items)), 1:]
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = features @ features[2]
    cosines[2] = -np.inf
    assert row.item == items[2]
    found = [s.item for s in row.similar]
    assert found == best_of(cosines, items, 4)
    np.testing.assert_allclose(
        [s.similarity for s in row.similar], np.sort(cosines)[::-1][:4], atol=1e-5
    )
    assert model.similarUsers(spark.createDataFrame([(1,)], "user long"), 3).count() == 1


@pytest.fixture(scope="module")
def als_model(ratings):
    return ALS(userCol="user", itemCol="item", rank=5, maxIter=3, seed=1).fit(ratings)


class TestFromALS:
    @pytest.mark.long
    def test_predicts_as_als_until_it_learns(self, als_model, ratings):
        model = StreamingBiasedALSModel.fromALS(als_model)
        by = ["user", "item", "time", "rating"]
        np.testing.assert_allclose(
            predictions(model.transform(ratings), by),
            predictions(als_model.transform(ratings), by),
            atol=1e-5,
        )
        assert (model.rank, model.globalMean) == (5, 0.0)

    def test_has_the_settings_of_an_estimator_that_nobody_set(self, als_model):
        """Regression: other passes, tolerance and seed than the Params say."""
        model = StreamingBiasedALSModel.fromALS(als_model)
        expected = StreamingBiasedALS(rank=als_model.rank, implicitPrior=False).settings()
        assert model.state.settings == expected

    def test_learns_on(self, als_model, spark, small):
        model = StreamingBiasedALSModel.fromALS(als_model).setColdStartStrategy("bias")
        user = int(small.user[0])
        new = spark.createDataFrame(
            [(user, -4, 1.0), (-3, int(small.item[0]), 5.0)], "user long, item long, rating double"
        )
        before = model.copy().transform(new).orderBy("user").toPandas().prediction
        model.update(new)
        after = model.transform(new).orderBy("user").toPandas().prediction
        assert abs(after[0] - 5.0) < abs(before[0] - 5.0)
        assert abs(after[1] - 1.0) < abs(before[1] - 1.0)
        assert model.state.scale.spread == 1.0

    @pytest.mark.long
    def test_a_rating_as_predicted_changes_little(self, als_model, spark, small):
        """Regression: what partners say of an id was taken from all of ALS's features."""
        model = StreamingBiasedALSModel.fromALS(als_model)
        pairs = spark.createDataFrame(small.iloc[:40][["user", "item"]].drop_duplicates())
        before = model.transform(pairs).toPandas()
        as_predicted = spark.createDataFrame(before.rename(columns={"prediction": "rating"}))
        model.update(as_predicted)
        after = model.transform(pairs).toPandas().merge(before, on=["user", "item"])
        apart = (after.prediction_x - after.prediction_y).abs()
        assert len(apart) == len(before)
        assert apart.max() < 0.05

    def test_a_large_update_has_als_as_its_prior(self, als_model, spark, small, monkeypatch):
        monkeypatch.setattr("sparkml_sgdals.ingest.collecting.COLLECT_LIMIT", 500)
        monkeypatch.setattr("sparkml_sgdals.ingest.collecting._FIRST_LOOK", 100)
        model = StreamingBiasedALSModel.fromALS(als_model)
        known = model.state.users.size
        model.update(spark.createDataFrame(small.iloc[:1000]))
        assert model.summary.form == "one task"
        assert model.state.users.size == known
        assert model.state.scale.mean == 0.0


def test_setters_and_getters():
    als = StreamingBiasedALS()
    for param in als.params:
        name = param.name[0].upper() + param.name[1:]
        if not als.isDefined(param):
            continue
        value = als.getOrDefault(param)
        assert getattr(als, f"set{name}")(value) is als
        assert getattr(als, f"get{name}")() == value
