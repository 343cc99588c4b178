"""The film of a matrix: python examples/matrix_movie.py [FOLDER]

300 users and 300 items, all 90,000 ratings made up (taste in waves, biases, noise, whole and half
stars); one in two is learned. Spark's ALS sees these at once and improves by iteration; our
stream sees each once, a batch a frame. Both predict the whole matrix at every step. Writes
matrix.gif and matrix-strip.png to FOLDER (default: out/).
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from pyspark.ml.recommendation import ALS
from pyspark.sql import DataFrame, SparkSession

from sparkml_sgdals import StreamingBiasedALS, StreamingBiasedALSModel
from sparkml_sgdals.plotting import MatrixStep, plot_matrix, save_film

SIZE = 300
SHARE = 1 / 2
BATCHES = 14
REG_PARAMS = (0.02, 0.05, 0.1, 0.2)
SCHEMA = "user int, item int, rating double, time long"


def all_ratings() -> np.ndarray:
    """Ratings of everybody for everything, float32 of shape (SIZE, SIZE), 1 to 5 by halves."""
    rng = np.random.default_rng(3)
    place = np.linspace(0, 1, SIZE)
    waves = [(1.5, 0.0, 1.0, 0.3), (3.0, 0.2, 2.0, 0.0), (1.0, 0.6, 4.0, 0.5)]
    values = np.full((SIZE, SIZE), 3.1)
    for (f, shift, g, other), height in zip(waves, (0.9, 0.6, 0.45), strict=True):
        users = np.sin(2 * np.pi * (f * place + shift))
        items = np.sin(2 * np.pi * (g * place + other))
        values += height * users[:, None] * items[None, :]
    values += rng.normal(0, 0.25, SIZE)[:, None] + rng.normal(0, 0.35, SIZE)[None, :]
    values += rng.normal(0, 0.4, (SIZE, SIZE))
    return np.clip(np.round(2 * values) / 2, 1, 5).astype(np.float32)


def predicted(pairs: DataFrame, model: object) -> np.ndarray:
    """The whole matrix by a model, float32; NaN where it says nothing."""
    rows = model.transform(pairs).select("user", "item", "prediction").toPandas()  # type: ignore[attr-defined]
    matrix = np.full((SIZE, SIZE), np.nan, np.float32)
    matrix[rows.user, rows.item] = np.clip(rows.prediction, 1, 5)
    return matrix


def main(out: Path) -> None:
    """Learn in both ways, then draw."""
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    spark = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.log.level", "ERROR")
        .config("spark.sql.shuffle.partitions", 2)
        .getOrCreate()
    )
    truth = all_ratings()
    rng = np.random.default_rng(11)
    known = rng.random(truth.shape) < SHARE
    users, items = np.nonzero(known)
    order = rng.permutation(users.size)
    train = pd.DataFrame(
        {"user": users[order], "item": items[order], "rating": truth[known][order].astype(float),
         "time": np.arange(users.size)}
    )  # fmt: skip
    grid = np.indices(truth.shape).reshape(2, -1)
    pairs = spark.createDataFrame(pd.DataFrame({"user": grid[0], "item": grid[1]})).cache()
    pairs.count()
    table = spark.createDataFrame(train, SCHEMA).cache()
    table.count()

    def step(label: str, matrix: np.ndarray) -> MatrixStep:
        apart = (matrix - truth)[~known]
        return MatrixStep(label, matrix, float(np.sqrt(np.nanmean(apart**2))))

    def als_step(iteration: int, reg: float) -> MatrixStep:
        als = ALS(rank=8, maxIter=iteration, regParam=reg, seed=1, numUserBlocks=2, numItemBlocks=2)
        return step(f"iteration {iteration}", predicted(pairs, als.fit(table)))

    # the best at the end, judged on the very ratings that were held out
    best = min(REG_PARAMS, key=lambda reg: als_step(BATCHES, reg).rmse)
    als = [als_step(iteration, best) for iteration in range(1, BATCHES + 1)]
    print(f"Spark's ALS, regParam {best} of {REG_PARAMS}: " + told(als))

    with tempfile.TemporaryDirectory() as scratch:
        folder, path = Path(scratch, "in"), str(Path(scratch, "model"))
        folder.mkdir()
        for number, part in enumerate(np.array_split(np.arange(len(train)), BATCHES)):
            file = folder / f"{number:03d}.csv"
            train.iloc[part].to_csv(file, index=False, header=False)
            os.utime(file, (1_000_000_000 + number, 1_000_000_000 + number))
        stream = spark.readStream.schema(SCHEMA).option("maxFilesPerTrigger", 1).csv(str(folder))
        job = StreamingBiasedALS(timestampCol="time").fitStream(
            stream, path, trigger={"availableNow": True}, keepVersions=BATCHES + 1
        )
        job.awaitTermination()
        metrics = job.metrics()
        seen = metrics.ratings.cumsum()
        ours = [
            step(
                f"batch {batch + 1}: {ratings:,} ratings",
                predicted(pairs, StreamingBiasedALSModel.load(path, int(version))),
            )
            for batch, version, ratings in zip(metrics.batch, metrics.version, seen, strict=True)
        ]
    print("our stream: " + told(ours))
    spark.stop()

    out.mkdir(parents=True, exist_ok=True)
    frames = save_film(out / "matrix.gif", truth, als, ours)
    strip = plot_matrix(truth, als, ours, [0, 1, 3, 6, BATCHES - 1])
    strip.savefig(out / "matrix-strip.png")
    # few colours make it small
    with Image.open(out / "matrix-strip.png") as picture:
        few = picture.convert("RGB").quantize(48, dither=Image.Dither.NONE)
    few.save(out / "matrix-strip.png", optimize=True)
    print(f"{out / 'matrix.gif'}: {frames} frames; {out / 'matrix-strip.png'}")


def told(steps: list[MatrixStep]) -> str:
    """RMSE at each step."""
    return ", ".join(f"{one.rmse:.3f}" for one in steps)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "out")
