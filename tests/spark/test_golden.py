"""Models saved by earlier releases: loaded, as they were, able to go on and to be saved again."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_same_bits

from sparkml_sgdals import StreamingBiasedALSModel
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


def digest(folder):
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return [(str(f.relative_to(folder)), hashlib.sha256(f.read_bytes()).hexdigest()) for f in files]


def check(model, expected, spark, atol=2e-5):
    found = make.described(model, spark)
    assert [row[:2] for row in found["predictions"]] == [row[:2] for row in expected["predictions"]]
    numbers = [np.array([row[2:] for row in d["predictions"]]) for d in (found, expected)]
    assert np.isfinite(numbers[1]).all()
    np.testing.assert_allclose(numbers[0], numbers[1], rtol=0, atol=atol, equal_nan=False)
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
    # later releases load an old model as it was, and may learn better from then on
    (metadata,) = (folder / "model" / "metadata").glob("part-*")
    present = json.loads(metadata.read_text())["formatVersion"] == FORMAT_VERSION
    check(model, expected["model updated"], spark, 2e-5 if present else 0.5)
    model.write().save(str(tmp_path / "again"))
    assert_same_bits(StreamingBiasedALSModel.load(str(tmp_path / "again")), model)


@pytest.mark.parametrize("name", ["path", "runs"])
def test_model_path(golden, spark, tmp_path, name):
    folder, expected = golden
    if name == "runs" and json.loads((folder / "path/model.json").read_text())["format"] < 3:
        # models larger than memory came with format 3
        assert not (folder / name).exists()
        return
    for version in (1, 2):
        model = StreamingBiasedALSModel.load(str(folder / name), version)
        check(model, expected[f"{name} {version}"], spark)
    newest = StreamingBiasedALSModel.load(str(folder / name))
    assert_same_bits(newest, model)
    newest.update(spark.createDataFrame(make.UPDATE, make.SCHEMA))
    assert newest.version == 3
    newest.write().save(str(tmp_path / "again"))
    assert_same_bits(StreamingBiasedALSModel.load(str(tmp_path / "again")), newest)
