"""Stated against real error of held-out ratings, as a table and a picture: out/calibration.png.

python benchmarks/calibration.py. Both sets of the folder in SPARKML_SGDALS_DATA, split as in
docs/accuracy.md, everything at its default.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pyspark.sql import SparkSession

from sparkml_sgdals import StreamingBiasedALS
from sparkml_sgdals.plotting import calibration_table, plot_calibration

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
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    panels = figure.subplots(1, len(sets))
    for panel, (name, ratings) in zip(panels, sets.items(), strict=True):
        test = np.random.default_rng(42).random(len(ratings)) < 0.2
        train, held = ratings[~test], ratings[test]
        held = held[held.user.isin(train.user) & held.item.isin(train.item)]
        model = als.fit(spark.createDataFrame(train))
        scored = model.transform(spark.createDataFrame(held)).toPandas()
        apart = (scored.rating - scored.prediction).to_numpy()
        std = scored["std"].to_numpy()
        print(f"{name}: {np.mean(np.abs(apart) < 2 * std):.1%} within two deviations")
        for row in calibration_table(std, apart).itertuples():
            print(
                f"  tenth {row.group:2}: stated {row.stated:.3f}, real {row.real:.3f}, "
                f"ratio {row.ratio:.2f}"
            )
        plot_calibration(std, apart, name, panel)
    OUT.parent.mkdir(exist_ok=True)
    figure.savefig(OUT, dpi=110)
    spark.stop()


if __name__ == "__main__":
    main()
