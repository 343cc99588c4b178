"""The peers of benchmarks/ranking.py: what is popular, EASE, the package implicit, Spark's ALS.

A peer learns events and gives a list for each user asked, items by position, best first, without
what the user has done, -1 behind its end. Users that it does not know get what is popular. Grids
are small and their best point is what is shown, which favours the peer. Packages are imported
inside, so that the table is made without the ones that are not installed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from peers import Point, grid_of, threads
from ranking_protocols import F64, I64, TOP, Events

__all__ = [
    "PEERS",
    "RankingPeer",
    "ease_weights",
    "implicit_model",
    "popular_order",
    "ranked",
    "spark_als",
    "sparse",
]

Recommend = Callable[[Events, I64, Point], I64]
"""events to learn, users to ask, a point of the grid: lists, shape (users, at most TOP)"""

USERS_AT_ONCE = 500
WEEK = 7 * 86_400
MOST_EASE_ITEMS = 20_000
"""beyond, its matrix of items by items takes more than 3 GB, and its inverse minutes"""


@dataclass(frozen=True)
class RankingPeer:
    """A way to rank, and the settings to choose among.

    Attributes
    ----------
    timed : bool
        whether it needs times
    """

    name: str
    recommend: Recommend
    grid: tuple[Point, ...] = ({},)
    module: str = "numpy"
    timed: bool = False

    def missing(self, events: Events) -> str:
        """Why it has no result on these events; empty where it has one."""
        if self.timed and not events.timed:
            return "there are no times"
        try:
            importlib.import_module(self.module)
        except ImportError as failure:
            return f"{type(failure).__name__}: {failure}"
        return ""


def popular_order(train: Events, since: float = -np.inf) -> I64:
    """Items learned, by how often they were done since then, equal ones by how often at all."""
    size = int(train.items.max()) + 1
    whole = np.bincount(train.items, minlength=size)
    recent = whole
    if np.isfinite(since):
        assert train.order is not None
        recent = np.bincount(train.items[train.order >= since], minlength=size)
    order = np.lexsort([np.arange(size), -whole, -recent])
    return order[whole[order] > 0]


def ranked(train: Events, users: I64, scores: Callable[[I64], F64], top: int = TOP) -> I64:
    """Lists by score, without what was done; users not learned get what is popular.

    Parameters
    ----------
    scores : Callable[[I64], F64]
        of users that were learned: shape (users, items), by position up to the last item learned
    """
    size = int(train.items.max()) + 1
    never = np.bincount(train.items, minlength=size) == 0
    rows = np.argsort(train.users, kind="stable")
    owners, done = train.users[rows], train.items[rows]
    begins, ends = (np.searchsorted(owners, users, side) for side in ("left", "right"))
    lists = np.full((users.size, top), -1)
    popular = popular_order(train)[:top]
    lists[begins == ends, : popular.size] = popular
    for known in np.array_split(
        np.flatnonzero(begins < ends), 1 + np.count_nonzero(begins < ends) // USERS_AT_ONCE
    ):
        if not known.size:
            continue
        found = np.array(scores(users[known]), np.float64)
        found[:, never] = -np.inf
        lengths = ends[known] - begins[known]
        places = np.repeat(begins[known] - np.cumsum(lengths) + lengths, lengths)
        places += np.arange(places.size)
        found[np.repeat(np.arange(known.size), lengths), done[places]] = -np.inf
        best = np.argpartition(-found, min(top, size) - 1, axis=1)[:, :top]
        values = np.take_along_axis(found, best, axis=1)
        order = np.lexsort([best, -values], axis=1)
        best, values = (np.take_along_axis(a, order, axis=1) for a in (best, values))
        lists[known, : best.shape[1]] = np.where(np.isfinite(values), best, -1)
    return lists


def _by_order(train: Events, users: I64, order: I64) -> I64:
    scores = np.full(int(train.items.max()) + 1, -np.inf)
    scores[order] = -np.arange(order.size, dtype=np.float64)
    return ranked(train, users, lambda asked: np.tile(scores, (asked.size, 1)))


def popular(train: Events, users: I64, point: Point) -> I64:
    """The same for everyone: what was done most often."""
    return _by_order(train, users, popular_order(train))


def popular_last_week(train: Events, users: I64, point: Point) -> I64:
    """The same of the seven days before the last event learned."""
    assert train.order is not None
    return _by_order(train, users, popular_order(train, int(train.order.max()) - WEEK))


def sparse(events: Events) -> Any:
    """Users by items, 1 where something was done, float32."""
    from scipy.sparse import csr_matrix

    shape = int(events.users.max()) + 1, int(events.items.max()) + 1
    ones = np.ones(len(events), np.float32)
    return csr_matrix((ones, (events.users, events.items)), shape=shape)


def ease_weights(done: Any, strength: float) -> F64:
    """Weight of each item for each other, shape (items, items), 0 on the diagonal."""
    from scipy.linalg import lapack

    gram = (done.T @ done).toarray(order="F")
    gram[np.diag_indices_from(gram)] += strength
    # half the work of an inverse that knows nothing of symmetry
    factor, _ = lapack.dpotrf(gram, lower=True, overwrite_a=True)
    below = np.tril(lapack.dpotri(factor, lower=True, overwrite_c=True)[0])
    weights: F64 = below + np.tril(below, -1).T
    weights /= -np.diag(weights)
    weights[np.diag_indices_from(weights)] = 0.0
    return weights


def ease(train: Events, users: I64, point: Point) -> I64:
    """EASE (Steck 2019): each item from all others by ridge regression, solved exactly."""
    done = sparse(train).astype(np.float64)
    if done.shape[1] > MOST_EASE_ITEMS:
        raise MemoryError(f"{done.shape[1]:,} items are more than {MOST_EASE_ITEMS:,}")
    weights = ease_weights(done, point["lambda"])
    return ranked(train, users, lambda asked: done[asked] @ weights)


def _by_factors(train: Events, users: I64, of_users: F64, of_items: F64) -> I64:
    return ranked(train, users, lambda asked: of_users[asked] @ of_items.T)


def implicit_model(done: Any, point: Point) -> Any:
    """Alternating least squares of the package implicit."""
    from implicit.cpu.als import AlternatingLeastSquares
    from threadpoolctl import threadpool_limits

    # its own threads and those of BLAS together are slow, as it says itself
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(random_state=1, num_threads=threads(), **point)
        model.fit(done, show_progress=False)
    return model


def implicit_als(train: Events, users: I64, point: Point) -> I64:
    """The package implicit, its default of 15 iterations."""
    model = implicit_model(sparse(train), point)
    sides = (np.asarray(side, np.float64) for side in (model.user_factors, model.item_factors))
    return _by_factors(train, users, *sides)


def spark_als(point: Point) -> Any:
    """Spark's ALS on the columns user and item, and rating, which is 1 of an event."""
    from pyspark.ml.recommendation import ALS

    return ALS(userCol="user", itemCol="item", implicitPrefs=True, seed=1, **point)


def implicit_spark_als(train: Events, users: I64, point: Point) -> I64:
    """Spark's implicit ALS, its default of 10 iterations."""
    from harness import session

    spark = session()
    pairs = {"user": train.users.astype(np.int32), "item": train.items.astype(np.int32)}
    events = pd.DataFrame(pairs | {"rating": np.float32(1.0)})
    als = spark_als(point).setNumBlocks(threads())
    model = als.fit(spark.createDataFrame(events))
    sides = []
    for own, frame in ((train.users, model.userFactors), (train.items, model.itemFactors)):
        learned = frame.toPandas()
        factors = np.zeros((int(own.max()) + 1, point["rank"]))
        factors[learned.id] = np.stack(learned.features.to_list())
        sides.append(factors)
    return _by_factors(train, users, *sides)


PEERS = {
    "popular": RankingPeer("most popular", popular),
    "week": RankingPeer("most popular of the last week", popular_last_week, timed=True),
    "ease": RankingPeer("EASE", ease, grid_of(**{"lambda": [100.0, 200.0, 500.0]}), "scipy"),
    "implicit": RankingPeer(
        "implicit's ALS", implicit_als,
        tuple(
            {"factors": factors, "alpha": alpha, "regularization": strength}
            for factors in (64, 128)
            # without much regularization it is behind what is popular on some sets
            for alpha, strength in ((3.0, 18.0), (10.0, 60.0), (10.0, 120.0), (30.0, 30.0))
        ),
        "implicit",
    ),
    "als": RankingPeer(
        "Spark's implicit ALS", implicit_spark_als,
        tuple(
            {"rank": 64, "alpha": alpha, "regParam": strength}
            for alpha, strength in (
                (1.0, 0.3), (3.0, 0.3), (3.0, 1.0), (10.0, 0.1), (10.0, 1.0), (10.0, 3.0)
            )
        ),
    ),
}  # fmt: skip
"""by the name that the command takes"""
