"""What features cost a fit: python benchmarks/features.py [--ratings 20M] [--spark].

Ratings of generate.py, so many to learn; each item has `--each` of `--columns` sparse columns, the
popular ones as words of a text are. Fits with them and without take turns: of arrays in memory,
without Spark, and with --spark by `fit` of Parquet files and a table of vectors beside. Told are
seconds by the clock and of the processor; the clock says something on a quiet machine alone.
Writes out/features.json.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np
import pandas as pd
import pyarrow as pa
from generate import TEST_SHARE, ratings_count, write_ratings
from large_fit import COLUMNS, read_columns

from sparkml_sgdals import StreamingBiasedALS
from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.arrays.sparse_rows import SparseRows, vector_schema
from sparkml_sgdals.learn.whole_table import fit_ratings
from sparkml_sgdals.state.model_state import ModelState

WITHOUT, WITH = "without features", "with features"


def sparse_columns(ids: Any, columns: int, each: int) -> tuple[list[list[int]], list[list[float]]]:
    """Return places and values of each id: place x as often as 1 / (x + 5)."""
    rng = np.random.default_rng(3)
    shares = 1.0 / (np.arange(columns) + 5.0)
    # the greatest of these are draws without replacement (Efraimidis and Spirakis 2006)
    draws = np.log(rng.random((len(ids), columns))) / shares
    places = np.sort(np.argpartition(draws, -each, axis=1)[:, -each:], axis=1)
    return places.tolist(), np.ones(places.shape).tolist()


def ratios(rows: list[harness.Row]) -> dict[str, float]:
    """Time with features to that without: medians by the clock and of the processor."""
    by = {row["label"]: row for row in rows}
    found = {}
    for label, row in by.items():
        if label.startswith(WITH):
            plain = by[label.replace(WITH, WITHOUT)]
            found[f"{label}, to {WITHOUT}, by the clock"] = row["median"] / plain["median"]
            found[f"{label}, to {WITHOUT}, CPU"] = row["medianCpu"] / plain["medianCpu"]
    return found


def main() -> None:
    """Fit by turns, and write."""
    parser = argparse.ArgumentParser(description="What features cost a fit.")
    parser.add_argument("--ratings", type=ratings_count, default=20_000_000, help="to learn")
    parser.add_argument("--columns", type=int, default=1000)
    parser.add_argument("--each", type=int, default=10, help="columns that an item has")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the ratings lie, or are to be made")
    parser.add_argument("--spark", action="store_true", help="by Spark besides")
    parser.add_argument("--memory", default="6g", help="of the driver")
    given = parser.parse_args()
    made = round(given.ratings / (1.0 - TEST_SHARE))
    folder = given.folder or Path(tempfile.gettempdir(), f"ratings-{made}")
    truth = write_ratings(folder, made)
    cores = harness.cores()
    places, values = sparse_columns(truth.item_ids, given.columns, given.each)
    table = {
        "id": truth.item_ids.astype(np.int64), "size": [given.columns] * len(places),
        "indices": places, "values": values,
    }  # fmt: skip
    vectors, _ = SparseRows.of(pa.table(table, schema=vector_schema("int")))
    als = StreamingBiasedALS(rank=given.rank, **COLUMNS)
    rated = read_columns(folder)

    def in_memory(known: SparseRows | None, rows: pa.Table) -> None:
        state = ModelState.empty(als.settings(), "int", "int")
        fit_ratings(encode_ratings(rows, cores), state, cores, features=(None, known))

    for known in (None, vectors):
        in_memory(known, rated[:100_000])
    ways: dict[str, Callable[[], Any]] = {
        WITHOUT: lambda: in_memory(None, rated), WITH: lambda: in_memory(vectors, rated),
    }  # fmt: skip
    rows = harness.in_turns(ways, given.runs)
    learned = rated.num_rows
    if given.spark:
        spark = harness.session(given.memory)
        train = spark.read.parquet(str(folder / "train"))
        about = pd.DataFrame({name: table[name] for name in ("size", "indices", "values")})
        about = pd.DataFrame({"movieId": table["id"], "vector": about.to_dict("records")})
        schema = (
            "movieId long, vector struct<size: int, indices: array<int>, values: array<double>>"
        )
        beside = str(folder / "features")
        spark.createDataFrame(about, schema).write.mode("overwrite").parquet(beside)
        named = als.copy().setItemFeatures(spark.read.parquet(beside))
        for estimator in (als, named):
            estimator.fit(train.limit(100_000))
        rows += harness.in_turns(
            {
                f"{WITHOUT}, by Spark": lambda: als.fit(train),
                f"{WITH}, by Spark": lambda: named.fit(train),
            },
            given.runs,
        )
        spark.stop()
    harness.write(
        "features", rows, ratios(rows), ratings=learned, items=len(places),
        columns=given.columns, each=given.each, rank=given.rank, cores=cores,
    )  # fmt: skip


if __name__ == "__main__":
    main()
