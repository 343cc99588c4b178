"""Learn MovieLens from Kafka as it arrives: `make demo-kafka`, or beside a broker of your own

    KAFKA_BOOTSTRAP=localhost:9092 python examples/kafka_stream.py --batch 1000 --every 5

It needs the extras kafka and plot.

A producer replays the ratings in time order, some every few seconds, as JSON on a new topic, with
a malformed message now and then. The stream learns each rating once and says what it did, a line
a micro-batch. At the end comes the picture of examples/demo.py, where Spark's ALS, which sees all
ratings at once, is the mark to beat. The ratings are found as there. What is written goes to out/.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewTopic
from demo import (
    OUT,
    SCHEMA,
    best_als,
    draw,
    fit_table,
    headline,
    load_ratings,
    say,
    split,
    start_spark,
)
from pyspark.sql import DataFrame, SparkSession

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))
from registry import connectors, submit_with

from sparkml_sgdals import StreamingBiasedALS, StreamJob, parseRatings

MALFORMED = b'{"userId": 1, "movieId": 1, "rating": "four and a half"}'
MALFORMED_EVERY = 10_000


class Replay(threading.Thread):
    """Sends ratings to a topic, in time order, `batch` of them every `every` seconds."""

    def __init__(
        self, address: str, topic: str, ratings: pd.DataFrame, batch: int, every: float
    ) -> None:
        super().__init__(daemon=True)
        ordered = ratings.sort_values("timestamp", kind="stable")
        self.messages: list[bytes] = []
        for number, line in enumerate(ordered.to_json(orient="records", lines=True).splitlines()):
            if number % MALFORMED_EVERY == MALFORMED_EVERY // 2:
                self.messages.append(MALFORMED)
            self.messages.append(line.encode())
        self.ended = threading.Event()
        self._topic, self._batch, self._every = topic, batch, every
        # idempotent: what is sent again after a hiccup is there once, and in order
        settings = {"bootstrap.servers": address, "enable.idempotence": True, "log_level": 3}
        self._producer = Producer(settings)

    def run(self) -> None:
        """Send all, unless it is told to end."""
        due = time.monotonic()
        for start in range(0, len(self.messages), self._batch):
            for message in self.messages[start : start + self._batch]:
                self._producer.produce(self._topic, message)
                self._producer.poll(0)
            self._producer.flush()
            due += self._every
            if self.ended.wait(max(0.0, due - time.monotonic())):
                return


def make_topic(address: str) -> str:
    """A new topic of one partition, so that ratings stay in order; exits where nobody answers."""
    name = f"ratings-{time.time_ns() // 1_000_000}"
    admin = AdminClient({"bootstrap.servers": address, "log_level": 3})
    try:
        admin.list_topics(timeout=15)
        admin.create_topics([NewTopic(name, 1, 1)])[name].result(15)
    except KafkaException as error:
        sys.exit(f"No Kafka at {address} ({error.args[0].str()}): make kafka starts one.")
    return name


def read_topic(spark: SparkSession, address: str, topic: str, batch: int) -> DataFrame:
    """The topic's ratings as a stream."""
    messages = (
        spark.readStream.format("kafka")
        .option("kafka.bootstrap.servers", address)
        .option("subscribe", topic)
        .option("startingOffsets", "earliest")
        .option("maxOffsetsPerTrigger", batch)
        .load()
    )
    return parseRatings(messages, "json", SCHEMA)


def positions(job: StreamJob[Any]) -> dict[int, tuple[int, int]]:
    """Of the latest batches: the offset that each ended at, and how far behind the topic it was."""
    found = {}
    for progress in job.query.recentProgress:
        (source,) = json.loads(progress.json)["sources"]
        ends = [sum(part.values()) for part in source["endOffset"].values()]
        newest = [sum(part.values()) for part in source["latestOffset"].values()]
        found[progress.batchId] = (sum(ends), sum(newest) - sum(ends))
    return found


def watch(job: StreamJob[Any], replay: Replay) -> pd.DataFrame:
    """A line a batch until all that was sent is learned; the metrics of the whole."""
    say("  batch   offset  ratings  new users  new items  RMSE before  held-out RMSE     lag")
    shown = 0
    while True:
        ended = job.awaitTermination(0.2)
        metrics, at = job.metrics(), positions(job)
        for row in metrics[shown:].itertuples():
            if row.batch not in at:
                # Spark tells where a batch ended a moment after its commit
                break
            offset, lag = at[row.batch]
            before = "-" if np.isnan(row.rmse) else f"{row.rmse:.4f}"
            say(
                f"  {row.batch:>5} {offset:>8,} {row.ratings:>8,} {row.newUsers:>10,} "
                f"{row.newItems:>10,} {before:>12} {row.validationRmse:>14.4f} {lag:>7,}"
            )
            shown += 1
        done = int(metrics.ratings.sum() + metrics.invalid.sum()) >= len(replay.messages)
        if ended or (done and shown == len(metrics)):
            return metrics


def set_aside(model_path: Path) -> list[str]:
    """The messages that could not be learned, as JSON."""
    files = sorted((model_path / "invalid").glob("*.parquet"))
    return [row for file in files for row in pd.read_parquet(file).row]


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description="Stream MovieLens through Kafka into a model.")
    add = parser.add_argument
    add("--bootstrap", default=os.environ.get("KAFKA_BOOTSTRAP", "127.0.0.1:9092"))
    add("--batch", type=int, default=1_000, help="ratings sent at a time, and learned in a batch")
    add("--every", type=float, default=5.0, help="seconds between them; 0: as fast as it goes")
    add("--size", type=int, default=None, help="only the first so many ratings")
    found = parser.parse_args()
    if found.batch < 1 or found.every < 0:
        parser.error("--batch must be at least 1, --every at least 0")
    return found


def main() -> None:
    """Run the story."""
    began = time.perf_counter()
    said = options()
    if "PYSPARK_SUBMIT_ARGS" not in os.environ:
        # as make demo-kafka does: the connector of this PySpark, or of the release before it
        submit_with(connectors("spark-sql-kafka-0-10"))
    OUT.mkdir(exist_ok=True)
    picture, table, model_path = OUT / "kafka.png", OUT / "kafka-metrics.csv", OUT / "kafka-model"
    shutil.rmtree(model_path, ignore_errors=True)

    ratings, name, whence = load_ratings()
    ratings = ratings.sort_values("timestamp", kind="stable").iloc[: said.size]
    train, test = split(ratings)
    topic = make_topic(said.bootstrap)
    replay = Replay(said.bootstrap, topic, train, said.batch, said.every)
    pace = f"{said.batch:,} every {said.every:g} s" if said.every else "as fast as it goes"
    say(f"Ratings: {name}, {whence}")
    say(f"  {len(train):,} in time order, {pace}, to topic {topic} at {said.bootstrap};")
    say(f"  {len(test):,} held out\n")

    spark = start_spark()
    test_table = spark.createDataFrame(test, SCHEMA).cache()
    als = StreamingBiasedALS(userCol="userId", itemCol="movieId", timestampCol="timestamp")
    job = als.fitStream(
        read_topic(spark, said.bootstrap, topic, said.batch),
        str(model_path),
        trigger={"processingTime": f"{said.every} seconds"},
        validation=test_table,
    )
    try:
        replay.start()
        metrics = watch(job, replay)
    finally:
        replay.ended.set()
        job.stop()
    metrics.to_csv(table, index=False)
    aside = set_aside(model_path)
    say(f"\n{metrics.ratings.sum():,} ratings learned, {len(aside)} malformed messages set aside")
    if aside:
        say(f"  the first: {aside[0]}")

    say("\nSpark's ALS learns all of them at once (rank 10, 10 iterations):")
    train_table = spark.createDataFrame(train, SCHEMA).cache()
    mark, _, _ = best_als(train_table, test_table)
    fit, _ = fit_table(train_table, test_table)
    spark.stop()
    name = name.replace("ml-latest-small", "MovieLens latest-small")
    what = f"{name} through Kafka: {len(train):,} ratings in time order, {pace}; "
    draw(metrics, mark, fit, what + f"{len(test):,} held out", picture)
    say(f"\n{headline(float(metrics.validationRmse.iloc[-1]), mark)}.")
    say(f"\npicture   {picture}\nmetrics   {table}")
    say(f"model     {model_path}  (StreamingBiasedALSModel.load reads it)")
    say(f"\n{time.perf_counter() - began:.0f} seconds in all")


if __name__ == "__main__":
    main()
