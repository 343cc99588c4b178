"""News for open pages: a line of server-sent events for every version that is taken up."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

__all__ = ["News", "TooManyError"]

_QUIET: Final = 15.0
"""seconds after which a comment says that the connection is alive"""


class TooManyError(RuntimeError):
    """No further reader is taken; `own` where that is for this client's own."""

    def __init__(self, text: str, own: bool) -> None:
        super().__init__(text)
        self.own = own


class News:
    """Hands what happens to all who listen; `tell` may be called from any thread.

    Parameters
    ----------
    most : int
        readers at once
    each : int
        of these of one client
    """

    def __init__(self, most: int = 500, each: int = 16) -> None:
        self._most = most
        self.each = each
        self._clients: Counter[str] = Counter()
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

    def listen(
        self, first: Callable[[], dict[str, Any] | None], client: str = ""
    ) -> AsyncIterator[str]:
        """Events as text for a client, from when it reads on, that which `first` returns before.

        Raises TooManyError when full.
        """
        if len(self._queues) >= self._most:
            raise TooManyError(f"{self._most} pages listen already.", own=False)
        if self._clients[client] >= self.each:
            raise TooManyError(f"{self.each} pages of yours listen already: close one.", own=True)
        waiting: asyncio.Queue[str | None] = asyncio.Queue(100)
        return self._read(waiting, first, client)

    async def _read(
        self,
        waiting: asyncio.Queue[str | None],
        first: Callable[[], dict[str, Any] | None],
        client: str,
    ) -> AsyncIterator[str]:
        # not before it is read: what is never begun has no end that takes it out
        self._queues.add(waiting)
        self._clients[client] += 1
        try:
            yield "retry: 1000\n\n"
            now = first()
            if now is not None:
                yield f"event: version\ndata: {json.dumps(now)}\n\n"
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
            self._clients -= Counter([client])
