"""Make the golden models of the present storage format: python tests/golden/make.py

Run it once for a new FORMAT_VERSION, and commit the new folder format-N: tests/spark/test_golden.py
loads every one there is. A folder that exists is not written again, as its files stand for models
that users have saved.

    format-N/model/         a saved model: ids as strings and integers, some Params set
    format-N/path/          a model path: two versions of a stream, without Spark's checkpoint
    format-N/runs/          the same with ten ids in memory, from the saved model
    format-N/expected.json  Params, predictions, and predictions after one update
    features-N/             model and expected.json of one that knows items by their features
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import SparkSession

from sparkml_sgdals import StreamingBiasedALS, StreamingBiasedALSModel, __version__
from sparkml_sgdals.store.commit import FORMAT_VERSION

HERE = Path(__file__).resolve().parent
SCHEMA = "user string, item int, rating double, time long"
UPDATE = [("u3", 7, 5.0, 9_000), ("new", 7, 1.0, 9_001), ("u3", 99, 2.0, 9_002)]
"""known and new ids, learned in the test as well"""
PAIRS = [(f"u{n}", 3 + n % 9) for n in range(12)] + [("u3", 99), ("new", 7), ("none", -1)]


def ratings() -> pd.DataFrame:
    """300 ratings of 25 users and 15 items."""
    rng = np.random.default_rng(5)
    users, items = rng.integers(0, 25, 300), rng.integers(0, 15, 300)
    taste = rng.normal(0, 0.8, (25, 2)), rng.normal(0, 0.8, (15, 2))
    values = 3.4 + (taste[0][users] * taste[1][items]).sum(axis=1) + rng.normal(0, 0.3, 300)
    return pd.DataFrame(
        {
            "user": [f"u{n}" for n in users],
            "item": items.astype(np.int32),
            "rating": np.clip(np.round(values * 2) / 2, 0.5, 5.0),
            "time": np.arange(1_000, 1_300),
        }
    )


def described(model: StreamingBiasedALSModel, spark: SparkSession) -> dict[str, Any]:
    """What the test compares."""
    pairs = spark.createDataFrame(PAIRS, "user string, item int")
    scored = model.copy({model.predictionStdCol: "std"}).transform(pairs)
    rows = {(row.user, row.item): row for row in scored.collect()}
    column = model.getPredictionCol()
    return {
        "uid": model.uid,
        "version": model.version,
        "rank": model.rank,
        "idTypes": list(model.idTypes),
        "globalMean": model.globalMean,
        "ratings": model.state.counters.ratings,
        "params": {param.name: value for param, value in model._paramMap.items()},
        "predictions": [
            [*pair, float(rows[pair][column]), float(rows[pair]["std"])] for pair in PAIRS
        ],
    }


def films() -> pd.DataFrame:
    """What is known of the items, and of one that nobody has rated."""
    items = [*range(15), 99]
    genres = ["Comedy|Drama" if n % 3 else "War" for n in items]
    return pd.DataFrame({"item": items, "genres": genres, "year": [1980.0 + n % 7 for n in items]})


def featured(spark: SparkSession, folder: Path) -> None:
    """Write a model with features of items, one of which nobody has rated."""
    about = spark.createDataFrame(films(), "item int, genres string, year double")
    als = StreamingBiasedALS(rank=3, timestampCol="time", seed=9)
    model = als.setItemFeatures(about).fit(spark.createDataFrame(ratings(), SCHEMA))
    model = model.withItems(about)
    model.write().save(str(folder / "model"))
    expected: dict[str, Any] = {"release": __version__, "model": described(model, spark)}
    weights = model.featureWeights.toPandas()
    expected["weights"] = {row.feature: float(row.bias) for row in weights.itertuples()}
    model.update(spark.createDataFrame(UPDATE, SCHEMA))
    expected["model updated"] = described(model, spark)
    write_expected(folder, expected)


def write_expected(folder: Path, expected: dict[str, Any]) -> None:
    """Write what the test compares."""
    text = json.dumps(expected, indent=1, ensure_ascii=False)
    (folder / "expected.json").write_text(text + "\n", encoding="utf-8")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{folder}: {size / 1000:.0f} kB")


def main() -> None:
    """Write the folders of the present format that are not there."""
    folder = HERE / f"format-{FORMAT_VERSION}"
    features = HERE / f"features-{FORMAT_VERSION}"
    if folder.exists() and features.exists():
        sys.exit(f"{folder} is there already: golden models are made once a format.")
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    spark = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.shuffle.partitions", 1)
        .getOrCreate()
    )
    if not features.exists():
        featured(spark, features)
    if not folder.exists():
        plain(spark, folder)
    spark.stop()


def plain(spark: SparkSession, folder: Path) -> None:
    """Write a saved model, and two model paths."""
    table = ratings()
    als = StreamingBiasedALS(rank=3, timestampCol="time", predictionCol="score", seed=9)
    als.setColdStartStrategy("bias").setClipPredictions(False)
    model = als.fit(spark.createDataFrame(table, SCHEMA))
    model.write().save(str(folder / "model"))
    expected: dict[str, Any] = {"release": __version__, "model": described(model, spark)}
    more = spark.createDataFrame(UPDATE, SCHEMA)
    expected["model updated"] = described(model.update(more), spark)

    start = StreamingBiasedALSModel.load(str(folder / "model")).setMaxResidentIds(10)
    with tempfile.TemporaryDirectory() as incoming:
        for number in range(2):
            part = table.iloc[number * 150 : (number + 1) * 150]
            file = Path(incoming, f"{number}.csv")
            part.to_csv(file, index=False, header=False)
            # the file source goes by modification time
            os.utime(file, (1_000_000_000 + number,) * 2)
        for name, learner in (("path", als.fitStream), ("runs", start.updateStream)):
            stream = spark.readStream.schema(SCHEMA).option("maxFilesPerTrigger", 1).csv(incoming)
            path = folder / name
            learner(stream, str(path), trigger={"availableNow": True}).awaitTermination()
            shutil.rmtree(path / "checkpoint")
            (path / "lease.json").unlink(missing_ok=True)
            for version in (1, 2):
                found = StreamingBiasedALSModel.load(str(path), version)
                expected[f"{name} {version}"] = described(found, spark)
    write_expected(folder, expected)


if __name__ == "__main__":
    main()
