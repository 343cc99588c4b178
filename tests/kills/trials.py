"""Kill a stream's whole process tree, start it again until it is through, compare the end.

    python tests/kills/trials.py --way classic --source files --kills 50 --json figures.json

runs it by hand; `pytest -m slow tests/kills` does the same as a test. See docs/reliability.md.
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
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parents[1]), str(HERE.parents[1] / "scripts")]

from sources import SOURCES  # noqa: E402

from sparkml_sgdals.store.version_store import VersionStore  # noqa: E402
from sparkml_sgdals.stream.report import CLOCK_METRICS  # noqa: E402

POINTS = (
    "before the files",
    "half of the users written",
    "half of the items written",
    "half of a base's history written",
    "after the files",
    "half of the commit object written",
    "after the commit object",
    "after a base's commit object",
    "between commits and files of pruned versions",
    "before Spark's commit",
)
"""Named points of a commit; what ends in a base, or prunes, is this store's compaction."""

COMPACTION = (
    "before a compaction",
    "half of a run written",
    "after the files of a compaction",
    "after the commit that names a compaction's runs",
    "between commits and files of pruned versions",
)
"""Named points where a part of the model is in memory, and sorted runs hold the rest."""

MODELS = ("ratings", "events", "fitted")
"""What learns: ratings; events, with what stands together and users that are forgotten after a
time; or events onto a table that was fitted without times, where the first batch is killed."""

_SLOW = ("Python worker failed to connect back", "CANNOT_OPEN_SOCKET")
"""What Spark says, in the JVM or in the worker, where a Python worker took too long to start."""
_STARTING = "starting, or resuming"
_SPARK = "Spark's own work between batches"


@dataclass
class Figures:
    """What was killed where, and what differed in the end."""

    way: str
    source: str
    batches: int
    model: str = "ratings"
    forgotten: int = 0
    random_kills: int = 0
    points: list[str] = field(default_factory=list)
    stages: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    failed_starts: int = 0
    seconds: float = 0.0
    differences: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return self.__dict__ | {"stages": dict(self.stages.most_common())}


def located(path: Path) -> str:
    """Where a model path really is: in the bucket that KILLS_BASE names, where there is one."""
    base = os.environ.get("KILLS_BASE")
    return f"{base}/{path.parent.name}/{path.name}" if base else str(path)


def java_options() -> str:
    """Those of a JVM that lives for seconds only; KILLS_CLASSES may name an archive of classes."""
    options = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xlog:disable"
    archive = os.environ.get("KILLS_CLASSES")
    return options if archive is None else f"{options} -XX:SharedArchiveFile={archive}"


def share_classes(archive: Path) -> None:
    """Archive the classes that Spark starts with, which halves the time of a JVM until then."""
    program = (
        "from pyspark.sql import SparkSession\n"
        "spark = SparkSession.builder.master('local[1]').getOrCreate()\n"
        "spark.range(3).selectExpr('sum(id)').collect()\n"
        "spark.stop()\n"
    )
    options = f"{java_options()} -XX:ArchiveClassesAtExit={archive}"
    # the JVM, which writes it, holds the other end of the pipe longer than Python does
    subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"JDK_JAVA_OPTIONS": options},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    if archive.exists():
        os.environ["KILLS_CLASSES"] = str(archive)


class TooSlowError(Exception):
    """Spark gave its own worker up on a busy machine: the program ended, and is started again."""


class Tree:
    """A started program with all its processes: Python, the JVM, the workers of that."""

    def __init__(
        self, way: str, source: str, spec: dict[str, Any], path: Path, scratch: Path,
        point: str = "", batch: int = -1,
    ) -> None:  # fmt: skip
        self.trace = scratch / "trace"
        self.trace.unlink(missing_ok=True)
        places = [str(HERE / "hooks"), str(HERE), str(HERE.parents[1])]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([*places, os.environ.get("PYTHONPATH", "")]),
            "PYSPARK_PYTHON": sys.executable,
            "SPARK_LOCAL_IP": os.environ.get("SPARK_LOCAL_IP", "127.0.0.1"),
            "JDK_JAVA_OPTIONS": java_options(),
            "KILLS_TRACE": str(self.trace),
            "KILLS_POINT": point,
            "KILLS_BATCH": str(batch),
        }
        self.log = open(scratch / "log", "wb")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "program.py"), way, source, json.dumps(spec),
             located(path)],
            start_new_session=True, env=environment, cwd=scratch,
            stdout=self.log, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def lines(self) -> list[str]:
        """The trace so far."""
        return self.trace.read_text().splitlines() if self.trace.exists() else []

    def ended(self) -> bool:
        """Whether the program came to its end by itself; raises where that was an error."""
        code = self.process.poll()
        if code is None:
            return False
        self.log.close()
        self.kill()
        if code:
            log = Path(self.log.name).read_text(errors="replace")
            # what ended it, not a slow start before that was tried again
            last = log[log.rfind("Traceback") :]
            if any(what in last for what in _SLOW):
                raise TooSlowError
            raise AssertionError(f"the program failed with {code}:\n{log[-6000:]}")
        return True

    def kill(self, rng: random.Random | None = None) -> None:
        """SIGKILL to every process of the session, in any order, and wait until all are gone."""
        while victims := self._members():
            if rng is not None:
                rng.shuffle(victims)
            for victim in victims:
                try:
                    os.kill(victim, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            self.process.poll()
            time.sleep(0.02)
        self.process.wait()
        self.log.close()

    def _members(self) -> list[int]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == self.process.pid and fields[0] not in "ZX":
                found.append(int(folder.name))
        return found


class Trial:
    """One source, one undisturbed model of it, and streams that are killed."""

    def __init__(
        self, scratch: Path, way: str, source: str, batches: int, size: int, resident: int = 0
    ) -> None:
        self.scratch, self.way, self.source, self.resident = scratch, way, source, resident
        self.spec = SOURCES[source].prepare(scratch / "source", batches, size)
        self.figures = Figures(way, source, batches)
        self.whole = scratch / "whole"
        self.finish(self.whole)
        self.expected = self._end(self.whole)
        assert [row["batch"] for row in self.expected[1]] == list(range(batches))

    def start(self, path: Path, point: str = "", batch: int = -1) -> Tree:
        """Start the stream on a model path."""
        self.figures.starts += 1
        # what is never killed has all of its model in memory
        os.environ["KILLS_RESIDENT"] = str(0 if path == self.whole else self.resident)
        return Tree(self.way, self.source, self.spec, path, self.scratch, point, batch)

    def finish(self, path: Path) -> None:
        """Run the stream to its end without a kill."""
        for _ in range(5):
            tree = self.start(path)
            try:
                while not tree.ended():
                    time.sleep(0.05)
                return
            except TooSlowError:
                self.figures.failed_starts += 1
            finally:
                tree.kill()
        raise AssertionError("Spark could not start its worker in five tries")

    def kill_at(self, path: Path, point: str, batch: int) -> None:
        """Run the stream until it stands at a named point, and kill it there."""
        tree = self.start(path, point, batch)
        try:
            while "stands" not in tree.lines():
                if tree.ended():
                    raise AssertionError(f"the stream ended without coming to: {point}")
                time.sleep(0.01)
        finally:
            tree.kill()
        self.figures.points.append(point)

    def kill_at_random(self, path: Path, rng: random.Random) -> bool:
        """Run the stream for a random time and kill it; False where it was through before.

        One kill of eight falls into the start, before the first batch; three fall within 400 ms
        after a batch came in, the second to the sixth since the start; four fall within 30 ms
        after such a batch began to be committed, or shortly before that.
        """
        tree = self.start(path)
        try:
            kind = rng.choice(["start", *["batch"] * 3, *["commit"] * 4])
            mark = " before the files" if kind == "commit" else " learning"
            count = 0 if kind == "start" else rng.randint(2, 6)
            wait = {"start": 8.0, "batch": 0.4, "commit": 0.03}[kind] * rng.random()
            while sum(line.endswith(mark) for line in tree.lines()) < count:
                if tree.ended():
                    return False
                time.sleep(0.001)
            time.sleep(wait)
            if tree.ended():
                return False
        finally:
            tree.kill(rng)
        last = tree.lines()[-1].split(" ", 2)[2] if tree.lines() else _STARTING
        stage = _SPARK if last == "before Spark's commit" else last
        self.figures.stages[stage] += 1
        self.figures.random_kills += 1
        return True

    def compare(self, path: Path, what: str) -> None:
        """Finish the stream and hold its end against the undisturbed one."""
        self.finish(path)
        fingerprint, metrics = self._end(path)
        if fingerprint != self.expected[0]:
            self.figures.differences.append(f"{what}: other factors")
        if metrics != self.expected[1]:
            self.figures.differences.append(f"{what}: other metrics")

    @staticmethod
    def _end(path: Path) -> tuple[str, list[dict[str, Any]]]:
        store = VersionStore(located(path))
        rows = [
            {name: value for name, value in row.items() if name not in CLOCK_METRICS}
            for row in store.metrics()
        ]
        return store.load()[0].fingerprint(), rows


def run_trial(
    way: str, source: str, kills: int, points: tuple[str, ...], seed: int, batches: int, size: int,
    resident: int = 0, model: str = "ratings",
) -> Figures:  # fmt: skip
    """Random kills on one model path after the other, then every named point twice on another.

    With `resident`, the killed streams keep so many ids in memory, the undisturbed one all. `model`
    is one of MODELS.
    """
    os.environ["KILLS_MODEL"] = model
    rng = random.Random(seed)
    clock = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        if kills >= 10 and "KILLS_CLASSES" not in os.environ:
            # it takes as long as some starts
            share_classes(Path(folder) / "classes.jsa")
        trial = Trial(Path(folder), way, source, batches, size, resident)
        figures, round_ = trial.figures, 0
        figures.model = model
        figures.forgotten = sum(row.get("forgottenUsers") or 0 for row in trial.expected[1])
        while figures.random_kills < kills:
            path = Path(folder) / f"random-{round_}"
            through = False
            while figures.random_kills < kills and not through:
                try:
                    through = not trial.kill_at_random(path, rng)
                except TooSlowError:
                    figures.failed_starts += 1
                print(f"random kill {figures.random_kills}: {figures.stages}", flush=True)
            trial.compare(path, f"random kills, path {round_}")
            round_ += 1
        path = Path(folder) / "points"
        # as long as the scale settles, all of a model is in memory
        first, apart = (1000 // size if resident else 0) + 2, 3
        if model == "fitted":
            first = apart = 0
        for number, point in enumerate(points):
            for tries_left in range(4, -1, -1):
                try:
                    trial.kill_at(path, point, first + number * apart)
                    break
                except TooSlowError:
                    figures.failed_starts += 1
                    if not tries_left:
                        raise
            print(f"killed {point}", flush=True)
        if points:
            trial.compare(path, "named points")
        if os.environ.get("KILLS_CLASSES", "").startswith(folder):
            del os.environ["KILLS_CLASSES"]
        figures.seconds = round(time.monotonic() - clock, 1)
        return figures


def report(figures: dict[str, Any], path: Path | None) -> None:
    """Print figures, write them where asked, and exit with 1 where they hold differences."""
    text = json.dumps(figures, indent=1)
    print(text)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    if figures["differences"]:
        sys.exit(1)


def main() -> None:
    """Run a trial as the arguments say, print and keep its figures; fail where ends differ."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--way", choices=["classic", "connect"], default="classic")
    parser.add_argument("--source", choices=list(SOURCES), default="files")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--batches", type=int, default=150)
    parser.add_argument("--size", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resident", type=int, default=0, help="ids in memory, 0 = all")
    parser.add_argument("--model", choices=MODELS, default="ratings", help="what learns")
    parser.add_argument("--store", choices=["disk", "s3"], default="disk", help="of the models")
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    if given.store == "s3":
        from s3_server import BUCKET, S3Server

        os.environ["KILLS_BASE"] = f"s3a://{BUCKET}"
        # it outlives all kills, and ends with this process
        S3Server().__enter__()
    figures = run_trial(
        given.way, given.source, given.kills, COMPACTION if given.resident else POINTS,
        given.seed, given.batches, given.size, given.resident, given.model,
    )  # fmt: skip
    report(figures.to_json(), given.json)


if __name__ == "__main__":
    main()
