"""Which process something belongs to, and whether that process still runs (driver)."""

from __future__ import annotations

import os
import socket
from typing import Any, Final

from sparkml_sgdals.store.shapes import TEXT, Maybe, Plain, Shape

__all__ = ["PROCESS", "on_this_host", "runs", "this_process"]

PROCESS: Final[dict[str, Shape]] = {
    "host": TEXT,
    "pid": Plain("a process number", lambda v: type(v) is int and 0 < v < 2**31),
    "started": Maybe(TEXT),
}
"""what `this_process` gives"""


def this_process() -> dict[str, Any]:
    """Return host, number and start of this process, of JSON types."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "started": _start_of(pid)}


def on_this_host(process: dict[str, Any]) -> bool:
    """Whether a process is of this host, so that `runs` can tell of it."""
    return bool(process["host"] == socket.gethostname())


def runs(process: dict[str, Any]) -> bool:
    """Whether a process of this host is still there; another one of its number is not it."""
    return bool(process["started"] == _start_of(process["pid"]))


def _start_of(pid: int) -> str | None:
    """When a process started, None where it is gone; its bare existence where /proc is missing."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            # the name in brackets may hold blanks; field 22 counts from after it
            fields = stat.read().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    except OSError:
        pass
    if os.path.isdir("/proc/self"):
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "running"
