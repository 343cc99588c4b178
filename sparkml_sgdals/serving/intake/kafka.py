"""Ratings taken in through Kafka: acknowledged when all in-sync replicas have them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Final

from confluent_kafka import KafkaException, Producer

from sparkml_sgdals.serving.intake.history import IntakeColumns
from sparkml_sgdals.serving.intake.keys import DAY, Keys, KeyTakenError
from sparkml_sgdals.serving.intake.posts import Post, Receipt, digest_of, make_lines

__all__ = ["KafkaIntake"]

_SECONDS: Final = 20.0
_MOST_UNDER_WAY: Final = 100_000
_FORGOTTEN: Final = 10_000


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
        key_seconds: float = DAY,
        seconds: float = _SECONDS,
    ) -> None:
        self._topic, self._columns = topic, columns
        self._keys = Keys(key_seconds)
        self._under_way: dict[str, Future[None]] = {}
        """posts that the broker has not acknowledged, or, the newest ones, not taken"""
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

    def put(self, posts: Sequence[Post]) -> Future[list[Receipt]]:
        """Send the posts of a request; done when all are acknowledged, or were before.

        It raises KeyTakenError where a key stands for other ratings, and sends none then; OSError
        where the broker does not take them: some may have arrived then, and the same key sends only
        the same events.
        """
        now = time.time()
        done: Future[list[Receipt]] = Future()
        done.set_running_or_notify_cancel()
        receipts, waits, to_send = [], [], []
        with self._lock:
            own: dict[str, bytes] = {}
            for key, ratings in posts:
                digest = digest_of(ratings)
                known = own.get(key) or self._keys.digest(key, now)
                if known not in (None, digest):
                    done.set_exception(KeyTakenError(key))
                    return done
                earlier = self._under_way.get(key)
                failed = earlier is not None and earlier.done()
                sends = key not in own and (known is None or failed)
                receipts.append(Receipt(key, not sends))
                if sends:
                    to_send.append((key, ratings, Future[None]()))
                elif earlier is not None and not failed:
                    waits.append(earlier)
                own[key] = digest
            for key, _, sent in to_send:
                self._keys.add(key, own[key], now)
                self._under_way.pop(key, None)
                self._under_way[key] = sent
                waits.append(sent)
            self._forget_failed()
        _when_all(waits, receipts, done)
        for key, ratings, sent in to_send:
            self._send(sent, key, make_lines(self._columns, key, ratings))
        return done

    def _forget_failed(self) -> None:
        """Know the newest of many failed posts alone; another may take the key of the others."""
        if len(self._under_way) > _MOST_UNDER_WAY:
            for key in [key for key, one in self._under_way.items() if one.done()][:_FORGOTTEN]:
                del self._under_way[key]
                self._keys.drop(key)

    def _send(self, done: Future[None], key: str, rows: list[dict[str, Any]]) -> None:
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
                    with self._lock:
                        self._under_way.pop(key, None)
                    done.set_result(None)

        try:
            for row in rows:
                self._producer.produce(
                    self._topic,
                    json.dumps(row).encode(),
                    key=_key_of(row, self._columns).encode(),
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


def _key_of(row: dict[str, Any], columns: IntakeColumns) -> str:
    """Return a message's key: its user, or the item that it tells of."""
    user = row[columns.user]
    return str(row[columns.item] if user is None else user)


def _when_all(
    waits: list[Future[None]], receipts: list[Receipt], done: Future[list[Receipt]]
) -> None:
    """Have receipts be told once all posts are acknowledged, or the first failure."""
    left, guard = len(waits), threading.Lock()

    def one_less(one: Future[None]) -> None:
        nonlocal left
        with guard:
            left -= 1
            if done.done():
                return
            failure = one.exception()
            if failure is not None:
                done.set_exception(failure)
            elif not left:
                done.set_result(receipts)

    if not waits:
        done.set_result(receipts)
    for one in waits:
        one.add_done_callback(one_less)
