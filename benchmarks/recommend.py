"""Time transform and recommendations against Spark's ALSModel: `make bench`, or
python benchmarks/recommend.py [--runs 5] [--all-runs 1] [--only WAY ...].

270,000 users and 45,000 items at rank 10; ours starts from the ALSModel's own factors, so that both
work on the same numbers:

    transform                of 2.6 million pairs, each user's and item's ids in random order
    recommendForAllUsers     ten items for each of the 270,000 users
    recommendForUserSubset   ten items for each of 27,000 users
    candidates               ten of 100 items of its own for each of 27,000 users, against ten
                             of all; ours alone, as ALSModel has no such thing

Both warm, in turns; the results are written to Spark's noop sink. The pairs lie in Parquet.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from generate import ratings_count
from harness import cores, in_turns, session, write
from pyspark.ml.recommendation import ALS
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from sparkml_sgdals import StreamingBiasedALSModel

TRANSFORM, ALL, SUBSET = "transform", "recommendForAllUsers", "recommendForUserSubset"
CANDIDATES = "candidates"
OF_EACH = 100
OURS, THEIRS = "ours", "ALSModel"
RANK = 10


def run(frame: DataFrame) -> None:
    """Work out all rows and keep none."""
    frame.write.format("noop").mode("overwrite").save()


def main() -> None:
    """Measure, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="of transform and of the subset")
    parser.add_argument("--all-runs", type=int, default=1, help="of ALSModel for all users")
    parser.add_argument("--users", type=int, default=270_000)
    parser.add_argument("--items", type=int, default=45_000)
    parser.add_argument("--pairs", type=ratings_count, default=2_600_000)
    parser.add_argument("--only", nargs="+", choices=[TRANSFORM, ALL, SUBSET, CANDIDATES],
                        default=[TRANSFORM, SUBSET, CANDIDATES, ALL], metavar="WAY")  # fmt: skip
    given = parser.parse_args()
    spark = session("4g", spark__sql__shuffle__partitions=2 * cores())
    # every user and every item has a few ratings: only the sizes matter here
    ratings = spark.range(2 * max(given.users, given.items)).select(
        (F.col("id") % given.users).cast("int").alias("user"),
        (F.col("id") % given.items).cast("int").alias("item"),
        (1 + 4 * F.rand(seed=1)).alias("rating"),
    )
    theirs = ALS(userCol="user", itemCol="item", rank=RANK, maxIter=2, seed=1).fit(ratings)
    ours = StreamingBiasedALSModel.fromALS(theirs)
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    largest = 0.0

    def compare(name: str, work: Callable[[Any], DataFrame], runs: int, warm: bool) -> None:
        ways = {
            f"{name}: {way}": lambda model=model: run(work(model))
            for way, model in ((THEIRS, theirs), (OURS, ours))
        }
        if warm:
            for way in ways.values():
                way()
        found = in_turns(ways, runs)
        rows.extend(found)
        ratios[name] = found[0]["median"] / found[1]["median"]

    with tempfile.TemporaryDirectory(prefix="recommend-") as scratch:
        if TRANSFORM in given.only:
            path = str(Path(scratch, "pairs"))
            spark.range(given.pairs, numPartitions=2 * cores()).select(
                F.floor(given.users * F.rand(seed=2)).cast("int").alias("user"),
                F.floor(given.items * F.rand(seed=3)).cast("int").alias("item"),
            ).write.parquet(path)
            pairs = spark.read.parquet(path)
            compare(TRANSFORM, lambda model: model.transform(pairs), given.runs, True)
            # they rank the same numbers: else the comparison says nothing
            both = theirs.transform(pairs).withColumnRenamed("prediction", "theirs")
            apart = F.max(F.abs(F.col("prediction") - F.col("theirs")))
            largest = float(ours.transform(both).select(apart).first()[0] or 0.0)
        some = ratings.select("user").where(F.col("user") % 10 == 0).distinct().cache()
        print(f"{some.count():,} of {given.users:,} users x {given.items:,} items, rank {RANK}")
        if SUBSET in given.only:
            subset = lambda model: model.recommendForUserSubset(some, 10)  # noqa: E731
            compare(SUBSET, subset, given.runs, True)
        if CANDIDATES in given.only:
            path = str(Path(scratch, "candidates"))
            some.crossJoin(spark.range(OF_EACH).select()).select(
                "user", F.floor(given.items * F.rand(seed=4)).cast("int").alias("item")
            ).repartition(2 * cores()).write.parquet(path)
            own = spark.read.parquet(path)
            ways = {
                f"{CANDIDATES}: all items": lambda: run(ours.recommendForUserSubset(some, 10)),
                f"{CANDIDATES}: {OF_EACH} of each": lambda: run(
                    ours.recommendForUserSubset(some, 10, candidates=own)
                ),
            }
            for way in ways.values():
                way()
            found = in_turns(ways, given.runs)
            rows.extend(found)
            ratios[CANDIDATES] = found[0]["median"] / found[1]["median"]
        if ALL in given.only:
            # warm by the subset: the same code, and a run of ALSModel takes minutes
            whole = lambda model: model.recommendForAllUsers(10)  # noqa: E731
            compare(ALL, whole, given.all_runs, SUBSET not in given.only)
    spark.stop()
    write(
        "recommend", rows, ratios, users=given.users, items=given.items, pairs=given.pairs,
        rank=RANK, largestDifference=largest,
    )  # fmt: skip


if __name__ == "__main__":
    main()
