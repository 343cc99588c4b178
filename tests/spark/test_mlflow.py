"""Log a model to MLflow, load it for Spark, and as a pyfunc in a process that has no Spark."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from formats import OLDER, REFUSED, rewrite
from helpers import assert_same_bits

mlflow = pytest.importorskip("mlflow")

from sparkml_sgdals import StreamingBiasedALS  # noqa: E402
from sparkml_sgdals.errors import StorageError  # noqa: E402
from sparkml_sgdals.mlflow import load_model, log_model  # noqa: E402

WITHOUT_SPARK = """
import sys
import mlflow, pandas as pd
served = mlflow.pyfunc.load_model(sys.argv[1])
pairs = pd.read_json(sys.argv[2], orient="split")
pairs.join(served.predict(pairs)).to_json(sys.argv[3], orient="split", double_precision=15)
best = served.predict(pairs[["user"]].drop_duplicates(), params={"n": 3})
best.to_json(sys.argv[4], orient="split", double_precision=15)
from pyspark.sql import SparkSession
assert SparkSession.getActiveSession() is None
assert "py4j.java_gateway" not in sys.modules or SparkSession._instantiatedSession is None
"""


@pytest.fixture
def uri(tmp_path, monkeypatch):
    """A tracking store of files."""
    # mlflow-skinny has no database
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/tracking")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"file:{tmp_path}/tracking")
    yield
    mlflow.set_tracking_uri(before)


@pytest.mark.long
def test_logged_loaded_and_served(uri, ratings, small, spark, tmp_path):
    model = StreamingBiasedALS(rank=4, timestampCol="time", predictionStdCol="std").fit(ratings)
    with mlflow.start_run():
        logged = log_model(model, "films")
    loaded = load_model(logged.model_uri)
    assert_same_bits(loaded, model)
    assert loaded.getPredictionStdCol() == "std"
    loaded.update(spark.createDataFrame(small.head(50)))
    assert loaded.version == 1

    pairs = small[["user", "item"]].head(40)
    pairs.to_json(tmp_path / "pairs.json", orient="split")
    arguments = [logged.model_uri, *(str(tmp_path / f"{n}.json") for n in ("pairs", "out", "best"))]
    subprocess.run([sys.executable, "-c", WITHOUT_SPARK, *arguments], check=True, cwd=tmp_path)
    scored = pd.read_json(tmp_path / "out.json", orient="split")
    expected = model.transform(spark.createDataFrame(pairs)).toPandas()
    keys = ["user", "item"]
    both = scored.merge(expected.drop_duplicates(keys), on=keys, suffixes=("", "_spark"))
    assert len(both) == len(pairs)
    np.testing.assert_allclose(both.prediction, both.prediction_spark, atol=1e-5)
    np.testing.assert_allclose(both["std"], both.std_spark, atol=1e-5)
    best = pd.read_json(tmp_path / "best.json", orient="split")
    users = spark.createDataFrame(pairs[["user"]].drop_duplicates())
    for row in model.recommendForUserSubset(users, 3).collect():
        own = best[best.user == row.user]
        assert own.item.tolist() == [r.item for r in row.recommendations]
        np.testing.assert_allclose(own.rating, [r.rating for r in row.recommendations], atol=1e-5)


@pytest.mark.long
def test_features_are_logged(uri, ratings, small, spark):
    """What they say stands in what is logged, and items that they brought are served by it."""
    items = small.item.unique()
    films = pd.DataFrame({"item": items, "genre": np.where(items % 2, "Comedy", "War")})
    model = StreamingBiasedALS(rank=4).setItemFeatures(spark.createDataFrame(films)).fit(ratings)
    model = model.withItems(
        spark.createDataFrame([(99_001, "Comedy"), (99_002, "War")], "item long, genre string")
    )
    with mlflow.start_run():
        logged = log_model(model, "films")
    loaded = load_model(logged.model_uri)
    assert_same_bits(loaded, model)
    assert loaded.featureWeights.count() == 2
    user = int(small.user.iloc[0])
    pairs = pd.DataFrame({"user": [user, user], "item": [99_001, 99_002]})
    served = mlflow.pyfunc.load_model(logged.model_uri).predict(pairs)
    expected = model.transform(spark.createDataFrame(pairs)).orderBy("item").toPandas()
    np.testing.assert_allclose(served.prediction, expected.prediction, atol=1e-5)
    assert abs(served.prediction[0] - served.prediction[1]) > 1e-3


@pytest.mark.long
def test_a_logged_model_of_an_older_format_is_refused(uri, ratings, tmp_path):
    with mlflow.start_run():
        logged = log_model(StreamingBiasedALS(rank=2).fit(ratings), "films")
    folder = mlflow.artifacts.download_artifacts(artifact_uri=logged.model_uri)
    (path,) = Path(folder).rglob("model.json")
    for number in OLDER:
        rewrite(path, format=number)
        for load in (load_model, mlflow.pyfunc.load_model):
            with pytest.raises(StorageError, match=REFUSED.format(number)):
                load(folder)
