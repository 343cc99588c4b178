"""Jobs that wait together for a disk or a network."""

import multiprocessing
import threading
import time

import pytest

from sparkml_sgdals.arrays.threads import Together


def test_jobs_run_at_once() -> None:
    met = threading.Barrier(4)
    together = Together()
    for _ in range(4):
        together.add(lambda: met.wait(10))
    together.wait()


def test_all_have_ended_before_a_failure_is_told() -> None:
    ended: list[int] = []
    together = Together()

    def fail(number: int) -> None:
        raise OSError(number)

    together.add(lambda: (time.sleep(0.1), fail(1)))
    together.add(lambda: fail(2))
    together.add(lambda: (time.sleep(0.2), ended.append(3)))
    with pytest.raises(OSError, match="1"):
        together.wait()
    assert ended == [3]
    # it is told once
    together.add(lambda: ended.append(4))
    together.wait()
    assert ended == [3, 4]


def _in_child() -> None:
    test_jobs_run_at_once()


def test_a_forked_process_has_threads_of_its_own() -> None:
    test_jobs_run_at_once()
    child = multiprocessing.get_context("fork").Process(target=_in_child)
    child.start()
    child.join(20)
    assert child.exitcode == 0
    child.close()
