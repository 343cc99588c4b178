"""An hour of streaming: do memory, trigger time and disk use stay flat?

python benchmarks/soak.py [--minutes 60] [--rows 1000] [--every 2]

Spark's rate source gives so many generated ratings a trigger, of 20,000 users and 2,000 items,
which are all known after some minutes. Every ten seconds it notes the resident memory of driver,
JVM and Python workers, the seconds of the last batches, and the size of the model path. Compared
are minutes 10 to 20 with the last ten. Writes out/soak.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkml_sgdals import StreamingBiasedALS

OUT = Path(__file__).resolve().parent.parent / "out" / "soak.json"
USERS, ITEMS = 20_000, 2_000
MIB = 2**20


def generated(spark: SparkSession, rows: int) -> DataFrame:
    """Ratings made of a running number: skewed ids, a bias of each, and noise."""
    source = spark.readStream.format("rate-micro-batch").option("rowsPerBatch", rows).load()
    number = F.col("value")

    def uniform(salt: int) -> Any:
        return F.pmod(F.hash(number, F.lit(salt)), F.lit(1 << 20)) / (1 << 20)

    user = F.floor(USERS * uniform(1) ** 2).cast("int")
    item = F.floor(ITEMS * uniform(2) ** 2).cast("int")
    noise = uniform(3) + uniform(4) - 1.0
    rating = 3.0 + F.sin(user) + F.cos(item * 7) + noise
    return source.select(
        user.alias("user"), item.alias("item"), rating.alias("rating"), number.alias("time")
    )


def resident() -> dict[str, float]:
    """MiB of this process, the JVM and all Python workers together."""
    held = {"driver": psutil.Process().memory_info().rss / MIB, "jvm": 0.0, "workers": 0.0}
    for child in psutil.Process().children(recursive=True):
        try:
            kind = "jvm" if "java" in child.name() else "workers"
            held[kind] += child.memory_info().rss / MIB
        except psutil.NoSuchProcess:
            continue
    return held


def disk(folder: str) -> tuple[float, int]:
    """MiB and number of files below a folder."""
    sizes = []
    for file in Path(folder).rglob("*"):
        try:
            sizes.append(file.stat().st_size if file.is_file() else 0)
        except FileNotFoundError:
            continue
    return sum(sizes) / MIB, len(sizes)


def main() -> None:
    """Stream, note, compare and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rows", type=int, default=1000, help="ratings a trigger")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between triggers")
    given = parser.parse_args()
    # else workers start whatever python3 the PATH has
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    spark = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.driver.memory", "1g")
        .config("spark.sql.shuffle.partitions", 2)
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    folder = tempfile.TemporaryDirectory(prefix="soak-")
    als = StreamingBiasedALS(userCol="user", itemCol="item", timestampCol="time")
    path = f"{folder.name}/model"
    trigger = {"processingTime": f"{int(given.every * 1000)} milliseconds"}
    job = als.fitStream(generated(spark, given.rows), path, trigger=trigger)
    start = time.monotonic()
    notes: list[dict[str, float]] = []
    try:
        while time.monotonic() - start < 60.0 * given.minutes:
            if job.awaitTermination(10.0):
                sys.exit("the stream ended")
            # recentProgress holds the last hundred triggers
            took = [p["durationMs"]["triggerExecution"] for p in job.query.recentProgress[-10:]]
            size, files = disk(folder.name)
            notes.append(
                {"minute": (time.monotonic() - start) / 60.0, "diskMiB": size, "files": files}
                | resident()
                | {"triggerMs": statistics.median(took) if took else float("nan")}
            )
            if len(notes) % 30 == 0:
                print({name: round(value, 1) for name, value in notes[-1].items()}, flush=True)
    finally:
        job.stop()
    learned = int(job.metrics().ratings.sum())
    last = notes[-1]["minute"]
    early = [note for note in notes if 10.0 <= note["minute"] < 20.0] or notes[: len(notes) // 3]
    late = [note for note in notes if note["minute"] >= last - 10.0]
    print(f"\n{learned:,} ratings learned in {last:.0f} minutes; medians of ten minutes")
    print(f"{'':12}{'minute 10':>12}{'the end':>12}{'change':>9}")
    table = {}
    for name in ("driver", "jvm", "workers", "triggerMs", "diskMiB", "files"):
        a, b = (statistics.median(note[name] for note in part) for part in (early, late))
        table[name] = {"early": a, "late": b}
        print(f"{name:12}{a:12.1f}{b:12.1f}{b / a - 1.0 if a else 0.0:9.1%}")
    OUT.parent.mkdir(exist_ok=True)
    found = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "ratings": learned,
        "medians": table,
        "notes": notes,
    }
    OUT.write_text(json.dumps(found, indent=2) + "\n")
    spark.stop()
    folder.cleanup()


if __name__ == "__main__":
    main()
