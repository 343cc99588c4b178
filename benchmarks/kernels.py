"""The share of the machine's memory bandwidth that the kernels use: python benchmarks/kernels.py.

Bandwidth is that of a copy of an array far larger than the caches, by as many threads as cores, as
in McCalpin's STREAM: bytes read and written a second. Beside it the ratings a second of the filter
and of the sweeps at rank 10 and 16, on ratings of benchmarks/generate.py in the order in which
`fit` has them, and the bytes that each rating touches:

    filter   a mean and a variance of rank + 1 float32 on both sides, read and written
    sweep    a mean and a variance of the partner, read; once by users, once by items

beside the rating itself. Factors that are in a cache still count as touched, as those of popular
items are, so a share can pass 1. The filter is one rating after another, in one thread: its share
is that of the bandwidth of one thread.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numba as nb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from generate import ratings_count, write_ratings
from harness import cores, row, write

from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.kernels.filter import filter_ratings
from sparkml_sgdals.kernels.lanes import padded_rows
from sparkml_sgdals.kernels.sweep import sweep_ids

EMPTY = np.empty(0, np.float32)
F32 = np.float32


@nb.njit(nogil=True)
def copy(source, target):
    """Copy one array into another."""
    for n in range(source.size):
        target[n] = source[n]


def bandwidth(threads: int, megabytes: int, runs: int) -> list[float]:
    """Bytes read and written a second by a copy, of each run."""
    size = megabytes * 2**20 // 8
    source, target = np.ones(size), np.zeros(size)
    bounds = np.linspace(0, size, threads + 1).astype(int)
    parts = [slice(a, b) for a, b in pairwise(bounds)]
    copy(source[:8], target[:8])
    found = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(runs + 1):
            clock = time.perf_counter()
            list(pool.map(lambda part: copy(source[part], target[part]), parts))
            found.append(16 * size / (time.perf_counter() - clock))
    return found[1:]


def seconds_of(work: Callable[[], Any], runs: int) -> list[float]:
    """Seconds of each run, the first one left out."""
    found = []
    for _ in range(runs + 1):
        clock = time.perf_counter()
        work()
        found.append(time.perf_counter() - clock)
    return found[1:]


def layout(own: np.ndarray, partner: np.ndarray, ratings: np.ndarray, size: int) -> tuple[Any, ...]:
    """Where the ratings of each id start, their partners, and the ratings, in order of the id."""
    order = np.argsort(own, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(own, minlength=size))]).astype(np.int64)
    return starts, np.ascontiguousarray(partner[order]), np.ascontiguousarray(ratings[order])


def main() -> None:
    """Measure, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ratings", type=ratings_count, default=5_000_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=512, help="of the array that is copied")
    given = parser.parse_args()
    threads = cores()
    with tempfile.TemporaryDirectory(prefix="kernels-") as folder:
        write_ratings(Path(folder), given.ratings)
        table = pq.read_table(Path(folder, "train"), columns=["userId", "movieId", "rating"])
    ratings = encode_ratings(
        pa.table({
            "user": table["userId"].combine_chunks().cast(pa.int64()),
            "item": table["movieId"].combine_chunks().cast(pa.int64()),
            "rating": table["rating"].combine_chunks().cast(pa.float32()),
        }),
        threads,
    )  # fmt: skip
    users, items = ratings.users.astype(np.int32), ratings.items.astype(np.int32)
    values = (ratings.values - ratings.values.mean()).astype(F32)
    n, sides = users.size, (int(users.max()) + 1, int(items.max()) + 1)

    one, all_threads = (bandwidth(t, given.megabytes, given.runs) for t in (1, threads))
    peak = {1: statistics.median(one), threads: statistics.median(all_threads)}
    rows: list[dict[str, Any]] = [
        {"label": f"copy, {t} thread{'s' * (t > 1)}", "threads": t, "bytesPerSecond": peak[t],
         "low bytesPerSecond": min(found), "high bytesPerSecond": max(found)}
        for t, found in ((1, one), (threads, all_threads))
    ]  # fmt: skip
    ratios: dict[str, float] = {}

    def add(label: str, seconds: list[float], per_rating: int, used: int) -> None:
        found = row(label, seconds)
        found["ratingsPerSecond"] = n / found["median"]
        found["bytesPerRating"] = per_rating
        found["bytesPerSecond"] = per_rating * n / found["median"]
        found["threads"] = used
        found["share"] = found["bytesPerSecond"] / peak[used]
        rows.append(found)
        ratios[f"{label}: share of the bandwidth"] = found["share"]

    for rank in (10, 16):
        rng = np.random.default_rng(1)
        width = rank + 1
        mean = [rng.normal(0.0, 0.05, (size, width)).astype(F32) for size in sides]
        var = [np.full((size, width), 0.1, F32) for size in sides]
        errors = np.empty(n, F32)

        def learn(mean: Any = mean, var: Any = var, errors: Any = errors) -> None:
            filter_ratings(
                users, items, values, EMPTY, mean[0], var[0], mean[1], var[1],
                F32(0.5), F32(0.0), F32(-np.inf), errors,
            )  # fmt: skip

        # two ids and a rating in, an error out; four rows in and out
        add(f"filter, rank {rank}", seconds_of(learn, given.runs), 16 + 2 * 4 * 4 * width, 1)
        prior_mean, prior_var = np.zeros((1, width), F32), np.full((1, width), 0.1, F32)
        for side, name in ((0, "users"), (1, "items")):
            own, partner = (users, items) if side == 0 else (items, users)
            starts, partners, of_ids = layout(own, partner, values, sides[side])
            sums = [*(np.empty(sides[side]) for _ in range(2)), np.empty(0)]
            # ranges of about as many ratings each
            at = np.searchsorted(starts, np.linspace(0, n, 8 * threads + 1)[1:-1])
            bounds = [0, *at.tolist(), sides[side]]
            padded = padded_rows(mean[1 - side]), padded_rows(var[1 - side])

            def sweep(bounds: Any = bounds, starts: Any = starts, partners: Any = partners,
                      of_ids: Any = of_ids, side: int = side, sums: Any = sums,
                      mean: Any = mean, var: Any = var, padded: Any = padded,
                      prior: Any = (prior_mean, prior_var)) -> None:  # fmt: skip
                def part(number: int) -> None:
                    sweep_ids(
                        bounds[number], bounds[number + 1], starts, partners, of_ids, EMPTY,
                        mean[side], var[side], *prior, *padded, EMPTY,
                        F32(0.5), F32(-np.inf), *sums,
                    )  # fmt: skip

                with ThreadPoolExecutor(threads) as pool:
                    list(pool.map(part, range(len(bounds) - 1)))

            # a partner and a rating, and the partner's mean and variance
            add(f"sweep of {name}, rank {rank}", seconds_of(sweep, given.runs),
                8 + 2 * 4 * padded[0].shape[1], threads)  # fmt: skip
    write("kernels", rows, ratios, ratings=n, ids=list(sides))


if __name__ == "__main__":
    main()
