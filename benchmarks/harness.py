"""What the benchmarks share: a session, turns, seconds of CPU, and one form of result.

A result is out/NAME.json: `benchmark`, `date`, `machine`, `versions`, `rows` (each with its label,
the seconds of every run, their median and range) and `ratios`, which benchmarks/targets.py names
and benchmarks/page.py prints.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil
from pyspark.sql import SparkSession

__all__ = ["OUT", "about", "cores", "cpu_seconds", "in_turns", "row", "session", "timed", "write"]

OUT = Path(__file__).resolve().parent.parent / "out"
PACKAGES = ("pyspark", "numpy", "numba", "pyarrow", "pandas")
Row = dict[str, Any]


def cores() -> int:
    """Cores that a benchmark uses: those of the machine, at most four."""
    return min(4, os.cpu_count() or 1)


def session(memory: str = "2g", threads: int | None = None, **conf: Any) -> SparkSession:
    """A local session that prints nothing."""
    # else workers start whatever python3 the PATH has
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    threads = threads or cores()
    builder = (
        SparkSession.builder.master(f"local[{threads}]")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.driver.memory", memory)
        .config("spark.driver.maxResultSize", "0")
        .config("spark.sql.shuffle.partitions", threads)
    )
    for name, value in conf.items():
        builder = builder.config(name.replace("__", "."), value)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    return spark


def cpu_seconds() -> float:
    """Seconds of CPU that this process and its children took: Spark's JVM and its workers.

    On a machine with other work they say more than the clock. NaN where there is no /proc.
    """
    parents, ticks = {}, {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = file.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            parents[int(file.parent.name)] = int(fields[1])
            # of the process, and of children that have ended
            ticks[int(file.parent.name)] = sum(map(int, fields[11:15]))
    ours, grown = {os.getpid()}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in ours} - ours
        grown = bool(more)
        ours |= more
    held = [ticks[process] for process in ours if process in ticks]
    return sum(held) / os.sysconf("SC_CLK_TCK") if held else math.nan


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds that it takes by the clock and of CPU, and what it gives."""
    clock, cpu = time.perf_counter(), cpu_seconds()
    given = work()
    return time.perf_counter() - clock, cpu_seconds() - cpu, given


def in_turns(ways: Mapping[str, Callable[[], Any]], runs: int) -> list[Row]:
    """Time each way so often, by turns, so that a busy moment of the machine hits each of them."""
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, way in ways.items():
            seconds, busy, _ = timed(way)
            took[name].append((seconds, busy))
            print(f"  {name}: {seconds:.2f} s, {busy:.2f} s of CPU", file=sys.stderr, flush=True)
    return [
        row(name, [one[0] for one in found], [one[1] for one in found])
        for name, found in took.items()
    ]


def row(label: str, seconds: Sequence[float], cpu: Sequence[float] = (), **more: Any) -> Row:
    """One row of a result: what was timed, all its runs, their median and range in seconds."""
    made: Row = {
        "label": label, "seconds": list(seconds), "median": statistics.median(seconds),
        "low": min(seconds), "high": max(seconds), "runs": len(seconds),
    }  # fmt: skip
    if len(cpu):
        made |= {"cpu": list(cpu), "medianCpu": statistics.median(cpu)}
    return made | more


def about(benchmark: str) -> dict[str, Any]:
    """Name, day, machine and versions: the head of every result."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), model)
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        versions[package] = importlib.metadata.version(package)
    return {
        "benchmark": benchmark,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": {
            "cpu": model,
            "cores": os.cpu_count(),
            "memoryGiB": round(psutil.virtual_memory().total / 2**30),
            "system": f"{platform.system()} {platform.machine()}",
            # work of others while the benchmark ran makes its figures suspect
            "load": round(os.getloadavg()[0], 1),
        },
        "versions": versions,
    }


def write(
    benchmark: str, rows: list[Row], ratios: dict[str, float], file: Path | None = None, **more: Any
) -> Path:
    """Print a result and write it to out/BENCHMARK.json."""
    print(f"\n{benchmark}")
    width = max([len(one["label"]) for one in rows], default=0)
    for one in rows:
        if "median" in one:
            spread = f"{one['low']:.2f} to {one['high']:.2f}"
            print(f"{one['label']:<{width}} {one['median']:>9.2f} s {spread:>18}")
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.2f}")
    path = file or OUT / f"{benchmark}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    result = about(benchmark) | more | {"rows": rows, "ratios": ratios}
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"written to {path}")
    return path
