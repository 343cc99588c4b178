"""How `fit` grows with ratings and cores, and what it moves in blocks: python benchmarks/scale.py.

    python benchmarks/scale.py --ratings 1M 3M 10M 26M 78M --one-core 1M 3M 10M --moved 3M 10M
        --capped 26M

90% of so many ratings of benchmarks/generate.py from Parquet, nothing cached, rank 10, in one task
(maxRatingsPerTask above all of them), with sweeps until they settle. Each fit has a fresh process
with a session of its own, and learns 100,000 ratings a few times first, so that the workers are
warm; those in blocks, of which bytes are asked, do not. While it learns,
the resident memory of the driver, of the JVM and of the Python workers is looked at twenty times a
second; the JVM may take --memory and takes what it may before it collects its garbage.

The exponent is the slope of log seconds over log ratings, of all sizes and of those from 3 million.

Bytes moved are those of Spark's own metrics (its event log): shuffle bytes written, which are
compressed, and bytes to and from the Python workers, in a fit with --blocks blocks. The difference
between fits of 1 and of 3 sweeps, halved, is one sweep; the rest is routing, layouts and filter.
Ratings go to files of the blocks beside that: their bytes are looked at, by kind, while it learns.
Where that folder is on disks that tasks see, factors are files as well, and next to nothing is
shuffled: so --moved is not measured unless it is given, say with a master whose folder is none.

--capped learns in one task, then again and in --blocks blocks where no Python worker may have more
than --cap megabytes of address space, as on an executor with spark.executor.pyspark.memory; a
worker that has imported what it needs has 1,900 of them.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from generate import ratings_count, write_ratings
from harness import cores, cpu_seconds, row, session, write
from large_fit import rmse_of

RANK = 10
TO_PYTHON = "data sent to Python workers"
FROM_PYTHON = "data returned from Python workers"
EACH_SWEEP = ("layout", "rows")
"""Files of blocks that every sweep reads; the others are read once or twice before the first."""


class Peaks(threading.Thread):
    """Highest resident memory of this process, the JVM and all Python workers, in bytes."""

    def __init__(self, folder: str = "") -> None:
        super().__init__(daemon=True)
        self.held = {"driver": 0, "jvm": 0, "workers": 0, "all": 0}
        self.files: Counter[str] = Counter()
        self._folder = folder
        self._over = threading.Event()

    def run(self) -> None:
        """Look until told to stop."""
        own = psutil.Process()
        for look in itertools.count():
            if self._over.wait(0.05):
                return
            now = {"driver": own.memory_info().rss, "jvm": 0, "workers": 0}
            for child in own.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    kind = "jvm" if "java" in child.name() else "workers"
                    # forked workers share pages: what is their own counts
                    used = child.memory_info()
                    now[kind] += used.rss - (used.shared if kind == "workers" else 0)
            now["all"] = sum(now.values())
            self.held = {name: max(self.held[name], value) for name, value in now.items()}
            # thousands of files, which stay for seconds
            if self._folder and look % 10 == 0:
                self.files |= block_files(Path(self._folder))

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        self.join()


def block_files(folder: Path) -> Counter[str]:
    """Bytes of the files of a fit in blocks, by kind: pieces, cell, layout, ids, rows."""
    found: Counter[str] = Counter()
    for file in folder.glob("sparkml-sgdals-blocks-*/*"):
        # a name with a dot is not whole yet; others may go while they are looked at
        if "." not in file.name:
            with contextlib.suppress(FileNotFoundError):
                found[file.name.partition("-")[0]] += file.stat().st_size
    return found


@contextmanager
def watched(folder: str = "") -> Iterator[Peaks]:
    """Look at memory, and at the files of blocks below a folder, while what is inside runs."""
    peaks = Peaks(folder)
    peaks.start()
    try:
        yield peaks
    finally:
        peaks.stop()


def fit_once(
    folder: str, warm: str, threads: int, blocks: int, sweeps: int, memory: str, log: str,
    judge: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Seconds, peaks and summary of one fit of this process, and its held-out RMSE where asked.

    Events go to `log` if it is given.
    """
    conf: dict[str, Any] = {}
    local = f"{log}-local" if log else ""
    if log:
        conf = {
            "spark__local__dir": local,
            "spark__eventLog__enabled": "true",
            "spark__eventLog__dir": Path(log).as_uri(),
            "spark__eventLog__compress": "false",
            "spark__eventLog__rolling__enabled": "false",
        }
    spark = session(memory, threads, **conf)
    from sparkml_sgdals import StreamingBiasedALS

    als = StreamingBiasedALS(
        userCol="userId", itemCol="movieId", rank=RANK, maxIter=sweeps, numBlocks=blocks,
        maxRatingsPerTask=2_000_000_000,
    )  # fmt: skip
    if not log:
        # packing goes to the worker of each core, and learning to any one of them
        for _ in range(2 * threads):
            als.fit(spark.read.parquet(warm).repartition(threads))
    table = spark.read.parquet(folder)
    clock, cpu = time.perf_counter(), cpu_seconds()
    with watched(local) as peaks:
        model = als.fit(table)
    found = {
        "seconds": time.perf_counter() - clock, "cpu": cpu_seconds() - cpu, "peaks": peaks.held,
        "files": dict(peaks.files),
        "learned": model.summary.ratings, "ids": [model.summary.users, model.summary.items],
        "phases": dict(model.summary.seconds),
    }  # fmt: skip
    if judge:
        held_out = spark.read.parquet(str(Path(folder).parent / "test"))
        found["rmse"] = rmse_of(model, held_out)
    spark.stop()
    return found


def moved(log: Path) -> dict[str, int]:
    """Bytes of all tasks of an event log: shuffled, read of input, and to and from Python."""
    total = {"shuffled": 0, "input": 0, "toPython": 0, "fromPython": 0, "spilled": 0}
    names = {TO_PYTHON: "toPython", FROM_PYTHON: "fromPython"}
    for file in log.rglob("*"):
        if not file.is_file():
            continue
        for line in file.read_text(encoding="utf-8").splitlines():
            if not line.startswith('{"Event":"SparkListenerTaskEnd"'):
                continue
            event = json.loads(line)
            metrics = event.get("Task Metrics") or {}
            written = metrics.get("Shuffle Write Metrics", {}).get("Shuffle Bytes Written", 0)
            total["shuffled"] += written
            total["input"] += metrics.get("Input Metrics", {}).get("Bytes Read", 0)
            total["spilled"] += metrics.get("Disk Bytes Spilled", 0)
            for held in event["Task Info"].get("Accumulables", []):
                if held.get("Name") in names:
                    total[names[held["Name"]]] += int(held.get("Update", 0))
    return total


def in_process(*asked: Any, **environment: str) -> dict[str, Any]:
    """`fit_once` in a fresh process; CalledProcessError, with its stderr, where it fails."""
    done = subprocess.run(
        [sys.executable, __file__, "--fit-once", json.dumps(asked)],
        check=True, capture_output=True, text=True, env=os.environ | environment,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    threads, blocks, sweeps = asked[2:5]
    print(
        f"  {found['learned']:,} ratings, {threads} cores, {blocks} blocks, {sweeps} sweeps: "
        f"{found['seconds']:.1f} s, {found['cpu']:.1f} s of CPU, "
        f"{found['peaks']['all'] / 2**30:.1f} GiB",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    return found


def slope(sizes: list[int], seconds: list[float]) -> float:
    """Slope of log seconds over log ratings; NaN of one size."""
    if len(sizes) < 2:
        return math.nan
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def main() -> None:
    """Measure, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    sizes = {"type": ratings_count, "nargs": "*"}
    parser.add_argument("--ratings", **sizes, default=[1_000_000, 3_000_000, 10_000_000,
                                                       26_000_000, 78_000_000])  # fmt: skip
    parser.add_argument("--one-core", **sizes, default=[1_000_000, 3_000_000, 10_000_000])
    # what is asked of it is the form that shuffles factors, which no folder of this machine has
    parser.add_argument("--moved", **sizes, default=[], help="in blocks: what Spark shuffles")
    parser.add_argument("--capped", **sizes, default=[26_000_000], help="with little memory")
    parser.add_argument("--cap", type=int, default=2_700, help="megabytes of a worker then")
    parser.add_argument("--blocks", type=int, default=8, help="of the fits in blocks")
    parser.add_argument("--runs", type=int, default=3, help="of sizes below 20 million; else one")
    parser.add_argument("--memory", default="6g", help="of the driver's JVM")
    parser.add_argument("--folder", type=Path, help="where ratings are made, and kept")
    parser.add_argument("--fit-once", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.fit_once:
        print(json.dumps(fit_once(*given.fit_once)))
        return
    with tempfile.TemporaryDirectory(prefix="scale-") as scratch:
        measure(given, given.folder or Path(scratch), Path(scratch))


def measure(given: argparse.Namespace, folder: Path, scratch: Path) -> None:
    """All sizes, then what blocks move."""
    warm = folder / "ratings-100000"
    write_ratings(warm, 100_000)

    def made(ratings: int) -> str:
        write_ratings(folder / f"ratings-{ratings}", ratings)
        return str(folder / f"ratings-{ratings}" / "train")

    found: dict[tuple[int, int], list[dict[str, Any]]] = {}
    wanted = [(n, cores()) for n in given.ratings] + [(n, 1) for n in given.one_core]
    for run in range(given.runs):
        for ratings, threads in wanted:
            if run and ratings >= 20_000_000:
                continue
            one = in_process(made(ratings), str(warm / "train"), threads, 1, 5, given.memory, "")
            found.setdefault((ratings, threads), []).append(one)
    rows = []
    for (ratings, threads), runs in found.items():
        one = row(
            f"{ratings:,} ratings, {threads} core{'s' * (threads > 1)}",
            [run["seconds"] for run in runs], [run["cpu"] for run in runs],
        )  # fmt: skip
        peaks = {name: max(run["peaks"][name] for run in runs) for name in runs[0]["peaks"]}
        learned = runs[0]["learned"]
        rows.append(
            one
            | {"ratings": ratings, "learned": learned, "threads": threads, "ids": runs[0]["ids"]}
            | {"peaks": peaks, "ratingsPerSecond": learned / one["median"]}
            | {"phases": [run["phases"] for run in runs]}
        )
    of_all = [one for one in rows if one["threads"] == cores()]
    ratios: dict[str, float] = {}

    def exponent(name: str, part: list[dict[str, Any]]) -> None:
        if len(part) > 1:
            ratios[name] = slope([x["learned"] for x in part], [x["median"] for x in part])

    exponent("exponent", of_all)
    exponent("exponent from 3 million", [x for x in of_all if x["ratings"] >= 3_000_000])
    alone = {one["ratings"]: one["median"] for one in rows if one["threads"] == 1}
    both = [one for one in of_all if one["ratings"] in alone]
    for one in both:
        ratios[f"1 core to {cores()}, {one['ratings']:,} ratings"] = (
            alone[one["ratings"]] / one["median"]
        )
    if both:
        ratios["1 core to 2"] = alone[both[-1]["ratings"]] / both[-1]["median"]
    workers = [one for one in of_all if one["learned"] >= 500_000]
    if len(workers) > 1:
        # the slope leaves out what a worker needs before it has a rating
        first, last = workers[0], workers[-1]
        ratios["worker bytes a rating"] = (last["peaks"]["workers"] - first["peaks"]["workers"]) / (
            last["learned"] - first["learned"]
        )
    blocks = [in_blocks(made(n), str(warm / "train"), given, scratch) for n in given.moved]
    cap = [capped(n, made(n), str(warm / "train"), given) for n in given.capped]
    write("scale", rows, ratios, blocks=blocks, capped=cap, memory=given.memory, rank=RANK)


def capped(ratings: int, folder: str, warm: str, given: argparse.Namespace) -> dict[str, Any]:
    """Seconds and RMSE of fits with as much memory as there is and with --cap megabytes a worker.

    Without them, what a fit ended with.
    """
    found: dict[str, Any] = {"ratings": ratings, "megabytes": given.cap, "fits": []}
    # what Spark tells its workers where spark.executor.pyspark.memory is set
    cap = {"PYSPARK_EXECUTOR_MEMORY_MB": str(given.cap)}
    for blocks, environment in ((1, {}), (1, cap), (given.blocks, cap)):
        asked = (folder, warm, cores(), blocks, 10, given.memory, "", True)
        fit: dict[str, Any] = {"blocks": blocks, "capped": bool(environment)}
        try:
            one = in_process(*asked, **environment)
            fit |= {"seconds": one["seconds"], "rmse": one["rmse"]}
        except subprocess.CalledProcessError as failure:
            wanting = re.search(r"\w*MemoryError|Unable to allocate", failure.stderr)
            if wanting is None:
                print(failure.stderr, file=sys.stderr)
                raise
            fit["ended"] = wanting[0]
        found["fits"].append(fit)
    print(json.dumps(found), file=sys.stderr)
    return found


def in_blocks(folder: str, warm: str, given: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Bytes moved by a fit in blocks, by sweep and before the sweeps."""
    totals = {}
    for sweeps in (1, 3):
        log = Path(tempfile.mkdtemp(prefix="events-", dir=scratch))
        one = in_process(folder, warm, cores(), given.blocks, sweeps, given.memory, str(log))
        totals[sweeps] = moved(log)
    sweep = {name: (totals[3][name] - totals[1][name]) / 2 for name in totals[1]}
    before = {name: totals[1][name] - sweep[name] for name in sweep}
    ids, learned = sum(one["ids"]), one["learned"]
    found = {
        "blocks": given.blocks, "learned": learned, "ids": one["ids"], "sweep": sweep,
        "before": before, "input": totals[1]["input"],
        "shuffledPerRating": before["shuffled"] / learned,
        "shuffledPerRatingAndSweep": sweep["shuffled"] / learned,
        "shuffledPerIdAndSweep": sweep["shuffled"] / ids,
        "files": one["files"],
        "writtenPerRating": sum(one["files"].values()) / learned,
        "readPerRatingAndSweep": sum(one["files"][kind] for kind in EACH_SWEEP) / learned,
        "peaks": one["peaks"],
    }  # fmt: skip
    print(json.dumps(found, indent=1), file=sys.stderr)
    return found


if __name__ == "__main__":
    # the memory of a fresh process is what is looked at
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    main()
