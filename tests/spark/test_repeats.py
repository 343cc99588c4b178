"""Events delivered again: learned once, whenever the repeat comes and whatever dies between."""

from __future__ import annotations

import json
import logging

import numpy as np
import pandas as pd
import pytest
from helpers import ONCE, assert_same_bits, long_after
from pyspark.sql import functions as F
from pyspark.sql.utils import is_remote

from sparkml_sgdals import StreamingBiasedALS
from sparkml_sgdals.errors import StorageError

SCHEMA = "user long, item long, rating double, time timestamp, event string"


@pytest.fixture
def als():
    return StreamingBiasedALS(timestampCol="time", rank=4)


@pytest.fixture
def events(small):
    """The first 1,000 ratings as events a second apart."""
    frame = small.iloc[:1000].copy()
    times = pd.Timestamp("2024-05-01") + pd.to_timedelta(np.arange(1000), "s")
    # nanoseconds end in 2262
    frame["time"] = times.astype("datetime64[us]")
    frame["event"] = [f"e{n}" for n in range(1000)]
    return frame


@pytest.fixture
def few_partitions(spark):
    """The ids are kept by partition: with few of them a batch is quick."""
    old = spark.conf.get("spark.sql.shuffle.partitions")
    spark.conf.set("spark.sql.shuffle.partitions", "2")
    yield
    spark.conf.set("spark.sql.shuffle.partitions", old)


def learned(als, frame, path, **options):
    """Run a stream to its end."""
    job = als.fitStream(frame, str(path), trigger=ONCE, **options)
    job.awaitTermination()
    return job


@pytest.mark.usefixtures("few_partitions")
class TestRepeats:
    def test_learned_once(self, als, events, files, stream, tmp_path):
        """In one batch, in the next one, and after a restart."""
        twice = pd.concat([events[:300], events[100:200], events[250:600], events[0:50]])
        folder = files(twice.iloc[:400], 400)
        files(twice.iloc[400:], 400, first=1)
        frame = stream(folder, SCHEMA)
        job = learned(als, frame, tmp_path / "m", eventIdCol="event")
        files(pd.concat([events[500:600], events[600:700]]), 1000, first=2)
        job = learned(als, frame, tmp_path / "m", eventIdCol="event")
        metrics = job.metrics()
        assert metrics.ratings[metrics.ratings > 0].tolist() == [300, 300, 100]
        once = files(events[:300], 300, "once")
        files(events[300:600], 300, "once", first=1)
        files(events[600:700], 300, "once", first=2)
        clean = learned(als, stream(once, SCHEMA), tmp_path / "n")
        a, b = job.model.state, clean.model.state
        assert a.counters.ratings == b.counters.ratings == 700
        assert_same_bits(job.model, clean.model)

    def test_without_the_option_they_count_again(self, als, events, files, stream, tmp_path):
        frame = stream(files(pd.concat([events[:100], events[:100]]), 200), SCHEMA)
        assert learned(als, frame, tmp_path / "m").metrics().ratings.tolist() == [200]

    def test_too_late(self, als, events, files, stream, tmp_path):
        """Older than the watermark by the time of a later batch: dropped, new or repeated."""
        folder = files(events[600:700], 100)
        files(events[700:800], 100, first=1)
        files(pd.concat([events[:5], events[600:605], events[795:810]]), 100, first=2)
        frame = stream(folder, SCHEMA)
        job = learned(als, frame, tmp_path / "m", eventIdCol="event", watermark="10 seconds")
        metrics = job.metrics()
        assert metrics.ratings[metrics.ratings > 0].tolist() == [100, 100, 10]
        # five repeats within the watermark, ten rows beyond it; and known after a restart
        assert metrics.late.tolist() == [0 if n != 2 else 10 for n in range(len(metrics))]
        again = learned(als, frame, tmp_path / "m", eventIdCol="event", watermark="10 seconds")
        assert again.metrics().late.sum() == 10

    @pytest.mark.parametrize("kind", long_after(1, ["timestamp", "timestamp_ntz"]))
    def test_a_time_that_has_not_come(self, als, events, files, stream, tmp_path, caplog, kind):
        """It is set aside and moves no watermark: events of the past and of now are learned."""
        now = np.datetime64("now", "us")
        recent = events.assign(time=now - np.arange(1000)[::-1].astype("timedelta64[s]"))
        times = [np.datetime64("9999-12-31T23:59:00", "us"), now + np.timedelta64(2, "h")]
        far = events[:2].assign(time=np.array(times), event=["e0", "far"])
        soon = events[2:3].assign(time=np.array([now + np.timedelta64(50, "m")]), event="soon")
        folder = files(pd.concat([events[:300], far]), 400)
        for n, part in enumerate((events[300:600], recent[600:800], soon, recent[800:]), 1):
            files(part, 400, first=n)
        frame = stream(folder, SCHEMA.replace("timestamp", kind))
        path = tmp_path / "m"
        with caplog.at_level(logging.WARNING, "sparkml_sgdals"):
            job = learned(als, frame, path, eventIdCol="event")
        metrics = job.metrics()
        assert metrics.ratings[metrics.ratings > 0].tolist() == [300, 300, 200, 1, 200]
        assert metrics.late.sum() == 0
        assert metrics.faults.dropna().tolist() == ["time: later than now: 2"]
        # on Spark Connect the process that learns has a log of its own
        assert is_remote() or "timestampCol 'time' is later than now in 2 rows" in caplog.text
        rows = [json.loads(row) for row in pd.read_parquet(path / "invalid").row]
        assert sorted(row["time"][:4] for row in rows)[1] == "9999"
        assert all(set(row) == {"user", "item", "rating", "time", "event"} for row in rows)

    def test_kept_as_the_earliest(self, als, events, files, stream, tmp_path):
        far = events[:1].assign(time=np.array(["9999-12-31"], "datetime64[us]"), event="far")
        folder = files(pd.concat([events[:300], far]), 400)
        files(events[300:600], 400, first=1)
        keeping = als.copy({als.handleInvalid: "keep"})
        job = learned(keeping, stream(folder, SCHEMA), tmp_path / "m", eventIdCol="event")
        metrics = job.metrics()
        assert metrics.ratings[metrics.ratings > 0].tolist() == [301, 300]

    def test_rows_without_id_or_time(self, als, events, files, stream, tmp_path):
        """Without an id only equal rows are one; a row without a time is set aside and counted."""
        events = events[:20].copy()
        events.loc[events.index[:3], "event"] = None
        events.loc[events.index[5], "time"] = pd.NaT
        twice = pd.concat([events, events])
        job = learned(als, stream(files(twice, 100), SCHEMA), tmp_path / "m", eventIdCol="event")
        metrics = job.metrics()
        assert metrics.ratings.sum() == 19
        assert metrics.invalid.sum() == 1

    def test_fields_of_a_struct(self, als, events, files, stream, tmp_path):
        """A dotted name reaches into one, for the id and for the time."""
        twice = pd.concat([events[:100], events[50:150]])
        frame = stream(files(twice, 100), SCHEMA)
        inside = frame.select(
            "user", "item", "rating", F.struct("time", F.col("event").alias("id")).alias("message")
        )
        als = als.setTimestampCol("message.time")
        job = learned(als, inside, tmp_path / "m", eventIdCol="message.id")
        metrics = job.metrics()
        assert metrics.ratings[metrics.ratings > 0].tolist() == [100, 50]


@pytest.mark.usefixtures("few_partitions")
class TestKept:
    """What Spark keeps of event ids, after kills and in other hands."""

    def test_killed_before_spark_noted_the_batch(self, als, events, files, stream, tmp_path):
        """Spark runs it again for what it keeps; nothing is learned twice, then or later."""
        frame = stream(files(events[:300], 300), SCHEMA)
        path = tmp_path / "m"
        learned(als, frame, path, eventIdCol="event")
        for run in range(2):
            commits = path / "checkpoint/commits"
            last = max(int(file.name) for file in commits.glob("[0-9]*"))
            (commits / f"{last}").unlink()
            (commits / f".{last}.crc").unlink(missing_ok=True)
            learned(als, frame, path, eventIdCol="event")
            assert (commits / f"{last}").exists(), run
        files(events[200:400], 300, first=1)
        job = learned(als, frame, path, eventIdCol="event")
        metrics = job.metrics()
        assert metrics.ratings[metrics.ratings > 0].tolist() == [300, 100]

    def test_an_older_file_is_named(self, als, events, files, stream, tmp_path):
        """In a younger one's place; and a snapshot that no commit tells of is not read."""
        frame = stream(files(events[:600], 300), SCHEMA)
        path = tmp_path / "m"
        learned(als, frame, path, eventIdCol="event")
        held = path / "checkpoint/state/0/1"
        last = max(int(file.stem) for file in held.glob("*.delta"))
        for number in (last - 1, last):
            younger = held / f"{number}.delta"
            kept = younger.read_bytes()
            younger.write_bytes((held / "1.delta").read_bytes())
            told = rf"state/0/1.*{number}\.delta\)? is not as it was when version {last} was"
            with pytest.raises(StorageError, match=told):
                als.fitStream(frame, str(path), trigger=ONCE, eventIdCol="event")
            younger.write_bytes(kept)
        (held / f"{last}.snapshot").write_bytes((held / "1.delta").read_bytes())
        files(events[100:700], 700, first=2)
        metrics = learned(als, frame, path, eventIdCol="event").metrics()
        assert metrics.ratings[metrics.ratings > 0].tolist() == [300, 300, 100]


class TestRefused:
    def test_what_does_not_fit(self, als, events, files, stream, tmp_path):
        frame, path = stream(files(events, 1000), SCHEMA), str(tmp_path / "m")
        with pytest.raises(ValueError, match="eventIdCol 'id' is not a column"):
            als.fitStream(frame, path, eventIdCol="id")
        with pytest.raises(ValueError, match="set timestampCol to a column of type timestamp"):
            StreamingBiasedALS(rank=4).fitStream(frame, path, eventIdCol="event")
        with pytest.raises(ValueError, match="watermark 'soon' is not an interval"):
            als.fitStream(frame, path, eventIdCol="event", watermark="soon")
        numbers = frame.withColumn("time", frame.time.cast("long"))
        with pytest.raises(TypeError, match=r"got bigint.*F\.timestamp_seconds"):
            als.fitStream(numbers, path, eventIdCol="event")
        assert not (tmp_path / "m").exists()


def newest(frame):
    """Of each pair the newest rating, of equal times the greatest."""
    return frame.sort_values(["time", "rating"]).groupby(["user", "item"]).tail(1)


def test_the_newest_rating_of_a_pair_counts_alone(spark, small):
    """In a table and in an update; rows that cannot be learned hide none."""
    frame = small.iloc[:2500]
    bad = newest(frame).iloc[::5].assign(rating=np.nan, time=2_000_000)
    late, later = small.iloc[2500:3200], small.iloc[3200:3300]
    params = {"rank": 3, "maxIter": 2, "timestampCol": "time", "handleInvalid": "skip"}
    changed = StreamingBiasedALS(repeatedPairs="newest", **params).fit(pd.concat([bad, frame]))
    plain = StreamingBiasedALS(**params).fit(newest(frame))
    assert plain.state.counters.ratings < len(frame)
    assert changed.state.fingerprint() == plain.state.fingerprint()
    both = pd.concat([late, later, later.assign(time=0)])
    changed.update(both)
    plain.update(newest(both))
    assert changed.state.fingerprint() == plain.state.fingerprint()


def test_the_newest_rating_of_each_batch(spark, small, files, stream, tmp_path):
    """What an earlier batch said of a pair stays learned."""
    frame = small.iloc[:1000]
    als = StreamingBiasedALS(rank=3, timestampCol="time", repeatedPairs="newest")
    job = als.fitStream(stream(files(frame, 500)), tmp_path / "path", trigger="availableNow")
    job.awaitTermination()
    pairs = [len(newest(part)) for part in (frame.iloc[:500], frame.iloc[500:])]
    assert job.metrics().ratings.to_list() == pairs
    assert min(pairs) < 500


def test_no_rating_is_newer_without_times(small):
    als = StreamingBiasedALS(repeatedPairs="newest")
    with pytest.raises(ValueError, match="set timestampCol, or repeatedPairs to 'count'"):
        als.fit(small)
    with pytest.raises(ValueError, match="repeatedPairs"):
        als.setRepeatedPairs("last")
