"""Transform, factors, update, copies, diagnose, save and load."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from chispa import assert_df_equality
from helpers import assert_same_bits, factors, long_after, predictions, rmse
from pyspark.ml import Pipeline, PipelineModel
from pyspark.sql import functions as F

from sparkml_sgdals import DivergenceError, StreamingBiasedALS, StreamingBiasedALSModel
from sparkml_sgdals.ingest.collecting import COLLECT_LIMIT
from sparkml_sgdals.store.saved_model import sealed
from sparkml_sgdals.store.version_store import StorageError


@pytest.fixture(scope="module")
def als():
    return StreamingBiasedALS(timestampCol="time", rank=4)


@pytest.fixture(scope="module")
def fitted(als, ratings):
    return als.fit(ratings)


@pytest.fixture
def model(fitted):
    return fitted.copy()


@pytest.fixture
def pairs(spark, small):
    """Known pair, unknown item, unknown user, both unknown, null ids."""
    user, item = int(small.user[0]), int(small.item[0])
    rows = [(user, item, "a"), (user, -1, "b"), (-2, item, "c"), (-2, -1, "d"), (None, item, "e")]
    return spark.createDataFrame(rows, "user long, item long, note string")


class TestTransform:
    def test_keeps_rows_and_columns(self, model, pairs):
        scored = model.transform(pairs)
        assert scored.columns == ["user", "item", "note", "prediction"]
        assert_df_equality(scored.drop("prediction"), pairs, ignore_row_order=True)

    def test_bias_serves_what_is_known(self, model, pairs, small):
        found = dict(zip("abcde", predictions(model.transform(pairs), ["note"]), strict=True))
        state = model.state
        user = state.users.mean[state.users.index.find(_ids(small.user[0]))[0], 0]
        item = state.items.mean[state.items.index.find(_ids(small.item[0]))[0], 0]
        spread = state.scale.spread
        assert found["b"] == pytest.approx(model.globalMean + user * spread, abs=1e-5)
        assert found["c"] == pytest.approx(model.globalMean + item * spread, abs=1e-5)
        assert found["d"] == pytest.approx(model.globalMean, abs=1e-5)
        assert found["e"] == found["c"]
        assert found["a"] != found["b"]

    def test_nan_and_drop(self, model, pairs):
        cold = model.copy({model.coldStartStrategy: "nan"}).transform(pairs)
        found = predictions(cold, ["note"], nan=True)
        np.testing.assert_array_equal(np.isnan(found), [False, True, True, True, True])
        dropped = model.copy({model.coldStartStrategy: "drop"}).transform(pairs)
        assert [r.note for r in dropped.collect()] == ["a"]

    def test_agrees_with_the_state(self, model, ratings, small):
        found = predictions(model.transform(ratings), ["user", "item", "time", "rating"])
        rows = small.sort_values(["user", "item", "time", "rating"])
        state = model.state
        users = state.users.index.find(_ids(*rows.user))
        items = state.items.index.find(_ids(*rows.item))
        expected = state.clip(state.predict(users, items)[0])
        np.testing.assert_allclose(found, expected, atol=1e-5)

    def test_clipping(self, model, ratings):
        clipped = predictions(model.transform(ratings), ["user", "item", "time"])
        free = model.copy({model.clipPredictions: False})
        unclipped = predictions(free.transform(ratings), ["user", "item", "time"])
        assert clipped.max() == 5.0
        assert clipped.min() >= 0.5
        assert unclipped.max() > 5.0

    def test_deviation(self, model, pairs, small):
        scored = model.copy({model.predictionStdCol: "std"}).transform(pairs)
        found = dict(zip("abcde", predictions(scored, ["note"], "std"), strict=True))
        state = model.state
        user = state.users.index.find(_ids(small.user[0], -2))
        item = state.items.index.find(_ids(small.item[0], -1))
        _, variance = state.predict(user, item)
        noise = state.noise * state.scale.spread**2 * state.noise_factors(user, item)
        assert noise[1] == state.noise * state.scale.spread**2 != noise[0]
        assert found["a"] == pytest.approx(math.sqrt(variance[0] + noise[0]), rel=1e-4)
        assert found["d"] == pytest.approx(math.sqrt(variance[1] + noise[1]), rel=1e-4)
        assert found["a"] < found["b"] < found["d"]

    def test_deviation_needs_bayes(self, ratings):
        sgd = StreamingBiasedALS(rank=2, maxIter=1, solver="sgd").fit(ratings)
        sgd._set(predictionStdCol="std")
        with pytest.raises(ValueError, match="predictionStdCol needs a model of solver 'bayes'"):
            sgd.transform(ratings)

    def test_existing_column_is_refused(self, model, pairs):
        with pytest.raises(ValueError, match="'prediction' is in the DataFrame already"):
            model.transform(pairs.withColumn("prediction", F.lit(1.0)))

    def test_other_kind_of_ids_is_refused(self, model, pairs):
        text = pairs.withColumn("user", F.col("user").cast("string"))
        with pytest.raises(TypeError, match=r"userCol 'user' has type string.*Cast it to bigint"):
            model.transform(text)

    def test_pairs_from_its_own_factors(self, model):
        """Regression: a join on a table derived from the factors must not be ambiguous."""
        users = model.userFactors.select(F.col("id").alias("user"))
        items = model.itemFactors.select(F.col("id").alias("item")).limit(2)
        assert model.transform(users.crossJoin(items)).count() == 2 * model.state.users.size

    def test_other_integer_types_and_case(self, model, pairs):
        renamed = pairs.select(F.col("user").cast("int").alias("USER"), "item", "note")
        np.testing.assert_array_equal(
            predictions(model.transform(renamed), ["note"]),
            predictions(model.transform(pairs), ["note"]),
        )


# the new ids of a rating
ONES = long_after(1, [(None, None), (-5, -6), (-5, None), (None, -6)])


class TestUpdate:
    @pytest.mark.parametrize(("user", "item"), ONES)
    def test_one_rating_of_new_and_known_ids(self, spark, model, small, user, item):
        user = int(small.user[0]) if user is None else user
        item = int(small.item[0]) if item is None else item
        pair = spark.createDataFrame(
            [(user, item, 5.0, 9)], "user long, item long, rating double, time long"
        )
        before = model.copy({model.clipPredictions: False}).transform(pair).first().prediction
        frozen = model.copy()
        assert model.update(pair) is model
        after = model.copy({model.clipPredictions: False}).transform(pair).first().prediction
        assert abs(5.0 - after) < abs(5.0 - before)
        assert (model.version, frozen.version) == (1, 0)
        assert frozen.transform(pair).first().prediction == pytest.approx(min(before, 5.0))
        assert model.state.counters.ratings == len(small) + 1

    def test_the_order_of_rows_does_not_matter(self, spark, fitted, small):
        batch = small.sample(500, random_state=1).assign(user=lambda d: d.user + 3)
        one = fitted.copy().update(spark.createDataFrame(batch))
        other = spark.createDataFrame(batch.iloc[::-1]).repartition(4)
        assert_same_bits(one, fitted.copy().update(other))

    def test_a_copy_stays_when_its_source_learns(self, spark, fitted, small):
        """And the source when its copy learns."""
        batch = spark.createDataFrame(small.head(50))
        source = fitted.copy()
        copy = source.copy()
        mark = source.state.fingerprint()
        copy.update(batch)
        assert source.state.fingerprint() == mark
        source.update(batch)
        assert_same_bits(source, copy)
        assert fitted.state.fingerprint() == mark

    def test_empty_update(self, model, ratings, small):
        mark = factors(model)["users"][1]
        model.update(ratings.limit(0))
        assert model.version == 1
        np.testing.assert_array_equal(factors(model)["users"][1], mark)

    @pytest.mark.long
    @pytest.mark.parametrize("blocks", [3, 1])
    def test_a_large_update_forgets_nothing(self, spark, small, monkeypatch, blocks):
        """A table above the limit is filtered and swept with the model as its prior."""
        monkeypatch.setattr("sparkml_sgdals.ingest.collecting.COLLECT_LIMIT", 1000)
        monkeypatch.setattr("sparkml_sgdals.ingest.collecting._FIRST_LOOK", 300)
        half = len(small) // 2
        als = StreamingBiasedALS(timestampCol="time", rank=4, numBlocks=blocks)
        first = spark.createDataFrame(small.iloc[:half])
        second = spark.createDataFrame(
            small.iloc[half:].assign(item=lambda d: d.item + 5 * (d.item % 2))
        )
        model = als.fit(first)
        untouched = set(small.item[:half]) - set(small.item[half:] + 5 * (small.item[half:] % 2))
        before, before_rmse = model.copy(), rmse(model, small.iloc[:half], spark)
        model.update(second)
        assert model.summary.form == ("one task" if blocks == 1 else "3 blocks")
        assert model.state.counters.ratings == len(small)
        assert model.state.scale == before.state.scale
        assert rmse(model, small.iloc[:half], spark) < before_rmse * 1.12
        assert untouched
        old, new = factors(before)["items"], factors(model)["items"]
        for item in untouched:
            np.testing.assert_array_equal(old[1][old[0] == item], new[1][new[0] == item])
        assert (new[3].sum(), old[3].sum()) == (len(small), half)

    def test_the_limit_is_one_of_rows_not_of_partitions(self, spark, small, monkeypatch):
        """Regression: many small partitions were collected, however many rows they had."""
        monkeypatch.setattr("sparkml_sgdals.ingest.collecting.COLLECT_LIMIT", 1000)
        monkeypatch.setattr("sparkml_sgdals.ingest.collecting._FIRST_LOOK", 600)
        als = StreamingBiasedALS(timestampCol="time", rank=2, maxIter=1)
        base = als.fit(spark.createDataFrame(small.iloc[:2000]))
        batch = spark.createDataFrame(small.iloc[2000:])
        one = base.copy().update(batch.repartition(1))
        other = base.copy().update(batch.repartition(8))
        assert one.summary.form == other.summary.form == "one task"
        assert_same_bits(one, other)

    @pytest.mark.long
    @pytest.mark.parametrize("blocks", [2, 1])
    def test_a_large_update_settles_the_scale(self, spark, small, monkeypatch, blocks):
        monkeypatch.setattr("sparkml_sgdals.ingest.collecting.COLLECT_LIMIT", 1000)
        monkeypatch.setattr("sparkml_sgdals.ingest.collecting._FIRST_LOOK", 600)
        als = StreamingBiasedALS(timestampCol="time", rank=2, numBlocks=blocks)
        model = als.fit(spark.createDataFrame(small.iloc[:1]))
        model.state.scale = replace(model.state.scale, frozen=False)
        model.update(spark.createDataFrame(small.iloc[1:]))
        assert model.state.scale.frozen
        assert model.globalMean == pytest.approx(small.rating.mean())
        assert rmse(model, small, spark) < 0.8 * small.rating.std()

    def test_limit(self):
        assert COLLECT_LIMIT == 1_000_000

    @pytest.mark.long
    def test_divergence_leaves_the_model(self, spark, ratings, small):
        als = StreamingBiasedALS(rank=3, maxIter=1, solver="minibatch", stepSize=0.005)
        model = als.fit(ratings)
        rows = [(1, i, 5.0) for i in range(9000)]
        many = spark.createDataFrame(rows, "user long, item long, rating double")
        before = predictions(model.transform(ratings), ["user", "item", "time", "rating"])
        mark = model.state.scalars() | {"fingerprint": model.state.fingerprint()}
        with pytest.raises(DivergenceError, match="blockSize"):
            model.update(many)
        after = predictions(model.transform(ratings), ["user", "item", "time", "rating"])
        np.testing.assert_array_equal(before, after)
        found = model.state.scalars() | {"fingerprint": model.state.fingerprint()}
        assert (model.version, found) == (0, mark)

    @pytest.mark.parametrize("solver", long_after(1, ["sgd", "minibatch"]))
    def test_other_solvers_learn(self, spark, ratings, solver):
        als = StreamingBiasedALS(rank=3, maxIter=1, solver=solver)
        model = als.fit(ratings)
        pair = spark.createDataFrame([(-1, -2, 1.0)], "user long, item long, rating double")
        before = model.transform(pair).first().prediction
        model.update(pair)
        assert model.transform(pair).first().prediction < before

    def test_a_stream_is_refused(self, spark, model):
        with pytest.raises(ValueError, match="is a stream: call updateStream"):
            model.update(spark.readStream.format("rate").load())


class TestDiagnose:
    def test_prequential_and_held_out(self, model, ratings, small):
        found = model.diagnose()
        assert (found.evidence, found.predicted) == ("prequential", len(small) // 2)
        assert found.ratings == len(small)
        counts = small.groupby("item").size()
        assert model.diagnose(minRatings=20).thinItems == pytest.approx((counts < 20).mean())
        held = model.diagnose(ratings)
        assert held.evidence == "held-out"
        assert held.rmse < held.baselineRmse
        assert held.beatsBaseline
        assert "Yes" in str(held)

    def test_rmse_is_that_of_transform(self, spark, model, ratings, small):
        assert model.diagnose(ratings).rmse == pytest.approx(rmse(model, small, spark), rel=1e-5)

    def test_not_yet(self, spark):
        frame = spark.createDataFrame([(1, 2, 3.0)], "user long, item long, rating double")
        assert "Not yet" in StreamingBiasedALS(rank=2).fit(frame).diagnose().verdict


class TestPersistence:
    def test_round_trip(self, model, ratings, tmp_path):
        model._set(predictionCol="score")
        model.update(ratings.limit(5))
        path = str(tmp_path / "m")
        model.save(path)
        loaded = StreamingBiasedALSModel.load(path)
        assert_same_bits(model, loaded)
        assert loaded.uid == model.uid
        assert loaded.version == 1
        assert loaded.getPredictionCol() == "score"
        assert "score" in loaded.transform(ratings).columns
        loaded.update(ratings.limit(5))
        model.update(ratings.limit(5))
        assert_same_bits(model, loaded)
        names = {p.suffix for p in Path(path).rglob("*") if p.is_file()} - {".crc"}
        # Spark's own text file holds the JSON of the metadata
        assert names <= {".parquet", ".txt", ""}

    def test_overwrite_of_where_it_came_from(self, model, tmp_path):
        path = str(tmp_path / "m")
        model.save(path)
        loaded = StreamingBiasedALSModel.load(path)
        with pytest.raises(Exception, match="already exists"):
            loaded.save(path)
        loaded.write().overwrite().save(path)
        assert_same_bits(model, StreamingBiasedALSModel.load(path))

    def test_strings(self, spark, small, tmp_path):
        named = small.assign(user="ü" + small.user.astype(str))
        model = StreamingBiasedALS(rank=2).fit(spark.createDataFrame(named))
        model.save(str(tmp_path / "m"))
        assert_same_bits(model, StreamingBiasedALSModel.load(str(tmp_path / "m")))

    def test_estimator(self, spark, als, tmp_path):
        als.save(str(tmp_path / "e"))
        loaded = StreamingBiasedALS.load(str(tmp_path / "e"))
        assert {p.name: v for p, v in als.extractParamMap().items()} == {
            p.name: v for p, v in loaded.extractParamMap().items()
        }

    def test_in_a_pipeline(self, als, ratings, tmp_path):
        model = Pipeline(stages=[als]).fit(ratings)
        model.write().overwrite().save(str(tmp_path / "p"))
        loaded = PipelineModel.load(str(tmp_path / "p"))
        by = ["user", "item", "time", "rating"]
        np.testing.assert_array_equal(
            predictions(model.transform(ratings), by), predictions(loaded.transform(ratings), by)
        )

    def test_nothing_there(self, spark, tmp_path):
        with pytest.raises(StorageError, match="no readable model at"):
            StreamingBiasedALSModel.load(str(tmp_path / "none"))

    def test_newer_format(self, model, tmp_path):
        path = tmp_path / "m"
        model.save(str(path))
        _edit_metadata(path, formatVersion=99)
        with pytest.raises(StorageError, match=r"format 99.*upgrade"):
            StreamingBiasedALSModel.load(str(path))

    @pytest.mark.parametrize("damage", long_after(1, ["missing", "rows", "truncated"]))
    def test_damage(self, model, tmp_path, damage):
        path = tmp_path / "m"
        model.save(str(path))
        if damage == "rows":
            _edit_metadata(path, users=7)
        else:
            (part,) = (path / "users").glob("*.parquet")
            for crc in (path / "users").glob(".*.crc"):
                crc.unlink()
            if damage == "missing":
                part.unlink()
            else:
                part.write_bytes(part.read_bytes()[:100])
        with pytest.raises(StorageError, match="damaged"):
            StreamingBiasedALSModel.load(str(path))

    def test_another_class(self, als, tmp_path):
        als.save(str(tmp_path / "e"))
        with pytest.raises(StorageError, match=r"load it with StreamingBiasedALS\.load"):
            StreamingBiasedALSModel.load(str(tmp_path / "e"))


def test_repr_and_params(model, als):
    assert "rank=4" in repr(model)
    assert model.uid == als.uid
    assert "prior variance of a bias" in als.explainParams()
    assert als.getSeed() == StreamingBiasedALS().getSeed()


def _ids(*values):
    import pyarrow as pa

    return pa.array([int(v) for v in values])


def _edit_metadata(path: Path, **changes: object) -> None:
    (part,) = (path / "metadata").glob("part-*")
    for crc in (path / "metadata").glob(".part-*.crc"):
        crc.unlink()
    fields = {k: v for k, v in json.loads(part.read_text()).items() if k != "sha256"}
    part.write_text(sealed(json.dumps(fields | changes)))


def test_pandas_is_the_supported_one():
    assert int(pd.__version__.split(".")[0]) == 2
