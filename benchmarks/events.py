"""Events a second that one core learns: python benchmarks/events.py [--against CHECKOUT ...].

Events of users and items drawn by power laws, with 20 negatives each, learned in memory, without
Spark and without files: a table of 100,000 from nothing at ranks and numbers of items, and batches
of some sizes onto a model of 50,000 items that has learned 50,000 events. Each turn is a fresh
process, here and for each other checkout of the package, so that a busy moment of the machine hits
all of them. Seconds are those of the processor; the least and the median of the turns are shown.
Writes out/events.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from harness import row, write

from sparkml_sgdals import StreamingBiasedALS
from sparkml_sgdals.arrays.ratings import Ratings, encode_ratings
from sparkml_sgdals.learn.events import learn_events
from sparkml_sgdals.state.model_state import ModelState

EVENTS = 100_000
USERS = 2_000
HELD = 50_000
"""events of a model before batches"""
BATCHES = 20
"""of each size, at most"""
RANKS = (16, 32, 64)
ITEMS = (1_000, 10_000, 100_000)
SIZES = (100, 1_000, 10_000)


def drawn(rng: np.random.Generator, number: int, power: float) -> np.ndarray:
    """Ids below `number`, an event each, by a power law over an order of them."""
    weights = np.arange(1, number + 1) ** -power
    places = np.searchsorted(np.cumsum(weights) / weights.sum(), rng.random(EVENTS))
    return rng.permutation(number)[np.minimum(places, number - 1)]


def batches(items: int, size: int, first: int) -> list[Ratings]:
    """Events from `first` on, in batches."""
    rng = np.random.default_rng(1)
    users, done = drawn(rng, USERS, 0.5), drawn(rng, items, 0.8)
    made = []
    for begin in range(first, EVENTS, size):
        end = min(begin + size, EVENTS)
        columns = {
            "user": pa.array(users[begin:end]), "item": pa.array(done[begin:end]),
            "rating": pa.array(np.ones(end - begin, np.float32)),
            "time": pa.array(np.arange(begin, end)),
        }  # fmt: skip
        made.append(encode_ratings(pa.table(columns)))
    return made


def empty(rank: int, items: int) -> ModelState:
    """A model that knows its items, and has learned nothing."""
    state = ModelState.empty(
        StreamingBiasedALS(implicitPrefs=True, rank=rank, seed=1).settings(), "int", "int"
    )
    state.items.ensure(pa.array(np.arange(items)))
    return state


def learn(state: ModelState, parts: list[Ratings]) -> dict[str, float]:
    """Seconds to learn them one after another, and how many events they are."""
    clock, cpu = time.perf_counter(), time.process_time()
    for part in parts:
        learn_events(state, part)
    cpu = time.process_time() - cpu
    return {"cpu": cpu, "wall": time.perf_counter() - clock, "events": sum(map(len, parts))}


def turn() -> dict[str, dict[str, float]]:
    """Everything once, in this process."""
    found = {}
    learn(empty(8, 100), batches(100, 500, EVENTS - 1_000))  # compiles
    for rank in RANKS:
        for items in ITEMS:
            label = f"table, rank {rank}, {items:,} items"
            found[label] = learn(empty(rank, items), batches(items, EVENTS, 0))
    for size in SIZES:
        state = empty(32, 50_000)
        learn(state, batches(50_000, HELD, 0)[:1])
        label = f"batches of {size:,}, rank 32, 50,000 items"
        found[label] = learn(state, batches(50_000, size, HELD)[:BATCHES])
    return found


def main() -> None:
    """Measure, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--against", nargs="*", default=[], help="other checkouts of the package")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(turn()))
        return
    here = str(Path(__file__).resolve().parent.parent)
    roots = {"": here} | {Path(root).name: str(Path(root).resolve()) for root in given.against}
    took: dict[str, dict[str, list[dict[str, float]]]] = {name: {} for name in roots}
    for _ in range(given.turns):
        for name, root in roots.items():
            done = subprocess.run(
                [sys.executable, __file__, "--one"],
                env=os.environ | {"PYTHONPATH": root}, check=True, stdout=subprocess.PIPE,
            )  # fmt: skip
            for label, one in json.loads(done.stdout).items():
                took[name].setdefault(label, []).append(one)
    rows: list[dict[str, Any]] = []
    for label in took[""]:
        for name in roots:
            runs = took[name][label]
            made = row(f"{label} {name}".strip(), [one["wall"] for one in runs],
                       [one["cpu"] for one in runs])  # fmt: skip
            made["eventsPerSecond"] = runs[0]["events"] / made["medianCpu"]
            made["best eventsPerSecond"] = runs[0]["events"] / min(made["cpu"])
            rows.append(made)
    write("events", rows, {})
    for one in rows:
        best, median = one["best eventsPerSecond"], one["eventsPerSecond"]
        print(f"{one['label']:<60} {best:>10,.0f} {median:>10,.0f} events a second")


if __name__ == "__main__":
    main()
