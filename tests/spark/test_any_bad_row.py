"""A row of any content among a thousand good ones: set aside and found, or harmless."""

from __future__ import annotations

import json
import math
from datetime import datetime
from itertools import count

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from feeding import COUNT, ratings
from helpers import ONCE, long_after
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyspark.ml.tuning import ParamGridBuilder

from sparkml_sgdals import StreamingBiasedALS, StreamingBiasedALSModel
from sparkml_sgdals.race.grid_search import StreamingGridSearch

SCHEMA = "user bigint, item bigint, rating double, time timestamp, weight double, event string"
NUMBERS = st.one_of(
    st.none(), st.floats(), st.floats(-60, 60),
    st.sampled_from([0.0, 1e4, 1e6, 1e20, 1e300, math.nan, math.inf]),
)  # fmt: skip
IDS = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1))
TIMES = st.one_of(
    st.none(), st.datetimes(pd.Timestamp("1800-01-01"), pd.Timestamp("9999-12-31")),
)  # fmt: skip
ODD = st.one_of(
    *(st.fixed_dictionaries({name: IDS}) for name in ("user", "item")),
    *(st.fixed_dictionaries({name: NUMBERS}) for name in ("rating", "weight")),
    st.fixed_dictionaries({"time": TIMES}),
    st.fixed_dictionaries({"rating": NUMBERS, "weight": NUMBERS, "time": TIMES, "user": IDS}),
)
PLACES = st.sampled_from([0, 0, 1, 500, COUNT])
NUMBER = count()


def few(examples: int):
    return settings(
        max_examples=examples, deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )  # fmt: skip


@pytest.fixture
def als():
    return StreamingBiasedALS(timestampCol="time", weightCol="weight", rank=4, maxIter=2)


def with_row(rows: slice, place: int | None = None, odd: dict | None = None) -> pa.Table:
    """Good ratings, and a row that is like the first one but for some columns."""
    columns = {name: ratings()[name][rows].tolist() for name in ("user", "item", "rating")}
    size = len(columns["user"])
    start = pd.Timestamp("2024-05-01")
    columns["time"] = [start + pd.Timedelta(seconds=n) for n in range(size)]
    columns["weight"] = [1.0] * size
    columns["event"] = [f"e{n}" for n in range(rows.start or 0, (rows.start or 0) + size)]
    if place is not None:
        good = {name: values[0] for name, values in columns.items()}
        for name, value in (good | {"event": "odd"} | (odd or {})).items():
            columns[name].insert(place, value)
    types = {
        "user": pa.int64(), "item": pa.int64(), "rating": pa.float64(),
        "time": pa.timestamp("us", "UTC"), "weight": pa.float64(), "event": pa.string(),
    }  # fmt: skip
    return pa.table({name: pa.array(values, types[name]) for name, values in columns.items()})


def error(model) -> float:
    """RMSE on held-out ratings of others."""
    state = model.state
    held = {name: column[COUNT:] for name, column in ratings().items()}
    rows = [
        side.index.find(pa.array(held[name]))
        for name, side in (("user", state.users), ("item", state.items))
    ]
    predictions = state.clip(state.predict(*rows)[0])
    return float(np.sqrt(np.mean((predictions - held["rating"]) ** 2)))


def within(model, clean: float) -> None:
    found = error(model)
    assert found < 1.01 * clean, found / clean


def learn_stream(starts, tables, spark, folder):
    """Write tables as files of a stream, a batch each, and learn them."""
    inbox = folder / f"in-{next(NUMBER)}"
    inbox.mkdir()
    for number, table in enumerate(tables):
        pa.parquet.write_table(table, inbox / f"{number:03d}.parquet")
    stream = (
        spark.readStream.schema(SCHEMA).option("maxFilesPerTrigger", 1).parquet(f"file:{inbox}")
    )
    path = folder / f"model-{next(NUMBER)}"
    job = starts(stream, str(path), trigger=ONCE)
    job.awaitTermination()
    return job, path


def accounted(job, path, rows: int) -> None:
    """Each row was learned, weighs nothing, or lies where it can be found."""
    metrics = job.metrics()
    aside = int(metrics.invalid.sum())
    assert metrics.ratings.sum() + aside + metrics.zeroWeight.sum() == rows
    assert aside <= 1
    if aside:
        (row,) = pd.read_parquet(path / "invalid").row
        assert "item" in json.loads(row) or "user" in json.loads(row)
        assert metrics.faults.notna().sum() == 1
    assert StreamingBiasedALSModel.load(str(path)).state.fingerprint() == (
        job.model.state.fingerprint()
    )


@pytest.fixture
def clean(als, spark):
    """The RMSE of a fit without an odd row, and of one that was updated."""
    model = als.fit(spark.createDataFrame(with_row(slice(COUNT))))
    half = als.fit(spark.createDataFrame(with_row(slice(COUNT // 2))))
    half.update(spark.createDataFrame(with_row(slice(COUNT // 2, COUNT))))
    return error(model), error(half)


@pytest.mark.long
def test_fit_and_update(als, spark, clean):
    half = als.fit(spark.createDataFrame(with_row(slice(COUNT // 2))))
    careful = als.copy({als.handleInvalid: "skip", als.ratingRange: [0.5, 5.0]})

    @given(ODD, PLACES)
    @few(8)
    def tried(odd, place):
        within(careful.fit(spark.createDataFrame(with_row(slice(COUNT), place, odd))), clean[0])
        model = half.copy({half.handleInvalid: "skip"})
        place = min(place, COUNT // 2)
        model.update(spark.createDataFrame(with_row(slice(COUNT // 2, COUNT), place, odd)))
        within(model, clean[1])

    tried()


@pytest.mark.long
@pytest.mark.parametrize(
    "repeats", [False, pytest.param(True, marks=pytest.mark.nightly)], ids=["", "eventIdCol"]
)
def test_stream(als, spark, tmp_path, repeats):
    def starts(*args, **options):
        return als.fitStream(*args, **options, **({"eventIdCol": "event"} if repeats else {}))

    rest = with_row(slice(COUNT // 2, COUNT))
    job, _ = learn_stream(starts, [with_row(slice(COUNT // 2)), rest], spark, tmp_path)
    usual = error(job.model)

    @given(ODD, PLACES)
    @few(4)
    @example({"rating": 1e6}, 0)
    @example({"rating": 49.0, "weight": 1e20}, 500)
    @example({"time": datetime(9999, 12, 31)}, 1)
    def tried(odd, place):
        first = with_row(slice(COUNT // 2), min(place, COUNT // 2), odd)
        # alone in its batch where it is the first one
        alone = [first[:1], first[1:]] if place == 0 else [first]
        job, path = learn_stream(starts, [*alone, rest], spark, tmp_path)
        within(job.model, usual)
        late = int(job.metrics().late.sum())
        assert late <= 1
        accounted(job, path, COUNT + 1 - late)

    tried()


@pytest.mark.long
def test_race(als, spark, tmp_path):
    grid = ParamGridBuilder().addGrid(als.rank, [2, 4]).build()
    search = StreamingGridSearch(estimator=als, estimatorParamMaps=grid)
    job, _ = learn_stream(search.fitStream, [with_row(slice(COUNT))], spark, tmp_path)
    usual = error(job.model)

    @given(ODD, PLACES)
    @few(3)
    @example({"rating": 1e6}, 0)
    def tried(odd, place):
        table = with_row(slice(COUNT), place, odd)
        parts = [table[:1], table[1:]] if place == 0 else [table]
        job, path = learn_stream(search.fitStream, parts, spark, tmp_path)
        within(job.model, usual)
        accounted(job, path, COUNT + 1)
        assert not job.race().dropped.any()

    tried()


@pytest.mark.long
@pytest.mark.parametrize("solver", long_after(1, ["bayes", "isgd"]))
def test_events(als, spark, tmp_path, solver):
    """No rating of an event is too large; one that learning diverges from is set aside."""
    events = StreamingBiasedALS(
        timestampCol="time", weightCol="weight", rank=4, implicitPrefs=True, ratingCol="rating",
        solver=solver,
    )  # fmt: skip

    @given(ODD, PLACES)
    @few(3)
    @example({"rating": 1e30}, 0)
    def tried(odd, place):
        table = with_row(slice(COUNT), place, odd)
        job, path = learn_stream(events.fitStream, [table[:200], table[200:]], spark, tmp_path)
        accounted(job, path, COUNT + 1)
        state = job.model.state
        assert np.isfinite(state.users.mean).all()
        assert np.isfinite(state.items.mean).all()
        # of the others each is as well known as it was
        assert (np.linalg.norm(state.items.mean, axis=1) > 0).sum() >= 40

    tried()
