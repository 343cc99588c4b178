"""Spark's daemon of Python workers, with all that tasks run loaded before it starts a worker.

A worker imports and loads kernels for a second and a half, and after each task collects garbage
among all that lies in it, which takes longer than a task of a small table. What the daemon has
loaded its workers share from their start, and garbage is not looked for in it.
"""

from __future__ import annotations

import gc
import pkgutil
from importlib import import_module

import numpy as np
import pyarrow as pa
import pyspark.worker  # noqa: F401
from pyspark.daemon import manager

from sparkml_sgdals import StreamingBiasedALS
from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.learn.whole_table import fit_ratings
from sparkml_sgdals.state.model_state import ModelState

FLOORS = ("arrays", "fit", "ingest", "kernels", "learn", "predict", "state", "store", "stream")


def load() -> None:
    """Import the modules that tasks use, and load the kernels of fits of ratings."""
    for floor in FLOORS:
        package = import_module(f"sparkml_sgdals.{floor}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            import_module(module.name)
    rng = np.random.default_rng(0)
    ratings = pa.table(
        {
            "user": rng.integers(0, 20, 200),
            "item": rng.integers(0, 20, 200),
            "rating": rng.integers(1, 6, 200).astype(np.float32),
            "time": np.arange(200),
        }
    )
    for solver in ("bayes", "sgd", "minibatch"):
        settings = StreamingBiasedALS(solver=solver, rank=2, maxIter=1).settings()
        fit_ratings(encode_ratings(ratings), ModelState.empty(settings, "int", "int"))


if __name__ == "__main__":
    load()
    gc.collect()
    gc.freeze()
    manager()
