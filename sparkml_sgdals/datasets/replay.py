"""Ratings of a file as a stream: so many every so many seconds, in time order (no Spark)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import pyarrow.parquet as pq

from sparkml_sgdals.extras import install

__all__ = ["FolderSink", "KafkaSink", "Sink", "read_ordered", "replay"]


class Sink(Protocol):
    """Where ratings go."""

    def send(self, rows: pd.DataFrame) -> None:
        """Deliver rows, durably, before it returns."""


class FolderSink:
    """Each batch is a file of JSON lines in a folder, there as a whole or not at all."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        taken = [int(p.stem[7:]) for p in folder.glob("replay-*.json") if p.stem[7:].isdigit()]
        self._number = max(taken, default=-1) + 1

    def send(self, rows: pd.DataFrame) -> None:
        """Write the next file."""
        name = f"replay-{self._number:08d}.json"
        # Spark does not look at names with a dot in front
        scratch = self._folder / f".{name}"
        with scratch.open("w", encoding="utf-8") as file:
            file.write(rows.to_json(orient="records", lines=True, date_format="iso"))
            file.flush()
            os.fsync(file.fileno())
        scratch.rename(self._folder / name)
        self._number += 1


class KafkaSink:
    """Each rating is a JSON message on a topic, sent by an idempotent producer.

    Raises
    ------
    ImportError
        confluent-kafka is not installed
    OSError
        no broker answers, or it did not take a message
    """

    def __init__(self, address: str, topic: str, seconds: float = 30.0) -> None:
        try:
            from confluent_kafka import KafkaException, Producer
        except ImportError as missing:
            raise ImportError(f"Kafka needs confluent-kafka: {install('kafka')}") from missing
        settings: dict[str, Any] = {"bootstrap.servers": address, "enable.idempotence": True}
        self._producer = Producer(settings | {"log_level": 3})
        self._topic, self._seconds = topic, seconds
        try:
            self._producer.list_topics(timeout=seconds)
        except KafkaException as error:
            raise OSError(f"No Kafka answers at {address} ({error.args[0].str()}).") from error

    def send(self, rows: pd.DataFrame) -> None:
        """Send a message a rating, and wait until the broker has them."""
        failed: list[str] = []

        def delivered(error: Any, message: Any) -> None:
            if error is not None:
                failed.append(error.str())

        for line in rows.to_json(orient="records", lines=True, date_format="iso").splitlines():
            while True:
                try:
                    self._producer.produce(self._topic, line.encode(), on_delivery=delivered)
                    break
                except BufferError:
                    self._producer.poll(0.1)
            self._producer.poll(0)
        left = self._producer.flush(self._seconds)
        if failed or left:
            reason = failed[0] if failed else f"no answer in {self._seconds:g} s"
            raise OSError(f"{len(failed) + left} ratings did not reach Kafka ({reason}).")


def read_ordered(file: Path, time_column: str) -> pd.DataFrame:
    """Read a file of ratings (.parquet, .csv, .json of lines) in the order of a column.

    An empty `time_column` leaves the file's own order. Raises FileNotFoundError and ValueError
    (another kind of file, no such column).
    """
    if not file.exists():
        raise FileNotFoundError(f"There is no {file}.")
    kind = file.suffix.lower()
    rows: pd.DataFrame
    if kind == ".parquet" or file.is_dir():
        rows = pq.read_table(file).to_pandas()
    elif kind == ".csv":
        rows = pd.read_csv(file)
    elif kind in (".json", ".jsonl"):
        # a column called timestamp would become dates
        rows = pd.read_json(file, lines=True, convert_dates=False)
    else:
        raise ValueError(f"{file} is of no known kind: .parquet, .csv, .json or .jsonl.")
    if not time_column:
        return rows
    if time_column not in rows.columns:
        raise ValueError(f"{file} has no column {time_column!r}; it has {', '.join(rows.columns)}.")
    return rows.sort_values(time_column, kind="stable", ignore_index=True)


def replay(
    rows: pd.DataFrame,
    sink: Sink,
    batch: int,
    every: float,
    wait: Callable[[float], None] = time.sleep,
) -> Iterator[int]:
    """Send `batch` rows every `every` seconds; yields how many were sent so far.

    Raises ValueError where `batch` is below 1 or `every` below 0.
    """
    if batch < 1:
        raise ValueError(f"A batch must hold at least 1 rating, got {batch}.")
    if every < 0:
        raise ValueError(f"The seconds between batches must be at least 0, got {every}.")
    due = time.monotonic()
    for start in range(0, len(rows), batch):
        part = rows.iloc[start : start + batch]
        sink.send(part)
        yield start + len(part)
        due += every
        if start + batch < len(rows):
            wait(max(0.0, due - time.monotonic()))
