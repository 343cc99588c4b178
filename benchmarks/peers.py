"""The peers of benchmarks/accuracy.py: each a package that may be missing, a grid, a learner.

A learner takes training pairs and pairs to predict, as tables with the columns user, item, rating
and time, and one point of its grid; it gives predictions in rating units, shape (n,). Packages are
imported inside, so that the table is made without the ones that are not installed.
"""

from __future__ import annotations

import importlib
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

Point = dict[str, Any]
F64 = npt.NDArray[np.float64]
Learner = Callable[[pd.DataFrame, pd.DataFrame, Point], F64]


@dataclass(frozen=True)
class Peer:
    """A way to learn ratings, and the settings to choose among."""

    name: str
    module: str
    package: str
    grid: tuple[Point, ...]
    learn: Learner

    def missing(self) -> str:
        """Why it cannot be imported; empty where it can."""
        try:
            importlib.import_module(self.module)
        except Exception as failure:  # a broken build may raise anything
            return f"{type(failure).__name__}: {failure}"
        return ""


def grid_of(**values: Sequence[Any]) -> tuple[Point, ...]:
    """All points of a grid, the last name varying fastest."""
    return tuple(
        dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())
    )


def threads() -> int:
    """Threads of peers that can use more than one: OMP_NUM_THREADS, or every core."""
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


def _cmfrec(implicit: bool) -> Learner:
    def learn(train: pd.DataFrame, test: pd.DataFrame, point: Point) -> F64:
        from cmfrec import CMF

        names = {"user": "UserId", "item": "ItemId", "rating": "Rating"}
        model = CMF(
            method="als", add_implicit_features=implicit, random_state=1, verbose=False,
            nthreads=threads(), **point,
        )  # fmt: skip
        model.fit(train[list(names)].rename(columns=names))
        return np.asarray(model.predict(test.user.to_numpy(), test.item.to_numpy()), np.float64)

    return learn


def _surprise(algorithm: str) -> Learner:
    def learn(train: pd.DataFrame, test: pd.DataFrame, point: Point) -> F64:
        import surprise

        scale = (float(train.rating.min()), float(train.rating.max()))
        data = surprise.Dataset.load_from_df(
            train[["user", "item", "rating"]], surprise.Reader(rating_scale=scale)
        )
        model = getattr(surprise, algorithm)(random_state=1, **point)
        model.fit(data.build_full_trainset())
        pairs = zip(test.user, test.item, strict=True)
        return np.array([model.predict(user, item).est for user, item in pairs])

    return learn


def _river(train: pd.DataFrame, test: pd.DataFrame, point: Point) -> F64:
    """One pass in time order, each rating once."""
    from river import optim, preprocessing, reco

    model = preprocessing.PredClipper(
        regressor=reco.BiasedMF(
            n_factors=point["n_factors"],
            bias_optimizer=optim.SGD(point["lr"]),
            latent_optimizer=optim.SGD(point["lr"]),
            weight_initializer=optim.initializers.Zeros(),
            latent_initializer=optim.initializers.Normal(mu=0.0, sigma=0.1, seed=1),
            l2_bias=point["l2"],
            l2_latent=point["l2"],
        ),
        y_min=float(train.rating.min()),
        y_max=float(train.rating.max()),
    )
    ordered = train.sort_values("time", kind="stable")
    for user, item, rating in zip(ordered.user, ordered.item, ordered.rating, strict=True):
        model.learn_one({}, rating, user=user, item=item)
    pairs = zip(test.user, test.item, strict=True)
    return np.array([model.predict_one({}, user=user, item=item) for user, item in pairs])


def _libmf(train: pd.DataFrame, test: pd.DataFrame, point: Point) -> F64:
    from libmf import mf

    model = mf.MF(
        k=point["k"], lambda_p2=point["l2"], lambda_q2=point["l2"], eta=point["eta"],
        nr_iters=point["iters"], nr_threads=threads(), quiet=True,
    )  # fmt: skip
    # it wants positions, not ids
    users, items = (np.sort(train[side].unique()) for side in ("user", "item"))
    rows, columns = np.searchsorted(users, train.user), np.searchsorted(items, train["item"])
    model.fit(np.column_stack([rows, columns, train.rating]))
    rows, columns = np.searchsorted(users, test.user), np.searchsorted(items, test["item"])
    # the factors are right, but predict() of 0.9.2 mixes up the pairs
    of_users, of_items = (np.asarray(f, np.float64) for f in (model.p_factors(), model.q_factors()))
    return np.asarray((of_users[rows] * of_items[columns]).sum(axis=1))


_CMF_GRID = grid_of(k=[16, 64, 128], lambda_=[7.0, 10.0, 14.0, 40.0]) + grid_of(
    k=[16, 64, 128], lambda_=[0.1, 0.15, 0.2, 0.3], scale_lam=[True]
)
PEERS = (
    Peer(
        "cmfrec CMF", "cmfrec", "cmfrec",
        _CMF_GRID,
        _cmfrec(False),
    ),
    Peer(
        "cmfrec CMF, implicit features", "cmfrec", "cmfrec",
        _CMF_GRID,
        _cmfrec(True),
    ),
    Peer(
        "Surprise SVD", "surprise", "scikit-surprise",
        grid_of(
            n_factors=[20, 100, 200], n_epochs=[20, 40, 80], lr_all=[0.007],
            reg_all=[0.05, 0.1, 0.15],
        ),
        _surprise("SVD"),
    ),
    Peer(
        "Surprise SVD++", "surprise", "scikit-surprise",
        grid_of(n_factors=[20], n_epochs=[20], lr_all=[0.005, 0.01], reg_all=[0.05, 0.1]),
        _surprise("SVDpp"),
    ),
    Peer(
        "river BiasedMF, one pass", "river", "river",
        grid_of(n_factors=[10], lr=[0.003, 0.006, 0.01, 0.02], l2=[0.02, 0.1]),
        _river,
    ),
    Peer(
        "LibMF", "libmf", "libmf",
        grid_of(k=[8, 16], l2=[0.02, 0.05, 0.1, 0.2], eta=[0.05], iters=[20, 60]),
        _libmf,
    ),
)  # fmt: skip
