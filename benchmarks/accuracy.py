"""The table of peers: held-out RMSE, MAE and time on every ratings file of a folder.

python benchmarks/accuracy.py [FOLDER] --sets NAME ... --peers NAME ... --seeds 10 --folds 5

A ratings file is a CSV or Parquet with the columns user (or userId), item (or itemId, movieId),
rating and time (or timestamp), or a .dat of the four with :: between. Held out is
numpy.random.default_rng(42).random(n) < 0.2 in the order of the file, or each of the folds
default_rng(42).integers(0, folds, n); of it the pairs whose user and item were seen. Predictions
are clipped to the range of the ratings learned. Ours has everything at its default. ALS and the
peers choose from a grid on an inner validation part, a fifth of the training part, and then learn
all of it; with folds they choose in the first one and keep that for the others, where their
validation part is then among what is held out. Writes out/accuracy.json and out/accuracy.md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from peers import F64, PEERS, Learner, Peer, Point, grid_of, threads
from pyspark.ml.recommendation import ALS
from pyspark.sql import SparkSession

from sparkml_sgdals import StreamingBiasedALS
from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.state.model_state import ModelState

OUT = Path(__file__).resolve().parent.parent / "out"
NAMES = {
    "user": "user", "userid": "user", "user_id": "user",
    "item": "item", "itemid": "item", "item_id": "item", "movieid": "item", "movie_id": "item",
    "rating": "rating", "time": "time", "timestamp": "time",
}  # fmt: skip
COLUMNS = ["user", "item", "rating", "time"]
PACKAGES = ["pyspark", "numpy", "numba", "cmfrec", "scikit-surprise", "river", "libmf"]
ALS_GRID = grid_of(rank=[10, 20], regParam=[0.1, 0.15, 0.2, 0.3, 0.4, 0.6])
BATCH = 1000


def read_ratings(path: Path) -> pd.DataFrame | None:
    """Ratings of a file as int64 ids, float64 rating and int64 time; None where it holds none."""
    if path.suffix == ".dat":
        found = pd.read_csv(path, sep="::", engine="python", header=None, encoding="latin-1")
        if found.shape[1] != 4 or not pd.api.types.is_numeric_dtype(found[2]):
            return None
        found.columns = pd.Index(COLUMNS)
    elif path.suffix == ".csv":
        if not _named(list(pd.read_csv(path, nrows=0).columns)):
            return None
        found = pd.read_csv(path)
    else:
        if not _named(pq.read_schema(path).names):
            return None
        found = pq.read_table(path).to_pandas()
    found = found.rename(columns=lambda name: NAMES.get(str(name).lower(), name))[COLUMNS]
    if not pd.api.types.is_numeric_dtype(found.time):
        found["time"] = pd.to_datetime(found.time).astype("int64")
    for side in ("user", "item"):
        if not pd.api.types.is_integer_dtype(found[side]):
            found[side] = pd.factorize(found[side])[0]
    return found.astype({"user": "int64", "item": "int64", "rating": "float64", "time": "int64"})


def _named(header: list[str]) -> bool:
    return {NAMES.get(name.lower()) for name in header} >= set(COLUMNS)


def find_sets(folder: Path, wanted: list[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Every ratings file below a folder, by its folder's name or its own."""
    for path in sorted(folder.rglob("*")):
        if path.suffix not in (".csv", ".dat", ".parquet"):
            continue
        name = path.parent.name if path.stem == "ratings" else path.stem
        if wanted and name not in wanted:
            continue
        ratings = read_ratings(path)
        if ratings is not None:
            yield name, ratings


def split(ratings: pd.DataFrame, test: npt.NDArray[np.bool_]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training part, and the held-out pairs whose ids are in it."""
    train, held = ratings[~test], ratings[test]
    held = held[held.user.isin(train.user) & held.item.isin(train.item)]
    return train.reset_index(drop=True), held.reset_index(drop=True)


def outer_splits(n: int, folds: int) -> list[npt.NDArray[np.bool_]]:
    """What is held out: one fifth, or each fold in turn."""
    rng = np.random.default_rng(42)
    if folds < 2:
        return [rng.random(n) < 0.2]
    number = rng.integers(0, folds, n)
    return [number == fold for fold in range(folds)]


def score(train: pd.DataFrame, held: pd.DataFrame, learn: Learner, point: Point) -> Point:
    """Learn, predict, and say how far off, with the seconds of both together."""
    clock = time.perf_counter()
    predictions = learn(train, held, point)
    seconds = time.perf_counter() - clock
    if not np.isfinite(predictions).all():
        raise FloatingPointError("predictions are not finite")
    off = np.clip(predictions, train.rating.min(), train.rating.max()) - held.rating.to_numpy()
    return {
        "rmse": float(np.sqrt(np.mean(off**2))), "mae": float(np.mean(np.abs(off))),
        "seconds": seconds, "params": point,
    }  # fmt: skip


def ranked(train: pd.DataFrame, learn: Learner, grid: tuple[Point, ...]) -> list[Point]:
    """Points of a grid, best first, by an inner validation part of the training part."""
    inner, validation = split(train, np.random.default_rng(7).random(len(train)) < 0.2)
    found = []
    for point in grid:
        try:
            found.append((score(inner, validation, learn, point)["rmse"], point))
        except FloatingPointError:
            # a step that is too long for this set is a bad point, not a bad peer
            found.append((float("inf"), point))
    return [point for _, point in sorted(found, key=lambda pair: pair[0])]


class Ours:
    """Our three ways to learn, and ALS, on one Spark session."""

    def __init__(self, spark: SparkSession, cores: int) -> None:
        self.spark = spark
        self.cores = cores

    def _model(self, train: pd.DataFrame, seed: int | None) -> Any:
        als = StreamingBiasedALS(timestampCol="time")
        return (als if seed is None else als.setSeed(seed)).fit(self.spark.createDataFrame(train))

    def fit(self, train: pd.DataFrame, held: pd.DataFrame, point: Point) -> F64:
        """Everything at once."""
        model = self._model(train, point.get("seed"))
        return _predict(model.state, held)

    def stream(self, train: pd.DataFrame, held: pd.DataFrame, point: Point) -> F64:
        """From nothing, each rating once, in time order."""
        state = ModelState.empty(StreamingBiasedALS(timestampCol="time").settings(), "int", "int")
        _learn_in_batches(state, train.sort_values("time", kind="stable"))
        return _predict(state, held)

    def half(self, train: pd.DataFrame, held: pd.DataFrame, point: Point) -> F64:
        """The older half fitted, the newer one streamed."""
        ordered = train.sort_values("time", kind="stable")
        middle = len(ordered) // 2
        state = self._model(ordered[:middle], None).state
        _learn_in_batches(state, ordered[middle:])
        return _predict(state, held)

    def als(self, train: pd.DataFrame, held: pd.DataFrame, point: Point) -> F64:
        """Spark's ALS, in as many blocks as there are cores, which suits small sets best."""
        als = ALS(
            userCol="user", itemCol="item", maxIter=10, seed=1,
            numUserBlocks=self.cores, numItemBlocks=self.cores, **point,
        )  # fmt: skip
        pairs = held[["user", "item"]].assign(row=np.arange(len(held)))
        model = als.fit(self.spark.createDataFrame(train))
        found = model.transform(self.spark.createDataFrame(pairs)).toPandas()
        return found.sort_values("row").prediction.to_numpy(np.float64)


def _learn_in_batches(state: ModelState, ordered: pd.DataFrame) -> None:
    table = pa.Table.from_pandas(ordered.astype({"rating": "float32"}), preserve_index=False)
    for start in range(0, table.num_rows, BATCH):
        learn_batch(state, encode_ratings(table.slice(start, BATCH)))


def _predict(state: ModelState, held: pd.DataFrame) -> F64:
    rows = (
        state.users.index.find(pa.array(held.user)),
        state.items.index.find(pa.array(held.item)),
    )
    return state.predict(*rows)[0].astype(np.float64)


def tuned(
    name: str, learn: Learner, grid: tuple[Point, ...], median: bool = False
) -> Callable[[pd.DataFrame, pd.DataFrame], dict[str, Point]]:
    """Choose on the inner part of the first fold, then learn the whole training part of each."""
    points: list[Point] = []
    tuning = 0.0

    def run(train: pd.DataFrame, held: pd.DataFrame) -> dict[str, Point]:
        nonlocal points, tuning
        if not points:
            clock = time.perf_counter()
            points = ranked(train, learn, grid)
            tuning = time.perf_counter() - clock
        found = {name: score(train, held, learn, points[0]) | {"tuning": tuning}}
        if median:
            found[f"{name}, median of the grid"] = score(
                train, held, learn, points[len(points) // 2]
            )
        return found

    return run


def measure(
    ours: Ours, ratings: pd.DataFrame, folds: int, seeds: int, peers: list[Peer], with_als: bool
) -> dict[str, Any]:
    """All rows of one set: means over the folds, and why a peer has none."""
    rows: dict[str, list[Point]] = {}
    missing: dict[str, str] = {}

    def add(found: dict[str, Point]) -> None:
        for name, row in found.items():
            rows.setdefault(name, []).append(row)
            print(
                f"  {name}: RMSE {row['rmse']:.4f}, MAE {row['mae']:.4f}, {row['seconds']:.1f} s, "
                f"tuning {row.get('tuning', 0):.0f} s, {row['params']}",
                flush=True,
            )

    sizes = []
    spread: list[float] = []
    als = tuned("Spark ALS", ours.als, ALS_GRID, median=True) if with_als else None
    learners = {peer.name: tuned(peer.name, peer.learn, peer.grid) for peer in peers}
    for test in outer_splits(len(ratings), folds):
        train, held = split(ratings, test)
        sizes.append((len(train), len(held)))
        for name, learn in (
            ("ours: fit", ours.fit),
            ("ours: one pass from nothing", ours.stream),
            ("ours: half fitted, half streamed", ours.half),
        ):
            add({name: score(train, held, learn, {})})
        spread += [score(train, held, ours.fit, {"seed": s})["rmse"] for s in range(1, seeds + 1)]
        if als:
            add(als(train, held))
        for peer in peers:
            reason = missing.get(peer.name) or peer.missing()
            if not reason:
                try:
                    add(learners[peer.name](train, held))
                except Exception as failure:  # one peer that fails is a line of the table
                    reason = f"{type(failure).__name__}: {failure}"
            if reason:
                missing[peer.name] = reason
                print(f"  {peer.name}: no result, {reason}", flush=True)
    return {
        "ratings": len(ratings), "sizes": sizes, "rows": rows, "missing": missing,
        "seeds": spread,
    }  # fmt: skip


def as_markdown(sets: dict[str, dict[str, Any]]) -> str:
    """One table a set, best RMSE first."""
    lines = []
    for name, found in sets.items():
        learned, held = found["sizes"][0]
        lines += [
            f"### {name}", "", f"{learned:,} ratings learned, {held:,} held out.", "",
            "| | RMSE | MAE | seconds | tuning, s | chosen |", "|---|---|---|---|---|---|",
        ]  # fmt: skip

        def mean(rows: list[Point], key: str) -> float:
            return float(np.mean([row.get(key, 0.0) for row in rows]))

        for method, rows in sorted(found["rows"].items(), key=lambda r: mean(r[1], "rmse")):
            chosen = ", ".join(f"{k}={v}" for k, v in rows[0]["params"].items())
            tuning = f"{mean(rows, 'tuning'):.0f}" if "tuning" in rows[0] else ""
            rmse = [row["rmse"] for row in rows]
            spread = f" ({min(rmse):.4f} to {max(rmse):.4f})" if len(rmse) > 1 else ""
            lines.append(
                f"| {method} | {np.mean(rmse):.4f}{spread} | {mean(rows, 'mae'):.4f} "
                f"| {mean(rows, 'seconds'):.1f} | {tuning} | {chosen or 'defaults'} |"
            )
        for method, reason in found["missing"].items():
            lines.append(f"| {method} | | | | | no result: {reason} |")
        if found["seeds"]:
            rmse = found["seeds"]
            lines += [
                "",
                f"`fit` over {len(rmse)} seeds: mean {np.mean(rmse):.4f}, "
                f"{min(rmse):.4f} to {max(rmse):.4f}.",
            ]
        lines.append("")
    return "\n".join(lines)


def versions() -> dict[str, str]:
    """Versions of what was used."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", default=os.environ.get("SPARKML_SGDALS_DATA", ""))
    parser.add_argument("--sets", nargs="*", default=[], help="only these, by name")
    parser.add_argument(
        "--peers", nargs="*", default=["als", *(peer.name for peer in PEERS)],
        help="only these, by name; als is Spark's; none for ours alone",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, default=10, help="fits of ours with other seeds")
    parser.add_argument("--folds", type=int, default=1, help="5 for five-fold")
    parser.add_argument("--cores", type=int, default=min(4, os.cpu_count() or 1))
    given = parser.parse_args()
    unknown = set(given.peers) - {"als", *(peer.name for peer in PEERS)}
    if unknown:
        parser.error(f"no such peer: {sorted(unknown)}; there are als, {[p.name for p in PEERS]}")
    if not given.folder or not Path(given.folder).is_dir():
        parser.error("give a folder of ratings files, or set SPARKML_SGDALS_DATA to one")
    os.environ["OMP_NUM_THREADS"] = str(given.cores)
    # else workers start whatever python3 the PATH has
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    spark = (
        SparkSession.builder.master(f"local[{given.cores}]")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.driver.memory", "2g")
        .config("spark.sql.shuffle.partitions", given.cores)
        .config("spark.sql.execution.arrow.pyspark.enabled", "true")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    ours = Ours(spark, given.cores)
    peers = [peer for peer in PEERS if peer.name in given.peers]
    sets: dict[str, dict[str, Any]] = {}
    OUT.mkdir(exist_ok=True)
    for name, ratings in find_sets(Path(given.folder), given.sets):
        print(f"{name}: {len(ratings):,} ratings", flush=True)
        if not sets:
            # compiled code and Spark are warm before anything is timed
            some = ratings[: 5 * BATCH]
            for learn in (ours.fit, ours.stream):
                learn(some, some[:1], {})
            if "als" in given.peers:
                ours.als(some, some[:1], ALS_GRID[0])
        sets[name] = measure(ours, ratings, given.folds, given.seeds, peers, "als" in given.peers)
        result = {
            "folds": given.folds, "cores": given.cores, "threads": threads(),
            "versions": versions(), "machine": platform.machine(), "sets": sets,
        }  # fmt: skip
        (OUT / "accuracy.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        (OUT / "accuracy.md").write_text(as_markdown(sets), encoding="utf-8")
    spark.stop()
    if not sets:
        sys.exit(f"{given.folder} holds no ratings file, or none that --sets names.")
    print(as_markdown(sets))


if __name__ == "__main__":
    main()
