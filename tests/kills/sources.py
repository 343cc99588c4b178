"""Where the killed streams read from: to plug another source in, add a class to SOURCES.

A source is made by the harness (`prepare`, once for all runs) and read by each started program
(`read`); what passes between the two is JSON. Batch n has to hold the same ratings in every run.
"""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from pyspark.sql import functions as F

SCHEMA = "user long, item long, rating double, time long"


class Source(Protocol):
    """Ratings that arrive in `batches` micro-batches of `size`."""

    def prepare(self, folder: Path, batches: int, size: int) -> dict[str, Any]:
        """Make the source below a folder; what `read` has to know, as JSON types."""

    def read(self, spark: Any, spec: dict[str, Any]) -> Any:
        """The source as a streaming DataFrame of SCHEMA, `size` ratings a micro-batch."""


def made_ratings(count: int) -> pd.DataFrame:
    """Ratings of 300 users and 200 items with tastes; some users come late."""
    rng = np.random.default_rng(11)
    user_taste, item_taste = rng.normal(0, 0.7, (300, 3)), rng.normal(0, 0.7, (200, 3))
    users = np.minimum(rng.integers(0, 300, count), np.arange(count) // 20 + 30)
    items = rng.integers(0, 200, count)
    values = 3.5 + np.sum(user_taste[users] * item_taste[items], axis=1)
    values = np.clip(np.round((values + rng.normal(0, 0.4, count)) * 2) / 2, 0.5, 5.0)
    return pd.DataFrame(
        {"user": users, "item": items, "rating": values, "time": np.arange(count) // 3}
    )


class Files:
    """CSV files in a folder, one a micro-batch."""

    def prepare(self, folder: Path, batches: int, size: int) -> dict[str, Any]:
        place = folder / "ratings"
        place.mkdir(parents=True)
        ratings = made_ratings(batches * size)
        for number in range(batches):
            path = place / f"{number:06d}.csv"
            ratings.iloc[number * size : (number + 1) * size].to_csv(path, index=False)
            # the file source goes by modification time
            os.utime(path, (1_000_000_000 + number, 1_000_000_000 + number))
        return {"folder": str(place)}

    def read(self, spark: Any, spec: dict[str, Any]) -> Any:
        reader = spark.readStream.schema(SCHEMA).option("header", True)
        return reader.option("maxFilesPerTrigger", 1).csv(spec["folder"])


class Kafka:
    """A topic of one partition, as JSON, on the broker that KAFKA_BOOTSTRAP names.

    The connector for Spark has to be in PYSPARK_SUBMIT_ARGS.
    """

    def prepare(self, folder: Path, batches: int, size: int) -> dict[str, Any]:
        from confluent_kafka import Producer
        from confluent_kafka.admin import AdminClient, NewTopic

        servers, topic = os.environ["KAFKA_BOOTSTRAP"], f"kills-{uuid.uuid4().hex[:8]}"
        settings = {"bootstrap.servers": servers}
        # an object of its own: it breaks what it does off when nobody holds it any more
        admin = AdminClient(settings)
        admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(30)
        # idempotent: what it sends again is there once, and in order
        producer = Producer(settings | {"enable.idempotence": True})
        for row in made_ratings(batches * size).to_dict("records"):
            producer.produce(topic, json.dumps(row).encode())
        if producer.flush(30):
            raise RuntimeError(f"{servers} did not take all messages")
        return {"servers": servers, "topic": topic, "size": size}

    def read(self, spark: Any, spec: dict[str, Any]) -> Any:
        reader = spark.readStream.format("kafka").option("subscribe", spec["topic"])
        reader = reader.option("kafka.bootstrap.servers", spec["servers"])
        reader = reader.option("startingOffsets", "earliest")
        messages = reader.option("maxOffsetsPerTrigger", spec["size"]).load()
        value = F.from_json(messages.value.cast("string"), SCHEMA)
        return messages.select(value.alias("rating")).select("rating.*")


COLUMNS = "user,item,rating,time,eventId"
"""as the service writes what is posted"""
_POSTED = f"{SCHEMA}, eventId string"


class Inbox:
    """The folder that the service writes to, a file a micro-batch; see `chain`."""

    def read(self, spark: Any, spec: dict[str, Any]) -> Any:
        reader = spark.readStream.schema(_POSTED).option("maxFilesPerTrigger", 1)
        return reader.json(spec["folder"]).drop("eventId")


class Topic:
    """The topic that the service sends to, of one partition; see `chain`.

    A batch is a fixed number of offsets, so that batches do not depend on when messages come.
    """

    def make(self, servers: str, rows: list[dict[str, Any]], size: int) -> dict[str, Any]:
        """A topic with some messages; what `read` has to know."""
        from confluent_kafka import Producer
        from confluent_kafka.admin import AdminClient, NewTopic

        topic = f"posted-{uuid.uuid4().hex[:8]}"
        admin = AdminClient({"bootstrap.servers": servers})
        admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(30)
        producer = Producer({"bootstrap.servers": servers, "enable.idempotence": True})
        for row in rows:
            producer.produce(topic, json.dumps(row).encode())
        if producer.flush(30):
            raise RuntimeError(f"{servers} did not take all messages")
        # events delivered again after a kill of the service are told by their ids
        repeats = {"eventIdCol": "eventId", "watermark": "1 day"}
        return {"servers": servers, "topic": topic, "size": size, "options": repeats}

    def length(self, spec: dict[str, Any]) -> int:
        """Messages in the topic."""
        from confluent_kafka import Consumer, TopicPartition

        settings = {"bootstrap.servers": spec["servers"], "group.id": uuid.uuid4().hex}
        reader = Consumer(settings)
        _, end = reader.get_watermark_offsets(TopicPartition(spec["topic"], 0), 30)
        reader.close()
        return int(end)

    def read(self, spark: Any, spec: dict[str, Any]) -> Any:
        reader = spark.readStream.format("kafka").option("subscribe", spec["topic"])
        reader = reader.option("kafka.bootstrap.servers", spec["servers"])
        reader = reader.option("startingOffsets", "earliest")
        reader = reader.option("maxOffsetsPerTrigger", spec["size"])
        if "processingTime" in spec.get("trigger", {}):
            reader = reader.option("minOffsetsPerTrigger", spec["size"])
            # Spark counts it from 1970 when a stream starts: its first batch would be any number
            reader = reader.option("maxTriggerDelay", "100000d")
        messages = reader.load()
        value = F.from_json(messages.value.cast("string"), _POSTED)
        posted = messages.select(value.alias("rating")).select("rating.*")
        return posted.withColumn("time", F.timestamp_seconds("time"))


SOURCES: dict[str, Source] = {"files": Files(), "kafka": Kafka()}

POSTED = {"inbox": Inbox(), "topic": Topic()}
