"""Fit: same result whatever the layout, every solver, every form."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from helpers import assert_same_bits, factors, long_after, rmse

from sparkml_sgdals import DivergenceError, StreamingBiasedALS
from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.errors import StorageError
from sparkml_sgdals.fit.blocks import driver, files
from sparkml_sgdals.ingest.collecting import collect_ratings
from sparkml_sgdals.ingest.columns import RatingColumns
from sparkml_sgdals.ingest.packing import batches_by_rows
from sparkml_sgdals.learn.whole_table import fit_ratings
from sparkml_sgdals.spark_jobs import cores, gathered, note_cores, task_limit
from sparkml_sgdals.state.model_state import ModelState


def estimator(**params):
    return StreamingBiasedALS(timestampCol="time", rank=4, **params)


def in_memory(small: pd.DataFrame, als: StreamingBiasedALS, timed: bool = True) -> ModelState:
    """What the solver gives without Spark."""
    table = pa.table(
        {
            "user": small.user,
            "item": small.item,
            "rating": small.rating.astype(np.float32),
            **({"time": small.time} if timed else {}),
        }
    )
    state = ModelState.empty(als.settings(), "int", "int")
    fit_ratings(encode_ratings(table), state)
    return state


@pytest.mark.parametrize("solver", ["bayes", "sgd"])
def test_one_task_equals_the_solver_without_spark(ratings, small, solver):
    als = estimator(solver=solver)
    model = als.fit(ratings)
    assert model.state.fingerprint() == in_memory(small, als, solver == "bayes").fingerprint()
    assert model.summary.form == "one task"
    assert len(model.summary.rmse) == 10


@pytest.mark.long
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("solver", ["bayes", "sgd"])
def test_partitions_row_order_and_threads_do_not_matter(ratings, small, spark, solver, blocks):
    als = estimator(solver=solver, numBlocks=blocks, maxIter=2)
    first = als.fit(ratings)
    shuffled = spark.createDataFrame(small.sample(frac=1.0, random_state=3)).repartition(5)
    assert_same_bits(first, als.copy({als.numThreads: 3}).fit(shuffled))
    assert_same_bits(first, als.copy({als.numThreads: 1}).fit(ratings.coalesce(1)))


def test_another_seed_gives_another_start(ratings):
    one, two = estimator(seed=1).fit(ratings), estimator(seed=2).fit(ratings)
    assert not np.allclose(factors(one)["users"][1], factors(two)["users"][1])


@pytest.mark.long
@pytest.mark.parametrize("blocks", [2, 4])
def test_blocks_learn_as_well_as_one_task(ratings, small, spark, blocks):
    one = estimator(maxIter=5).fit(ratings)
    model = estimator(maxIter=5, numBlocks=blocks).fit(ratings)
    assert model.summary.form == f"{blocks} blocks"
    assert rmse(model, small, spark) == pytest.approx(rmse(one, small, spark), rel=0.01)
    assert model.state.counters.ratings == len(small)
    counts = small.groupby("user").size()
    ids, _, _, found = factors(model)["users"]
    assert dict(zip(ids, found, strict=True)) == counts.to_dict()
    assert len(model.summary.rmse) == 5
    assert model.summary.rmse[-1] == pytest.approx(one.summary.rmse[-1], rel=0.02)
    assert model.state.noise == pytest.approx(one.state.noise, rel=0.05)


@pytest.mark.long
def test_more_blocks_than_ids(spark):
    few = spark.createDataFrame([(1, 1, 3.0, 1), (2, 1, 4.0, 2), (1, 2, 5.0, 3)], list("uirt"))
    als = StreamingBiasedALS(userCol="u", itemCol="i", ratingCol="r", timestampCol="t", numBlocks=6)
    model = als.fit(few)
    assert model.state.users.size == 2
    assert model.state.items.size == 2
    assert model.state.counters.ratings == 3


class TestPartitions:
    """A Python task costs as much as thousands of ratings: empty and small ones are gathered."""

    def test_no_more_tasks_than_cores_can_use(self, spark):
        many = spark.range(0, 1000, 1, 300).selectExpr("id % 7 AS user")
        tasks = gathered(many).selectExpr("spark_partition_id() AS task", "user")
        rows = tasks.groupBy("task").count().collect()
        assert len(rows) == 8
        assert sum(row["count"] for row in rows) == 1000
        few = gathered(spark.range(0, 1000, 1, 3)).selectExpr("spark_partition_id() AS task")
        assert few.distinct().count() == 3

    @pytest.mark.parametrize(
        ("conf", "expected"),
        [
            ({"master": "spark://a:7077"}, 0),
            ({"master": "spark://a:7077", "default.parallelism": "24"}, 24),
            ({"master": "yarn", "executor.instances": "5", "executor.cores": "4"}, 20),
            ({"master": "yarn", "executor.instances": "5"}, 5),
            ({"master": "local[3]", "default.parallelism": "24"}, 3),
            ({"master": "k8s://a", "default.parallelism": "many"}, 0),
        ],
    )
    def test_cores_of_a_cluster(self, conf, expected):
        told = {f"spark.{name}": value for name, value in conf.items()}
        assert cores(SimpleNamespace(conf=SimpleNamespace(get=told.get))) == expected

    def test_cores_that_were_counted(self):
        """Where the conf does not tell; more may come, and with dynamic allocation they do."""
        told = {"spark.master": "spark://a:7077", "spark.app.id": "one that was counted"}
        session = SimpleNamespace(conf=SimpleNamespace(get=lambda n, d=None: told.get(n, d)))
        assert (cores(session), task_limit(session)) == (0, 1000)
        note_cores(session, 2)
        assert (cores(session), task_limit(session)) == (2, 32)
        note_cores(session, 24)
        assert (cores(session), task_limit(session)) == (24, 96)
        told |= {"spark.app.id": "another", "spark.dynamicAllocation.enabled": "true"}
        note_cores(session, 2)
        assert (cores(session), task_limit(session)) == (0, 1000)

    def test_a_small_batch_of_many_partitions_is_collected_by_few_tasks(self, spark):
        columns = RatingColumns("user", "item", "rating")
        many = spark.range(0, 900, 1, 300).selectExpr("id AS user", "id AS item", "1.0 AS rating")
        first = collect_ratings(many, columns, ("int", "int"), False)
        # as many as there may be, which stay gathered
        assert (first.rows, first.partitions) == (900, 9)
        again = collect_ratings(many, columns, ("int", "int"), False, 900, first.partitions)
        assert (again.rows, again.partitions) == (900, 9)
        few = collect_ratings(many.coalesce(3), columns, ("int", "int"), False, 900, 3)
        assert (few.rows, few.partitions) == (900, 3)

    def test_same_bits_whatever_the_partitions(self, spark, small):
        frame = spark.createDataFrame(small)
        models = [estimator(maxIter=1).fit(frame.repartition(n)) for n in (1, 60)]
        assert_same_bits(*models)


class TestStaticBlocks:
    """What never changes lies in files, or travels with the rows where no folder is shared."""

    @staticmethod
    def in_rows(monkeypatch):
        monkeypatch.setattr(
            "sparkml_sgdals.fit.blocks.driver.block_folder",
            lambda spark: contextlib.nullcontext(None),
        )

    @staticmethod
    def scratch(monkeypatch, tmp_path):
        """Folders of files of all fits, as they were when they were removed."""
        found = []
        remove = files._remove

        def note(folder):
            if Path(folder).exists():
                found.append(sorted(path.name for path in Path(folder).iterdir()))
            remove(folder)

        monkeypatch.setenv("SPARK_LOCAL_DIRS", str(tmp_path))
        monkeypatch.setattr(files, "_remove", note)
        return found

    @pytest.mark.long
    @pytest.mark.parametrize("solver", ["bayes", "sgd"])
    def test_same_bits_from_files_and_rows(self, spark, small, monkeypatch, tmp_path, solver):
        weighted = small.assign(
            weight=np.where(small.index % 3 == 0, 0.5, 2.0), item="i" + small.item.astype(str)
        )
        als = estimator(solver=solver, numBlocks=3, maxIter=2, weightCol="weight")
        removed = self.scratch(monkeypatch, tmp_path)
        frame = spark.createDataFrame(weighted)
        files = als.fit(frame)
        (names,) = removed
        # pieces have gone once all of them were in cells
        kinds = {"cell", "layout", "ids", "rows", "state"}
        assert {name.split("-")[0] for name in names} == kinds
        # states of the last steps alone, of which two are in use
        steps = {name.split("-")[1] for name in names if name.startswith("state-")}
        assert len(steps) <= 4
        assert not list(tmp_path.glob("sparkml*"))
        self.in_rows(monkeypatch)
        rows = als.fit(frame)
        assert_same_bits(files, rows)
        assert files.summary.rmse == rows.summary.rmse
        assert len(removed) == 1

    @staticmethod
    def stage_a_step(monkeypatch):
        monkeypatch.setattr(driver, "run_side_by_side", lambda spark, blocks: False)

    @pytest.mark.long
    def test_same_bits_side_by_side_and_stage_by_stage(self, ratings, monkeypatch, tmp_path):
        """Two blocks on two cores, sweeps that settle."""
        als = estimator(numBlocks=2, maxIter=8, tol=0.02)
        removed = self.scratch(monkeypatch, tmp_path)
        together = als.fit(ratings)
        (names,) = removed
        steps = {name.split("-")[1] for name in names if name.startswith("state-")}
        assert len(steps) <= 4
        self.stage_a_step(monkeypatch)
        in_turns = als.fit(ratings)
        assert_same_bits(together, in_turns)
        assert together.summary.rmse == in_turns.summary.rmse
        assert 3 <= together.summary.totalIterations < 8
        # what the tasks of one stage have told each other lies there too
        assert any("-sent-" in name for name in names)
        assert not any("-sent-" in name for name in removed[1])

    @pytest.mark.long
    def test_sgd_side_by_side(self, spark, small, monkeypatch):
        als = estimator(solver="sgd", numBlocks=2, maxIter=2, weightCol="weight")
        frame = spark.createDataFrame(small.assign(weight=np.where(small.index % 3, 0.5, 2.0)))
        together = als.fit(frame)
        self.stage_a_step(monkeypatch)
        assert_same_bits(together, als.fit(frame))

    @pytest.mark.long
    def test_same_bits_onto_a_model(self, spark, small, monkeypatch):
        monkeypatch.setattr("sparkml_sgdals.ingest.collecting.COLLECT_LIMIT", 1000)
        monkeypatch.setattr("sparkml_sgdals.ingest.collecting._FIRST_LOOK", 300)
        first, second = (spark.createDataFrame(small.iloc[n::2]) for n in (0, 1))
        model = estimator(numBlocks=2, maxIter=1).fit(first)
        files = model.copy().update(second)
        self.in_rows(monkeypatch)
        assert_same_bits(files, model.copy().update(second))

    @pytest.mark.long
    @pytest.mark.parametrize("blocks", [2, 3])
    def test_blocks_that_meet_in_one_task(self, ratings, monkeypatch, blocks):
        """Some plan might put them together."""
        als = estimator(numBlocks=blocks, maxIter=1)
        apart = als.fit(ratings)
        for module in ("driver", "messages"):
            monkeypatch.setattr(
                f"sparkml_sgdals.fit.blocks.{module}.placed",
                lambda frame, job: frame.repartition(1),
            )
        assert_same_bits(apart, als.fit(ratings))

    def test_a_lost_file_is_named(self, ratings, monkeypatch, tmp_path):
        removed = self.scratch(monkeypatch, tmp_path)
        measured = driver.measured

        def lose(cells, job):
            given = measured(cells, job)
            (lost,) = tmp_path.glob("sparkml*/cell-users-00001-00000")
            lost.unlink()
            return given

        monkeypatch.setattr(driver, "measured", lose)
        with pytest.raises(StorageError, match=r"cell-users-00001-00000 .* is missing"):
            estimator(numBlocks=2, maxIter=1).fit(ratings)
        assert len(removed) == 1
        assert not list(tmp_path.glob("sparkml*"))


@pytest.mark.long
def test_a_table_above_the_limit_of_a_task_is_learned_in_blocks(ratings):
    model = estimator(maxRatingsPerTask=2500, maxIter=1).fit(ratings)
    assert model.summary.form == "4 blocks"


@pytest.mark.long
def test_checkpoints_do_not_change_the_result(ratings):
    # one block more than cores: a stage a step
    als = estimator(numBlocks=3, maxIter=2)
    often = als.copy({als.checkpointInterval: 2}).fit(ratings)
    never = als.copy({als.checkpointInterval: -1}).fit(ratings)
    assert_same_bits(often, never)


@pytest.mark.long
@pytest.mark.parametrize("blocks", [2, 1])
def test_a_rating_seen_twice_counts_as_two(ratings, blocks):
    doubled = estimator(numBlocks=blocks).fit(ratings.union(ratings))
    once = estimator(numBlocks=blocks).fit(ratings)
    assert doubled.state.counters.ratings == 2 * once.state.counters.ratings
    np.testing.assert_array_equal(factors(doubled)["users"][3], 2 * factors(once)["users"][3])
    # more observations, less variance
    assert factors(doubled)["users"][2].mean() < factors(once)["users"][2].mean()


@pytest.mark.long
@pytest.mark.parametrize("solver", ["bayes", "sgd", "minibatch"])
def test_weights(spark, small, solver):
    weighted = small.assign(weight=np.where(small.index % 3 == 0, 0.0, 2.0))
    als = StreamingBiasedALS(
        timestampCol="time", weightCol="weight", rank=3, solver=solver, maxIter=2, blockSize=2000
    )
    model = als.fit(spark.createDataFrame(weighted))
    kept = weighted[weighted.weight > 0]
    assert model.state.counters.ratings == len(kept)
    same = als.fit(spark.createDataFrame(kept))
    assert_same_bits(model, same)
    unweighted = als.copy({als.weightCol: ""}).fit(spark.createDataFrame(kept))
    assert not np.allclose(factors(model)["users"][1], factors(unweighted)["users"][1])


@pytest.mark.long
def test_ids_as_strings(spark, small):
    named = small.assign(user="u" + small.user.astype(str), item="i" + small.item.astype(str))
    frame = spark.createDataFrame(named)
    model = estimator().fit(frame)
    expected = ModelState.empty(model.state.settings, "str", "str")
    rows = named.assign(rating=named.rating.astype(np.float32))
    fit_ratings(encode_ratings(pa.Table.from_pandas(rows, preserve_index=False)), expected)
    assert model.state.fingerprint() == expected.fingerprint()
    assert model.userFactors.schema["id"].dataType.simpleString() == "string"
    blocks = estimator(numBlocks=2).fit(frame)
    assert rmse(blocks, named, spark) == pytest.approx(rmse(model, named, spark), rel=0.03)


@pytest.mark.parametrize("id_type", long_after(1, ["int", "tinyint", "smallint", "bigint"]))
def test_ids_keep_their_type(spark, id_type):
    frame = spark.createDataFrame(
        [(1, 2, 3.0), (2, 2, 4.0)], "user long, item string, rating double"
    )
    frame = frame.withColumn("user", frame.user.cast(id_type))
    model = StreamingBiasedALS(rank=2).fit(frame)
    assert model.userFactors.schema["id"].dataType.simpleString() == id_type
    assert model.itemFactors.schema["id"].dataType.simpleString() == "string"
    assert model.transform(frame).count() == 2


def test_factors_give_the_predictions(ratings, small):
    model = estimator(clipPredictions=False).fit(ratings)
    users = {r.id: (r.bias, np.array(r.features)) for r in model.userFactors.collect()}
    items = {r.id: (r.bias, np.array(r.features)) for r in model.itemFactors.collect()}
    assert model.rank == 4
    for row in model.transform(ratings.limit(50)).collect():
        (bu, fu), (bi, fi) = users[row.user], items[row.item]
        assert row.prediction == pytest.approx(model.globalMean + bu + bi + fu @ fi, abs=1e-4)


@pytest.mark.parametrize("value", long_after(1, [4.0, -3.5]))
def test_one_rating_only(spark, value):
    frame = spark.createDataFrame([(1, 2, value)], "user long, item long, rating double")
    model = StreamingBiasedALS().fit(frame)
    assert model.transform(frame).first().prediction == pytest.approx(value)


def test_equal_ratings_only(spark):
    rows = [(u, i, 3.0) for u in range(5) for i in range(6)]
    frame = spark.createDataFrame(rows, "user long, item long, rating double")
    model = StreamingBiasedALS().fit(frame)
    assert {round(r.prediction, 4) for r in model.transform(frame).collect()} == {3.0}


def test_filter_only(ratings):
    model = estimator(maxIter=0).fit(ratings)
    assert model.summary.rmse == []
    assert model.state.noise == 0.5


def test_tol_stops_early(ratings):
    model = estimator(maxIter=50, tol=0.01).fit(ratings)
    assert 2 <= len(model.summary.rmse) < 50


class TestMinibatch:
    def check(self, model, reference):
        for side, expected in (("users", reference.users), ("items", reference.items)):
            ids, mean, _, counts = factors(model)[side]
            table = expected.to_arrow()
            np.testing.assert_array_equal(ids, table.column("id").to_numpy())
            np.testing.assert_array_equal(counts, table.column("count").to_numpy())
            flat = table.column("mean").combine_chunks().flatten().to_numpy()
            np.testing.assert_allclose(mean, flat.reshape(mean.shape), rtol=0, atol=1e-5)

    @pytest.mark.long
    def test_agrees_with_numpy(self, ratings, small):
        als = estimator(solver="minibatch", blockSize=700, maxIter=2, stepSize=0.005)
        self.check(als.fit(ratings), in_memory(small, als, timed=False))

    def test_nonnegative_factors_agree_with_numpy(self, spark, small):
        few = small.iloc[:300]
        als = estimator(
            solver="minibatch", blockSize=300, maxIter=1, stepSize=1.0, nonnegative=True
        )
        model = als.fit(spark.createDataFrame(few))
        self.check(model, in_memory(few, als, timed=False))
        lowest = min(mean[:, 1:].min() for _, mean, *_ in factors(model).values())
        assert lowest == np.float32(als.settings().lowest)

    @pytest.mark.long
    def test_partitions_do_not_matter(self, ratings, small, spark):
        als = estimator(solver="minibatch", blockSize=1500, maxIter=1, stepSize=0.005)
        shuffled = spark.createDataFrame(small.sample(frac=1.0, random_state=3)).repartition(4)
        assert_same_bits(als.fit(ratings), als.fit(shuffled))

    @pytest.mark.long
    def test_mixed_kinds_of_ids(self, spark, small):
        named = small.assign(item="i" + small.item.astype(str))
        als = estimator(solver="minibatch", blockSize=2000, maxIter=1)
        model = als.fit(spark.createDataFrame(named))
        assert np.isfinite(rmse(model, named, spark))
        assert model.state.items.index.kind == "str"

    def test_divergence_is_named(self, ratings):
        als = estimator(solver="minibatch", stepSize=0.5, maxIter=8, blockSize=4000)
        with pytest.raises(DivergenceError, match=r"minibatch diverged.*stepSize.*blockSize"):
            als.fit(ratings)


def test_sgd_divergence_is_named(ratings):
    with pytest.raises(DivergenceError, match=r"sgd .*stepSize \(now 30\.0\)"):
        estimator(solver="sgd", stepSize=30.0).fit(ratings)


def test_unused_params_are_named(ratings):
    with pytest.warns(UserWarning, match="'bayes' does not use regParam, stepSize"):
        estimator(regParam=0.2, stepSize=0.1, maxIter=0).fit(ratings)


@pytest.mark.long
def test_sgd_divergence_in_blocks_is_named(ratings):
    """Regression: it left NaN behind."""
    with pytest.raises(DivergenceError, match="stepSize"):
        estimator(solver="sgd", stepSize=30.0, maxIter=1, numBlocks=2).fit(ratings)


@pytest.mark.long
@pytest.mark.parametrize("interval", [3, -1, 10])
def test_tol_ends_the_sweeps_of_blocks(ratings, interval):
    """With the bits of a fit of so many sweeps: settled blocks hand on what they have, until the
    driver sees it at a checkpoint."""
    als = estimator(numBlocks=2, checkpointInterval=interval)
    stopped, early = als.fit(ratings, [{als.maxIter: 8, als.tol: 0.05}, {als.maxIter: 2}])
    sweeps = stopped.summary.totalIterations
    assert 3 <= sweeps < 6
    assert len(stopped.summary.rmse) == sweeps
    assert_same_bits(stopped, als.copy({als.maxIter: sweeps, als.tol: 0.0}).fit(ratings))
    assert early.summary.totalIterations == 2
    twice = als.fit(ratings, [{als.tol: 0.05, als.maxIter: n} for n in (2, 7, 8)])
    assert [model.summary.totalIterations for model in twice] == [2, sweeps, sweeps]
    assert_same_bits(twice[0], early)


@pytest.mark.long
def test_tol_of_sgd_in_blocks_is_named(ratings):
    with pytest.warns(UserWarning, match="tol is not used in a fit in blocks"):
        estimator(solver="sgd", tol=0.1, maxIter=0, numBlocks=2).fit(ratings)


class TestArrowBatches:
    """Rows are handed to Python without Spark adding up the bytes of a batch for every row."""

    LIMIT = "spark.sql.execution.arrow.maxBytesPerBatch"

    def test_the_limit_in_bytes_comes_back(self, spark, ratings):
        default = spark.conf.get(self.LIMIT)
        with batches_by_rows(spark):
            assert spark.conf.get(self.LIMIT) == str(2**31 - 1)
        assert spark.conf.get(self.LIMIT) == default
        estimator(maxIter=0).fit(ratings)
        assert spark.conf.get(self.LIMIT) == default

    def test_a_limit_of_the_users_own_stays(self, spark):
        spark.conf.set(self.LIMIT, "1000000")
        try:
            with batches_by_rows(spark):
                assert spark.conf.get(self.LIMIT) == "1000000"
        finally:
            spark.conf.unset(self.LIMIT)


@pytest.mark.parametrize("solver", long_after(1, ["bayes", "minibatch"]))
def test_nothing_stays_cached(classic_only, spark, ratings, solver):
    held = spark.sparkContext._jsc.getPersistentRDDs
    before = set(held())
    estimator(solver=solver, maxIter=1, blockSize=4000, numBlocks=0).fit(ratings)
    left = [held()[key] for key in held() if key not in before]
    # checkpointed factors go when Python lets go of them; cached tables must not stay
    assert not [rdd for rdd in left if "InMemory" in rdd.toString() or "Scan" in rdd.toString()]
