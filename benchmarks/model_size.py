"""What a trigger costs, by the size of the model: python benchmarks/model_size.py.

    python benchmarks/model_size.py --ids 10k 100k 1M 10M --resident 1M --runs 5 --triggers 15

Model paths of so many ids (four users to an item, rank 10) are made in a temporary folder. Then, by
turns and in one session, a stream of micro-batches of 1,000 ratings goes onto each of them, and the
same files to a foreachBatch that only collects. Every batch names 1,000 users and 1,000 items, none
twice and none new, drawn evenly: the work is the same for every size, so what differs is the model.
A model of more ids than --resident is streamed onto with `maxResidentIds` at that number: most of
the rows of a batch are then read from files. A trigger's time is Spark's own (triggerExecution of
its progress), the first ones of a run left out: they open the model. 10 million ids take 2 GB on
disk, and as much again while they are sorted into runs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from generate import ratings_count
from harness import row, session, write
from large_model import SCHEMA, make_model

from sparkml_sgdals import StreamingBiasedALSModel
from sparkml_sgdals.ml.params import default_settings

COLLECT = "no-op that collects"
WARM_UP = 3
"""Triggers at the start of a run that are not counted."""


def sides(ids: int) -> tuple[int, int]:
    """Users and items of a model of so many ids."""
    return ids - ids // 5, ids // 5


def add_files(folder: Path, ids: int, run: int, triggers: int, size: int) -> None:
    """Files of one run, one a micro-batch: no id twice in a batch."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng([ids, run])
    for number in range(run * triggers, (run + 1) * triggers):
        users, items = (_drawn(rng, count, size) for count in sides(ids))
        frame = pd.DataFrame(
            {"user": users, "item": items, "rating": rng.integers(1, 11, size) / 2,
             "time": np.arange(size) + number * size}
        )  # fmt: skip
        file = folder / f"{number:06d}.csv"
        frame.to_csv(file, index=False, header=False)
        # the file source goes by modification time
        os.utime(file, (1_000_000_000 + number,) * 2)


def _drawn(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Ids without repetition, of those that `make_model` gives: 3, 6, 9, ..."""
    if count < size:
        raise ValueError(f"{count} ids are too few for batches of {size} without repetition")
    # a permutation of ten million would take longer than the trigger
    found = np.unique(rng.integers(0, count, 4 * size)) if count > 8 * size else np.arange(count)
    return rng.permutation(found)[:size] * 3 + 3


def label(ids: int, resident: int) -> str:
    """The row of a size."""
    return f"{ids:,} ids" + (f", maxResidentIds {resident:,}" if 0 < resident < ids else "")


def main() -> None:
    """Measure, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ids", type=ratings_count, nargs="+",
                        default=[10_000, 100_000, 1_000_000, 10_000_000])  # fmt: skip
    parser.add_argument("--resident", type=ratings_count, default=1_000_000)
    parser.add_argument("--rank", type=int, default=10)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--triggers", type=int, default=15, help="of each run")
    parser.add_argument("--size", type=int, default=1000, help="ratings of a trigger")
    given = parser.parse_args()
    if given.triggers <= WARM_UP:
        parser.error(f"--triggers must be more than {WARM_UP}: the first ones do not count")
    with tempfile.TemporaryDirectory(prefix="model-size-") as scratch:
        measure(given, Path(scratch))


def measure(given: argparse.Namespace, scratch: Path) -> None:
    """Make the models, then stream onto each of them by turns."""
    for ids in given.ids:
        clock = time.perf_counter()
        make_model(scratch / f"model-{ids}", *sides(ids), default_settings(rank=given.rank))
        print(
            f"  {ids:,} ids made: {time.perf_counter() - clock:.1f} s", file=sys.stderr, flush=True
        )
    # ten million ids are a few GB in the process that learns, not in the JVM
    spark = session("1g", spark__sql__streaming__numRecentProgressUpdates=10_000)

    def source(folder: Path) -> Any:
        reader = spark.readStream.schema(SCHEMA).option("maxFilesPerTrigger", 1)
        return reader.csv(str(folder))

    def took(query: Any) -> list[float]:
        found = [p["durationMs"]["triggerExecution"] / 1000 for p in query.recentProgress
                 if p["numInputRows"]]  # fmt: skip
        return found[WARM_UP:]

    def learn(ids: int) -> list[float]:
        job = StreamingBiasedALSModel.resumeStream(
            source(scratch / f"ratings-{ids}"), str(scratch / f"model-{ids}"),
            maxResidentIds=given.resident, trigger={"availableNow": True},
        )  # fmt: skip
        job.awaitTermination()
        return took(job.query)

    def collect(ids: int) -> list[float]:
        writer = source(scratch / f"ratings-{ids}").writeStream.trigger(availableNow=True)
        checkpoint = str(scratch / "collect-checkpoint")
        query = (
            writer.foreachBatch(lambda batch, number: batch.toArrow() and None)
            .option("checkpointLocation", checkpoint)
            .start()
        )
        query.awaitTermination()
        return took(query)

    triggers: dict[str, list[list[float]]] = {COLLECT: []}
    # the first run opens the models for the first time, sorts the large one, and does not count
    for run in range(given.runs + 1):
        for ids in given.ids:
            add_files(scratch / f"ratings-{ids}", ids, run, given.triggers, given.size)
        of_run = {COLLECT: collect(given.ids[0])}
        of_run |= {label(ids, given.resident): learn(ids) for ids in given.ids}
        for name, found in of_run.items():
            middle = statistics.median(found)
            print(f"  run {run}, {name}: {middle * 1000:.0f} ms", file=sys.stderr, flush=True)
            if run:
                triggers.setdefault(name, []).append(found)
    spark.stop()
    rows = [row(name, [statistics.median(run) for run in runs]) for name, runs in triggers.items()]
    for one in rows:
        one["triggers"] = triggers[one["label"]]
        one["times the no-op"] = one["median"] / rows[0]["median"]
    medians = [one["median"] for one in rows[1:]]
    all_in_memory = [
        one["median"] for one, ids in zip(rows[1:], given.ids, strict=True) if ids <= given.resident
    ]
    ratios = {
        "dearest to cheapest": max(all_in_memory or medians) / min(all_in_memory or medians),
        "dearest to cheapest, files included": max(medians) / min(medians),
    }
    write("model_size", rows, ratios, rank=given.rank, ratings=given.size, resident=given.resident)


if __name__ == "__main__":
    main()
