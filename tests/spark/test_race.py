"""StreamingGridSearch on a stream: the leader serves, and a restart changes nothing."""

from __future__ import annotations

import gc
import json
import shutil
import time
from pathlib import Path

import pytest
from helpers import IN_RUNS_NIGHTLY, ONCE, assert_same_bits
from pyspark.ml.tuning import ParamGridBuilder

from sparkml_sgdals import StreamingBiasedALS, StreamingBiasedALSModel, StreamingGridSearch
from sparkml_sgdals.race.grid_search import RACE
from sparkml_sgdals.race.standings import Race
from sparkml_sgdals.stream.start import METRICS


@pytest.fixture
def als():
    return StreamingBiasedALS(timestampCol="time", rank=4)


def search(als, **params):
    grid = (
        ParamGridBuilder()
        .addGrid(als.rank, [2, 4])
        .addGrid(als.biasPriorVariance, [0.2, 1e-5])
        .build()
    )
    params = {"keep": 1, "minRatings": 500, "errorProbability": 0.2} | params
    return StreamingGridSearch(estimator=als, estimatorParamMaps=grid, **params)


def run(job):
    job.awaitTermination()
    return job


@pytest.mark.usefixtures("first_version")
class TestFitStream:
    @IN_RUNS_NIGHTLY
    @pytest.mark.long
    def test_leader_table_and_metrics(self, als, files, stream, small, spark, tmp_path):
        path = str(tmp_path / "race")
        job = run(search(als).fitStream(stream(files(small, 100)), path, trigger=ONCE))
        race = job.race()
        assert tuple(race.columns) == RACE
        assert set(race[race.batch == 0].candidate) == {0, 1, 2, 3}
        gone = race[race.dropped]
        # hardly any bias at all is the worst
        worst = gone[gone.candidate.isin([1, 3])]
        assert len(worst) == 2
        assert (worst.reason == "worse").all()
        assert (worst.lower > 0).all()
        assert (gone.dropped_at == gone.batch).all()
        assert (race.groupby("batch").leads.sum() == 1).all()
        last = race[race.batch == race.batch.max()]
        leader = last[last.leads].iloc[0]
        assert leader.candidate in (0, 2)
        # what serves is the leader, as it would have learned alone
        params = json.loads(leader.params)
        assert job.model.rank == params["rank"] == job.model.state.settings.rank
        alone = als.copy({als.getParam(name): value for name, value in params.items()})
        other = run(
            alone.fitStream(stream(files(small, 100)), str(tmp_path / "alone"), trigger=ONCE)
        )
        assert_same_bits(job.model, other.model)
        assert_same_bits(StreamingBiasedALSModel.load(path), job.model)
        metrics = job.metrics()
        assert tuple(metrics.columns) == METRICS
        assert metrics.batch.tolist() == list(range(40))
        assert metrics.rmse.iloc[-1] == other.metrics().rmse.iloc[-1]
        pairs = spark.createDataFrame(small.iloc[:50])
        assert job.model.transform(pairs).count() == 50

    @pytest.mark.long
    def test_stopped_and_started_again(self, als, files, stream, small, tmp_path):
        whole = run(
            search(als).fitStream(stream(files(small, 250)), str(tmp_path / "w"), trigger=ONCE)
        )
        names = sorted(Path(files(small, 250)).iterdir())
        some = tmp_path / "some"
        some.mkdir()
        path = str(tmp_path / "r")
        for start in range(0, len(names), 6):
            for file in names[start : start + 6]:
                shutil.copy2(file, some)
            job = run(search(als).fitStream(stream(str(some)), path, trigger=ONCE))
        assert_same_bits(job.model, whole.model)
        assert job.race().equals(whole.race())

    @IN_RUNS_NIGHTLY
    def test_refusals(self, als, files, stream, small, ratings, tmp_path):
        path, folder = str(tmp_path / "race"), files(small, 2000)
        run(search(als).fitStream(stream(folder), path, trigger=ONCE))
        with pytest.raises(ValueError, match="holds a race"):
            search(als, keep=2).fitStream(stream(folder), path, trigger=ONCE)
        with pytest.raises(ValueError, match="holds a race"):
            StreamingBiasedALSModel.load(path).updateStream(stream(folder), path)
        with pytest.raises(ValueError, match="holds a race"):
            StreamingBiasedALSModel.load(path).forget(ratings.select("user"), path)
        with pytest.raises(ValueError, match="is a table"):
            search(als).fitStream(ratings, path)
        plain = str(tmp_path / "plain")
        run(als.fitStream(stream(folder), plain, trigger=ONCE))
        with pytest.raises(ValueError, match="holds one model"):
            search(als).fitStream(stream(folder), plain)


@pytest.mark.long
def test_a_race_that_ends_by_itself_leaves_memory(
    classic_only, als, files, stream, small, tmp_path
):
    """Nobody waits for its job, or stops it."""

    def races():
        gc.collect()
        # isinstance would follow a proxy of another library, whose object may be gone
        return [held for held in gc.get_objects() if type(held) is Race]

    path, earlier, most = tmp_path / "race", races(), []
    once = search(als).fitStream(
        stream(files(small, 1000)), str(path), trigger=ONCE,
        onBatch=lambda metrics: most.append(len(races())),
    )  # fmt: skip
    until = time.monotonic() + 120
    while (path / "lease.json").exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert not (path / "lease.json").exists()
    assert once.query.exception() is None
    assert most == [len(earlier) + 1] * 4
    assert len(races()) == len(earlier)


class TestParams:
    def test_candidates_that_learn_the_same(self, als, files, stream, small, tmp_path):
        maps = [{als.maxIter: 1}, {als.maxIter: 2}]
        race = StreamingGridSearch(estimator=als, estimatorParamMaps=maps)
        with pytest.raises(ValueError, match="Candidates 0 and 1"):
            race.fitStream(stream(files(small, 2000)), str(tmp_path / "race"))

    def test_candidates_that_read_other_columns(self, als, files, stream, small, tmp_path):
        maps = [{als.userCol: "user"}, {als.userCol: "item"}]
        race = StreamingGridSearch(estimator=als, estimatorParamMaps=maps)
        with pytest.raises(ValueError, match="different columns"):
            race.fitStream(stream(files(small, 2000)), str(tmp_path / "race"))

    @pytest.mark.parametrize(
        ("params", "grid", "rules", "message"),
        [
            ({"rankingSize": 0}, "rank", {}, "rankingSize is 0"),
            ({}, "rankingSize", {}, "rank differently"),
            ({}, "solver", {"challengers": 1}, "challengers cannot start"),
            ({}, "implicitPrefs", {}, "Some candidates learn events"),
        ],
    )
    def test_events_without_a_loss_in_common(
        self, files, stream, small, tmp_path, params, grid, rules, message
    ):
        values = {
            "rank": (2, 4), "rankingSize": (5, 10), "solver": ("bayes", "isgd"),
            "implicitPrefs": (True, False),
        }[grid]  # fmt: skip
        als = StreamingBiasedALS(implicitPrefs=True, timestampCol="time", **params)
        maps = [{als.getParam(grid): value} for value in values]
        race = StreamingGridSearch(estimator=als, estimatorParamMaps=maps, **rules)
        with pytest.raises(ValueError, match=message):
            race.fitStream(stream(files(small, 2000)), str(tmp_path / "race"))


class TestEvents:
    def search(self):
        als = StreamingBiasedALS(
            implicitPrefs=True, timestampCol="time", ratingCol="", rank=4, rankingSize=20
        )
        # the second learns next to nothing
        maps = [
            {als.solver: "bayes", als.numNegatives: 3},
            {als.solver: "isgd", als.stepSize: 1e-6},
        ]
        return StreamingGridSearch(estimator=als, estimatorParamMaps=maps, keep=1)

    def test_the_best_ranking_leads_and_a_restart_changes_nothing(
        self, files, stream, small, tmp_path
    ):
        folder = files(small.sort_values("time", kind="stable"), 800)
        whole = run(self.search().fitStream(stream(folder), str(tmp_path / "w"), trigger=ONCE))
        race, metrics = whole.race(), whole.metrics()
        assert race[race.batch == 4].leads.tolist() == [True, False]
        assert race.rmse.isna().all()
        # the loss is that of the batches, faded
        one = race[(race.candidate == 0) & race.mrr.notna()]
        counts = metrics.set_index("batch").ranked[one.batch].to_numpy()
        assert counts.sum() == one.ratings.iloc[-1] > 500
        faded = weight = 0.0
        for mrr, count in zip(one.mrr, counts, strict=True):
            faded = faded * 0.9999**count + (1 - mrr) * count
            weight = weight * 0.9999**count + count
        assert one.loss.iloc[-1] == pytest.approx(faded / weight)
        assert metrics.mrr.iloc[-1] == one.mrr.iloc[-1]
        # broken off and begun anew
        names = sorted(Path(folder).iterdir())
        some = tmp_path / "some"
        some.mkdir()
        for part in (names[:3], names[3:]):
            for file in part:
                shutil.copy2(file, some)
            job = run(self.search().fitStream(stream(str(some)), str(tmp_path / "r"), trigger=ONCE))
        assert_same_bits(job.model, whole.model)
        assert job.race().equals(race)


@pytest.mark.usefixtures("first_version")
class TestInitialModel:
    def fitted(self, spark, small, **params):
        als = StreamingBiasedALS(implicitPrefs=True, ratingCol="", maxIter=3, **params)
        return als.fit(spark.createDataFrame(small.iloc[:600][["user", "item", "time"]]))

    def search(self, **params):
        als = StreamingBiasedALS(
            implicitPrefs=True, timestampCol="time", ratingCol="", rankingSize=20, **params
        )
        maps = [{als.rank: 2, als.numNegatives: 3}, {als.rank: 8, als.numNegatives: 3}]
        return StreamingGridSearch(estimator=als, estimatorParamMaps=maps, keep=2)

    @IN_RUNS_NIGHTLY
    @pytest.mark.long
    @pytest.mark.parametrize("times", ["", pytest.param("time", marks=pytest.mark.long)])
    def test_candidates_keep_what_the_table_says(
        self, files, stream, small, spark, tmp_path, times
    ):
        start = self.fitted(spark, small, rank=5, timestampCol=times)
        before = start.state.fingerprint()
        folder = files(small.iloc[600:1200], 200)
        path = str(tmp_path / "m")
        for more in ({}, {"first": 3}):
            if more:
                files(small.iloc[1200:1400], 200, **more)
            job = run(
                self.search().fitStream(stream(folder), path, trigger=ONCE, initialModel=start)
            )
        state = job.model.state
        assert job.metrics().ratings.sum() == 800
        assert state.settings.table_rank == 5
        assert state.settings.rank in (2, 8)
        known = start.state.users.index.ids()
        taste = state.users.taste[state.users.index.find(known)]
        assert (taste == start.state.users.taste).all()
        assert state.counters.ratings == 1400
        assert start.state.fingerprint() == before
        # resumed without it, or with another one
        for other in (None, self.fitted(spark, small, rank=6)):
            with pytest.raises(ValueError, match=f"The path {path} holds a race"):
                self.search().fitStream(stream(folder), path, trigger=ONCE, initialModel=other)

    @IN_RUNS_NIGHTLY
    def test_models_that_candidates_cannot_start_from(self, files, stream, small, spark, tmp_path):
        rows = stream(files(small, 500))
        ratings = StreamingBiasedALS(rank=2).fit(spark.createDataFrame(small))
        with pytest.raises(ValueError, match=r"initialModel learned ratings .*implicitPrefs"):
            self.search().fitStream(rows, str(tmp_path / "m"), initialModel=ratings)
        other = self.fitted(spark, small, rank=2, solver="isgd")
        with pytest.raises(ValueError, match="by solver 'isgd', and candidates of solver 'bayes'"):
            self.search().fitStream(rows, str(tmp_path / "m"), initialModel=other)
        named = small.assign(user=small.user.astype(str))
        strings = self.fitted(spark, named, rank=2)
        with pytest.raises(ValueError, match="initialModel has ids of types string, bigint"):
            self.search().fitStream(rows, str(tmp_path / "m"), initialModel=strings)
        assert not (tmp_path / "m").exists()
