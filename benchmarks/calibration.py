"""Stated against real error of held-out ratings, as a table and a picture: out/calibration.png.

python benchmarks/calibration.py. Both sets of the folder in SPARKML_SGDALS_DATA, split as in
docs/accuracy.md, everything at its default.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from pyspark.sql import SparkSession

from sparkml_sgdals import StreamingBiasedALS

mpl.use("Agg")
import matplotlib.pyplot as plt

OUT = Path(__file__).resolve().parent.parent / "out" / "calibration.png"
NAMES = ["user", "item", "rating", "time"]


def main() -> None:
    """Fit, score, print the tenths and draw them."""
    folder = os.environ.get("SPARKML_SGDALS_DATA", "")
    if not Path(folder, "ml-latest-small", "ratings.csv").is_file():
        sys.exit("Set SPARKML_SGDALS_DATA to a folder that holds ml-latest-small/ratings.csv.")
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    spark = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.shuffle.partitions", 2)
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    sets = {
        "MovieLens latest-small": pd.read_csv(
            Path(folder, "ml-latest-small", "ratings.csv"), header=0, names=NAMES
        ),
        "MovieTweetings": pd.read_csv(
            Path(folder, "movietweetings", "ratings.dat"),
            sep="::", engine="python", header=None, names=NAMES,
        ),
    }  # fmt: skip
    als = StreamingBiasedALS(timestampCol="time", predictionStdCol="std")
    figure, panels = plt.subplots(1, len(sets), figsize=(9, 4.2))
    for panel, (name, ratings) in zip(panels, sets.items(), strict=True):
        test = np.random.default_rng(42).random(len(ratings)) < 0.2
        train, held = ratings[~test], ratings[test]
        held = held[held.user.isin(train.user) & held.item.isin(train.item)]
        model = als.fit(spark.createDataFrame(train))
        scored = model.transform(spark.createDataFrame(held)).toPandas()
        apart = (scored.rating - scored.prediction).to_numpy()
        std = scored["std"].to_numpy()
        tenths = np.array_split(np.argsort(std, kind="stable"), 10)
        stated = np.array([np.sqrt(np.mean(std[t] ** 2)) for t in tenths])
        found = np.array([np.sqrt(np.mean(apart[t] ** 2)) for t in tenths])
        print(f"{name}: {np.mean(np.abs(apart) < 2 * std):.1%} within two deviations")
        for number, (s, f) in enumerate(zip(stated, found, strict=True), 1):
            print(f"  tenth {number:2}: stated {s:.3f}, real {f:.3f}, ratio {f / s:.2f}")
        ends = [0.9 * min(stated.min(), found.min()), 1.08 * max(stated.max(), found.max())]
        panel.fill_between(ends, [0.85 * e for e in ends], [1.15 * e for e in ends], color="0.9")
        panel.plot(ends, ends, "--", color="0.4", linewidth=1)
        panel.plot(stated, found, "o-", color="black")
        panel.set(
            title=name, xlim=ends, ylim=ends,
            xlabel="stated standard deviation (units of the rating)",
        )  # fmt: skip
    panels[0].set_ylabel("real error, RMSE (units of the rating)")
    panels[0].annotate("shaded: within 15%", (0.05, 0.92), xycoords="axes fraction")
    figure.tight_layout()
    OUT.parent.mkdir(exist_ok=True)
    figure.savefig(OUT, dpi=110)
    spark.stop()


if __name__ == "__main__":
    main()
