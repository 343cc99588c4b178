"""A grid judged by ranking: what is held out, which candidate is found, saving and loading."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from helpers import assert_same_bits, long_after
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.tuning import ParamGridBuilder
from pyspark.sql import functions as F

from sparkml_sgdals import (
    RankingValidationSplit,
    RankingValidationSplitModel,
    StreamingBiasedALS,
)
from sparkml_sgdals.race.splitting import split_table

ROW = ["user", "item", "rating", "time"]


@pytest.fixture(scope="module")
def als():
    return StreamingBiasedALS(rank=2, maxIter=1, timestampCol="time")


@pytest.fixture(scope="module")
def grid(als):
    return ParamGridBuilder().addGrid(als.rank, [1, 3]).addGrid(als.maxIter, [0, 2]).build()


def rows(frame):
    return frame.toPandas()[ROW].sort_values(ROW, ignore_index=True)


def split(als, frame, how, ratio=0.75, seed=1):
    kinds, _ = als._ids_of(frame)
    return split_table(frame, als.ratingColumns(), kinds, how, ratio, seed)


class TestSplit:
    @pytest.mark.parametrize("how", ["random", "time", "last"])
    def test_each_row_is_on_one_side_whatever_the_partitions(self, als, ratings, small, how):
        train, held = map(rows, split(als, ratings, how))
        both = pd.concat([train, held]).sort_values(ROW, ignore_index=True)
        pd.testing.assert_frame_equal(both, small[ROW].sort_values(ROW, ignore_index=True))
        again = split(als, ratings.orderBy("rating").repartition(5), how)
        pd.testing.assert_frame_equal(rows(again[1]), held)

    def test_random_takes_a_share_of_pairs(self, als, ratings):
        train, held = map(rows, split(als, ratings, "random", 0.8))
        assert len(held) / (len(held) + len(train)) == pytest.approx(0.2, abs=0.03)
        pairs = [set(zip(part.user, part.item, strict=True)) for part in (train, held)]
        assert not pairs[0] & pairs[1]
        # users are not taken as a whole
        assert held.user.nunique() > 100
        other = rows(split(als, ratings, "random", 0.8, seed=2)[1])
        assert not other.equals(held)

    def test_a_hash_does_not_ask_for_the_type_of_ids(self, als, ratings):
        held = rows(split(als, ratings, "random")[1])
        ints = ratings.withColumn("user", F.col("user").cast("int"))
        pd.testing.assert_frame_equal(rows(split(als, ints, "random")[1]), held, check_dtype=False)

    @pytest.mark.parametrize("ratio", long_after(1, [0.3, 0.001, 0.75, 0.9]))
    @pytest.mark.parametrize("scale", [1, 10**7])
    def test_what_is_held_out_came_last(self, als, spark, small, ratio, scale):
        frame = small.assign(time=(small.time - 1_001_000) * scale)
        train, held = map(rows, split(als, spark.createDataFrame(frame), "time", ratio))
        cut = np.sort(frame.time)[round(ratio * len(frame)) - 1]
        assert (train.time.max(), len(train)) == (cut, (frame.time <= cut).sum())
        assert held.time.min() > cut

    def test_moments_and_rows_without_one(self, als, spark, small):
        frame = small.iloc[:400].assign(
            time=pd.to_datetime(small.time.iloc[:400], unit="s").where(small.index[:400] > 9)
        )
        train, held = split(als, spark.createDataFrame(frame), "time", 0.5)
        assert train.where("time is null").count() == 10
        assert held.count() == pytest.approx(195, abs=2)

    def test_last_holds_out_one_row_a_user(self, als, spark, small):
        once = small.drop_duplicates(["user", "time"])
        alone = pd.DataFrame({"user": [-1], "item": [5], "rating": [3.0], "time": [2_000_000]})
        table = spark.createDataFrame(pd.concat([once, alone]))
        held = rows(split(als, table, "last")[1])
        wanted = once.sort_values("time").groupby("user").tail(1)
        pd.testing.assert_frame_equal(held, wanted[ROW].sort_values(ROW, ignore_index=True))

    def test_times_are_asked_for(self, als, ratings):
        with pytest.raises(ValueError, match=r"'last' needs to know when.*set timestampCol"):
            split(als.copy({als.timestampCol: ""}), ratings, "last")


@pytest.fixture(scope="module")
def found(als, grid, ratings):
    search = RankingValidationSplit(
        estimator=als, estimatorParamMaps=grid[::3], k=5, metricName="recall", split="time", seed=3,
        collectSubModels=True, threshold=3.0,
    )  # fmt: skip
    return search.fit(ratings)


@pytest.mark.long
def test_the_best_one_is_found(als, grid, ratings, found):
    train, held = split(als, ratings, "time")
    for n, params in enumerate(grid[::3]):
        model = als.fit(train, params)
        judged = model.evaluateRanking(held, 5, excludeSeen=train, threshold=3.0)
        assert found.evaluations[n] == judged
        assert found.validationMetrics[n] == judged.recall
        assert_same_bits(found.subModels[n], model)
    assert len(set(found.validationMetrics)) > 1
    best = grid[::3][int(np.argmax(found.validationMetrics))]
    assert_same_bits(found.bestModel, als.fit(ratings, best))
    assert (found.getK(), found.getMetricName(), found.getSplit()) == (5, "recall", "time")


@pytest.mark.long
def test_candidates_side_by_side(als, grid, ratings, found):
    search = RankingValidationSplit(
        estimator=als, estimatorParamMaps=grid[::3], k=5, metricName="recall", split="time",
        parallelism=2, threshold=3.0,
    )  # fmt: skip
    again = search.fit(ratings)
    assert again.validationMetrics == found.validationMetrics
    assert again.subModels is None


@pytest.mark.long
def test_with_and_without_times(ratings):
    """A grid may ask whether times help; here of events, whatever their rating."""
    als = StreamingBiasedALS(rank=2, implicitPrefs=True, timestampCol="time")
    search = RankingValidationSplit(
        estimator=als, estimatorParamMaps=[{als.timestampCol: ""}, {als.timestampCol: "time"}],
        split="last",
    )  # fmt: skip
    metrics = search.fit(ratings).validationMetrics
    assert len(set(metrics)) == 2
    assert all(0 < metric < 1 for metric in metrics)


@pytest.mark.long
def test_what_was_found_is_saved(found, ratings, tmp_path):
    path = str(tmp_path / "found")
    found.save(path)
    found.write().overwrite().save(path)
    loaded = RankingValidationSplitModel.load(path)
    assert (loaded.uid, loaded.validationMetrics) == (found.uid, found.validationMetrics)
    assert loaded.evaluations == found.evaluations
    assert_same_bits(loaded.bestModel, found.bestModel)
    assert len(loaded.subModels) == len(found.subModels)
    assert_same_bits(loaded.subModels[1], found.subModels[1])
    assert loaded.getEstimatorParamMaps() == found.getEstimatorParamMaps()
    assert (loaded.getSplit(), loaded.getThreshold()) == ("time", 3.0)
    assert loaded.transform(ratings).count() == ratings.count()


@pytest.mark.long
def test_a_search_is_a_stage(als, grid, ratings, tmp_path):
    search = RankingValidationSplit(estimator=als, estimatorParamMaps=grid[::3], k=3, seed=5)
    Pipeline(stages=[search]).save(str(tmp_path / "search"))
    (loaded,) = Pipeline.load(str(tmp_path / "search")).getStages()
    assert loaded.getEstimatorParamMaps() == search.getEstimatorParamMaps()
    assert loaded.getThreshold() is None
    assert (loaded.getK(), loaded.getSeed(), loaded.getMetricName()) == (3, 5, "ndcg")
    model = Pipeline(stages=[loaded]).fit(ratings)
    model.save(str(tmp_path / "model"))
    again = PipelineModel.load(str(tmp_path / "model")).stages[0]
    assert again.validationMetrics == model.stages[0].validationMetrics
    assert again.subModels is None


def test_copies_are_independent(als, grid, found):
    search = RankingValidationSplit(estimator=als, estimatorParamMaps=grid)
    twin = search.copy({search.k: 7, als.maxIter: 4})
    assert (twin.getK(), twin.getEstimator().getMaxIter()) == (7, 4)
    assert (search.getK(), search.getEstimator().getMaxIter()) == (10, 1)
    model = found.copy()
    model.validationMetrics.clear()
    assert found.validationMetrics
    assert found.bestModel is not model.bestModel


def test_setters_and_getters():
    search = RankingValidationSplit()
    for param in search.params:
        if search.isDefined(param):
            value = search.getOrDefault(param)
            name = param.name[0].upper() + param.name[1:]
            assert getattr(search, f"set{name}")(value) is search
            assert getattr(search, f"get{name}")() == value


def test_what_is_refused(als, grid, ratings, files, stream, small):
    search = RankingValidationSplit(estimator=als, estimatorParamMaps=grid)
    for name, value, message in (
        ("metricName", "rmse", "metricName must be one of ndcg, recall"),
        ("k", 0, "k must be at least 1"),
        ("split", "week", "split must be one of random, time, last"),
        ("trainRatio", 1.0, "trainRatio must be above 0 and below 1, got 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            search.copy().setParams(**{name: value})
    with pytest.raises(ValueError, match="estimator is not set"):
        RankingValidationSplit(estimatorParamMaps=grid).fit(ratings)
    with pytest.raises(ValueError, match="estimatorParamMaps is empty"):
        RankingValidationSplit(estimator=als).fit(ratings)
    with pytest.raises(TypeError, match="estimator must be a StreamingBiasedALS, got a Pipeline"):
        RankingValidationSplit(estimator=Pipeline(), estimatorParamMaps=grid).fit(ratings)
    with pytest.raises(ValueError, match="sets itemCol, and candidates are judged on the same"):
        search.copy().setEstimatorParamMaps([{als.itemCol: "user"}]).fit(ratings)
    with pytest.raises(ValueError, match="race candidates by StreamingGridSearch"):
        search.fit(stream(files(small.iloc[:20], 10)))
    with pytest.raises(ValueError, match=r"Nothing was held out to judge by.*threshold 9"):
        search.copy({search.threshold: 9.0}).setEstimatorParamMaps(grid[:1]).fit(ratings)


def test_a_map_of_another_stage_is_not_saved(als, tmp_path):
    other = StreamingBiasedALS()
    search = RankingValidationSplit(estimator=als, estimatorParamMaps=[{other.rank: 3}])
    with pytest.raises(ValueError, match="is no Param of the estimator"):
        search.save(str(tmp_path / "search"))
