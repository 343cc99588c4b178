"""Models of events (implicitPrefs) over HTTP: what `serving_state`, which Spark ranks by, says."""

from __future__ import annotations

import math
from dataclasses import replace
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pytest
from building import settings_of

from sparkml_sgdals.arrays.hashing import id_keys
from sparkml_sgdals.arrays.ratings import encode_ratings
from sparkml_sgdals.learn.one_batch import learn_batch
from sparkml_sgdals.state.event_scores import score_pairs, serving_state


def settings_under(solver):
    if solver == "isgd":
        return settings_of(
            rank=4, solver="isgd", learns_events=True, ranking_size=0, repeat_items=False
        )
    return settings_of(
        rank=4, learns_events=True, num_negatives=5, ranking_size=0, repeat_items=False
    )


@pytest.fixture(params=[("bayes", "int"), ("bayes", "str"), ("isgd", "int")], ids="-".join)
def made(request, modeler):
    solver, kind = request.param
    made = modeler(kinds=(kind, kind), settings=settings_under(solver))
    for _ in range(3):
        made.learn(events(made, 40))
    return made


def events(made, count, first=0):
    table = made.ratings(count, first)
    return table.set_column(2, "rating", pa.array(np.ones(count), pa.float32()))


def scores(made, user):
    """Items and scores as the model on Spark has them, best first, equal ones by id."""
    served = serving_state(made.state)
    ids = served.items.index.ids()
    row = served.users.index.find(pa.array([user], ids.type))[0]
    values = score_pairs(served, np.full(len(ids), row), np.arange(len(ids)))
    return sorted(zip(ids.to_pylist(), values.tolist(), strict=True), key=lambda s: (-s[1], s[0]))


def done_by(made, user):
    row = made.state.users.index.find(pa.array([user]))[0]
    keys = made.state.users.memory.done[row]
    ids = made.state.items.index.ids()
    by_key = dict(zip(id_keys(ids).view(np.int64).tolist(), ids.to_pylist(), strict=True))
    return [by_key[key] for key in keys.tolist()]


def check(run, made, user):
    at = quote(str(user), safe="")
    found = run.get(f"/recommendations/{at}", n=1000, exclude_seen=False)["items"]
    expected = scores(made, user)
    assert [one["prediction"] for one in found] == pytest.approx(
        [value for _, value in expected], abs=2e-5
    )
    assert {one["item"] for one in found} == {item for item, _ in expected}
    assert all(one["std"] is None for one in found)
    for item, value in expected[::9]:
        said = run.get(f"/predictions/{at}/{quote(str(item), safe='')}")
        assert said["prediction"] == pytest.approx(value, abs=2e-5)


def test_ranked_as_on_spark_version_by_version(made, serving):
    run = serving(made)
    for step in range(4):
        check(run, made, made.key(0, 7))
        # somebody who is not known gets what is popular
        nobody = 999_999 if made.kinds[0] == "int" else "nobody"
        check(run, made, nobody)
        made.learn(events(made, 60, first=step * 3))
        assert run.service.answers.holder.poll()


def test_what_was_done_is_left_out(made, serving):
    if made.settings.solver == "isgd":
        pytest.skip("isgd remembers no lists")
    run = serving(made)
    user = made.key(0, 7)
    at = quote(str(user), safe="")
    seen = set(done_by(made, user))
    assert seen
    whole = run.get(f"/recommendations/{at}", n=1000)["items"]
    assert {one["item"] for one in whole} == {i for i, _ in scores(made, user)} - seen
    known = run.get(f"/users/{at}/ratings")["ratings"]
    assert [one["item"] for one in known] == done_by(made, user)


@pytest.mark.parametrize("repeats", [True, None])
def test_what_comes_again_is_offered(repeats, modeler, serving):
    """As set, or as more than one event in twenty has shown."""
    made = modeler(settings=replace(settings_under("bayes"), repeat_items=repeats))
    for _ in range(3):
        made.learn(events(made, 40))
    assert made.state.repeats > 0.05 * made.state.events_learned
    run, user = serving(made), made.key(0, 7)
    everything = {i for i, _ in scores(made, user)}
    assert {
        one["item"] for one in run.get(f"/recommendations/{user}", n=1000)["items"]
    } == everything
    new = run.get(f"/recommendations/{user}", n=1000, exclude_seen=True)["items"]
    assert {one["item"] for one in new} == everything - set(done_by(made, user))
    told = {"ratings": [{"item": made.key(1, 3)}], "n": 1000}
    listed = run.post("/recommendations/anonymous", told, 200)["items"]
    assert {one["item"] for one in listed} == everything


def test_why(made, serving):
    run = serving(made)
    user, item = made.key(0, 7), made.key(1, 3)
    path = f"/explain/{quote(str(user), safe='')}/{quote(str(item), safe='')}"
    said = run.get(path)
    parts = {one["part"]: one["value"] for one in said["parts"]}
    total = parts.pop("prediction")
    assert total == pytest.approx(said["prediction"], abs=1e-4)
    assert sum(parts.values()) == pytest.approx(total, abs=1e-4)
    if made.settings.solver == "bayes":
        # more than half of the score's exponential
        together = parts.get("stands together", 0.0) > math.log(2.0)
        assert sum(one["share"] for one in said["because"]) == pytest.approx(
            parts["stands together" if together else "done last"], abs=1e-4
        )
        last = done_by(made, user)[-10 if together else -8 :]
        assert {one["item"] for one in said["because"]} == set(last)
    listed = run.get(f"/recommendations/{quote(str(user), safe='')}", n=3, reasons=True)
    assert all(one["reason"] for one in listed["items"])
    assert run.get(path.rpartition("/")[0] + "/77777")["parts"][-1]["note"]


def test_what_stands_together_speaks(modeler, serving):
    """All who do n do n + 20 next: who has done 3 gets 23, for that reason."""
    made = modeler(settings=settings_under("bayes"))
    rng = np.random.default_rng(1)
    first = rng.integers(0, 20, 300)
    told = pa.table(
        {
            "user": pa.array(np.r_[np.repeat(np.arange(300), 2), 999]),
            "item": pa.array(np.r_[np.column_stack([first, first + 20]).ravel(), 3]),
            "rating": pa.array(np.ones(601, np.float32)),
            "time": pa.array(np.arange(601)),
        }
    )
    made.learn(told)
    run = serving(made)
    (best,) = run.get("/recommendations/999", n=1, reasons=True)["items"]
    assert best["item"] == 23
    assert best["reason"].startswith("Often done with 3; it is")
    said = run.get("/explain/999/23")
    parts = {one["part"]: one["value"] for one in said["parts"]}
    assert [one["item"] for one in said["because"]] == [3]
    assert said["because"][0]["share"] == pytest.approx(parts["stands together"], abs=1e-4)
    assert parts["stands together"] > max(parts["features"], parts["done last"])
    total = parts.pop("prediction")
    assert sum(parts.values()) == pytest.approx(total, abs=1e-4)


def test_folded_in_as_the_stream_would(made, serving):
    """Features are those of a new user who did the same, and nothing is kept."""
    run = serving(made)
    items = [made.key(1, n) for n in (3, 9, 5)]
    before = made.state.fingerprint()
    answer = run.post(
        "/recommendations/anonymous", {"ratings": [{"item": i} for i in items], "n": 1000}, 200
    )
    found = {one["item"]: one["prediction"] for one in answer["items"]}
    assert not set(items) & set(found)
    assert answer["learned"] == 3
    twin = made.state.copy()
    someone = -(2**63) if made.kinds[0] == "int" else ""
    table = pa.table(
        {
            "user": pa.array([someone] * 3, pa.int64() if made.kinds[0] == "int" else pa.string()),
            "item": pa.array(items),
            "rating": pa.array([1.0] * 3, pa.float32()),
        }
    )
    learn_batch(twin, encode_ratings(table))
    row = twin.users.index.find(table.column("user").combine_chunks().slice(0, 1))[0]
    made.state.users.ensure(table.column("user").combine_chunks().slice(0, 1))
    mine = made.state.users.size - 1
    made.state.users.mean[mine] = twin.users.mean[row]
    made.state.users.memory.done[mine] = twin.users.memory.done[row]
    # the event before now
    made.state.users.memory.last[mine:] = made.state.events_learned
    expected = dict(scores(made, someone))
    for item, value in found.items():
        assert value == pytest.approx(expected[item], abs=2e-5)
    made.state.users.truncate(mine)
    assert made.state.fingerprint() == before


def test_events_need_no_rating(made, serving):
    run = serving(made)
    post = {"user": made.key(0, 1), "item": made.key(1, 1)}
    assert run.post("/ratings", post) == {"accepted": 1, "repeated": 0}
    run.post("/ratings", post | {"rating": 9.0}, 409)
    (file,) = run.inbox.iterdir()
    assert '"rating": 1.0' in file.read_text()
    assert run.get("/model")["events"] is True
    run.get("/recommendations/1", status=422, rank_by="upper")


def test_ratings_need_one(modeler, serving):
    made = modeler()
    run = serving(made)
    post = {"user": made.key(0, 1), "item": made.key(1, 1)}
    assert "give one" in run.post("/ratings", post, 409)["detail"]
    run.post("/recommendations/anonymous", {"ratings": [{"item": post["item"]}]}, 409)


def test_the_verdict_is_of_the_number_of_events(modeler, serving):
    made = modeler(settings=settings_under("bayes"))
    run = serving(made)
    # what it was made of are ratings of both signs, all above 0
    run.get("/health/ready")
    assert run.service.answers.judge.good is True
    made.state.events_learned = 999
    made.learn(events(made, 0))
    run.service.answers.holder.poll()
    assert "999 events" in run.get("/health/ready")["detail"]
    assert run.service.answers.judge.good is False
