"""Run functions on threads, to the same result whatever their number (no Spark)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

__all__ = ["run_all"]


def run_all(jobs: Iterable[Callable[[], Any]], threads: int) -> list[Any]:
    """Run functions that share nothing on up to `threads` threads; their results in order."""
    if threads <= 1:
        return [job() for job in jobs]
    with ThreadPoolExecutor(threads) as pool:
        return [found.result() for found in [pool.submit(job) for job in jobs]]
