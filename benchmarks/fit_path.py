"""Fit a model path that the driver never holds, and use it: python benchmarks/fit_path.py.

    python benchmarks/fit_path.py --users 2M --items 200k --ratings 20M --resident 200000

So many ratings of so many users on so many items are made as Parquet, a user's beside each other:
3.5 + b_user + b_item + U . P + noise, in half stars, items by the square of a uniform number. One
in 20 is held out. Then, each in a process of its own whose JVM may take --memory:

- `fitPath` of all of them, in blocks;
- from that path: `load`, `transform` of what is held out of a tenth of the users, ten items for
  1,000 users, and a stream of 1,000 ratings a trigger that goes on from it;
- with --features, `fitPath` of all of them again with a vector of so many numbers for each user;
- beside them a tenth of the users fitted in one task, and in blocks to a path of their own, each
  scored on what is held out of these users.

While each runs, the resident memory of the driver's Python, of the JVM and of the Python workers is
looked at twenty times a second. Needs room for 60 bytes a rating and 700 an id under --folder, and
for 30 a number of a vector.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from generate import ratings_count
from harness import cpu_seconds, row, session, write
from scale import watched

from sparkml_sgdals import StreamingBiasedALS, StreamingBiasedALSModel

RANK, SEED, CHUNK = 8, 7, 2_000_000
NOISE = 0.7
SCHEMA = "user long, item long, rating double, time long"


def make(folder: Path, users: int, items: int, ratings: int) -> None:
    """Write all/, tenth/ and held/ (of the tenth), and stream/, files of 1,000."""
    if (folder / "made").exists():
        return
    rng, num_items = np.random.default_rng(SEED), items

    def factors(count: int, deviation: float) -> np.ndarray:
        own = rng.standard_normal((count, 1 + RANK), np.float32)
        own[:, 0] *= deviation
        own[:, 1:] *= (0.5 / RANK**0.5) ** 0.5
        return own

    of_users, of_items = factors(users, 0.45), factors(items, 0.5)
    for name in ("all", "tenth", "held", "stream"):
        (folder / name).mkdir(parents=True)

    def rated(who: np.ndarray) -> pa.Table:
        what = (num_items * rng.random(who.size) ** 2).astype(np.int64)
        values = 3.5 + of_users[who, 0] + of_items[what, 0]
        values += (of_users[who, 1:] * of_items[what, 1:]).sum(axis=1)
        values += NOISE * rng.standard_normal(who.size)
        values = np.clip(np.round(2 * values) / 2, 0.5, 5.0).astype(np.float64)
        clock = rng.integers(0, 1 << 30, who.size)
        # ids that are not places: spread, and with gaps
        return pa.table(
            {"user": who * 7 + 3, "item": what * 5 + 1, "rating": values, "time": clock}
        )

    for number, first in enumerate(range(0, ratings, CHUNK)):
        last = min(first + CHUNK, ratings)
        who = np.arange(first, last) * users // ratings
        table, held = rated(who), rng.random(last - first) < 0.05
        few = (who % 10 == 0) & ~held
        name = f"part-{number:05d}.parquet"
        pq.write_table(table.filter(pa.array(~held)), folder / "all" / name)
        pq.write_table(table.filter(pa.array(few)), folder / "tenth" / name)
        pq.write_table(table.filter(pa.array((who % 10 == 0) & held)), folder / "held" / name)
    for number in range(60):
        table = rated(rng.integers(0, users, 1000))
        pq.write_table(table, folder / "stream" / f"part-{number:05d}.parquet")
    (folder / "made").touch()


def describe(folder: Path, users: int, numbers: int, sparse: bool) -> None:
    """Write about/, a vector for each user: normal numbers, or an eighth of them, each 1."""
    rng, chunk = np.random.default_rng(SEED + 1), 100_000
    (folder / "about").mkdir()
    few = max(numbers // 8, 1)
    kind = pa.struct([("size", pa.int32()), ("indices", pa.list_(pa.int32())),
                      ("values", pa.list_(pa.float64()))])  # fmt: skip
    for part, first in enumerate(range(0, users, chunk)):
        who = np.arange(first, min(first + chunk, users))
        if sparse:
            drawn = rng.random((who.size, numbers), np.float32).argpartition(few, axis=1)[:, :few]
            places = pa.array(np.sort(drawn, axis=1).astype(np.int32).ravel())
            starts = pa.array(np.arange(0, who.size * few + 1, few, np.int32))
            indices = pa.ListArray.from_arrays(starts, places)
            values = pa.ListArray.from_arrays(starts, pa.array(np.ones(who.size * few)))
        else:
            starts = pa.array(np.arange(0, who.size * numbers + 1, numbers, np.int32))
            drawn = rng.standard_normal(who.size * numbers)
            indices = pa.nulls(who.size, pa.list_(pa.int32()))
            values = pa.ListArray.from_arrays(starts, pa.array(drawn))
        sizes = pa.array(np.full(who.size, numbers, np.int32))
        vectors = pa.StructArray.from_arrays([sizes, indices, values], fields=list(kind))
        table = pa.table({"user": who * 7 + 3, "about": vectors})
        pq.write_table(table, folder / "about" / f"part-{part:05d}.parquet", use_dictionary=False)


def rmse(model: Any, folder: Path) -> float:
    """RMSE of a model on what is held out."""
    from pyspark.sql import functions as F

    held = model.transform(session().read.parquet(str(folder / "held")))
    error = F.col("prediction") - F.col("rating")
    return float(held.agg(F.sqrt(F.avg(error * error))).collect()[0][0])


def timed(work: Any) -> tuple[Any, float]:
    """What it gives, and seconds."""
    clock = time.perf_counter()
    return work(), time.perf_counter() - clock


def child(step: str, given: argparse.Namespace) -> dict[str, Any]:
    """One step in this process: its figures."""
    folder: Path = given.folder
    spark = session(given.memory, spark__local__dir=str(folder / "local"))
    als = StreamingBiasedALS(
        timestampCol="time", maxIter=3, numBlocks=given.blocks, maxResidentIds=given.resident
    )
    told: dict[str, Any] = {}
    with watched(str(folder / "local")) as peaks:
        clock, cpu = time.perf_counter(), cpu_seconds()
        if step in ("all", "all with features", "tenth in blocks"):
            name = step.partition(" ")[0]
            if step == "all with features":
                als.setUserFeatures(spark.read.parquet(str(folder / "about")))
            path = folder / f"path-{step.replace(' ', '-')}"
            shutil.rmtree(path, ignore_errors=True)
            model = als.fitPath(spark.read.parquet(str(folder / name)), path)
            told["form"], told["training"] = model.summary.form, model.summary.rmse
            told["phases"] = model.summary.seconds
            told["pathBytes"] = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        elif step == "tenth in one task":
            model = als.setNumBlocks(1).fit(spark.read.parquet(str(folder / "tenth")))
        else:
            told |= used(folder / "path-all", folder, given.resident)
        told["seconds"], told["cpu"] = time.perf_counter() - clock, cpu_seconds() - cpu
        told["peaks"] = dict(peaks.held)
        told["blockBytes"] = dict(peaks.files)
        if step.startswith("tenth") or "features" in step:
            told["rmse"] = rmse(model, folder)
    return told


def used(path: Path, folder: Path, resident: int) -> dict[str, Any]:
    """Figures of a path in use."""
    spark = session()
    told: dict[str, Any] = {}
    model, told["load"] = timed(lambda: StreamingBiasedALSModel.load(path, maxResidentIds=resident))
    told["model"] = repr(model)
    users = [int(n) * 7 + 3 for n in range(1000)]
    lists, told["recommend"] = timed(lambda: model.recommendForUserSubset(users, 10).collect())
    assert len(lists) == 1000
    stream = spark.readStream.schema(SCHEMA).option("maxFilesPerTrigger", 1)
    stream = stream.parquet(str(folder / "stream"))
    job = StreamingBiasedALSModel.resumeStream(
        stream, str(path), maxResidentIds=resident, trigger={"availableNow": True}, keepVersions=99
    )
    _, told["stream"] = timed(job.awaitTermination)
    metrics = job.metrics(all=True)
    told["triggers"] = len(metrics)
    told["triggerSeconds"] = float(metrics.seconds.iloc[5:].median())
    told["streamRmse"] = float(metrics.rmse.mean())
    print(json.dumps(told), file=sys.stderr, flush=True)
    # of version 0, which is kept
    told["rmse"], told["transform"] = timed(lambda: rmse(model, folder))
    return told


def main() -> None:
    """Make the ratings, run each step in a process of its own, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--users", type=ratings_count, default=2_000_000)
    parser.add_argument("--items", type=ratings_count, default=200_000)
    parser.add_argument("--ratings", type=ratings_count, default=20_000_000)
    parser.add_argument("--blocks", type=int, default=0, help="numBlocks; 0: by the table's size")
    parser.add_argument("--resident", type=int, default=200_000, help="maxResidentIds in use")
    parser.add_argument("--features", type=int, default=0, help="numbers of a user's vector")
    parser.add_argument("--sparse", action="store_true", help="an eighth of them, and each 1")
    parser.add_argument("--memory", default="2g", help="spark.driver.memory")
    parser.add_argument("--folder", type=Path, help="where all lies; a temporary one by default")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--only", nargs="*", default=list(STEPS), choices=STEPS)
    parser.add_argument("--child", choices=STEPS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(given.child, given)))
        return
    made = given.folder or Path(tempfile.mkdtemp(prefix="fit-path-"))
    make(made, given.users, given.items, given.ratings)
    if given.features:
        shutil.rmtree(made / "about", ignore_errors=True)
        describe(made, given.users, given.features, given.sparse)
    rows = []
    for step in given.only:
        if step == "all with features" and not given.features:
            continue
        command = [sys.executable, __file__, *sys.argv[1:], "--folder", str(made), "--child", step]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        told = json.loads(done.stdout.splitlines()[-1])
        print(step, json.dumps(told), file=sys.stderr, flush=True)
        rows.append(row(step, [told.pop("seconds")], [told.pop("cpu")], **told))
    asked = ("users", "items", "ratings", "resident", "features", "sparse")
    ids = {name: getattr(given, name) for name in asked}
    write("fit_path", rows, {}, given.json, **ids, memory=given.memory)
    if given.folder is None:
        shutil.rmtree(made)


STEPS = ("all", "all with features", "in use", "tenth in one task", "tenth in blocks")

if __name__ == "__main__":
    main()
