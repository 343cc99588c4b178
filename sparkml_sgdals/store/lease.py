"""One writer to a model path: a lease, taken over where its holder is known to be gone (driver)."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, Final

from sparkml_sgdals.errors import LeaseError, StorageError, user_name
from sparkml_sgdals.store.objects import ObjectStore
from sparkml_sgdals.store.processes import PROCESS, on_this_host, runs, this_process
from sparkml_sgdals.store.shapes import ANYTHING, INSTANT, NUMBER, TEXT, Fields, parse_json

__all__ = ["Lease", "check_holder"]

logger = logging.getLogger(__name__)

_NAME: Final = "lease.json"
_HOLDER: Final = Fields(
    PROCESS
    | {"token": TEXT, "owner": TEXT, "since": INSTANT, "renewed": INSTANT, "seconds": NUMBER},
    others=ANYTHING,
)


def check_holder(store: ObjectStore, token: str) -> None:
    """Raise LeaseError where the path's lease is no longer the one with `token`."""
    holder = _read(store)
    if holder is None or holder["token"] != token:
        who = "nobody" if holder is None else _describe(holder)
        raise LeaseError(
            f"The lease on {store.path} was taken over by {who}: this stream stops without "
            "committing. Nothing is lost; the batch is learned by the holder or after a restart."
        )


class Lease:
    """The right to write versions under one model path, renewed until it is released."""

    # tokens of this process, each with a function that says whether its stream still runs
    _ours: Final[dict[str, Callable[[], bool]]] = {}

    def __init__(self, store: ObjectStore, seconds: float) -> None:
        self.store = store
        self.seconds = seconds
        self.token = uuid.uuid4().hex
        self._released = threading.Event()

    @classmethod
    def acquire(cls, store: ObjectStore, seconds: float) -> Lease:
        """Take the lease.

        A holder on this host whose process is gone, or whose stream in this process has ended,
        gives way at once; any other one when it has not renewed for its `seconds`.

        Raises LeaseError that says who holds it and how to take it over, or that this cannot be
        told.
        """
        holder = _read(store)
        if holder is not None and cls._alive(holder):
            raise LeaseError(
                f"{store.path} is written by {_describe(holder)}, last sign of life "
                f"{_time(holder['renewed'])}. Stop that stream first. After a crash of host "
                f"{holder['host']}, wait {holder['seconds']:g} seconds from that sign of life or, "
                f"where that stream is surely gone, delete {store.path}/{_NAME}; after a crash of "
                "a stream on this host, just start again."
            )
        lease = cls(store, seconds)
        lease._since = time.time()
        # before it is seen by others of this process, who would take it for a dead stream's
        cls._ours[lease.token] = lambda: not lease._released.is_set()
        try:
            if holder is not None:
                lease.renew()
            elif not store.put_new(_NAME, lease._payload()):
                if _read(store) is not None:
                    # another was first; it says who
                    cls._ours.pop(lease.token)
                    return cls.acquire(store, seconds)
                # broken off while it was written
                lease.renew()
            # of two that took over at once, the last one has it
            check_holder(store, lease.token)
        except BaseException:
            cls._ours.pop(lease.token, None)
            raise
        return lease

    def renew(self) -> None:
        """Write the lease with the time of now."""
        self.store.replace(_NAME, self._payload())

    def _payload(self) -> bytes:
        holder = {
            "token": self.token,
            "owner": user_name(),
            **this_process(),
            "since": self._since,
            "renewed": time.time(),
            "seconds": self.seconds,
        }
        return json.dumps(holder).encode()

    def keep_while(
        self, active: Callable[[], bool], ended: Callable[[], None] = lambda: None
    ) -> None:
        """Renew in the background while `active` says so, then release.

        `ended` is called before that, or before another of this process takes the lease; perhaps
        more than once.
        """

        def running() -> bool:
            try:
                found = active()
            except Exception:
                # a session that was stopped cannot say; its streams are gone with it
                found = False
            if not found:
                ended()
            return found

        self._ours[self.token] = running

        def renew() -> None:
            renewed = time.monotonic()
            while not self._released.wait(0.5):
                if not running():
                    break
                if time.monotonic() - renewed > self.seconds / 3:
                    try:
                        holder = _read(self.store)
                        if holder is None or holder["token"] != self.token:
                            # taken over while this process slept: it must not be taken back
                            break
                        self.renew()
                    except LeaseError:
                        # nor where it cannot be told who has it
                        break
                    except (OSError, StorageError):
                        # storage may come back before the lease runs out: try again next round
                        continue
                    renewed = time.monotonic()
            ended()
            self.release()

        threading.Thread(target=renew, name="sparkml-sgdals-lease", daemon=True).start()

    def release(self) -> None:
        """Give the lease back, if it is still ours."""
        if self._released.is_set():
            return
        self._released.set()
        self._ours.pop(self.token, None)
        try:
            holder = _read(self.store)
            if holder is not None and holder["token"] == self.token:
                self.store.delete(_NAME)
        except (OSError, StorageError, LeaseError):
            # it ends by itself: with this process, or elsewhere by not being renewed
            logger.warning("the lease on %s could not be removed", self.store.path)

    _since: float = 0.0

    @classmethod
    def _alive(cls, holder: dict[str, Any]) -> bool:
        if on_this_host(holder):
            if holder["pid"] == os.getpid():
                active = cls._ours.get(holder["token"])
                return active is not None and active()
            return runs(holder)
        return bool(time.time() - holder["renewed"] < holder["seconds"])


def _read(store: ObjectStore) -> dict[str, Any] | None:
    for _ in range(5):
        payload = store.read(_NAME)
        if payload is None:
            return None
        try:
            holder = parse_json(payload)
        except ValueError:
            # where a put is not whole by itself, a reader may meet it half done
            time.sleep(0.02)
            continue
        if not isinstance(holder, dict) or "token" not in holder:
            # without a token nobody can write by it
            return None
        fault = _HOLDER.fault(holder, "it")
        if fault is not None:
            raise LeaseError(
                f"{store.path}/{_NAME} does not say who writes there: {fault}. See that no stream "
                "does, then delete that file."
            )
        return holder
    # broken off while it was written: its writer did not get to start
    return None


def _describe(holder: dict[str, Any]) -> str:
    since = _time(holder["since"])
    return f"{holder['owner']} on {holder['host']} (process {holder['pid']}) since {since}"


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
