"""What it costs to rank ratings before they are learned: python benchmarks/ranks.py

Micro-batches of 1,000 ratings are learned onto a model of --users users and so many items, each
user with so many ratings before, without and with ranking: time of the processor, time from the
call to the end, and bytes of the files of a version. With --ratings, a ratings.csv of MovieLens,
its ratings in time order, from nothing. No Spark: collecting a batch is the same for both.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time

import numpy as np
import pandas as pd
import pyarrow as pa

from sparkml_sgdals.arrays.hashing import id_keys
from sparkml_sgdals.arrays.ratings import Ratings, encode_ratings
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.learn.rated_lists import note_lists
from sparkml_sgdals.ml.params import default_settings
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.settings import Settings
from sparkml_sgdals.store.commit import Commit
from sparkml_sgdals.store.version_store import VersionStore

SIZE = 1000


def batch(rng: np.random.Generator, users: int, items: int) -> Ratings:
    """Ratings by any user, of items that are as popular as those of MovieLens, about."""
    return encode_ratings(
        pa.table(
            {
                "user": pa.array(rng.integers(0, users, SIZE)),
                "item": pa.array((items * rng.random(SIZE) ** 2.5).astype(np.int64)),
                "rating": pa.array(rng.integers(1, 6, SIZE).astype(np.float32)),
            }
        )
    )


def made(settings: Settings, users: int, items: int, each: int) -> ModelState:
    """A model that knows all ids, and for ranking what each user has rated."""
    rng = np.random.default_rng(1)
    state = ModelState.empty(settings, "int", "int")
    for _ in range(3):
        learn_batch(state, batch(rng, users, items))
    state.users.ensure(pa.array(np.arange(users)))
    state.items.ensure(pa.array(np.arange(items)))
    if settings.ranks_ratings:
        keys = id_keys(pa.array(np.arange(items))).view(np.int64)
        picked = (items * rng.random(users * each) ** 2.5).astype(np.int64)
        starts = np.arange(users + 1, dtype=np.int32) * each
        done = pa.ListArray.from_arrays(pa.array(starts), pa.array(keys[picked]))
        note_lists(state.users, pa.table({"user": pa.array(np.arange(users)), "done": done}))
    return state


def size_of(commit: Commit) -> int:
    """Bytes of the files that a version wrote."""
    return sum(file["bytes"] for file in commit.files.values())


def stream(path: str, settings: Settings) -> None:
    """Learn and commit a file of ratings, and print what came of it."""
    frame = pd.read_csv(path, names=["user", "item", "rating", "time"], header=0)
    frame = frame.sort_values("time", kind="stable")
    frame["rating"] = frame.rating.astype(np.float32)
    state = ModelState.empty(settings, "int", "int")
    with tempfile.TemporaryDirectory() as folder:
        store = VersionStore(folder)
        commit = store.create(state, {"settings": settings.to_json(), "kinds": ["int", "int"]})
        busy, written, all_sums = 0.0, [], []
        for number, first in enumerate(range(0, len(frame), SIZE)):
            ratings = encode_ratings(pa.Table.from_pandas(frame[first : first + SIZE]))
            clock = time.process_time()
            report = learn_batch(state, ratings)
            busy += time.process_time() - clock
            all_sums.append(report.sums)
            rows = report.user_rows, report.item_rows
            commit = store.commit(state, rows, number, commit, None)
            written.append(size_of(commit))
    ranked = sum(sums.ranked for sums in all_sums)
    means = [
        math.fsum(getattr(sums, name) for sums in all_sums) / max(ranked, 1)
        for name in ("hits", "baseline_hits", "reciprocals", "baseline_reciprocals")
    ]
    told = "recall {:.3f} (popularity {:.3f}), mrr {:.3f} ({:.3f})".format(*means)
    print(
        f"ranking size {settings.ranking_size}: {len(written)} versions, {busy:.2f} s of the "
        f"processor, {sum(written) / 1e6:.1f} MB written; {ranked} ranked, {told}",
        flush=True,
    )


def main() -> None:
    """Print a line for each catalogue and length of a list."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--items", type=int, nargs="*", default=[2_000, 10_000, 100_000])
    parser.add_argument("--each", type=int, nargs="*", default=[50, 500])
    parser.add_argument("--sample", type=int, default=1_000)
    parser.add_argument("--batches", type=int, default=15)
    parser.add_argument("--ratings", default="")
    given = parser.parse_args()
    if given.ratings:
        # the first run compiles
        for size in (10, 0, 10):
            stream(given.ratings, default_settings(ranking_size=size))
        return
    ways = {
        "not ranked": default_settings(),
        "among all": default_settings(ranking_size=10),
        f"among {given.sample}": default_settings(ranking_size=10, ranking_sample=given.sample),
    }
    print("items, ratings a user, ranked how: ms of the processor, ms in all, kB of files, ranked")
    for items in given.items:
        for each in given.each:
            for name, settings in ways.items():
                with tempfile.TemporaryDirectory() as folder:
                    measure(name, settings, given, items, each, folder)


def measure(
    name: str, settings: Settings, given: argparse.Namespace, items: int, each: int, folder: str
) -> None:
    """Learn and commit batches of one kind."""
    state = made(settings, given.users, items, each)
    store = VersionStore(folder)
    meta = {"settings": settings.to_json(), "kinds": ["int", "int"]}
    commit, rng = store.create(state, meta), np.random.default_rng(2)
    base = size_of(commit)
    busy, wall, sizes, ranked = [], [], [], []
    for number in range(given.batches):
        ratings = batch(rng, given.users, items)
        cpu, clock = time.process_time(), time.perf_counter()
        report = learn_batch(state, ratings)
        busy.append(time.process_time() - cpu)
        wall.append(time.perf_counter() - clock)
        ranked.append(report.sums.ranked)
        rows = report.user_rows, report.item_rows
        commit = store.commit(state, rows, number, commit, None)
        sizes.append(size_of(commit))
    # the first batches compile
    numbers = [statistics.median(values[3:]) for values in (busy, wall, sizes, ranked)]
    print(
        f"{items:,}, {each}, {name}: {numbers[0] * 1e3:.0f}, {numbers[1] * 1e3:.0f}, "
        f"{numbers[2] / 1e3:.0f}, {numbers[3]:.0f}; all of the model {base / 1e6:.1f} MB",
        flush=True,
    )


if __name__ == "__main__":
    main()
