"""Does variance added per rating help a stream: real ratings in time order, tastes that change.

python benchmarks/drift.py [FOLDER]

On every ratings file of a folder (see accuracy.py): prequential RMSE of all of it in time order,
1,000 ratings a batch, from nothing and after a fit of the older half; and, with the split of
accuracy.py, the held-out RMSE after one pass, which asks for the past as much as for the future.
The same for drift of the biases of one side alone, by rating or by day since the id was last seen,
never beyond their prior variance. Then a generated stream whose users change their tastes half-way.
Writes out/drift.json and out/drift.png.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from accuracy import OUT, find_sets, outer_splits, split

from sparkml_sgdals import StreamingBiasedALS
from sparkml_sgdals.arrays.ratings import Ratings, encode_ratings
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.learn.whole_table import fit_ratings
from sparkml_sgdals.state.model_state import ModelState

matplotlib.use("Agg")
import matplotlib.pyplot as plt

F64 = npt.NDArray[np.float64]
DRIFTS = (0.0, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3)
FORMS = (
    ("rating", "users", 3e-5), ("rating", "users", 1e-4), ("rating", "users", 3e-4),
    ("rating", "items", 3e-5), ("rating", "items", 1e-4), ("rating", "items", 3e-4),
    ("day", "users", 1e-4), ("day", "users", 1e-3), ("day", "items", 1e-5), ("day", "items", 1e-4),
)  # fmt: skip
"""Drift of biases alone: by what, of which side, variance."""
SHOWN = {0.0: "-", 3e-4: "--", 3e-3: ":"}
BATCH = 1000
DEFAULTS = StreamingBiasedALS(timestampCol="time").settings()


def as_table(ratings: pd.DataFrame) -> pa.Table:
    ordered = ratings.sort_values("time", kind="stable").astype({"rating": "float32"})
    return pa.Table.from_pandas(ordered, preserve_index=False)


class BiasDrift:
    """Variance that the biases of one side get before the batch that names their ids."""

    def __init__(self, per: str, side: str, variance: float) -> None:
        self.per, self.side, self.variance = per, side, variance
        self.last = np.empty(0)

    def add(self, state: ModelState, batch: Ratings, days: F64) -> None:
        table = state.users if self.side == "users" else state.items
        ids = batch.user_ids if self.side == "users" else batch.item_ids
        positions = batch.users if self.side == "users" else batch.items
        rows = table.index.find(ids)
        known = rows >= 0
        # ids that the batch before brought
        self.last = np.append(self.last, np.full(table.size - self.last.size, days[0]))
        amount = np.bincount(positions, minlength=len(ids)).astype(np.float64)
        if self.per == "day":
            amount[known] = np.maximum(days[0] - self.last[rows[known]], 0.0)
        before = table.var[rows[known], 0]
        grown = np.minimum(before + self.variance * amount[known], state.settings.bias_prior)
        table.var[rows[known], 0] = np.maximum(before, grown)
        self.last[rows[known]] = days[-1]


def stream(
    table: pa.Table, drift: float, fitted: int = 0, biases: BiasDrift | None = None
) -> tuple[ModelState, F64]:
    """Learn a table in batches, the first rows by a fit; the model and each batch's RMSE before."""
    days = table.column("time").to_numpy() / 86400.0
    state = ModelState.empty(replace(DEFAULTS, drift=0.0 if fitted else drift), "int", "int")
    if fitted:
        fit_ratings(encode_ratings(table.slice(0, fitted)), state)
        state.settings = replace(state.settings, drift=drift)
    errors = []
    for start in range(fitted, table.num_rows, BATCH):
        batch = encode_ratings(table.slice(start, BATCH))
        if biases is not None:
            biases.add(state, batch, days[start : start + BATCH])
        errors.append(learn_batch(state, batch).rmse)
    return state, np.array(errors)


def prequential(
    table: pa.Table, drift: float, fitted: int = 0, biases: BiasDrift | None = None
) -> float:
    """RMSE of every rating before it is learned; nothing is predicted before the first batch."""
    errors = stream(table, drift, fitted, biases)[1]
    counts = np.full(errors.size, BATCH)
    counts[-1] = (table.num_rows - fitted - 1) % BATCH + 1
    known = np.isfinite(errors)
    return float(np.sqrt(np.average(errors[known] ** 2, weights=counts[known])))


def held_out(
    train: pd.DataFrame, held: pd.DataFrame, drift: float, biases: BiasDrift | None = None
) -> float:
    state, _ = stream(as_table(train), drift, biases=biases)
    users = state.users.index.find(pa.array(held.user))
    items = state.items.index.find(pa.array(held.item))
    off = state.clip(state.predict(users, items)[0]) - held.rating.to_numpy()
    return float(np.sqrt(np.mean(off.astype(np.float64) ** 2)))


def changing_tastes(seed: int = 1) -> tuple[pd.DataFrame, float]:
    """400,000 ratings, 500 users, 300 items, 4 features; all users change half-way. And noise."""
    rng = np.random.default_rng(seed)
    count, noise = 400_000, 0.5
    users, items = rng.integers(0, 500, count), rng.integers(0, 300, count)
    item_factors = rng.normal(0, 1, (300, 4))
    tastes = rng.normal(0, 0.5, (2, 500, 4))
    late = (np.arange(count) >= count // 2).astype(int)
    signal = np.einsum("nf,nf->n", tastes[late, users], item_factors[items])
    values = 3.5 + signal + rng.normal(0, noise, count)
    time = np.arange(count)
    return pd.DataFrame({"user": users, "item": items, "rating": values, "time": time}), noise


def draw(curves: dict[float, F64], noise: float, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7.5, 4), layout="constrained")
    for drift, line in SHOWN.items():
        smooth = pd.Series(curves[drift]).rolling(5, min_periods=1).mean()
        thousands = np.arange(1, len(smooth) + 1)
        axes.plot(thousands, smooth, line, color="black", label=f"drift={drift:g}")
    axes.axhline(noise, color="0.5", linewidth=1)
    axes.text(1, noise - 0.005, "noise of the ratings", va="top", color="0.4")
    axes.axvline(200, color="0.5", linewidth=1)
    axes.text(
        203, 0.99 * axes.get_ylim()[1], "all users change their tastes", va="top", color="0.4"
    )
    axes.set_xlabel("ratings seen, thousands")
    axes.set_ylabel("RMSE before learning (mean of 5 batches)")
    axes.set_title("A generated stream whose users change")
    axes.legend(loc="center right")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", default=os.environ.get("SPARKML_SGDALS_DATA", ""))
    folder = Path(parser.parse_args().folder)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, ratings in find_sets(folder, []):
        whole = as_table(ratings)
        train, held = split(ratings, outer_splits(len(ratings), 1)[0])
        print(f"\n{name}\n{'drift':>8}{'from nothing':>14}{'after a fit':>13}{'held out':>10}")
        found[name] = {}
        for drift in DRIFTS:
            row = {
                "prequential": prequential(whole, drift),
                "afterFit": prequential(whole, drift, whole.num_rows // 2),
                "heldOut": held_out(train, held, drift),
            }
            found[name][str(drift)] = row
            print("{:8g}{:14.4f}{:13.4f}{:10.4f}".format(drift, *row.values()))
        print(f"{'biases of one side alone':24}{'from nothing':>14}{'held out':>10}")
        for form in FORMS:
            row = {
                "prequential": prequential(whole, 0.0, biases=BiasDrift(*form)),
                "heldOut": held_out(train, held, 0.0, BiasDrift(*form)),
            }
            found[name][" ".join(map(str, form))] = row
            print("{2:8g} a {0:6} {1:6}".format(*form), end="")
            print("{:14.4f}{:10.4f}".format(*row.values()))
    changing, noise = changing_tastes()
    curves = {drift: stream(as_table(changing), drift)[1] for drift in SHOWN}
    print(
        "\nchanging tastes: RMSE of 20,000 ratings before the change, 30,000 after it, at the end"
    )
    for drift, errors in curves.items():
        parts = errors[180:200], errors[230:250], errors[380:]
        print(f"{drift:8g}" + "".join(f"{part.mean():10.4f}" for part in parts))
    OUT.mkdir(exist_ok=True)
    (OUT / "drift.json").write_text(json.dumps(found, indent=2) + "\n")
    draw(curves, noise, OUT / "drift.png")


if __name__ == "__main__":
    main()
