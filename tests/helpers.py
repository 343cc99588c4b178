"""Comparisons that do not pass by accident: NaN, arrays and order are looked at."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import functions as F

from sparkml_sgdals.state.model_state import ModelState

ONCE = {"availableNow": True}

# for tests with the fixture `first_version`
IN_RUNS_NIGHTLY = pytest.mark.parametrize(
    "first_version",
    ["whole", pytest.param("in runs", marks=pytest.mark.nightly)],
    indirect=True,
)


def long_after(kept: int, cases: Iterable[Any]) -> list[Any]:
    """Cases of a parametrized test: after the first ones each is a further one, and `long`."""
    found = [case if isinstance(case, tuple) else (case,) for case in cases]
    marks = [()] * kept + [pytest.mark.long] * (len(found) - kept)
    return [pytest.param(*case, marks=mark) for case, mark in zip(found, marks, strict=True)]


def factors(model: Any) -> dict[str, tuple[np.ndarray, ...]]:
    """The state of both sides of a model, sorted by id, as arrays; a NaN in it fails."""
    found = {}
    state = whole_state(model)
    for name, side in (("users", state.users), ("items", state.items)):
        table = side.to_arrow()
        width = side.mean.shape[1]
        mean = table.column("mean").combine_chunks().flatten().to_numpy(zero_copy_only=False)
        var = table.column("variance").combine_chunks().flatten().to_numpy(zero_copy_only=False)
        ids = np.array(table.column("id").to_pylist())
        counts = table.column("count").to_numpy()
        # NumPy's comparisons take two NaN for equal, and no model may hold one
        assert np.isfinite(mean).all(), f"a mean of {name} is not finite"
        assert np.isfinite(var).all(), f"a variance of {name} is not finite"
        found[name] = (ids, mean.reshape(-1, width), var, counts)
    return found


def assert_same_bits(one: Any, other: Any) -> None:
    """Both models know the same ids and hold the same bits, none of them NaN."""
    others = factors(other)
    for name, left in factors(one).items():
        for a, b in zip(left, others[name], strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name, strict=True)
    assert one.state.scalars() == other.state.scalars()
    assert whole_state(one).fingerprint() == whole_state(other).fingerprint()


def whole_state(model: Any) -> ModelState:
    """All rows of a model, wherever they are."""
    stored = getattr(model, "_stored", None)
    return model.state if stored is None else stored.whole()


def predictions(
    frame: Any, by: list[str], column: str = "prediction", nan: bool = False
) -> np.ndarray:
    """A column of predictions in the order of other columns.

    A null fails, a NaN too unless `nan`: two columns that hold nothing else would compare as equal.
    """
    rows = frame.select(*by, column, F.col(column).isNull().alias("__null")).toPandas()
    assert not rows["__null"].any(), f"{column} is null"
    found = rows.sort_values(by, kind="stable")[column].to_numpy(dtype=float)
    assert nan or not np.isnan(found).any(), f"{column} is NaN"
    return found


def rmse(model: Any, held: pd.DataFrame, spark: Any) -> float:
    """RMSE of a model's transform on held-out ratings; a NaN or a row too few or many fails."""
    scored = model.transform(spark.createDataFrame(held)).toPandas()
    assert len(scored) == len(held), f"{len(held)} rows became {len(scored)}"
    found = float(np.sqrt(np.mean((scored.prediction.to_numpy() - scored.rating.to_numpy()) ** 2)))
    assert np.isfinite(found), "a prediction or a rating is NaN"
    return found


def in_order(state: ModelState, user_row: int, sign: int) -> list:
    """All items with their scores, best first, equal ones by id: the definition, in float64."""
    items = np.arange(state.items.size)
    scores, variances = state.predict(np.full(items.size, user_row), items)
    scores = scores.astype(np.float64) + sign * np.sqrt(variances.astype(np.float64))
    ids = state.items.index.ids().to_pylist()
    return sorted(zip(scores.tolist(), ids, strict=True), key=lambda pair: (-pair[0], pair[1]))
