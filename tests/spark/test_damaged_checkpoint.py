"""Whatever is changed of a checkpoint that holds event ids is named, or does nothing.

Spark itself reads it, and events are sent again: those of before are learned no second time.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from damaging import change
from helpers import ONCE

from sparkml_sgdals import StreamingBiasedALS
from sparkml_sgdals.errors import StorageError

SCHEMA = "user long, item long, rating double, time timestamp, event string"


class Made:
    """A path of some batches, one of others, and the stream of both sent again with new events."""

    def __init__(self, spark: Any, root: Path, small: pd.DataFrame) -> None:
        frame = small.iloc[:700].copy()
        times = pd.Timestamp("2024-05-01") + pd.to_timedelta(range(700), "s")
        frame["time"] = times.astype("datetime64[us]")
        frame["event"] = [f"e{n}" for n in range(700)]
        self.spark, self.source = spark, root / "in"
        self.als = StreamingBiasedALS(timestampCol="time", rank=2)
        self.path, self.other = root / "m", root / "other"
        for path, first in ((self.path, 0), (self.other, 50)):
            self.source = root / f"in-{path.name}"
            self.source.mkdir()
            for number in range(3):
                self.put(frame.iloc[first + number * 150 :][:150], number)
                self.learn(path)
        self.source = root / f"in-{self.path.name}"
        self.put(pd.concat([frame[300:450], frame[450:550]]), 3)
        self.root = root

    def put(self, frame: pd.DataFrame, number: int) -> None:
        frame.to_parquet(self.source / f"{number}.parquet", coerce_timestamps="us")

    def learn(self, path: Path) -> list[int]:
        reader = self.spark.readStream.schema(SCHEMA).option("maxFilesPerTrigger", 1)
        stream = reader.parquet(str(self.source))
        job = self.als.fitStream(
            stream, str(path), trigger=ONCE, eventIdCol="event", watermark="5 minutes"
        )
        job.awaitTermination()
        ratings = job.metrics().ratings
        return [count for count in ratings if count]

    def changed(self, seed: int) -> tuple[str, list[int] | None]:
        """Change a copy and go on with it: what was done, and what was learned, None for named."""
        path = self.root / "copy"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.path, path)
        told = change(random.Random(seed), path / "checkpoint", [self.other / "checkpoint"])
        try:
            return told, self.learn(path)
        except StorageError:
            return told, None


@pytest.fixture(scope="module")
def made(
    spark: Any, small: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Made]:
    old = spark.conf.get("spark.sql.shuffle.partitions")
    spark.conf.set("spark.sql.shuffle.partitions", "2")
    yield Made(spark, tmp_path_factory.mktemp("damage"), small)
    spark.conf.set("spark.sql.shuffle.partitions", old)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seeds", [range(8), range(100, 160)], ids=len)
def test_no_change_has_events_learned_twice(made: Made, seeds: range) -> None:
    named = 0
    for seed in seeds:
        told, learned = made.changed(seed)
        assert learned in (None, [150, 150, 150, 100]), f"seed {seed}: {told}"
        named += learned is None
    assert named
