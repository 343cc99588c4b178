"""Kill fits to a model path, whole process trees, at any moment: nothing loads, nothing stays.

    python tests/kills/fits.py --kills 50 --json out/kills-fits.json

Each kill starts a fit to the path that the last one left, and kills it: two of five at a random
moment, two once its tasks write under the path; the fifth kills one of Spark's Python workers, and
the fit ends by itself. After each the path holds no version, or the whole one, and after a worker's
end there is no path at all unless Spark has tried the task again. In the end a fit runs through,
holds what one that was never killed does, and beside it there is no file that its commit does not
name, nor a folder of blocks.
"""

from __future__ import annotations

import argparse
import contextlib
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

import psutil

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from trials import java_options, share_classes  # noqa: E402

from sparkml_sgdals.store.version_store import VersionStore  # noqa: E402

PROGRAM = """
import sys
from pyspark.sql import SparkSession
from sparkml_sgdals import StreamingBiasedALS
path, local = sys.argv[1:]
builder = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
builder = builder.config("spark.local.dir", local).config("spark.ui.showConsoleProgress", "false")
spark = builder.config("spark.sql.shuffle.partitions", "2").getOrCreate()
table = spark.range(40_000).selectExpr(
    "pmod(hash(id), 3001) AS user", "pmod(hash(id, 7), 1501) AS item",
    "CAST(1 + pmod(hash(id, 9), 5) AS double) AS rating", "id AS time",
)
about = "array(double(pmod(hash(id), 9)), double(id % 3)) AS about"
als = StreamingBiasedALS(timestampCol="time", rank=4, maxIter=1, numBlocks=2)
als.setItemFeatures(spark.range(3000).selectExpr("id AS item", about))
print("fitting", flush=True)
als.fitPath(table, path)
print("fitted", flush=True)
"""


@dataclass
class Figures:
    """What was killed where, and what was wrong after it."""

    kills: int = 0
    stages: Counter[str] = field(default_factory=Counter)
    workers: Counter[str] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return self.__dict__ | {"stages": dict(self.stages), "workers": dict(self.workers)}


def start(path: Path, local: Path) -> subprocess.Popen[str]:
    """A fit in a process group of its own, which has begun when this returns."""
    environment = os.environ | {
        "PYTHONPATH": str(HERE.parents[1]),
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": os.environ.get("SPARK_LOCAL_IP", "127.0.0.1"),
        "JDK_JAVA_OPTIONS": java_options(),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(path), str(local)], start_new_session=True,
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line == "fitting\n":
            return process
    raise RuntimeError("the program ended before it fitted")


def kill(process: subprocess.Popen[str]) -> None:
    """End all of a fit's processes at once."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for_files(
    process: subprocess.Popen[str], path: Path, rng: random.Random, most: float
) -> None:
    """Wait until tasks write under the path, which they do for a moment only, or have written."""
    until = time.monotonic() + most
    wanted = rng.choice(("files", "model.json"))
    while time.monotonic() < until and process.poll() is None:
        if wanted == "files" and any(path.glob("files/*")):
            time.sleep(rng.uniform(0.0, 0.1))
            return
        if (path / "model.json").exists():
            return
        time.sleep(0.001)


def kill_worker(process: subprocess.Popen[str], rng: random.Random) -> bool:
    """End one of a fit's Python workers, and wait for the fit's own end; whether there was one."""
    tree = psutil.Process(process.pid).children(recursive=True)
    # the daemon's own children work, and it forks them
    daemons = {p.pid for p in tree if _is_daemon(p)}
    workers = [p for p in tree if p.pid in daemons and p.ppid() in daemons]
    for worker in rng.sample(workers, min(1, len(workers))):
        with contextlib.suppress(psutil.NoSuchProcess):
            worker.kill()
    process.wait()
    return bool(workers)


def _is_daemon(process: psutil.Process) -> bool:
    try:
        return any("pyspark" in word and "daemon" in word for word in process.cmdline())
    except psutil.NoSuchProcess:
        return False


def stage(path: Path) -> str:
    """How far a fit has come, by what lies under its path."""
    if (path / "commits" / f"{0:012d}.json").exists():
        return "after the commit object"
    if (path / "model.json").exists():
        return "between the files and the commit object"
    if any(path.glob("files/*")):
        return "while tasks write"
    return "before tasks write"


def run_trial(kills: int, seed: int) -> Figures:
    """Fit once without a kill, then kill so often, then fit to the end."""
    figures, rng = Figures(), random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        local, path, whole = (Path(folder) / name for name in ("local", "path", "whole"))
        if kills >= 10:
            # it takes as long as some starts
            share_classes(Path(folder) / "classes.jsa")
        clock = time.monotonic()
        process = start(whole, local)
        begun = time.monotonic()
        process.wait()
        took = time.monotonic() - begun
        expected = VersionStore(str(whole)).load()[0].fingerprint()
        print(
            f"a fit takes {took:.1f} s, with its start {time.monotonic() - clock:.1f} s", flush=True
        )
        for number in range(kills):
            process = start(path, local)
            until = time.monotonic() + rng.uniform(0.0, took)
            if number % 5 == 4:
                time.sleep(max(0.0, until - time.monotonic()))
                had = kill_worker(process, rng)
                where = stage(path)
                if process.returncode and where != "after the commit object" and path.exists():
                    figures.differences.append(f"kill {number}: left {sorted(path.iterdir())}")
                if process.returncode and any(local.glob("sparkml-sgdals-blocks-*")):
                    figures.differences.append(f"kill {number}: left the files of blocks")
                how = "the fit failed" if process.returncode else "the fit went on"
                figures.workers[how if had else "no worker yet, or none any more"] += 1
            else:
                if number % 5 % 2:
                    wait_for_files(process, path, rng, 10 * took)
                else:
                    time.sleep(max(0.0, until - time.monotonic()))
                kill(process)
                where = stage(path)
                figures.stages[where] += 1
            figures.kills += 1
            store = VersionStore(str(path))
            newest = None
            with contextlib.suppress(Exception):
                newest = store.newest()
            if (newest is None) != (where != "after the commit object"):
                figures.differences.append(f"kill {number}: a version, {where}")
            if newest is not None:
                if store.load()[0].fingerprint() != expected:
                    figures.differences.append(f"kill {number}: another model")
                # a path that holds a model is not fitted again
                path = Path(folder) / f"path-{number}"
            print(f"kill {number}: {where}", flush=True)
        process = start(path, local)
        process.wait()
        store = VersionStore(str(path))
        state, commit = store.load()
        if state.fingerprint() != expected:
            figures.differences.append("the last fit: another model")
        named = {f["name"] for f in [*commit.files.values(), *commit.run_files()]}
        named |= {"model.json", f"commits/{0:012d}.json"}
        there = {p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()}
        figures.differences += [f"left: {name}" for name in sorted(there ^ named)]
        figures.differences += [f"left: {p.name}" for p in local.glob("sparkml-sgdals-blocks-*")]
        os.environ.pop("KILLS_CLASSES", None)
    return figures


def main() -> None:
    """Run the trial, and fail where something differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    figures = run_trial(given.kills, given.seed)
    told = json.dumps(figures.to_json(), indent=1)
    print(told)
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(told + "\n")
    if figures.differences:
        sys.exit(1)


if __name__ == "__main__":
    main()
