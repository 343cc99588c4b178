"""Time a micro-batch against streams that learn nothing: `make bench`, or

    python benchmarks/streaming.py [RUNS]
    python scripts/kafka_broker.py python benchmarks/streaming.py [RUNS]
    python benchmarks/streaming.py [RUNS] --clicks FOLDER

The same ratings, as Parquet files of 1,000 and of 100,000 ratings, one file a trigger, and where
KAFKA_BOOTSTRAP names a broker also as JSON on a topic of one partition, read by parseRatings, go to

    discard   a foreachBatch that writes each batch to Spark's noop sink: all rows are read
    collect   a foreachBatch that collects each batch as Arrow
    ours      fitStream with its defaults

and, so that the first is not taken for less than it is, to `nothing`, a foreachBatch that does not
touch its batch: Spark never reads the rows then. All run in one session and take turns, so that a
busy moment of the machine hits each of them; ours starts from nothing in each run. A trigger's time
is Spark's own (triggerExecution of its progress), the first triggers of a run left out.

The ratings are made: 20,000 users and 5,000 items, half of the ratings by a tenth of the users.

With --clicks, what is streamed are the clicks of diginetica (FOLDER/diginetica/clicks.parquet), a
session as a user, 1,000 a trigger: the last ones, onto a model of events that has learned all
before. `unranked` is ours without judging its lists (rankingSize=0).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from harness import row, session, write
from pyspark.sql import DataFrame, SparkSession

from sparkml_sgdals import StreamingBiasedALS, StreamingBiasedALSModel

SCHEMA = "userId long, movieId long, rating double, timestamp long"
COLUMNS = {"userCol": "userId", "itemCol": "movieId", "timestampCol": "timestamp"}
SIZES = {1_000: 25, 100_000: 12}
"""Ratings of a trigger, and how many triggers a run has."""
WARM_UP = 5
"""Triggers at the start of a run that are not counted."""
CLICKS = "session long, item long, time long"
Source = Callable[[SparkSession], DataFrame]
"""A stream of ratings, so many a trigger."""
Learn = Callable[[DataFrame, str], Any]
"""Takes a stream to its end, with a folder to write to, and returns Spark's query."""


def made_ratings(count: int) -> pd.DataFrame:
    """Ratings with tastes, in order of time."""
    rng = np.random.default_rng(5)
    users, items = 20_000, 5_000
    user_taste, item_taste = rng.normal(0, 0.5, (users, 4)), rng.normal(0, 0.5, (items, 4))
    active = rng.random(count) < 0.5
    u = np.where(active, rng.integers(0, users // 10, count), rng.integers(0, users, count))
    i = (items * rng.random(count) ** 2).astype(np.int64)
    values = 3.5 + np.sum(user_taste[u] * item_taste[i], axis=1) + rng.normal(0, 0.5, count)
    values = np.clip(np.round(values * 2) / 2, 0.5, 5.0)
    return pd.DataFrame(
        {"userId": u, "movieId": i, "rating": values, "timestamp": np.arange(count)}
    )


def write_files(folder: Path, size: int, triggers: int) -> None:
    """The ratings as files, one a trigger."""
    write_table(folder, made_ratings(size * triggers), size)


def write_table(folder: Path, rows: pd.DataFrame, size: int) -> None:
    """Rows as files, so many each."""
    folder.mkdir()
    for number, first in enumerate(range(0, len(rows), size)):
        file = folder / f"{number:06d}.parquet"
        rows.iloc[first : first + size].to_parquet(file, index=False)
        # the file source goes by modification time
        os.utime(file, (1_000_000_000 + number, 1_000_000_000 + number))


def from_files(folder: Path, schema: str = SCHEMA) -> Source:
    """The files of a folder, one a trigger."""

    def read(spark: SparkSession) -> DataFrame:
        reader = spark.readStream.schema(schema).option("maxFilesPerTrigger", 1)
        return reader.parquet(str(folder))

    return read


def from_kafka(folder: Path, size: int) -> Source:
    """The ratings of a folder on a new topic, in order."""
    sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))
    from confluent_kafka import Producer
    from kafka_stream import make_topic, read_topic

    address = os.environ["KAFKA_BOOTSTRAP"]
    topic = make_topic(address)
    producer = Producer({"bootstrap.servers": address, "linger.ms": 50})
    for file in sorted(folder.iterdir()):
        values = pd.read_parquet(file).to_json(orient="records", lines=True).splitlines()
        for value in values:
            producer.produce(topic, value)
        producer.flush()
    # ours reads the message's origin only where it is set aside; the others would, each time
    return lambda spark: read_topic(spark, address, topic, size).drop("message")


def nothing(batch: DataFrame, number: int) -> None:
    """Leave the batch alone."""


def discard(batch: DataFrame, number: int) -> None:
    """Read all rows, keep none."""
    batch.write.format("noop").mode("overwrite").save()


def collect(batch: DataFrame, number: int) -> None:
    """Bring all rows to the driver, keep none."""
    batch.toArrow()


def ours(stream: DataFrame, folder: str, **params: Any) -> Any:
    """Learn each batch."""
    als = StreamingBiasedALS(**COLUMNS, **params)
    job = als.fitStream(stream, f"{folder}/model", trigger={"availableNow": True})
    job.awaitTermination()
    return job.query


def into(function: Callable[[DataFrame, int], None]) -> Learn:
    """A stream of foreachBatch."""

    def run(stream: DataFrame, folder: str) -> Any:
        writer = stream.writeStream.foreachBatch(function).trigger(availableNow=True)
        query = writer.option("checkpointLocation", f"{folder}/checkpoint").start()
        query.awaitTermination()
        return query

    return run


WAYS: dict[str, Learn] = {
    "nothing": into(nothing),
    "discard": into(discard),
    "collect": into(collect),
    "ours": ours,
}


def trigger_seconds(spark: SparkSession, source: Source, learn: Learn) -> list[float]:
    """Seconds of each trigger of one run but the first ones."""
    with tempfile.TemporaryDirectory(prefix="streaming-") as scratch:
        query = learn(source(spark), scratch)
        times = [p.durationMs["triggerExecution"] / 1000 for p in query.recentProgress
                 if "addBatch" in p.durationMs]  # fmt: skip
    return times[WARM_UP:]


def learned_before(spark: SparkSession, folder: Path, clicks: pd.DataFrame, **params: Any) -> Learn:
    """Learn some clicks at once; what goes on with another stream of them."""
    place = folder / "".join(["before", *params])
    write_table(folder / f"{place.name}-clicks", clicks, len(clicks))
    als = StreamingBiasedALS(
        userCol="session", itemCol="item", timestampCol="time", implicitPrefs=True, **params
    )
    first = from_files(folder / f"{place.name}-clicks", CLICKS)(spark)
    als.fitStream(first, str(place), trigger={"availableNow": True}).awaitTermination()

    def run(stream: DataFrame, scratch: str) -> Any:
        model = StreamingBiasedALSModel.load(str(place))
        job = model.updateStream(stream, f"{scratch}/model", trigger={"availableNow": True})
        job.awaitTermination()
        return job.query

    return run


def of_clicks(spark: SparkSession, data: Path, runs: int) -> None:
    """Measure streams of clicks, print a table and write it as JSON."""
    table_ = pd.read_parquet(data / "diginetica" / "clicks.parquet")
    clicks = table_[["session", "item"]].astype("int64").assign(time=np.arange(len(table_)))
    size, triggers = 1_000, SIZES[1_000]
    before, rest = clicks.iloc[: -size * triggers], clicks.iloc[-size * triggers :]
    label = f"{size:,} clicks a trigger"
    with tempfile.TemporaryDirectory(prefix="streaming-") as scratch:
        folder = Path(scratch)
        write_table(folder / "clicks", rest, size)
        ways = {name: WAYS[name] for name in ("discard", "collect")}
        ways["ours"] = learned_before(spark, folder, before)
        ways["unranked"] = learned_before(spark, folder, before, rankingSize=0)
        found = in_turn(spark, from_files(folder / "clicks", CLICKS), runs, ways)
    rows = table(label, size, found)
    write(
        "streaming-clicks", [row(f"{label}: {way}", **one) for way, one in rows.items()],
        {f"ours to {way}, {label}": one["ours_takes"] for way, one in rows.items()},
    )  # fmt: skip


def main() -> None:
    """Measure, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="?", type=int, default=5)
    parser.add_argument("--clicks", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    # Spark's own limit of what comes to the driver, as everyone has it
    runs, spark = given.runs, session(spark__driver__maxResultSize="1g")
    if given.clicks:
        of_clicks(spark, given.clicks, runs)
        spark.stop()
        return
    rows, ratios = [], {}
    with tempfile.TemporaryDirectory(prefix="streaming-") as scratch:
        sources: dict[str, tuple[int, Source]] = {}
        for size, triggers in SIZES.items():
            folder = Path(scratch, f"ratings-{size}")
            write_files(folder, size, triggers)
            sources[f"{size:,} ratings a trigger"] = size, from_files(folder)
            if "KAFKA_BOOTSTRAP" in os.environ:
                kafka = from_kafka(folder, size)
                sources[f"{size:,} ratings a trigger from Kafka"] = size, kafka
        for label, (size, source) in sources.items():
            found = table(label, size, in_turn(spark, source, runs))
            rows += [row(f"{label}: {way}", **one) for way, one in found.items()]
            ratios |= {f"ours to {way}, {label}": one["ours_takes"] for way, one in found.items()}
    spark.stop()
    write("streaming", rows, ratios)


def in_turn(
    spark: SparkSession, source: Source, runs: int, ways: Mapping[str, Learn] = WAYS
) -> dict[str, list[float]]:
    """Median seconds of a trigger, of each run of each way."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for run in range(runs + 1):
        for way, of_way in times.items():
            median = statistics.median(trigger_seconds(spark, source, ways[way]))
            # the first run of each only warms up
            if run:
                of_way.append(median)
    return times


def table(label: str, size: int, times: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """Print what came out for a size of trigger; the same for the JSON."""
    median = {way: statistics.median(of_way) for way, of_way in times.items()}
    print(f"\n{label}, {len(times['ours'])} runs")
    print(f"{'':<10} {'median ms':>10} {'of runs':>14} {'ratings/s':>11} {'ours takes':>11}")
    for way, of_runs in times.items():
        spread = f"{1000 * min(of_runs):.0f} to {1000 * max(of_runs):.0f}"
        print(
            f"{way:<10} {1000 * median[way]:>10.0f} {spread:>14} {size / median[way]:>11,.0f} "
            f"{median['ours'] / median[way]:>10.2f}x",
            flush=True,
        )
    return {
        way: {"seconds": of_runs, "ours_takes": median["ours"] / median[way]}
        for way, of_runs in times.items()
    }


if __name__ == "__main__":
    main()
