"""A grid of 16 that races on a stream: who is dropped when, how good the leader is, what it costs.

python benchmarks/race.py [FOLDER] [--cost | --million]

MovieLens latest-small in time order, 1,000 ratings a batch: the race against 16 separate runs by
their held-out RMSE, and again with five restarts. Then a generated stream whose tastes begin to
wander in the middle, so that another drift is best. With --cost the time of a trigger on Spark;
with --million the processor time of the race over a million generated ratings, and of one model.
Writes out/race.json, out/race.csv and out/race-change.csv, a row a candidate and batch each, and
out/race.png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
from accuracy import OUT, find_sets, outer_splits, split

from sparkml_sgdals import StreamingBiasedALS
from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.fit.plan import FitOptions
from sparkml_sgdals.ingest.collecting import Collected
from sparkml_sgdals.ingest.columns import RatingColumns
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.race.standings import RaceRules
from sparkml_sgdals.race.updater import RaceUpdater, leader_of
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.settings import Settings
from sparkml_sgdals.store.lease import Lease
from sparkml_sgdals.store.version_store import VersionStore
from sparkml_sgdals.stream.report import Report
from sparkml_sgdals.stream.residents import forget_resident

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BATCH = 1000
DEFAULTS = StreamingBiasedALS(timestampCol="time").settings()
COLUMNS = RatingColumns("user", "item", "rating", "time")
OPTIONS = FitOptions(COLUMNS, ("int", "int"), "skip", 0, 1, 10_000_000, 10)
GRID = tuple(
    replace(DEFAULTS, rank=rank, bias_prior=bias, factor_prior=factor, drift=drift)
    for rank, bias, factor, drift in itertools.product(
        (4, 16), (0.2, 0.02), (0.1, 0.01), (0.0, 1e-5)
    )
)
RULES = RaceRules()


def name_of(settings: Settings) -> str:
    return (
        f"rank {settings.rank}, priors {settings.bias_prior:g} and {settings.factor_prior:g}, "
        f"drift {settings.drift:g}"
    )


def in_batches(ratings: pd.DataFrame) -> list[pa.Table]:
    ordered = ratings.sort_values("time", kind="stable").astype({"rating": "float32"})
    table = pa.Table.from_pandas(ordered, preserve_index=False)
    return [table.slice(start, BATCH) for start in range(0, table.num_rows, BATCH)]


@contextmanager
def at_path(path: str, grid: tuple[Settings, ...], rules: RaceRules) -> Iterator[RaceUpdater]:
    """The function that a stream would call, under a model path of its own."""
    store = VersionStore(path)
    if store.newest() is None:
        meta: dict[str, Any] = {"settings": grid[0].to_json(), "kinds": ["int", "int"]}
        store.create(ModelState.empty(grid[0], "int", "int"), meta | {"race": {}})
    lease = Lease.acquire(store, 60.0)
    try:
        yield RaceUpdater(
            path, lease.token, OPTIONS, 5, 0.0, Report(), grid, rules, os.cpu_count() or 1
        )
    finally:
        forget_resident(path)
        lease.release()


def race(
    path: str,
    batches: list[pa.Table],
    grid: tuple[Settings, ...],
    rules: RaceRules,
    pieces: int = 1,
) -> tuple[int, ModelState, pd.DataFrame]:
    """Run a race, started anew so often; its leader, the leader's model, and how all stood."""
    for part in np.array_split(np.arange(len(batches)), pieces):
        with at_path(path, grid, rules) as updater:
            for number in part:
                table = batches[number]
                collected = Collected(table, table.num_rows, 0, {}, [])
                updater.learn(lambda _, collected=collected: collected, int(number))
    store = VersionStore(path)
    state, commit = store.load()
    rows = [row | {"batch": batch["batch"]} for batch in store.metrics() for row in batch["race"]]
    frame = pd.DataFrame(rows)
    ends = frame.batch.where(frame.dropped != "")
    frame["dropped_at"] = ends.groupby(frame.candidate).transform("max")
    frame.insert(1, "params", [name_of(grid[c]) for c in frame.candidate])
    frame.insert(2, "rank", [grid[c].rank for c in frame.candidate])
    frame.insert(3, "drift", [grid[c].drift for c in frame.candidate])
    return leader_of(commit), state, frame


def rmse(state: ModelState, held: pd.DataFrame) -> float:
    users = state.users.index.find(pa.array(held.user))
    items = state.items.index.find(pa.array(held.item))
    off = state.clip(state.predict(users, items)[0]) - held.rating.to_numpy()
    return float(np.sqrt(np.mean(off.astype(np.float64) ** 2)))


def real(folder: Path) -> dict[str, Any]:
    ((_, ratings),) = find_sets(folder, ["ml-latest-small"])
    train, held = split(ratings, outer_splits(len(ratings), 1)[0])
    batches = in_batches(train)
    with tempfile.TemporaryDirectory() as scratch:
        leader, state, told = race(f"{scratch}/once", batches, GRID, RULES)
        again = race(f"{scratch}/again", batches, GRID, RULES, pieces=6)
    told.to_csv(OUT / "race.csv", index=False)
    alone = []
    for settings in GRID:
        one = ModelState.empty(settings, "int", "int")
        for table in batches:
            learn_batch(one, encode_ratings(table))
        alone.append(rmse(one, held))
    dropped = told[told.dropped != ""]
    half = len(batches) / 2
    for number in np.argsort(alone):
        gone = dropped[dropped.candidate == number].batch
        when = f"dropped in batch {int(gone.iloc[0])}" if len(gone) else "stays"
        mark = "  <- leader" if number == leader else ""
        print(f"{alone[number]:.4f}  {name_of(GRID[number]):44s}{when}{mark}")
    found = {
        "batches": len(batches),
        "leader": name_of(GRID[leader]),
        "leader held out": rmse(state, held),
        "best of 16 held out": min(alone),
        "dropped before half": int((dropped.batch < half).sum()),
        "dropped": len(dropped),
        "same after five restarts": again[0] == leader
        and again[1].fingerprint() == state.fingerprint()
        and again[2].equals(told),
    }
    for what, value in found.items():
        print(f"{what:26s}{value}")
    return found


def wandering(seed: int = 1, count: int = 240_000) -> tuple[list[pa.Table], int]:
    """Tastes stand still, and from the middle on wander: 300 users, 200 items, 4 features."""
    rng = np.random.default_rng(seed)
    users, items = rng.integers(0, 300, count), rng.integers(0, 200, count)
    item_factors = rng.normal(0, 1, (200, 4))
    tastes = rng.normal(0, 0.5, (300, 4))
    values = np.empty(count)
    for start in range(0, count, BATCH):
        if start >= count // 2:
            # the spread of tastes stays
            tastes = 0.98 * tastes + rng.normal(0, 0.5 * np.sqrt(1 - 0.98**2), tastes.shape)
        part = slice(start, start + BATCH)
        values[part] = 3.5 + np.sum(tastes[users[part]] * item_factors[items[part]], axis=1)
    values += rng.normal(0, 0.5, count)
    frame = pd.DataFrame({"user": users, "item": items, "rating": values, "time": range(count)})
    return in_batches(frame), count // 2 // BATCH


def change() -> dict[str, Any]:
    batches, middle = wandering()
    grid = tuple(
        replace(DEFAULTS, rank=rank, drift=drift)
        for rank, drift in itertools.product((4, 8), (0.0, 1e-3, 1e-2))
    )
    # candidates that are equal before the change are what differs after it
    rules = replace(RULES, keep=2, challengers=1, tolerance=0.0)
    with tempfile.TemporaryDirectory() as scratch:
        _, _, told = race(f"{scratch}/change", batches, grid, rules)
    told.to_csv(OUT / "race-change.csv", index=False)
    draw(told, middle, OUT / "race.png")
    leaders = told[told.leads].set_index("batch").params
    turns = leaders[leaders != leaders.shift()]
    print("\ntastes begin to wander in batch", middle)
    for batch, params in turns.items():
        print(f"batch {batch:4d}: {params} leads")
    print(told[(told.dropped != "") | told.entered][["batch", "params", "dropped", "entered"]])
    return {"middle": middle, "turns": {str(k): v for k, v in turns.items()}}


def draw(told: pd.DataFrame, middle: int, path: Path) -> None:
    """The loss of each run of a candidate; a cross where it was dropped, thick where it leads."""
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    told = told[told.loss.notna() & (told.batch >= 8)]
    lines = dict(zip(sorted(told.drift.unique()), ("-", "--", ":"), strict=True))
    for (_, drift, rank), runs in told.groupby(["candidate", "drift", "rank"]):
        color = "black" if rank == told["rank"].max() else "0.6"
        # a challenger's first batches say little
        since = runs.assign(part=(runs.ratings.diff() < 0).cumsum())
        for number, (_, part) in enumerate(since.groupby("part")):
            shown = part[part.ratings >= 3 * BATCH]
            label = f"rank {rank}, drift {drift:g}" if number == 0 else None
            axes.plot(shown.batch, shown.loss, lines[drift], color=color, linewidth=1, label=label)
            gone = shown[shown.dropped != ""]
            axes.plot(gone.batch, gone.loss, "x", color=color, markersize=8)
    lead = told[told.leads]
    axes.plot(lead.batch, lead.loss, color="tab:red", linewidth=5, alpha=0.35, label="leads")
    axes.axvline(middle, color="0.5", linewidth=1)
    axes.text(middle + 1, axes.get_ylim()[1], "tastes begin to wander", va="top", color="0.4")
    axes.set_xlabel("micro-batch of 1,000 ratings")
    axes.set_ylabel("RMSE before learning, with a fading factor")
    axes.set_title("A race turns round: x = dropped; a dropped one comes back from the leader")
    axes.legend()
    figure.savefig(path, dpi=110)


def generated(count: int, seed: int = 1) -> list[pa.Table]:
    """20,000 users, 5,000 items, 6 features, half stars from 0.5 to 5; some ids far more often."""
    rng = np.random.default_rng(seed)
    users = (20_000 * rng.random(count) ** 2).astype(np.int64)
    items = (5_000 * rng.random(count) ** 2).astype(np.int64)
    tastes, features = rng.normal(0, 0.3, (20_000, 6)), rng.normal(0, 1, (5_000, 6))
    values = 3.5 + rng.normal(0, 0.4, 20_000)[users] + rng.normal(0, 0.4, 5_000)[items]
    values += np.sum(tastes[users] * features[items], axis=1) + rng.normal(0, 0.8, count)
    values = np.clip(np.round(values * 2) / 2, 0.5, 5.0)
    frame = pd.DataFrame({"user": users, "item": items, "rating": values, "time": range(count)})
    return in_batches(frame)


def million(count: int) -> dict[str, Any]:
    """Processor seconds of the race, and of its leader's settings alone, over the same stream."""
    batches = generated(count)
    with tempfile.TemporaryDirectory() as scratch:
        # compiled kernels are read first
        race(f"{scratch}/warm", batches[:12], GRID, RULES)
        found: dict[str, Any] = {"ratings": count}

        def spent(name: str, grid: tuple[Settings, ...], rules: RaceRules) -> Settings:
            clock = time.process_time()
            leader, _, told = race(f"{scratch}/{name}", batches, grid, rules)
            found[name] = {
                "seconds": time.process_time() - clock,
                "leader": name_of(grid[leader]),
                "candidate batches": len(told),
                "half gone after": _batch_of_drop(told, len(grid) // 2),
                "ended after": _batch_of_drop(told, len(grid) - rules.keep),
            }
            print(name, found[name], flush=True)
            return grid[leader]

        leader = spent("keep 1", GRID, replace(RULES, keep=1))
        spent("keep 2", GRID, RULES)
        spent("alone, committed", (leader,), RULES)
        clock = time.process_time()
        one = ModelState.empty(leader, "int", "int")
        for table in batches:
            learn_batch(one, encode_ratings(table))
        found["alone, learned"] = time.process_time() - clock
        print("alone, learned", found["alone, learned"], flush=True)
        own = _rmse_of(one)
        found["prequential RMSE"] = {name_of(leader): own}
        for settings in dict.fromkeys(
            replace(leader, rank=rank, bias_prior=bias)
            for rank, bias in itertools.product((4, 16), (0.2, 0.02))
        ):
            other = ModelState.empty(settings, "int", "int")
            for table in batches:
                learn_batch(other, encode_ratings(table))
            found["prequential RMSE"][name_of(settings)] = _rmse_of(other)
        print(found["prequential RMSE"], flush=True)
    return found


def _rmse_of(state: ModelState) -> float:
    return state.counters.prequential_rmse()


def _batch_of_drop(told: pd.DataFrame, number: int) -> int | None:
    """Batches until so many candidates were dropped; None where they never are."""
    ends = sorted(told.batch[told.dropped != ""])
    return None if number < 1 or len(ends) < number else int(ends[number - 1]) + 1


def cost() -> dict[str, float]:
    """Median seconds of a trigger of 1,000 ratings, with one model and with 16 of rank 16."""
    from pyspark.ml.tuning import ParamGridBuilder
    from pyspark.sql import SparkSession

    from sparkml_sgdals import StreamingGridSearch

    spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    session = spark.config("spark.sql.shuffle.partitions", "2").getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    als = StreamingBiasedALS(timestampCol="time", rank=16)
    grid = (
        ParamGridBuilder()
        .addGrid(als.biasPriorVariance, [0.1, 0.2, 0.3, 0.4])
        .addGrid(als.factorPriorVariance, [0.05, 0.1, 0.15, 0.2])
        .build()
    )
    batches = wandering(count=40_000)[0]
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "in")
        folder.mkdir()
        for number, table in enumerate(batches):
            file = folder / f"{number:06d}.parquet"
            pa.parquet.write_table(table, file)
            os.utime(file, (1_000_000_000 + number,) * 2)
        schema = "user long, item long, rating float, time long"
        for name in ("one", "16", "one again", "16 again"):
            stream = session.readStream.schema(schema).option("maxFilesPerTrigger", 1)
            frame = stream.parquet(str(folder))
            # nobody is dropped: all 16 run to the end
            search = StreamingGridSearch(estimator=als, estimatorParamMaps=grid, keep=16)
            what: Any = als if name.startswith("one") else search
            job = what.fitStream(frame, f"{scratch}/{name}", trigger={"availableNow": True})
            job.awaitTermination()
            spent = [p["durationMs"]["triggerExecution"] for p in job.query.recentProgress]
            found[name] = float(np.median(spent[5:-1])) / 1000
            print(f"{name:12s}{found[name]:.3f} s a trigger of 1,000 ratings")
    session.stop()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", default=os.environ.get("SPARKML_SGDALS_DATA", ""))
    parser.add_argument("--cost", action="store_true", help="time triggers on Spark, nothing else")
    parser.add_argument("--million", nargs="?", type=int, const=1_000_000, help="see above")
    given = parser.parse_args()
    OUT.mkdir(exist_ok=True)
    clock = time.perf_counter()
    found: dict[str, Any]
    if given.cost:
        name, found = "race-cost.json", {"cost": cost()}
    elif given.million:
        name, found = "race-million.json", million(given.million)
    else:
        name, found = "race.json", {"real": real(Path(given.folder))}
        found["change"] = change()
    (OUT / name).write_text(json.dumps(found, indent=1))
    print(f"{time.perf_counter() - clock:.0f} s")


if __name__ == "__main__":
    main()
