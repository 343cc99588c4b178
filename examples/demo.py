"""The story of a streamed model: `make demo`, or python examples/demo.py.

Ratings arrive in time order, 1,000 a micro-batch, each is learned once, and after every batch the
model predicts ratings that were held out. Spark's own ALS, which sees all of them at once and
picks the best of five regParams on the held-out ratings themselves, is the mark to beat. The
ratings are MovieLens latest-small from the folder in SPARKML_SGDALS_DATA, else downloaded, else
made up. Everything that is written goes to out/.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
import threading
import time
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from pyspark.ml.recommendation import ALS
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from sparkml_sgdals import StreamingBiasedALS

mpl.use("Agg")
import matplotlib.pyplot as plt

OUT = Path(os.environ.get("SPARKML_SGDALS_OUT") or Path(__file__).resolve().parent.parent / "out")
URL = "https://files.grouplens.org/datasets/movielens/ml-latest-small.zip"
SCHEMA = "userId int, movieId int, rating double, timestamp long"
REG_PARAMS = (0.05, 0.1, 0.15, 0.2, 0.3)
BATCH = 1_000


def say(text: str = "") -> None:
    """Print at once, so that progress shows through a pipe too."""
    print(text, flush=True)


# ---- ratings --------------------------------------------------------------------------------


def load_ratings() -> tuple[pd.DataFrame, str, str]:
    """The ratings, their name, and where they are from."""
    named = os.environ.get("SPARKML_SGDALS_DATA", "")
    if named:
        for file in (Path(named, "ml-latest-small", "ratings.csv"), Path(named, "ratings.csv")):
            if file.is_file():
                return pd.read_csv(file), file.parent.name, f"read from {file}"
    answer = download(seconds=5)
    if answer is not None:
        return answer, "ml-latest-small", f"downloaded from {URL}"
    return generate(), "generated ratings", "no MovieLens at hand and no answer from its site"


def download(seconds: float, file: str = "ratings.csv") -> pd.DataFrame | None:
    """A file of MovieLens latest-small, None if there is no answer in time."""
    found: list[pd.DataFrame] = []
    answered = threading.Event()

    def run() -> None:
        try:
            with urllib.request.urlopen(URL, timeout=seconds) as answer:
                answered.set()
                archive = zipfile.ZipFile(io.BytesIO(answer.read()))
            with archive.open(f"ml-latest-small/{file}") as content:
                found.append(pd.read_csv(content))
        except (OSError, zipfile.BadZipFile, KeyError, ValueError):
            pass

    # a thread, as urlopen's timeout does not cover the look-up of the name
    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    worker.join(seconds)
    if answered.is_set():
        worker.join(60)
    return found[0] if found else None


def generate() -> pd.DataFrame:
    """Ratings of MovieLens latest-small's shape: known factors plus noise, on half stars."""
    rng = np.random.default_rng(7)
    users, items, rank = 610, 12_600, 8  # some 9,700 items will be rated
    activity = rng.lognormal(0.0, 1.3, users)
    counts = np.clip(activity / activity.sum() * 100_000, 20, 2_700).astype(int)
    popularity = rng.normal(0.0, 1.6, items)
    user_bias, item_bias = rng.normal(0.0, 0.4, users), rng.normal(0.0, 0.4, items)
    user_factors = rng.normal(0.0, 0.4, (users, rank))
    item_factors = rng.normal(0.0, 0.4, (items, rank))
    # whom a film suits sees it more often, and likes it better than average
    taste = user_factors @ item_factors.T
    start = np.sort(rng.integers(828_000_000, 1_537_000_000, users))
    parts = []
    for user in range(users):
        # Gumbel's trick: the largest of these are a sample without replacement
        keys = popularity + 0.5 * taste[user] + rng.gumbel(size=items)
        seen = np.argpartition(-keys, counts[user])[: counts[user]]
        value = 3.5 + user_bias[user] + item_bias[seen] + taste[user, seen]
        value = value + rng.normal(0.0, 0.75, seen.size)
        rating = np.clip(np.round(value * 2) / 2, 0.5, 5.0)
        moment = start[user] + rng.exponential(3_000_000, seen.size).astype(int)
        parts.append(
            pd.DataFrame(
                {"userId": user + 1, "movieId": seen + 1, "rating": rating, "timestamp": moment}
            )
        )
    return pd.concat(parts, ignore_index=True)


def split(ratings: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """80% to learn from, and of the rest the ratings whose user and item are among them."""
    held_out = np.random.default_rng(42).random(len(ratings)) < 0.2
    train, test = ratings[~held_out], ratings[held_out]
    known = test.userId.isin(train.userId) & test.movieId.isin(train.movieId)
    return train, test[known]


def write_files(train: pd.DataFrame, folder: Path) -> int:
    """Cut the ratings, by time, into CSV files that seem to have arrived one after another."""
    ordered = train.sort_values("timestamp", kind="stable")
    # a folder of the user's may hold millions: then the batches grow, not their number
    size = max(BATCH, -(-len(ordered) // 100))
    starts = range(0, len(ordered), size)
    now = time.time() - len(starts)
    for number, start in enumerate(starts):
        file = folder / f"ratings-{number:04d}.csv"
        ordered.iloc[start : start + size].to_csv(file, index=False, header=False)
        os.utime(file, (now + number, now + number))
    return len(starts)


# ---- three ways to learn them -----------------------------------------------------------------


def rmse_of(predictions: DataFrame) -> float:
    """RMSE of predictions clipped to the half stars."""
    clipped = F.greatest(F.lit(0.5), F.least(F.lit(5.0), F.col("prediction")))
    row = predictions.select(F.sqrt(F.avg((clipped - F.col("rating")) ** 2))).first()
    return float(row[0]) if row is not None else float("nan")


def best_als(train: DataFrame, test: DataFrame) -> tuple[float, float, float]:
    """RMSE of Spark's ALS at its best regParam, that regParam, and seconds for all of them."""
    best, chosen, seconds = float("inf"), 0.0, 0.0
    for reg in REG_PARAMS:
        clock = time.perf_counter()
        # its default of 10 blocks takes twice as long on so few ratings, and is no better
        als = ALS(rank=10, maxIter=10, regParam=reg, numUserBlocks=4, numItemBlocks=4, seed=1)
        model = als.setUserCol("userId").setItemCol("movieId").fit(train)
        took = time.perf_counter() - clock
        seconds += took
        rmse = rmse_of(model.transform(test))
        say(f"  regParam {reg:<4}  RMSE {rmse:.4f}  {took:5.1f} s")
        if rmse < best:
            best, chosen = rmse, reg
    return best, chosen, seconds


def stream_ratings(
    spark: SparkSession, train: pd.DataFrame, test: DataFrame, model_path: Path
) -> tuple[pd.DataFrame, float]:
    """Learn the ratings as a stream of files; its metrics and seconds."""
    als = StreamingBiasedALS(userCol="userId", itemCol="movieId", timestampCol="timestamp")
    with tempfile.TemporaryDirectory() as folder:
        batches = write_files(train, Path(folder))
        clock = time.perf_counter()
        stream = spark.readStream.schema(SCHEMA).option("maxFilesPerTrigger", 1).csv(folder)
        job = als.fitStream(
            stream, str(model_path), trigger={"availableNow": True}, validation=test
        )
        say("  batch   ratings   RMSE before learning   held-out RMSE")
        shown, seen, ended = 0, 0, False
        while not ended:
            ended = job.awaitTermination(1)
            metrics = job.metrics()
            for row in metrics[shown:].itertuples():
                seen += row.ratings
                if row.batch < 5 or row.batch % 10 == 9 or row.batch == batches - 1:
                    before = "-" if np.isnan(row.rmse) else f"{row.rmse:.4f}"
                    after = f"{row.validationRmse:.4f}"
                    say(f"  {row.batch:>5} {seen:>9,} {before:>22} {after:>15}")
            shown = len(metrics)
        seconds = time.perf_counter() - clock
    return metrics, seconds


def fit_table(train: DataFrame, test: DataFrame) -> tuple[float, float]:
    """RMSE and seconds of our fit."""
    als = StreamingBiasedALS(userCol="userId", itemCol="movieId", timestampCol="timestamp")
    clock = time.perf_counter()
    model = als.fit(train)
    seconds = time.perf_counter() - clock
    return rmse_of(model.transform(test)), seconds


# ---- what came of it --------------------------------------------------------------------------


def crossing(seen: np.ndarray, curve: np.ndarray, mark: float) -> float | None:
    """How many ratings take the curve below the mark for good; None if it is not below."""
    above = np.flatnonzero(curve >= mark)
    if not above.size or above[-1] == curve.size - 1:
        return None
    last = int(above[-1])
    share = (curve[last] - mark) / (curve[last] - curve[last + 1])
    return float(seen[last] + share * (seen[last + 1] - seen[last]))


def headline(stream: float, als: float) -> str:
    """What was found, in a line."""
    side = "below" if stream < als else "above"
    apart = abs(stream / als - 1)
    return f"Each rating seen once, the stream's RMSE ends {apart:.1%} {side} Spark's best ALS"


def draw(metrics: pd.DataFrame, als: float, fit: float, what: str, file: Path) -> None:
    """Held-out RMSE against ratings seen, with ALS and our fit as lines."""
    seen = metrics.ratings.cumsum().to_numpy() / 1_000
    curve = metrics.validationRmse.to_numpy()
    right, end = float(seen[-1]), float(curve[-1])
    blue, brown, grey = "#0b4f8a", "#8a3f12", "#4a4a4a"

    mpl.rcParams.update({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(figsize=(9, 5.4), dpi=150)
    figure.subplots_adjust(left=0.092, right=0.918, bottom=0.11, top=0.88)
    axes.axhline(als, color=brown, linewidth=1.6, linestyle=(0, (6, 3)))
    axes.axhline(fit, color=grey, linewidth=1.6, linestyle=(0, (8, 3, 1.5, 3)))
    axes.plot(seen, curve, color=blue, linewidth=2, marker="o", markersize=3.2)
    # the first batches, which know almost nothing, must not flatten what follows
    low, high = min(als, fit, curve.min()), max(als, fit, curve.max())
    high = min(high, low + 8 * max(abs(als - fit), 0.02))
    axes.set_xlim(0, right)
    axes.set_ylim(low - 0.08 * (high - low), high + 0.03 * (high - low))

    def label(x: float, y: float, words: str, color: str, **more: Any) -> None:
        axes.annotate(words, (x, y), color=color, textcoords="offset points", **more)

    passed = crossing(seen, curve, als)
    late = passed is None or passed > right / 2
    # one above its line and one below, so that they stay apart when the lines are close
    above, below = (5, -15) if als >= fit else (-15, 5)
    words = f"Spark's ALS, all ratings at once, best of {len(REG_PARAMS)}: {als:.4f}"
    if passed is not None and 0.45 < passed / right < 0.6:
        # the curve comes down to the line in the middle: there is no room for all of it
        words = f"Spark's ALS, best of {len(REG_PARAMS)}: {als:.4f}"
    if passed is None or passed > 0.6 * right:
        label(0, als, words, brown, xytext=(8, above))
    else:
        label(right, als, words, brown, xytext=(-8, above), ha="right")
    label(
        0, fit, f"our fit, all ratings at once, nothing tuned: {fit:.4f}", grey, xytext=(8, below)
    )
    height = low + (0.65 if late else 0.3) * (high - low)
    middle = int(np.argmin(np.abs(curve - height)))
    words = "our stream, one dot a micro-batch"
    label(seen[middle], curve[middle], words, blue, xytext=(10, 8), weight="bold")
    place: dict[str, Any] = {"xytext": (7, 0), "va": "center", "annotation_clip": False}
    label(right, end, f"{end:.4f}", blue, weight="bold", **place)
    if passed is not None:
        hollow = {"markersize": 10, "color": "white", "markeredgecolor": blue}
        axes.plot(passed, als, "o", markeredgewidth=2, zorder=5, **hollow)
        words = f"passes ALS after\n{round(passed)},000 ratings"
        place = {"xytext": (-10, -30), "ha": "right"} if late else {"xytext": (10, 24)}
        label(passed, als, words, blue, **place)
    axes.set_xlabel("ratings seen by the stream (thousands)")
    axes.set_ylabel("held-out RMSE (stars)")
    figure.suptitle(headline(end, als), x=0.092, ha="left", fontsize=13, weight="bold")
    axes.set_title(what, loc="left", fontsize=10.5, color=grey, pad=10)
    figure.savefig(file)
    plt.close(figure)


def start_spark() -> SparkSession:
    """A small local session that keeps quiet."""
    # else workers start whatever python3 the PATH has
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    settings: dict[str, Any] = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.memory": "2g",
        "spark.sql.shuffle.partitions": "2",
        "spark.sql.execution.arrow.pyspark.enabled": "true",
    }
    cores = max(2, min(4, os.cpu_count() or 2))
    spark = SparkSession.builder.master(f"local[{cores}]").config(map=settings).getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    return spark


def main() -> None:
    """Run the story."""
    began = time.perf_counter()
    OUT.mkdir(parents=True, exist_ok=True)
    picture, table, model_path = OUT / "demo.png", OUT / "demo-metrics.csv", OUT / "demo-model"
    shutil.rmtree(model_path, ignore_errors=True)

    ratings, name, whence = load_ratings()
    train, test = split(ratings)
    say(f"Ratings: {name}, {whence}")
    say(
        f"  {len(ratings):,} by {ratings.userId.nunique():,} users of "
        f"{ratings.movieId.nunique():,} films: {len(train):,} to learn, {len(test):,} held out"
    )
    spark = start_spark()
    train_table = spark.createDataFrame(train, SCHEMA).cache()
    test_table = spark.createDataFrame(test, SCHEMA).cache()
    train_table.count()
    test_table.count()

    say("\nSpark's ALS learns all of them at once (rank 10, 10 iterations):")
    als, reg, als_seconds = best_als(train_table, test_table)
    say("\nOur stream learns them in time order, each once:")
    metrics, stream_seconds = stream_ratings(spark, train, test_table, model_path)
    metrics.to_csv(table, index=False)
    fit, fit_seconds = fit_table(train_table, test_table)
    spark.stop()

    stream = float(metrics.validationRmse.iloc[-1])
    name = name.replace("ml-latest-small", "MovieLens latest-small")
    size = metrics.ratings.iloc[0]
    what = f"{name}: {len(train):,} ratings in time order, {size:,} a micro-batch; "
    draw(metrics, als, fit, what + f"{len(test):,} held out", picture)

    say(f"\n{headline(stream, als)}.\n\n{'':<44} held-out RMSE   seconds")
    for way, rmse, seconds in (
        (f"Spark's ALS, best of {len(REG_PARAMS)} (regParam {reg})", als, als_seconds),
        (f"our stream, {len(metrics)} micro-batches", stream, stream_seconds),
        ("our fit of the same table", fit, fit_seconds),
    ):
        say(f"  {way:<42} {rmse:>13.4f} {seconds:>9.1f}")
    say(f"\nALS's seconds are those of all {len(REG_PARAMS)} fits, nothing was tuned for ours, and")
    say("every way's first run warms up; make bench times warm fits.")
    say(f"\npicture   {picture}")
    say(f"metrics   {table}")
    say(f"model     {model_path}  (StreamingBiasedALSModel.load reads it)")
    say(f"\n{time.perf_counter() - began:.0f} seconds in all")


if __name__ == "__main__":
    main()
