"""One writer to a model path, with real processes as holders."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sparkml_sgdals.errors import LeaseError
from sparkml_sgdals.store.lease import Lease, check_holder
from sparkml_sgdals.store.version_store import VersionStore

HOLD = """
import sys
from sparkml_sgdals.store.lease import Lease
from sparkml_sgdals.store.version_store import VersionStore

lease = Lease.acquire(VersionStore(sys.argv[1]), 1000.0)
print(lease.token, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    """An empty model path."""
    return VersionStore(str(tmp_path / "model"))


@pytest.fixture
def holder(store: VersionStore) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, store.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert len(process.stdout.readline().strip()) == 32
    yield process
    process.kill()
    process.communicate()


def held(store: VersionStore) -> dict[str, Any]:
    """The lease as it lies on disk."""
    payload = store.read("lease.json")
    assert payload is not None
    return dict(json.loads(payload))


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether a condition comes true in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_acquire_and_release(store: VersionStore) -> None:
    """The lease says who holds it; released, it is gone and free again."""
    lease = Lease.acquire(store, 30.0)
    found = held(store)
    assert found["token"] == lease.token
    assert found["pid"] == os.getpid()
    assert found["seconds"] == 30.0
    assert found["since"] == pytest.approx(time.time(), abs=5)
    lease.release()
    assert store.read("lease.json") is None
    lease.release()
    again = Lease.acquire(store, 30.0)
    assert again.token != lease.token
    again.release()


def test_a_second_stream_of_this_process_is_refused(store: VersionStore) -> None:
    """The message says who writes and what to do; the lease stays with the first."""
    lease = Lease.acquire(store, 30.0)
    with pytest.raises(LeaseError, match=f"process {os.getpid()}.*Stop that stream") as raised:
        Lease.acquire(store, 30.0)
    message = str(raised.value)
    found = held(store)
    assert f"{found['owner']} on {found['host']} (process {os.getpid()}) since 20" in message
    assert "last sign of life 20" in message
    assert f"After a crash of host {found['host']}, wait 30 seconds" in message
    assert "after a crash of a stream on this host, just start again" in message
    assert f"{store.path}/lease.json" in str(raised.value)
    check_holder(store, lease.token)
    lease.release()


def test_of_many_at_once_one_gets_it(store: VersionStore) -> None:
    """Whoever starts while another starts is refused, and told by whom."""
    won: list[Lease] = []
    refused: list[str] = []
    start = threading.Barrier(8)

    def take() -> None:
        start.wait()
        try:
            won.append(Lease.acquire(store, 30.0))
        except LeaseError as error:
            refused.append(str(error))

    for _ in range(20):
        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert len(refused) == 7
        assert held(store)["token"] == won[0].token
        won.pop().release()
        refused.clear()


def test_paths_do_not_disturb_each_other(tmp_path: Path) -> None:
    """A lease is on one path."""
    leases = [Lease.acquire(VersionStore(str(tmp_path / name)), 30.0) for name in "ab"]
    for lease in leases:
        check_holder(lease.store, lease.token)
        lease.release()


def test_another_living_process_is_refused(
    store: VersionStore, holder: subprocess.Popen[str]
) -> None:
    """On this host a living holder keeps the lease, however long it has not renewed."""
    store.write("lease.json", json.dumps(held(store) | {"renewed": 0.0, "seconds": 0.1}).encode())
    with pytest.raises(LeaseError, match=f"process {holder.pid}"):
        Lease.acquire(store, 30.0)


@pytest.mark.parametrize("reaped", [False, True])
def test_a_holder_that_died_gives_way(
    store: VersionStore, holder: subprocess.Popen[str], reaped: bool
) -> None:
    """Killed, without a chance to release, it is taken over at once, as a zombie too."""
    token = held(store)["token"]
    holder.send_signal(signal.SIGKILL)
    if reaped:
        holder.wait()
    taken: list[Lease] = []

    def acquire() -> bool:
        try:
            taken.append(Lease.acquire(store, 30.0))
        except LeaseError:
            return False
        return True

    # a signal takes a moment to arrive
    assert wait_for(acquire)
    with pytest.raises(LeaseError, match=r"taken over by .*without committing"):
        check_holder(store, token)
    check_holder(store, taken[0].token)
    taken[0].release()


@pytest.mark.parametrize("pid", ["other", "own"])
def test_a_number_of_a_process_used_again(
    store: VersionStore, holder: subprocess.Popen[str], pid: str
) -> None:
    """A process of the same number that started at another time is not the holder."""
    found = held(store) | {"started": "1", "token": "gone"}
    store.write(
        "lease.json", json.dumps(found | ({"pid": os.getpid()} if pid == "own" else {})).encode()
    )
    lease = Lease.acquire(store, 30.0)
    check_holder(store, lease.token)
    lease.release()


@pytest.mark.parametrize(("age", "refused"), [(0.0, True), (25.0, True), (31.0, False)])
def test_another_host_gives_way_by_time(store: VersionStore, age: float, refused: bool) -> None:
    """Of a process elsewhere only its last sign of life is known."""
    lease = Lease.acquire(store, 30.0)
    away = held(store) | {"host": "elsewhere", "renewed": time.time() - age, "token": "other"}
    store.write("lease.json", json.dumps(away).encode())
    if refused:
        with pytest.raises(LeaseError, match=r"on elsewhere .*wait 30 seconds"):
            Lease.acquire(store, 1.0)
        assert held(store)["token"] == "other"
    else:
        taken = Lease.acquire(store, 1.0)
        assert held(store)["token"] == taken.token
        taken.release()
    lease.release()


@pytest.mark.parametrize("damage", [b"", b'{"token": "abc", "ow', b"{}", b"[]"])
def test_a_lease_broken_off_while_written(store: VersionStore, damage: bytes) -> None:
    """Its writer did not get to start."""
    store.write("lease.json", damage)
    with pytest.raises(LeaseError, match="nobody"):
        check_holder(store, "abc")
    lease = Lease.acquire(store, 30.0)
    check_holder(store, lease.token)
    lease.release()


def test_check_holder_of_a_lease_deleted(store: VersionStore) -> None:
    """Who finds no lease must not commit."""
    lease = Lease.acquire(store, 30.0)
    store.delete("lease.json")
    with pytest.raises(LeaseError, match="taken over by nobody"):
        check_holder(store, lease.token)
    lease.release()


def test_release_leaves_the_lease_of_another(store: VersionStore) -> None:
    """Only our own lease is given back."""
    lease = Lease.acquire(store, 30.0)
    other = held(store) | {"token": "other", "host": "elsewhere"}
    store.write("lease.json", json.dumps(other).encode())
    lease.release()
    assert held(store)["token"] == "other"


def test_released_when_the_stream_ends(store: VersionStore) -> None:
    """In the background, without a call."""
    lease = Lease.acquire(store, 30.0)
    running = [True]
    lease.keep_while(lambda: running[0])
    with pytest.raises(LeaseError):
        Lease.acquire(store, 30.0)
    running[0] = False
    # a stream that has ended gives way before its lease is gone
    Lease.acquire(store, 30.0).release()
    assert wait_for(lambda: store.read("lease.json") is None)


def test_released_when_the_session_is_gone(store: VersionStore) -> None:
    """A stream that can no longer say whether it runs does not."""

    def gone() -> bool:
        raise ConnectionError("the session was stopped")

    Lease.acquire(store, 30.0).keep_while(gone)
    assert wait_for(lambda: store.read("lease.json") is None)


def test_a_session_that_is_gone_gives_way(store: VersionStore) -> None:
    """A new stream need not wait for the background to notice."""

    def gone() -> bool:
        raise ConnectionError("the session was stopped")

    Lease.acquire(store, 30.0).keep_while(gone)
    lease = Lease.acquire(store, 30.0)
    check_holder(store, lease.token)
    lease.release()


def test_renewed_while_the_stream_runs(store: VersionStore) -> None:
    """Often enough that a third of its time never passes unseen for long."""
    lease = Lease.acquire(store, 0.9)
    first = held(store)
    lease.keep_while(lambda: True)
    assert wait_for(lambda: held(store)["renewed"] > first["renewed"])
    now = held(store)
    assert {k: v for k, v in now.items() if k != "renewed"} == {
        k: v for k, v in first.items() if k != "renewed"
    }
    lease.release()


def test_a_lease_taken_over_is_not_taken_back(store: VersionStore) -> None:
    """A holder that slept too long finds another one and does not renew over it."""
    lease = Lease.acquire(store, 0.1)
    lease.keep_while(lambda: True)
    other = held(store) | {"token": "other", "host": "elsewhere", "seconds": 1000.0}
    store.write("lease.json", json.dumps(other).encode())
    assert not wait_for(lambda: held(store)["token"] != "other", 1.5)
    lease.release()
    assert held(store)["token"] == "other"


def test_a_check_during_a_renewal_sees_a_whole_lease(tmp_path: Path) -> None:
    """Regression: a reader met the file while it was being rewritten and called it taken over."""
    store = VersionStore(str(tmp_path))
    lease = Lease.acquire(store, 60)
    stop = threading.Event()

    def renew() -> None:
        while not stop.is_set():
            lease.renew()

    writer = threading.Thread(target=renew)
    writer.start()
    try:
        for _ in range(3000):
            check_holder(store, lease.token)
    finally:
        stop.set()
        writer.join()
        lease.release()
