"""A stream onto a model of five million ids of which the process keeps few: time and memory.

    python benchmarks/large_model.py --ids 5000000 --resident 200000 --json out/large_model.json

makes model paths in a temporary folder (5 million ids at rank 16 take 1.5 GB, and as much again
while they are compacted), then streams micro-batches of 1,000 ratings of ids drawn from all of
them, 1 in 100 new: onto the large model with `maxResidentIds`, and onto a small one that is all
in memory. Each runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.ml.params import default_settings
from sparkml_sgdals.state.factors import FactorTable, arrow_schema
from sparkml_sgdals.state.model_state import SETTLING_RATINGS, Counters, ModelState, Scale
from sparkml_sgdals.state.settings import Settings
from sparkml_sgdals.store.overlay import Overlay
from sparkml_sgdals.store.packed_rows import RowShape
from sparkml_sgdals.store.sorted_runs import Run, RunWriter, merge_runs
from sparkml_sgdals.store.version_store import VersionStore

SCHEMA = "user long, item long, rating double, time long"
_CHUNK = 200_000


def make_model(path: Path, users: int, items: int, settings: Settings) -> None:
    """A model path as a fit leaves it, written part by part: ids 3, 6, 9, ..., random factors."""
    state = ModelState.empty(settings, "int", "int")
    state.scale = Scale(3.5, 1.0, 1000.0, 1000.0, SETTLING_RATINGS, True)
    state.counters = Counters(20 * (users + items), 0.5, 5.0)
    store = VersionStore(str(path))
    meta = {
        "settings": settings.to_json(), "kinds": ["int", "int"], "origin": "generated",
        "pathId": uuid.uuid4().hex, "uid": "StreamingBiasedALS_generated",
        "idTypes": ["bigint", "bigint"],
        "params": {"timestampCol": "time"},
    }  # fmt: skip
    commit = store.create(state, meta)
    files = {}
    for side, count in (("users", users), ("items", items)):
        name = f"files/{0:012d}-generated-{side}.parquet"
        with pq.ParquetWriter(path / name, arrow_schema("int")) as writer:
            for first in range(0, count, _CHUNK):
                ids = np.arange(first, min(first + _CHUNK, count)) * 3 + 3
                writer.write_table(_part(ids, settings, first))
        payload = (path / name).stat().st_size
        check = subprocess.run(["sha256sum", path / name], capture_output=True, check=True)
        digest = check.stdout.split()[0].decode()
        files[side] = {"name": name, "rows": count, "bytes": payload, "sha256": digest}
    store.put_commit(replace(commit, files=files, ids=[users, items]))


def _part(ids: np.ndarray, settings: Settings, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    shape = (ids.size, settings.rank + 1)

    def normal(std: float) -> np.ndarray:
        return rng.normal(0, std, shape).astype(np.float32)

    table = FactorTable(1, "int", settings)
    table.put(
        pa.array(ids),
        {
            "mean": normal(0.3), "var": 0.05, "base_mean": 0.1, "base_var": 0.05, "count": 20,
            "drawn": normal(0.05), "influence": normal(0.02), "evidence": 1.0,
        },
    )  # fmt: skip
    return table.to_arrow()


def make_ratings(folder: Path, users: int, items: int, batches: int, size: int) -> None:
    """CSV files, one a micro-batch."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    for number in range(batches):
        ids = [rng.integers(1, n + 1, size) * 3 + (rng.random(size) < 0.01) for n in (users, items)]
        frame = pd.DataFrame(
            {"user": ids[0], "item": ids[1], "rating": rng.integers(1, 11, size) / 2,
             "time": np.arange(size) + number * size}
        )  # fmt: skip
        file = folder / f"{number:06d}.csv"
        frame.to_csv(file, index=False, header=False)
        # the file source goes by modification time
        os.utime(file, (1_000_000_000 + number,) * 2)


def memory() -> dict[str, int]:
    """Resident memory of this process in MB: all of it, and what is not a file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    held = dict(line.split(":") for line in lines)
    return {n: int(held[k].split()[0]) // 1024 for n, k in (("rss", "VmRSS"), ("anon", "RssAnon"))}


def stream(path: str, folder: str, resident: int) -> dict[str, Any]:
    """Learn a folder's files onto the model of a path; what each batch took."""
    from pyspark.sql import SparkSession

    from sparkml_sgdals import StreamingBiasedALSModel
    from sparkml_sgdals.store import overlay
    from sparkml_sgdals.stream import micro_batch

    spark = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.driver.memory", "1g")
        .config("spark.sql.streaming.numRecentProgressUpdates", "10000")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    batches: list[dict[str, Any]] = []
    compactions: list[dict[str, Any]] = []
    call, compact = micro_batch.StreamUpdater.__call__, overlay.compact

    def timed_call(self: Any, batch: Any, batch_id: int) -> None:
        clock = time.perf_counter()
        call(self, batch, batch_id)
        batches.append({"seconds": time.perf_counter() - clock} | memory())

    def timed_compact(store: Any, commit: Any, held: Any, touched: Any, check: Any) -> Any:
        clock = time.perf_counter()
        runs = compact(store, commit, held, touched, check)
        rows = {side: [entry["count"] for entry in runs[side]] for side in ("users", "items")}
        took = {"batch": commit.batch, "seconds": time.perf_counter() - clock}
        compactions.append(took | {"runs": rows})
        return runs

    micro_batch.StreamUpdater.__call__ = timed_call
    overlay.compact = timed_compact
    frame = spark.readStream.schema(SCHEMA).option("maxFilesPerTrigger", 1).csv(folder)
    before = memory()
    job = StreamingBiasedALSModel.resumeStream(
        frame, path, maxResidentIds=resident, trigger={"availableNow": True}
    )
    job.awaitTermination()
    progress = [p["durationMs"]["triggerExecution"] / 1000 for p in job.query.recentProgress
                if p["numInputRows"]]  # fmt: skip
    spark.stop()
    return {"before": before, "batches": batches, "triggers": progress, "compactions": compactions}


def whole_base(path: str) -> dict[str, Any]:
    """Merge all runs of a path, whose stream has stopped, into a new base; the path keeps its own.

    It happens when about as many rows have changed as the base holds.
    """
    store = VersionStore(path)
    meta, commit = store.meta() or {}, store.newest()
    assert commit is not None
    assert commit.runs is not None
    shape = RowShape.of("int", Settings.from_json(meta["settings"]))
    clock, before, rows, size = time.perf_counter(), memory(), 0, 0
    for side in ("users", "items"):
        held = [Run(store, shape, entry) for entry in commit.runs[side]]
        with RunWriter(store, shape, f"files/{commit.version:012d}-bench-{side}") as writer:
            merge_runs(held, writer)
        rows += writer.entry()["count"]
        for part in ("rows", "keys"):
            size += writer.entry()[part]["bytes"]
            store.delete(writer.entry()[part]["name"])
    return {
        "rows": rows, "MB": size // 2**20, "seconds": round(time.perf_counter() - clock, 1),
        "memory before, MB": before, "memory after, MB": memory(),
        "highest RSS, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }  # fmt: skip


def in_turns(scratch: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Learn and commit without Spark, small and large by turns: load meets both alike.

    On copies of the small path, and on the large path, after its stream.
    """
    shutil.copytree(scratch / "small", scratch / "small-copy", dirs_exist_ok=True)
    rng = np.random.default_rng(2)
    seconds: dict[str, list[float]] = {"small": [], "large": []}
    sides = {}
    for name, folder, ids in (("small", "small-copy", given.small), ("large", "large", given.ids)):
        store = VersionStore(str(scratch / folder))
        commit = store.newest()
        assert commit is not None
        part = Overlay(store, commit, given.resident) if name == "large" else None
        state = store.load()[0] if part is None else part.state
        sides[name] = [store, commit, part, state, ids]
    for _ in range(given.warm + given.turns):
        for name, (store, commit, part, state, ids) in sides.items():
            users, items = ids - ids // 5, ids // 5
            columns = {
                side: rng.integers(1, n + 1, given.size) * 3 + (rng.random(given.size) < 0.01)
                for side, n in (("user", users), ("item", items))
            }
            values = (rng.integers(1, 11, given.size) / 2).astype(np.float32)
            table = pa.table(columns | {"rating": values})
            clock = time.perf_counter()
            ratings = encode_ratings(table)
            onto = None
            if part is not None:
                part.fetch(ratings.user_ids, ratings.item_ids)
            report = learn_batch(state, ratings)
            if part is not None:
                onto = part.onto(report.new_users, report.new_items)
            rows = (report.user_rows, report.item_rows)
            made = store.commit(state, rows, commit.batch + 1, commit, {"batch": 0}, onto=onto)
            if part is not None:
                part.committed(made, rows)
            sides[name][1] = made
            seconds[name].append(time.perf_counter() - clock)
    counted = {name: np.array(held[given.warm :]) * 1000 for name, held in seconds.items()}
    found = {
        name: {"median, ms": round(float(np.median(v)), 1), "mean, ms": round(float(v.mean()), 1)}
        for name, v in counted.items()
    }
    ratio = counted["large"] / counted["small"]
    return found | {"median of the ratios": round(float(np.median(ratio)), 2), "turns": given.turns}


def summary(found: dict[str, Any], warm: int) -> dict[str, Any]:
    """The figures of a run, without its first batches."""
    batches = found["batches"][warm:]
    seconds = np.array([b["seconds"] for b in batches])
    triggers = np.array(found["triggers"][warm:])

    def described(values: np.ndarray) -> dict[str, float]:
        parts = {
            "median": np.median(values),
            "mean": values.mean(),
            "p95": np.quantile(values, 0.95),
        }
        return {
            name: round(float(v) * 1000, 1) for name, v in (parts | {"max": values.max()}).items()
        }

    tenths = np.array_split(np.array([b["anon"] for b in batches]), 10)
    return {
        "first batch, opening included, s": round(found["batches"][0]["seconds"], 1),
        "learn and commit, ms": described(seconds),
        "trigger, ms": described(triggers),
        "memory before the stream, MB": found["before"],
        "memory by tenth of the run (RssAnon, highest), MB": [int(t.max()) for t in tenths],
        "memory in the end, MB": {name: batches[-1][name] for name in ("rss", "anon")},
        "compactions": found["compactions"],
    }


def main() -> None:
    """Make the models, run both streams, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ids", type=int, default=5_000_000)
    parser.add_argument("--small", type=int, default=20_000)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--resident", type=int, default=200_000)
    parser.add_argument("--batches", type=int, default=300)
    parser.add_argument("--size", type=int, default=1000)
    parser.add_argument("--warm", type=int, default=20, help="first batches that do not count")
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument(
        "--only", choices=["all", "make", "small", "large", "turns", "base"], default="all"
    )
    parser.add_argument("--scratch", type=Path, help="folder to work in, kept; for --only")
    parser.add_argument("--json", type=Path, default=Path("out/large_model.json"))
    parser.add_argument("--stream", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stream:
        path, folder, resident = given.stream
        given.json.write_text(json.dumps(stream(path, folder, int(resident))))
        return
    with tempfile.TemporaryDirectory(prefix="large-model-") as scratch:
        run(given, given.scratch or Path(scratch))


def run(given: argparse.Namespace, scratch: Path) -> None:
    """Make models and stream onto them, or what of that is wanted."""
    out = given.json
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(exist_ok=True)
    figures: dict[str, Any] = {}
    if given.only != "all" and out.exists():
        figures = json.loads(out.read_text())
    for name, ids, resident in (("small", given.small, 0), ("large", given.ids, given.resident)):
        path, folder = scratch / name, scratch / f"{name}-ratings"
        users, items = ids - ids // 5, ids // 5
        if given.only in ("all", "make"):
            make_model(path, users, items, default_settings(rank=given.rank))
            make_ratings(folder, users, items, given.batches, given.size)
            print(f"{name}: made", flush=True)
        if given.only in ("all", name):
            raw = scratch / f"{name}.json"
            command = [sys.executable, __file__, "--json", raw, "--stream", path, folder, resident]
            subprocess.run([str(part) for part in command], check=True)
            found = json.loads(raw.read_text())
            figures[name] = {"ids": ids, "resident": resident} | summary(found, given.warm)
            print(json.dumps({name: figures[name]}, indent=1), flush=True)
    if {"small", "large"} <= set(figures):
        for what in ("learn and commit, ms", "trigger, ms"):
            figures[f"large to small, {what[:-4]}"] = {
                name: round(figures["large"][what][name] / value, 2)
                for name, value in figures["small"][what].items()
            }
    if given.only in ("all", "turns"):
        figures["in turns, without Spark"] = in_turns(scratch, given)
    if given.only in ("all", "base"):
        figures["a base of all"] = whole_base(str(scratch / "large"))
    out.write_text(json.dumps(figures, indent=1) + "\n")
    print(out.read_text())


if __name__ == "__main__":
    main()
