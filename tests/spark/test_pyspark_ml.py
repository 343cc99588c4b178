"""The model among pyspark.ml's own parts: grids, pipelines, evaluators, streaming pipelines."""

from __future__ import annotations

import re

import numpy as np
import pytest
from helpers import ONCE, assert_same_bits, long_after, predictions, rmse
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.evaluation import RankingEvaluator, RegressionEvaluator
from pyspark.ml.tuning import (
    CrossValidator,
    CrossValidatorModel,
    ParamGridBuilder,
    TrainValidationSplit,
)
from pyspark.sql import functions as F

from sparkml_sgdals import DivergenceError, StreamingBiasedALS
from sparkml_sgdals.fit.fitting import pack_for_fit
from sparkml_sgdals.fit.progress import read_progress

BY = ["user", "item", "time", "rating"]


@pytest.fixture(scope="module")
def als():
    return StreamingBiasedALS(rank=2, maxIter=1, timestampCol="time")


@pytest.fixture(scope="module")
def grid(als):
    return ParamGridBuilder().addGrid(als.rank, [2, 4]).addGrid(als.maxIter, [1, 3]).build()


@pytest.mark.long
def test_cross_validator(als, grid, ratings, tmp_path):
    evaluator = RegressionEvaluator(labelCol="rating")
    validator = CrossValidator(
        estimator=als, estimatorParamMaps=grid, evaluator=evaluator, numFolds=2, seed=1,
        parallelism=3,
    )  # fmt: skip
    found = validator.fit(ratings)
    assert np.isfinite(found.avgMetrics).all()
    assert len(set(found.avgMetrics)) == 4
    best = grid[int(np.argmin(found.avgMetrics))]
    assert found.bestModel.rank == best[als.rank]
    found.write().overwrite().save(str(tmp_path / "cv"))
    loaded = CrossValidatorModel.load(str(tmp_path / "cv"))
    np.testing.assert_array_equal(
        predictions(found.transform(ratings), BY), predictions(loaded.transform(ratings), BY)
    )


@pytest.mark.long
def test_train_validation_split(als, grid, ratings):
    split = TrainValidationSplit(
        estimator=als, estimatorParamMaps=grid, seed=1,
        evaluator=RegressionEvaluator(labelCol="rating", metricName="mae"),
    )  # fmt: skip
    assert np.isfinite(split.fit(ratings).validationMetrics).all()


def test_fit_with_param_maps(als, grid, ratings):
    models = als.fit(ratings, grid)
    assert [m.rank for m in models] == [2, 2, 4, 4]
    assert [len(m.summary.rmse) for m in models] == [1, 3, 1, 3]
    assert {m.uid for m in models} == {als.uid}
    assert als.getRank() == 2


def test_ranking_evaluator(als, ratings):
    best = als.fit(ratings).recommendForAllUsers(10)
    liked = (
        ratings.where("rating >= 4")
        .groupBy("user")
        .agg(F.collect_set(F.col("item").cast("double")).alias("liked"))
    )
    ranked = best.select("user", F.col("recommendations.item").cast("array<double>").alias("found"))
    evaluator = RankingEvaluator(
        predictionCol="found", labelCol="liked", metricName="recallAtK", k=10
    )
    assert 0.2 < evaluator.evaluate(ranked.join(liked, "user")) <= 1.0


def test_a_pipeline_scores_a_stream(als, ratings, files, stream, small, spark, tmp_path):
    Pipeline(stages=[als]).fit(ratings).save(str(tmp_path / "p"))
    model = PipelineModel.load(str(tmp_path / "p"))
    scored = model.transform(stream(files(small.iloc[:60], 30)))
    query = scored.writeStream.format("memory").queryName("by_pipeline").trigger(**ONCE).start()
    query.awaitTermination()
    found = spark.table("by_pipeline")
    assert found.count() == 60
    np.testing.assert_array_equal(
        predictions(found, BY),
        predictions(model.transform(spark.createDataFrame(small.iloc[:60])), BY),
    )


class TestGrid:
    """Param maps learned together give what each gives alone."""

    @pytest.mark.long
    @pytest.mark.parametrize(
        "params",
        long_after(
            2,
            [
                {"numBlocks": 2},
                {"solver": "sgd"},
                {"numBlocks": 1},
                {"solver": "sgd", "numBlocks": 2},
            ],
        ),
        ids=str,
    )
    def test_same_bits_as_alone(self, als, ratings, params):
        als = als.copy({als.getParam(name): value for name, value in params.items()})
        ranks = (2, 3) if params == {"numBlocks": 1} else (2,)
        maps = [{als.maxIter: n, als.rank: k} for k in ranks for n in (0, 2, 1)]
        found = dict(als.fitMultiple(ratings, maps))
        assert sorted(found) == list(range(len(maps)))
        for index, model in found.items():
            alone = als.fit(ratings, maps[index])
            assert_same_bits(model, alone)
            assert model.state.settings == alone.state.settings
            assert model.summary.rmse == alone.summary.rmse
            assert model.summary.totalIterations == maps[index][als.maxIter]

    @pytest.mark.long
    def test_mini_batches(self, als, ratings):
        als = als.copy({als.solver: "minibatch", als.blockSize: 2500, als.stepSize: 0.005})
        one, two = als.fit(ratings, [{als.maxIter: 1}, {als.maxIter: 2}])
        assert_same_bits(one, als.fit(ratings))
        assert two.summary.totalIterations == 2
        assert one.state.fingerprint() != two.state.fingerprint()

    def test_tol_ends_all_at_the_same_sweep(self, als, ratings):
        als = als.copy({als.tol: 0.05})
        early, late = als.fit(ratings, [{als.maxIter: 1}, {als.maxIter: 40}])
        assert (early.summary.totalIterations, late.summary.totalIterations < 40) == (1, True)
        assert_same_bits(late, als.copy({als.maxIter: 40}).fit(ratings))

    def test_models_are_independent(self, als, ratings):
        one, two = als.fit(ratings, [{als.maxIter: 1}, {als.maxIter: 1}])
        mark = two.state.fingerprint()
        one.update(ratings.limit(20))
        assert (one.version, two.version, two.state.fingerprint()) == (1, 0, mark)

    def test_packs_once_and_lets_go(self, als, grid, ratings, monkeypatch):
        packed = []

        def count(*args):
            packed.append(pack_for_fit(*args))
            return packed[-1]

        monkeypatch.setattr("sparkml_sgdals.fit.grid_fit.pack_for_fit", count)
        models = als.fitMultiple(ratings, grid)
        next(models)
        assert packed[0].cells.storageLevel.useMemory
        assert [index for index, _ in models] == [1, 2, 3]
        assert len(packed) == 1
        assert not packed[0].cells.storageLevel.useMemory

    def test_columns_may_differ(self, als, ratings):
        twice = ratings.withColumn("double", F.col("rating") * 2)
        one, two = als.fit(twice, [{als.maxIter: 1}, {als.ratingCol: "double"}])
        assert two.globalMean == pytest.approx(2 * one.globalMean)

    def test_one_bad_point_does_not_spoil_the_others(self, als, ratings):
        als = als.copy({als.solver: "sgd"})
        points = [(0.01, 1), (30.0, 1), (30.0, 2), (0.01, 2)]
        maps = [{als.stepSize: size, als.maxIter: n} for size, n in points]
        models = als.fitMultiple(ratings, maps)
        assert next(models)[0] == 0
        for _ in range(2):
            with pytest.raises(DivergenceError, match="stepSize"):
                next(models)
        index, model = next(models)
        assert (index, model.summary.totalIterations) == (3, 2)

    def test_none(self, als, ratings):
        assert als.fit(ratings, []) == []


class TestSummary:
    def test_of_a_fit(self, als, ratings, small, tmp_path):
        model = als.copy({als.maxIter: 3}).fit(ratings)
        summary = model.summary
        assert (summary.form, summary.totalIterations) == ("one task", 3)
        assert (summary.ratings, summary.users, summary.items) == (
            len(small), small.user.nunique(), small.item.nunique()
        )  # fmt: skip
        assert summary.rmse[0] > summary.rmse[-1] > 0.2
        assert summary.noiseVariance == pytest.approx(summary.rmse[-1] ** 2, rel=0.5)
        assert {"pack", "encode", "learn", "job"} <= set(summary.seconds)
        assert "training RMSE by pass" in str(summary)
        model.save(str(tmp_path / "m"))
        loaded = type(model).load(str(tmp_path / "m"))
        assert not loaded.hasSummary
        with pytest.raises(RuntimeError, match="no training summary"):
            _ = loaded.summary

    def test_training_rmse_is_that_of_the_model(self, als, ratings, small, spark):
        als = als.copy({als.maxIter: 3, als.clipPredictions: False})
        model = als.fit(ratings)
        assert model.summary.rmse[-1] == pytest.approx(rmse(model, small, spark), rel=1e-3)


class TestProgress:
    @pytest.mark.long
    @pytest.mark.parametrize("blocks", [1, 2])
    def test_tasks_note_each_step(self, als, ratings, tmp_path, blocks):
        path = str(tmp_path / "progress")
        als = als.copy({als.progressPath: path, als.numBlocks: blocks, als.maxIter: 3})
        model = als.fit(ratings)
        done, total, noted = read_progress(path)
        assert done == total > 3
        assert len(list((tmp_path / "progress").iterdir())) == blocks
        # a block notes what it knew when it began its step
        expected = model.summary.rmse[-1 if blocks == 1 else -2]
        assert noted == pytest.approx(expected, rel=1e-6)

    def test_events_take_one_pass(self, als, ratings, tmp_path):
        path = str(tmp_path / "progress")
        als = als.copy({als.progressPath: path, als.implicitPrefs: True, als.solver: "isgd"})
        als.fit(ratings)
        assert read_progress(path) == (2, 2, None)

    def test_a_table_of_events_takes_sweeps(self, als, ratings, tmp_path):
        path = str(tmp_path / "progress")
        als = als.copy({als.progressPath: path, als.implicitPrefs: True, als.maxIter: 9})
        for tol in (0.0, 0.9):
            summary = als.copy({als.tol: tol}).fit(ratings).summary
            done, total, noted = read_progress(path)
            assert done == total == 1 + summary.totalIterations
            assert (total < 10) == (tol > 0)
            assert 0 < noted < 1

    def test_a_bar(self, als, ratings, capsys):
        als.copy({als.showProgress: True, als.maxIter: 2}).fit(ratings)
        shown = capsys.readouterr().err
        # reading the table takes most of the time of a first fit
        assert re.search(r"read: \d\d:\d\d", shown)
        assert shown.index("read: ") < shown.index("3/3")

    @pytest.mark.parametrize("blocks", [1, pytest.param(2, marks=pytest.mark.long)])
    def test_a_bar_that_ends_early(self, als, ratings, capsys, blocks):
        """Sweeps that settle before maxIter are all that there were."""
        als = als.copy({als.showProgress: True, als.numBlocks: blocks})
        sweeps = als.fit(ratings, {als.maxIter: 9, als.tol: 0.05}).summary.totalIterations
        assert sweeps < 9
        done = 1 + sweeps if blocks == 1 else 2 * (3 + 2 * sweeps)
        assert f"{done}/{done}" in capsys.readouterr().err

    def test_a_folder_that_cannot_be_written_to(self, als, ratings, tmp_path):
        (tmp_path / "file").write_text("")
        model = als.copy({als.progressPath: str(tmp_path / "file")}).fit(ratings)
        assert model.summary.totalIterations == 1

    @pytest.mark.long
    def test_phases_are_tagged(self, als, ratings, spark, monkeypatch):
        seen = []
        real = type(spark).addTag

        def note(self, tag):
            seen.append(tag)
            real(self, tag)

        monkeypatch.setattr(type(spark), "addTag", note)
        # of two blocks each has a core, so that one stage is all learning
        of_steps = {2: ["learn"], 3: ["filter", "sweep 1", "sweep 2"]}
        for blocks, learning in of_steps.items():
            seen.clear()
            als.copy({als.numBlocks: blocks, als.checkpointInterval: 2, als.maxIter: 2}).fit(
                ratings
            )
            phases = [tag.removeprefix("sparkml_sgdals: ") for tag in seen]
            assert list(dict.fromkeys(phases)) == ["pack", "route", *learning]
        assert not [tag for tag in spark.getTags() if "sgdals" in tag]


def test_explain(als, ratings, small):
    als = als.copy({als.predictionStdCol: "std"})
    model = als.fit(ratings)
    user, item = int(small.user[0]), int(small["item"][0])
    found = {row.part: row for row in model.explain(user, item).collect()}
    pair = ratings.where((F.col("user") == user) & (F.col("item") == item))
    scored = model.transform(pair).first()
    assert found["prediction"].value == pytest.approx(scored.prediction, abs=1e-4)
    assert found["prediction"].std == pytest.approx(scored.std, rel=1e-4)
    assert found["user bias"].ratings == (small.user == user).sum()
    assert found["mean"].value == pytest.approx(model.globalMean)
    assert found["noise"].value is None
