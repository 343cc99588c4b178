"""Ratings posted: durable when acknowledged, each key once, refused where they should be."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkml_sgdals.serving.http.guard import Buckets, TokenCheck
from sparkml_sgdals.serving.intake.folder import FolderIntake
from sparkml_sgdals.serving.intake.history import History, IntakeColumns, Known, named_columns
from sparkml_sgdals.serving.intake.keys import UNNAMED, Keys, KeyTakenError
from sparkml_sgdals.serving.intake.posts import Posted


def rows(folder):
    """All that is durable, of which a stream sees what is a second old."""
    found = []
    hidden = folder.glob(".ratings-*.part")
    for file in sorted([*folder.glob("*.json"), *hidden], key=lambda file: file.name.strip(".")):
        found += [json.loads(line) for line in file.read_text().splitlines()]
    return found


def rating(made, n=1, value=4.0):
    return {"user": made.key(0, n), "item": made.key(1, n), "rating": value}


def test_what_is_posted_is_in_the_folder(modeler, serving):
    made = modeler()
    run = serving(made)
    answer = run.post("/ratings", rating(made) | {"timestamp": 1_260_759_144, "eventId": "e 1"})
    assert answer == {"accepted": 1, "repeated": 0}
    many = [rating(made, n) for n in range(2, 7)]
    assert run.post("/ratings", many)["accepted"] == 5
    found = rows(run.inbox)
    assert found[0] == {
        "user": made.key(0, 1), "item": made.key(1, 1), "rating": 4.0,
        "timestamp": 1_260_759_144, "eventId": "e:e 1#0/1",
    }  # fmt: skip
    assert [one["user"] for one in found[1:]] == [one["user"] for one in many]
    assert len({one["eventId"] for one in found}) == 6
    run.service.intake.close()
    assert not [f for f in run.inbox.iterdir() if not f.name.startswith("ratings-")]


def test_a_key_counts_once(modeler, serving):
    made = modeler()
    run = serving(made)
    many = [rating(made, n) for n in range(3)]
    key = {"Idempotency-Key": "abc"}
    assert run.post("/ratings", many, **key) == {"accepted": 3, "repeated": 0}
    assert run.post("/ratings", many, **key) == {"accepted": 3, "repeated": 3}
    run.post("/ratings", many[:2], 409, **key)
    assert len(rows(run.inbox)) == 3
    event = rating(made, 5) | {"eventId": "e5"}
    assert run.post("/ratings", [event, event]) == {"accepted": 2, "repeated": 1}
    assert run.post("/ratings", event)["repeated"] == 1
    run.post("/ratings", event | {"rating": 1.0}, 409)
    assert len(rows(run.inbox)) == 4
    # the files themselves say which keys were taken
    run.service.intake.close()
    again = serving(made)
    assert again.post("/ratings", many, **key)["repeated"] == 3
    assert again.post("/ratings", event)["repeated"] == 1
    assert len(rows(run.inbox)) == 4
    known = again.get(f"/users/{made.key(0, 5)}/ratings")["ratings"]
    assert [one["item"] for one in known] == [made.key(1, 5)]


def test_what_cannot_be_learned_is_refused(modeler, serving):
    made = modeler(types=("int", "bigint"))
    run = serving(made)
    good = rating(made)
    # not for this model: out of its range, of another kind, too wide for its column
    for other in (
        good | {"rating": 5.5}, good | {"rating": 0.0}, good | {"user": "somebody"},
        good | {"user": 2**31}, good | {"item": "x"}, [good, good | {"rating": 9.0}],
    ):  # fmt: skip
        run.post("/ratings", other, 409)
    for wrong in (
        good | {"user": 1.5}, good | {"user": None}, good | {"eventId": ""},
        good | {"timestamp": -1}, good | {"weight": 1}, [], {}, "x", good | {"rating": "4"},
        good | {"user": True}, good | {"user": 10**19},
    ):  # fmt: skip
        run.post("/ratings", wrong, 422)
    for text in ('{"user":1,"item":1,"rating":NaN}', "{", "", '{"user":1,"item":1,"rating":1e400}'):
        sent = run.client.post(
            "/ratings", content=text, headers={"Content-Type": "application/json"}
        )
        assert sent.status_code == 422, text
    # what a page of another site may send without asking
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        for path in ("/ratings", "/recommendations/anonymous"):
            sent = run.client.post(path, content=json.dumps(good), headers={"Content-Type": kind})
            assert sent.status_code == 422
            (fault,) = sent.json()["detail"]
            assert fault["loc"] == ["header", "content-type"]
            assert fault["msg"].startswith("Send Content-Type: application/json")
    # clocks may differ by some minutes, not by more: later events would all count as late
    now = int(time.time())
    for ahead in (7200, 253_402_300_799 - now):
        run.post("/ratings", [good, good | {"timestamp": now + ahead}], 409)
    assert not rows(run.inbox)
    run.post("/ratings", good | {"user": "4", "timestamp": now + 60})
    assert rows(run.inbox)[0]["user"] == 4


def test_token(modeler, serving, tmp_path):
    made = modeler()
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    run = serving(made, change=lambda s: setattr(s, "token", TokenCheck(str(file))))
    wrong = ({}, {"Authorization": "Bearer s3cre"}, {"Authorization": "Basic s3cret"},
             {"Authorization": "Bearer s3cret2"}, {"Authorization": "s3cret"})  # fmt: skip
    for header in wrong:
        run.post("/ratings", rating(made), 401, **header)
    assert not rows(run.inbox)
    run.post("/ratings", rating(made), 202, Authorization="Bearer s3cret")
    run.get("/recommendations/1")
    file.write_text(" \n")
    with pytest.raises(ValueError, match="is empty"):
        TokenCheck(str(file))


def test_rate_and_size(modeler, serving):
    made = modeler()

    def change(service):
        service.buckets, service.max_body = Buckets(1.0, 5.0), 2_000

    run = serving(made, change=change)
    run.post("/ratings", [rating(made, n) for n in range(5)])
    late = run.client.post("/ratings", json=rating(made, 9))
    assert late.status_code == 429
    assert int(late.headers["retry-after"]) >= 1
    assert len(rows(run.inbox)) == 5
    for content in (b" " * 3_000, (b" " * 100 for _ in range(30))):
        sent = run.client.post(
            "/ratings", content=content, headers={"Content-Type": "application/json"}
        )
        assert sent.status_code == 413
        assert "2,000 bytes" in sent.json()["detail"]


def test_buckets(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    buckets = Buckets(2.0, 4.0)
    assert [buckets.take("a") for _ in range(5)] == [0, 0, 0, 0, 0.5]
    assert buckets.take("b", 4.0) == 0
    now[0] = 0.5
    assert buckets.take("a") == 0
    assert buckets.take("a") > 0
    assert Buckets(0.0, 0.0).take("a", 1e9) == 0


def test_storage_that_fails(modeler, serving, monkeypatch):
    made = modeler()
    run = serving(made)
    key = {"Idempotency-Key": "k"}

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        said = run.post("/ratings", rating(made), 503, **key)
        assert said == {"detail": "The ratings cannot be stored now."}
    assert not list(run.inbox.iterdir())
    # the same post is taken when there is room again
    assert run.post("/ratings", rating(made), **key)["repeated"] == 0
    assert len(rows(run.inbox)) == 1


def test_no_trace_leaves(modeler, serving, monkeypatch):
    made = modeler()
    run = serving(made)

    def broken(*_):
        raise RuntimeError("secret path /etc/shadow")

    monkeypatch.setattr(run.service.answers, "popular", broken)
    answer = run.client.get("/popular")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert answer.json()["detail"].startswith("Something failed here; the log has it as ")
    for path, wanted in (("/", "default-src 'self'"), ("/popular", "default-src 'self'")):
        headers = run.client.get(path).headers
        assert wanted in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_other_sites(modeler, serving):
    made = modeler()
    asks = {"Origin": "https://shop.example", "Access-Control-Request-Method": "GET"}
    run = serving(made)
    assert "access-control-allow-origin" not in run.client.get("/popular", headers=asks).headers
    run = serving(made, change=lambda s: setattr(s, "origins", ("https://shop.example",)))
    got = run.client.get("/popular", headers=asks)
    assert got.headers["access-control-allow-origin"] == "https://shop.example"
    other = run.client.get("/popular", headers=asks | {"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers


def test_many_at_once_are_written_together(tmp_path, columns):
    intake = FolderIntake(str(tmp_path / "in"), columns, every=0.05)
    posts = [Posted(n, n, 3.0, 0) for n in range(400)]
    waiting = [intake.put([(f"k{n % 300}", [posts[n % 300]])]) for n in range(400)]
    done = [one.result(10) for one in waiting]
    assert sum(one[0].repeated for one in done) == 100
    other = intake.put([("k1", [posts[2]])])
    with pytest.raises(KeyTakenError):
        other.result(10)
    intake.close()
    assert sorted(row["user"] for row in rows(tmp_path / "in")) == list(range(300))
    assert len(list((tmp_path / "in").iterdir())) < 40
    with pytest.raises(OSError, match="ending"):
        intake.put([("new", posts[:1])]).result(1)


def test_what_comes_one_by_one_shares_a_file(tmp_path, columns):
    """A stream reads so many files a batch: none is made before its time."""
    intake = FolderIntake(str(tmp_path / "in"), columns, every=0.6)
    intake.put([("first", [Posted(0, 0, 3.0, 0)])]).result(10)
    waiting = []
    for n in range(1, 6):
        waiting.append(intake.put([(f"k{n}", [Posted(n, n, 3.0, 0)])]))
        time.sleep(0.02)
    assert all(not one.result(10)[0].repeated for one in waiting)
    intake.close()
    assert sorted(row["user"] for row in rows(tmp_path / "in")) == list(range(6))
    assert len(list((tmp_path / "in").iterdir())) == 2


# what ends a line for one reader or another
ENDS = st.sampled_from("\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\r\n")
ANY = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), ENDS), min_size=1, max_size=20)


@given(st.lists(st.tuples(ANY, ANY, st.none() | ANY), min_size=1, max_size=8))
@settings(deadline=None, max_examples=60)
def test_ids_of_any_letters_are_read_back(tmp_path_factory, sent):
    folder = tmp_path_factory.mktemp("in")
    posts = [
        (f"k{n}:{key or ''}", [Posted(user, item, 3.0, n)])
        for n, (user, item, key) in enumerate(sent)
    ]
    intake = FolderIntake(str(folder), IntakeColumns(), every=0.0)
    assert not any(one.repeated for one in intake.put(posts).result(10))
    intake.close()
    again = FolderIntake(str(folder), IntakeColumns(), every=0.0)
    assert list(again.found) == [one for _, (one,) in posts]
    assert all(one.repeated for one in again.put(posts).result(10))
    again.close()
    (file,) = folder.iterdir()
    assert file.read_bytes().isascii()


def test_what_an_earlier_release_wrote_is_read_back(tmp_path, columns):
    """Files that hold such letters as they are."""
    row = {
        "user": "a\u2028b\x85",
        "item": "\u2029",
        "rating": 3.0,
        "timestamp": 4,
        "eventId": "k#0/1",
    }
    (tmp_path / "ratings-1.json").write_text(json.dumps(row, ensure_ascii=False) + "\n", "utf-8")
    intake = FolderIntake(str(tmp_path), columns)
    assert list(intake.found) == [Posted("a\u2028b\x85", "\u2029", 3.0, 4)]
    assert intake.put([("k", list(intake.found))]).result(10)[0].repeated
    intake.close()


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 6), st.integers(0, 1)), min_size=1, max_size=5),
        min_size=1,
        max_size=12,
    )
)
@settings(deadline=None, max_examples=60)
def test_a_request_is_taken_as_a_whole_or_not_at_all(tmp_path_factory, requests):
    """Keys of which some stand for other ratings, in requests that wait together."""
    folder = tmp_path_factory.mktemp("in")
    intake = FolderIntake(str(folder), IntakeColumns(), every=0.0)
    waiting = [
        intake.put([(f"e{key}", [Posted(key, value, 3.0, 0)]) for key, value in one])
        for one in requests
    ]
    taken, expected = {}, []
    for one, done in zip(requests, waiting, strict=True):
        merged = dict(taken)
        if all(merged.setdefault(key, value) == value for key, value in one):
            expected += [key for key in dict(one) if key not in taken]
            assert len(done.result(10)) == len(one)
            taken = merged
        else:
            with pytest.raises(KeyTakenError):
                done.result(10)
    intake.close()
    assert [row["user"] for row in rows(folder)] == expected
    assert {row["user"]: row["item"] for row in rows(folder)} == taken


def test_a_409_takes_nothing_of_its_request(modeler, serving):
    made = modeler()
    run = serving(made)
    event = rating(made, 5) | {"eventId": "e5"}
    run.post("/ratings", event)
    clash = [rating(made, 6) | {"eventId": "e6"}, event | {"rating": 1.0}, rating(made, 7)]
    said = run.post("/ratings", clash, 409)
    assert "'e5'" in said["detail"]
    # nor where the two are of one request
    run.post("/ratings", [rating(made, 8) | {"eventId": "e8"}, event | {"eventId": "e8"}], 409)
    assert len(rows(run.inbox)) == 1
    assert run.get(f"/users/{made.key(0, 6)}/ratings")["ratings"] == []
    assert run.post("/ratings", clash[:1]) == {"accepted": 1, "repeated": 0}


def test_whoever_goes_away_stops_nothing(tmp_path, columns):
    intake = FolderIntake(str(tmp_path), columns)
    for n in range(50):
        # what a server does to a request that it ends
        intake.put([(f"k{n}", [Posted(n, n, 3.0, 0)])]).cancel()
    assert intake.put([("last", [Posted(99, 99, 3.0, 0)])]).result(10)
    intake.close()
    assert len(rows(tmp_path)) == 51


def test_keys_are_bounded():
    keys = Keys(seconds=100.0, most=50)
    for n in range(1_000):
        keys.add(f"k{n}", b"d%d" % n, float(n))
        keys.add(f"{UNNAMED}{n}", b"x", float(n))
    assert len(keys) == 50
    assert keys.digest("k999", 999.0) == b"d999"
    assert keys.digest("k949", 999.0) is None
    assert keys.digest("k999", 1_100.0) is None
    keys.drop("k999")
    assert keys.digest("k999", 999.0) is None
    keys.add("k999", b"other", 1_000.0)
    assert keys.digest("k999", 1_000.0) == b"other"
    for n in range(2_000, 2_200):
        keys.add(f"k{n}", b"d", float(n))
    assert len(keys) == 50


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 30)), max_size=300))
@settings(deadline=None)
def test_history_is_bounded_and_the_newest_stay(posted):
    history = History(("int", "int"), most=40)
    for time_, (user, item) in enumerate(posted):
        history.add(user, [Known(item, 3.0, time_)])
    known = {user: history.of(user) for user in range(10)}
    assert sum(len(held) for held in known.values()) <= 40
    assert all(len(held) <= 4 for held in known.values())
    if posted:
        user, item = posted[-1]
        assert known[user][-1] == Known(item, 3.0, len(posted) - 1)
    for user, held in known.items():
        own = list(dict.fromkeys(i for u, i in reversed(posted) if u == user))
        assert [one.item for one in reversed(held)] == own[: len(held)]


def test_a_folder_written_with_other_columns(tmp_path, columns):
    file = tmp_path / "ratings-1.json"
    file.write_text('{"userId": 1}\n')
    with pytest.raises(ValueError, match=r"it has userId: .*--columns USER,ITEM"):
        FolderIntake(str(tmp_path), columns)
    file.unlink()
    names = IntakeColumns("userId", "movieId")
    intake = FolderIntake(str(tmp_path), names)
    intake.put([("k", [Posted(1, 2, 3.0, 4)])]).result()
    intake.close()
    with pytest.raises(
        ValueError, match=r"\(user,item,.*--columns userId,movieId,rating,timestamp,"
    ):
        FolderIntake(str(tmp_path), columns)


OF_SESSIONS = {"userCol": "session", "itemCol": "item", "timestampCol": "at"}


@pytest.mark.parametrize(
    ("params", "given", "written", "warned"),
    [
        ({}, None, ["user", "item", "rating", "timestamp", "eventId"], ()),
        (OF_SESSIONS, None, ["session", "item", "rating", "at", "eventId"], ()),
        (
            OF_SESSIONS | {"timestampCol": "", "ratingCol": "stars"}, {"event": "id"},
            ["session", "item", "stars", "timestamp", "id"], (),
        ),
        (
            OF_SESSIONS, {"user": "userId", "item": "item", "time": "t"},
            ["userId", "item", "rating", "t", "eventId"],
            ("'userId', and the model reads userCol='session'", "'t', and the model reads timesta"),
        ),
        (
            {}, IntakeColumns("user", "movieId", time="at"),
            ["user", "movieId", "rating", "at", "eventId"],
            ("'movieId', and the model reads itemCol='item'",),
        ),
    ],
)  # fmt: skip
def test_ratings_are_written_as_the_model_reads_them(
    modeler, serving, caplog, params, given, written, warned
):
    made = modeler(params=params)
    run = serving(made, columns=given)
    run.post("/ratings", rating(made, 1))
    run.service.intake.close()
    assert [list(row) for row in rows(run.inbox)] == [written]
    said = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert len(said) == len(warned)
    assert all(part in one for part, one in zip(warned, said, strict=True))


def test_columns_that_there_are_none_of(modeler, serving):
    with pytest.raises(ValueError, match="columns has 'userCol', and may have user, item"):
        serving(modeler(), columns={"userCol": "u"})
    with pytest.raises(ValueError, match="five columns, got 'a,b'"):
        named_columns("a,b")
    assert named_columns("u, i,,,e") == {"user": "u", "item": "i", "event": "e"}


def test_the_command_of_the_service_asks_the_model_for_its_columns(modeler, started, tmp_path):
    made = modeler(params=OF_SESSIONS)
    _, address = started(made, tmp_path / "inbox")
    httpx.post(address + "ratings", json=rating(made, 1)).raise_for_status()
    (row,) = rows(tmp_path / "inbox")
    assert list(row) == ["session", "item", "rating", "at", "eventId"]


WRITES = """
import os, signal, sys
from sparkml_sgdals.serving.intake.folder import FolderIntake
from sparkml_sgdals.serving.intake.history import IntakeColumns
from sparkml_sgdals.serving.intake.posts import Posted
os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
names = IntakeColumns(*sys.argv[2:])
FolderIntake(sys.argv[1], names).put([("k", [Posted(1, 2, 3.0, 4)])]).result()
"""


def test_what_a_kill_left_hidden_goes_with_a_later_start(tmp_path, columns):
    """Killed before anything was durable."""
    names = [getattr(columns, f.name) for f in dataclasses.fields(columns)]
    done = subprocess.run([sys.executable, "-c", WRITES, str(tmp_path), *names], check=False)
    assert done.returncode == -signal.SIGKILL
    (hidden,) = tmp_path.iterdir()
    assert hidden.name.startswith(".")
    other = tmp_path / ".notes.tmp"
    other.write_text("")
    again = FolderIntake(str(tmp_path), columns)
    assert list(tmp_path.iterdir()) == [other]
    assert not again.found
    again.put([("k", [Posted(1, 2, 3.0, 4)])]).result()
    again.close()
    assert len(rows(tmp_path)) == 1


@pytest.mark.long
def test_kill_9_loses_nothing_that_was_acknowledged(modeler, started, tmp_path):
    """Posted by eight clients while the service is killed twice; each repeats until it is told."""
    made, inbox = modeler(), tmp_path / "inbox"
    running, address = started(made, inbox, "--rate", "0")
    where, acknowledged, killed = [address], set(), [0]
    todo, guard = list(range(240)), threading.Lock()

    def client():
        web = httpx.Client(timeout=5)
        while True:
            with guard:
                if not todo:
                    return
                number = todo.pop()
            body = rating(made, number % 30) | {"timestamp": number}
            while True:
                try:
                    sent = web.post(
                        where[0] + "ratings", json=body,
                        headers={"Idempotency-Key": f"post-{number}"},
                    )  # fmt: skip
                except httpx.TransportError:
                    time.sleep(0.05)
                    continue
                assert sent.status_code == 202, sent.text
                with guard:
                    acknowledged.add(number)
                break

    clients = [threading.Thread(target=client) for _ in range(8)]
    for one in clients:
        one.start()
    try:
        for _ in range(2):
            time.sleep(0.15)
            before = set(acknowledged)
            if not todo:
                break
            running.send_signal(signal.SIGKILL)
            running.wait()
            killed[0] += 1
            there = {row["timestamp"] for row in rows(inbox)}
            assert before <= there, "an acknowledged rating is not in the folder"
            running, address = started(made, inbox, "--rate", "0")
            where[0] = address
        for one in clients:
            one.join(60)
        assert killed[0], "all was over before the kill"
        assert acknowledged == set(range(240))
        counts = Counter(row["timestamp"] for row in rows(inbox))
        assert set(counts) == set(range(240))
        assert set(counts.values()) == {1}
    finally:
        running.send_signal(signal.SIGTERM)
        assert running.wait(15) == 0


MISTAKES = {
    "There is no model at": "{folder}/none",
    "give token_file": "{model} --host 0.0.0.0 --inbox x",
    "not to both": "{model} --inbox x --kafka y:1",
    "name that of ids": "{model} --titles {model}/model.json",
    "No such file": "{model} --token-file {folder}/none",
}
"""what is said of them"""
FIRST = "There is no model at"


@pytest.mark.parametrize(
    "said", [one if one == FIRST else pytest.param(one, marks=pytest.mark.long) for one in MISTAKES]
)
def test_mistakes_of_whoever_starts_it(modeler, tmp_path, said):
    made = modeler()
    command = [sys.executable, "-m", "sparkml_sgdals.serving", "--port", "0", "--model"]
    words = MISTAKES[said].format(folder=tmp_path, model=made.path).split()
    done = subprocess.run(command + words, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
