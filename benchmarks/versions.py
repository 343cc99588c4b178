"""What thousands of versions cost: python benchmarks/versions.py [--versions 20000] [--path PATH].

A model path of so many small versions is made in a temporary folder, a batch of 20 ratings each, by
the library's own commits (without waiting for the disk), or taken from --path if it is there, and
made there if not. Then, in a process each, seconds and processor seconds of what is done with it:
loading the newest version, listing the versions, with and without checksums of all files, their
metrics, what a stream clears up when it starts, and what it does after each batch to let old ones
go. Writes out/versions.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.ml.params import default_settings
from sparkml_sgdals.state.model_state import ModelState
from sparkml_sgdals.store.maintenance import drop_later_invalid, drop_old_checkpoints, list_versions
from sparkml_sgdals.store.version_store import VersionStore

OUT = Path(__file__).resolve().parent.parent / "out" / "versions.json"
USERS, ITEMS, ROWS = 2_000, 500, 20


def make(path: str, versions: int) -> None:
    """Write a model path of so many versions."""
    rng = np.random.default_rng(3)
    state = ModelState.empty(default_settings(), "int", "int")
    store = VersionStore(path)
    meta = {"settings": state.settings.to_json(), "kinds": ["int", "int"], "origin": "nothing",
            "pathId": "p", "params": {}}  # fmt: skip
    commit = store.create(state, meta)
    os.fsync = lambda handle: None
    for batch in range(versions - 1):
        table = pa.table(
            {
                "user": rng.integers(0, USERS, ROWS),
                "item": rng.integers(0, ITEMS, ROWS),
                "rating": rng.integers(1, 11, ROWS).astype(np.float32) / 2,
            }
        )
        report = learn_batch(state, encode_ratings(table))
        metrics = {"batch": batch, "version": batch + 1, "rmse": report.rmse, "ratings": ROWS,
                   "committed": "2026-01-01T00:00:00.000+00:00"}  # fmt: skip
        if np.isnan(report.rmse):
            metrics["rmse"] = None
        rows = report.user_rows, report.item_rows
        commit = store.commit(state, rows, batch, commit, metrics)


def _clear(store: VersionStore) -> None:
    """What `start_stream` clears up, and what a lease that is taken looks at."""
    newest = store.newest()
    assert newest is not None
    drop_old_checkpoints(store)
    drop_later_invalid(store, newest.batch)
    store.drop_broken_writes()


WORK = {
    "load": lambda store: store.load(),
    "versions, files there": lambda store: list_versions(store, False),
    "versions, checksums": lambda store: list_versions(store, True),
    "metrics": lambda store: store.metrics(),
    "newest": lambda store: store.newest(),
    "cleaning at a start": _clear,
    "prune, nothing to do": lambda store: store.prune(5, 86_400.0 * 365),
}


def measure(path: str, name: str) -> dict[str, float]:
    """Seconds and processor seconds of one piece of work, in this process."""
    store = VersionStore(path)
    clock, used = time.perf_counter(), time.process_time()
    WORK[name](store)
    return {"seconds": time.perf_counter() - clock, "processor": time.process_time() - used}


def main() -> None:
    """Make the path, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--versions", type=int, default=20_000)
    parser.add_argument("--path", default="", help="a path to keep, made where it is not there")
    parser.add_argument("--only", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        print(json.dumps(measure(given.path, given.only)))
        return
    with tempfile.TemporaryDirectory(prefix="versions-") as folder:
        path = given.path or f"{folder}/model"
        if not Path(path, "model.json").exists():
            clock = time.perf_counter()
            make(path, given.versions)
            print(f"{given.versions:,} versions made in {time.perf_counter() - clock:.0f} s")
        found: dict[str, Any] = {}
        for name in WORK:
            command = [sys.executable, __file__, "--path", path, "--only", name]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[name] = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{name:24}{found[name]['seconds']:8.2f} s"
                f"{found[name]['processor']:8.2f} s of a processor"
            )
        files = sum(len(names) for _, _, names in os.walk(path))
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"versions": given.versions, "files": files} | found, indent=2))


if __name__ == "__main__":
    main()
