"""What is in memory of a model path: its own stream's, one batch at a time, and no longer."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from writing import Stream, Writer

from sparkml_sgdals.fit.plan import FitOptions
from sparkml_sgdals.ingest.columns import RatingColumns
from sparkml_sgdals.store import overlay
from sparkml_sgdals.store.commit import Commit
from sparkml_sgdals.store.lease import Lease
from sparkml_sgdals.stream import micro_batch, residents, start
from sparkml_sgdals.stream.micro_batch import StreamUpdater
from sparkml_sgdals.stream.report import Report
from sparkml_sgdals.stream.residents import Resident, forget_resident, learn_once


class Held(Resident):
    """One that counts how often it is stopped."""

    def __init__(self, commit: Commit, token: str) -> None:
        super().__init__(commit, token)
        self.stops = 0

    def stop(self) -> None:
        self.stops += 1


class ModelPath:
    """A model path, and what was opened there."""

    def __init__(self, folder: Path) -> None:
        self.writer = Writer(folder)
        self.name = str(folder)
        self.opened: list[Held] = []

    def open(self, token: str) -> Held:
        """As an updater does."""
        self.opened.append(Held(self.writer.commit, token))
        return self.opened[-1]

    def commit(self, resident: Held) -> None:
        """Learn a batch and commit it."""
        self.writer.learn()
        resident.commit = self.writer.commit

    def learn(self, batch_id: int, token: str = "a", by: Callable[[Held], None] | None = None):
        """One call of foreachBatch."""
        learn_once(self.name, token, batch_id, lambda: self.open(token), by or self.commit)


@pytest.fixture
def path(tmp_path: Path) -> Iterator[ModelPath]:
    yield ModelPath(tmp_path)
    forget_resident(str(tmp_path))


def in_memory(path: ModelPath) -> Resident | None:
    place = residents._places.get(path.name)
    return None if place is None else place.resident


class TestLearnOnce:
    def test_it_stays_between_batches(self, path):
        path.learn(0)
        path.learn(1)
        assert len(path.opened) == 1
        assert path.writer.commit.batch == 1

    def test_a_batch_that_is_committed(self, path):
        path.learn(0)
        path.learn(0)
        assert path.writer.commit.version == 1

    def test_another_stream_opens_its_own(self, path):
        path.learn(0)
        path.learn(1, "b")
        assert [held.token for held in path.opened] == ["a", "b"]
        assert path.opened[0].stops == 1
        assert in_memory(path) is path.opened[1]

    def test_another_wrote_to_the_path(self, path):
        path.learn(0)
        path.writer.learn()
        path.learn(2)
        assert len(path.opened) == 2

    def test_an_error_drops_it(self, path):
        def fail(held):
            raise OSError("half learned")

        path.learn(0)
        with pytest.raises(OSError, match="half learned"):
            path.learn(1, by=fail)
        assert path.opened[0].stops == 1
        assert residents._places == {}
        path.learn(1)
        assert len(path.opened) == 2

    def test_an_error_when_it_is_opened(self, path):
        with pytest.raises(ZeroDivisionError):
            learn_once(path.name, "a", 0, lambda: 1 // 0, path.commit)
        assert residents._places == {}

    def test_one_at_a_time_wherever_it_is_dropped(self, path):
        """Locks go with what they guard, also while others come and go."""
        inside, most, done = [], [], []

        def learn(held):
            inside.append(held)
            most.append(len(inside))
            stand.wait(0.001)
            inside.remove(held)
            done.append(held)

        stand = threading.Event()

        def call():
            for _ in range(25):
                path.learn(0, by=learn)
                forget_resident(path.name)

        threads = [threading.Thread(target=call) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(done) == 200
        assert set(most) == {1}
        assert residents._places == {}


class TestForgetResident:
    def test_the_lock_goes_with_it(self, path):
        path.learn(0)
        assert list(residents._places) == [path.name]
        forget_resident(path.name, "a")
        assert path.opened[0].stops == 1
        assert residents._places == {}

    def test_the_end_of_a_stream_leaves_the_next_one_alone(self, path):
        path.learn(0)
        path.learn(1, "b")
        forget_resident(path.name, "a")
        assert in_memory(path) is path.opened[1]
        assert path.opened[1].stops == 0
        forget_resident(path.name, "b")
        assert in_memory(path) is None

    def test_nothing_is_there(self, path):
        forget_resident(path.name)
        forget_resident(path.name, "a")
        assert residents._places == {}

    def test_a_batch_that_goes_on(self, path):
        """It comes to its end, and what it has learned does not stay."""

        def ends(held):
            forget_resident(path.name, "a")
            path.commit(held)

        path.learn(0, by=ends)
        assert path.writer.commit.batch == 0
        assert path.opened[0].stops == 1
        assert residents._places == {}

    def test_what_a_last_call_opens_does_not_stay(self, path):
        def opened_late():
            forget_resident(path.name, "a")
            return path.open("a")

        learn_once(path.name, "a", 0, opened_late, path.commit)
        assert len(path.opened) == 1
        assert residents._places == {}

    def test_who_comes_second_waits_for_the_end_too(self, path):
        """Two see the end of a stream; neither gives the lease back before all is written."""
        path.learn(0)
        stops, ends, released = threading.Event(), threading.Event(), []

        def slow():
            stops.set()
            ends.wait(10)

        path.opened[0].stop = slow

        def end():
            forget_resident(path.name, "a")
            released.append(ends.is_set())

        threads = [threading.Thread(target=end) for _ in range(2)]
        threads[0].start()
        assert stops.wait(10)
        threads[1].start()
        threads[1].join(0.2)
        assert released == []
        ends.set()
        for thread in threads:
            thread.join()
        assert released == [True, True]


def test_an_updater_is_pickled_without_what_is_in_memory():
    columns = RatingColumns("user", "item", "rating")
    options = FitOptions(columns, ("int", "int"), "skip", 0, 1, 10, 10)
    updater = StreamUpdater("path", "token", options, 5, 0.0, Report())
    assert pickle.loads(pickle.dumps(updater)) == updater
    assert len(pickle.dumps(updater)) < 1000


@pytest.mark.parametrize("seen_by", ["the lease", "the next writer", "the caller"])
def test_a_stream_that_ends_writes_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen_by: str
) -> None:
    """Its compaction has ended when the path may be written by another."""
    begun, ends = threading.Event(), threading.Event()

    def endless(store: Any, commit: Any, held: Any, touched: Any, check: Any) -> Any:
        begun.set()
        try:
            while True:
                check()
                time.sleep(0.001)
        finally:
            # who does not wait for it finds it running
            time.sleep(0.2)
            ends.set()

    monkeypatch.setattr(overlay, "compact", endless)
    stream = Stream(tmp_path, 80)
    lease = Lease.acquire(stream.store, 30.0)
    active = threading.Event()
    active.set()
    query: Any = SimpleNamespace(isActive=True, awaitTermination=lambda: True, stop=active.clear)
    start_kept(lease, active, str(tmp_path))
    resident = micro_batch._Resident(
        stream.commit, lease.token, stream.part.state, None, stream.part
    )
    residents.learn_once(
        str(tmp_path), lease.token, stream.commit.batch + 1, lambda: resident,
        lambda _: stream.learn(list(range(25))),
    )  # fmt: skip
    assert begun.wait(10)
    if seen_by == "the caller":
        start.StreamJob(query, str(tmp_path), lease, lambda store: Any).stop(drain=False)
    active.clear()
    if seen_by == "the next writer":
        Lease.acquire(stream.store, 30.0).release()
    until = time.monotonic() + 10
    while stream.store.read("lease.json") is not None and time.monotonic() < until:
        time.sleep(0.01)
    assert stream.store.read("lease.json") is None
    assert ends.is_set()
    assert str(tmp_path) not in residents._places


def start_kept(lease: Lease, active: threading.Event, path: str) -> None:
    """Keep the lease as a stream does."""
    lease.keep_while(active.is_set, ended=lambda: residents.forget_resident(path, lease.token))
