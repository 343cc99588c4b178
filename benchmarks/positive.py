"""The prequential table of positive-only feedback: Recall@10 over streams in time order.

python benchmarks/positive.py FOLDER --sets ml movietweetings --learners popular isgd ours ...

Events are the ratings of 5 of ml-latest-small and of 9 and more of movietweetings, in the order of
their times (equal ones in the order of the file), without pairs that came before. An event counts
when its user and its item were seen before; it is a hit when its item is among the ten best of all
items seen so far that the user has not done, equal scores going to the item seen first. Then it is
learned. `ours` and `isgd` learn each event before the next one; `als` (Spark's) and `implicit` (the
package) learn all events so far anew at each tenth of the stream, rank what they know, and leave
users that they do not know to what is popular. `isgd`, `als` and `implicit` are the best of their
grid on all of the stream; ours has one setting, the default, which was chosen on the first halves.
`halves`, with --seeds, is ours by the second half alone, the first half streamed, or fitted as a
table with its times. Writes out/positive.json and out/positive.md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from sessions import Ours as OneAtATime

from sparkml_sgdals import Predictor, StreamingBiasedALS
from sparkml_sgdals.arrays.hashing import ITEM_SIDE, USER_SIDE, id_keys, start_factors
from sparkml_sgdals.arrays.ratings import Ratings, encode_ratings
from sparkml_sgdals.kernels.events.isgd import descend_events
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.learn.whole_table import fit_ratings
from sparkml_sgdals.state.model_state import ModelState

OUT = Path(__file__).resolve().parent.parent / "out"
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
COLUMNS = ["user", "item", "rating", "time"]
SETS: dict[str, tuple[str, float]] = {
    "ml": ("ml-latest-small/ratings.csv", 5.0),
    "movietweetings": ("movietweetings/ratings.dat", 9.0),
}
TOP = 10
STEPS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
ALS_ALPHAS = (1.0, 40.0)
IMPLICIT_GRID = ((16, 0.01, 1.0), (32, 1.0, 10.0), (16, 10.0, 40.0))
"""factors, regularization, alpha"""


class Learner(Protocol):
    """Scores all items of a stream for a user, then learns what the user did."""

    def scores(self, user: int) -> F64:
        """A score for each item, minus infinity where it has none."""

    def learn(self, user: int, item: int) -> None:
        """Learn the next event."""


def read_events(path: Path, least: float) -> tuple[I32, I32]:
    """Users and items of a stream, numbered in the order in which they come."""
    if path.suffix == ".dat":
        table = pd.read_csv(path, sep="::", engine="python", header=None, names=COLUMNS)
    else:
        table = pd.read_csv(path, header=0, names=COLUMNS)
    liked = table[table.rating >= least].sort_values("time", kind="stable")
    liked = liked.drop_duplicates(["user", "item"])
    users, items = (liked[name].factorize()[0].astype(np.int32) for name in ("user", "item"))
    return users, items


def is_hit(scores: F64, item: int, allowed: npt.NDArray[np.bool_], top: int = TOP) -> bool:
    """Whether fewer than `top` of the items allowed stand before `item`."""
    own = scores[item]
    above = np.count_nonzero(scores[allowed] > own)
    return bool(above + np.count_nonzero((scores == own)[:item] & allowed[:item]) < top)


def prequential(users: I32, items: I32, learner: Learner) -> npt.NDArray[np.int8]:
    """1 for a hit, 0 for none, -1 for an event that does not count; shape (events,)."""
    hits = np.full(users.size, -1, np.int8)
    seen = np.zeros(int(items.max()) + 1, bool)
    done: dict[int, list[int]] = {}
    for n, (user, item) in enumerate(zip(users.tolist(), items.tolist(), strict=True)):
        own = done.setdefault(user, [])
        if own and seen[item]:
            allowed = seen.copy()
            allowed[own] = False
            hits[n] = is_hit(learner.scores(user), item, allowed)
        learner.learn(user, item)
        own.append(item)
        seen[item] = True
    return hits


def recall(hits: npt.NDArray[np.int8]) -> float:
    """Share of hits among the events that count."""
    return float(np.mean(hits[hits >= 0]))


class Popular:
    """How often an item was done so far."""

    def __init__(self, users: I32, items: I32) -> None:
        self.counts = np.zeros(int(items.max()) + 1)

    def scores(self, user: int) -> F64:
        return self.counts

    def learn(self, user: int, item: int) -> None:
        self.counts[item] += 1


class Ours:
    """StreamingBiasedALS(implicitPrefs=True) with all defaults, an event a batch."""

    def __init__(self, users: I32, items: I32) -> None:
        self.learner = OneAtATime(int(items.max()) + 1)
        self.done: dict[int, list[int]] = {}

    def scores(self, user: int) -> F64:
        return self.learner.scores(user, self.done[user])

    def learn(self, user: int, item: int) -> None:
        self.learner.learn(np.array([user]), np.array([item]))
        self.done.setdefault(user, []).append(item)


class Halves:
    """Ours with all defaults but the seed: half fitted or streamed, then an event a batch.

    Before half of the stream nothing is ranked.
    """

    def __init__(self, users: I32, items: I32, seed: int, fitted: bool) -> None:
        als = StreamingBiasedALS(implicitPrefs=True, rankingSize=0, seed=seed)
        self.state = ModelState.empty(als.settings(), "int", "int")
        self.events, self.number, self.fitted = (users, items), 0, fitted
        self.all_items = np.arange(int(items.max()) + 1)
        self.nothing = np.zeros(self.all_items.size)

    def scores(self, user: int) -> F64:
        if self.number < self.events[0].size // 2:
            return self.nothing
        learned = self.state.items.index.ids().to_numpy()
        found = np.full(self.all_items.size, -np.inf)
        predictor = Predictor(self.state, {}, 0)
        found[learned] = predictor.predict([user] * learned.size, learned)["prediction"]
        return found

    def learn(self, user: int, item: int) -> None:
        first, half = self.number, self.events[0].size // 2
        self.number += 1
        if first >= half or not self.fitted:
            learn_batch(self.state, self._some(first, self.number))
        elif self.number == half:
            fit_ratings(self._some(0, half), self.state, 1)

    def _some(self, first: int, last: int) -> Ratings:
        users, items = (pa.array(ids[first:last], pa.int64()) for ids in self.events)
        ones = pa.array(np.ones(last - first, np.float32))
        times = pa.array(np.arange(first, last))
        table = {"user": users, "item": items, "rating": ones, "time": times}
        return encode_ratings(pa.table(table))


class Isgd:
    """ISGD with 16 features and lambda 0.01, as solver 'isgd' learns it, on arrays."""

    def __init__(self, users: I32, items: I32, step: float) -> None:
        self.step = np.float32(step)
        self.user_mean, self.item_mean = (
            start_factors(id_keys(pa.array(range(int(ids.max()) + 1))), side, 16, 42, 0.1)
            for ids, side in ((users, USER_SIDE), (items, ITEM_SIDE))
        )
        self.last = np.zeros(len(self.item_mean), np.int64)
        self.touched = np.zeros(len(self.item_mean), bool)

    def scores(self, user: int) -> F64:
        found: F64 = (self.item_mean[:, 1:] @ self.user_mean[user, 1:]).astype(np.float64)
        return found

    def learn(self, user: int, item: int) -> None:
        one, reg = np.ones(1, np.float32), np.float32(0.01)
        descend_events(
            np.array([user], np.int32), np.array([item], np.int32), one, one, 0, 0, self.step,
            reg, reg, np.float32(-np.inf), self.user_mean, self.item_mean, np.empty(0, np.int32),
            self.last, self.touched,
        )  # fmt: skip


Factors = tuple[dict[int, int], F64, npt.NDArray[np.int64], F64]
"""rows of users, their factors, items, their factors"""


class Retrained:
    """Factors that are learned from all events so far at each tenth of the stream."""

    def __init__(self, users: I32, items: I32, fit: Callable[[I32, I32], Factors]) -> None:
        self.users, self.items, self.fit = users, items, fit
        self.popular = Popular(users, items)
        self.number = 0
        self.at = {users.size * tenth // 10 for tenth in range(1, 10)}
        self.factors: Factors | None = None

    def scores(self, user: int) -> F64:
        if self.factors is None or user not in self.factors[0]:
            return self.popular.counts
        rows, user_factors, items, item_factors = self.factors
        found = np.full(self.popular.counts.size, -np.inf)
        found[items] = item_factors @ user_factors[rows[user]]
        return found

    def learn(self, user: int, item: int) -> None:
        self.popular.learn(user, item)
        self.number += 1
        if self.number in self.at:
            self.factors = self.fit(self.users[: self.number], self.items[: self.number])


def fit_implicit(factors: int, regularization: float, alpha: float) -> Callable[..., Factors]:
    """The package implicit, 15 iterations."""

    def fit(users: I32, items: I32) -> Factors:
        import scipy.sparse
        from implicit.als import AlternatingLeastSquares

        counts = scipy.sparse.csr_matrix((np.full(users.size, alpha, np.float32), (users, items)))
        model = AlternatingLeastSquares(
            factors=factors, regularization=regularization, iterations=15, random_state=1,
            num_threads=1,
        )  # fmt: skip
        model.fit(counts, show_progress=False)
        found = np.unique(users)
        return (
            dict(zip(found.tolist(), found.tolist(), strict=True)),
            np.asarray(model.user_factors, np.float64),
            np.unique(items),
            np.asarray(model.item_factors, np.float64)[np.unique(items)],
        )

    return fit


def fit_als(alpha: float) -> Callable[..., Factors]:
    """Spark's ALS: rank 16, regParam 0.1, 10 iterations."""

    def fit(users: I32, items: I32) -> Factors:
        from pyspark.ml.recommendation import ALS
        from pyspark.sql import SparkSession

        spark = SparkSession.builder.getOrCreate()
        frame = spark.createDataFrame(pd.DataFrame({"user": users, "item": items, "rating": 1.0}))
        model = ALS(rank=16, implicitPrefs=True, alpha=alpha, seed=1).fit(frame)
        sides = [side.orderBy("id").toPandas() for side in (model.userFactors, model.itemFactors)]
        factors = [np.stack(side.features.to_list()).astype(np.float64) for side in sides]
        rows = {user: row for row, user in enumerate(sides[0].id.tolist())}
        return rows, factors[0], sides[1].id.to_numpy(np.int64), factors[1]

    return fit


def _retrained(fit: Callable[..., Factors]) -> Callable[[I32, I32], Learner]:
    return lambda users, items: Retrained(users, items, fit)


def _isgd(step: float) -> Callable[[I32, I32], Learner]:
    return lambda users, items: Isgd(users, items, step)


def _halves(seed: int, fitted: bool) -> Callable[[I32, I32], Learner]:
    return lambda users, items: Halves(users, items, seed, fitted)


LEARNERS: dict[str, dict[str, Callable[[I32, I32], Learner]]] = {
    "popular": {"": Popular},
    "isgd": {f"step {step}": _isgd(step) for step in STEPS},
    "als": {f"alpha {alpha}": _retrained(fit_als(alpha)) for alpha in ALS_ALPHAS},
    "implicit": {str(point): _retrained(fit_implicit(*point)) for point in IMPLICIT_GRID},
    "ours": {"defaults": Ours},
}
HALVES = "halves"
"""a learner by the second half alone, with seeds for its grid"""


def run(name: str, folder: Path, learners: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each learner and point of its grid on one set."""
    file, least = SETS[name]
    users, items = read_events(folder / file, least)
    rows = []
    for learner in learners:
        for point, make in LEARNERS[learner].items():
            clock = time.perf_counter()
            hits = prequential(users, items, make(users, items))
            rows.append(
                {
                    "set": name, "learner": learner, "point": point, "events": users.size,
                    "counted": int((hits >= 0).sum()), "recall": recall(hits),
                    "firstHalf": recall(hits[: users.size // 2]),
                    "secondHalf": recall(hits[users.size // 2 :]),
                    "seconds": time.perf_counter() - clock,
                }
            )  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    return rows


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The best point of each learner, sets as columns."""
    table = pd.DataFrame(rows).sort_values("recall", ascending=False)
    table = table[table.learner != HALVES]
    if table.empty:
        return ""
    best = table.drop_duplicates(["set", "learner"])
    sets = list(dict.fromkeys(table.set))
    lines = ["| Recall@10, prequential | " + " | ".join(sets) + " |", "|---|" + "---|" * len(sets)]
    for learner in dict.fromkeys(table.learner):
        cells = [learner]
        for name in sets:
            found = best[(best.learner == learner) & (best.set == name)]
            cells.append("" if found.empty else f"{found.recall.iloc[0]:.4f} {found.point.iloc[0]}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def halves_as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """What the second half says of both beginnings, by seed and in the mean."""
    table = pd.DataFrame([row for row in rows if row["learner"] == HALVES])
    if table.empty:
        return ""
    table[["begin", "seed"]] = table.point.str.split(", seed ", expand=True)
    found = table.pivot_table(index=["set", "seed"], columns="begin", values="secondHalf")
    means = found.groupby("set").mean()
    lines = ["| Recall@10, second half | seed | streamed | fitted |", "|---|---|---|---|"]
    for (name, seed), row in found.iterrows():
        lines.append(f"| {name} | {seed} | {row.streamed:.4f} | {row.fitted:.4f} |")
    for name, row in means.iterrows():
        lines.append(f"| {name} | mean | {row.streamed:.4f} | {row.fitted:.4f} |")
    return "\n".join(lines)


def main() -> None:
    """Make the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = os.environ.get("SPARKML_SGDALS_DATA")
    parser.add_argument("folder", nargs="?", default=default, help="with the two sets in it")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    every = [*LEARNERS, HALVES]
    parser.add_argument("--learners", nargs="+", default=list(LEARNERS), choices=every)
    parser.add_argument("--seeds", nargs="+", type=int, default=[42], help=f"of {HALVES}")
    given = parser.parse_args()
    if not given.folder:
        sys.exit("Name the folder of ratings, or set SPARKML_SGDALS_DATA.")
    learners = list(given.learners)
    LEARNERS[HALVES] = {
        f"{what}, seed {seed}": _halves(seed, fitted)
        for seed in given.seeds
        for what, fitted in (("streamed", False), ("fitted", True))
    }
    if "implicit" in learners:
        try:
            importlib.metadata.version("implicit")
        except importlib.metadata.PackageNotFoundError:
            print("implicit is left out: pip install implicit scipy")
            learners.remove("implicit")
    rows = [row for name in given.sets for row in run(name, Path(given.folder), learners)]
    OUT.mkdir(exist_ok=True)
    (OUT / "positive.json").write_text(json.dumps(rows, indent=1))
    text = "\n\n".join(filter(None, [as_markdown(rows), halves_as_markdown(rows)]))
    (OUT / "positive.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
