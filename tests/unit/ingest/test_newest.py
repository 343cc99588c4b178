"""The newest rating of each pair of a batch, against pandas."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkml_sgdals.ingest.newest import newest_rows


@given(st.integers(0, 2**32 - 1), st.integers(0, 60), st.booleans(), st.booleans())
def test_newest_of_each_pair(seed, count, strings, weighted):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "user": rng.integers(-3, 3, count), "item": rng.integers(0, 4, count),
            "time": rng.integers(0, 5, count),
            "rating": rng.integers(1, 6, count).astype(np.float32),
            **({"weight": rng.integers(0, 3, count).astype(np.float32)} if weighted else {}),
        }
    )  # fmt: skip
    if strings:
        frame["item"] = "i" + frame["item"].astype(str)
    by = ["time", "rating", *(["weight"] if weighted else [])]
    expected = frame.sort_values(by, kind="stable").groupby(["user", "item"]).tail(1).sort_index()
    found = newest_rows(pa.Table.from_pandas(frame, preserve_index=False)).to_pandas()
    pd.testing.assert_frame_equal(
        found, expected.reset_index(drop=True), check_dtype=False, check_index_type=False
    )


@pytest.mark.parametrize("chunks", [1, 3])
def test_of_a_table_in_pieces(chunks):
    part = pa.table({"user": [1, 1], "item": [2, 2], "time": [5, 4], "rating": [1.0, 2.0]})
    assert newest_rows(pa.concat_tables([part] * chunks)).to_pylist() == [
        {"user": 1, "item": 2, "time": 5, "rating": 1.0}
    ]
