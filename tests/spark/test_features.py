"""Features of users and items: from columns and tables to predictions, streams and versions."""

from __future__ import annotations

import contextlib
import json
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import ONCE, assert_same_bits, predictions
from pyspark.ml.evaluation import RegressionEvaluator
from pyspark.ml.feature import OneHotEncoder, StringIndexer, VectorAssembler
from pyspark.ml.linalg import Vectors
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder, TrainValidationSplit
from pyspark.sql import functions as F

from sparkml_sgdals import (
    Predictor,
    StreamingBiasedALS,
    StreamingBiasedALSModel,
    StreamingGridSearch,
)
from sparkml_sgdals.store.version_store import VersionStore

ITEMS, FEATURES, COLD = 120, 4, 100
RNG = np.random.default_rng(4)
MATRIX = (RNG.random((ITEMS, FEATURES)) < 0.4).astype(float)


def ratings() -> pd.DataFrame:
    """Ratings that features of the items explain, in an order of time in which some come late."""
    rng = np.random.default_rng(5)
    taste = rng.normal(0, 0.7, (60, FEATURES))
    weights = rng.normal(0, 0.6, FEATURES)
    user, item = rng.integers(0, 60, 5000), rng.integers(0, ITEMS, 5000)
    base = MATRIX - MATRIX.mean(axis=0)
    value = 3 + base[item] @ weights + (taste[user] * base[item]).sum(axis=1)
    frame = pd.DataFrame({"user": user, "item": item, "rating": value + rng.normal(0, 0.3, 5000)})
    frame["time"] = np.arange(5000)
    return frame


RATINGS = ratings()
OLD, NEW = RATINGS[RATINGS.item < COLD], RATINGS[RATINGS.item >= COLD]


@pytest.fixture(scope="module")
def vectors(spark):
    """Items with vectors, every other one sparse."""
    rows = [
        (
            n,
            Vectors.dense(row) if n % 2 else Vectors.sparse(
                FEATURES, np.flatnonzero(row).tolist(), row[row != 0].tolist()
            ),
        )
        for n, row in enumerate(MATRIX)
    ]  # fmt: skip
    return spark.createDataFrame(rows, ["item", "vector"])


def with_vectors(spark, frame, vectors):
    return spark.createDataFrame(frame).join(vectors, "item", "left")


ALS = {"rank": 4, "timestampCol": "time"}


@pytest.fixture(scope="module")
def model(spark, vectors):
    """A model of the older items, by a column."""
    als = StreamingBiasedALS(itemFeaturesCol="vector", **ALS)
    return als.fit(with_vectors(spark, OLD, vectors))


def error(model, spark, frame, vectors) -> float:
    scored = model.transform(with_vectors(spark, frame, vectors))
    found = scored.toPandas()
    assert len(found) == len(frame)
    return float(np.sqrt(np.mean((found.prediction - found.rating) ** 2)))


class TestFit:
    """What a table's features teach."""

    def test_items_that_nobody_rated_are_predicted(self, spark, vectors, model):
        """By their features, in transform, with a deviation that is about right."""
        plain = StreamingBiasedALS(**ALS).fit(spark.createDataFrame(OLD))
        assert error(model, spark, NEW, vectors) < 0.8 * error(plain, spark, NEW, vectors)
        told = model.copy().setPredictionStdCol("std")
        found = told.transform(with_vectors(spark, NEW, vectors)).toPandas()
        scores = (found.prediction - found.rating) / found["std"]
        assert 0.7 < np.sqrt(np.mean(scores**2)) < 1.2
        # the ids that it knows are predicted as without the column
        known = spark.createDataFrame(OLD)
        by = ["user", "item", "time"]
        np.testing.assert_array_equal(
            predictions(model.transform(known), by),
            predictions(model.transform(with_vectors(spark, OLD, vectors)), by),
        )

    @pytest.mark.long
    def test_a_column_arrays_and_a_table_say_the_same(self, spark, vectors, model):
        """To the bit; also when Parquet is read straight, and whatever the order of rows."""
        als = StreamingBiasedALS(**ALS)
        shuffled = spark.createDataFrame(OLD.sample(frac=1.0, random_state=1))
        assert als.copy().setItemFeatures(vectors) is not als
        # an id that comes twice is looked at by Spark, which names it where its vectors differ
        again = vectors.unionByName(vectors.limit(1))
        assert_same_bits(als.copy().setItemFeatures(again).fit(shuffled), model)
        assert_same_bits(als.copy().setItemFeatures(vectors).fit(shuffled), model)
        arrays = spark.createDataFrame(
            pd.DataFrame({"item": np.arange(ITEMS), "vector": MATRIX.tolist()})
        )
        named = als.copy().setItemFeaturesCol("vector")
        assert_same_bits(named.fit(shuffled.join(arrays, "item", "left")), model)

    def test_from_parquet(self, spark, vectors, model, tmp_path):
        path = str(tmp_path / "ratings")
        spark.createDataFrame(OLD).write.parquet(path)
        als = StreamingBiasedALS(**ALS).setItemFeatures(vectors)
        assert_same_bits(als.fitParquet(path), model)

    @pytest.mark.long
    def test_both_sides_a_grid_and_a_pipeline_of_spark(self, spark, vectors, monkeypatch):
        """One-hot columns of a user's country; names go through to what is told of weights."""
        frame = OLD.assign(country=np.where(OLD.user % 3 == 0, "CH", "AT"))
        table = with_vectors(spark, frame, vectors)
        table = StringIndexer(inputCol="country", outputCol="n").fit(table).transform(table)
        table = (
            OneHotEncoder(inputCol="n", outputCol="hot", dropLast=False).fit(table).transform(table)
        )
        table = VectorAssembler(inputCols=["hot"], outputCol="about").transform(table)
        als = StreamingBiasedALS(userFeaturesCol="about", itemFeaturesCol="vector", **ALS)
        grid = ParamGridBuilder().addGrid(als.maxIter, [3, 5]).build()
        first, second = als.fit(table, grid)
        assert_same_bits(second, als.copy({als.maxIter: 5}).fit(table))
        assert first.state.fingerprint() != second.state.fingerprint()
        told = second.featureWeights.toPandas()
        assert told[told.side == "user"].feature.tolist() == ["hot_AT", "hot_CH"]
        assert told[told.side == "item"].feature.tolist() == ["0", "1", "2", "3"]
        assert np.isfinite(np.stack(told.features.to_numpy())).all()
        assert len(told.features[0]) == 4
        # the states of a side are handed on while the other one is learned and moved
        in_blocks = als.copy({als.maxIter: 2, als.numBlocks: 2})
        blocks = in_blocks.fit(table)
        monkeypatch.setattr("sparkml_sgdals.fit.blocks.driver.run_side_by_side", lambda *_: False)
        assert_same_bits(in_blocks.fit(table), blocks)
        assert blocks.featureWeights.count() == len(told)
        # somebody new joins, and is predicted as by the column
        new = table.where("user < 4").select((F.col("user") + 900).alias("user"), "about")
        more = second.withUsers(new.distinct())
        assert more.state.users.size == second.state.users.size + 4
        pairs = new.distinct().withColumn("item", F.lit(5))
        by_column = predictions(second.transform(pairs), ["user"])
        np.testing.assert_allclose(
            predictions(more.transform(pairs), ["user"]), by_column, atol=0.2
        )

    @pytest.mark.long
    def test_grids_of_spark(self, spark, vectors):
        """Candidates learn from a column, and from a table beside, which every copy keeps."""
        table = with_vectors(spark, RATINGS, vectors)
        als = StreamingBiasedALS(itemFeaturesCol="vector", **ALS)
        beside = StreamingBiasedALS(**ALS).setItemFeatures(vectors)
        evaluator = RegressionEvaluator(labelCol="rating")
        for search, estimator in ((TrainValidationSplit, als), (CrossValidator, beside)):
            grid = ParamGridBuilder().addGrid(estimator.maxIter, [1, 4]).build()
            folds = {"numFolds": 2} if search is CrossValidator else {}
            found = search(
                estimator=estimator, estimatorParamMaps=grid, evaluator=evaluator, seed=1, **folds
            ).fit(table)
            metrics = getattr(found, "validationMetrics", None) or found.avgMetrics
            assert np.isfinite(metrics).all()
            best = estimator.fit(table, grid[int(np.argmin(metrics))])
            assert_same_bits(found.bestModel, best)
            assert found.bestModel.featureWeights.count() == FEATURES

    def test_the_newest_vector_counts_and_the_id_is_named(self, spark, vectors, model):
        late = OLD.time.max()
        frame = with_vectors(spark, OLD, vectors).withColumn(
            "vector",
            F.when((F.col("item") == 7) & (F.col("time") < 50), F.lit(None)).otherwise(
                F.col("vector")
            ),
        )
        als = StreamingBiasedALS(itemFeaturesCol="vector", **ALS)
        # null says nothing, so it contradicts nothing
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert_same_bits(als.fit(frame), model)
        array = spark.createDataFrame(
            OLD.assign(vector=[MATRIX[n].tolist() for n in OLD.item])
        ).withColumn(
            "vector",
            F.when(
                (F.col("item") == 7) & (F.col("time") < int(late // 2)),
                F.array(*[F.lit(9.0)] * FEATURES),
            ).otherwise(F.col("vector")),
        )
        with pytest.warns(UserWarning, match=r"itemFeaturesCol 'vector' differs .* for 1 id: 7"):
            assert_same_bits(als.fit(array), model)

    @pytest.mark.long
    def test_vectors_that_are_none(self, spark):
        """Refused by name, or as if they were not given."""
        rows = MATRIX.tolist()
        rows[3], rows[5] = rows[3][:2], [float("nan"), *rows[5][1:]]
        bad = spark.createDataFrame(OLD.assign(vector=[rows[n] for n in OLD.item]))
        als = StreamingBiasedALS(itemFeaturesCol="vector", **ALS)
        sentence = r"itemFeaturesCol 'vector' has another length than 4, or .* for 2 ids: 3, 5"
        with pytest.raises(ValueError, match=sentence):
            als.fit(bad)
        rows[3] = rows[5] = None
        good = spark.createDataFrame(
            OLD.assign(vector=[rows[n] for n in OLD.item]),
            "user long, item long, rating double, time long, vector array<double>",
        )
        assert_same_bits(als.copy().setHandleInvalid("skip").fit(bad), als.fit(good))
        with pytest.raises(ValueError, match="There are no features of items: all vectors"):
            als.fit(good.withColumn("vector", F.lit(None).cast("array<double>")))

    @pytest.mark.parametrize(
        ("params", "sentence"),
        [
            ({"solver": "sgd"}, "learned by solver 'bayes', and solver is 'sgd'"),
            ({"solver": "minibatch"}, "learned by solver 'bayes', and solver is 'minibatch'"),
            ({"implicitPrefs": True, "solver": "isgd"}, "by solver 'bayes', and solver is 'isgd'"),
            ({"maxIter": 0}, "learned by sweeps, and maxIter is 0"),
            ({"itemFeaturesCol": "item"}, "must hold vectors of pyspark.ml or arrays of numbers"),
            ({"itemFeaturesCol": "nothing"}, "'nothing' is not a column"),
        ],
    )
    def test_what_is_refused(self, spark, vectors, params, sentence):
        als = StreamingBiasedALS(**{"itemFeaturesCol": "vector", **ALS, **params})
        with pytest.raises((ValueError, TypeError), match=sentence):
            als.fit(with_vectors(spark, OLD[:200], vectors))

    @pytest.mark.long
    def test_in_blocks_and_to_a_path_as_in_one_task(self, spark, vectors, model, tmp_path):
        """The same bits whatever the partitions, also of a path."""
        als = StreamingBiasedALS(itemFeaturesCol="vector", numBlocks=3, **ALS)
        table = with_vectors(spark, OLD, vectors)
        found = als.fit(table.repartition(5))
        assert found.summary.form == "3 blocks"
        assert error(found, spark, NEW, vectors) < 1.03 * error(model, spark, NEW, vectors)
        path = tmp_path / "model"
        written = als.fitPath(table.coalesce(1), path)
        state, _ = VersionStore(str(path)).load()
        assert state.fingerprint() == found.state.fingerprint()
        assert state.features[1].to_json() == found.state.features[1].to_json()
        assert written.summary.form == "3 blocks"
        part = StreamingBiasedALSModel.load(path, maxResidentIds=20)
        assert part.state.partial
        apart = error(found, spark, NEW, vectors)
        assert error(part, spark, NEW, vectors) == pytest.approx(apart, rel=1e-6)
        judged, whole = (m.diagnose(with_vectors(spark, NEW, vectors)) for m in (part, found))
        assert judged.coldRmse == pytest.approx(whole.coldRmse, rel=1e-6)
        assert judged.featuresHelp
        about = {"itemFeatures": MATRIX[COLD].tolist()}
        told, expected = (m.explain(1, COLD, **about).collect() for m in (part, found))
        assert told == expected
        assert part.featureWeights.collect() == found.featureWeights.collect()
        new = vectors.where(F.col("item") >= COLD)
        joined, expected = (m.withItems(vectors) for m in (part, found))
        assert_same_bits(joined, expected)
        assert joined.state.partial
        assert part.state.ids[1] == COLD
        everyone = part.recommendForUserSubset([1], ITEMS).first().recommendations
        best = joined.recommendForUserSubset([1], ITEMS).first().recommendations
        assert (len(everyone), len(best)) == (COLD, ITEMS)
        predictor = Predictor.load(str(path), max_resident_ids=20)
        knows = predictor.with_items({n: {str(k): MATRIX[n, k] for k in range(FEATURES)}
                                      for n in (3, COLD, COLD + 1)})  # fmt: skip
        for item in (3, COLD, COLD + 1):
            one = knows.predict([1], [item]).prediction[0]
            assert one == pytest.approx(joined.predictOne(1, item), abs=1e-6)
        assert knows._state.ids[1] == COLD + 2
        batch = with_vectors(spark, NEW[:200], vectors)
        assert_same_bits(part.copy().update(batch), found.copy().update(batch))
        more = written.withItems(new, modelPath=path)
        assert (more.version, more.state.items.size) == (1, ITEMS)
        again = StreamingBiasedALSModel.load(path, maxResidentIds=20)
        assert again.state.partial
        assert_same_bits(again, more)

    @pytest.mark.long
    def test_in_blocks_from_rows_and_from_a_table_beside(self, spark, vectors, monkeypatch):
        """The same bits where Spark moves all, of ids of text, and of those that come twice."""
        frame = spark.createDataFrame(OLD.assign(item="i" + OLD.item.astype(str)))
        named = vectors.withColumn("item", F.concat(F.lit("i"), F.col("item")))
        als = StreamingBiasedALS(numBlocks=3, maxIter=2, **ALS)
        found = als.setItemFeatures(named).fit(frame)
        twice = named.unionByName(named.where("item < 'i3'")).repartition(4)
        assert_same_bits(als.setItemFeatures(twice).fit(frame), found)
        less = spark.createDataFrame([("i7", Vectors.dense([-1.0] * FEATURES))], ["item", "vector"])
        with pytest.warns(UserWarning, match="differs from row to row for 1 id: 'i7'"):
            assert_same_bits(als.setItemFeatures(named.unionByName(less)).fit(frame), found)
        monkeypatch.setattr(
            "sparkml_sgdals.fit.blocks.driver.block_folder",
            lambda spark: contextlib.nullcontext(None),
        )
        assert_same_bits(als.setItemFeatures(named).fit(frame), found)

    @pytest.mark.long
    def test_vectors_that_are_none_in_blocks(self, spark, tmp_path):
        """As in one task, and nothing stays."""
        rows = [row.tolist() for row in MATRIX[:COLD]]
        rows[3], rows[5] = rows[3][:2], [float("nan"), *rows[5][1:]]
        als = StreamingBiasedALS(numBlocks=2, maxIter=1, **ALS)
        table = [(n, row) for n, row in enumerate(rows)]
        ratings = spark.createDataFrame(OLD)
        als.setItemFeatures(spark.createDataFrame(table, "item long, vector array<double>"))
        sentence = r"itemFeaturesCol 'vector' has another length than 4, or .* for 2 ids: 3, 5"
        with pytest.raises(ValueError, match=sentence):
            als.fitPath(ratings, tmp_path / "m")
        assert not (tmp_path / "m").exists()
        skipped = als.copy().setHandleInvalid("skip").fit(ratings)
        table = [(n, row) for n, row in table if n not in (3, 5)]
        good = spark.createDataFrame(table, "item long, vector array<double>")
        assert_same_bits(skipped, als.setItemFeatures(good).fit(ratings))
        als.setItemFeatures(good.withColumn("vector", F.lit(None).cast("array<double>")))
        with pytest.raises(ValueError, match="There are no features of items: all vectors"):
            als.fit(ratings)

    def test_other_solvers_of_streams_are_refused(self, spark, vectors, stream, files):
        als = StreamingBiasedALS(itemFeaturesCol="vector", **ALS)
        folder = files(OLD[:10], 10)
        als.setSolver("sgd")
        with pytest.raises(ValueError, match="Features are learned by solver 'bayes'"):
            als.fitStream(stream(folder), "nowhere")

    def test_a_table_of_features_is_not_saved(self, spark, vectors, tmp_path):
        als = StreamingBiasedALS(**ALS).setItemFeatures(vectors)
        with pytest.warns(UserWarning, match="setUserFeatures and setItemFeatures are not saved"):
            als.write().overwrite().save(str(tmp_path / "als"))
        assert not StreamingBiasedALS.load(str(tmp_path / "als"))._has_features()
        with pytest.raises(ValueError, match=r"itemCol 'item' is not a column of the table"):
            als.setItemFeatures(vectors.withColumnRenamed("item", "movie"))
        assert not als.setItemFeatures(None)._has_features()


class TestUse:
    """A model with features is saved, copied, updated and asked."""

    def test_saved_and_loaded(self, spark, vectors, model, tmp_path):
        path = str(tmp_path / "model")
        model.write().overwrite().save(path)
        again = StreamingBiasedALSModel.load(path)
        assert_same_bits(again, model)
        assert again.getItemFeaturesCol() == "vector"
        assert error(again, spark, NEW, vectors) == error(model, spark, NEW, vectors)
        ranked = Predictor.load(path).recommend([1], 3)
        assert ranked["item"].tolist() == [one.item for one in model.recommendOne(1, 3)]

    def test_cold_strategies_and_wrong_vectors(self, spark, vectors, model):
        """What features tell counts as known; a pair of which nothing is known is not."""
        pairs = spark.createDataFrame(
            pd.DataFrame({"user": [1, 1, 1], "item": [COLD, 5, 9999]})
        ).join(vectors, "item", "left")
        plain = model.transform(pairs).toPandas().set_index("item").prediction
        dropped = model.copy().setColdStartStrategy("drop").transform(pairs).toPandas()
        assert sorted(dropped.item) == [5, COLD]
        nan = model.copy().setColdStartStrategy("nan").transform(pairs).toPandas()
        nan = nan.set_index("item").prediction
        assert np.isnan(nan[9999])
        assert nan[[5, COLD]].tolist() == plain[[5, COLD]].tolist()
        short = spark.createDataFrame([(1, COLD, [1.0])], ["user", "item", "vector"])
        with pytest.raises(Exception, match="a vector of 1 numbers, the model was fitted with 4"):
            model.transform(short).collect()

    def test_an_update_starts_new_items_by_their_features(self, spark, vectors, model):
        """And the same where a table with one row more is too large to collect, in kind."""
        batch = with_vectors(spark, NEW[:40], vectors)
        updated = model.copy().update(batch)
        blind = model.copy().setItemFeaturesCol("").update(batch)
        before, after = (one.state.counters.prequential_squares for one in (blind, updated))
        assert after < before
        known = updated.state.items.index.find(pa.array([int(NEW.item.iloc[0])]))
        assert updated.state.items.featured[known].any()
        assert not blind.state.items.featured[blind.state.items.index.find(
            pa.array([int(NEW.item.iloc[0])]))].any()  # fmt: skip

    def test_more_items_join_and_are_recommended(self, spark, vectors, model):
        more = model.withItems(vectors)
        assert (more.version, model.version) == (model.version + 1, model.version)
        assert more.state.items.size == ITEMS
        assert model.state.items.size == COLD
        # predicted as transform predicts them by the column
        pairs = spark.createDataFrame(NEW[["user", "item", "time"]])
        by = ["time"]
        given = model.transform(pairs.join(vectors, "item"))
        # a new id's own start, which keeps tastes apart, comes besides
        np.testing.assert_allclose(
            predictions(more.transform(pairs), by), predictions(given, by), atol=0.2
        )
        ranked = more.recommendForAllUsers(ITEMS).toPandas()
        offered = {row["item"] for rows in ranked.recommendations for row in rows}
        assert offered == set(range(ITEMS))
        with pytest.raises(ValueError, match="fitted without features of users"):
            model.withUsers(spark.createDataFrame([(1, [1.0])], ["user", "vector"]))

    def test_features_are_named_in_an_explanation(self, spark, vectors, model):
        """Of an item that nobody rated they are all that the item adds; the parts still add up."""
        vector = Vectors.dense(MATRIX[COLD])
        told = model.explain(1, COLD, itemFeatures=vector).toPandas().set_index("part")
        named = told[told.index.str.match(r"item \d")]
        assert set(named.index) <= {f"item {n}" for n in range(FEATURES)}
        assert named["value"].abs().sum() > 0.05
        parts = told.loc[["mean", "user bias", "item bias", "features"], "value"].sum()
        assert told.loc["prediction", "value"] == pytest.approx(parts)
        pair = spark.createDataFrame([(1, COLD, vector)], ["user", "item", "vector"])
        assert model.transform(pair).first().prediction == pytest.approx(parts, abs=1e-4)
        known = model.explain(1, 5, itemFeatures=MATRIX[5].tolist()).toPandas()
        assert known.note.str.contains("what ratings start from").any()
        with pytest.raises(ValueError, match=r"itemFeatures must be 4 finite numbers, got \[1\]"):
            model.explain(1, COLD, itemFeatures=[1])
        with pytest.raises(ValueError, match="userFeatures is given, and the model was fitted"):
            model.explain(1, COLD, userFeatures=[1])

    def test_a_model_without_them_refuses_a_column(self, spark, vectors):
        plain = StreamingBiasedALS(**ALS).fit(spark.createDataFrame(OLD[:300]))
        plain.setItemFeaturesCol("vector")
        for use in (plain.transform, plain.update):
            with pytest.raises(ValueError, match="the model was fitted without features of items"):
                use(with_vectors(spark, OLD[:10], vectors))


class TestStream:
    """New items in a stream start by their features, exactly once."""

    @pytest.fixture
    def source(self, spark, tmp_path):
        """A folder of files with vectors as arrays, and the stream of it."""
        folder = tmp_path / "in"
        folder.mkdir()

        def put(frame, first):
            for number, part in enumerate(np.array_split(np.arange(len(frame)), 3)):
                rows = frame.iloc[part].assign(
                    vector=[MATRIX[n].tolist() for n in frame.item.iloc[part]]
                )
                file = folder / f"{first + number:03d}.parquet"
                pq.write_table(pa.Table.from_pandas(rows, preserve_index=False), file)

        def read():
            schema = "user long, item long, rating double, time long, vector array<double>"
            reader = spark.readStream.schema(schema).option("maxFilesPerTrigger", 1)
            return reader.parquet(str(folder))

        return put, read

    @pytest.mark.long
    def test_restart_rollback_and_bits(self, spark, vectors, model, source, tmp_path):
        put, read = source
        path = str(tmp_path / "m")
        put(NEW[:300], 0)
        job = model.updateStream(read(), path, trigger=ONCE)
        job.awaitTermination()
        halfway = job.model
        put(NEW[300:600], 10)
        job = StreamingBiasedALSModel.resumeStream(read(), path, trigger=ONCE)
        job.awaitTermination()
        # the same files in one run
        other = model.updateStream(read(), str(tmp_path / "n"), trigger=ONCE)
        other.awaitTermination()
        assert other.model.version == 6
        assert_same_bits(job.model, other.model)
        assert other.metrics().newItems.sum() == NEW.item[:600].nunique()
        plain = StreamingBiasedALS(**ALS).fit(spark.createDataFrame(OLD))
        blind = plain.updateStream(read(), str(tmp_path / "b"), trigger=ONCE)
        blind.awaitTermination()
        assert other.metrics().rmse.iloc[0] < 0.9 * blind.metrics().rmse.iloc[0]
        assert (other.metrics().newItems == blind.metrics().newItems).all()
        StreamingBiasedALSModel.rollback(path, 3)
        back = StreamingBiasedALSModel.load(path)
        assert back.state.fingerprint() == halfway.state.fingerprint()
        loaded = StreamingBiasedALSModel.load(path, 6)
        assert_same_bits(loaded, other.model)
        # a part of the model in memory
        small = model.copy().setMaxResidentIds(20)
        part = small.updateStream(read(), str(tmp_path / "p"), trigger=ONCE)
        part.awaitTermination()
        assert_same_bits(part.model, other.model)

    @pytest.mark.long
    def test_a_race_from_a_model(self, spark, model, source, tmp_path):
        """New items start where the model's features say, whatever the candidate's rank."""
        put, read = source
        put(NEW[:300], 0)
        als = StreamingBiasedALS(itemFeaturesCol="vector", **ALS)
        maps = [{als.rank: rank} for rank in (4, 2, 6)]
        race = StreamingGridSearch(estimator=als, estimatorParamMaps=maps)
        path = str(tmp_path / "race")
        job = race.fitStream(read(), path, trigger=ONCE, initialModel=model)
        job.awaitTermination()
        won = job.model.state
        assert won.features[1].size == FEATURES
        new = won.items.index.find(pa.array(NEW.item[:300].unique()))
        assert won.items.featured[new].any(axis=1).all()
        other = model.updateStream(read(), str(tmp_path / "n"), trigger=ONCE)
        other.awaitTermination()
        assert job.metrics().rmse.iloc[0] == pytest.approx(other.metrics().rmse.iloc[0], rel=0.02)
        begun = StreamingBiasedALS(**ALS).fit(spark.createDataFrame(OLD[:300]))
        with pytest.raises(ValueError, match="features of items, and initialModel was fitted with"):
            race.fitStream(read(), "nowhere", initialModel=begun)
        race = StreamingGridSearch(
            estimator=StreamingBiasedALS(solver="sgd", **ALS), estimatorParamMaps=[{}]
        )
        with pytest.raises(ValueError, match="which solver 'bayes' alone goes on with"):
            race.fitStream(read().drop("vector"), "nowhere", initialModel=model)

    @pytest.mark.long
    def test_from_nothing(self, spark, vectors, source, tmp_path):
        """What features say is learned on the way: by column or by table, to the same bits."""
        put, read = source
        als = StreamingBiasedALS(itemFeaturesCol="vector", **ALS)
        path = str(tmp_path / "m")
        put(OLD, 0)
        job = als.fitStream(read(), path, trigger=ONCE)
        job.awaitTermination()
        put(NEW, 10)
        job = als.fitStream(read(), path, trigger=ONCE)
        job.awaitTermination()
        table = vectors.withColumn("item", F.col("item").cast("int"))
        by_table = StreamingBiasedALS(**ALS, maxResidentIds=20).setItemFeatures(table)
        other = by_table.fitStream(read(), str(tmp_path / "n"), trigger=ONCE)
        other.awaitTermination()
        assert_same_bits(job.model, other.model)
        blind = StreamingBiasedALS(**ALS).fitStream(read(), str(tmp_path / "b"), trigger=ONCE)
        blind.awaitTermination()
        assert job.metrics().rmse.iloc[3] < 0.9 * blind.metrics().rmse.iloc[3]
        weights = job.model.featureWeights.collect()
        assert [row.feature for row in weights] == ["0", "1", "2", "3"]
        # a model as any other
        job.model.save(str(tmp_path / "saved"))
        loaded = StreamingBiasedALSModel.load(str(tmp_path / "saved"))
        more = spark.createDataFrame([(999, MATRIX[0].tolist())], ["item", "vector"])
        assert loaded.withItems(more).state.items.size == ITEMS + 1
        users = StreamingBiasedALS(userFeaturesCol="vector", itemFeaturesCol="vector", **ALS)
        with pytest.raises(ValueError, match="learns what features of items say, and this stream"):
            users.fitStream(read(), path, trigger=ONCE)

    @pytest.mark.long
    def test_a_race_learns_what_features_say(self, spark, source, tmp_path):
        """Each candidate as it would alone, to the same bits after a restart."""
        put, read = source
        als = StreamingBiasedALS(itemFeaturesCol="vector", **ALS)
        grid = ParamGridBuilder().addGrid(als.rank, [4, 2]).build()
        race = StreamingGridSearch(estimator=als, estimatorParamMaps=grid)
        path = str(tmp_path / "m")
        put(OLD[:2400], 0)
        race.fitStream(read(), path, trigger=ONCE).awaitTermination()
        put(NEW[:300], 10)
        job = race.fitStream(read(), path, trigger=ONCE)
        job.awaitTermination()
        found = job.race()
        leader = int(found[found.leads].candidate.iloc[-1])
        alone = als.copy(grid[leader]).fitStream(read(), str(tmp_path / "n"), trigger=ONCE)
        alone.awaitTermination()
        assert_same_bits(job.model, alone.model)
        assert job.model.featureWeights.count() == FEATURES

    @pytest.mark.long
    def test_names_of_a_table_last(self, spark, source, tmp_path):
        """Plain columns are read by the names of the path once it has some."""
        put, read = source
        put(OLD[:1500], 0)
        films = [(n, "a" if row[0] else "b", float(n % 7)) for n, row in enumerate(MATRIX)]
        table = spark.createDataFrame(films, ["item", "kind", "age"])
        path = str(tmp_path / "m")
        als = StreamingBiasedALS(**ALS).setItemFeatures(table)
        als.fitStream(read(), path, trigger=ONCE).awaitTermination()
        put(NEW[:90], 5)
        more = spark.createDataFrame([*films, (500, "c", 1.0), (501, "c", 1.0)], table.columns)
        job = als.setItemFeatures(more).fitStream(read(), path, trigger=ONCE)
        job.awaitTermination()
        found = {row.feature for row in job.model.featureWeights.collect()}
        assert found == {"age", "kind=a", "kind=b"}

    def test_items_join_a_path(self, model, vectors, source, tmp_path):
        """As a version, after which the stream goes on."""
        put, read = source
        path = str(tmp_path / "m")
        put(OLD[:90], 0)
        model.updateStream(read(), path, trigger=ONCE).awaitTermination()
        more = model.withItems(vectors, modelPath=path)
        assert (more.version, more.state.items.size) == (4, ITEMS)
        assert_same_bits(StreamingBiasedALSModel.load(path), more)
        put(NEW[:90], 5)
        job = model.updateStream(read(), path, trigger=ONCE)
        job.awaitTermination()
        assert job.model.version == 7
        assert job.metrics().newItems.iloc[-3:].sum() == 0

    @pytest.mark.long
    def test_a_stream_of_pairs_is_scored(self, spark, model, source, tmp_path):
        """As a table of the same pairs is, new items by their column among them."""
        put, read = source
        put(NEW[:60], 0)
        scored = model.transform(read()).writeStream.format("parquet")
        scored = scored.option("checkpointLocation", str(tmp_path / "c")).trigger(**ONCE)
        scored.start(str(tmp_path / "out")).awaitTermination()
        table = spark.read.schema("user long, item long, time long, vector array<double>")
        given = model.transform(table.parquet(str(tmp_path / "in")))
        found = spark.read.parquet(str(tmp_path / "out"))
        np.testing.assert_array_equal(predictions(found, ["time"]), predictions(given, ["time"]))

    def test_a_message_may_tell_of_an_item_alone(self, spark, model, vectors, tmp_path):
        """A row without user and rating adds its item as withItems does, once, with its batch."""
        folder = tmp_path / "in"
        folder.mkdir()
        schema = "user long, item long, rating double, time long, vector array<double>"

        def put(name, rows):
            names = ("user", "item", "rating", "vector")
            lines = [dict(zip(names, row, strict=True)) | {"time": 1} for row in rows]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / f"{name}.json").write_text(text)

        def learned(path, start=model):
            stream = spark.readStream.schema(schema).option("maxFilesPerTrigger", 1)
            job = start.updateStream(stream.json(str(folder)), str(path), trigger=ONCE)
            job.awaitTermination()
            return job

        told = [(None, n, None, MATRIX[n].tolist()) for n in range(COLD, ITEMS)]
        put("0", [*told, told[0], (None, 3, None, MATRIX[3].tolist())])
        job = learned(tmp_path / "m")
        (row,) = job.metrics().to_dict("records")
        assert (row["newItems"], row["ratings"], row["invalid"]) == (ITEMS - COLD, 0, 0)
        assert_same_bits(job.model, model.withItems(vectors))
        # with ratings, and with what is bad: one without a user, an item without anything told
        put("1", [(1, 5, 4.0, None), (None, 5, 4.0, None), (None, 500, None, None),
                  (None, 501, None, MATRIX[1].tolist())])  # fmt: skip
        job = learned(tmp_path / "m")
        row = job.metrics().to_dict("records")[-1]
        assert (row["newItems"], row["ratings"], row["invalid"]) == (1, 1, 2)
        assert_same_bits(StreamingBiasedALSModel.load(str(tmp_path / "m")), job.model)
        # from the beginning in one run, and with a part of the model in memory
        assert_same_bits(learned(tmp_path / "n").model, job.model)
        part = learned(tmp_path / "p", model.copy().setMaxResidentIds(20))
        assert_same_bits(part.model, job.model)

    def test_a_table_too_large_to_collect_tells_of_items_too(
        self, spark, model, monkeypatch, classic_only
    ):
        rows = [(1, 5, 4.0, 1, None)] * 9 + [(None, 500, None, 1, MATRIX[1].tolist())]
        schema = "user long, item long, rating double, time long, vector array<double>"
        frame = spark.createDataFrame(rows, schema)
        small = model.copy().update(frame)
        monkeypatch.setattr("sparkml_sgdals.ingest.collecting.COLLECT_LIMIT", 5)
        large = model.copy().update(frame)
        assert large.state.items.size == small.state.items.size == COLD + 1
        (row,) = large.state.items.index.find(pa.array([500]))
        (same,) = small.state.items.index.find(pa.array([500]))
        np.testing.assert_allclose(
            large.state.items.mean[row], small.state.items.mean[same], atol=1e-5
        )
