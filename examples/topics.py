"""Factors that read as topics: python examples/topics.py FOLDER

FOLDER holds MovieLens' ratings.csv and movies.csv; without it, ml-latest-small in the folder that
SPARKML_SGDALS_DATA names. Who rated what is learned with nonnegative=True: no coordinate takes
anything back, so each is something that an item has more or less of. Printed are the items that
have most of it, and the genre that is commonest among them against all films.
"""

import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from pyspark.sql import SparkSession

from sparkml_sgdals import StreamingBiasedALS

# else workers start whatever python3 the PATH has
os.environ.setdefault("PYSPARK_PYTHON", sys.executable)

TOPICS, SHOWN, COUNTED = 12, 6, 20


def main(folder: Path) -> None:
    """Fit, and list what stands out in each coordinate."""
    spark = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.shuffle.partitions", 2)
        .config("spark.log.level", "ERROR")
        .getOrCreate()
    )
    schema = "userId int, movieId int, rating double, timestamp long"
    ratings = spark.read.csv(str(folder / "ratings.csv"), schema, header=True)
    als = StreamingBiasedALS(
        userCol="userId", itemCol="movieId", implicitPrefs=True, nonnegative=True, rank=TOPICS
    )
    model = als.fit(ratings.select("userId", "movieId"))
    factors = model.itemFactors.toPandas().set_index("id").features
    spark.stop()

    movies = pd.read_csv(folder / "movies.csv").set_index("movieId").loc[factors.index]
    genres = movies.genres.str.get_dummies("|")
    usual = genres.mean()
    features = np.array(factors.tolist())
    assert (features >= 0.0).all()
    print(
        f"{len(features)} films, {TOPICS} coordinates, {(features == 0.0).mean():.0%} of them 0\n"
    )
    for number in range(TOPICS):
        first = np.argsort(-features[:, number])[:COUNTED]
        share = genres.iloc[first].mean()
        genre = ((share - usual) / np.sqrt(usual * (1 - usual))).idxmax()
        said = f"{genre}, {share[genre]:.0%} of the first {COUNTED}, {usual[genre]:.0%} of all"
        print(f"{number + 1:2}  {said}")
        for title in movies.title.iloc[first[:SHOWN]]:
            print(f"      {title}")


if __name__ == "__main__":
    data = os.environ.get("SPARKML_SGDALS_DATA")
    if len(sys.argv) < 2 and not data:
        sys.exit(__doc__)
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(data or "", "ml-latest-small"))
