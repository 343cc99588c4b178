"""Where the killed streams read from: to plug another source in, add a class to SOURCES.

A source is made by the harness (`prepare`, once for all runs) and read by each started program
(`read`); what passes between the two is JSON. Batch n has to hold the same ratings in every run.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

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


SOURCES: dict[str, Source] = {"files": Files()}
