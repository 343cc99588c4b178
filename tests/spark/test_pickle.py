"""pickle, joblib and copy of estimators, models and what they are searched with."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys

import pytest
from helpers import ONCE, assert_same_bits, long_after
from hypothesis import given
from hypothesis import strategies as st

from sparkml_sgdals import (
    RankingValidationSplit,
    StreamingBiasedALS,
    StreamingBiasedALSModel,
    StreamingGridSearch,
)

joblib = pytest.importorskip("joblib")


@pytest.fixture(scope="module")
def als():
    return StreamingBiasedALS(timestampCol="time", rank=3, maxIter=1, rankingSize=5)


@pytest.fixture(scope="module")
def fitted(als, ratings):
    return als.fit(ratings)


def by_pickle(stage, protocol=pickle.DEFAULT_PROTOCOL):
    return pickle.loads(pickle.dumps(stage, protocol))


def by_joblib(stage):
    held = io.BytesIO()
    joblib.dump(stage, held)
    held.seek(0)
    return joblib.load(held)


WAYS = [by_pickle, lambda stage: by_pickle(stage, 2), by_joblib, copy.deepcopy]


@pytest.mark.parametrize("way", long_after(1, WAYS))
def test_an_estimator(als, fitted, ratings, way):
    twin = way(als)
    assert twin.uid == als.uid
    assert twin.explainParams() == als.explainParams()
    assert_same_bits(twin.fit(ratings), fitted)
    with pytest.raises(ValueError, match="rank must be at least 1"):
        twin.setRank(0)
    twin.setRank(9)
    assert als.getRank() == 3


@given(
    rank=st.integers(1, 99), tol=st.floats(0, 1), solver=st.sampled_from(["bayes", "sgd", "ISGD"]),
    interval=st.sampled_from([-1, 1, 7]), column=st.text(min_size=1),
)  # fmt: skip
def test_params_of_any_value(rank, tol, solver, interval, column):
    given = {"rank": rank, "tol": tol, "solver": solver, "checkpointInterval": interval}
    stage = StreamingBiasedALS(userCol=column, **given)
    twin = by_pickle(stage)
    held = {param.name: value for param, value in stage.extractParamMap().items()}
    assert {param.name: value for param, value in twin.extractParamMap().items()} == held


@pytest.mark.parametrize("way", long_after(1, WAYS))
def test_a_model_that_has_been_used(fitted, ratings, small, way):
    model = fitted.copy()
    expected = [row.prediction for row in model.transform(ratings.limit(20)).collect()]
    model.recommendOne(1, 2)
    twin = way(model)
    assert_same_bits(twin, model)
    assert (twin.version, twin.uid, twin.idTypes) == (model.version, model.uid, model.idTypes)
    assert str(twin.summary) == str(model.summary)
    found = [row.prediction for row in twin.transform(ratings.limit(20)).collect()]
    assert sorted(found) == sorted(expected)
    before = model.state.fingerprint()
    twin.update(small[:20])
    assert model.state.fingerprint() == before
    again = model.copy().update(small[:20])
    assert_same_bits(twin, again)


def test_copies_still_share_until_one_learns(fitted, ratings, small):
    model = fitted.copy()
    model.transform(ratings)
    twin = model.copy()
    assert twin.state is model.state
    assert twin._frames is model._frames
    mark = model.state.fingerprint()
    twin.update(small[:20])
    assert model.state.fingerprint() == mark


def test_a_model_of_a_path_goes_on_there(als, files, stream, small, tmp_path):
    path = str(tmp_path / "model")
    folder = files(small[:400], 200)
    als.fitStream(stream(folder), path, trigger=ONCE).awaitTermination()
    twin = by_pickle(StreamingBiasedALSModel.load(path))
    assert twin.version == 2
    files(small[400:600], 200, first=2)
    job = twin.updateStream(stream(folder), path, trigger=ONCE)
    job.awaitTermination()
    assert job.model.version == 3


def test_what_searches_for_params(als):
    grid = [{als.rank: 2}, {als.rank: 4}]
    for search in (RankingValidationSplit(estimator=als, estimatorParamMaps=grid, k=5),
                   StreamingGridSearch(estimator=als, estimatorParamMaps=grid)):  # fmt: skip
        assert by_pickle(search).explainParams() == search.explainParams()


@pytest.mark.long
def test_another_process_needs_no_spark(fitted, small, tmp_path):
    file = tmp_path / "model.pickle"
    file.write_bytes(pickle.dumps(fitted))
    user, item = int(small["user"][0]), int(small["item"][0])
    program = (
        "import pickle, sys; from pyspark import SparkContext; "
        "model = pickle.load(open(sys.argv[1], 'rb')); "
        f"print(model.predictOne({user}, {item}), SparkContext._active_spark_context)"
    )
    told = subprocess.run(
        [sys.executable, "-c", program, file], capture_output=True, text=True, check=True
    ).stdout.split()
    assert float(told[0]) == fitted.predictOne(user, item)
    assert told[1] == "None"
