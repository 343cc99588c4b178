"""Golden models: loaded, as they were, able to go on and to be saved again; others are refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from formats import OLDER, REFUSED, as_format, digest
from helpers import assert_same_bits

from sparkml_sgdals import StreamingBiasedALS, StreamingBiasedALSModel
from sparkml_sgdals.errors import StorageError
from sparkml_sgdals.store.commit import FORMAT_VERSION

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
FORMATS = sorted(GOLDEN.glob("format-*"))

_spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
make = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make)


@pytest.fixture(params=FORMATS, ids=lambda folder: folder.name)
def golden(request, tmp_path):
    """A copy of the folder of a format, and what is expected of it; reading changes nothing."""
    shutil.copytree(request.param, tmp_path / "golden")
    folder = tmp_path / "golden"
    before = digest(folder)
    yield folder, json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    assert digest(folder) == before


def check(model, expected, spark):
    found = make.described(model, spark)
    assert [row[:2] for row in found["predictions"]] == [row[:2] for row in expected["predictions"]]
    numbers = [np.array([row[2:] for row in d["predictions"]]) for d in (found, expected)]
    assert np.isfinite(numbers[1]).all()
    np.testing.assert_allclose(numbers[0], numbers[1], rtol=0, atol=2e-5, equal_nan=False)
    for name, value in expected.items():
        if name != "predictions":
            assert found[name] == value, name


def test_there_is_one_of_the_present_format():
    assert f"format-{FORMAT_VERSION}" in [folder.name for folder in FORMATS]


def test_saved_model(golden, spark, tmp_path):
    folder, expected = golden
    model = StreamingBiasedALSModel.load(str(folder / "model"))
    check(model, expected["model"], spark)
    model.update(spark.createDataFrame(make.UPDATE, make.SCHEMA))
    check(model, expected["model updated"], spark)
    model.write().save(str(tmp_path / "again"))
    assert_same_bits(StreamingBiasedALSModel.load(str(tmp_path / "again")), model)


@pytest.mark.parametrize(
    "folder", sorted(GOLDEN.glob("features-*")), ids=lambda folder: folder.name
)
def test_saved_model_with_features(folder, spark, tmp_path):
    before = digest(folder)
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    model = StreamingBiasedALSModel.load(str(folder / "model"))
    check(model, expected["model"], spark)
    weights = {row.feature: row.bias for row in model.featureWeights.collect()}
    assert weights == pytest.approx(expected["weights"], abs=1e-6)
    assert model.state.features[1].names == ("year", "genres=Comedy", "genres=Drama", "genres=War")
    model.update(spark.createDataFrame(make.UPDATE, make.SCHEMA))
    check(model, expected["model updated"], spark)
    model.write().save(str(tmp_path / "again"))
    assert_same_bits(StreamingBiasedALSModel.load(str(tmp_path / "again")), model)
    assert digest(folder) == before


@pytest.mark.parametrize("name", ["path", "runs"])
def test_model_path(golden, spark, tmp_path, name):
    folder, expected = golden
    for version in (1, 2):
        model = StreamingBiasedALSModel.load(str(folder / name), version)
        check(model, expected[f"{name} {version}"], spark)
    newest = StreamingBiasedALSModel.load(str(folder / name))
    assert_same_bits(newest, model)
    newest.update(spark.createDataFrame(make.UPDATE, make.SCHEMA))
    assert newest.version == 3
    newest.write().save(str(tmp_path / "again"))
    assert_same_bits(StreamingBiasedALSModel.load(str(tmp_path / "again")), newest)


@pytest.mark.parametrize("number", [*OLDER, FORMAT_VERSION + 1])
@pytest.mark.parametrize("place", ["model", "path"])
def test_another_format_is_refused(spark, tmp_path, place, number):
    path = as_format(number, place, tmp_path / "other")
    sentence = REFUSED.format(number) if number in OLDER else f"format {number}, .* upgrade"
    with pytest.raises(StorageError, match=sentence) as raised:
        StreamingBiasedALSModel.load(str(path))
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("number", OLDER)
def test_no_stream_goes_on_with_an_older_format(spark, tmp_path, number):
    path = as_format(number, "path", tmp_path / "older")
    before = digest(path)
    (tmp_path / "in").mkdir()
    stream = spark.readStream.schema(make.SCHEMA).csv(str(tmp_path / "in"))
    als = StreamingBiasedALS(rank=3, timestampCol="time", seed=9)
    model = StreamingBiasedALSModel.load(str(GOLDEN / "format-3" / "path"))
    for start in (
        als.fitStream, model.updateStream, StreamingBiasedALSModel.resumeStream,
    ):  # fmt: skip
        with pytest.raises(StorageError, match=REFUSED.format(number)):
            start(stream, str(path))
    assert digest(path) == before
