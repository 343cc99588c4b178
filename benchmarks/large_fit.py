"""Time our fit at size against Spark's ALS and against the machine: python benchmarks/large_fit.py.

90% of the ratings of benchmarks/generate.py, 26 million by default, from Parquet, nothing cached;
rank 10; ALS with 10 iterations and regParam 0.05, ours with its defaults and without the implicit
prior, and in as many blocks as cores. All are warm and take turns. Two floors are measured in the
same turns: the same learning on NumPy arrays without Spark, and Spark handing the three columns of
the Parquet files to Python as Arrow, where they are only counted. `--blocks 8` adds so many blocks.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from generate import NOISE, ratings_count, write_ratings
from harness import about, row, timed
from pyspark.ml.recommendation import ALS
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkml_sgdals import StreamingBiasedALS
from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.ingest.packing import batches_by_rows
from sparkml_sgdals.learn.whole_table import fit_ratings
from sparkml_sgdals.ml.params import default_settings
from sparkml_sgdals.state.model_state import ModelState

OUT = Path(__file__).resolve().parent.parent / "out"
COLUMNS = {"userCol": "userId", "itemCol": "movieId"}
RANK = 10
OURS, PLAIN, THEIRS = "StreamingBiasedALS", "implicitPrior=False", "ALS"
OURS_BY_PATH, PLAIN_BY_PATH = "fitParquet", "fitParquet, implicitPrior=False"
SCAN, KERNELS, PLAIN_KERNELS = "scan", "no Spark", "no Spark, implicitPrior=False"
BLOCKS = "fit, a block a core"
WAYS = (
    OURS, PLAIN, OURS_BY_PATH, PLAIN_BY_PATH, THEIRS, SCAN, KERNELS, PLAIN_KERNELS, BLOCKS
)  # fmt: skip


def count_rows(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Take what Spark hands over, and only count it."""
    rows = sum(batch.num_rows for batch in batches)
    yield pa.RecordBatch.from_pydict({"rows": pa.array([rows], pa.int64())})


def scan(train: DataFrame) -> Any:
    """Hand three columns over as fast as Spark can: without a limit in bytes on Arrow batches."""
    columns = train.select("userId", "movieId", F.col("rating").cast("float"))
    with batches_by_rows(train.sparkSession):
        return columns.mapInArrow(count_rows, "rows long").agg(F.sum("rows")).first()


def read_columns(folder: Path) -> pa.Table:
    """The training ratings in memory, as plain contiguous arrays."""
    table = pq.read_table(folder / "train", columns=["userId", "movieId", "rating"])
    return pa.table(
        {
            "user": table["userId"].combine_chunks().cast(pa.int64()),
            "item": table["movieId"].combine_chunks().cast(pa.int64()),
            "rating": table["rating"].combine_chunks().cast(pa.float32()),
        }
    )


def rmse_of(model: Any, test: DataFrame) -> float:
    """RMSE of clipped predictions of the pairs whose user and item are known."""
    clipped = F.greatest(F.lit(0.5), F.least(F.lit(5.0), F.col("prediction")))
    row = model.transform(test).select(F.sqrt(F.avg((clipped - F.col("rating")) ** 2))).first()
    return float(row[0])


def main() -> None:
    """Measure, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description="Time fit at size against ALS and the machine.")
    parser.add_argument("--ratings", type=ratings_count, default=26_000_000, help="100k ... 78M")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the ratings lie, or are to be made")
    parser.add_argument("--memory", default="6g", help="of the driver")
    parser.add_argument(
        "--blocks", type=int, nargs="+", default=[], help="numBlocks of further ways of ours"
    )
    parser.add_argument("--only", nargs="+", choices=WAYS, default=WAYS, metavar="WAY")
    parser.add_argument("--more", action="store_true", help="add to the runs in the JSON")
    parser.add_argument("--cold", action="store_true", help="no warm-up before the runs")
    parser.add_argument("--json", type=Path, default=OUT / "large_fit.json")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.gettempdir(), f"ratings-{given.ratings}")
    truth = write_ratings(folder, given.ratings)
    if not given.cold and not given.folder:
        print(f"ratings in {folder}")

    # else workers start whatever python3 the PATH has
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    cores = min(4, os.cpu_count() or 1)
    spark = (
        SparkSession.builder.master(f"local[{cores}]")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.driver.memory", given.memory)
        .config("spark.driver.maxResultSize", "0")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    train = spark.read.parquet(str(folder / "train"))
    test = spark.read.parquet(str(folder / "test"))

    ours = StreamingBiasedALS(rank=RANK, coldStartStrategy="drop", **COLUMNS)
    plain = ours.copy({ours.implicitPrior: False})
    als = ALS(rank=RANK, maxIter=10, regParam=0.05, seed=1, coldStartStrategy="drop", **COLUMNS)
    columns = read_columns(folder) if {KERNELS, PLAIN_KERNELS} & set(given.only) else None

    def without_spark(estimator: StreamingBiasedALS) -> ModelState:
        state = ModelState.empty(estimator.settings(), "int", "int")
        fit_ratings(encode_ratings(columns, cores), state, cores)
        return state

    ways: dict[str, Callable[[], Any]] = {
        OURS: lambda: ours.fit(train),
        PLAIN: lambda: plain.fit(train),
        OURS_BY_PATH: lambda: ours.fitParquet(str(folder / "train")),
        PLAIN_BY_PATH: lambda: plain.fitParquet(str(folder / "train")),
        THEIRS: lambda: als.fit(train),
        SCAN: lambda: scan(train),
        KERNELS: lambda: without_spark(ours),
        PLAIN_KERNELS: lambda: without_spark(plain),
        BLOCKS: lambda: ours.copy({ours.numBlocks: cores}).fit(train),
    }
    ways = {name: way for name, way in ways.items() if name in given.only}
    for blocks in given.blocks:
        cut = ours.copy({ours.numBlocks: blocks})
        ways[f"{blocks} blocks"] = partial(cut.fit, train)
    print(f"{train.count():,} ratings to learn, {test.count():,} held out, {cores} cores")

    if not given.cold:
        warm = spark.createDataFrame(train.limit(100_000).toPandas())
        ours.fit(warm), plain.fit(warm), als.fit(warm)
        for blocks in given.blocks:
            ours.copy({ours.numBlocks: blocks}).fit(warm)
        small = ModelState.empty(default_settings(rank=RANK), "int", "int")
        few = warm.select(
            F.col("userId").cast("long").alias("user"), F.col("movieId").cast("long").alias("item"),
            F.col("rating").cast("float").alias("rating"),
        ).toArrow()  # fmt: skip
        fit_ratings(encode_ratings(few, cores), small, cores)
    seconds: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    in_blocks = [BLOCKS, *(f"{blocks} blocks" for blocks in given.blocks)]
    phases: dict[str, list[dict[str, float]]] = {
        name: [] for name in (OURS, PLAIN, OURS_BY_PATH, PLAIN_BY_PATH, *in_blocks)
    }
    rmse: dict[str, float] = {}
    if given.more and given.json.exists():
        before = json.loads(given.json.read_text(encoding="utf-8"))
        for name, way in before["ways"].items():
            seconds[name], cpu[name] = list(way["seconds"]), list(way["cpu"])
            if way["rmse"] is not None:
                rmse[name] = way["rmse"]
        for name, runs in before["phases"].items():
            phases.setdefault(name, []).extend(runs)
    head = about("large_fit") | {
        "ratings": given.ratings,
        "users": len(truth.counts),
        "items": len(truth.item_ids),
        "noise": NOISE,
        "rank": RANK,
        "cores": cores,
    }
    given.json.parent.mkdir(exist_ok=True)
    for _ in range(given.runs):
        for name, way in ways.items():
            took, busy, model = timed(way)
            seconds.setdefault(name, []).append(took)
            cpu.setdefault(name, []).append(busy)
            if name in phases:
                phases[name].append(dict(model.summary.seconds))
            if name not in rmse and name in (OURS, PLAIN, THEIRS, *in_blocks):
                rmse[name] = rmse_of(model, test)
            print(f"  {name}: {took:.1f} s, {busy:.1f} s of CPU", file=sys.stderr)
            del model
            # after each, so that a long session may be cut short
            result = head | summary(seconds, cpu, phases, rmse)
            given.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    spark.stop()

    found = summary(seconds, cpu, phases, rmse)
    median = {name: way["median"] for name, way in found["ways"].items()}
    unit = median.get(OURS, next(iter(median.values())))
    print(f"\n{'':<30} {'median s':>9} {'range s':>15} {'CPU s':>7} {'ratio':>7} {'RMSE':>8}")
    for name, times in seconds.items():
        spread = f"{min(times):.2f} to {max(times):.2f}"
        error = f"{rmse[name]:.4f}" if name in rmse else ""
        ratio, busy = median[name] / unit, found["ways"][name]["medianCpu"]
        print(f"{name:<30} {median[name]:>9.2f} {spread:>15} {busy:>7.1f} {ratio:>7.2f} {error:>8}")
    for name, runs in phases.items():
        if runs:
            parts = {part: statistics.median(run[part] for run in runs) for part in runs[0]}
            print(f"{name}: " + ", ".join(f"{part} {took:.2f} s" for part, took in parts.items()))
    for name, ratio in found["ratios"].items():
        print(f"{name}: {ratio:.2f}")
    print(f"written to {given.json}")


def summary(
    seconds: dict[str, list[float]],
    cpu: dict[str, list[float]],
    phases: dict[str, list[dict[str, float]]],
    rmse: dict[str, float],
) -> dict[str, Any]:
    """Medians, and the ratios that are promised, of what has been measured so far."""
    median = {name: statistics.median(times) for name, times in seconds.items() if times}
    ratios = {}
    for name in (OURS, OURS_BY_PATH, PLAIN, PLAIN_BY_PATH):
        floor = PLAIN_KERNELS if PLAIN in name else KERNELS
        if {name, floor, SCAN} <= set(median):
            ratios[f"{name} to its floor"] = median[name] / (median[floor] + median[SCAN])
        if {name, THEIRS} <= set(median):
            ratios[f"ALS to {name}"] = median[THEIRS] / median[name]
    for name in median:
        if (name == BLOCKS or name.endswith(" blocks")) and OURS in median:
            form = "blocks" if name == BLOCKS else name
            ratios[f"{form} to one task"] = median[name] / median[OURS]
    if {OURS, THEIRS} <= set(rmse):
        ratios["RMSE gained"] = rmse[THEIRS] - rmse[OURS]
    ways = {
        name: {
            "seconds": seconds[name],
            "median": median[name],
            "cpu": cpu[name],
            "medianCpu": statistics.median(cpu[name]),
            "rmse": rmse.get(name),
        }
        for name in median
    }
    rows = [row(name, seconds[name], cpu[name], rmse=rmse.get(name)) for name in median]
    return {"rows": rows, "ways": ways, "phases": phases, "ratios": ratios}


if __name__ == "__main__":
    main()
