"""Kill service, stream and broker while clients post ratings; hold the end against a quiet run.

    python tests/kills/chain.py --source inbox --kills 60 --json out/kills-chain-inbox.json
    python tests/kills/chain.py --source topic --kills 60 --json out/kills-chain-topic.json

Clients post ratings with keys and repeat a post until it is acknowledged, and some of them once
more. Each process is killed by SIGKILL at random moments and started again. In the end the model
has to hold every acknowledged rating once, by count and user by user, and the bits of a stream
that learned the same files, or offsets, from nothing without a kill. Batches are the same in both
because one is a file, or a fixed number of offsets. See docs/reliability.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parents[1]), str(HERE.parents[1] / "scripts")]

import httpx  # noqa: E402
from sources import COLUMNS, Topic, made_ratings  # noqa: E402
from trials import TooSlowError, Tree, report  # noqa: E402

from sparkml_sgdals.store.version_store import VersionStore  # noqa: E402
from sparkml_sgdals.stream.report import CLOCK_METRICS  # noqa: E402

SEEDS = 200
"""ratings that the stream finds at its first start: the service needs a model"""
SIZE = 20
"""offsets of a batch"""
_LIVE = {"trigger": {"processingTime": "100 milliseconds"}}


@dataclass
class ChainFigures:
    """What was killed, and what came of it."""

    source: str
    kills: Counter[str] = field(default_factory=Counter)
    ended_by_itself: Counter[str] = field(default_factory=Counter)
    """starts beside those after a kill: Spark may give up while the broker is away"""
    posts: int = 0
    ratings_acknowledged: int = 0
    attempts: int = 0
    repeated: int = 0
    """posts answered as taken before"""
    delivered: int = 0
    """ratings in the folder or topic, but for the first ones; more than acknowledged: repeats"""
    learned: int = 0
    batches: int = 0
    differences: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        counts = {"kills": dict(self.kills), "ended_by_itself": dict(self.ended_by_itself)}
        return self.__dict__ | counts


class Service:
    """The service as a process of its own, on one port."""

    def __init__(self, scratch: Path, path: Path, more: list[str]) -> None:
        from kafka_broker import free_ports

        self._log = scratch / "service.log"
        (port,) = free_ports(1)
        self.address = f"http://127.0.0.1:{port}"
        self._command = [
            sys.executable, "-m", "sparkml_sgdals.serving", "--model", str(path), "--port",
            str(port), "--columns", COLUMNS, "--rate", "0", "--rating-range", "0.5", "5",
            "--wait-seconds", "120", "--cache", str(scratch), *more,
        ]  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            places = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
            self.process = subprocess.Popen(
                self._command, stdout=log, stderr=log, env=os.environ | {"PYTHONPATH": places}
            )

    def end(self, how: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(60)
            self.process = None

    @property
    def ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def said(self) -> str:
        return self._log.read_text(errors="replace")[-3000:]


class Clients:
    """Post ratings, each post under a key of its own, until it is acknowledged."""

    def __init__(self, address: str, figures: ChainFigures, rng: random.Random, pace: float):
        self._address, self._figures, self._rng, self._pace = address, figures, rng, pace
        self._rows = made_ratings(200_000).iloc[SEEDS:].itertuples(index=False)
        self._guard = threading.Lock()
        self._ended = threading.Event()
        self.acknowledged: list[list[dict[str, Any]]] = []
        self.faults: list[str] = []
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(4)]

    def start(self) -> None:
        for one in self._threads:
            one.start()

    def end(self) -> None:
        """Post no more; wait until all that was posted is acknowledged."""
        self._ended.set()
        for one in self._threads:
            one.join(180)
            if one.is_alive():
                self.faults.append("a post was not acknowledged within three minutes")

    def _run(self) -> None:
        with httpx.Client(base_url=self._address, timeout=30) as web:
            while not self._ended.is_set() and not self.faults:
                with self._guard:
                    count = self._rng.choice([1, 1, 2, 5, 20])
                    rows = [next(self._rows) for _ in range(count)]
                    again = self._rng.random() < 0.1
                    wait = self._rng.expovariate(self._pace / len(self._threads))
                now = int(time.time())
                body = [
                    {"user": int(r.user), "item": int(r.item), "rating": float(r.rating),
                     "timestamp": now}
                    for r in rows
                ]  # fmt: skip
                key = uuid.uuid4().hex
                for _ in range(2 if again else 1):
                    self._post(web, body, key)
                with self._guard:
                    self.acknowledged.append(body)
                self._ended.wait(wait)

    def _post(self, web: httpx.Client, body: list[dict[str, Any]], key: str) -> None:
        while not self.faults:
            with self._guard:
                self._figures.attempts += 1
            try:
                sent = web.post("/ratings", json=body, headers={"Idempotency-Key": key})
            except httpx.TransportError:
                time.sleep(0.1)
                continue
            if sent.status_code == 202:
                with self._guard:
                    self._figures.repeated += sent.json()["repeated"] > 0
                return
            if sent.status_code != 503:
                self.faults.append(f"{sent.status_code} {sent.text}")
            time.sleep(0.2)


class Chain:
    """Service, stream, and broker where there is one, started anew where they end."""

    def __init__(self, scratch: Path, source: str, figures: ChainFigures) -> None:
        self.figures, self.source = figures, source
        self._submit_args = os.environ.get("PYSPARK_SUBMIT_ARGS")
        self.scratch, self.path = scratch, scratch / "model"
        self.broker: Any = None
        seeds = made_ratings(SEEDS).assign(time=int(time.time()))
        rows = [row | {"eventId": f"seed-{n}"} for n, row in enumerate(seeds.to_dict("records"))]
        if source == "topic":
            from kafka_broker import CONNECTORS, Broker, submit_args
            from registry import connectors

            os.environ["PYSPARK_SUBMIT_ARGS"] = submit_args(connectors(*CONNECTORS))
            self.broker = Broker()
            self.broker.start()
            self.spec = Topic().make(self.broker.address, rows, SIZE)
            more = ["--kafka", self.broker.address, "--topic", self.spec["topic"]]
        else:
            inbox = scratch / "inbox"
            inbox.mkdir()
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (inbox / "first.json").write_text(text)
            self.spec = {"folder": str(inbox)}
            more = ["--inbox", str(inbox)]
        self.service = Service(scratch, self.path, more)
        self.stream: Tree | None = None

    @property
    def victims(self) -> list[str]:
        return ["service", "stream", *(["broker"] if self.broker is not None else [])]

    def start_stream(self) -> None:
        self.stream = self._tree(self.path, self.spec | _LIVE)

    def _tree(self, path: Path, spec: dict[str, Any]) -> Tree:
        return Tree("classic", self.source, spec, path, self.scratch)

    def versions(self) -> int:
        newest = VersionStore(str(self.path)).newest()
        return -1 if newest is None else newest.version

    def look_after(self) -> None:
        """Start again what ended by itself."""
        if self.stream is not None and self.stream.process.poll() is not None:
            self.figures.ended_by_itself["stream"] += 1
            self.stream.kill()
            self.start_stream()
        if self.service.ended:
            self.figures.ended_by_itself["service"] += 1
            self.service.start()

    def wait(self, what: str, until: Callable[[], bool], seconds: float = 600.0) -> None:
        limit = time.monotonic() + seconds
        while not until():
            if time.monotonic() > limit:
                log = (self.scratch / "log").read_text(errors="replace")[-3000:]
                raise AssertionError(f"waited for {what}\n{log}\n{self.service.said()}")
            self.look_after()
            time.sleep(0.05)

    def kill(self, victim: str, rng: random.Random) -> None:
        if victim == "stream":
            assert self.stream is not None
            self.stream.kill(rng)
            self.start_stream()
        elif victim == "service":
            self.service.end(signal.SIGKILL)
            self.service.start()
        else:
            self.broker.kill()
            time.sleep(rng.random() * 2.0)
            self.broker.start()
        self.figures.kills[victim] += 1

    def finish(self, path: Path) -> tuple[str, list[dict[str, Any]], Any]:
        """Learn what is there to its end without a kill; bits, metrics and state."""
        for _ in range(5):
            tree = self._tree(path, self.spec)
            try:
                while not tree.ended():
                    time.sleep(0.05)
                break
            except TooSlowError:
                continue
            finally:
                tree.kill()
        store = VersionStore(str(path))
        rows = [{n: v for n, v in r.items() if n not in CLOCK_METRICS} for r in store.metrics()]
        state = store.load()[0]
        return state.fingerprint(), rows, state

    def delivered(self) -> int:
        """Ratings in the folder or topic, but for the first ones."""
        if self.broker is not None:
            return Topic().length(self.spec) - SEEDS
        files = Path(self.spec["folder"]).glob("ratings-*.json")
        return sum(len(file.read_text().splitlines()) for file in files)

    def close(self) -> None:
        if self.stream is not None:
            self.stream.kill()
        self.service.end(signal.SIGKILL)
        if self.broker is not None:
            self.broker.close()
            os.environ.pop("PYSPARK_SUBMIT_ARGS", None)
            if self._submit_args is not None:
                os.environ["PYSPARK_SUBMIT_ARGS"] = self._submit_args


def run_chain(source: str, kills: int, seed: int, pace: float = 3.0) -> ChainFigures:
    """Kill each process in turn, in random order and at random moments, `kills` in all.

    Parameters
    ----------
    source : "inbox", a folder of JSON lines, or "topic", of a Kafka broker
    pace : posts a second
    """
    rng = random.Random(seed)
    figures, clock = ChainFigures(source), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chain-") as folder:
        scratch = Path(folder)
        chain = Chain(scratch, source, figures)
        try:
            chain.start_stream()
            chain.wait("a first version", lambda: chain.versions() >= 0)
            chain.service.start()
            clients = Clients(chain.service.address, figures, rng, pace)
            clients.start()
            todo: list[str] = []
            while sum(figures.kills.values()) < kills:
                if not todo:
                    todo = rng.sample(chain.victims, len(chain.victims))
                victim = todo.pop()
                # three of four wait until all runs again, so that there is something to lose
                if rng.random() < 0.75:
                    taken, version = len(clients.acknowledged), chain.versions()
                    chain.wait(
                        "posts and versions",
                        lambda t=taken, v=version: (
                            bool(clients.faults)  # type: ignore[misc]
                            or (len(clients.acknowledged) > t and chain.versions() > v)
                        ),
                    )
                time.sleep(rng.random())
                chain.kill(victim, rng)
                chain.look_after()
                assert not clients.faults, clients.faults
                posts = len(clients.acknowledged)
                print(f"killed {dict(figures.kills)}, {posts} posts", flush=True)
            ending = threading.Thread(target=clients.end)
            ending.start()
            chain.wait("the last posts", lambda: not ending.is_alive())
            assert not clients.faults, clients.faults
            assert chain.stream is not None
            chain.stream.kill(rng)
            # what it holds back for a second is in the folder then
            chain.service.end(signal.SIGTERM)
            _compare(chain, clients, scratch)
        finally:
            chain.close()
    figures.seconds = round(time.monotonic() - clock, 1)
    return figures


def _compare(chain: Chain, clients: Clients, scratch: Path) -> None:
    figures = chain.figures
    told = [one for body in clients.acknowledged for one in body]
    figures.posts, figures.ratings_acknowledged = len(clients.acknowledged), len(told)
    figures.delivered = chain.delivered()
    fingerprint, metrics, state = chain.finish(chain.path)
    figures.learned, figures.batches = state.counters.ratings - SEEDS, len(metrics)
    if figures.learned != len(told):
        figures.differences.append(f"{figures.learned} learned, {len(told)} acknowledged")
    by_user = Counter(one["user"] for one in told)
    by_user.update(made_ratings(SEEDS).user.tolist())
    ids = state.users.index.ids().to_pylist()
    if dict(zip(ids, state.users.count.tolist(), strict=True)) != dict(by_user):
        figures.differences.append("other numbers of ratings by user")
    quiet = chain.finish(scratch / "quiet")
    if quiet[0] != fingerprint:
        figures.differences.append("other factors than the quiet run")
    if quiet[1] != metrics:
        pairs = zip_longest(metrics, quiet[1])
        first = next((number, *pair) for number, pair in enumerate(pairs) if pair[0] != pair[1])
        figures.differences.append(f"other metrics than the quiet run, first: {first}")


def main() -> None:
    """Run it as the arguments say, print and keep the figures; fail where ends differ."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--source", choices=["inbox", "topic"], default="inbox")
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--pace", type=float, default=3.0, help="posts a second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    # told to end: what was started ends, too
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    figures = run_chain(given.source, given.kills, given.seed, given.pace)
    report(figures.to_json(), given.json)


if __name__ == "__main__":
    main()
