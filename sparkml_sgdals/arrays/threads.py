"""Run functions on threads, to the same result whatever their number (no Spark)."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Final

__all__ = ["Together", "ranges", "run_all", "workers"]

Job = Callable[[], Any]
_WAITING: Final = 8
"""Threads that wait for a disk or a network at once."""


def run_all(jobs: Iterable[Job], threads: int) -> list[Any]:
    """Run functions that share nothing on up to `threads` threads; their results in order."""
    with workers(threads) as run:
        return run(jobs)


@contextmanager
def workers(threads: int) -> Iterator[Callable[[Iterable[Job]], list[Any]]]:
    """Give what runs functions as `run_all` does, on threads that stay for the next ones."""
    if threads <= 1:
        yield lambda jobs: [job() for job in jobs]
        return
    with ThreadPoolExecutor(threads) as pool:
        yield lambda jobs: [found.result() for found in [pool.submit(job) for job in jobs]]


def ranges(size: int, parts: int) -> list[slice]:
    """Cut 0..size-1 into at most so many ranges of about the same length, none of them empty."""
    parts = max(parts, 1)
    bounds = [size * part // parts for part in range(parts + 1)]
    return [slice(first, last) for first, last in pairwise(bounds) if first < last]


class Together:
    """Jobs that wait for a disk or a network, all at once, while their caller goes on."""

    def __init__(self) -> None:
        self._begun: list[Future[Any]] = []

    def add(self, job: Job) -> None:
        """Begin a job; it runs here and now where the interpreter takes no more threads."""
        try:
            self._begun.append(_waiting().submit(job))
        except RuntimeError:
            # it is about to end
            job()

    def wait(self) -> None:
        """Wait until all jobs have ended; raises what the first of them raised that failed."""
        begun = self._begun
        self.end()
        for found in begun:
            found.result()

    def end(self) -> None:
        """Wait until all jobs have ended, whatever came of them."""
        wait(self._begun)
        self._begun = []


@functools.cache
def _waiting() -> ThreadPoolExecutor:
    """Return threads that stay: on a busy machine a new one takes as long as a sync."""
    return ThreadPoolExecutor(_WAITING, thread_name_prefix="sparkml-sgdals-io")


# a process that was forked has none of them
os.register_at_fork(after_in_child=_waiting.cache_clear)
