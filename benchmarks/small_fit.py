"""Time our fit of small tables against Spark's ALS, warm and cold: `make bench`, or
python benchmarks/small_fit.py [--runs 5] [--cold-runs 3] [--ratings 1M].

Two tables: 80% of MovieLens latest-small (from the folder in SPARKML_SGDALS_DATA), and 90% of a
million ratings of benchmarks/generate.py. Both lie in Parquet and nothing is cached; rank 10; ALS
with 10 iterations at its best regParam for each, ours with its default of a filter pass and 5
sweeps. ALS runs twice: as it comes, and with as many blocks as there are cores, which suits few
ratings better. All take turns, so that a busy moment of the machine hits each of them.

Warm is a fit in a session where each has run before. Cold is the first fit in a fresh process, from
the import of the estimator on, in a session that has done nothing yet: the workers' start and the
loading of compiled kernels count, the start of Spark itself, which is the same for all, does not.
Kernels are compiled once for an installation; `first ever` is a cold fit with an empty cache.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from generate import ratings_count, write_ratings
from harness import cores, cpu_seconds, in_turns, row, session, write
from pyspark.sql import functions as F

OURS, THEIRS, THEIRS_IN_BLOCKS = "StreamingBiasedALS", "ALS", "ALS, a block a core"
WAYS = (THEIRS, THEIRS_IN_BLOCKS, OURS)


def estimator(way: str, reg_param: float, timed: bool) -> Any:
    """The estimator of a way; its modules are imported here and not before."""
    columns = {"userCol": "userId", "itemCol": "movieId"}
    if way == OURS:
        from sparkml_sgdals import StreamingBiasedALS

        found = StreamingBiasedALS(rank=10, **columns)
        return found.setTimestampCol("timestamp") if timed else found
    from pyspark.ml.recommendation import ALS

    als = ALS(rank=10, maxIter=10, regParam=reg_param, seed=1, **columns)
    return als.setNumBlocks(cores()) if way == THEIRS_IN_BLOCKS else als


def cold(way: str, path: str, reg_param: float, has_time: bool) -> dict[str, float]:
    """Seconds of the first fit of this process, by the clock and of CPU."""
    spark = session()
    table = spark.read.parquet(path)
    clock, cpu = time.perf_counter(), cpu_seconds()
    estimator(way, reg_param, has_time).fit(table)
    found = {"seconds": time.perf_counter() - clock, "cpu": cpu_seconds() - cpu}
    spark.stop()
    return found


def cold_in_process(
    way: str, path: Path, reg_param: float, has_time: bool, env: dict[str, str]
) -> dict[str, float]:
    """The same in a fresh process."""
    asked = json.dumps([way, str(path), reg_param, has_time])
    done = subprocess.run(
        [sys.executable, __file__, "--cold-fit", asked], env=os.environ | env, check=True,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    took = f"{found['seconds']:.2f} s, {found['cpu']:.2f} s of CPU"
    print(f"  {way}, cold: {took}", file=sys.stderr, flush=True)
    return found


def tables(folder: Path, ratings: int) -> dict[str, tuple[Path, Path, float, bool]]:
    """Training and held-out Parquet of each set, ALS's best regParam, and whether time is used."""
    file = Path(os.environ.get("SPARKML_SGDALS_DATA", ""), "ml-latest-small", "ratings.csv")
    if not file.is_file():
        sys.exit("Set SPARKML_SGDALS_DATA to a folder that holds ml-latest-small/ratings.csv.")
    small = pd.read_csv(file).astype({"userId": "int32", "movieId": "int32"})
    held_out = np.random.default_rng(42).random(len(small)) < 0.2
    train, test = small[~held_out], small[held_out]
    test = test[test.userId.isin(train.userId) & test.movieId.isin(train.movieId)]
    train.to_parquet(folder / "small-train.parquet", index=False)
    test.to_parquet(folder / "small-test.parquet", index=False)
    write_ratings(folder / "made", ratings)
    small_files = (folder / "small-train.parquet", folder / "small-test.parquet")
    # named so that no other size passes for a million
    made = "1 million" if ratings == 10**6 else f"{ratings:,} ratings"
    return {
        "ml-latest-small": (*small_files, 0.15, True),
        made: (folder / "made" / "train", folder / "made" / "test", 0.05, False),
    }


def main() -> None:
    """Measure, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="warm runs of each")
    parser.add_argument("--cold-runs", type=int, default=3, help="fresh processes of each")
    parser.add_argument("--ratings", type=ratings_count, default=1_000_000)
    parser.add_argument("--first-ever", action="store_true", help="also with an empty cache")
    parser.add_argument("--cold-fit", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.cold_fit:
        print(json.dumps(cold(*given.cold_fit)))
        return
    with tempfile.TemporaryDirectory(prefix="small-fit-") as scratch:
        measure(given, Path(scratch))


def measure(given: argparse.Namespace, scratch: Path) -> None:
    """All tables, warm and cold."""
    sets = tables(scratch, given.ratings)
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    rmse: dict[str, dict[str, float]] = {}

    def add(name: str, temperature: str, found: list[dict[str, Any]]) -> None:
        median = {one["label"]: one["median"] for one in found}
        for one in found:
            rmse_of = rmse.get(name, {}).get(one["label"])
            rows.append(
                one
                | {"label": f"{name}, {temperature}: {one['label']}"}
                | {"ratio": one["median"] / median[OURS], "rmse": rmse_of}
            )
        for way in (THEIRS, THEIRS_IN_BLOCKS):
            suffix = "" if way == THEIRS else f": {way}"
            ratios[f"{name}, {temperature}{suffix}"] = median[way] / median[OURS]

    # these come first: no session of this process is in their way
    for name, (train, _, reg_param, has_time) in sets.items():
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        # the first process of an installation compiles, and the files come into memory
        cold_in_process(OURS, train, reg_param, has_time, {})
        for _ in range(given.cold_runs):
            for way in WAYS:
                found[way].append(cold_in_process(way, train, reg_param, has_time, {}))
        add(name, "cold", [
            row(way, [one["seconds"] for one in of_way], [one["cpu"] for one in of_way])
            for way, of_way in found.items()
        ])  # fmt: skip
    if given.first_ever:
        with tempfile.TemporaryDirectory(dir=scratch) as cache:
            train, _, reg_param, has_time = sets["ml-latest-small"]
            env = {"NUMBA_CACHE_DIR": cache}
            one = cold_in_process(OURS, train, reg_param, has_time, env)
        rows.append(row("ml-latest-small, first ever: " + OURS, [one["seconds"]], [one["cpu"]]))

    spark = session()
    for name, (train, test, reg_param, has_time) in sets.items():
        table, held = spark.read.parquet(str(train)), spark.read.parquet(str(test))
        print(f"{name}: {table.count():,} ratings to learn, {held.count():,} held out")
        ways = {way: estimator(way, reg_param, has_time) for way in WAYS}
        clipped = F.greatest(F.lit(0.5), F.least(F.lit(5.0), F.col("prediction")))
        rmse[name] = {}
        for way, one in ways.items():
            predictions = one.setColdStartStrategy("drop").fit(table).transform(held)
            error = predictions.select(F.sqrt(F.avg((clipped - F.col("rating")) ** 2))).first()
            rmse[name][way] = float(error[0])
            one.fit(table)
        fits = {way: lambda one=one, table=table: one.fit(table) for way, one in ways.items()}
        add(name, "warm", in_turns(fits, given.runs))
    spark.stop()
    for one in rows:
        name, _, way = one["label"].partition(": ")
        one["rmse"] = rmse[name.rpartition(",")[0]].get(way)
    write("small_fit", rows, ratios, made=given.ratings)


if __name__ == "__main__":
    main()
