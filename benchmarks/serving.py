"""The service under load: top 10 of 45,000 items at rank 16 while versions are committed beside it.

    python benchmarks/serving.py --rate 200 --requests 20000 --spark   # beside a stream of Spark
    python benchmarks/serving.py --rate 200 --seconds 60    # beside the updater without Spark
    python benchmarks/serving.py --memory 1000000           # memory and start: so many of each
    python benchmarks/serving.py --memory 9000000 --items 1000000      # 10 million ids
    python benchmarks/serving.py --index 1000000            # the approximate index, its recall

Versions come from a process that learns batches of ratings with the library's own updater and
commits them, as the stream does; with --spark from a stream of Spark, which reads a file of ratings
a version. The service runs in a process of its own; so does this client. Requests are sent when
they are due, whether those before are answered or not, and times count from when they were due.
Figures as JSON to --json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.kernels.topn import top_n
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.ml.params import default_settings
from sparkml_sgdals.serving.model.approximate import build_index
from sparkml_sgdals.state.factors import FactorTable
from sparkml_sgdals.state.model_state import Counters, ModelState, Scale
from sparkml_sgdals.store.version_store import VersionStore

_CONNECTIONS: Final = 16
_GAUGES: Final = (
    "model_swaps", "model_load_seconds", "model_mapped_bytes", "index_recall", "index_builds"
)  # fmt: skip
_PART: Final = 1_000_000
"""users that are made at once"""


def fill(table: FactorTable, first: int, count: int, rng: np.random.Generator) -> None:
    """A table of random factors of `count` ids from `first` on."""
    width = table.settings.rank + 1
    table.put(
        pa.array(np.arange(first, first + count)),
        {
            "mean": rng.normal(0, 0.3, (count, width)),
            "var": rng.uniform(0.01, 0.1, (count, width)),
            "base_mean": 0.0,
            "base_var": 0.1,
            "count": rng.integers(1, 500, count),
        },
    )


def make_model(path: str, users: int, items: int) -> None:
    """A model path of random factors, a part of the users a version."""
    rng = np.random.default_rng(1)
    store, commit, settings = VersionStore(path), None, default_settings(rank=16)
    for first in range(0, users, _PART):
        state = ModelState.empty(settings, "int", "int")
        fill(state.users, first, min(_PART, users - first), rng)
        fill(state.items, 0, 0 if first else items, rng)
        state.scale = Scale(3.5, 1.0, 1e6, 1e6, 1_000_000, True)
        state.counters = Counters(1_000_000, 0.5, 5.0, 100_000, 70_000.0, 90_000.0)
        if commit is None:
            meta = {
                "settings": settings.to_json(), "kinds": ["int", "int"], "origin": "nothing",
                "pathId": "benchmark", "uid": "benchmark", "params": {},
                "idTypes": ["int", "int"],
            }  # fmt: skip
            commit = store.create(state, meta)
        else:
            rows = np.arange(state.users.size), np.empty(0, np.int64)
            # so that no part is taken for all there is
            before = replace(commit, delta_rows=-(10**12))
            commit = store.commit(state, rows, commit.batch + 1, before, None)


def stream_versions(
    path: str, users: int, items: int, every: float, ratings: int, most: int, ended: Any
) -> None:
    """A stream of Spark that reads and learns a file of ratings every so often."""
    from pyspark.sql import SparkSession

    from sparkml_sgdals import StreamingBiasedALSModel

    inbox = Path(path).parent / "inbox"
    inbox.mkdir()
    builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    spark = builder.config("spark.driver.memory", "1g").getOrCreate()
    schema = "user int, item int, rating float"
    stream = spark.readStream.schema(schema).option("maxFilesPerTrigger", 1).parquet(str(inbox))
    job = StreamingBiasedALSModel.load(path).updateStream(
        stream, path, trigger={"processingTime": "100 milliseconds"}
    )
    rng, due = np.random.default_rng(2), time.monotonic()
    for number in range(most):
        due += every
        if ended.wait(max(0.0, due - time.monotonic())):
            break
        hidden = inbox / f".{number}.tmp"
        pq.write_table(some_ratings(rng, users, items, ratings), hidden)
        hidden.rename(inbox / f"{number:06d}.parquet")
    ended.wait()
    job.stop()
    spark.stop()


def some_ratings(rng: np.random.Generator, users: int, items: int, count: int) -> pa.Table:
    """Random ratings of half stars."""
    return pa.table(
        {
            "user": pa.array(rng.integers(0, users, count), pa.int32()),
            "item": pa.array(rng.integers(0, items, count), pa.int32()),
            "rating": pa.array(rng.integers(1, 11, count) / 2, pa.float32()),
        }
    )


def commit_versions(
    path: str, users: int, items: int, every: float, ratings: int, most: int, ended: Any
) -> None:
    """Learn and commit a batch every so often: what a stream does, in a process of its own."""
    store = VersionStore(path)
    state, commit = store.load()
    rng = np.random.default_rng(2)
    due = time.monotonic()
    for number in range(most):
        due += every
        if ended.wait(max(0.0, due - time.monotonic())):
            return
        table = some_ratings(rng, users, items, ratings)
        report = learn_batch(state, encode_ratings(table))
        metrics = {
            "batch": number, "version": commit.version + 1, "ratings": ratings,
            "committed": commit.committed, "rmse": report.rmse,
            "baselineRmse": report.baseline_rmse, "validationRmse": None,
        }  # fmt: skip
        rows = (report.user_rows, report.item_rows)
        commit = store.commit(state, rows, number, commit, metrics)
        store.prune(5, 60.0)


def measure_index(items: int, recall: float) -> dict[str, Any]:
    """The approximate index against the exact ranking, for users that it was not tuned on.

    Features are independent with falling variances, as learned ones have, and with equal ones, the
    worst there is for an index; biases N(0, 0.3).
    """
    found: dict[str, Any] = {"items": items, "recall_asked": recall}
    rng = np.random.default_rng(4)
    falling = 0.6 * 0.85 ** np.arange(16)
    for name, spread in (("falling", falling), ("equal", np.full(16, 0.3))):
        factors = np.ones((18, items), np.float32)
        factors[:16] = rng.normal(0, 1, (16, items)) * spread[:, None]
        factors[16] = rng.normal(0, 0.3, items)
        queries = np.ones((600, 18), np.float32)
        queries[:, :16] = rng.normal(0, 1, (600, 16)) * spread
        clock = time.perf_counter()
        built = build_index(factors, queries[:100], recall, 0, ())
        seconds = time.perf_counter() - clock
        held, times = [], {"exact": [], "index": []}
        for query in queries[100:, None]:
            clock = time.perf_counter()
            exact = top_n(query, factors, 10)[0][0]
            times["exact"].append(time.perf_counter() - clock)
            clock = time.perf_counter()
            # as the service: over-fetched, then scored exactly
            rows = np.sort(built.search(query, 40))
            best = top_n(query, np.ascontiguousarray(factors[:, rows]), 10)[0][0]
            times["index"].append(time.perf_counter() - clock)
            held.append(np.isin(exact, rows[best]).mean())
        found[name] = {
            "recall_at_10": round(float(np.mean(held)), 4),
            "recall_at_build": round(built.recall, 4),
            "lists_opened": f"{built.probes} of {built.index.nlist}",
            "build_seconds": round(seconds, 1),
            "exact_ms": round(1e3 * float(np.median(times["exact"])), 2),
            "index_ms": round(1e3 * float(np.median(times["index"])), 2),
        }
    return found


def start_service(path: str, cache: str, *more: str) -> tuple[subprocess.Popen[str], str, float]:
    """The service's process, its address, and seconds until it listened."""
    clock = time.perf_counter()
    command = [sys.executable, "-m", "sparkml_sgdals.serving", "--model", path, "--port", "0"]
    running = subprocess.Popen(
        [*command, "--cache", cache, *more], stdout=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    line = running.stdout.readline()
    if not line.startswith("Serving at"):
        raise RuntimeError("The service did not start.")
    return running, line.split()[-1], time.perf_counter() - clock


async def send(address: str, users: int, rate: float, count: int) -> dict[str, Any]:
    """Ask for the best ten of random users, `rate` a second, and what came of it."""
    rng = np.random.default_rng(3)
    asked = rng.integers(0, users, count)
    seconds = np.full(count, np.nan)
    failed: list[str] = []
    versions: set[int] = set()
    due: asyncio.Queue[tuple[int, float] | None] = asyncio.Queue()
    host, port = address.removeprefix("http://").rstrip("/").split(":")

    async def connection() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))

        async def get(user: int) -> tuple[int, bytes]:
            # a full client takes longer for a request than the service does
            writer.write(b"GET /recommendations/%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % user)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length:")[2].split(None, 1)[0])
            return int(head[9:12]), await reader.readexactly(length)

        await get(1)
        while (item := await due.get()) is not None:
            number, since = item
            try:
                status, body = await get(int(asked[number]))
            except (OSError, EOFError, ValueError) as fault:
                failed.append(repr(fault))
                reader, writer = await asyncio.open_connection(host, int(port))
                continue
            seconds[number] = time.perf_counter() - since
            found = json.loads(body)
            if status != 200 or len(found["items"]) != 10 or found["cold"]:
                failed.append(f"{status} {body[:100]!r}")
            else:
                versions.add(found["version"])
        writer.close()

    connections = [asyncio.create_task(connection()) for _ in range(_CONNECTIONS)]
    await asyncio.sleep(1.0)
    begin = time.perf_counter()
    for number in range(count):
        since = begin + number / rate
        wait = since - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        due.put_nowait((number, since))
    for _ in connections:
        due.put_nowait(None)
    await asyncio.gather(*connections)
    took = time.perf_counter() - begin
    good = seconds[np.isfinite(seconds)] * 1_000
    return {
        "requests": count,
        "errors": len(failed),
        "faults": failed[:5],
        "requests_per_second": count / took,
        "versions_seen": len(versions),
        "median_ms": float(np.median(good)),
        "p99_ms": float(np.percentile(good, 99)),
        "p999_ms": float(np.percentile(good, 99.9)),
        "max_ms": float(good.max()),
        "seconds_with_one_over_50_ms": len({int(n / rate) for n in np.flatnonzero(seconds > 0.05)}),
    }


def memory_of(pid: int) -> dict[str, float]:
    """Resident memory of a process in MB: its own, and pages of mapped files."""
    found = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "RssAnon", "RssFile", "RssShmem", "VmHWM"):
            found[name] = round(int(value.split()[0]) / 1024, 1)
    return found


def cpu_of(pid: int) -> float:
    """Seconds of processor that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100.0


def main() -> None:
    """Run one of the measurements."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, help="45,000; with --memory as many as users")
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--requests", type=int, help="so many, whatever the seconds")
    parser.add_argument("--versions", type=int, default=10**6, help="commit so many")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between versions")
    parser.add_argument("--batch", type=int, default=1_000, help="ratings of a version")
    parser.add_argument("--spark", action="store_true", help="learn by a stream of Spark")
    parser.add_argument("--nice", type=int, default=0, help="of the process that learns")
    parser.add_argument("--ann", action="store_true", help="rank by an approximate index")
    parser.add_argument("--memory", type=int, help="so many users: memory only")
    parser.add_argument("--index", type=int, help="so many items: the approximate index only")
    parser.add_argument("--recall", type=float, default=0.95, help="asked of the index")
    parser.add_argument("--scratch", help="folder on a disk")
    parser.add_argument("--json")
    given = parser.parse_args()

    if given.index:
        tell(measure_index(given.index, given.recall), given.json)
        return
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
        path = f"{folder}/model"
        users = given.memory or given.users
        items = given.items or given.memory or 45_000
        spawn = multiprocessing.get_context("spawn")
        # a process of its own gives back the memory
        maker = spawn.Process(target=make_model, args=(path, users, items))
        maker.start()
        maker.join()
        more = ["--ann", "--ann-recall", str(given.recall)] if given.ann else []
        running, address, start = start_service(path, folder, *more)
        found: dict[str, Any] = {"users": users, "items": items, "start_seconds": round(start, 2)}
        ended = spawn.Event()
        learn = stream_versions if given.spark else commit_versions
        args = (path, users, items, given.every, given.batch, given.versions, ended)
        modeler = spawn.Process(target=learn_nicely, args=(given.nice, learn, args))
        try:
            with httpx.Client(base_url=address, timeout=120) as web:
                if given.memory:
                    for user in range(20):
                        clock = time.perf_counter()
                        web.get(f"/recommendations/{user}").raise_for_status()
                        found["last_top10_ms"] = round(1e3 * (time.perf_counter() - clock), 1)
                else:
                    modeler.start()
                    # a stream that has been running: its own start is not what is measured
                    while "sparkml_sgdals_model_swaps 2.0" not in web.get("/metrics").text:
                        time.sleep(0.1)
                    count = given.requests or int(given.rate * given.seconds)
                    before = cpu_of(running.pid)
                    found |= asyncio.run(send(address, users, given.rate, count))
                    used = cpu_of(running.pid) - before
                    found["service_cores"] = round(used * given.rate / count, 2)
                metrics = web.get("/metrics").text
            for line in metrics.splitlines():
                for name in _GAUGES:
                    if line.startswith(f"sparkml_sgdals_{name} "):
                        found[name] = float(line.split()[-1])
            found |= memory_of(running.pid)
        finally:
            ended.set()
            if modeler.is_alive():
                modeler.join(30)
            running.terminate()
            running.wait(30)
    tell(found, given.json)


def learn_nicely(nice: int, learn: Any, args: Any) -> None:
    """Learn with less claim to the cores than requests have."""
    os.nice(nice)
    learn(*args)


def tell(found: dict[str, Any], file: str | None) -> None:
    """Print figures, and keep them."""
    text = json.dumps(found, indent=1)
    print(text)
    if file:
        Path(file).write_text(text + "\n")


if __name__ == "__main__":
    main()
