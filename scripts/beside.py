"""A service of this machine's own beside a command, or until Ctrl-C: what such scripts share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FrameType
from typing import Protocol, TypeVar


class Service(Protocol):
    """What runs.

    Attributes
    ----------
    address : where it is asked
    alive : whether it runs
    """

    @property
    def address(self) -> str: ...

    @property
    def alive(self) -> bool: ...


S = TypeVar("S", bound=Service)


def run(command: list[str], environment: dict[str, str]) -> int:
    """Run a command with these variables besides; its exit code."""
    process = subprocess.Popen(command, env=os.environ | environment)
    try:
        return process.wait()
    finally:
        # Ctrl-C reached it too; whatever else ended us, it ends with us
        if process.poll() is None:
            process.terminate()
            process.wait()


def serve(
    what: str,
    start: Callable[[], AbstractContextManager[S]],
    command: list[str],
    environment: Callable[[S], dict[str, str]],
) -> int:
    """Start a service for a command, or until Ctrl-C; the exit code."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    # the terminal was closed
    signal.signal(signal.SIGHUP, end)
    try:
        with start() as service:
            if command:
                return run(command, environment(service))
            print(service.address, flush=True)
            print("Ctrl-C stops it.", file=sys.stderr, flush=True)
            while service.alive:
                time.sleep(0.5)
    except KeyboardInterrupt:
        # without a command that is how it ends
        return 130 if command else 0
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"The {what} ended by itself.", file=sys.stderr)
    return 1
