"""A saved model, served as it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from formats import OLDER, REFUSED, as_format

from sparkml_sgdals import Predictor
from sparkml_sgdals.errors import StorageError
from sparkml_sgdals.serving.http.routes import make_app
from sparkml_sgdals.serving.server import build_service, serve

SAVED = str(Path(__file__).resolve().parent.parent / "golden" / "format-3" / "model")


@pytest.fixture
def client(tmp_path):
    service = build_service(SAVED, str(tmp_path))
    with TestClient(make_app(service)) as client:
        yield client
    service.answers.holder.close()


def test_answers_are_those_of_the_model(client):
    predictor = Predictor.load(SAVED)
    one = client.get("/predictions/u3/7").json()
    expected = predictor.predict(["u3"], [7])
    assert one["prediction"] == pytest.approx(expected.prediction[0], abs=1e-5)
    assert one["std"] == pytest.approx(expected["std"][0], abs=1e-5)
    best = client.get("/recommendations/u3?n=4").json()["items"]
    wanted = predictor.recommend(["u3"], 4)
    assert [row["item"] for row in best] == wanted.item.tolist()
    # this model was saved with clipPredictions=False, as its answers show
    assert [row["prediction"] for row in best] == pytest.approx(wanted.rating.tolist(), abs=1e-5)
    assert client.get("/recommendations/nobody").json()["cold"]


def test_takes_no_ratings(client, tmp_path):
    assert client.post("/ratings", json={"user": "u3", "item": 7, "rating": 4}).status_code == 403
    with pytest.raises(ValueError, match="is a saved model, which learns nothing"):
        serve(SAVED, inbox=str(tmp_path / "inbox"))


@pytest.mark.parametrize("number", OLDER)
@pytest.mark.parametrize("place", ["model", "path"])
def test_an_older_format_is_refused_at_the_start(tmp_path, place, number):
    path = as_format(number, place, tmp_path / "old")
    with pytest.raises(StorageError, match=REFUSED.format(number)):
        serve(str(path))


def test_the_folder_of_factors_is_made(tmp_path):
    """A volume that is new has no folders in it."""
    program = (
        "import os, signal, sys\nfrom sparkml_sgdals.serving import serve\n"
        "def started(address):\n    print(os.listdir(sys.argv[2]))\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "serve(sys.argv[1], port=0, cache=sys.argv[2], started=started)\n"
    )
    cache = tmp_path / "new" / "factors"
    done = subprocess.run([sys.executable, "-c", program, SAVED, str(cache)], check=False,
                          capture_output=True, text=True, timeout=120)  # fmt: skip
    assert "sparkml-sgdals-" in done.stdout, done.stderr
