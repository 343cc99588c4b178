"""The endpoints, over a real model path."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pytest
from helpers import in_order

from sparkml_sgdals.serving.http import routes
from sparkml_sgdals.state.explaining import explain_pair
from sparkml_sgdals.store.maintenance import roll_back
from sparkml_sgdals.store.version_store import StorageError


@pytest.fixture(params=[("int", "int"), ("str", "str")], ids=["int", "str"])
def made(request, modeler):
    made = modeler(kinds=request.param)
    made.learn(made.ratings(30))
    return made


@pytest.fixture
def titles(made, tmp_path):
    file = tmp_path / "titles.csv"
    rows = [("movieId", "title")]
    rows += [
        (made.key(1, n), f"Film no. {n}: the Café of {'abcdefgh'[n % 8] * 3}") for n in range(30)
    ]
    file.write_text("".join(f'"{i}","{t}"\n' for i, t in rows), "utf-8")
    return str(file)


def at(key) -> str:
    return quote(str(key), safe="")


def test_recommendations(made, serving, titles):
    run = serving(made, titles=titles)
    user = made.key(0, 7)
    found = run.get(f"/recommendations/{at(user)}", n=6)
    row = int(made.state.users.index.find(pa.array([user]))[0])
    expected = in_order(made.state, row, 0)
    assert [one["item"] for one in found["items"]] == [i for _, i in expected[:6]]
    assert found["version"] == 1
    assert found["cold"] is False
    assert found["learned"] == made.state.users.count[row]
    best = found["items"][0]
    assert best["title"] == run.service.answers.titles.of(best["item"])
    assert best["reason"] is None
    pair = run.get(f"/predictions/{at(user)}/{at(best['item'])}")
    assert (pair["prediction"], pair["std"]) == (best["prediction"], best["std"])
    assert pair["cold"] is False


def test_filters(made, serving):
    run = serving(made)
    user = made.key(0, 7)
    whole = [i["item"] for i in run.get(f"/recommendations/{at(user)}", n=1000)["items"]]
    assert len(whole) == made.state.items.size
    url = f"/recommendations/{at(user)}"
    assert [i["item"] for i in run.get(url, n=3, items=whole[::4])["items"]] == whole[::4][:3]
    left = run.get(url, n=3, exclude=[whole[0], whole[2], "nothing"])["items"]
    assert [i["item"] for i in left] == [whole[1], whole[3], whole[4]]
    upper = [i["item"] for i in run.get(url, n=1000, rank_by="upper")["items"]]
    assert sorted(map(str, upper)) == sorted(map(str, whole))
    assert upper != whole
    assert run.get(url, n=3, items=["none of these"])["items"] == []
    # as most write a list in an address
    some = ",".join(map(str, whole[::4]))
    assert [i["item"] for i in run.get(url, n=3, items=some)["items"]] == whole[::4][:3]
    left = run.get(url, n=2, exclude=[f"{whole[0]},{whole[2]}", whole[1]])["items"]
    assert [i["item"] for i in left] == whole[3:5]
    for wrong in ({"n": 0}, {"n": 1001}, {"n": "x"}, {"rank_by": "best"}):
        run.get(url, status=422, **wrong)


def test_what_was_seen_is_left_out(made, serving, tmp_path):
    whole = serving(made)
    user = made.key(0, 7)
    best = [i["item"] for i in whole.get(f"/recommendations/{at(user)}", n=5)["items"]]
    file = tmp_path / "ratings.json"
    rows = [{"user": user, "item": item, "rating": 4.0} for item in best[:2]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = serving(made, ratings=str(file))
    url = f"/recommendations/{at(user)}"
    assert [i["item"] for i in run.get(url, n=3)["items"]] == best[2:5]
    assert [i["item"] for i in run.get(url, n=3, exclude_seen=False)["items"]] == best[:3]
    run.post("/ratings", {"user": user, "item": best[2], "rating": 3.0})
    assert [i["item"] for i in run.get(url, n=2)["items"]] == best[3:5]
    known = run.get(f"/users/{at(user)}/ratings")
    pairs = [(one["item"], one["rating"]) for one in known["ratings"]]
    assert set(pairs[:2]) == {(best[0], 4.0), (best[1], 4.0)}
    assert pairs[2:] == [(best[2], 3.0)]
    assert known["ratings"][2]["timestamp"] > 1_700_000_000
    assert known["learned"] == run.get(url)["learned"] > 3
    assert run.get("/users/nobody/ratings")["ratings"] == []


def test_a_user_not_known_is_served_by_mean_and_bias(made, serving):
    run = serving(made)
    state = made.state
    biases = state.items.mean[:, 0]
    expected = state.clip(state.scale.mean + state.scale.spread * np.sort(biases)[::-1][:4])
    for nobody in ("999999", "nobody", "0x1", "9" * 30, "-1", "a/b?c#d", "é%00", "1.5"):
        found = run.get(f"/recommendations/{at(nobody)}", n=4)
        assert found["cold"] is True
        assert found["learned"] == 0
        got = [one["prediction"] for one in found["items"]]
        np.testing.assert_allclose(got, expected, rtol=1e-5)
        pair = run.get(f"/predictions/{at(nobody)}/{at('no such item')}")
        assert pair["cold"]
        assert pair["prediction"] == pytest.approx(state.scale.mean, rel=1e-6)
        assert run.get(f"/explain/{at(nobody)}/{at('no such item')}")["because"] == []
    assert run.get("/similar/nothing") == {
        "item": "nothing", "title": None, "version": 1, "cold": True, "items": []
    }  # fmt: skip


def test_anonymous(made, serving):
    run = serving(made)
    before = run.get("/recommendations/x", n=1000)["items"]
    given = [{"item": made.key(1, n), "rating": r} for n, r in ((3, 5.0), (8, 0.5), (11, 4.5))]
    found = run.post("/recommendations/anonymous", {"ratings": given, "n": 5}, 200)
    assert found["cold"] is False
    assert found["user"] is None
    assert found["learned"] == 3
    rated = {one["item"] for one in given}
    assert not rated & {one["item"] for one in found["items"]}
    assert [i["item"] for i in found["items"]] != [i["item"] for i in before[:5]]
    every = {"ratings": given, "n": 1000, "exclude_seen": False}
    assert len(run.post("/recommendations/anonymous", every, 200)["items"]) == len(before)
    # nothing of it stays
    assert run.get("/recommendations/x", n=1000)["items"] == before
    cold = run.post("/recommendations/anonymous", {"ratings": []}, 200)
    assert cold["cold"] is True
    for wrong in (
        {"ratings": [{"item": 1, "rating": "4"}]},
        {"ratings": [{"item": True, "rating": 4.0}]},
        {"ratings": [], "colour": "red"},
    ):
        run.post("/recommendations/anonymous", wrong, 422)
    run.post("/recommendations/anonymous", {"ratings": [{"item": 1, "rating": 99.0}]}, 409)


def test_explanations(made, serving, titles):
    run = serving(made, titles=titles)
    user = made.key(0, 7)
    for n in (3, 8, 11):
        run.post("/ratings", {"user": user, "item": made.key(1, n), "rating": 4.5})
    item = made.key(1, 20)
    found = run.get(f"/explain/{at(user)}/{at(item)}")
    expected = explain_pair(made.state, user, item, True)
    for got, part in zip(found["parts"], expected, strict=True):
        assert got["part"] == part.part
        assert got["note"] == part.note
        assert got["ratings"] == part.ratings
        assert got["value"] == (None if part.value is None else pytest.approx(part.value))
        assert got["std"] == (None if part.std is None else pytest.approx(part.std))
    assert {one["item"] for one in found["because"]} == {made.key(1, n) for n in (3, 8, 11)}
    reasons = run.get(f"/recommendations/{at(user)}", n=8, reasons=True)["items"]
    assert all(one["reason"] for one in reasons)


def test_items_similar_popular(made, serving, titles):
    run = serving(made, titles=titles)
    item = made.key(1, 9)
    like = run.get(f"/similar/{at(item)}", n=4)
    assert len(like["items"]) == 4
    assert item not in [one["item"] for one in like["items"]]
    popular = run.get("/popular", n=5)["items"]
    counts = [one["ratings"] for one in popular]
    assert counts == sorted(made.state.items.count.tolist(), reverse=True)[:5]
    found = run.get("/items", query="cafe CCC film", n=50)["items"]
    assert {one["item"] for one in found} == {made.key(1, n) for n in range(30) if n % 8 == 2}
    assert [one["ratings"] for one in found] == sorted((o["ratings"] for o in found), reverse=True)
    assert run.get("/items", query=str(item))["items"][0]["item"] == item
    assert run.get("/items", query="zzz")["items"] == []
    assert run.get("/items", query="")["items"] == []


def test_versions_and_curve_follow(made, serving):
    run = serving(made)
    for _ in range(3):
        made.learn(made.ratings(25))
    assert run.get("/versions")["serving"] == 1
    assert run.service.answers.holder.poll()
    found = run.get("/versions", n=3)
    assert found["serving"] == 4
    assert [v["version"] for v in found["versions"]] == [4, 3, 2]
    assert [v["serving"] for v in found["versions"]] == [True, False, False]
    curve = run.get("/curve")["points"]
    assert [p["version"] for p in curve] == [1, 2, 3, 4]
    assert curve[-1]["ratings"] == made.state.counters.ratings
    assert curve[0]["ratings"] == made.state.counters.ratings - 75
    assert [p["version"] for p in run.get("/curve", points=2)["points"]] == [2, 4]
    about = run.get("/model")
    assert (about["version"], about["items"]) == (4, made.state.items.size)
    assert (about["lowest"], about["highest"]) == (0.5, 5.0)


def worse(made):
    """Have the next version do worse than mean and biases."""
    made.state.counters = type(made.state.counters)(
        ratings=3000, low=0.5, high=5.0, prequential_ratings=2000,
        prequential_squares=9000.0, baseline_squares=2000.0,
    )  # fmt: skip
    made.learn(made.ratings(5))


def beats(run):
    text = run.client.get("/metrics").text
    return float(re.search(r"^sparkml_sgdals_model_beats_baseline (\S+)$", text, re.M)[1])


def test_ready_is_who_can_answer_and_the_verdict_is_told(made, serving, caplog):
    run = serving(made)
    assert run.get("/health/live")["ready"] is True
    # 30 ratings were predicted before they were learned: too few to judge
    said = run.get("/health/ready")
    assert said["ready"] is True
    assert "only" in said["detail"]
    assert beats(run) == 0.0
    for _ in range(3):
        made.learn(made.ratings(500))
    run.service.answers.holder.poll()
    assert "beat mean and biases" in run.get("/health/ready")["detail"]
    assert beats(run) == 1.0
    assert not caplog.records
    worse(made)
    run.service.answers.holder.poll()
    assert "worse" in run.get("/health/ready")["detail"]
    assert beats(run) == 0.0
    assert "the one before did better" in caplog.text


def test_a_gate_opens_once(made, serving):
    def gated():
        def change(service):
            service.gate = True
            service.answers.judge.look_back(service.answers.holder)

        return serving(made, change=change)

    run = gated()
    assert "held back" in run.get("/health/ready", 503)["detail"]
    for _ in range(3):
        made.learn(made.ratings(500))
    run.service.answers.holder.poll()
    assert run.get("/health/ready")["ready"] is True
    worse(made)
    run.service.answers.holder.poll()
    assert run.get("/health/ready")["ready"] is True
    # nor is one that starts now out of order, where those that run are not
    assert gated().get("/health/ready")["ready"] is True


def test_a_rollback_takes_no_service_out(made, serving):
    run = serving(made)
    for _ in range(3):
        made.learn(made.ratings(500))
    run.service.answers.holder.poll()
    roll_back(made.store, 0, reread=False)
    assert run.service.answers.holder.poll()
    assert run.get("/health/ready")["ready"] is True

    def change(service):
        service.gate = True
        service.answers.judge.look_back(service.answers.holder)

    assert serving(made, change=change).get("/health/ready")["ready"] is True


def test_not_ready_while_the_model_path_is_gone(made, serving, tmp_path, caplog):
    run = serving(made)
    assert run.get("/health/ready")["ready"] is True
    os.rename(made.path, tmp_path / "elsewhere")
    run.service.answers.holder.poll()
    said = run.get("/health/ready", 503)
    assert "restore it" in said["detail"]
    assert "holds no version any more" in caplog.text
    # whoever asks all the same is answered by what is in hand
    assert run.get("/popular")["items"]
    assert "sparkml_sgdals_model_gone 1.0" in run.client.get("/metrics").text
    os.rename(tmp_path / "elsewhere", made.path)
    run.service.answers.holder.poll()
    assert run.get("/health/ready")["ready"] is True
    # one that is damaged is not gone: the version before is whole
    made.learn(made.ratings(10))
    commit = max((made.path / "commits").iterdir())
    commit.write_bytes(commit.read_bytes().replace(b"version", b"Version", 1))
    with pytest.raises(StorageError):
        run.service.answers.holder.poll()
    assert run.get("/health/ready")["ready"] is True


def test_metrics(made, serving):
    run = serving(made)
    run.get("/popular")
    run.get("/recommendations/x", 422, n=0)
    run.post("/ratings", {"user": made.key(0, 1), "item": made.key(1, 1), "rating": 3.0})
    text = run.client.get("/metrics").text
    assert 'sparkml_sgdals_requests_total{route="/popular",status="200"} 1.0' in text
    assert 'sparkml_sgdals_requests_total{route="/recommendations/{user}",status="422"} 1.0' in text
    assert "sparkml_sgdals_ratings_taken_total 1.0" in text
    assert "sparkml_sgdals_model_version 1.0" in text
    assert 'route="/popular"' in text


def test_openapi_has_examples_and_the_page_is_there(made, serving):
    run = serving(made)
    spec = run.get("/openapi.json")
    wanted = {
        "/recommendations/{user}", "/recommendations/anonymous", "/predictions/{user}/{item}",
        "/similar/{item}", "/explain/{user}/{item}", "/popular", "/users/{user}/ratings", "/items",
        "/ratings", "/versions", "/health/live", "/health/ready", "/metrics", "/events", "/curve",
        "/model", "/users", "/features",
    }  # fmt: skip
    assert set(spec["paths"]) == wanted
    assert run.client.options("/items").headers["allow"] == "GET, POST"
    assert spec["components"]["schemas"]["RatingIn"]["properties"]["rating"]["examples"]
    page = run.client.get("/")
    assert page.status_code == 200
    assert "http://" not in page.text.replace("http://www.w3.org", "")
    assert "https://" not in page.text
    asked = re.findall(r'(?:href|src)="/page/([^"]+)"', page.text)
    parts = {one.name for one in Path(routes.__file__).with_name("page").iterdir()}
    assert set(asked) < parts
    for part in parts - {"index.html"}:
        assert run.client.get(f"/page/{part}").status_code == 200
    assert run.client.get("/page/..%2Froutes.py").status_code == 404


NO_SPARK = """
import sys, tempfile
from fastapi.testclient import TestClient
from sparkml_sgdals.serving.http.routes import make_app
from sparkml_sgdals.serving.server import build_service
from sparkml_sgdals.serving.intake.folder import FolderIntake
with tempfile.TemporaryDirectory() as folder:
    service = build_service(sys.argv[1], folder, intake=lambda n: FolderIntake(sys.argv[2], n))
    with TestClient(make_app(service)) as client:
        for path in ("recommendations/1?reasons=true", "predictions/1/1", "explain/1/1",
                     "similar/1", "popular", "items?query=1", "users/1/ratings", "versions",
                     "model", "metrics"):
            assert client.get("/" + path).status_code == 200, path
        one = {"user": 1, "item": 1, "rating": 3.0}
        assert client.post("/ratings", json=one).status_code == 202
        body = {"ratings": [{"item": 1, "rating": 3.0}]}
        assert client.post("/recommendations/anonymous", json=body).status_code == 200
    service.answers.holder.stop()
loaded = sorted(n for n in sys.modules if n.split(".")[0] in ("pyspark", "py4j"))
assert not loaded, loaded
print("no spark")
"""


@pytest.mark.long
def test_the_process_has_no_spark_in_it(modeler, tmp_path):
    made = modeler()
    done = subprocess.run(
        [sys.executable, "-c", NO_SPARK, str(made.path), str(tmp_path / "in")],
        check=False, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.strip() == "no spark", done.stderr[-2000:]
