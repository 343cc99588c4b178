"""Make ratings with the shape of MovieLens: python benchmarks/generate.py [RATINGS] [--folder F].

26 million of them (the default) come from 270,000 users on 45,000 items: the median user has 30
ratings, the median item 23, the most popular item 83,000. A rating is

    3.5 + b_user + b_item + U_user . P_item + noise,

rounded to half a star from 0.5 to 5. Items are drawn by popularity and rated rather where the user
likes them, as people do. A user's ratings come in one sitting, and the files are sorted by user.
Written as Parquet into two folders, `train` (90%) and `test`, by all cores; the same seed gives the
same files, whatever the cores.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numba as nb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

__all__ = ["NOISE", "RANK", "Truth", "ratings_count", "write_ratings"]

F32 = npt.NDArray[np.float32]
RANK = 10
NOISE = 0.72
"""deviation of a rating about its mean, in stars, before it is rounded"""
FULL = 26_000_000
USERS, ITEMS = 270_000, 45_000
TEST_SHARE = 0.1
RATINGS_PER_FILE = 1_000_000


@dataclass(frozen=True)
class Truth:
    """What the ratings are made of: (ids, 1 + RANK) factors, the bias first, and the ids."""

    users: F32
    items: F32
    item_ids: npt.NDArray[np.int32]
    counts: npt.NDArray[np.int64]
    """ratings of each user; user x has the id x + 1"""

    @classmethod
    def draw(cls, ratings: int, seed: int) -> Truth:
        """As many users and items as MovieLens has for so many ratings."""
        share = ratings / FULL
        users = max(int(USERS * share), 20)
        items = max(int(ITEMS * share**0.28), 50)
        rng = np.random.default_rng(seed)
        counts = np.exp(rng.normal(0.0, 1.525, users))
        most = 2 * items // 5
        for _ in range(50):
            counts = np.clip(counts * (ratings / counts.sum()), 1, most)
        whole = np.maximum(counts.astype(np.int64), 1)
        lacking = ratings - int(whole.sum())
        room = np.flatnonzero(whole < most) if lacking > 0 else np.flatnonzero(whole > 1)
        np.add.at(whole, np.resize(room, abs(lacking)), np.sign(lacking))

        def factors(n: int, bias: float) -> F32:
            # features so that U . P has a deviation of 0.5 stars
            own = rng.normal(0.0, (0.5 / RANK**0.5) ** 0.5, (n, 1 + RANK))
            own[:, 0] = rng.normal(0.0, bias, n)
            return own.astype(np.float32)

        ids = rng.choice(4 * items, items, replace=False).astype(np.int32) + 1
        return cls(factors(users, 0.45), factors(items, 0.5), ids, whole)


@nb.njit(nogil=True, inline="always")
def _unit(state):
    """The next state and a number in (0, 1): SplitMix64."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return state, (np.float64(z >> np.uint64(11)) + 0.5) / 9007199254740992.0


@nb.njit(nogil=True)
def _rate(first, counts, users, items, seed, noise, out_user, out_item, out_rating, out_time, test):
    """Ratings of users first, first + 1, ..., each from random numbers of its own."""
    num_items = items.shape[0]
    # popularity of the item of rank r falls as (r + c)^-2, cut off at the last item
    c = 140.0 * num_items / 45000.0
    last = num_items / (num_items + c)
    taken = np.full(num_items, -1, np.int64)
    n = 0
    for k in range(counts.size):
        x = first + k
        state = np.uint64(seed) * np.uint64(0xD1B54A32D192ED03) + np.uint64(x)
        state, _ = _unit(state * np.uint64(0x2545F4914F6CDD1D))
        state, u = _unit(state)
        clock = np.int64(820_000_000 + u * 680_000_000)
        rated = 0
        while rated < counts[k]:
            state, u = _unit(state)
            u *= last
            y = min(np.int64(c * u / (1.0 - u)), num_items - 1)
            if taken[y] == x:
                continue
            liking = np.float32(0.0)
            for f in range(1, items.shape[1]):
                liking += users[x, f] * items[y, f]
            state, u = _unit(state)
            if u > 1.0 / (1.0 + np.exp(-2.0 * liking)):
                continue
            taken[y] = x
            state, u = _unit(state)
            state, v = _unit(state)
            rating = 3.5 + users[x, 0] + items[y, 0] + liking
            rating += noise * np.sqrt(-2.0 * np.log(u)) * np.cos(2.0 * np.pi * v)
            out_rating[n] = min(max(np.round(2.0 * rating) / 2.0, 0.5), 5.0)
            out_user[n] = x + 1
            out_item[n] = y
            state, u = _unit(state)
            clock += np.int64(1 + 20.0 * u)
            out_time[n] = clock
            state, u = _unit(state)
            test[n] = u < TEST_SHARE
            n += 1
            rated += 1


def _write_part(folder: Path, number: int, first: int, last: int, truth: Truth, seed: int) -> None:
    counts = truth.counts[first:last]
    total = int(counts.sum())
    users, items = np.empty(total, np.int32), np.empty(total, np.int32)
    values, clock = np.empty(total, np.float64), np.empty(total, np.int64)
    test = np.empty(total, np.bool_)
    _rate(
        first, counts, truth.users, truth.items, seed, NOISE, users, items, values, clock, test
    )  # fmt: skip
    table = pa.table(
        {"userId": users, "movieId": truth.item_ids[items], "rating": values, "timestamp": clock}
    )
    for name, rows in (("train", ~test), ("test", test)):
        part = table.filter(pa.array(rows))
        pq.write_table(part, folder / name / f"part-{number:05d}.parquet")


def write_ratings(folder: Path, ratings: int = FULL, seed: int = 1) -> Truth:
    """Write ratings under folder/train and folder/test: userId, movieId, rating, timestamp.

    Files of the same ratings and seed that are there already are left as they are.

    Returns
    -------
    what they were made of
    """
    truth = Truth.draw(ratings, seed)
    done = folder / f"complete-{ratings}-{seed}"
    if done.exists():
        return truth
    for name in ("train", "test"):
        if any((folder / name).glob("*")):
            raise FileExistsError(f"{folder / name} holds other files. Name an empty folder.")
        (folder / name).mkdir(parents=True, exist_ok=True)
    ends = np.cumsum(truth.counts)
    parts = -(-ratings // RATINGS_PER_FILE)
    bounds = np.searchsorted(ends, np.linspace(0, ratings, parts + 1)[1:-1])
    bounds = np.concatenate([[0], bounds, [len(ends)]])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [
            pool.submit(_write_part, folder, n, int(a), int(b), truth, seed)
            for n, (a, b) in enumerate(pairwise(bounds))
        ]
        for job in jobs:
            job.result()
    done.touch()
    return truth


def ratings_count(text: str) -> int:
    """Read a number of ratings: 100000, 100k, 26M."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmM]?)", text)
    count = int(float(match[1]) * {"": 1, "k": 10**3, "m": 10**6}[match[2].lower()]) if match else 0
    if count < 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of ratings from 1000: try 26M.")
    return count


def main() -> None:
    """Write the files and say where they are."""
    parser = argparse.ArgumentParser(description="Make ratings with the shape of MovieLens.")
    parser.add_argument("ratings", nargs="?", type=ratings_count, default=FULL, help="100k ... 78M")
    parser.add_argument(
        "--folder", type=Path, help="where to write; a new temporary one by default"
    )
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="ratings-"))
    clock = time.perf_counter()
    truth = write_ratings(folder, given.ratings, given.seed)
    seconds = time.perf_counter() - clock
    items = len(truth.item_ids)
    print(
        f"{given.ratings:,} ratings, {len(truth.counts):,} users, {items:,} items: {seconds:.1f} s"
    )
    print(folder)


if __name__ == "__main__":
    main()
