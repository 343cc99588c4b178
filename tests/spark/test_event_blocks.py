"""Tables of events in blocks on Spark: as good as in one task, to the same bits however cut."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_same_bits
from pyspark.sql import functions as F

from sparkml_sgdals import StreamingBiasedALS


@pytest.fixture(scope="module")
def liked(small):
    """The pairs of `small` with a good rating, weighted."""
    good = small[small.rating >= 3.5].drop_duplicates(["user", "item"])[["user", "item", "time"]]
    return good.assign(weight=np.where(good.time % 3 == 0, 0.5, 1.0)).reset_index(drop=True)


@pytest.fixture
def als():
    return StreamingBiasedALS(implicitPrefs=True, rank=6, weightCol="weight", maxIter=3)


@pytest.mark.long
@pytest.mark.parametrize("blocks", [2, 3])
def test_as_in_one_task(als, liked, spark, blocks):
    frame = spark.createDataFrame(liked)
    one, model = (als.copy({als.numBlocks: n}).fit(frame) for n in (1, blocks))
    assert model.summary.form == f"{blocks} blocks"
    assert model.state.regularisation == one.state.regularisation
    assert all(model.state.regularisation)
    assert model.summary.rmse == pytest.approx(one.summary.rmse, rel=1e-4)
    assert model.state.scalars() == one.state.scalars()
    for name in ("users", "items"):
        found, expected = (getattr(m.state, name).to_arrow() for m in (model, one))
        assert found.drop_columns("taste").equals(expected.drop_columns("taste"))
        features = [
            np.array(table.column("taste").to_pylist(), np.float32) for table in (found, expected)
        ]
        np.testing.assert_allclose(*features, rtol=1e-3, atol=1e-5)
    best = [
        {r.user: [s.item for s in r.recommendations] for r in m.recommendForAllUsers(5).collect()}
        for m in (one, model)
    ]
    shared = [len(set(items) & set(best[1][user])) / 5 for user, items in best[0].items()]
    assert np.mean(shared) > 0.99
    # it goes on as any other model: by the filter, which learns from what users have done
    some = spark.createDataFrame(liked.iloc[:50])
    for m in (one, model):
        m.update(some)
    assert model.state.counters == one.state.counters


@pytest.mark.long
def test_same_bits_however_cut(als, liked, spark):
    als = als.copy({als.numBlocks: 3})
    frame = spark.createDataFrame(liked)
    model = als.fit(frame)
    shuffled = frame.orderBy(F.rand(3)).repartition(7)
    assert_same_bits(model, als.copy({als.numThreads: 3}).fit(shuffled))
    assert_same_bits(model, als.copy({als.numThreads: 1}).fit(frame.coalesce(1)))
    assert_same_bits(model, als.copy({als.checkpointInterval: 2}).fit(frame))
    assert_same_bits(model, als.copy({als.checkpointInterval: -1}).fit(frame))


@pytest.mark.long
def test_same_bits_from_files_and_rows(als, liked, spark, monkeypatch, tmp_path):
    als = als.copy({als.numBlocks: 3, als.maxIter: 2})
    named = liked.assign(item="i" + liked.item.astype(str))
    frame = spark.createDataFrame(named)
    monkeypatch.setenv("SPARK_LOCAL_DIRS", str(tmp_path))
    files = als.fit(frame)
    assert not list(Path(tmp_path).glob("sparkml*"))
    monkeypatch.setattr(
        "sparkml_sgdals.fit.blocks.driver.block_folder",
        lambda spark: contextlib.nullcontext(None),
    )
    rows = als.fit(frame)
    assert_same_bits(files, rows)
    assert files.summary.rmse == rows.summary.rmse


@pytest.mark.long
@pytest.mark.parametrize("interval", [3, -1])
def test_sweeps_end_once_they_settle(als, liked, spark, interval):
    """With the bits of a fit of so many sweeps."""
    als = als.copy({als.numBlocks: 2, als.checkpointInterval: interval, als.regParam: 0.05})
    frame = spark.createDataFrame(liked)
    stopped, early = als.fit(frame, [{als.maxIter: 12, als.tol: 0.02}, {als.maxIter: 2}])
    sweeps = stopped.summary.totalIterations
    assert 3 <= sweeps < 12
    assert len(stopped.summary.rmse) == sweeps
    assert_same_bits(stopped, als.copy({als.maxIter: sweeps, als.tol: 0.0}).fit(frame))
    assert early.summary.totalIterations == 2
    # a single stop: all steps in one stage
    alone = als.copy({als.maxIter: 12, als.tol: 0.02})
    assert_same_bits(stopped, alone.fit(frame))
    one = alone.copy({als.numBlocks: 1}).fit(frame)
    assert one.summary.totalIterations == sweeps
    assert stopped.state.regularisation == (0.05, 0.05)


def test_large_and_more_blocks_than_ids(als, spark):
    frame = spark.createDataFrame(
        [(n % 3, n % 2, 1.0) for n in range(6)], "user long, item long, weight double"
    )
    model = als.copy({als.maxRatingsPerTask: 2, als.maxIter: 1}).fit(frame)
    assert model.summary.form == "6 blocks"
    assert (model.state.users.size, model.state.items.size) == (3, 2)
    assert all(len(done) == 2 for done in model.state.users.memory.done)
