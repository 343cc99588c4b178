"""An hour of the service among strangers: python benchmarks/serving_soak.py.

    python benchmarks/serving_soak.py --minutes 60 --spark

A service answers 200 requests a second and takes 50 posts a second, while 1,000 sockets stand idle
(each is opened again when it is closed), slow clients send and read a byte a second, pages listen
to its events, probes ask once a second, a stream commits a version a second of what was posted, and
once a minute the service is killed with SIGKILL and started again. The stream is the library's own
updater in a process without Spark, or with --spark one of Spark. Posts are repeated under their key
until they are acknowledged.

In the end: no request may have failed but for a kill, each probe was answered, memory is as it was,
and what was acknowledged is in the model once, user by user. Exit code 1 where that is not so.
Writes out/serving-soak.json.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import random
import resource
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from serving import make_model, start_service

from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.store.version_store import VersionStore

OUT = Path(__file__).resolve().parent.parent / "out" / "serving-soak.json"
USERS, ITEMS = 20_000, 5_000
IDLE_FROM = [f"127.0.0.{n}" for n in range(11, 16)]
"""addresses of the idle, of which each has to stay below the limit of a client"""
_AFTER = 1.0
"""seconds after a start in which a request may still have met the kill before it"""


@dataclass
class Notes:
    """What happened."""

    kills: list[tuple[float, float]] = field(default_factory=list)
    """of each from when to when nobody listened"""
    left_out: int = 0
    """requests and posts that were due and not begun in time"""
    asked: int = 0
    posted: int = 0
    attempts: int = 0
    repeated: int = 0
    by_kill: int = 0
    """failures that a kill explains"""
    errors: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    probes: list[float] = field(default_factory=list)
    idle_opened: int = 0
    idle_now: int = 0
    events: int = 0
    slow: Counter[str] = field(default_factory=Counter)
    acknowledged: Counter[int] = field(default_factory=Counter)
    memory: list[dict[str, float]] = field(default_factory=list)

    def failed(self, what: str, since: float) -> None:
        """Note a failure of something that began then."""
        now = time.monotonic()
        for killed, up in self.kills:
            if since <= (up or now) + _AFTER and now >= killed:
                self.by_kill += 1
                return
        self.errors.append(f"{what} at {now:.1f}")


class Wire:
    """One connection that asks and is answered, and is opened again when it has broken."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body."""
        if self.streams is None:
            self.streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self.streams
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length:")[2].split(None, 1)[0])
            body = await reader.readexactly(length)
        except BaseException:
            self.close()
            raise
        if b"connection: close" in head:
            self.close()
        return int(head[9:12]), body

    def close(self) -> None:
        """Open anew the next time."""
        if self.streams is not None:
            self.streams[1].close()
        self.streams = None


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def post(key: str, ratings: list[dict[str, Any]]) -> bytes:
    body = json.dumps(ratings).encode()
    return (
        b"POST /ratings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Idempotency-Key: %s\r\nContent-Length: %d\r\n\r\n" % (key.encode(), len(body))
    ) + body


async def readers(notes: Notes, port: int, rate: float, until: float) -> None:
    """Ask for recommendations, over twenty connections."""
    due: asyncio.Queue[float | None] = asyncio.Queue()

    async def one(number: int) -> None:
        rng, wire = random.Random(number), Wire(port)
        while (since := await due.get()) is not None:
            notes.asked += 1
            try:
                status, body = await asyncio.wait_for(
                    wire.ask(get(f"/recommendations/{rng.randrange(USERS)}?n=10")), 30
                )
            except (OSError, EOFError, TimeoutError, asyncio.TimeoutError) as fault:
                notes.failed(f"a request: {fault!r}", since)
                await asyncio.sleep(0.2)
                continue
            if status != 200 or len(json.loads(body)["items"]) != 10:
                notes.failed(f"a request: {status} {body[:200]!r}", since)
            notes.seconds.append(time.monotonic() - since)
        wire.close()

    tasks = [asyncio.create_task(one(number)) for number in range(20)]
    begin, number = time.monotonic(), 0
    while time.monotonic() < until:
        number += 1
        await asyncio.sleep(max(0.0, begin + number / rate - time.monotonic()))
        due.put_nowait(begin + number / rate)
    notes.left_out += end(due, len(tasks))
    await asyncio.gather(*tasks)


def end(due: asyncio.Queue[Any], workers: int) -> int:
    """Begin nothing more; what was due and not begun, on a machine that has too much to do."""
    left = due.qsize()
    while not due.empty():
        due.get_nowait()
    for _ in range(workers):
        due.put_nowait(None)
    return left


async def posters(notes: Notes, port: int, rate: float, until: float) -> None:
    """Post ratings under keys, each until it is acknowledged, every tenth once more."""
    due: asyncio.Queue[int | None] = asyncio.Queue()

    async def one(number: int) -> None:
        rng, wire = random.Random(1_000 + number), Wire(port)
        while (key := await due.get()) is not None:
            ratings = [
                {"user": rng.randrange(USERS), "item": rng.randrange(ITEMS),
                 "rating": rng.randrange(1, 11) / 2}
                for _ in range(1 if key % 4 else 5)
            ]  # fmt: skip
            for again in range(1 + (key % 10 == 0)):
                while True:
                    since = time.monotonic()
                    notes.attempts += 1
                    try:
                        sent = post(f"post-{key}", ratings)
                        status, body = await asyncio.wait_for(wire.ask(sent), 30)
                    except (OSError, EOFError, TimeoutError, asyncio.TimeoutError) as fault:
                        notes.failed(f"a post: {fault!r}", since)
                        await asyncio.sleep(0.2)
                        continue
                    if status == 202:
                        break
                    notes.failed(f"a post: {status} {body[:200]!r}", since)
                    await asyncio.sleep(0.2)
                notes.repeated += bool(json.loads(body)["repeated"])
                if not again:
                    notes.posted += 1
                    notes.acknowledged.update(one["user"] for one in ratings)
        wire.close()

    tasks = [asyncio.create_task(one(number)) for number in range(20)]
    begin, number = time.monotonic(), 0
    while time.monotonic() < until:
        number += 1
        due.put_nowait(number)
        await asyncio.sleep(max(0.0, begin + number / rate - time.monotonic()))
    notes.left_out += end(due, len(tasks))
    await asyncio.gather(*tasks)


async def idle(notes: Notes, port: int, number: int) -> None:
    """A socket that says nothing, or half a line, opened again when it was closed."""
    source = IDLE_FROM[number % len(IDLE_FROM)]
    await asyncio.sleep(number / 200)
    while True:
        try:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, local_addr=(source, 0)
            )
        except OSError:
            await asyncio.sleep(1.0)
            continue
        notes.idle_opened += 1
        notes.idle_now += 1
        try:
            if number % 2:
                writer.write(b"GET /popular HTT")
            while await reader.read(65_536):
                pass
        except OSError:
            pass
        finally:
            notes.idle_now -= 1
            writer.close()
        await asyncio.sleep(1.0)


async def slow(notes: Notes, port: int, kind: str) -> None:
    """A body of a byte a second, an answer of a byte a second, or events that nobody reads."""
    begun = {
        "sends": b"POST /ratings HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4000\r\n"
        b"Content-Type: application/json\r\n\r\n",
        "reads": get("/openapi.json") * 200,
        "listens": get("/events"),
    }[kind]
    while True:
        writer = None
        try:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, local_addr=("127.0.0.20", 0), limit=1
            )
            writer.write(begun)
            while not writer.is_closing():
                if kind == "sends":
                    writer.write(b" ")
                    await writer.drain()
                if kind == "reads" and not await reader.read(1):
                    break
                await asyncio.sleep(1.0)
        except OSError:
            pass
        notes.slow[kind] += 1
        if writer is not None:
            writer.close()
        await asyncio.sleep(1.0)


async def listen(notes: Notes, port: int) -> None:
    """A page that takes the news of versions."""
    while True:
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(get("/events"))
            while line := await reader.readline():
                notes.events += line.startswith(b"event: version")
            writer.close()
        await asyncio.sleep(1.0)


async def probe(notes: Notes, port: int, path: str) -> None:
    """A probe a second, on a connection of its own, which has to be answered within five."""
    while True:
        since, wire = time.monotonic(), Wire(port)
        try:
            status, body = await asyncio.wait_for(wire.ask(get(path)), 5)
            if status != 200:
                notes.failed(f"{path}: {status} {body[:200]!r}", since)
            notes.probes.append(time.monotonic() - since)
        except (OSError, EOFError, TimeoutError, asyncio.TimeoutError) as fault:
            notes.failed(f"{path}: {fault!r}", since)
        wire.close()
        await asyncio.sleep(1.0)


def learn(path: str, inbox: str, every: float, ended: Any) -> None:
    """A stream without Spark: each file of the inbox once, a version every so often."""
    store = VersionStore(path)
    state, commit = store.load()
    done: set[str] = set()
    due = time.monotonic()
    while True:
        last = ended.is_set()
        due += every
        ended.wait(max(0.0, due - time.monotonic()))
        new = [file for file in sorted(Path(inbox).glob("ratings-*.json")) if file.name not in done]
        rows = [json.loads(line) for file in new for line in file.read_bytes().splitlines()]
        done.update(file.name for file in new)
        if rows:
            table = pa.table(
                {
                    "user": pa.array([row["user"] for row in rows], pa.int32()),
                    "item": pa.array([row["item"] for row in rows], pa.int32()),
                    "rating": pa.array([row["rating"] for row in rows], pa.float32()),
                }
            )
            report = learn_batch(state, encode_ratings(table))
            metrics = {"batch": commit.batch + 1, "version": commit.version + 1,
                       "ratings": len(rows), "committed": commit.committed, "rmse": report.rmse,
                       "baselineRmse": report.baseline_rmse, "validationRmse": None}  # fmt: skip
            touched = report.user_rows, report.item_rows
            commit = store.commit(state, touched, commit.batch + 1, commit, metrics)
            store.prune(5, 60.0)
        elif last:
            return


def learn_with_spark(path: str, inbox: str, every: float, ended: Any) -> None:
    """A stream of Spark."""
    from pyspark.sql import SparkSession

    from sparkml_sgdals import StreamingBiasedALSModel

    builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    spark = builder.config("spark.driver.memory", "1g").getOrCreate()
    Path(inbox).mkdir(exist_ok=True)
    schema = "user int, item int, rating double, timestamp long, eventId string"
    stream = spark.readStream.schema(schema).json(inbox)
    job = StreamingBiasedALSModel.load(path).updateStream(
        stream, path, trigger={"processingTime": f"{int(every * 1_000)} milliseconds"}
    )
    ended.wait()
    job.query.processAllAvailable()
    job.stop()
    spark.stop()


async def run(given: argparse.Namespace, notes: Notes, service: Service, learner: Any) -> None:
    """All of them at once."""
    port, until = service.port, time.monotonic() + 60.0 * given.minutes
    beside = [
        *(idle(notes, port, number) for number in range(given.idle)),
        *(slow(notes, port, kind) for kind in ("sends", "reads", "listens")),
        *(listen(notes, port) for _ in range(3)),
        *(probe(notes, port, path) for path in ("/health/live", "/health/ready")),
        look(notes, service, learner),
        kill(given, notes, service, until),
    ]
    tasks = [asyncio.create_task(one) for one in beside]
    await asyncio.gather(
        readers(notes, port, given.rate, until), posters(notes, port, given.posts, until)
    )
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result


async def look(notes: Notes, service: Service, learner: Any) -> None:
    """Note the memory of both processes every five seconds."""
    held = psutil.Process(learner.pid)
    while True:
        with contextlib.suppress(psutil.NoSuchProcess):
            told = psutil.Process(service.running.pid).memory_full_info()
            notes.memory.append(
                {
                    "minute": time.monotonic() / 60,
                    "up": time.monotonic() - service.since,
                    "service": told.uss / 2**20,
                    "learner": held.memory_info().rss / 2**20,
                    "idle": notes.idle_now,
                }
            )
        await asyncio.sleep(5.0)


async def kill(given: argparse.Namespace, notes: Notes, service: Service, until: float) -> None:
    """SIGKILL every so often, but for the last half of that."""
    if not given.kill_every:
        return
    while time.monotonic() + 1.5 * given.kill_every < until:
        await asyncio.sleep(given.kill_every)
        killed = time.monotonic()
        notes.kills.append((killed, 0.0))
        service.kill()
        await asyncio.to_thread(service.start)
        notes.kills[-1] = killed, time.monotonic()


class Service:
    """The service's process, on one port."""

    def __init__(self, path: str, inbox: str, cache: str) -> None:
        self.path, self.cache = path, cache
        self.more = ["--inbox", inbox, "--rate", "0"]
        self.port = 0
        self.start()

    def start(self) -> None:
        """Start it, again at the port that it had."""
        more = [*self.more, "--port", str(self.port)] if self.port else self.more
        self.running, address, _ = start_service(self.path, self.cache, *more)
        self.port = int(address.rstrip("/").rpartition(":")[2])
        self.since = time.monotonic()

    def kill(self) -> None:
        """Kill it."""
        self.running.send_signal(signal.SIGKILL)
        self.running.wait()

    def end(self) -> int:
        """End it as a host does; its exit code."""
        self.running.send_signal(signal.SIGTERM)
        return self.running.wait(30)


def faults(path: str, inbox: str, notes: Notes, before: np.ndarray) -> list[str]:
    """What is not as it has to be."""
    found = list(notes.errors)
    wanted = sum(notes.acknowledged.values())
    lines = [
        json.loads(line)
        for file in Path(inbox).glob("ratings-*.json")
        for line in file.read_bytes().splitlines()
    ]
    if len(lines) != wanted or len({line["eventId"] for line in lines}) != wanted:
        found.append(f"{wanted:,} ratings were acknowledged, the inbox holds {len(lines):,}")
    state, _ = VersionStore(path).load()
    learned = counts(state) - before
    expected = np.zeros(USERS, np.int64)
    for user, count in notes.acknowledged.items():
        expected[user] = count
    if not np.array_equal(learned, expected):
        apart = np.flatnonzero(learned != expected)
        found.append(
            f"{wanted:,} ratings were acknowledged, {learned.sum():,} learned; of users "
            f"{apart[:5].tolist()} {learned[apart[:5]].tolist()} for {expected[apart[:5]].tolist()}"
        )
    return found


def counts(state: Any) -> np.ndarray:
    """Ratings learned of each user."""
    rows = state.users.index.find(pa.array(np.arange(USERS), pa.int64()))
    return np.asarray(state.users.count[rows], np.int64)


def flat(notes: Notes, name: str, young: float) -> tuple[float, float]:
    """Memory early and late: medians of the first and last third, of a process that is up longer
    than `young` seconds."""
    held = [one[name] for one in notes.memory if one["up"] > young]
    third = max(1, len(held) // 3)
    return statistics.median(held[:third]), statistics.median(held[-third:])


def main() -> None:
    """Run, judge, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--posts", type=float, default=50.0, help="posts a second")
    parser.add_argument("--idle", type=int, default=1_000, help="idle sockets")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between versions")
    parser.add_argument("--kill-every", type=float, default=60.0, help="seconds; 0 for never")
    parser.add_argument("--spark", action="store_true", help="learn by a stream of Spark")
    parser.add_argument("--json", type=Path, default=OUT, help="where the figures go")
    given = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    notes = Notes()
    with tempfile.TemporaryDirectory(prefix="serving-soak-") as folder:
        path, inbox = f"{folder}/model", f"{folder}/inbox"
        make_model(path, USERS, ITEMS)
        before = counts(VersionStore(path).load()[0])
        Path(inbox).mkdir()
        context = multiprocessing.get_context("spawn")
        ended = context.Event()
        target = learn_with_spark if given.spark else learn
        learner = context.Process(target=target, args=(path, inbox, given.every, ended))
        learner.start()
        service = Service(path, inbox, folder)
        clock = time.monotonic()
        try:
            asyncio.run(run(given, notes, service, learner))
            code = service.end()
            if code:
                notes.errors.append(f"the service ended with exit code {code}")
        finally:
            with contextlib.suppress(ProcessLookupError):
                service.running.kill()
            ended.set()
            learner.join(120)
            if learner.is_alive():
                learner.kill()
                notes.errors.append("the stream did not end")
        seconds = time.monotonic() - clock
        wrong = faults(path, inbox, notes, before)
        versions = VersionStore(path).numbers()[-1]
    young = min(25.0, given.kill_every * 0.5) if given.kill_every else 30.0
    memory = {name: flat(notes, name, young) for name in ("service", "learner")}
    took = np.array(notes.seconds) * 1_000
    print(f"{seconds / 60:.1f} minutes, {len(notes.kills)} kills, {versions:,} versions")
    print(f"requests {notes.asked:,}, median {np.median(took):.1f} ms, 99% "
          f"{np.percentile(took, 99):.0f} ms, slowest {took.max():.0f} ms")  # fmt: skip
    print(f"due and not begun in time {notes.left_out:,}")
    print(f"posts {notes.posted:,} in {notes.attempts:,} attempts, {notes.repeated:,} answered as "
          f"taken before, {sum(notes.acknowledged.values()):,} ratings acknowledged")  # fmt: skip
    print(f"probes {len(notes.probes):,}, slowest {1e3 * max(notes.probes):.0f} ms")
    print(f"idle sockets opened {notes.idle_opened:,}, open at once (median) "
          f"{statistics.median(one['idle'] for one in notes.memory):.0f}; slow clients ended "
          f"{dict(notes.slow)}; events taken {notes.events:,}")  # fmt: skip
    for name, (early, late) in memory.items():
        change = late / early - 1
        print(f"memory of the {name}: {early:.0f} MiB early, {late:.0f} late ({change:+.1%})")
    print(f"failures that a kill explains: {notes.by_kill:,}; others: {len(wrong)}")
    for fault in wrong[:20]:
        print(f"  {fault}")
    given.json.parent.mkdir(exist_ok=True)
    given.json.write_text(
        json.dumps(
            {
                "minutes": seconds / 60, "kills": len(notes.kills), "versions": versions,
                "requests": notes.asked, "median_ms": float(np.median(took)),
                "p99_ms": float(np.percentile(took, 99)), "max_ms": float(took.max()),
                "left_out": notes.left_out, "posts": notes.posted,
                "attempts": notes.attempts, "repeated": notes.repeated,
                "acknowledged": sum(notes.acknowledged.values()), "probes": len(notes.probes),
                "slowest_probe_ms": 1e3 * max(notes.probes), "memory_MiB": memory,
                "by_kill": notes.by_kill, "faults": wrong[:100],
            },
            indent=2,
        )
        + "\n"
    )  # fmt: skip
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
