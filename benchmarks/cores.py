"""What more cores give a fit, part by part: python benchmarks/cores.py [--ratings 26M].

90% of the ratings of benchmarks/generate.py, rank 10. Without Spark, on columns in memory, with 1,
2, 4, 8 and 16 threads, as many as there are cores: seconds by the clock and of all processors by
part (encode, layouts, filter, influences, half-sweeps, noise by id, and the rest), and whether all
have learned the same bits. Then under local[N] from Parquet, with Spark's ALS beside it (10
iterations, regParam 0.05, a block a core). Runs take turns. More threads than cores tell nothing
of speed, but that the bits are the same.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from generate import ratings_count, write_ratings
from harness import Row, row, session, timed, write
from pyspark.ml.recommendation import ALS
from pyspark.sql import functions as F

from sparkml_sgdals import StreamingBiasedALS
from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.learn import whole_table
from sparkml_sgdals.learn.influences import InfluencePrior
from sparkml_sgdals.ml.params import default_settings
from sparkml_sgdals.state.model_state import ModelState

RANK = 10
COLUMNS = {"userCol": "userId", "itemCol": "movieId"}
PARTS = {
    "layouts": [(whole_table._Work, "_layout")],
    "filter": [(whole_table, "cut_strata"), (whole_table._Work, "_filter_cells")],
    "half-sweeps": [(whole_table, "half_sweep")],
    "influences": [(InfluencePrior, name) for name in ("start", "learn_items", "learn_users")],
    "noise by id": [(whole_table, "learn_noise_of_table")],
}
"""what is called for each part, from one thread, one after another"""
Times = dict[str, list[float]]


@contextmanager
def part(times: Times, name: str) -> Iterator[None]:
    """Add the seconds of what runs meanwhile, by the clock and of this process's threads."""
    clock, busy = time.perf_counter(), time.process_time()
    yield
    took = times.setdefault(name, [0.0, 0.0])
    took[0] += time.perf_counter() - clock
    took[1] += time.process_time() - busy


def counted(times: Times, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that adds its own time."""

    def call(*given: Any, **named: Any) -> Any:
        with part(times, name):
            return function(*given, **named)

    return call


def learn(columns: pa.Table, threads: int) -> tuple[ModelState, Times]:
    """Learn a table without Spark; seconds by part."""
    times: Times = {}
    with ExitStack() as stack:
        for name, places in PARTS.items():
            for place, attribute in places:
                own = counted(times, name, getattr(place, attribute))
                # as a plain function, which a class binds to its objects
                stack.enter_context(mock.patch.object(place, attribute, own))
        with part(times, "whole"):
            with part(times, "encode"):
                ratings = encode_ratings(columns, threads)
            state = ModelState.empty(default_settings(rank=RANK), "int", "int")
            whole_table.fit_ratings(ratings, state, threads)
    known = [times[name] for name in ("encode", *PARTS) if name in times]
    times["rest"] = [times["whole"][n] - sum(some[n] for some in known) for n in (0, 1)]
    return state, times


def columns_of(folder: Path) -> pa.Table:
    """Ratings in memory, as plain contiguous arrays."""
    table = pq.read_table(folder, columns=["userId", "movieId", "rating"])
    kinds = {"user": ("userId", pa.int64()), "item": ("movieId", pa.int64()),
             "rating": ("rating", pa.float32())}  # fmt: skip
    return pa.table({to: table[name].combine_chunks().cast(k) for to, (name, k) in kinds.items()})


def rmse_of(state: ModelState, test: pa.Table) -> float:
    """RMSE of clipped predictions of pairs whose user and item are known."""
    sides = (state.users, "user"), (state.items, "item")
    rows = [side.index.find(test[name].combine_chunks()) for side, name in sides]
    known = (rows[0] >= 0) & (rows[1] >= 0)
    found = np.clip(state.predict(rows[0][known], rows[1][known])[0], 0.5, 5.0)
    return float(np.sqrt(np.mean((found - test["rating"].to_numpy()[known]) ** 2)))


def without_spark(folder: Path, numbers: list[int], runs: int) -> list[Row]:
    """Rows of the learning alone; RuntimeError where threads have changed a bit."""
    columns, test = columns_of(folder / "train"), columns_of(folder / "test")
    # kernels are compiled, or loaded, before the clock runs
    learn(columns.slice(0, whole_table.STRATA_FROM), max(numbers))
    found: dict[int, list[Times]] = defaultdict(list)
    errors, prints = {}, set()
    for _ in range(runs):
        for threads in numbers:
            state, times = learn(columns, threads)
            found[threads].append(times)
            prints.add(state.fingerprint())
            errors[threads] = rmse_of(state, test)
            told = ", ".join(f"{name} {a:.2f} ({b:.2f})" for name, (a, b) in times.items())
            print(f"  {threads} threads, seconds (of CPU): {told}", flush=True)
    if len(prints) > 1:
        raise RuntimeError(f"{len(prints)} results of {numbers} threads: they must be one")
    rows = []
    for threads, all_times in found.items():
        for name in ("whole", "encode", *PARTS, "rest"):
            label = f"no Spark, {threads} thread{'s' * (threads > 1)}: {name}"
            took = [times.get(name, [0.0, 0.0]) for times in all_times]
            rmse = errors[threads] if name == "whole" else None
            rows.append(row(label, [t[0] for t in took], [t[1] for t in took], rmse=rmse))
    return rows


def under_spark(folder: Path, numbers: list[int], runs: int, memory: str) -> list[Row]:
    """Rows of `fit` and of Spark's ALS under local[N]."""
    rows = []
    for threads in numbers:
        spark = session(memory, threads)
        train, test = (spark.read.parquet(str(folder / name)) for name in ("train", "test"))
        ours = StreamingBiasedALS(rank=RANK, coldStartStrategy="drop", **COLUMNS)
        theirs = ALS(
            rank=RANK, maxIter=10, regParam=0.05, seed=1, coldStartStrategy="drop",
            numUserBlocks=threads, numItemBlocks=threads, **COLUMNS,
        )  # fmt: skip
        few = train.limit(100_000).cache()
        ours.fit(few), theirs.fit(few)
        took: dict[str, list[tuple[float, float]]] = {"fit": [], "ALS": []}
        errors = {}
        for _ in range(runs):
            for name, estimator in (("fit", ours), ("ALS", theirs)):
                seconds, busy, model = timed(partial(estimator.fit, train))
                took[name].append((seconds, busy))
                print(
                    f"  {name}, local[{threads}]: {seconds:.1f} s, {busy:.1f} s of CPU", flush=True
                )
                if name not in errors:
                    clipped = F.greatest(F.lit(0.5), F.least(F.lit(5.0), F.col("prediction")))
                    square = F.sqrt(F.avg((clipped - F.col("rating")) ** 2))
                    errors[name] = float(model.transform(test).select(square).first()[0])
        for name, runs_of in took.items():
            rows.append(
                row(f"{name}, local[{threads}]", [t[0] for t in runs_of], [t[1] for t in runs_of],
                    rmse=errors[name])
            )  # fmt: skip
        spark.stop()
    return rows


def main() -> None:
    """Measure, print a table and write it as JSON."""
    cores = os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ratings", type=ratings_count, default=26_000_000, help="100k ... 78M")
    parser.add_argument("--threads", type=int, nargs="+", help="1 2 4 8 16 up to the cores")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the ratings lie, or are to be made")
    parser.add_argument("--memory", default="6g", help="of the driver")
    parser.add_argument("--no-spark", action="store_true", help="only the learning alone")
    given = parser.parse_args()
    numbers = given.threads or [n for n in (1, 2, 4, 8, 16) if n <= cores]
    folder = given.folder or Path(tempfile.gettempdir(), f"ratings-{given.ratings}")
    write_ratings(folder, given.ratings)
    rows = without_spark(folder, numbers, given.runs)
    if not given.no_spark:
        rows += under_spark(folder, numbers, given.runs, given.memory)
    median = {one["label"]: one["median"] for one in rows}
    ratios = {}
    for threads in numbers:
        if f"ALS, local[{threads}]" in median:
            ratios[f"local[{threads}]: ALS takes so many times as long"] = (
                median[f"ALS, local[{threads}]"] / median[f"fit, local[{threads}]"]
            )
    write("cores", rows, ratios, ratings=given.ratings)


if __name__ == "__main__":
    main()
