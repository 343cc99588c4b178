"""Files of the inbox: few of them, whole ones, and what was acknowledged outlives any kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkml_sgdals.serving.intake import file_log, folder, read_back
from sparkml_sgdals.serving.intake.folder import FolderIntake
from sparkml_sgdals.serving.intake.history import IntakeColumns
from sparkml_sgdals.serving.intake.keys import UNNAMED, Keys, KeyTakenError
from sparkml_sgdals.serving.intake.posts import Posted, Told, make_lines

COLUMNS = IntakeColumns()


def seen(place):
    """Rows that a stream sees, by file in the order of names: each a whole line of JSON."""
    return [
        [json.loads(line) for line in file.read_bytes().removesuffix(b"\n").split(b"\n")]
        for file in sorted(place.glob("ratings-*.json"))
    ]


def keys_of(place):
    """How many rows of each key a stream sees."""
    return Counter(row["eventId"].rpartition("#")[0] for file in seen(place) for row in file)


def post(n, rows=1):
    return f"k{n}", [Posted(n, place, 3.0, n) for place in range(rows)]


def test_a_file_a_second_and_the_first_at_once(tmp_path):
    intake = FolderIntake(str(tmp_path), COLUMNS, every=0.4)
    since = time.monotonic()
    for n in range(50):
        assert intake.put([post(n)]).result(10)
        if n == 0:
            assert keys_of(tmp_path) == {"k0": 1}
        time.sleep(0.02)
    files = len(list(tmp_path.glob("ratings-*.json")))
    assert files <= 1 + (time.monotonic() - since) / 0.4
    # without a further post, too
    deadline = time.monotonic() + 10
    while len(keys_of(tmp_path)) < 50 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [row["user"] for file in seen(tmp_path) for row in file] == list(range(50))
    times = [file.stat().st_mtime_ns for file in sorted(tmp_path.iterdir())]
    assert times == sorted(times)
    intake.close()


KILLED = """
import os, signal, sys
from sparkml_sgdals.serving.intake.folder import FolderIntake
from sparkml_sgdals.serving.intake.history import IntakeColumns
from sparkml_sgdals.serving.intake.posts import Posted
intake = FolderIntake(sys.argv[1], IntakeColumns(), every=1000.0)
for n in range(int(sys.argv[2])):
    intake.put([(f"k{n}", [Posted(n, place, 3.0, n) for place in range(3)])]).result()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_service_acknowledged_is_shown_by_the_next_one(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), "5"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert keys_of(tmp_path) == {"k0": 3}
    again = FolderIntake(str(tmp_path), COLUMNS)
    assert keys_of(tmp_path) == {f"k{n}": 3 for n in range(5)}
    assert [(one.user, one.item) for one in again.found] == [
        (n, place) for n in range(5) for place in range(3)
    ]
    assert all(again.put([post(n, 3)]).result(10)[0].repeated for n in range(5))
    with pytest.raises(KeyTakenError):
        again.put([("k4", [Posted(4, 9, 3.0, 4)])]).result(10)
    again.close()
    assert len(list(tmp_path.iterdir())) == 2


def left_hidden(place, content):
    """A file as a killed service leaves it: nobody is at it."""
    path = place / f".ratings-{time.time_ns():020d}-0a1b2c3d.json.part"
    path.write_bytes(content)
    return path


@given(
    counts=st.lists(st.integers(1, 4), min_size=1, max_size=8),
    cut=st.integers(0, 10_000),
    garbage=st.sampled_from([b"", b"\0" * 40, b'{"user": 1, "it', b"\xff\xfe\n", b"\n\n"]),
)
@settings(deadline=None, max_examples=80)
def test_a_file_cut_anywhere_shows_the_posts_that_are_whole(tmp_path_factory, counts, cut, garbage):
    """A power cut, or a kill, in the middle of a write."""
    place = tmp_path_factory.mktemp("in")
    posts = [post(n, rows) for n, rows in enumerate(counts)]
    texts = [
        "".join(json.dumps(row) + "\n" for row in make_lines(COLUMNS, *one)).encode()
        for one in posts
    ]
    content = b"".join(texts)
    # a whole line without its end is a whole row
    length = min(cut, len(content))
    left_hidden(place, content[:length] + garbage)
    whole, at = [], 0
    for (key, rows), text in zip(posts, texts, strict=True):
        at += len(text)
        if at <= length or (at == length + 1 and garbage in (b"", b"\n\n")):
            whole.append((key, len(rows)))
    intake = FolderIntake(str(place), COLUMNS, every=0.0)
    assert keys_of(place) == dict(whole)
    for (key, rows), receipt in zip(posts, intake.put(posts).result(10), strict=True):
        assert receipt.repeated == ((key, len(rows)) in whole)
    intake.close()
    assert keys_of(place) == {key: len(rows) for key, rows in posts}
    assert not list(place.glob(".*"))


@contextmanager
def held_still(intake):
    """Nothing is written or renamed by its thread meanwhile."""
    reached, ended = threading.Event(), threading.Event()

    class Stuck:
        done = Future()

        @property
        def posts(self):
            reached.set()
            ended.wait(10)
            return []

    intake._queue.put(Stuck())
    assert reached.wait(10)
    try:
        yield
    finally:
        ended.set()


@given(
    st.lists(
        st.tuples(
            st.integers(0, 5),
            st.sampled_from(["", "", "write", "sync", "write cut", "sync cut", "rename", "away"]),
        ),
        min_size=1,
        max_size=14,
    ),
    st.booleans(),
)
@settings(deadline=None, max_examples=150)
def test_a_disk_that_fails_at_times(tmp_path_factory, steps, killed):
    """Whatever fails: what was acknowledged is seen once, what was refused can be sent again."""
    place = tmp_path_factory.mktemp("in")
    intake = FolderIntake(str(place), COLUMNS, every=1_000.0)
    real = {name: getattr(os, name) for name in ("pwrite", "fsync", "ftruncate", "rename")}
    taken = set()
    with pytest.MonkeyPatch.context() as patch:
        intake._syncs = 0.0
        for n, fault in steps:
            for name, own in real.items():
                patch.setattr(file_log.os, name, own)

            def fail(*given):
                raise OSError(28, "No space left on device")

            def short(handle, data, at):
                real["pwrite"](handle, bytes(data)[: len(data) // 2], at)
                fail()

            if "write" in fault:
                patch.setattr(file_log.os, "pwrite", short)
            if "sync" in fault:
                patch.setattr(file_log.os, "fsync", fail)
            if "cut" in fault:
                patch.setattr(file_log.os, "ftruncate", fail)
            if "rename" in fault:
                patch.setattr(file_log.os, "rename", fail)
                intake._log._next = 0.0
            if fault == "away":
                # moved by hand and back: refused meanwhile, or not
                with held_still(intake):
                    hidden = [(one, place / f"x{one.name}") for one in place.glob(".*.part")]
                    for one, other in hidden:
                        real["rename"](one, other)
            try:
                intake.put([post(n, 2)]).result(10)
                taken.add(n)
            except OSError:
                pass
            if fault == "away":
                for one, other in hidden:
                    real["rename"](other, one)
    if killed:
        # as if: its files stay as they are, and nobody is at them
        other = place.with_name(f"{place.name}-copy")
        with held_still(intake):
            shutil.copytree(place, other)
        intake.close()
        place = other
    else:
        intake.close()
    again = FolderIntake(str(place), COLUMNS, every=0.0)
    there = keys_of(place)
    assert {f"k{n}" for n in taken} <= set(there)
    sent = sorted({n for n, _ in steps})
    for n, receipt in zip(sent, again.put([post(n, 2) for n in sent]).result(10), strict=True):
        assert receipt.repeated == (f"k{n}" in there)
    again.close()
    assert keys_of(place) == {f"k{n}": 2 for n in sent}
    assert not list(place.glob(".ratings-*"))


def test_what_another_service_is_writing_is_left_alone(tmp_path, monkeypatch):
    first = FolderIntake(str(tmp_path), COLUMNS, every=1_000.0)
    for n in range(3):
        first.put([post(n)]).result(10)
    (hidden,) = tmp_path.glob(".*")
    monkeypatch.setattr(folder, "_LOOKS", 0.1)
    second = FolderIntake(str(tmp_path), COLUMNS, every=1_000.0)
    second.put([post(10)]).result(10)
    second.put([post(11)]).result(10)
    time.sleep(0.3)
    assert hidden.exists()
    assert keys_of(tmp_path) == {"k0": 1, "k10": 1}
    assert first.put([post(3)]).result(10)
    # it ends without a word, and the other one takes its file over
    first._log._file.close()
    deadline = time.monotonic() + 10
    while hidden.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert keys_of(tmp_path) == {"k0": 1, "k1": 1, "k2": 1, "k3": 1, "k10": 1}
    assert second.put([post(2)]).result(10)[0].repeated
    second.close()
    # it is not dead after all: what it is sent goes to another file
    first.put([post(4)]).result(10)
    first.close()
    assert keys_of(tmp_path) == {f"k{n}": 1 for n in (0, 1, 2, 3, 4, 10, 11)}


def test_a_service_that_starts_beside_another_knows_what_it_has_taken(tmp_path):
    """As where a new one takes the place of an old one: none of both shows a post twice."""
    first = FolderIntake(str(tmp_path), COLUMNS, every=1_000.0)
    for n in range(3):
        first.put([post(n, 2)]).result(10)
    second = FolderIntake(str(tmp_path), COLUMNS, every=1_000.0)
    assert [one.user for one in second.found] == [0, 0, 1, 1, 2, 2]
    assert second.put([post(0, 2)]).result(10)[0].repeated
    # it may be refused there yet
    with pytest.raises(OSError, match="again in a second"):
        second.put([post(1, 2)]).result(10)
    first.put([post(3, 2)]).result(10)
    # it is killed: what it took is shown, also what the other one knew of
    first._log._file.close()
    second._past.look(second._log.holds)
    assert keys_of(tmp_path) == {f"k{n}": 2 for n in range(4)}
    assert all(second.put([post(n, 2)]).result(10)[0].repeated for n in range(4))
    second.close()


@pytest.mark.parametrize("gone", [False, True])
def test_what_another_service_took_is_known_once_it_is_seen(tmp_path, gone):
    """Also where a stream has learned and deleted it by then."""
    first = FolderIntake(str(tmp_path), COLUMNS, every=1_000.0)
    for n in range(3):
        first.put([post(n, 2)]).result(10)
    second = FolderIntake(str(tmp_path), COLUMNS, every=1_000.0)
    first.close()
    if gone:
        for file in tmp_path.glob("ratings-*"):
            file.unlink()
    assert all(second.put([post(n, 2)]).result(10)[0].repeated for n in range(3))
    assert not second._past._hidden
    assert not second._past._open
    second.close()
    assert keys_of(tmp_path) == ({} if gone else {f"k{n}": 2 for n in range(3)})


def test_where_there_are_no_locks_a_file_is_taken_over_by_its_age(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    (key, rows) = post(1, 2)
    lines = [json.dumps(row) + "\n" for row in make_lines(COLUMNS, key, rows)]
    hidden = left_hidden(tmp_path, "".join(lines).encode())
    FolderIntake(str(tmp_path), COLUMNS).close()
    assert hidden.exists()
    os.utime(hidden, (time.time() - 120,) * 2)
    intake = FolderIntake(str(tmp_path), COLUMNS, every=1_000.0)
    assert keys_of(tmp_path) == {"k1": 2}
    # its own files are not old ones, whatever their times say
    for n in range(2, 5):
        intake.put([post(n)]).result(10)
    (own,) = tmp_path.glob(".*")
    os.utime(own, (time.time() - 120,) * 2)
    intake._past.look(intake._log.holds)
    assert own.exists()
    intake.close()
    assert keys_of(tmp_path) == {"k1": 2, "k2": 1, "k3": 1, "k4": 1}


def test_a_file_of_other_columns_that_was_left_hidden(tmp_path, monkeypatch, caplog):
    left_hidden(tmp_path, b'{"userId": 1}\n')
    with pytest.raises(ValueError, match="columns"):
        FolderIntake(str(tmp_path), COLUMNS)
    for file in tmp_path.iterdir():
        file.unlink()
    monkeypatch.setattr(folder, "_LOOKS", 0.05)
    intake = FolderIntake(str(tmp_path), COLUMNS)
    left_hidden(tmp_path, b'{"userId": 1}\n')
    deadline = time.monotonic() + 10
    while "columns" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.02)
    assert "columns" in caplog.text
    assert intake.put([post(1)]).result(10)
    intake.close()


def write_file(place, n, ones, age):
    """A file of the inbox as it was written so many seconds ago."""
    place.mkdir(parents=True, exist_ok=True)
    written = time.time() - age
    file = place / f"ratings-{int(written * 1e9):020d}-{n:08x}.json"
    rows = [row for key, told in ones for row in make_lines(COLUMNS, key, told)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.utime(file, (written, written))
    return file


DAY = 86_400.0


@given(
    ages=st.lists(st.floats(1.0, 3 * DAY), min_size=1, max_size=12),
    remembered=st.integers(0, 12),
    moved=st.sets(st.integers(0, 11)),
    most=st.sampled_from([3, 1_000_000]),
)
@settings(deadline=None, max_examples=60)
def test_what_is_remembered_at_a_start(tmp_path_factory, ages, remembered, moved, most):
    """The newest ratings, the newest keys of a day, all that was told of items; archived too."""
    place = tmp_path_factory.mktemp("inbox")
    archive = tmp_path_factory.mktemp("archive")
    ages = sorted(ages, reverse=True)
    for n, age in enumerate(ages):
        about = Told(1, 100 + n, {"genre": "x"}, (1.0,), f"t{n}", 5)
        ones = [post(n, 2), (f"{UNNAMED}{n}", [Posted(n, 7, 1.0, n)]), (f"t{n}", [about])]
        deep = archive / str(place).lstrip("/")
        write_file(deep if n in moved else place, n, ones, age)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "Keys", lambda seconds: Keys(seconds, most))
        intake = FolderIntake(
            str(place), COLUMNS, remembered=remembered, archive=str(archive), every=0.0
        )
    ratings = [one for n in range(len(ages)) for one in (*post(n, 2)[1], Posted(n, 7, 1.0, n))]
    assert list(intake.found) == (ratings[-remembered:] if remembered else [])
    assert [one.title for one in intake.told] == [f"t{n}" for n in range(len(ages))]
    fresh = [n for n, age in enumerate(ages) if age < DAY - 60]
    if most > 3:
        assert all(intake.put([post(n, 2)]).result(10)[0].repeated for n in fresh)
    else:
        # keys of items, too
        assert all(intake.put([post(n, 2)]).result(10)[0].repeated for n in fresh[-1:])
    for n, age in enumerate(ages):
        if age > DAY + 60:
            assert not intake.put([post(n, 2)]).result(10)[0].repeated
    intake.close()


def test_a_file_is_moved_away_while_it_is_read_back(tmp_path, monkeypatch):
    """A stream archives, or deletes, what it has learned whenever it likes."""
    inbox, archive = tmp_path / "in", tmp_path / "done"
    files = [write_file(inbox, n, [post(n)], 100.0 - n) for n in range(4)]
    archive.mkdir()
    real = Path.read_bytes

    def read(self):
        if self == files[1]:
            os.rename(self, archive / self.name)
        if self == files[2]:
            self.unlink(missing_ok=True)
        return real(self)

    monkeypatch.setattr(Path, "read_bytes", read)
    intake = FolderIntake(str(inbox), COLUMNS, archive=str(archive))
    assert [one.user for one in intake.found] == [0, 1, 3]
    assert intake.put([post(1)]).result(10)[0].repeated
    intake.close()


def test_an_archive_needs_an_inbox(tmp_path):
    from sparkml_sgdals.serving import serve

    with pytest.raises(ValueError, match="inbox"):
        serve(str(tmp_path / "model"), archive=str(tmp_path))


def text_of(*posts):
    """Posts as they stand in a file."""
    rows = (row for key, ones in posts for row in make_lines(COLUMNS, key, ones))
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_services_that_look_for_what_was_left_never_take_what_is_written(tmp_path):
    """A new file is there before it is locked."""
    log, ended, taken = file_log.FileLog(tmp_path, 0.0), threading.Event(), []

    def look():
        while not ended.is_set():
            for path in file_log.hidden_files(tmp_path):
                file = file_log.HiddenFile.adopt(path)
                if file is not None:
                    file.show_as_new() if file.read() else file.drop()

    lookers = [threading.Thread(target=look) for _ in range(3)]
    for one in lookers:
        one.start()
    until, n = time.monotonic() + 1.5, 0
    while time.monotonic() < until:
        n += 1
        try:
            log.append(text_of(post(n)))
            taken.append(f"k{n}")
        except OSError:
            continue
    ended.set()
    for one in lookers:
        one.join()
    log.close()
    there = keys_of(tmp_path)
    assert len(taken) > 20
    assert {key: there[key] for key in taken} == dict.fromkeys(taken, 1)


def no_files(*given):
    raise OSError(24, "Too many open files")


def too_deep(place):
    left_hidden(place, b"[" * 100_000)


def no_file(place):
    (place / ".ratings-1-1.json.part").mkdir()
    (place / ".ratings-1-1.json.1.part.new").mkdir()


@pytest.mark.parametrize("what", [no_files, too_deep, no_file])
def test_whatever_lies_there_posts_are_taken(tmp_path, monkeypatch, what):
    monkeypatch.setattr(folder, "_LOOKS", 0.02)
    intake = FolderIntake(str(tmp_path), COLUMNS)
    if what is no_files:
        monkeypatch.setattr(read_back, "hidden_files", no_files)
    else:
        what(tmp_path)
    for n in range(4):
        time.sleep(0.05)
        assert intake.put([post(n)]).result(10)
    intake.close()
    if what is not no_files:
        again = FolderIntake(str(tmp_path), COLUMNS)
        assert len(again.found) == 4
        again.close()


def test_what_cannot_be_synced_is_not_told_of(tmp_path, monkeypatch):
    """A kill between write and sync: a power cut may still take it."""
    left_hidden(tmp_path, text_of(post(1, 2), post(2, 2)))
    real = os.fsync

    def fail(handle):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(file_log.os, "fsync", fail)
    intake = FolderIntake(str(tmp_path), COLUMNS, every=1_000.0)
    monkeypatch.setattr(file_log.os, "fsync", real)
    assert not keys_of(tmp_path)
    with pytest.raises(OSError, match="again in a second"):
        intake.put([post(1, 2)]).result(10)
    intake._past.look(intake._log.holds)
    assert keys_of(tmp_path) == {"k1": 2, "k2": 2}
    assert intake.put([post(1, 2)]).result(10)[0].repeated
    intake.close()
    assert keys_of(tmp_path) == {"k1": 2, "k2": 2}


def test_what_is_shown_while_a_service_starts_beside_it(tmp_path, monkeypatch):
    first = FolderIntake(str(tmp_path), COLUMNS, every=1_000.0)
    for n in range(4):
        first.put([post(n, 2)]).result(10)
    real = read_back.ReadBack._left_behind

    def then_shown(self, *given):
        files = real(self, *given)
        first._log.show_due(at_once=True)
        return files

    monkeypatch.setattr(read_back.ReadBack, "_left_behind", then_shown)
    second = FolderIntake(str(tmp_path), COLUMNS, every=1_000.0)
    assert [one.user for one in second.found] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert all(second.put([post(n, 2)]).result(10)[0].repeated for n in range(4))
    first.close()
    second.close()
    assert keys_of(tmp_path) == {f"k{n}": 2 for n in range(4)}


def test_what_another_service_refuses_after_all(tmp_path):
    """It was read while it was written."""
    first = FolderIntake(str(tmp_path), COLUMNS, every=1_000.0)
    first.put([post(0)]).result(10)
    first.put([post(1)]).result(10)
    file = first._log._file
    os.pwrite(file._handle, text_of(post(2)), file.length)
    second = FolderIntake(str(tmp_path), COLUMNS, every=0.0)
    for n in (1, 2):
        with pytest.raises(OSError, match="again in a second"):
            second.put([post(n)]).result(10)
    file.cut()
    first.close()
    assert not second.put([post(2)]).result(10)[0].repeated
    assert second.put([post(1)]).result(10)[0].repeated
    second.close()
    assert keys_of(tmp_path) == {"k0": 1, "k1": 1, "k2": 1}


def test_a_folder_that_cannot_be_synced_shows_nothing_twice(tmp_path, monkeypatch):
    left_hidden(tmp_path, text_of(post(0), post(1)) + b'{"torn')

    def fail(place):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(file_log, "_sync_folder", fail)
    intake = FolderIntake(str(tmp_path), COLUMNS, every=0.0)
    assert keys_of(tmp_path) == {"k0": 1, "k1": 1}
    monkeypatch.undo()
    intake._past.look(intake._log.holds)
    assert all(intake.put([post(n)]).result(10)[0].repeated for n in range(2))
    intake.close()
    assert keys_of(tmp_path) == {"k0": 1, "k1": 1}
    assert not list(tmp_path.glob(".*"))


def test_of_a_key_that_was_refused_and_sent_again_the_last_one_stands(tmp_path):
    other = ("k1", [Posted(1, 0, 5.0, 1)])
    for number, ones in enumerate([[post(0), post(1)], [other, post(2)]]):
        path = left_hidden(tmp_path, text_of(*ones))
        os.rename(path, tmp_path / f".ratings-{number:020d}-0.json.part")
    intake = FolderIntake(str(tmp_path), COLUMNS)
    assert keys_of(tmp_path) == {"k0": 1, "k1": 1, "k2": 1}
    assert [one.rating for one in intake.found] == [3.0, 5.0, 3.0]
    first, second = sorted(tmp_path.iterdir())
    assert first.stat().st_mtime_ns <= second.stat().st_mtime_ns
    assert time.time() - first.stat().st_mtime < 60
    intake.close()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="nothing counts open files")
def test_no_file_stays_open_where_it_cannot_be_deleted(tmp_path, monkeypatch):
    intake = FolderIntake(str(tmp_path), COLUMNS, every=0.0)
    real = os.pwrite

    def fail(*given, **named):
        raise OSError(30, "Read-only file system")

    before = len(os.listdir("/proc/self/fd"))
    for n in range(5):
        with monkeypatch.context() as patch:
            patch.setattr(file_log.os, "fsync", fail)
            patch.setattr(Path, "unlink", fail)
            with pytest.raises(OSError, match="Read-only"):
                intake.put([post(n)]).result(10)
    assert len(os.listdir("/proc/self/fd")) <= before
    assert os.pwrite is real
    intake.close()
    again = FolderIntake(str(tmp_path), COLUMNS, every=0.0)
    assert not again.found
    again.close()


def test_keys_are_counted_not_lines(tmp_path, monkeypatch):
    for n in range(20):
        unnamed = (f"{UNNAMED}{n}", [Posted(n, place, 1.0, n) for place in range(20)])
        write_file(tmp_path, n, [post(n, 20), unnamed], 100.0 - n)
    monkeypatch.setattr(folder, "Keys", lambda seconds: Keys(seconds, 15))
    intake = FolderIntake(str(tmp_path), COLUMNS, every=0.0, remembered=5)
    assert all(intake.put([post(n, 20)]).result(10)[0].repeated for n in range(5, 20))
    assert not intake.put([post(4, 20)]).result(10)[0].repeated
    intake.close()


def test_what_an_earlier_release_did_not_acknowledge_goes(tmp_path):
    old, new = tmp_path / ".ratings-1-1.json.tmp", tmp_path / ".ratings-2-2.json.tmp"
    for file in (old, new):
        file.write_bytes(text_of(post(1)))
    os.utime(old, (time.time() - 3600,) * 2)
    intake = FolderIntake(str(tmp_path), COLUMNS)
    assert list(tmp_path.iterdir()) == [new]
    assert not intake.found
    intake.close()


def test_refused_there_and_taken_elsewhere(tmp_path):
    """What was refused is not cut off yet, and was sent again: what is seen counts."""
    first = FolderIntake(str(tmp_path), COLUMNS, every=1_000.0)
    for n in (0, 1):
        first.put([post(n)]).result(10)
    file = first._log._file
    os.pwrite(file._handle, text_of(("k2", [Posted(2, 0, 1.0, 2)])), file.length)
    write_file(tmp_path, 9, [("k2", [Posted(2, 0, 5.0, 2)])], 0.0)
    second = FolderIntake(str(tmp_path), COLUMNS, every=0.0)
    assert second.put([("k2", [Posted(2, 0, 5.0, 2)])]).result(10)[0].repeated
    # it is killed before it cuts
    file.close()
    second._past.look(second._log.holds)
    assert keys_of(tmp_path) == {"k0": 1, "k1": 1, "k2": 1}
    second.close()


@pytest.mark.parametrize("refused", [False, True])
def test_a_killed_ones_post_that_another_service_is_writing_just_now(tmp_path, refused):
    left_hidden(tmp_path, text_of(post(5), post(6)))
    first = FolderIntake(str(tmp_path / "other"), COLUMNS, every=1_000.0)
    first._log.folder = tmp_path
    first._log._next = time.monotonic() + 1_000.0
    first.put([post(0)]).result(10)
    file = first._log._file
    os.pwrite(file._handle, text_of(post(5)), file.length)
    second = FolderIntake(str(tmp_path), COLUMNS, every=0.0)
    assert not keys_of(tmp_path)
    assert second.put([post(6)]).result(10)[0].repeated
    if refused:
        file.cut()
    else:
        file.length += len(text_of(post(5)))
    first.close()
    for _ in range(2):
        second._past.look(second._log.holds)
    assert keys_of(tmp_path) == {"k0": 1, "k5": 1, "k6": 1}
    assert all(second.put([post(n)]).result(10)[0].repeated for n in (0, 5, 6))
    second.close()


def test_one_file_that_cannot_be_read_keeps_no_other_hidden(tmp_path):
    intake = FolderIntake(str(tmp_path), COLUMNS)
    left_hidden(tmp_path, b'{"userId": 1}\n')
    left_hidden(tmp_path, text_of(post(1)))
    left_hidden(tmp_path, b'{"userId": 1}\n')
    intake._past.look(intake._log.holds)
    assert keys_of(tmp_path) == {"k1": 1}
    intake.close()


def test_two_that_take_the_same_file_over_where_there_are_no_locks(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    path = left_hidden(tmp_path, text_of(post(1)))
    os.utime(path, (time.time() - 120,) * 2)
    first = file_log.HiddenFile.adopt(path)
    for hidden in file_log.hidden_files(tmp_path):
        assert file_log.HiddenFile.adopt(hidden) is None
    assert file_log.HiddenFile.adopt(path) is None
    first.show_as_new()
    assert keys_of(tmp_path) == {"k1": 1}


def test_where_no_file_is_its_own_posts_are_refused(tmp_path, monkeypatch):
    intake = FolderIntake(str(tmp_path), COLUMNS)
    with monkeypatch.context() as patch:
        patch.setattr(file_log.HiddenFile, "is_there", lambda self: False)
        with pytest.raises(OSError, match="own"):
            intake.put([post(1)]).result(10)
    assert not list(tmp_path.iterdir())
    assert intake.put([post(1)]).result(10)
    intake.close()


def test_whatever_fails_a_post_is_answered(tmp_path, monkeypatch):
    intake = FolderIntake(str(tmp_path), COLUMNS, every=0.0)
    intake.put([post(1)]).result(10)

    def fail(key):
        raise RuntimeError("a fault")

    with monkeypatch.context() as patch:
        patch.setattr(intake._past, "is_sure", fail)
        with pytest.raises(RuntimeError, match="a fault"):
            intake.put([post(1)]).result(10)
    assert intake.put([post(1)]).result(10)[0].repeated
    intake.close()


def test_what_can_neither_be_cut_nor_deleted_stays_with_its_owner(tmp_path, monkeypatch):
    intake = FolderIntake(str(tmp_path), COLUMNS, every=0.0)

    def fail(*given, **named):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(file_log.os, "fsync", fail)
        patch.setattr(file_log.os, "ftruncate", fail)
        patch.setattr(Path, "unlink", fail)
        with pytest.raises(OSError, match="Read-only"):
            intake.put([post(1)]).result(10)
    other = FolderIntake(str(tmp_path), COLUMNS, every=0.0)
    assert not keys_of(tmp_path)
    assert not intake.put([post(1)]).result(10)[0].repeated
    intake.close()
    other.close()
    assert keys_of(tmp_path) == {"k1": 1}


def test_refused_and_taken_by_one_that_is_killed_then(tmp_path):
    """Another service has looked between the two."""
    first = FolderIntake(str(tmp_path), COLUMNS, every=1_000.0)
    for n in (0, 1):
        first.put([post(n)]).result(10)
    refused = first._log._file
    os.pwrite(refused._handle, text_of(post(2)), refused.length)
    second = FolderIntake(str(tmp_path), COLUMNS, every=0.0)
    first._log._file = None
    first.put([post(2)]).result(10)
    first._log._file.close()
    refused.close()
    for _ in range(2):
        second._past.look(second._log.holds)
    assert keys_of(tmp_path) == {"k0": 1, "k1": 1, "k2": 1}
    assert all(second.put([post(n)]).result(10)[0].repeated for n in range(3))
    second.close()


def test_refused_and_taken_again_by_one_that_another_service_knows_nothing_of(tmp_path):
    """It was started before; what is seen tells it."""
    second = FolderIntake(str(tmp_path), COLUMNS, every=0.0)
    first = FolderIntake(str(tmp_path), COLUMNS, every=1_000.0)
    for n in (0, 1):
        first.put([post(n)]).result(10)
    refused = first._log._file
    os.pwrite(refused._handle, text_of(post(2)), refused.length)
    first._log._file = None
    first.put([post(2)]).result(10)
    first._log.show_due(at_once=True)
    refused.close()
    second._past.look(second._log.holds)
    assert keys_of(tmp_path) == {"k0": 1, "k1": 1, "k2": 1}
    assert all(second.put([post(n)]).result(10)[0].repeated for n in range(3))
    first.close()
    second.close()
