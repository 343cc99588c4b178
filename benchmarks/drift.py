"""Does variance added per rating help a stream: real ratings in time order, tastes that change.

python benchmarks/drift.py [FOLDER]

On every ratings file of a folder (see accuracy.py): prequential RMSE of all of it in time order,
1,000 ratings a batch, from nothing and after a fit of the older half; and, with the split of
accuracy.py, the held-out RMSE after one pass, which asks for the past as much as for the future.
Then a generated stream whose users change their tastes half-way. Writes out/drift.json and
out/drift.png.
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
from sparkml_sgdals.learning import fit_ratings
from sparkml_sgdals.ratings import encode_ratings
from sparkml_sgdals.state import ModelState
from sparkml_sgdals.updating import learn_batch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

F64 = npt.NDArray[np.float64]
DRIFTS = (0.0, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3)
SHOWN = {0.0: "-", 3e-4: "--", 3e-3: ":"}
BATCH = 1000
DEFAULTS = StreamingBiasedALS(timestampCol="time").settings()


def as_table(ratings: pd.DataFrame) -> pa.Table:
    ordered = ratings.sort_values("time", kind="stable").astype({"rating": "float32"})
    return pa.Table.from_pandas(ordered, preserve_index=False)


def stream(table: pa.Table, drift: float, fitted: int = 0) -> tuple[ModelState, F64]:
    """Learn a table in batches, the first rows by a fit; the model and each batch's RMSE before."""
    state = ModelState.empty(replace(DEFAULTS, drift=0.0 if fitted else drift), "int", "int")
    if fitted:
        fit_ratings(encode_ratings(table.slice(0, fitted)), state)
        state.settings = replace(state.settings, drift=drift)
    errors = []
    for start in range(fitted, table.num_rows, BATCH):
        errors.append(learn_batch(state, encode_ratings(table.slice(start, BATCH))).rmse)
    return state, np.array(errors)


def prequential(table: pa.Table, drift: float, fitted: int = 0) -> float:
    """RMSE of every rating before it is learned; nothing is predicted before the first batch."""
    errors = stream(table, drift, fitted)[1]
    counts = np.full(errors.size, BATCH)
    counts[-1] = (table.num_rows - fitted - 1) % BATCH + 1
    known = np.isfinite(errors)
    return float(np.sqrt(np.average(errors[known] ** 2, weights=counts[known])))


def held_out(train: pd.DataFrame, held: pd.DataFrame, drift: float) -> float:
    state, _ = stream(as_table(train), drift)
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
