"""What is done on a cluster and, in a process of its own, under local[2]: to the same bits.

    python ways.py MASTER FOLDER NAME ...

writes what each way gives to FOLDER/local.json.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sparkml_sgdals import (
    RankingValidationSplit,
    StreamingBiasedALS,
    StreamingBiasedALSModel,
    StreamingGridSearch,
)

ONCE = {"availableNow": True}
SCHEMA = "user long, item long, rating double, time long"


def table(size: int = 6000, users: int = 300, items: int = 200) -> pd.DataFrame:
    """Ratings in whole halves, with times; the same each time."""
    rng = np.random.default_rng(11)
    tastes = rng.normal(0, 0.7, (users, 2)), rng.normal(0, 0.7, (items, 2))
    u, i = rng.integers(0, users, size), rng.integers(0, items, size)
    values = 3.3 + (tastes[0][u] * tastes[1][i]).sum(axis=1) + rng.normal(0, 0.4, size)
    values = np.clip(np.round(values * 2) / 2, 0.5, 5)
    return pd.DataFrame(
        {"user": u * 3 + 1, "item": i * 7 + 2, "rating": values, "time": np.arange(size) + 10_000}
    )


def write_sources(folder: Path) -> None:
    """A Parquet file a table, and CSV files that a stream reads one by one."""
    folder.mkdir(parents=True)
    rows = table()
    rows.to_parquet(folder / "table.parquet", row_group_size=1000)
    (folder / "stream").mkdir()
    for number in range(4):
        part = rows.iloc[number * 500 : (number + 1) * 500]
        part.to_csv(folder / "stream" / f"{number:03d}.csv", index=False)


class Ways:
    """Each way gives what it comes to, as text."""

    def __init__(self, spark: Any, folder: Path, out: Path) -> None:
        self.spark = spark
        self.folder = folder
        self.out = out

    @property
    def ratings(self) -> Any:
        return self.spark.read.parquet(str(self.folder / "table.parquet"))

    def als(self, **params: Any) -> StreamingBiasedALS:
        return StreamingBiasedALS(timestampCol="time", **{"rank": 4, "maxIter": 3, **params})

    def stream(self, schema: str = SCHEMA) -> Any:
        reader = self.spark.readStream.schema(schema).option("header", True)
        return reader.option("maxFilesPerTrigger", 1).csv(str(self.folder / "stream"))

    def path(self, name: str) -> str:
        return str(self.out / name)

    def one_task(self) -> str:
        model = self.als().fit(self.ratings)
        self.fitted = model
        return _state(model)

    def blocks(self) -> str:
        return _state(self.als(numBlocks=2, maxIter=2).fit(self.ratings))

    def blocks_to_path(self) -> str:
        """Rows that tasks write, read by tasks where they lie."""
        path = self.path("to_path")
        fitted = self.als(numBlocks=2, maxIter=2).fitPath(self.ratings, path)
        model = StreamingBiasedALSModel.load(path, maxResidentIds=100)
        assert f"read from {path}" in repr(model)
        asked = self.ratings.where("time < 10300").select("user").distinct()
        frames = [
            (model.transform(self.ratings), "time"),
            (model.recommendForUserSubset(asked, 4), "user"),
            (model.similarItems([2, 9, 16], 3), "item"),
            (model.itemFactors, "id"),
        ]
        model.exportVectors(self.path("vectors_of_path"))
        frames.append((self.spark.read.parquet(self.path("vectors_of_path/users")), "id"))
        return " ".join([_state(fitted), *(_rows(frame, [name]) for frame, name in frames)])

    def parquet(self) -> str:
        return _state(self.als().fitParquet(self.folder / "table.parquet"))

    def minibatch(self) -> str:
        model = self.als(solver="minibatch", maxIter=1, blockSize=1024).fit(self.ratings)
        return _state(model)

    def events_in_blocks(self) -> str:
        events = StreamingBiasedALS(implicitPrefs=True, ratingCol="", rank=4, maxIter=2)
        return _state(events.copy({events.numBlocks: 2}).fit(self.ratings))

    def update(self) -> str:
        model = self.als().fit(self.ratings.where("time < 13000"))
        return _state(model.update(self.ratings.where("time >= 13000")))

    def transform(self) -> str:
        model = self.als(predictionStdCol="std").fit(self.ratings)
        return _rows(model.transform(self.ratings), ["time"])

    def recommend(self) -> str:
        model = self.als().fit(self.ratings)
        lists = [
            model.recommendForAllUsers(5, excludeSeen=self.ratings),
            model.recommendForAllItems(3),
        ]
        return " ".join(_rows(one, [one.columns[0]]) for one in lists)

    def candidates(self) -> str:
        model = self.als().fit(self.ratings)
        pairs = self.ratings.where("time % 3 = 0").select("user", "item")
        lists = [
            model.recommendForAllUsers(4, candidates=pairs),
            model.recommendForAllUsers(4, candidates=list(range(2, 300, 7)), excludeSeen=pairs),
        ]
        return " ".join(_rows(one, ["user"]) for one in lists)

    def new_users(self) -> str:
        """Ranked from their ratings, with nothing stored."""
        model = self.als().fit(self.ratings)
        sent = self.ratings.where("time < 10400").selectExpr(
            "-user AS user", "item", "rating", "time"
        )
        return _rows(model.recommendForRatings(sent, 4), ["user"])

    def newest(self) -> str:
        """Of a pair's ratings the newest alone."""
        return _state(self.als(repeatedPairs="newest").fit(self.ratings))

    def vectors(self) -> str:
        model = self.als().fit(self.ratings)
        model.exportVectors(self.path("vectors"))
        items = self.spark.read.parquet(self.path("vectors/items.parquet"))
        return _rows(items, ["id"])

    def features(self) -> str:
        """Items that nobody has rated, by what is known of them."""
        known = self.spark.range(2, 1500, 7).selectExpr(
            "id AS item", "concat('kind ', id % 5) AS kind", "double(id % 11) AS size"
        )
        als = self.als()
        als.setItemFeatures(known)
        model = als.fit(self.ratings).withItems(known)
        weights = _rows(model.featureWeights, ["side", "feature"])
        return f"{_state(model)} {weights} {_rows(model.recommendForAllUsers(3), ['user'])}"

    def features_in_blocks(self) -> str:
        """To a path; vectors are read by tasks, and go to the blocks of their items."""
        known = self.spark.range(2, 1500, 7).selectExpr(
            "id AS item", "transform(sequence(1, 5), n -> double(pmod(hash(id, n), 9))) AS about"
        )
        als = self.als(numBlocks=2, maxIter=2).setItemFeatures(known)
        model = als.fitPath(self.ratings, self.path("features_to_path"))
        return f"{_state(model)} {_rows(model.featureWeights, ['side', 'feature'])}"

    def nonnegative(self) -> str:
        return _state(self.als(nonnegative=True).fit(self.ratings))

    def events(self) -> str:
        """What hears partners runs Python in transform."""
        events = StreamingBiasedALS(
            implicitPrefs=True, ratingCol="", timestampCol="time", rank=4, maxIter=2
        )
        model = events.fit(self.ratings)
        judged = model.evaluateRanking(self.ratings.where("rating > 4"), 5)
        return f"{_state(model)} {_rows(model.transform(self.ratings), ['time'])} {judged.recall}"

    def streaming(self) -> str:
        job = self.als().fitStream(self.stream(), self.path("streaming"), trigger=ONCE)
        job.awaitTermination()
        return _state(job.model)

    def repeats(self) -> str:
        stream = self.stream("user long, item long, rating double, time timestamp")
        stream = stream.selectExpr("*", "concat(user, '-', item) AS id")
        job = self.als().fitStream(
            stream, self.path("repeats"), trigger=ONCE, eventIdCol="id", watermark="1 hour"
        )
        job.awaitTermination()
        return _state(job.model)

    def large(self) -> str:
        """A part of the model in memory, the rest in files."""
        model = self.als(maxResidentIds=100).fit(self.ratings)
        job = model.updateStream(self.stream(), self.path("large"), trigger=ONCE)
        job.awaitTermination()
        return _state(job.model)

    def race(self) -> str:
        als = self.als()
        grid = [{als.rank: 2}, {als.rank: 4}]
        search = StreamingGridSearch(estimator=als, estimatorParamMaps=grid, minRatings=400)
        job = search.fitStream(self.stream(), self.path("race"), trigger=ONCE)
        job.awaitTermination()
        return _state(job.model)

    def grid(self) -> str:
        als = self.als()
        grid = [{als.rank: rank, als.maxIter: passes} for rank in (2, 4) for passes in (1, 2)]
        models = dict(als.fitMultiple(self.ratings, grid))
        split = RankingValidationSplit(estimator=als, estimatorParamMaps=grid[::2], k=5)
        best = split.fit(self.ratings).bestModel
        return " ".join([*(_state(models[n]) for n in range(4)), _state(best)])

    def from_als(self) -> str:
        from pyspark.ml.recommendation import ALS

        als = ALS(userCol="user", itemCol="item", rank=3, maxIter=1, seed=5)
        start = StreamingBiasedALSModel.fromALS(als.fit(self.ratings))
        users = start.userFactors.count()
        known = start.update(self.ratings.where("time < 10500"))
        return f"{users} {known.state.users.size} {known.state.counters.ratings}"

    def saved(self) -> str:
        self.als().fit(self.ratings).write().overwrite().save(self.path("saved"))
        return _state(StreamingBiasedALSModel.load(self.path("saved")))


def _state(model: Any) -> str:
    return str(model.state.fingerprint())


def _rows(frame: Any, by: list[str]) -> str:
    rows = frame.orderBy(*by).toPandas()
    text = rows.to_json(orient="values", double_precision=15)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def main() -> None:
    from pyspark.sql import SparkSession

    master, folder, *names = sys.argv[1:]
    spark = (
        SparkSession.builder.master(master)
        .config("spark.ui.enabled", "false")
        .config("spark.log.level", "ERROR")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.shuffle.partitions", "3")
        .config("spark.driver.extraJavaOptions", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")
        .getOrCreate()
    )
    ways = Ways(spark, Path(folder) / "sources", Path(folder) / "local")
    found = {name: getattr(ways, name)() for name in names}
    (Path(folder) / "local.json").write_text(json.dumps(found))
    spark.stop()


if __name__ == "__main__":
    main()
