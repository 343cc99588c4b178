"""What Spark's own tests ask of ALS, asked of our class.

Each test is named after Spark's and says in its docstring which one it is: ALSSuite and
ALSStorageSuite are in mllib/src/test/scala/org/apache/spark/ml/recommendation/ALSSuite.scala,
the others in python/pyspark/ml. Where we differ on purpose, the test shows what holds here;
docs/coming-from-als.md lists them all, and those that do not apply.
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from building import settings_of
from helpers import assert_same_bits, predictions, rmse
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.evaluation import RegressionEvaluator
from pyspark.ml.param import TypeConverters
from pyspark.ml.recommendation import ALS
from pyspark.ml.tuning import (
    CrossValidator,
    ParamGridBuilder,
    TrainValidationSplit,
    TrainValidationSplitModel,
)
from pyspark.sql import functions as F

from sparkml_sgdals import StreamingBiasedALS, StreamingBiasedALSModel, VectorFeed
from sparkml_sgdals.state.factors import put_features
from sparkml_sgdals.state.model_state import ModelState, Scale

pytestmark = pytest.mark.long

BIG, SMALL = 2**31, -(2**31) - 1
"""just beyond the range of an int, where ALS stops"""


def explicit(users, items, rank, noise=0.0):
    """Spark's genExplicitTestData: U . P with U(-1, 1) factors, 60% to learn, 30% held out."""
    rng = np.random.default_rng(11)
    user_ids = np.sort(rng.choice(2**31, users, replace=False)) - 2**30
    item_ids = np.sort(rng.choice(2**31, items, replace=False)) - 2**30
    values = rng.uniform(-1, 1, (users, rank)) @ rng.uniform(-1, 1, (items, rank)).T
    u, i = (a.ravel() for a in np.meshgrid(range(users), range(items), indexing="ij"))
    x = rng.random(u.size)
    frame = pd.DataFrame({"user": user_ids[u], "item": item_ids[i], "rating": values.ravel()})
    learned = frame[x < 0.6].reset_index(drop=True)
    learned["rating"] += noise * rng.standard_normal(len(learned))
    return learned, frame[(x >= 0.6) & (x < 0.9)].reset_index(drop=True)


def check_rmse(spark, learned, held, target, **params):
    """Spark's testALS: an RMSE below the target, and copies and uids as they should be."""
    als = StreamingBiasedALS(seed=0, **params)
    model = als.fit(spark.createDataFrame(learned))
    assert rmse(model, held, spark) < target
    assert model.uid == als.uid == als.copy().uid == model.copy().uid
    return model


class TestLearning:
    @pytest.mark.parametrize("rank", [1, 2])
    def test_exact_rank_1_matrix(self, spark, rank):
        """ALSSuite "exact rank-1 matrix".

        ALS wants 0.001 after one iteration with regParam 1e-5. Here nothing is set, and a sweep
        keeps away from certainty: 0.002 after ten.
        """
        check_rmse(spark, *explicit(20, 40, 1), 0.002, rank=rank, maxIter=10)

    @pytest.mark.parametrize("rank", [1, 2])
    def test_approximate_rank_1_matrix(self, spark, rank):
        """ALSSuite "approximate rank-1 matrix", with its target, without its regParam."""
        check_rmse(spark, *explicit(20, 40, 1, 0.01), 0.02, rank=rank, maxIter=10)

    @pytest.mark.parametrize("rank", [2, 3])
    def test_approximate_rank_2_matrix(self, spark, rank):
        """ALSSuite "approximate rank-2 matrix", with its target, without its regParam."""
        check_rmse(spark, *explicit(20, 40, 2, 0.01), 0.03, rank=rank, maxIter=10)

    @pytest.mark.parametrize("blocks", [1, 2])
    def test_different_block_settings(self, spark, blocks):
        """ALSSuite "different block settings": here users and items share one number."""
        data = explicit(20, 40, 1, 0.01)
        model = check_rmse(spark, *data, 0.05, rank=2, maxIter=4, numBlocks=blocks)
        assert model.summary.form == ("one task" if blocks == 1 else "2 blocks")

    def test_more_blocks_than_ratings(self, spark):
        """ALSSuite "more blocks than ratings": 25 cells for ten ratings.

        ALS recovers the matrix from ten ratings, without regularisation; ours leans on their mean,
        as ten ratings should, and no worse in blocks than in one task.
        """
        learned, held = explicit(4, 4, 1)
        one = check_rmse(spark, learned, held, np.inf, rank=1, maxIter=1, numBlocks=1)
        target = 1.02 * rmse(one, held, spark)
        model = check_rmse(spark, learned, held, target, rank=1, maxIter=1, numBlocks=5)
        assert model.summary.form == "5 blocks"

    def test_als_with_large_number_of_iterations(self, spark):
        """ALSSuite "als with large number of iterations": 50, in one task."""
        learned, held = explicit(4, 4, 1)
        model = StreamingBiasedALS(rank=1, maxIter=50, tol=0.0).fit(spark.createDataFrame(learned))
        assert len(model.summary.rmse) == 50
        assert np.isfinite(rmse(model, held, spark))

    @pytest.mark.parametrize(("kind", "class_"), [("long", int), ("string", str)])
    def test_using_generic_id_types(self, spark, kind, class_):
        """ALSSuite "using generic ID types": ALS has them in its RDD interface only."""
        learned, _ = explicit(20, 40, 2, 0.01)
        learned["user"] += 2**40
        frame = spark.createDataFrame(learned)
        typed = frame.select(
            F.col("user").cast(kind), F.col("item").cast(kind), F.col("rating").cast("float")
        )
        model = StreamingBiasedALS(rank=2, maxIter=4).fit(typed)
        first = model.userFactors.first()
        assert isinstance(first.id, class_)
        assert model.transform(typed).where("prediction IS NULL OR isnan(prediction)").count() == 0


class TestImplicitFeedback:
    def test_implicit_feedback(self, spark):
        """ALSSuite "implicit feedback": what was held out ranks above what was not done.

        ALS wants a weighted RMSE of the preferences; here a prediction is the logarithm of a
        probability, so what is tried is the order. "implicit feedback regression" (ratings that
        are all negative) is `test_ratings_below_zero`.
        """
        rng = np.random.default_rng(11)
        taste = rng.normal(0, 1, (60, 2)) @ rng.normal(0, 1, (30, 2)).T
        liked = taste > np.quantile(taste, 0.75, axis=1, keepdims=True)
        held = liked & (rng.random(liked.shape) < 0.2)
        pairs = [
            pd.DataFrame(np.argwhere(chosen), columns=["user", "item"])
            for chosen in (liked & ~held, held, ~liked)
        ]
        pairs[0]["rating"] = 1.0 + rng.random(len(pairs[0]))
        als = StreamingBiasedALS(implicitPrefs=True, alpha=1.0, seed=0)
        assert als.getImplicitPrefs() is True
        model = als.fit(spark.createDataFrame(pairs[0]))
        found, others = (
            model.transform(spark.createDataFrame(some)).toPandas().prediction for some in pairs[1:]
        )
        # the chance that a held-out item stands above one that the user does not like
        area = (found.to_numpy()[:, None] > others.to_numpy()[None, :]).mean()
        assert area > 0.75

    def test_ratings_below_zero(self, spark):
        """ALSSuite "implicit feedback regression": ratings of 0 or less are no preference."""
        frame = spark.createDataFrame(
            [(0, 0, 1.0), (1, 0, 1.0), (0, 1, -5.0), (1, 1, -5.0), (2, 1, 0.0)],
            "user int, item int, rating double",
        )
        model = StreamingBiasedALS(implicitPrefs=True, rank=2).fit(frame)
        rows = model.transform(frame).collect()
        score = {(row.user, row.item): row.prediction for row in rows}
        # each in the eyes of a user who did something: of user 2 nothing is known
        assert score[0, 0] > score[0, 1] + 1.0
        assert score[1, 0] > score[1, 1] + 1.0


class TestNonnegative:
    def check(self, model):
        for factors in (model.userFactors, model.itemFactors):
            features = np.array(factors.toPandas().features.tolist())
            assert features.size
            assert (features >= 0.0).all()

    @pytest.mark.parametrize(
        "params",
        [
            {}, {"numBlocks": 2}, {"solver": "sgd"}, {"solver": "minibatch", "blockSize": 20},
            {"implicitPrefs": True}, {"implicitPrefs": True, "numBlocks": 2},
        ],
    )  # fmt: skip
    def test_nonnegative_constraint(self, spark, tmp_path, params):
        """ALSSuite "nonnegative constraint": of one task, blocks, descent, and a fit in blocks."""
        learned, _ = explicit(20, 30, 2)
        frame = spark.createDataFrame(learned)
        als = StreamingBiasedALS(rank=4, maxIter=2, **params).setNonnegative(True)
        model = als.fit(frame)
        self.check(model)
        model.update(frame.limit(30))
        self.check(model)
        if not params:
            model.save(str(tmp_path / "saved"))
            again = StreamingBiasedALSModel.load(str(tmp_path / "saved"))
            assert_same_bits(again, model)
            self.check(again)
            users, items = (
                side.toPandas().set_index("id") for side in (model.userFactors, model.itemFactors)
            )
            for row in model.setClipPredictions(False).transform(frame.limit(20)).collect():
                user, item = users.loc[row.user], items.loc[row.item]
                product = float(np.dot(user.features, item.features))
                shown = model.globalMean + user.bias + item.bias + product
                assert row.prediction == pytest.approx(shown, abs=1e-4)

    def test_streams_too(self, spark, tmp_path):
        """Ours: fitStream, and what another process reads of it."""
        learned, _ = explicit(20, 30, 2)
        path = str(tmp_path / "in")
        frame = spark.createDataFrame(learned)
        frame.write.parquet(path)
        stream = spark.readStream.schema(frame.schema).parquet(path)
        als = StreamingBiasedALS(rank=4, nonnegative=True, initStd=0.3)
        job = als.fitStream(stream, str(tmp_path / "m"), trigger={"availableNow": True})
        job.awaitTermination()
        self.check(job.model)
        changes = VectorFeed(str(tmp_path / "m")).changes()
        for table in (changes.users, changes.items):
            assert (np.array(table["vector"].to_pylist())[:, :4] >= 0.0).all()

    def test_from_als(self, spark):
        """Ours: ALS's own factors, shown as they are; with signs they are refused."""
        learned, _ = explicit(10, 12, 2)
        frame = spark.createDataFrame(learned)
        theirs = ALS(rank=3, maxIter=2, nonnegative=True, seed=1).fit(frame)
        model = StreamingBiasedALSModel.fromALS(theirs, nonnegative=True)
        own = {row.id: row.features for row in theirs.itemFactors.collect()}
        for row in model.itemFactors.collect():
            np.testing.assert_allclose(row.features, own[row.id], atol=1e-5)
            assert row.bias == pytest.approx(0.0, abs=1e-5)
        self.check(model.update(frame))
        signed = ALS(rank=3, maxIter=2, seed=1).fit(frame)
        with pytest.raises(ValueError, match="fit ALS with nonnegative=True"):
            StreamingBiasedALSModel.fromALS(signed, nonnegative=True)


class TestTypes:
    IDS = (
        ("int", "123", "111"),
        ("long", "1231", "1112"),
        ("double", "123.0", "111.0"),
        ("decimal(15,2)", "1231.00", "1112.00"),
        # ALS stops at the range of an int
        ("long", "1231000000000", "1112"),
        ("double", "1231000000000", "111"),
        ("decimal(15,2)", "1231000000000", "1112"),
        # and wants numbers
        ("string", "123.0", "111"),
    )

    @staticmethod
    def frame(spark, kind, one, other, column="item"):
        text = spark.createDataFrame(
            [(one, "12", 0.5), (other, "21", 1.0)], "item string, user string, rating double"
        )
        if column == "user":
            text = text.select(F.col("item").alias("user"), F.col("user").alias("item"), "rating")
        rest = "item" if column == "user" else "user"
        return text.withColumn(column, F.col(column).cast(kind)).withColumn(
            rest, F.col(rest).cast("int")
        )

    @pytest.mark.parametrize("column", ["user", "item"])
    @pytest.mark.parametrize(("kind", "one", "other"), IDS)
    def test_als_validate_input_dataset(self, spark, kind, one, other, column):
        """ALSSuite "ALS validate input dataset" (once "CheckedCast"): valid ids.

        Longs, decimals and doubles beyond the range of an int, and strings, are valid here.
        """
        frame = self.frame(spark, kind, one, other, column)
        model = StreamingBiasedALS(rank=1, maxIter=1).fit(frame)
        side = model.userFactors if column == "user" else model.itemFactors
        exact = str if kind == "string" else float
        assert {exact(row.id) for row in side.collect()} == {exact(one), exact(other)}

    @pytest.mark.parametrize("column", ["user", "item"])
    @pytest.mark.parametrize("kind", ["double", "decimal(15,2)"])
    def test_als_validate_input_dataset_fractions(self, spark, kind, column):
        """ALSSuite "ALS validate input dataset": a fractional part, and null."""
        als = StreamingBiasedALS(rank=1, maxIter=1)
        for bad in ("123.1", None):
            frame = self.frame(spark, kind, bad, "1112", column)
            with pytest.raises(ValueError, match=rf"{column}Col '{column}' is (null|no whole)"):
                als.fit(frame)

    def test_als_validate_input_dataset_other_types(self, spark):
        """ALSSuite "ALS validate input dataset": a type that cannot be an id."""
        frame = self.frame(spark, "string", "1", "2").withColumn("item", F.lit(True))
        with pytest.raises(TypeError, match="itemCol 'item' must hold integers or strings"):
            StreamingBiasedALS().fit(frame)

    @pytest.mark.parametrize("column", ["user", "item", "rating"])
    def test_input_type_validation(self, spark, column):
        """ALSSuite "input type validation": every numeric type gives the same model."""
        rows = [(n, 10 * n + 10, float(n + 1)) for n in range(5)]
        ints = spark.createDataFrame(rows, "user int, item int, rating double")
        als = StreamingBiasedALS(rank=1, maxIter=1)
        expected = als.fit(ints)
        for kind in ("short", "long", "int", "float", "byte", "double", "decimal(10,0)"):
            typed = ints.withColumn(column, F.col(column).cast(kind))
            found = als.fit(typed)
            assert_same_bits(found, expected)
            np.testing.assert_array_equal(
                predictions(found.transform(typed), ["rating"]),
                predictions(expected.transform(ints), ["rating"]),
            )
        text = ints.withColumn("rating", F.col("rating").cast("string"))
        with pytest.raises(TypeError, match="ratingCol 'rating' must be numeric, got string"):
            als.fit(text)

    def test_input_type_validation_beyond_int(self, spark):
        """ALSSuite "input type validation": ids beyond an int, which ALS refuses, are ids here."""
        rows = [(0, 0, 0.0, 1, 3.0), (0, BIG, float(SMALL), 0, 2.0), (1, 1, 1.0, 0, 5.0)]
        frame = spark.createDataFrame(
            rows, "user int, big long, small double, item int, rating double"
        )
        als = StreamingBiasedALS(rank=1, maxIter=1)
        for column, wanted in (("big", BIG), ("small", SMALL)):
            for side in ("user", "item"):
                other = "item" if side == "user" else "user"
                renamed = frame.select(F.col(column).alias(side), other, "rating")
                model = als.fit(renamed)
                table = model.userFactors if side == "user" else model.itemFactors
                assert {r.id for r in table.collect()} == {0, 1, wanted}
                narrow = als.fit(frame.select("user", "item", "rating"))
                scored = narrow.transform(renamed.where(F.col(side) == wanted))
                assert np.isfinite(predictions(scored, ["rating"])).all()

    def test_spark_18268_als_with_empty_rdd(self, spark):
        """ALSSuite "SPARK-18268: ALS with empty RDD should fail with better message"."""
        empty = spark.createDataFrame([], "user int, item int, rating double")
        with pytest.raises(ValueError, match="no ratings to learn from: the table is empty"):
            StreamingBiasedALS().fit(empty)


@pytest.fixture(scope="module")
def data(spark):
    learned, _ = explicit(4, 4, 1)
    return spark.createDataFrame(learned).withColumn("rating", F.col("rating").cast("float"))


@pytest.fixture(scope="module")
def pairs(spark, data):
    user, item = data.agg(F.max("user"), F.max("item")).first()
    rows = [(user + 10, item + 20, True), (user, item + 20, True), (user + 10, item, True),
            (user, item, False)]  # fmt: skip
    return spark.createDataFrame(rows, "user long, item long, cold boolean")


class TestColdStart:
    def test_als_cold_start_user_item_prediction_strategy(self, data, pairs):
        """ALSSuite "ALS cold start user/item prediction strategy": our default is 'bias'."""
        model = StreamingBiasedALS(rank=1, maxIter=1).fit(data)
        by_bias = model.transform(pairs).toPandas()
        assert np.isfinite(by_bias.prediction).all()
        as_nan = model.setColdStartStrategy("nan").transform(pairs).toPandas()
        np.testing.assert_array_equal(np.isnan(as_nan.prediction), as_nan.cold)
        left = model.setColdStartStrategy("drop").transform(pairs).toPandas()
        known = by_bias[~by_bias.cold].prediction.to_list()
        assert left.prediction.to_list() == known == as_nan.prediction.dropna().to_list()
        assert len(known) == 1

    def test_case_insensitive_cold_start_param_value(self, data):
        """ALSSuite "case insensitive cold start param value"."""
        model = StreamingBiasedALS(rank=1, maxIter=1).fit(data)
        for given in ("nan", "NaN", "Nan", "drop", "DROP", "Drop", "Bias"):
            assert model.setColdStartStrategy(given).getColdStartStrategy() == given.lower()
            assert model.transform(data).count() == data.count()


FOR_USERS = {
    0: [(3, 54.0), (4, 44.0), (5, 42.0), (6, 28.0)],
    1: [(3, 39.0), (5, 33.0), (4, 26.0), (6, 16.0)],
    2: [(3, 51.0), (5, 45.0), (4, 30.0), (6, 18.0)],
}
FOR_ITEMS = {
    3: [(0, 54.0), (2, 51.0), (1, 39.0)],
    4: [(0, 44.0), (2, 30.0), (1, 26.0)],
    5: [(2, 45.0), (0, 42.0), (1, 33.0)],
    6: [(0, 28.0), (2, 18.0), (1, 16.0)],
}


@pytest.fixture(scope="module")
def model(spark):
    schema = "id int, features array<float>"
    users = [(0, [6.0, 4.0]), (1, [3.0, 4.0]), (2, [3.0, 6.0])]
    items = [(3, [5.0, 6.0]), (4, [6.0, 2.0]), (5, [3.0, 6.0]), (6, [4.0, 1.0])]
    state = ModelState.empty(settings_of(rank=2), "int", "int")
    put_features(state.users, spark.createDataFrame(users, schema).toArrow())
    put_features(state.items, spark.createDataFrame(items, schema).toArrow())
    state.scale = Scale(frozen=True)
    return StreamingBiasedALSModel(state, ("int", "int"))


class TestRecommend:
    """ALSSuite's getALSModel: three users, four items, given factors of rank 2."""

    @staticmethod
    def check(frame, query, candidate, expected, count):
        """Spark's checkRecommendations, the ids of the rows included."""
        assert frame.columns == [query, "recommendations"]
        assert (
            dict(frame.dtypes)["recommendations"] == f"array<struct<{candidate}:int,rating:float>>"
        )
        rows = frame.collect()
        found = {r[query]: [(c[candidate], c.rating) for c in r.recommendations] for r in rows}
        assert len(rows) == len(found)
        assert found == {key: best[:count] for key, best in expected.items()}

    @pytest.mark.parametrize("k", [4, 2, 6])
    def test_recommend_for_all_users_with_k_below_at_and_above_num_items(self, model, k):
        """ALSSuite "recommendForAllUsers with k <, = and > num_items"."""
        self.check(model.recommendForAllUsers(k), "user", "item", FOR_USERS, k)

    @pytest.mark.parametrize("k", [3, 2, 4])
    def test_recommend_for_all_items_with_k_below_at_and_above_num_users(self, model, k):
        """ALSSuite "recommendForAllItems with k <, = and > num_users"."""
        self.check(model.recommendForAllItems(k), "item", "user", FOR_ITEMS, k)

    @pytest.mark.parametrize("k", [4, 2, 6])
    def test_recommend_for_user_subset_with_k_below_at_and_above_num_items(self, spark, model, k):
        """ALSSuite "recommendForUserSubset with k <, = and > num_items"."""
        subset = spark.createDataFrame([(0,), (2,)], "user int")
        expected = {user: FOR_USERS[user] for user in (0, 2)}
        self.check(model.recommendForUserSubset(subset, k), "user", "item", expected, k)

    @pytest.mark.parametrize("k", [3, 2, 4])
    def test_recommend_for_item_subset_with_k_below_at_and_above_num_users(self, spark, model, k):
        """ALSSuite "recommendForItemSubset with k <, = and > num_users"."""
        subset = spark.createDataFrame([(3,), (6,)], "item int")
        expected = {item: FOR_ITEMS[item] for item in (3, 6)}
        self.check(model.recommendForItemSubset(subset, k), "item", "user", expected, k)

    def test_subset_recommendations_eliminate_duplicate_ids(self, spark, model):
        """ALSSuite "subset recommendations eliminate duplicate ids, returns same results ..."."""
        users = spark.createDataFrame([(0,), (1,), (0,), (1,)], "user int")
        expected = {user: FOR_USERS[user] for user in (0, 1)}
        self.check(model.recommendForUserSubset(users, 2), "user", "item", expected, 2)
        items = spark.createDataFrame([(3,), (4,), (5,), (4,), (5,)], "item int")
        expected = {item: FOR_ITEMS[item] for item in (3, 4, 5)}
        self.check(model.recommendForItemSubset(items, 2), "item", "user", expected, 2)

    def test_subset_recommendations_on_full_input_dataset(self, model):
        """ALSSuite "subset recommendations on full input dataset equivalent to recommendForAll"."""
        users = model.userFactors.withColumnRenamed("id", "user").drop("features", "bias")
        self.check(model.recommendForUserSubset(users, 2), "user", "item", FOR_USERS, 2)
        items = model.itemFactors.withColumnRenamed("id", "item").drop("features", "bias")
        self.check(model.recommendForItemSubset(items, 2), "item", "user", FOR_ITEMS, 2)


ALL_PARAMS = {
    "maxIter": 1,
    "rank": 1,
    "regParam": 0.01,
    "numUserBlocks": 2,
    "numItemBlocks": 2,
    "implicitPrefs": True,
    "alpha": 0.9,
    "nonnegative": True,
    "checkpointInterval": 20,
    "intermediateStorageLevel": "MEMORY_ONLY",
    "finalStorageLevel": "MEMORY_AND_DISK_SER",
    "predictionCol": "myPredictionCol",
}
"""ALSSuite's allEstimatorParamSettings"""


def same_params(one, other):
    """Spark's checks of persistence: type, uid, Params, their values, defaults and parents."""
    assert type(one) is type(other)
    assert one.uid == other.uid
    assert [p.name for p in one.params] == [p.name for p in other.params]
    for param in one.params:
        twin = other.getParam(param.name)
        assert (one.isSet(param), one.hasDefault(param)) == (
            other.isSet(twin),
            other.hasDefault(twin),
        )
        assert param.parent == twin.parent
        if one.isDefined(param):
            assert one.getOrDefault(param) == other.getOrDefault(twin), param.name


class TestParams:
    def test_read_write(self, spark, tmp_path):
        """ALSSuite "read/write": every Param, of the estimator and of the model."""
        als = StreamingBiasedALS(**ALL_PARAMS)
        als.save(str(tmp_path / "als"))
        loaded = StreamingBiasedALS.load(str(tmp_path / "als"))
        same_params(als, loaded)
        for name, value in ALL_PARAMS.items():
            assert loaded.getOrDefault(name) == value
        learned, _ = explicit(4, 4, 1)
        plain = als.copy({als.implicitPrefs: False})
        with pytest.warns(UserWarning, match="numUserBlocks"):
            model = plain.fit(spark.createDataFrame(learned))
        model.save(str(tmp_path / "model"))
        again = StreamingBiasedALSModel.load(str(tmp_path / "model"))
        same_params(model, again)
        assert (again.rank, again.getPredictionCol()) == (1, "myPredictionCol")
        assert_same_bits(model, again)

    def test_every_param_of_als_is_here(self):
        """Ours: names, getters, setters and types of all Params of ALS; defaults but for some."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            als = StreamingBiasedALS()
        differs = {"rank": 16, "coldStartStrategy": "bias", "blockSize": 10_000}
        known = {
            "alpha", "blockSize", "checkpointInterval", "coldStartStrategy", "finalStorageLevel",
            "implicitPrefs", "intermediateStorageLevel", "itemCol", "maxIter", "nonnegative",
            "numItemBlocks", "numUserBlocks", "predictionCol", "rank", "ratingCol", "regParam",
            "seed", "userCol",
        }  # fmt: skip
        assert {p.name for p in ALS().params} == known
        for theirs in ALS().params:
            assert als.hasParam(theirs.name)
            name = theirs.name[0].upper() + theirs.name[1:]
            assert callable(getattr(als, f"set{name}"))
            value = getattr(als, f"get{name}")()
            if theirs.name != "seed":
                assert value == differs.get(theirs.name, ALS().getOrDefault(theirs.name))
        methods = {m for m in dir(ALS) if m.startswith(("get", "set")) or m in ("fit", "read")}
        assert methods <= set(dir(als))

    def test_invalid_params(self):
        """ALSSuite "invalid storage params" (of ALSStorageSuite), and the ranges of the others."""
        for name, bad in (
            ("intermediateStorageLevel", "foo"), ("intermediateStorageLevel", "NONE"),
            ("finalStorageLevel", "foo"), ("numUserBlocks", 0), ("numItemBlocks", 0),
            ("alpha", -1.0), ("checkpointInterval", 0), ("checkpointInterval", -2),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=f"{name} must be"):
                StreamingBiasedALS(**{name: bad})
        assert StreamingBiasedALS(finalStorageLevel="NONE").getFinalStorageLevel() == "NONE"
        assert StreamingBiasedALS(checkpointInterval=-1).getCheckpointInterval() == -1

    def test_storage_levels(self, spark):
        """test_algorithms.ALSTest.test_storage_levels, and ALSStorageSuite "default and ..."."""
        frame = spark.createDataFrame(FEW, "user int, item int, rating double")
        als = StreamingBiasedALS().setMaxIter(1).setRank(1)
        expected = als.fit(frame)
        assert als.getIntermediateStorageLevel() == als.getFinalStorageLevel() == "MEMORY_AND_DISK"
        als.setIntermediateStorageLevel("MEMORY_ONLY_2").setFinalStorageLevel("DISK_ONLY")
        with pytest.warns(UserWarning, match="use intermediateStorageLevel, finalStorageLevel: "):
            found = als.fit(frame)
        assert als.getIntermediateStorageLevel() == "MEMORY_ONLY_2"
        assert als.getFinalStorageLevel() == "DISK_ONLY"
        assert_same_bits(found, expected)

    def test_params_without_effect_are_named(self, spark):
        """Ours: code that sets all of ALS runs, and one warning names what has no effect."""
        frame = spark.createDataFrame(FEW, "user int, item int, rating double")
        als = StreamingBiasedALS(
            rank=10, maxIter=10, regParam=0.1, numUserBlocks=10, numItemBlocks=10,
            implicitPrefs=False, alpha=1.0, nonnegative=False, seed=1, checkpointInterval=10,
            intermediateStorageLevel="MEMORY_AND_DISK", finalStorageLevel="MEMORY_AND_DISK",
            coldStartStrategy="drop", blockSize=4096,
        )  # fmt: skip
        with pytest.warns(UserWarning, match="solver 'bayes' does not use") as caught:
            model = als.fit(frame)
        (message,) = [str(w.message) for w in caught if "does not use" in str(w.message)]
        listed = message.split("does not use ")[1].split(":")[0].split(", ")
        assert set(listed) == {
            "regParam", "blockSize", "numUserBlocks", "numItemBlocks", "alpha",
            "intermediateStorageLevel", "finalStorageLevel",
        }  # fmt: skip
        plain = StreamingBiasedALS(rank=10, maxIter=10, seed=1, coldStartStrategy="drop")
        assert_same_bits(model, plain.fit(frame))


FEW = [(0, 0, 4.0), (0, 1, 2.0), (1, 1, 3.0), (1, 2, 4.0), (2, 1, 1.0), (2, 2, 5.0)]


class TestPython:
    def test_als(self, spark, tmp_path):
        """test_als.ALSTestsMixin.test_als: the factors have one more column, bias."""
        frame = spark.createDataFrame(
            [[1, 15, 1], [1, 2, 2], [2, 3, 4], [2, 2, 5]], ["user", "item", "rating"]
        )
        als = StreamingBiasedALS(userCol="user", itemCol="item", rank=10, seed=1)
        als.setMaxIter(2)
        assert (als.getUserCol(), als.getItemCol()) == ("user", "item")
        assert (als.getRank(), als.getSeed(), als.getMaxIter()) == (10, 1, 2)
        als.write().overwrite().save(str(tmp_path))
        assert str(StreamingBiasedALS.load(str(tmp_path))) == str(als)
        model = als.fit(frame)
        assert model.rank == 10
        for factors, size in ((model.itemFactors, 3), (model.userFactors, 2)):
            assert factors.columns == ["id", "features", "bias"]
            assert factors.count() == size
        scored = model.transform(frame)
        assert scored.columns == ["user", "item", "rating", "prediction"]
        assert scored.count() == 4
        for best, column, size in (
            (model.recommendForAllUsers(3), "user", 2),
            (model.recommendForAllItems(3), "item", 3),
            (model.recommendForUserSubset(frame, 3), "user", 2),
            (model.recommendForItemSubset(frame, 3), "item", 3),
        ):
            assert best.columns == [column, "recommendations"]
            assert best.count() == size
        model.write().overwrite().save(str(tmp_path))
        assert str(StreamingBiasedALSModel.load(str(tmp_path))) == str(model)

    @pytest.mark.parametrize("strict", ["false", "true"])
    def test_ambiguous_column(self, spark, tmp_path, strict):
        """test_als.ALSTestsMixin.test_ambiguous_column."""
        frame = spark.createDataFrame(
            [[1, 15, 1], [1, 2, 2], [2, 3, 4], [2, 2, 5]], ["user", "item", "rating"]
        )
        als = StreamingBiasedALS(
            userCol="user", itemCol="item", ratingCol="rating", maxIter=1, seed=42
        )
        als.fit(frame).write().overwrite().save(str(tmp_path / "m"))
        loaded = StreamingBiasedALSModel().load(str(tmp_path / "m"))
        name = "spark.sql.analyzer.failAmbiguousSelfJoin"
        before = spark.conf.get(name)
        spark.conf.set(name, strict)
        try:
            users = loaded.userFactors.select(F.col("id").alias("user"))
            items = loaded.itemFactors.select(F.col("id").alias("item"))
            assert loaded.transform(users.crossJoin(items)).count() == 6
        finally:
            spark.conf.set(name, before)

    def test_doctest_of_als(self, spark, tmp_path):
        """The doctest of pyspark.ml.recommendation.ALS, line by line."""
        df = spark.createDataFrame(FEW, ["user", "item", "rating"])
        als = StreamingBiasedALS(rank=10, seed=0)
        assert als.setMaxIter(5) is als
        assert als.getMaxIter() == 5
        assert als.setRegParam(0.1) is als
        assert als.getRegParam() == 0.1
        als.clear(als.regParam)
        model = als.fit(df)
        assert model.getBlockSize() == 10_000
        assert model.setBlockSize(4096).getBlockSize() == 4096
        assert (model.getUserCol(), model.getItemCol()) == ("user", "item")
        assert model.setUserCol("user") is model
        assert model.setPredictionCol("newPrediction") is model
        assert model.rank == 10
        assert [r.id for r in model.userFactors.orderBy("id").collect()] == [0, 1, 2]
        test = spark.createDataFrame([(0, 2), (1, 0), (2, 0)], ["user", "item"])
        scored = sorted(model.transform(test).collect(), key=lambda r: r[0])
        assert [(r.user, r.item) for r in scored] == [(0, 2), (1, 0), (2, 0)]
        assert all(1.0 <= r.newPrediction <= 5.0 for r in scored)
        best = model.recommendForAllUsers(3)
        row = best.where(best.user == 0).select("recommendations.item", "recommendations.rating")
        assert sorted(row.first().item) == [0, 1, 2]
        best = model.recommendForAllItems(3)
        row = best.where(best.item == 2).select("recommendations.user", "recommendations.rating")
        assert sorted(row.first().user) == [0, 1, 2]
        subset = model.recommendForUserSubset(df.where(df.user == 2), 3)
        found = subset.select("recommendations.item", "recommendations.rating").first()
        assert sorted(found.item) == [0, 1, 2]
        assert found.rating == sorted(found.rating, reverse=True)
        subset = model.recommendForItemSubset(df.where(df.item == 0), 3)
        found = subset.select("recommendations.user", "recommendations.rating").first()
        assert sorted(found.user) == [0, 1, 2]
        als.save(str(tmp_path / "als"))
        assert StreamingBiasedALS.load(str(tmp_path / "als")).getMaxIter() == 5
        model.save(str(tmp_path / "als_model"))
        again = StreamingBiasedALSModel.load(str(tmp_path / "als_model"))
        assert model.rank == again.rank
        assert sorted(model.userFactors.collect()) == sorted(again.userFactors.collect())
        assert sorted(model.itemFactors.collect()) == sorted(again.itemFactors.collect())
        assert model.transform(test).orderBy("user").take(3) == again.transform(test).orderBy(
            "user"
        ).take(3)

    def test_pipeline_persistence(self, spark, tmp_path):
        """test_persistence.test_pipeline_persistence and test_nested_pipeline_persistence."""
        frame = spark.createDataFrame(FEW, "user int, item int, rating double")
        outer = Pipeline(stages=[Pipeline(stages=[StreamingBiasedALS(rank=2, maxIter=1)])])
        outer.save(str(tmp_path / "pipeline"))
        loaded = Pipeline.load(str(tmp_path / "pipeline"))
        same_params(outer.getStages()[0].getStages()[0], loaded.getStages()[0].getStages()[0])
        fitted = outer.fit(frame)
        fitted.save(str(tmp_path / "model"))
        again = PipelineModel.load(str(tmp_path / "model"))
        same_params(fitted.stages[0].stages[0], again.stages[0].stages[0])
        assert_same_bits(fitted.stages[0].stages[0], again.stages[0].stages[0])

    def test_param_grid_type_coercion(self):
        """tuning.test_tuning.test_param_grid_type_coercion."""
        als = StreamingBiasedALS()
        grid = ParamGridBuilder().addGrid(als.regParam, [0.5, 1]).build()
        assert all(type(value) is float for maps in grid for value in maps.values())
        assert als.rank.typeConverter is not TypeConverters.identity

    def test_parallel_evaluation(self, spark):
        """tuning.test_tuning.test_parallel_evaluation, of both validators."""
        learned, _ = explicit(20, 40, 2, 0.01)
        frame = spark.createDataFrame(learned)
        als = StreamingBiasedALS(rank=2)
        grid = ParamGridBuilder().addGrid(als.maxIter, [1, 2]).build()
        judge = RegressionEvaluator(labelCol="rating")
        cross = CrossValidator(
            estimator=als, estimatorParamMaps=grid, evaluator=judge, numFolds=2, seed=3
        )
        one, two = cross.setParallelism(1).fit(frame), cross.setParallelism(2).fit(frame)
        assert np.isfinite(one.avgMetrics).all()
        assert (one.avgMetrics, one.stdMetrics) == (two.avgMetrics, two.stdMetrics)

    def test_expose_sub_models(self, spark, tmp_path):
        """tuning.test_tuning.test_expose_sub_models, with save, load and copy."""
        frame = spark.createDataFrame(explicit(20, 40, 2)[0])
        als = StreamingBiasedALS(rank=2)
        grid = ParamGridBuilder().addGrid(als.maxIter, [0, 1]).build()
        split = TrainValidationSplit(
            estimator=als, estimatorParamMaps=grid, seed=3, collectSubModels=True,
            evaluator=RegressionEvaluator(labelCol="rating"),
        )  # fmt: skip
        found = split.fit(frame)
        assert len(found.subModels) == 2
        found.save(str(tmp_path / "with"))
        loaded = TrainValidationSplitModel.load(str(tmp_path / "with"))
        for one, other in zip(found.subModels, loaded.copy().subModels, strict=True):
            assert_same_bits(one, other)
        found.write().option("persistSubModels", "false").save(str(tmp_path / "without"))
        assert TrainValidationSplitModel.load(str(tmp_path / "without")).subModels is None
