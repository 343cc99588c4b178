"""Time a micro-batch against streams that learn nothing: `make bench`, or
python benchmarks/streaming.py [RUNS].

The same ratings, as Parquet files of 1,000 and of 100,000 ratings, one file a trigger, go to

    discard   a foreachBatch that writes each batch to Spark's noop sink: all rows are read
    collect   a foreachBatch that collects each batch as Arrow
    ours      fitStream with its defaults

and, so that the first is not taken for less than it is, to `nothing`, a foreachBatch that does not
touch its batch: Spark never reads the rows then. All run in one session and take turns, so that a
busy moment of the machine hits each of them; ours starts from nothing in each run. A trigger's time
is Spark's own (triggerExecution of its progress), the first triggers of a run left out.

The ratings are made: 20,000 users and 5,000 items, half of the ratings by a tenth of the users.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from harness import row, session, write
from pyspark.sql import DataFrame, SparkSession

from sparkml_sgdals import StreamingBiasedALS

SCHEMA = "userId long, movieId long, rating double, timestamp long"
SIZES = {1_000: 25, 100_000: 12}
"""Ratings of a trigger, and how many triggers a run has."""
WARM_UP = 5
"""Triggers at the start of a run that are not counted."""


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
    folder.mkdir()
    ratings = made_ratings(size * triggers)
    for number in range(triggers):
        file = folder / f"{number:06d}.parquet"
        ratings.iloc[number * size : (number + 1) * size].to_parquet(file, index=False)
        # the file source goes by modification time
        os.utime(file, (1_000_000_000 + number, 1_000_000_000 + number))


def nothing(batch: DataFrame, number: int) -> None:
    """Leave the batch alone."""


def discard(batch: DataFrame, number: int) -> None:
    """Read all rows, keep none."""
    batch.write.format("noop").mode("overwrite").save()


def collect(batch: DataFrame, number: int) -> None:
    """Bring all rows to the driver, keep none."""
    batch.toArrow()


def ours(stream: DataFrame, folder: str) -> Any:
    """Learn each batch."""
    als = StreamingBiasedALS(userCol="userId", itemCol="movieId", timestampCol="timestamp")
    job = als.fitStream(stream, f"{folder}/model", trigger={"availableNow": True})
    job.awaitTermination()
    return job.query


def into(function: Callable[[DataFrame, int], None]) -> Callable[[DataFrame, str], Any]:
    """A stream of foreachBatch."""

    def run(stream: DataFrame, folder: str) -> Any:
        writer = stream.writeStream.foreachBatch(function).trigger(availableNow=True)
        query = writer.option("checkpointLocation", f"{folder}/checkpoint").start()
        query.awaitTermination()
        return query

    return run


WAYS: dict[str, Callable[[DataFrame, str], Any]] = {
    "nothing": into(nothing),
    "discard": into(discard),
    "collect": into(collect),
    "ours": ours,
}


def measure(spark: SparkSession, folder: Path, way: str) -> list[float]:
    """Seconds of each trigger of one run but the first ones."""
    reader = spark.readStream.schema(SCHEMA).option("maxFilesPerTrigger", 1)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        query = WAYS[way](reader.parquet(str(folder)), scratch)
        times = [p.durationMs["triggerExecution"] / 1000 for p in query.recentProgress
                 if "addBatch" in p.durationMs]  # fmt: skip
    return times[WARM_UP:]


def main() -> None:
    """Measure, print a table and write it as JSON."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    spark = session()
    result: dict[str, Any] = {"sizes": {}}
    with tempfile.TemporaryDirectory(prefix="streaming-") as scratch:
        for size, triggers in SIZES.items():
            folder = Path(scratch, f"ratings-{size}")
            write_files(folder, size, triggers)
            for way in WAYS:
                measure(spark, folder, way)
            times: dict[str, list[list[float]]] = {way: [] for way in WAYS}
            for _ in range(runs):
                for way, of_way in times.items():
                    of_way.append(measure(spark, folder, way))
            result["sizes"][size] = table(size, times)
    spark.stop()
    rows, ratios = [], {}
    for size, ways in result["sizes"].items():
        for way, found in ways.items():
            label = f"{size:,} ratings a trigger: {way}"
            middles = [statistics.median(run) for run in found["seconds"]]
            rows.append(row(label, middles, ours_takes=found["ours_takes"]))
            ratios[f"ours to {way}, {size}"] = found["ours_takes"]
    write("streaming", rows, ratios, sizes=result["sizes"])


def table(size: int, times: dict[str, list[list[float]]]) -> dict[str, Any]:
    """Print what came out for a size; the same for the JSON."""
    by_run = {way: [statistics.median(run) for run in of_way] for way, of_way in times.items()}
    median = {way: statistics.median(of_way) for way, of_way in by_run.items()}
    print(f"\n{size:,} ratings a trigger, {len(times['ours'][0])} triggers a run")
    print(f"{'':<10} {'median ms':>10} {'of runs':>14} {'ratings/s':>11} {'ours takes':>11}")
    for way, of_runs in by_run.items():
        spread = f"{1000 * min(of_runs):.0f} to {1000 * max(of_runs):.0f}"
        print(
            f"{way:<10} {1000 * median[way]:>10.0f} {spread:>14} {size / median[way]:>11,.0f} "
            f"{median['ours'] / median[way]:>10.2f}x"
        )
    return {
        way: {
            "seconds": times[way],
            "median": median[way],
            "ratings_per_second": size / median[way],
            "ours_takes": median["ours"] / median[way],
        }
        for way in times
    }


if __name__ == "__main__":
    main()
