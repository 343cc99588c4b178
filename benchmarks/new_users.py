"""Who profits from the implicit prior: users that a stream brings, against those of the fit.

python benchmarks/new_users.py [FOLDER]

On every ratings file of a folder (see accuracy.py): the older half of the training part is fitted,
the newer half streamed, 1,000 ratings a batch in time order, with implicitPrior and without. Held
out is the split of accuracy.py; its pairs are told apart by whether the fit knew the user, and by
how many ratings the stream then brought of it. Writes out/new_users.json.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from accuracy import OUT, find_sets, outer_splits, split

from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.learn.whole_table import fit_ratings
from sparkml_sgdals.ml.params import default_settings
from sparkml_sgdals.state.model_state import ModelState

BATCH = 1000
MANY = 20


def learned(ordered: pd.DataFrame, implicit_prior: bool) -> ModelState:
    """The older half fitted, the newer one streamed."""
    table = pa.Table.from_pandas(ordered.astype({"rating": "float32"}), preserve_index=False)
    half = table.num_rows // 2
    state = ModelState.empty(default_settings(implicit_prior=implicit_prior), "int", "int")
    fit_ratings(encode_ratings(table.slice(0, half)), state)
    for start in range(half, table.num_rows, BATCH):
        learn_batch(state, encode_ratings(table.slice(start, BATCH)))
    return state


def squared_errors(state: ModelState, held: pd.DataFrame) -> np.ndarray:
    """Squared error of each held-out rating, predictions clipped."""
    users = state.users.index.find(pa.array(held.user))
    items = state.items.index.find(pa.array(held.item))
    predictions = state.clip(state.predict(users, items)[0]).astype(np.float64)
    return np.asarray((predictions - held.rating.to_numpy()) ** 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", default=os.environ.get("SPARKML_SGDALS_DATA", ""))
    folder = Path(parser.parse_args().folder)
    found = {}
    for name, ratings in find_sets(folder, []):
        train, held = split(ratings, outer_splits(len(ratings), 1)[0])
        ordered = train.sort_values("time", kind="stable").reset_index(drop=True)
        half = len(ordered) // 2
        old = held.user.isin(ordered.user[:half]).to_numpy()
        streamed = ordered.user[half:].value_counts().reindex(held.user, fill_value=0).to_numpy()
        groups = {
            "in the fit, not in the stream": old & (streamed == 0),
            "in both": old & (streamed > 0),
            f"new, fewer than {MANY} ratings": ~old & (streamed < MANY),
            f"new, {MANY} or more": ~old & (streamed >= MANY),
        }
        errors = [squared_errors(learned(ordered, drawn), held) for drawn in (False, True)]
        print(f"\n{name}: users\n{'':32}{'held out':>9}{'without':>9}{'with':>9}{'gain':>8}")
        rows = {}
        for group, rows_of in groups.items():
            if not rows_of.any():
                continue
            without, with_it = (float(np.sqrt(part[rows_of].mean())) for part in errors)
            rows[group] = {"pairs": int(rows_of.sum()), "without": without, "with": with_it}
            gain = 1.0 - with_it / without
            print(f"{group:32}{rows_of.sum():9,}{without:9.4f}{with_it:9.4f}{gain:8.1%}")
        found[name] = rows
    OUT.mkdir(exist_ok=True)
    (OUT / "new_users.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
