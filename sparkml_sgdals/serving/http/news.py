"""News for open pages: a line of server-sent events for every version that is taken up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, Final

__all__ = ["News", "TooManyError"]

_QUIET: Final = 15.0
"""seconds after which a comment says that the connection is alive"""


class TooManyError(RuntimeError):
    """No further reader is taken."""


class News:
    """Hands what happens to all who listen; `tell` may be called from any thread."""

    def __init__(self, most: int = 500) -> None:
        self._most = most
        self._loop: asyncio.AbstractEventLoop | None = None
        self._queues: set[asyncio.Queue[str | None]] = set()
        self._closed = False

    def bind(self) -> None:
        """Use the running loop; called in it."""
        self._loop = asyncio.get_running_loop()

    def tell(self, event: str, data: dict[str, Any]) -> None:
        """Send an event to all who listen."""
        self._call(f"event: {event}\ndata: {json.dumps(data)}\n\n")

    def close(self) -> None:
        """End all connections: the server could not end before them."""
        self._closed = True
        self._call(None)

    def _call(self, text: str | None) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._spread, text)

    def _spread(self, text: str | None) -> None:
        for waiting in self._queues:
            if waiting.full():
                # a reader that hangs loses the oldest news, not the newest
                waiting.get_nowait()
            waiting.put_nowait(text)

    def listen(self, first: dict[str, Any] | None) -> AsyncIterator[str]:
        """Events as text, from now on, `first` before them. Raises TooManyError when full."""
        if len(self._queues) >= self._most:
            raise TooManyError(f"{self._most} pages listen already.")
        waiting: asyncio.Queue[str | None] = asyncio.Queue(100)
        self._queues.add(waiting)
        if first is not None:
            waiting.put_nowait(f"event: version\ndata: {json.dumps(first)}\n\n")
        return self._read(waiting)

    async def _read(self, waiting: asyncio.Queue[str | None]) -> AsyncIterator[str]:
        try:
            yield "retry: 1000\n\n"
            while not self._closed:
                try:
                    text = await asyncio.wait_for(waiting.get(), _QUIET)
                except TimeoutError:
                    text = ": still here\n\n"
                except asyncio.TimeoutError:
                    text = ": still here\n\n"
                if text is None:
                    return
                yield text
        finally:
            self._queues.discard(waiting)
