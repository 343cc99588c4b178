"""What an update costs: learning batches of 1,000 to 100,000 ratings, with and without the prior
that ids give each other and the second look at a batch (smoothing).

    python benchmarks/updates.py [--rounds 15] [--spark] [--streams]
    python scripts/kafka_broker.py python benchmarks/updates.py --streams

The ratings are those of streaming.py; a model of all its ids learns batch after batch, the four
forms by turns. Times are medians in milliseconds: of the clock, and of this process's processors,
which a busy machine disturbs less. With --spark also `model.update(df)`, from a DataFrame that is
cached; with --streams also the triggers of `fitStream`, filter alone and both by turns, from
Parquet and, where KAFKA_BOOTSTRAP names a broker, from Kafka. Writes out/updates.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from harness import session
from pyspark.sql import SparkSession
from streaming import (
    COLUMNS,
    Source,
    from_files,
    from_kafka,
    made_ratings,
    ours,
    trigger_seconds,
    write_files,
)

from sparkml_sgdals import StreamingBiasedALS
from sparkml_sgdals.arrays.ratings import Ratings, encode_ratings
from sparkml_sgdals.learn import one_batch
from sparkml_sgdals.state.model_state import ModelState

OUT = Path(__file__).resolve().parent.parent / "out" / "updates.json"
SIZES = (1_000, 10_000, 100_000)
TRIGGERS = {1_000: 25, 10_000: 18, 100_000: 12}
"""How many triggers of so many ratings a stream has."""
FORMS = {
    "filter alone": (False, False),
    "implicit prior": (True, False),
    "smoothing": (False, True),
    "both (default)": (True, True),
}
"""Whether ids give each other prior means, and whether a batch is smoothed."""


@contextmanager
def smoothing(on: bool) -> Iterator[None]:
    """Learn with or without it inside."""
    smooth = one_batch.smooth_batch
    if not on:
        one_batch.smooth_batch = lambda *_: None  # type: ignore[assignment]
    try:
        yield
    finally:
        one_batch.smooth_batch = smooth


def encoded(ratings: pd.DataFrame) -> Ratings:
    """As a micro-batch has them."""
    names = {"userId": "user", "movieId": "item", "timestamp": "time"}
    table = ratings.rename(columns=names).astype({"rating": "float32"})
    return encode_ratings(pa.Table.from_pandas(table, preserve_index=False))


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Milliseconds of the clock and of processors."""
    clock, processors = time.perf_counter(), time.process_time()
    work()
    return 1000 * (time.perf_counter() - clock), 1000 * (time.process_time() - processors)


def learned(first: Ratings, drawn: bool) -> ModelState:
    """A model of the first ratings."""
    settings = StreamingBiasedALS(timestampCol="time").settings()
    state = ModelState.empty(replace(settings, implicit_prior=drawn), "int", "int")
    one_batch.learn_batch(state, first)
    return state


def measure(size: int, rounds: int) -> dict[str, dict[str, float]]:
    """Print the forms at one size; the same for the JSON."""
    ratings = made_ratings(100_000 + size * (rounds + 2))
    first = encoded(ratings.iloc[:100_000])
    batches = [encoded(ratings.iloc[at : at + size]) for at in range(100_000, len(ratings), size)]
    states = {form: learned(first, drawn) for form, (drawn, _) in FORMS.items()}
    times: dict[str, list[tuple[float, float]]] = {form: [] for form in FORMS}
    for batch in batches:
        for form, (_, smooth) in FORMS.items():
            with smoothing(smooth):
                took = timed(lambda: one_batch.learn_batch(states[form], batch))  # noqa: B023
            times[form].append(took)
    found = {}
    for form, both in times.items():
        # the first ones compile and fill caches
        clock, processors = (statistics.median(kind) for kind in zip(*both[2:], strict=True))
        found[form] = {"ms": clock, "processorMs": processors}
    print(f"\n{size:,} ratings{'':>12}{'ms':>9}{'of processors':>15}{'x filter alone':>16}")
    alone = found["filter alone"]["processorMs"]
    for form, row in found.items():
        print("{:26}{:9.2f}{:15.2f}".format(form, *row.values()), end="")
        print(f"{row['processorMs'] / alone:15.2f}x")
    return found


def measure_updates(spark: SparkSession, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of `model.update(df)`, each form on a model of its own."""
    found: dict[str, dict[str, float]] = {}
    for size in SIZES:
        ratings = made_ratings(100_000 + size)
        start = spark.createDataFrame(ratings.iloc[:100_000])
        more = spark.createDataFrame(ratings.iloc[100_000:]).cache()
        more.count()
        models = {
            form: StreamingBiasedALS(**COLUMNS, implicitPrior=drawn).fit(start)
            for form, (drawn, _) in FORMS.items()
        }
        times: dict[str, list[float]] = {form: [] for form in FORMS}
        for _ in range(rounds + 2):
            for form, (_, smooth) in FORMS.items():
                with smoothing(smooth):
                    took = timed(lambda: models[form].update(more))  # noqa: B023
                times[form].append(took[0])
        medians = {form: statistics.median(of[2:]) for form, of in times.items()}
        found[str(size)] = compared(f"model.update of {size:,} ratings, ms", medians)
    return found


def measure_streams(spark: SparkSession, runs: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a trigger, of the filter alone and of the default."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="updates-") as scratch:
        for size, triggers in TRIGGERS.items():
            folder = Path(scratch, f"ratings-{size}")
            write_files(folder, size, triggers)
            sources = {"Parquet": from_files(folder)}
            if "KAFKA_BOOTSTRAP" in os.environ:
                sources["Kafka"] = from_kafka(folder, size)
            for name, source in sources.items():
                label = f"a trigger of {size:,} ratings from {name}"
                found[label] = compared(f"{label}, ms", in_turn(spark, source, runs))
    return found


def in_turn(spark: SparkSession, source: Source, runs: int) -> dict[str, float]:
    """Median over all triggers of the streams of each form, the first stream of each left out."""
    times: dict[str, list[float]] = {"filter alone": [], "both (default)": []}
    for run in range(runs + 1):
        # who goes first changes: a machine that slows down favours neither
        for form in sorted(times, reverse=run % 2 == 0):
            drawn, smooth = FORMS[form]
            with smoothing(smooth):
                seconds = trigger_seconds(spark, source, partial(ours, implicitPrior=drawn))
            if run:
                times[form] += [1000 * second for second in seconds]
    return {form: statistics.median(of_form) for form, of_form in times.items()}


def compared(title: str, took: dict[str, float]) -> dict[str, float]:
    """Print times beside that of the filter alone; the same for the JSON."""
    print(f"\n{title}")
    for form, time_of in took.items():
        print(f"{form:26}{time_of:9.1f}{time_of / took['filter alone']:15.2f}x", flush=True)
    return took


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--spark", action="store_true", help="model.update as well")
    parser.add_argument("--streams", action="store_true", help="triggers of streams as well")
    parser.add_argument("--runs", type=int, default=6, help="streams of each form")
    given = parser.parse_args()
    found: dict[str, Any] = {"learnBatch": {str(s): measure(s, given.rounds) for s in SIZES}}
    if given.spark or given.streams:
        spark = session()
        if given.spark:
            found["update"] = measure_updates(spark, given.rounds)
        if given.streams:
            found["trigger"] = measure_streams(spark, given.runs)
        spark.stop()
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
