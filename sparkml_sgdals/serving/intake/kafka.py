"""Ratings taken in through Kafka: acknowledged when all in-sync replicas have them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Final

from confluent_kafka import KafkaException, Producer

from sparkml_sgdals.serving.intake.folder import (
    KeyTakenError,
    Posted,
    Receipt,
    digest_of,
    make_lines,
)
from sparkml_sgdals.serving.intake.history import IntakeColumns

__all__ = ["KafkaIntake"]

_SECONDS: Final = 20.0


class KafkaIntake:
    """Sends ratings to a topic as JSON, a message a rating, keyed by its user.

    Keys are known for `key_seconds`, in memory: after a start of the service, repeats are told by
    the stream (`eventIdCol`).

    After `seconds` a broker that has not answered is a failure to the client.

    Raises ConnectionError where no broker answers.
    """

    def __init__(
        self,
        address: str,
        topic: str,
        columns: IntakeColumns,
        key_seconds: float = 86_400.0,
        seconds: float = _SECONDS,
    ) -> None:
        self._topic, self._columns, self._key_seconds = topic, columns, key_seconds
        self._keys: dict[str, tuple[str, float, Future[Receipt]]] = {}
        self._lock = threading.Lock()
        self._producer = Producer(
            {
                "bootstrap.servers": address,
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": 2,
                "message.timeout.ms": int(seconds * 1_000),
                "log_level": 3,
            }
        )
        try:
            self._producer.list_topics(timeout=seconds)
        except KafkaException as failure:
            raise ConnectionError(f"No Kafka at {address}: {failure.args[0].str()}.") from failure
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="kafka", daemon=True)
        self._thread.start()

    def put(self, key: str, ratings: Sequence[Posted]) -> Future[Receipt]:
        """Send ratings; the future is done when every one is acknowledged, or was before.

        It raises KeyTakenError where the key stands for other ratings, OSError where the broker
        does not take them: some may have arrived then, and the same key sends only the same events.
        """
        digest, now = digest_of(ratings), time.time()
        done: Future[Receipt] = Future()
        with self._lock:
            held = self._keys.get(key)
            if held is not None and held[1] >= now - self._key_seconds:
                if held[0] != digest:
                    done.set_exception(KeyTakenError(key))
                    return done
                earlier = held[2]
                failed = earlier.done() and earlier.exception() is not None
                if not failed:
                    earlier.add_done_callback(lambda one: _pass_on(one, done, key))
                    return done
            self._keys[key] = (digest, now, done)
            if len(self._keys) > 1_000_000:
                since = now - self._key_seconds
                self._keys = {k: v for k, v in self._keys.items() if v[1] >= since}
        self._send(done, key, make_lines(self._columns, key, ratings))
        return done

    def _send(self, done: Future[Receipt], key: str, rows: list[dict[str, Any]]) -> None:
        left = len(rows)
        guard = threading.Lock()

        def delivered(error: Any, message: Any) -> None:
            nonlocal left
            with guard:
                left -= 1
                if done.done():
                    return
                if error is not None:
                    done.set_exception(OSError(f"Kafka did not take a rating: {error.str()}"))
                elif not left:
                    done.set_result(Receipt(key, False))

        try:
            for row in rows:
                self._producer.produce(
                    self._topic,
                    json.dumps(row, ensure_ascii=False).encode(),
                    key=str(row[self._columns.user]).encode(),
                    on_delivery=delivered,
                )
        except (BufferError, KafkaException) as failure:
            with guard:
                if not done.done():
                    done.set_exception(OSError(f"Kafka takes no ratings now: {failure}"))

    def close(self) -> None:
        """Wait for what is under way, then end."""
        self._producer.flush(10.0)
        self._ended.set()
        self._thread.join(5.0)

    def _poll(self) -> None:
        while not self._ended.is_set():
            self._producer.poll(0.1)


def _pass_on(earlier: Future[Receipt], done: Future[Receipt], key: str) -> None:
    failure = earlier.exception()
    if failure is not None:
        done.set_exception(failure)
    else:
        done.set_result(Receipt(key, True))
