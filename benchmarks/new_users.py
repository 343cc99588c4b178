"""Time recommendForRatings: people whom the model does not know, ranked for from their ratings.

python benchmarks/new_users.py [--users 50000] [--ratings 20] [--items 10000] [--rank 16] [--runs 3]

The model's factors are drawn at random; ratings lie in Parquet, each user's spread over the files.
The lists of ten are written to Spark's noop sink. Users a second are those of the median run, with
Spark's own overhead in it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from harness import cores, in_turns, session, write
from pyspark.sql import functions as F

from sparkml_sgdals import StreamingBiasedALS, StreamingBiasedALSModel
from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.state.model_state import ModelState


def known(items: int, rank: int) -> ModelState:
    """A model of so many items, from three ratings of each."""
    rng = np.random.default_rng(1)
    state = ModelState.empty(StreamingBiasedALS(rank=rank).settings(), "int", "int")
    table = pa.table(
        {
            "user": pa.array(rng.integers(0, items // 10, 3 * items)),
            "item": pa.array(np.tile(np.arange(items), 3)),
            "rating": pa.array(rng.integers(1, 6, 3 * items).astype(np.float32)),
        }
    )
    learn_batch(state, encode_ratings(table))
    return state


def main() -> None:
    """Measure, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--users", type=int, default=50_000)
    parser.add_argument("--ratings", type=int, default=20, help="of each user")
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    spark = session("3g", spark__sql__shuffle__partitions=2 * cores())
    model = StreamingBiasedALSModel(known(given.items, given.rank), ("int", "int"))
    with tempfile.TemporaryDirectory(prefix="new-users-") as scratch:
        path = str(Path(scratch, "ratings"))
        spark.range(given.users * given.ratings, numPartitions=2 * cores()).select(
            (F.col("id") % given.users + 10**6).alias("user"),
            F.floor(given.items * F.rand(seed=2)).cast("int").alias("item"),
            (1 + F.floor(5 * F.rand(seed=3))).cast("float").alias("rating"),
        ).write.parquet(path)
        ratings = spark.read.parquet(path)

        def rank() -> None:
            found = model.recommendForRatings(ratings, 10)
            found.write.format("noop").mode("overwrite").save()

        rank()
        rows = in_turns({"recommendForRatings": rank}, given.runs)
    spark.stop()
    a_second = given.users / rows[0]["median"]
    print(f"{a_second:,.0f} users a second on {cores()} cores")
    write("new_users", rows, {"usersASecond": a_second}, **vars(given))


if __name__ == "__main__":
    main()
