"""Run functions on threads, to the same result whatever their number (no Spark)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

__all__ = ["ranges", "run_all", "workers"]

Job = Callable[[], Any]


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
