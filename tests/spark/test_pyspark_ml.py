"""The model among pyspark.ml's own parts: grids, pipelines, evaluators, streaming pipelines."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import ONCE, predictions
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.evaluation import RankingEvaluator, RegressionEvaluator
from pyspark.ml.tuning import (
    CrossValidator,
    CrossValidatorModel,
    ParamGridBuilder,
    TrainValidationSplit,
)
from pyspark.sql import functions as F

from sparkml_sgdals import StreamingBiasedALS

BY = ["user", "item", "time", "rating"]


@pytest.fixture(scope="module")
def als():
    return StreamingBiasedALS(rank=2, maxIter=1, timestampCol="time")


@pytest.fixture(scope="module")
def grid(als):
    return ParamGridBuilder().addGrid(als.rank, [2, 4]).addGrid(als.maxIter, [1, 3]).build()


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


def test_train_validation_split(als, grid, ratings):
    split = TrainValidationSplit(
        estimator=als, estimatorParamMaps=grid, seed=1,
        evaluator=RegressionEvaluator(labelCol="rating", metricName="mae"),
    )  # fmt: skip
    assert np.isfinite(split.fit(ratings).validationMetrics).all()


def test_fit_with_param_maps(als, grid, ratings):
    models = als.fit(ratings, grid)
    assert [m.rank for m in models] == [2, 2, 4, 4]
    assert [len(m.report.rmse) for m in models] == [1, 3, 1, 3]
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
