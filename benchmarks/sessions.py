"""A stream of clicks by sessions: what comes next, judged before it is learned.

python benchmarks/sessions.py FOLDER --learners ours counts knn popular als

Clicks of diginetica (FOLDER/diginetica/clicks.parquet) in 17 periods; a session is a user, and one
in forty is judged. Before each click of such a session after its first, on an item seen before, all
items seen so far are ranked, those of the session too; equal scores stand before it. Who ranks is
told the session's clicks so far. Two protocols: 'prequential', clicks are learned in batches of
1,000 (--batch); and 'frozen', the model of a period's start ranks all of it.
Figures are means over periods 1 to 16. `ours` has its defaults, `counts` is what stands together in
ours alone, `knn` the sessions of before that share most with this one, the latest 500 of them that
have its last item (k = 100, cosine, weighed by place), `popular` the clicks of the last week, which
is a period: as many as the period before has. `als` is Spark's implicit ALS with the better of two
alpha, learned anew from all clicks at the start of each period; sessions are folded in by its own
equations, and items that came later have no place. Seconds are of the processor, Spark's JVM
included, learning and judging apart.
Writes out/sessions.json and out/sessions.md.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from harness import cpu_seconds
from harness import session as spark_session

from sparkml_sgdals import StreamingBiasedALS
from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.state.event_scores import (
    heard_partners,
    memories_of,
    popularity_logs,
)
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.state.partners import latest_items

OUT = Path(__file__).resolve().parent.parent / "out"
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
JUDGED = 40
NEIGHBOURS, RECENT = 100, 500


class Learner(Protocol):
    """Ranks what a session may click next, and learns clicks."""

    def learn(self, sessions: I64, items: I64) -> None:
        """Learn a batch of clicks."""

    def begin_period(self) -> float:
        """Be told that a period begins; seconds that other processes took to learn for it."""

    def scores(self, session: int | None, clicked: list[int]) -> F64:
        """Score all items; a session of None is one that was never learned."""


class Ours:
    """StreamingBiasedALS(implicitPrefs=True) with all defaults."""

    def __init__(self, items: int, only_partners: bool = False) -> None:
        self.items, self.only_partners = items, only_partners
        self.state = ModelState.empty(
            StreamingBiasedALS(implicitPrefs=True, rankingSize=0).settings(), "int", "int"
        )
        self.number = 0
        self.cache: dict[str, Any] = {}

    def begin_period(self) -> float:
        """Nothing to do."""
        return 0.0

    def learn(self, sessions: I64, items: I64) -> None:
        size = sessions.size
        columns = {
            "user": pa.array(sessions), "item": pa.array(items),
            "rating": pa.array(np.ones(size, np.float32)),
            "time": pa.array(np.arange(self.number, self.number + size)),
        }  # fmt: skip
        learn_batch(self.state, encode_ratings(pa.table(columns)))
        self.number += size
        self.cache = {}

    def _prepared(self) -> dict[str, Any]:
        if not self.cache:
            state = self.state
            ids = state.items.index.ids()
            logs, least = popularity_logs(state, memories_of(state)[1], state.items.count)
            self.cache = {
                "ids": ids.to_numpy(), "least": least,
                "biases": state.items.mean[:, 0] + logs,
                "features": np.ascontiguousarray(state.items.mean[:, 1:]),
            }  # fmt: skip
        return self.cache

    def scores(self, session: int | None, clicked: list[int]) -> F64:
        state, at = self.state, self._prepared()
        found = np.full(self.items, -np.inf)
        last = list(dict.fromkeys(reversed(clicked)))[::-1]
        rows = state.items.index.find(pa.array(last, pa.int64()))
        latest = latest_items(np.array([0, rows.size]), rows)
        taste = self._context(latest)
        user = state.users.index.find(pa.array([-1 if session is None else session]))[0]
        if user >= 0:
            taste = taste + state.users.mean[user, 1:]
        scores = (at["biases"] + at["features"] @ taste[0]).astype(np.float64)
        # the click that comes follows the last one of its session, or one that was not learned
        now = state.events_learned
        last = memories_of(state)[0].last[user] if user >= 0 else now
        shares = state.partners.shares(now, np.array([last]), np.array([rows.size]))
        heard = heard_partners(state, latest, shares, np.empty((1, 0), np.float32), at["least"])
        if heard is not None:
            places = np.arange(scores.size, dtype=np.int32)
            _, positions, boosts = heard.of_users(places, scores.size)
            if self.only_partners:
                scores[:] = -1e30
                scores[positions] = np.log(boosts)
            else:
                scores[positions] = np.logaddexp(scores[positions], np.log(boosts))
        found[at["ids"]] = scores
        return found

    def _context(self, latest: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
        rows = latest[0][latest[0] >= 0][:8]
        weights = 0.7 ** np.arange(rows.size)
        context = memories_of(self.state)[1].context[rows]
        norm = float(np.sqrt(np.sum(weights**2))) or 1.0
        return (weights / norm @ context)[None, :].astype(np.float32)


class Popular:
    """Clicks of the last week: as many as the period before has."""

    def __init__(self, items: int) -> None:
        self.counts = np.zeros(items)
        self.week: deque[int] = deque()
        self.before = self.own = 0

    def begin_period(self) -> float:
        self.before, self.own = self.own, 0
        self._forget()
        return 0.0

    def learn(self, sessions: I64, items: I64) -> None:
        np.add.at(self.counts, items, 1.0)
        self.week.extend(items.tolist())
        self.own += items.size
        if self.before:
            self._forget()

    def _forget(self) -> None:
        while len(self.week) > self.before:
            self.counts[self.week.popleft()] -= 1.0

    def scores(self, session: int | None, clicked: list[int]) -> F64:
        return self.counts


class Retrained:
    """Spark's implicit ALS, rank 32, regParam 0.1, 10 iterations: anew at each period's start."""

    fitted: ClassVar[dict[tuple[float, int], tuple[I64, F64, float]]] = {}
    """items, their factors and seconds, by alpha and clicks: both protocols learn the same"""
    rank, reg = 32, 0.1

    def __init__(self, items: int, alpha: float) -> None:
        self.items, self.alpha = items, alpha
        self.clicks: list[tuple[I64, I64]] = []
        self.count = 0
        self.place = np.full(items, -1)
        self.factors = np.empty((0, self.rank))
        self.squares = np.empty((self.rank, self.rank))

    def begin_period(self) -> float:
        if not self.clicks:
            return 0.0
        if (self.alpha, self.count) not in self.fitted:
            self.fitted[self.alpha, self.count] = self._fit()
        items, self.factors, seconds = self.fitted[self.alpha, self.count]
        self.place[items] = np.arange(items.size)
        self.squares = self.factors.T @ self.factors
        return seconds

    def _fit(self) -> tuple[I64, F64, float]:
        from pyspark.ml.recommendation import ALS

        spark = spark_session(threads=1)
        before = cpu_seconds()
        names = ("user", "item")
        columns = (np.concatenate(column) for column in zip(*self.clicks, strict=True))
        table = pd.DataFrame(dict(zip(names, columns, strict=True)))
        counts = table.groupby(list(names)).size().astype(np.float32).rename("rating").reset_index()
        als = ALS(
            rank=self.rank, regParam=self.reg, implicitPrefs=True, alpha=self.alpha, seed=1,
            maxIter=10,
        ).setNumBlocks(1)  # fmt: skip
        found = als.fit(spark.createDataFrame(counts)).itemFactors.toPandas()
        factors = np.stack(found.features.to_list()).astype(np.float64)
        return found.id.to_numpy(np.int64), factors, cpu_seconds() - before

    def learn(self, sessions: I64, items: I64) -> None:
        self.clicks.append((sessions, items))
        self.count += items.size

    def scores(self, session: int | None, clicked: list[int]) -> F64:
        found = np.full(self.items, -np.inf)
        counts = Counter(item for item in clicked if self.place[item] >= 0)
        if counts:
            own = self.factors[self.place[list(counts)]]
            weights = self.alpha * np.array(list(counts.values()), np.float64)
            normal = self.squares + own.T @ (weights[:, None] * own)
            normal += self.reg * len(counts) * np.eye(self.rank)
            taste = np.linalg.solve(normal, own.T @ (1.0 + weights))
            there = self.place >= 0
            found[there] = self.factors[self.place[there]] @ taste
        return found


class Neighbours:
    """Session-kNN: items of the sessions before that are most like this one."""

    def __init__(self, items: int) -> None:
        self.items = items
        self.of_session: dict[int, list[int]] = {}
        self.of_item: dict[int, list[int]] = {}

    def begin_period(self) -> float:
        """Nothing to do."""
        return 0.0

    def learn(self, sessions: I64, items: I64) -> None:
        for session, item in zip(sessions.tolist(), items.tolist(), strict=True):
            own = self.of_session.setdefault(session, [])
            if item not in own:
                own.append(item)
                self.of_item.setdefault(item, []).append(session)

    def scores(self, session: int | None, clicked: list[int]) -> F64:
        found = np.zeros(self.items)
        last = list(dict.fromkeys(reversed(clicked)))
        weight = {item: 1.0 / (k + 1) for k, item in enumerate(last)}
        near = {
            other
            for item in last[:3]
            for other in self.of_item.get(item, [])[-RECENT:]
            if other != session
        }
        alike = []
        for other in near:
            own = self.of_session[other]
            shared = sum(weight.get(item, 0.0) for item in own)
            alike.append((shared / np.sqrt(len(own) * len(last)), other))
        alike.sort(reverse=True)
        for similarity, other in alike[:NEIGHBOURS]:
            found[self.of_session[other]] += similarity
        return found


LEARNERS: dict[str, dict[str, Callable[[int], Learner]]] = {
    "ours": {"": Ours},
    "counts": {"": partial(Ours, only_partners=True)},
    "knn": {"": Neighbours},
    "popular": {"": Popular},
    "als": {f" {alpha}": partial(Retrained, alpha=alpha) for alpha in (1.0, 40.0)},
}
"""by name, and by point of a grid"""


def batches(periods: I64, size: int) -> Iterator[slice]:
    """Yield pieces of a stream, each of one period."""
    ends = np.flatnonzero(np.diff(periods, append=-1)) + 1
    for begin, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
        for first in range(begin, end, size):
            yield slice(first, min(first + size, end))


def judge(
    table: pd.DataFrame, learner: Learner, frozen: bool, size: int
) -> tuple[npt.NDArray[np.int64], dict[str, float]]:
    """Ranks of the judged clicks, 0 for the others, and seconds of the processor."""
    sessions, items = table.session.to_numpy(np.int64), table.item.to_numpy(np.int64)
    periods = table.period.to_numpy()
    ranks = np.zeros(len(table), np.int64)
    seconds = {"learning": 0.0, "judging": 0.0}
    seen, clicked = np.zeros(items.max() + 1, bool), dict[int, list[int]]()
    waiting: list[slice] = []
    period = -1
    for part in batches(periods, size):
        if periods[part.start] != period:
            period = periods[part.start]
            clock = time.process_time()
            for late in waiting:
                learner.learn(sessions[late], items[late])
            seconds["learning"] += time.process_time() - clock
            seconds["learning"] += learner.begin_period()
            waiting = []
            known = seen.copy()
        if not frozen:
            known = seen
        clock = time.process_time()
        for n in range(part.start, part.stop):
            own = clicked.setdefault(sessions[n], [])
            if sessions[n] % JUDGED == 0 and own and seen[items[n]]:
                ranks[n] = items.size
                if known[items[n]]:
                    told = [item for item in own if known[item]]
                    found = learner.scores(None if frozen else int(sessions[n]), told)
                    ranks[n] = np.count_nonzero(found[known] >= found[items[n]])
            if sessions[n] % JUDGED == 0:
                own.append(int(items[n]))
        seconds["judging"] += time.process_time() - clock
        seen[items[part]] = True
        clock = time.process_time()
        if frozen:
            waiting.append(part)
        else:
            learner.learn(sessions[part], items[part])
        seconds["learning"] += time.process_time() - clock
    return ranks, seconds


def summarised(ranks: I64, periods: npt.NDArray[Any]) -> dict[str, float]:
    """MRR and Recall at 10 and 20, means over periods from 1 on."""
    found: dict[str, list[float]] = {}
    for period in range(1, int(periods.max()) + 1):
        own = ranks[(periods == period) & (ranks > 0)]
        for top in (10, 20):
            near = own <= top
            found.setdefault(f"MRR@{top}", []).append(float(np.mean(near / own)))
            found.setdefault(f"Recall@{top}", []).append(float(np.mean(near)))
    return {name: float(np.mean(values)) for name, values in found.items()}


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table for docs."""
    names = ["MRR@10", "MRR@20", "Recall@10", "Recall@20"]
    lines = [
        f"| protocol | learner | {' | '.join(names)} | s to learn | s to judge |",
        f"|{'---|' * (len(names) + 4)}",
    ]
    for row in rows:
        figures = " | ".join(f"{row[name]:.3f}" for name in names)
        lines.append(
            f"| {row['protocol']} | {row['learner']} | {figures} | {row['learning']:.0f} | "
            f"{row['judging']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the learners and protocols that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--learners", nargs="+", choices=LEARNERS, default=list(LEARNERS))
    parser.add_argument(
        "--protocols", nargs="+", choices=("prequential", "frozen"),
        default=["prequential", "frozen"],
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=1_000, help="clicks learned at once")
    parser.add_argument("--periods", type=int, default=17, help="the first so many")
    given = parser.parse_args()
    table = pd.read_parquet(given.folder / "diginetica" / "clicks.parquet")
    table = table[table.period < given.periods]
    for name in ("session", "item"):
        table[name] = table[name].factorize()[0]
    count = int(table.item.max()) + 1
    rows = []
    for protocol in given.protocols:
        for name in given.learners:
            tried = []
            for point, make in LEARNERS[name].items():
                ranks, seconds = judge(table, make(count), protocol == "frozen", given.batch)
                row = {"protocol": protocol, "learner": name + point, "clicks": len(table)}
                row |= {"batch": given.batch, "judged": int(np.count_nonzero(ranks))}
                tried.append(row | summarised(ranks, table.period.to_numpy()) | seconds)
                print(json.dumps(tried[-1]), flush=True)
            rows.append(max(tried, key=lambda row: row["MRR@10"]))
            OUT.mkdir(exist_ok=True)
            (OUT / "sessions.json").write_text(json.dumps(rows, indent=1))
            (OUT / "sessions.md").write_text(markdown(rows))


if __name__ == "__main__":
    main()
