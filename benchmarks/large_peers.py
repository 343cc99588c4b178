"""Peers without Spark on the ratings of large_fit.py: python benchmarks/large_peers.py.

    pip install implicit cmfrec        # no development tools: cmfrec compiles for minutes
    python benchmarks/large_peers.py --ratings 26M

90% of the ratings of benchmarks/generate.py, in memory as NumPy arrays; rank 10; as many threads as
cores. Each peer chooses from its grid on the ratings of a tenth of the users (a fifth of these
held out), then learns everything, so often as --runs says, by turns with ours without Spark. Timed
is learning from arrays of positions and ratings, the peer's own matrix included; held-out RMSE is
of clipped predictions of pairs whose user and item were seen.

`cmfrec` fits the same model as ours, biases and factors, by alternating least squares. `implicit`
ranks events and predicts no ratings: its least squares are given each rating's excess over a
baseline of mean and biases (damped means), as confidence in a preference of its sign, and its score
is scaled to the excess by least squares on the training part. Compare its time; its RMSE says what
a library for another task does here.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from generate import ratings_count, write_ratings
from harness import cores, cpu_seconds, row, write

from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.learn.whole_table import fit_ratings
from sparkml_sgdals.ml.params import default_settings
from sparkml_sgdals.state.model_state import ModelState

RANK = 10
F64 = npt.NDArray[np.float64]
Point = dict[str, Any]


@dataclass(frozen=True)
class Ratings:
    """Pairs as positions among all users and items, int32, and float32 ratings."""

    users: npt.NDArray[np.int32]
    items: npt.NDArray[np.int32]
    values: npt.NDArray[np.float32]
    shape: tuple[int, int]

    def where(self, rows: npt.NDArray[np.bool_]) -> Ratings:
        """Some of them."""
        return Ratings(self.users[rows], self.items[rows], self.values[rows], self.shape)


Predict = Callable[[Ratings], F64]


def ours(train: Ratings, point: Point) -> Predict:
    """Our fit without Spark."""
    state = ModelState.empty(default_settings(rank=RANK), "int", "int")
    table = pa.table(
        {"user": train.users.astype(np.int64), "item": train.items.astype(np.int64),
         "rating": train.values}
    )  # fmt: skip
    fit_ratings(encode_ratings(table, cores()), state, cores())

    def predict(test: Ratings) -> F64:
        rows = (
            state.users.index.find(pa.array(test.users.astype(np.int64))),
            state.items.index.find(pa.array(test.items.astype(np.int64))),
        )
        return state.predict(*rows)[0].astype(np.float64)

    return predict


def cmfrec(train: Ratings, point: Point) -> Predict:
    """Collective matrix factorisation without side information."""
    from cmfrec import CMF
    from scipy.sparse import coo_matrix

    matrix = coo_matrix((train.values, (train.users, train.items)), shape=train.shape)
    model = CMF(
        k=RANK, nthreads=cores(), use_float=True, random_state=1, verbose=False,
        precompute_for_predictions=False, **point,
    ).fit(matrix)  # fmt: skip
    return lambda test: np.asarray(model.predict(test.users, test.items), np.float64)


def implicit(train: Ratings, point: Point) -> Predict:
    """Weighted least squares of `implicit` on what a baseline leaves."""
    from implicit.cpu.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix
    from threadpoolctl import threadpool_limits

    damping = 10.0
    mean = float(train.values.mean(dtype=np.float64))

    def bias(own: npt.NDArray[np.int32], rest: F64, size: int) -> F64:
        found = np.bincount(own, rest, size) / (np.bincount(own, minlength=size) + damping)
        return np.asarray(found)

    of_items = bias(train.items, train.values - mean, train.shape[1])
    of_users = bias(train.users, train.values - mean - of_items[train.items], train.shape[0])

    def baseline(given: Ratings) -> F64:
        return np.asarray(mean + of_users[given.users] + of_items[given.items])

    excess = train.values - baseline(train)
    # a negative confidence is its way to say: not this one
    confidence = (point["alpha"] * excess).astype(np.float32)
    matrix = csr_matrix((confidence, (train.users, train.items)), shape=train.shape)
    model = AlternatingLeastSquares(
        factors=RANK, regularization=point["regularization"], iterations=point["iterations"],
        num_threads=cores(), random_state=1,
    )  # fmt: skip
    # its own threads and those of BLAS together are slow, as it says itself
    with threadpool_limits(1, "blas"):
        model.fit(matrix, show_progress=False)
    factors = np.asarray(model.user_factors), np.asarray(model.item_factors)

    def score(given: Ratings) -> F64:
        found = [
            np.einsum("nf,nf->n", factors[0][given.users[part]], factors[1][given.items[part]])
            for part in np.array_split(np.arange(given.users.size), 1 + given.users.size // 10**6)
        ]
        return np.concatenate(found).astype(np.float64)

    learned = score(train)
    scale = float(learned @ excess / max(learned @ learned, 1e-12))
    return lambda test: baseline(test) + scale * score(test)


@dataclass(frozen=True)
class Peer:
    """A library, and the settings that it chooses from."""

    learn: Callable[[Ratings, Point], Predict]
    grid: tuple[Point, ...]


PEERS = {
    "ours without Spark": Peer(ours, ({},)),
    "cmfrec": Peer(
        cmfrec,
        tuple(
            {"lambda_": strength, "scale_lam": True, "niter": iterations}
            for strength in (0.03, 0.06, 0.12)
            for iterations in (10, 20)
        ),
    ),
    "implicit": Peer(
        implicit,
        tuple(
            {"alpha": alpha, "regularization": strength, "iterations": 10}
            for alpha in (10.0, 40.0, 160.0)
            for strength in (0.1, 10.0)
        ),
    ),
}


def rmse(predict: Predict, test: Ratings) -> float:
    """Root of the mean squared error of clipped predictions."""
    off = np.clip(predict(test), 0.5, 5.0) - test.values
    return float(np.sqrt(np.mean(off**2)))


def read(folder: Path) -> tuple[Ratings, Ratings]:
    """Both parts; of the held-out one the pairs whose user and item are in the other."""
    tables = [
        pq.read_table(folder / part, columns=["userId", "movieId", "rating"])
        for part in ("train", "test")
    ]
    sides = []
    for name in ("userId", "movieId"):
        known, train = np.unique(tables[0][name].to_numpy(), return_inverse=True)
        asked = tables[1][name].to_numpy()
        at = np.searchsorted(known, asked).clip(max=known.size - 1)
        sides.append((train.astype(np.int32), at.astype(np.int32), known[at] == asked, known.size))
    shape = (sides[0][3], sides[1][3])
    values = [table["rating"].to_numpy().astype(np.float32) for table in tables]
    train = Ratings(sides[0][0], sides[1][0], values[0], shape)
    test = Ratings(sides[0][1], sides[1][1], values[1], shape)
    return train, test.where(sides[0][2] & sides[1][2])


def best(peer: Peer, train: Ratings) -> tuple[Point, float]:
    """The point of the grid that does best on held-out ratings of a tenth of the users."""
    if len(peer.grid) < 2:
        return peer.grid[0], 0.0
    clock = time.perf_counter()
    rng = np.random.default_rng(7)
    some = train.where((rng.random(train.shape[0]) < 0.1)[train.users])
    held = rng.random(some.users.size) < 0.2
    inner, validation = some.where(~held), some.where(held)
    seen = np.bincount(inner.items, minlength=train.shape[1]) > 0
    validation = validation.where(seen[validation.items])
    errors = [rmse(peer.learn(inner, point), validation) for point in peer.grid]
    for point, error in zip(peer.grid, errors, strict=True):
        print(f"    {point}: {error:.4f}", file=sys.stderr)
    return peer.grid[int(np.argmin(errors))], time.perf_counter() - clock


def main() -> None:
    """Measure, print a table and write it as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ratings", type=ratings_count, default=26_000_000)
    parser.add_argument("--folder", type=Path, help="where the ratings lie, or are to be made")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=list(PEERS), default=list(PEERS))
    given = parser.parse_args()
    lacking = [n for n in given.only if n in ("cmfrec", "implicit")
               and importlib.util.find_spec(n) is None]  # fmt: skip
    if lacking:
        parser.error(f"not installed: pip install {' '.join(lacking)}")
    with tempfile.TemporaryDirectory(prefix="large-peers-") as scratch:
        folder = given.folder or Path(scratch)
        write_ratings(folder, given.ratings)
        train, test = read(folder)
    print(f"{train.users.size:,} ratings to learn, {test.users.size:,} held out, {cores()} cores")
    chosen = {}
    for name in given.only:
        chosen[name] = best(PEERS[name], train)
        print(f"  {name}: {chosen[name][0]}, {chosen[name][1]:.0f} s of tuning", file=sys.stderr)
    # compiled and warm
    ours(train.where(train.users < 1000), {})
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in given.only}
    errors = {}
    for _ in range(given.runs):
        for name in given.only:
            clock, cpu = time.perf_counter(), cpu_seconds()
            predict = PEERS[name].learn(train, chosen[name][0])
            took[name].append((time.perf_counter() - clock, cpu_seconds() - cpu))
            errors[name] = rmse(predict, test)
            del predict
            print(f"  {name}: {took[name][-1][0]:.1f} s, {errors[name]:.4f}", file=sys.stderr)
    rows = [
        row(
            name, [one[0] for one in of_name], [one[1] for one in of_name], rmse=errors[name],
            params=chosen[name][0], tuning=chosen[name][1],
        )
        for name, of_name in took.items()
    ]  # fmt: skip
    median = {one["label"]: one["median"] for one in rows}
    own = median.get("ours without Spark")
    ratios = {name: median[name] / own for name in median if own and name != "ours without Spark"}
    packages = {
        name: importlib.metadata.version(name) for name in ("cmfrec", "implicit")
        if importlib.util.find_spec(name)
    }  # fmt: skip
    write("large_peers", rows, ratios, ratings=given.ratings, peers=packages)


if __name__ == "__main__":
    main()
