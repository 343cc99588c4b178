"""Comparisons that do not pass by accident: NaN, arrays and order are looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

ONCE = {"availableNow": True}


def factors(model: Any) -> dict[str, tuple[np.ndarray, ...]]:
    """The state of both sides of a model, sorted by id, as arrays."""
    found = {}
    for name, side in (("users", model.state.users), ("items", model.state.items)):
        table = side.to_arrow()
        width = side.mean.shape[1]
        mean = table.column("mean").combine_chunks().flatten().to_numpy(zero_copy_only=False)
        var = table.column("variance").combine_chunks().flatten().to_numpy(zero_copy_only=False)
        ids = np.array(table.column("id").to_pylist())
        counts = table.column("count").to_numpy()
        found[name] = (ids, mean.reshape(-1, width), var, counts)
    return found


def assert_same_bits(one: Any, other: Any) -> None:
    """Both models know the same ids and hold the same bits."""
    for name, left in factors(one).items():
        right = factors(other)[name]
        for a, b in zip(left, right, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)
    assert one.state.scalars() == other.state.scalars()
    assert one.state.fingerprint() == other.state.fingerprint()


def predictions(frame: Any, by: list[str], column: str = "prediction") -> np.ndarray:
    """A column of predictions in the order of other columns; NaN stays NaN."""
    rows = frame.select(*by, column).toPandas().sort_values(by)
    return rows[column].to_numpy(dtype=float)


def rmse(model: Any, held: pd.DataFrame, spark: Any) -> float:
    """RMSE of a model's transform on held-out ratings; NaN where a prediction is."""
    scored = model.transform(spark.createDataFrame(held)).toPandas()
    assert len(scored) == len(held)
    return float(np.sqrt(np.mean((scored.prediction - scored.rating) ** 2)))
