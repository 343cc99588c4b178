"""What Prometheus may know of the service; each service has a registry of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from sparkml_sgdals.serving.model.approximate import Approximate
from sparkml_sgdals.serving.model.holder import ModelHolder
from sparkml_sgdals.serving.model.judge import Judge

__all__ = ["Gauges"]

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class Gauges:
    """Counters and gauges of one service."""

    def __init__(
        self, holder: ModelHolder, judge: Judge, approximate: Approximate | None = None
    ) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self._requests = Counter(
            "sparkml_sgdals_requests",
            "Requests by route and status",
            ["route", "status"],
            registry=own,
        )
        self._seconds = Histogram(
            "sparkml_sgdals_request_seconds", "Time of requests by route", ["route"],
            buckets=_SECONDS, registry=own,
        )  # fmt: skip
        self.taken = Counter("sparkml_sgdals_ratings_taken", "Ratings acknowledged", registry=own)
        self.repeated = Counter(
            "sparkml_sgdals_posts_repeated", "Posts whose key had been taken", registry=own
        )
        self.refused = Counter(
            "sparkml_sgdals_posts_refused", "Posts by cause", ["cause"], registry=own
        )

        gauge = self.add

        def number(of) -> float:  # type: ignore[no-untyped-def]
            commit = holder.commit
            return float("nan") if commit is None else float(of(commit))

        gauge("model_version", "Version served", lambda: number(lambda c: c.version))
        gauge(
            "model_ratings", "Ratings learned",
            lambda: number(lambda c: c.scalars["counters"]["ratings"]),
        )  # fmt: skip
        gauge("model_swaps", "Versions taken up since the start", lambda: float(holder.swaps))
        gauge("model_load_seconds", "Time to take up the last", lambda: holder.load_seconds)
        gauge("model_mapped_bytes", "Bytes of mapped factors", lambda: float(holder.nbytes))
        gauge(
            "model_failing", "1 while the newest version cannot be taken up",
            lambda: float(holder.failure is not None),
        )  # fmt: skip
        gauge(
            "model_gone", "1 while the model path holds no version",
            lambda: float(holder.gone),
        )  # fmt: skip
        gauge(
            "model_beats_baseline", "1 where the version served is known to beat its baseline",
            lambda: float("nan") if judge.good is None else float(judge.good),
        )  # fmt: skip
        if approximate is not None:

            def built(of) -> float:  # type: ignore[no-untyped-def]
                held = approximate.built
                return float("nan") if held is None else float(of(held))

            gauge(
                "index_recall", "Recall@10 of the approximate index, measured at its build",
                lambda: built(lambda b: b.recall),
            )  # fmt: skip
            gauge(
                "index_version", "Version that the approximate index was built of",
                lambda: built(lambda b: b.version),
            )  # fmt: skip
            gauge("index_builds", "Approximate indexes built", lambda: float(approximate.builds))
        Gauge("sparkml_sgdals_start_time_seconds", "Start of the service", registry=own).set(
            time.time()
        )

    def add(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Have a number told that a function returns."""
        Gauge(f"sparkml_sgdals_{name}", text, registry=self.registry).set_function(value)

    def observed(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(route, str(status)).inc()
        # the time of a stream of events says nothing
        if route != "/events":
            self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All of it, in Prometheus's format."""
        return bytes(generate_latest(self.registry))
