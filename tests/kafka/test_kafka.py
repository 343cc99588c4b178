"""Streams from a real Kafka: JSON and Avro, malformed messages, triggers, stops and kills."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pandas as pd
import pytest
from helpers import ONCE, assert_same_bits
from kafka_broker import Broker

from sparkml_sgdals import StreamingBiasedALS, StreamingBiasedALSModel, parseRatings

pytestmark = pytest.mark.kafka

DDL = "user long, item long, rating double, time long"
AVRO = {
    "type": "record",
    "name": "rating",
    "fields": [
        {"name": "user", "type": "long"},
        {"name": "item", "type": "long"},
        {"name": "rating", "type": "double"},
        {"name": "time", "type": ["null", "long"]},
    ],
}
BAD_JSON = {
    7: b'{"user": 1, "item": 5, "rating": "abc", "time": 1000000}',
    8: b"no JSON at all",
    499: b'{"user": 1, "item": 5, "time": 1000000}',
    500: None,
    731: b"\xff\xfe\x00",
    1600: b'{"user": 8, "item": 16, "rating": 4.0, "time": 1000000} and more',
    3999: b'[{"user": 8, "item": 16, "rating": 4.0, "time": 1000000}]',
}


@pytest.fixture
def als():
    return StreamingBiasedALS(timestampCol="time", rank=4)


def as_json(frame):
    return [line.encode() for line in frame.to_json(orient="records", lines=True).splitlines()]


def long_bytes(value):
    """Avro's form of a whole number from 0 on."""
    value <<= 1
    octets = []
    while value > 0x7F:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*octets, value])


def as_avro(frame, spark):
    """The ratings as Avro, by Spark's own writer, in their order."""
    from pyspark.sql import functions as F
    from pyspark.sql.avro.functions import to_avro

    numbered = spark.createDataFrame(frame.assign(n=range(len(frame)))).withColumn(
        "value", to_avro(F.struct(*[F.col(c) for c in frame.columns]), json.dumps(AVRO))
    )
    rows = numbered.select("n", "value").orderBy("n").collect()
    return [bytes(row.value) for row in rows]


def with_bad(good, bad):
    """Messages with malformed ones at the offsets that `bad` names, and which rating is where."""
    messages, rating_at, left = [], [], iter(range(len(good)))
    while len(messages) < len(good):
        place = len(messages)
        if place in bad:
            messages.append(bad[place])
            rating_at.append(None)
        else:
            number = next(left)
            messages.append(good[number])
            rating_at.append(number)
    return messages, rating_at


def learned_from_files(als, files, stream, frame, rating_at, path, size=500):
    """The model that learned the same ratings in the same batches from files."""
    for number, start in enumerate(range(0, len(rating_at), size)):
        rows = [n for n in rating_at[start : start + size] if n is not None]
        folder = files(frame.iloc[rows], size, "same", first=number)
    job = als.fitStream(stream(folder), str(path), trigger=ONCE)
    job.awaitTermination()
    return job.model


def set_aside(path):
    """Rows set aside by a stream, in their order."""
    found = sorted((Path(path) / "invalid").glob("*.parquet"))
    rows = [json.loads(row) for file in found for row in pd.read_parquet(file).row]
    return sorted(rows, key=lambda row: row["message"]["offset"])


def wait_for(job, batches, seconds=120):
    until = time.monotonic() + seconds
    while len(job.metrics()) < batches:
        assert time.monotonic() < until, f"no {batches} batches in {seconds} s"
        assert not job.awaitTermination(0.1)


class TestTopics:
    def test_json(self, als, broker, topic, kafka, files, stream, small, tmp_path):
        messages, rating_at = with_bad(as_json(small), BAD_JSON)
        name = topic(broker, messages)
        path = tmp_path / "m"
        ratings = parseRatings(kafka(broker, name), "json", DDL)
        job = als.fitStream(ratings, str(path), trigger=ONCE)
        job.awaitTermination()
        metrics = job.metrics()
        # maxOffsetsPerTrigger is kept: 500 messages each
        assert (metrics.ratings + metrics.invalid).tolist() == [500] * 8
        assert metrics.invalid.tolist() == [3, 2, 0, 1, 0, 0, 0, 1]
        rows = set_aside(path)
        assert [row["message"]["offset"] for row in rows] == sorted(BAD_JSON)
        for row in rows:
            message = row["message"]
            assert (message["topic"], message["partition"]) == (name, 0)
            sent = BAD_JSON[message["offset"]]
            if sent is None:
                assert "value" not in message
            elif sent == b"\xff\xfe\x00":
                assert base64.b64decode(message["value"].removeprefix("base64:")) == sent
            else:
                assert message["value"] == sent.decode()
        assert "rating" not in rows[0]
        same = learned_from_files(als, files, stream, small, rating_at, tmp_path / "n")
        assert_same_bits(job.model, same)

    def test_avro(self, als, broker, topic, kafka, files, stream, small, spark, tmp_path):
        good = as_avro(small, spark)
        bad = {
            0: b"",
            3: b"no Avro, as it happens",
            4: good[0] + b"!",
            600: good[1][:-1],
            601: None,
            602: json.dumps({"user": 1}).encode(),
        }
        messages, rating_at = with_bad(good, bad)
        name = topic(broker, messages)
        path = tmp_path / "m"
        ratings = parseRatings(kafka(broker, name), "avro", AVRO)
        job = als.fitStream(ratings, str(path), trigger=ONCE)
        job.awaitTermination()
        assert job.metrics().invalid.tolist() == [3, 3, 0, 0, 0, 0, 0, 0]
        rows = set_aside(path)
        assert [row["message"]["offset"] for row in rows] == sorted(bad)
        for row in rows:
            sent = bad[row["message"]["offset"]]
            kept = row["message"].get("value")
            assert sent == (None if kept is None else base64.b64decode(kept))
        same = learned_from_files(als, files, stream, small, rating_at, tmp_path / "n")
        assert_same_bits(job.model, same)

    def test_avro_with_a_length_that_nobody_has(self, spark):
        """Regression: Spark's reader takes memory for it before it looks, and the task dies."""
        schema = {"type": "record", "name": "r", "fields": [
            {"name": "user", "type": "string"}, {"name": "rating", "type": "float"},
            {"name": "note", "type": ["string", "null"]},
        ]}  # fmt: skip
        good = b"\x04ab\x00\x00\x60\x40\x02"
        noted = b"\x04ab\x00\x00\x60\x40\x00\x06xyz"
        long = b"\xac\x02" + b"c" * 150 + b"\x00\x00\x60\x40\x02"
        bad = [
            long_bytes(2_000_000_000) + b"ab\x00\x00\x60\x40\x02",
            long_bytes(2**40) + b"ab",
            b"\x03ab\x00\x00\x60\x40\x02",
            b"\x04ab\x00\x00\x60\x40\x04",
            b"\x80" * 11,
            good + b"\x02",
        ]
        frame = spark.createDataFrame(
            [(bytearray(value),) for value in [good, noted, long, *bad]], "value binary"
        )
        rows = parseRatings(frame, "avro", schema).collect()
        assert [row.user for row in rows[:3]] == ["ab", "ab", "c" * 150]
        assert [row.note for row in rows[:3]] == [None, "xyz", None]
        assert [row.rating for row in rows] == [3.5, 3.5, 3.5, *[None] * len(bad)]
        assert [row.user for row in rows[3:]] == [None] * len(bad)

    def test_nested_avro(self, spark):
        """A record that has no one encoding is read by Spark alone."""
        schema = {"type": "record", "name": "r", "fields": [
            {"name": "user", "type": "long"},
            {"name": "tags", "type": {"type": "array", "items": "long"}},
        ]}  # fmt: skip
        frame = spark.createDataFrame(
            [(bytearray(b"\x04\x04\x02\x04\x00"),), (bytearray(b"\x04\x04"),)], "value binary"
        )
        first, second = parseRatings(frame, "avro", schema).collect()
        assert (first.user, first.tags) == (2, [1, 2])
        assert (second.user, second.tags) == (None, None)

    def test_partitions(self, als, broker, topic, kafka, small, tmp_path):
        name = topic(broker, as_json(small), partitions=3)
        ratings = parseRatings(kafka(broker, name), "json", DDL)
        job = als.fitStream(ratings, str(tmp_path / "m"), trigger=ONCE)
        job.awaitTermination()
        metrics = job.metrics()
        assert metrics.ratings.sum() == len(small)
        assert metrics.ratings.max() <= 500
        assert job.model.state.counters.ratings == len(small)


class TestTriggers:
    def test_processing_time(self, als, broker, topic, kafka, small, tmp_path):
        messages = as_json(small)
        name = topic(broker, messages[:1000])
        ratings = parseRatings(kafka(broker, name, maxOffsetsPerTrigger=300), "json", DDL)
        trigger = {"processingTime": "500 milliseconds"}
        job = als.fitStream(ratings, str(tmp_path / "m"), trigger=trigger)
        try:
            wait_for(job, 4)
            assert job.metrics().ratings.tolist() == [300, 300, 300, 100]
            topic(broker, messages[1000:1100], name)
            wait_for(job, 5)
        finally:
            job.stop(drain=True)
        assert job.metrics().ratings.tolist() == [300, 300, 300, 100, 100]

    def test_available_now_ends(self, als, broker, topic, kafka, small, tmp_path):
        messages = as_json(small)
        name = topic(broker, messages[:700])
        ratings = parseRatings(kafka(broker, name), "json", DDL)
        assert als.fitStream(ratings, str(tmp_path / "m"), trigger=ONCE).awaitTermination(60)
        topic(broker, messages[700:800], name)
        job = als.fitStream(ratings, str(tmp_path / "m"), trigger=ONCE)
        assert job.awaitTermination(60)
        # Spark evens out what is there at the start of a run
        assert job.metrics().ratings.sum() == 800
        assert job.metrics().ratings.max() <= 500


class TestExactlyOnce:
    @pytest.fixture
    def undisturbed(self, als, broker, topic, kafka, small, tmp_path):
        messages, _ = with_bad(as_json(small), BAD_JSON)
        name = topic(broker, messages)
        stream = parseRatings(kafka(broker, name, maxOffsetsPerTrigger=250), "json", DDL)
        job = als.fitStream(stream, str(tmp_path / "whole"), trigger=ONCE)
        job.awaitTermination()
        return stream, job

    def same(self, job, undisturbed):
        whole = undisturbed[1]
        columns = ["batch", "version", "ratings", "invalid", "newUsers", "newItems", "rmse"]
        pd.testing.assert_frame_equal(job.metrics()[columns], whole.metrics()[columns])
        assert_same_bits(job.model, whole.model)
        assert set_aside(job.path) == set_aside(whole.path)

    @pytest.mark.parametrize("drain", [True, False])
    def test_stopped_and_started_again(self, als, undisturbed, tmp_path, drain):
        stream, path = undisturbed[0], str(tmp_path / "m")
        for batches in (3, 9):
            job = als.fitStream(stream, path, trigger={"processingTime": "0 seconds"})
            wait_for(job, batches)
            job.stop(drain=drain)
        job = als.fitStream(stream, path, trigger=ONCE)
        job.awaitTermination()
        self.same(job, undisturbed)

    def test_the_broker_killed_by_sigkill(self, als, topic, kafka, small, tmp_path):
        """The stream waits for it, or ends and is started again; each rating is learned once."""
        messages, _ = with_bad(as_json(small), BAD_JSON)
        with Broker() as broker:
            name = topic(broker, messages)
            read = parseRatings(kafka(broker, name, maxOffsetsPerTrigger=250), "json", DDL)
            whole = als.fitStream(read, str(tmp_path / "whole"), trigger=ONCE)
            whole.awaitTermination()
            path = str(tmp_path / "m")
            steady = {"processingTime": "400 milliseconds"}
            job = als.fitStream(read, path, trigger=steady)
            try:
                wait_for(job, 4)
                broker.kill()
                assert not broker.alive
                before = len(job.metrics())
                assert before < 16
                time.sleep(5)
                assert len(job.metrics()) <= before + 2
                broker.start()
                wait_for(job, 16)
            finally:
                job.stop()
            self.same(job, (read, whole))


@pytest.mark.connect
@pytest.mark.timeout(600)
@pytest.mark.parametrize("format", ["json", "avro"])
def test_on_connect(als, broker, topic, kafka, spark, small, tmp_path, format):
    """A program on Spark Connect, stopped in the middle, ends at the bits of a classic one."""
    if format == "json":
        messages, _ = with_bad(as_json(small), BAD_JSON)
        schema = DDL
    else:
        bad = {3: b"no Avro, as it happens", 600: None, 601: long_bytes(2**31 - 20)}
        messages, _ = with_bad(as_avro(small, spark), bad)
        schema = AVRO
    name = topic(broker, messages)
    classic = als.fitStream(
        parseRatings(kafka(broker, name), format, schema), str(tmp_path / "classic"), trigger=ONCE
    )
    classic.awaitTermination()
    path = str(tmp_path / "connect")
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            f"""
            from pyspark.sql import SparkSession
            from pyspark.sql.connect.session import SparkSession as Remote
            from sparkml_sgdals import StreamingBiasedALS, parseRatings
            spark = SparkSession.builder.remote("local[2]").config(map={{
                "spark.ui.enabled": "false", "spark.sql.shuffle.partitions": "2",
                "spark.driver.memory": "2g"}}).getOrCreate()
            assert isinstance(spark, Remote)
            stream = (spark.readStream.format("kafka")
                .option("kafka.bootstrap.servers", {broker.address!r})
                .option("subscribe", {name!r}).option("startingOffsets", "earliest")
                .option("maxOffsetsPerTrigger", 500).load())
            ratings = parseRatings(stream, {format!r}, {schema!r})
            als = StreamingBiasedALS(timestampCol="time", rank=4)
            job = als.fitStream(ratings, {path!r}, trigger={{"processingTime": "0 seconds"}})
            while len(job.metrics()) < 3:
                assert not job.awaitTermination(0.2)
            job.stop()
            assert len(job.metrics()) < 8
            job = als.fitStream(ratings, {path!r}, trigger={{"availableNow": True}})
            job.awaitTermination()
            print("ratings", job.metrics().ratings.sum())
            spark.stop()
            """
        )
    )
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, timeout=560, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert_same_bits(StreamingBiasedALSModel.load(path), classic.model)
    assert set_aside(path) == set_aside(tmp_path / "classic")
    assert f"ratings {classic.metrics().ratings.sum()}" in done.stdout


def test_a_closed_terminal_takes_the_broker_along():
    """SIGHUP ends the broker and its folder as Ctrl-C does."""
    script = Path(__file__).parents[2] / "scripts/kafka_broker.py"
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, start_new_session=True,
    )  # fmt: skip
    children = []
    try:
        address = process.stdout.readline().strip()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert address.startswith("127.0.0.1:")
        assert len(children) == 1
        process.send_signal(signal.SIGHUP)
        assert process.wait(60) == 128 + signal.SIGHUP
        assert not Path(f"/proc/{children[0]}").exists()
    finally:
        process.kill()
        process.wait()
        for child in children:
            if Path(f"/proc/{child}").exists():
                os.kill(int(child), signal.SIGKILL)
