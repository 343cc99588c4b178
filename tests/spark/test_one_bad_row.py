"""One row must not ruin the rest: set aside and found, or harmless; the stream goes on."""

from __future__ import annotations

import json
import logging
import warnings

import numpy as np
import pandas as pd
import pytest
from helpers import ONCE, assert_same_bits, long_after
from pyspark.ml.tuning import ParamGridBuilder
from pyspark.sql.utils import is_remote

from sparkml_sgdals import StreamingBiasedALS, StreamingBiasedALSModel
from sparkml_sgdals.race.grid_search import StreamingGridSearch

FAR = r"ratingCol 'rating' is more than ten widths outside 0\.5 to 5 in 1 row"


@pytest.fixture
def als():
    return StreamingBiasedALS(timestampCol="time", rank=4, maxIter=1)


def with_row(frame, place, **odd):
    """A frame with one row more, which is like its neighbour but for some columns."""
    row = frame.iloc[place : place + 1].assign(**odd).astype(frame.dtypes)
    return pd.concat([frame.iloc[:place], row, frame.iloc[place:]], ignore_index=True)


def run(job):
    job.awaitTermination()
    return job


def set_aside(path):
    rows = pd.read_parquet(f"{path}/invalid").row
    return [json.loads(row) for row in rows]


class TestFit:
    def test_it_warns_and_learns(self, als, small, spark):
        frame = spark.createDataFrame(with_row(small, 9, rating=1e4))
        with pytest.warns(UserWarning, match=FAR + ".*A fit learns from these.*set ratingRange"):
            model = als.fit(frame)
        assert model.state.counters.ratings == len(small) + 1

    def test_rating_range(self, als, small, spark, caplog):
        ranged = als.copy({als.ratingRange: [0.5, 5]})
        frame = spark.createDataFrame(with_row(small, 9, rating=1e4))
        with pytest.raises(ValueError, match=r"outside ratingRange 0\.5 to 5 in 1 row"):
            ranged.fit(frame)
        skipping = ranged.copy({als.handleInvalid: "skip"})
        with caplog.at_level(logging.WARNING, "sparkml_sgdals"), warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            model = skipping.fit(frame)
        assert "outside ratingRange 0.5 to 5" in caplog.text
        assert_same_bits(model, als.fit(spark.createDataFrame(small)))
        assert model.getRatingRange() == (0.5, 5.0)

    def test_from_parquet(self, als, small, spark, tmp_path):
        path = str(tmp_path / "p")
        with_row(small, 9, rating=-1e4).to_parquet(path)
        skipping = als.copy({als.ratingRange: [0.5, 5], als.handleInvalid: "skip"})
        assert_same_bits(skipping.fitParquet(path), als.fit(spark.createDataFrame(small)))

    @pytest.mark.long
    def test_in_blocks_the_range_is_the_same(self, als, small, spark):
        frame = spark.createDataFrame(small)
        ranges = als.fit(frame).state.ranges
        assert ranges.rating.settled == (0.5, 5.0)
        assert als.copy({als.numBlocks: 2}).fit(frame.repartition(5)).state.ranges == ranges

    @pytest.mark.parametrize("value", [[5, 0.5], [1], [1, float("nan")], [1, float("inf")]])
    def test_what_is_no_range(self, value):
        with pytest.raises(ValueError, match="ratingRange must be two numbers"):
            StreamingBiasedALS(ratingRange=value)


class TestUpdate:
    def test_refused_or_set_aside(self, als, small, spark, tmp_path, caplog):
        model = als.fit(spark.createDataFrame(small[:3000]))
        model.write().save(str(tmp_path / "m"))
        model = StreamingBiasedALSModel.load(str(tmp_path / "m"))
        bad, good = with_row(small[3000:], 0, rating=1e20), small[3000:]
        mark = model.state.fingerprint()
        with pytest.raises(ValueError, match=FAR + ".*set ratingRange so that"):
            model.update(spark.createDataFrame(bad))
        assert (model.version, model.state.fingerprint()) == (0, mark)
        one, other = model.copy(), model.copy({model.handleInvalid: "skip"})
        with caplog.at_level(logging.WARNING, "sparkml_sgdals"):
            other.update(spark.createDataFrame(bad))
        assert "more than ten widths outside 0.5 to 5" in caplog.text
        assert_same_bits(other, one.update(spark.createDataFrame(good)))


class TestStream:
    @pytest.mark.parametrize("first", long_after(1, [1, 500]))
    def test_in_first_place(self, als, files, stream, small, tmp_path, caplog, first):
        """The very first rating, alone in its batch or not: the model is as without it."""
        rows = with_row(small[:1000], 0, rating=1e4)
        folder = files(rows[:first], 500)
        files(rows[first:], 500, first=1)
        path = str(tmp_path / "m")
        with caplog.at_level(logging.WARNING, "sparkml_sgdals"):
            job = run(als.fitStream(stream(folder), path, trigger=ONCE))
        # on Spark Connect the process that learns has a log of its own
        assert is_remote() or "ratingCol 'rating' is more than ten widths outside" in caplog.text
        metrics = job.metrics()
        assert metrics.invalid.sum() == metrics.outside.sum() == 1
        assert metrics.ratings.sum() == 1000
        assert metrics.faults.notna().sum() == 1
        assert metrics.faults.dropna().iloc[0].startswith("rating: more than ten widths outside")
        (row,) = set_aside(path)
        assert (row["rating"], row["user"]) == (1e4, rows.user[0])
        assert job.model.state.counters.ratings == 1000
        clean = files(small[: first - 1], 500, "clean") if first > 1 else None
        clean = files(small[first - 1 : 1000], 500, "clean", first=1)
        other = run(als.fitStream(stream(clean), str(tmp_path / "n"), trigger=ONCE))
        known = StreamingBiasedALSModel.load(path).state
        assert known.ranges == other.model.state.ranges == job.model.state.ranges
        assert known.fingerprint() == other.model.state.fingerprint()

    @pytest.mark.long
    def test_far_later_and_after_a_restart(self, als, files, stream, small, tmp_path):
        folder, path = files(small[:1500], 500), str(tmp_path / "m")
        run(als.fitStream(stream(folder), path, trigger=ONCE))
        files(with_row(small[1500:2000], 40, rating=-1e6), 501, first=3)
        job = run(als.fitStream(stream(folder), path, trigger=ONCE))
        assert job.metrics().outside.tolist() == [0, 0, 0, 1]
        assert [row["rating"] for row in set_aside(path)] == [-1e6]
        clean = files(small[:2000], 500, "clean")
        other = run(als.fitStream(stream(clean), str(tmp_path / "n"), trigger=ONCE))
        assert_same_bits(job.model, other.model)

    def test_rating_range_of_a_stream(self, als, files, stream, small, tmp_path):
        ranged = als.copy({als.ratingRange: [1, 5]})
        job = run(
            ranged.fitStream(stream(files(small[:500], 500)), str(tmp_path / "m"), trigger=ONCE)
        )
        half = int((small[:500].rating < 1).sum())
        assert half
        assert job.metrics().outside.sum() == half
        assert job.model.getRatingRange() == (1.0, 5.0)

    @pytest.mark.long
    def test_a_table_too_large_to_collect(self, als, files, stream, small, tmp_path, monkeypatch):
        """Learned as a fit is, and set aside all the same, before and after the range is known."""
        monkeypatch.setattr("sparkml_sgdals.ingest.collecting.COLLECT_LIMIT", 300)
        folder = files(with_row(small[:1000], 0, rating=1e4), 1001)
        files(with_row(small[1000:2000], 500, rating=1e4), 1001, first=1)
        path = str(tmp_path / "m")
        job = run(als.fitStream(stream(folder), path, trigger=ONCE))
        assert job.metrics().outside.tolist() == [1, 1]
        assert [row["rating"] for row in set_aside(path)] == [1e4, 1e4]
        clean = files(small[:2000], 1000, "clean")
        other = run(als.fitStream(stream(clean), str(tmp_path / "n"), trigger=ONCE))
        assert_same_bits(job.model, other.model)

    def test_a_user_among_the_first_rows_is_forgotten(self, als, files, stream, small, tmp_path):
        path = tmp_path / "m"
        rows = small[:30].assign(user=np.arange(30) % 3 + 777_001)
        run(als.fitStream(stream(files(rows, 10)), str(path), trigger=ONCE))
        commits = [file.read_text() for file in (path / "commits").iterdir()]
        assert any("777002" in text for text in commits)
        model = StreamingBiasedALSModel.load(str(path))
        users = model.userFactors.where("id = 777002").selectExpr("id AS user")
        model.forget(users, str(path))
        commits = [file.read_text() for file in (path / "commits").iterdir()]
        assert not any("777002" in text for text in commits)
        assert any("777001" in text for text in commits)


class TestRace:
    @pytest.mark.long
    def test_all_candidates_see_the_same(self, als, files, stream, small, tmp_path):
        grid = ParamGridBuilder().addGrid(als.rank, [2, 4]).build()
        folder = files(with_row(small[:1000], 0, rating=1e6)[:1], 1)
        files(small[:1000], 250, first=1)

        def race(folder, path):
            search = StreamingGridSearch(estimator=als, estimatorParamMaps=grid)
            return run(search.fitStream(stream(folder), path, trigger=ONCE))

        job = race(folder, str(tmp_path / "m"))
        assert job.metrics().outside.sum() == 1
        assert [row["rating"] for row in set_aside(tmp_path / "m")] == [1e6]
        files(with_row(small[1000:1250], 3, rating=1e6), 251, first=9)
        job = race(folder, str(tmp_path / "m"))
        assert job.metrics().outside.sum() == 2
        clean = race(files(small[:1250], 250, "clean"), str(tmp_path / "n"))
        assert_same_bits(job.model, clean.model)
        assert job.race().candidate.nunique() == 2
        ranged = als.copy({als.ratingRange: [1, 5]})
        maps = [{als.rank: 2}, {als.ratingRange: [0.5, 5.0]}]
        with pytest.raises(ValueError, match="ratingRange on the estimator"):
            StreamingGridSearch(estimator=ranged, estimatorParamMaps=maps).fitStream(
                stream(folder), str(tmp_path / "o")
            )
