"""What stands before every endpoint: sizes, rates, the token, headers, errors without traces.

Plain ASGI, so that a body is refused while it comes in and streams pass through untouched.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, Final

from starlette.exceptions import HTTPException

__all__ = ["Buckets", "Guard", "TokenCheck"]

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
AsgiMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[AsgiMessage]]
Send = Callable[[AsgiMessage], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_HEADERS: Final = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; "
        b"form-action 'self'",
    ),
]
_CLIENTS: Final = 10_000


class TokenCheck:
    """Compares tokens in a time that tells nothing of the right one.

    Raises ValueError where the file is empty.
    """

    def __init__(self, file: str) -> None:
        token = Path(file).read_text("utf-8").strip()
        if not token:
            raise ValueError(f"{file} is empty: write a token into it, e.g. openssl rand -hex 32.")
        self._hash = hashlib.sha256(token.encode()).digest()

    def fits(self, header: str | None) -> bool:
        """Whether an Authorization header carries the token."""
        scheme, _, given = (header or "").partition(" ")
        # hashes have one length, whatever was sent
        held = hashlib.sha256(given.strip().encode("utf-8", "surrogateescape")).digest()
        return hmac.compare_digest(held, self._hash) and scheme.casefold() == "bearer"


class Buckets:
    """Token buckets by client: `rate` a second, `burst` at once; rate 0 sets no limit."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = max(burst, 1.0)
        self._held: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str, amount: float = 1.0) -> float:
        """Take from a client's bucket; 0 where there was enough, else seconds to wait."""
        if self.rate <= 0:
            return 0.0
        now = time.monotonic()
        level, since = self._held.pop(client, (self.burst, now))
        level = min(self.burst, level + (now - since) * self.rate)
        amount = min(amount, self.burst)
        wait = 0.0 if level >= amount else (amount - level) / self.rate
        self._held[client] = (level if wait else level - amount, now)
        if len(self._held) > _CLIENTS:
            self._held.popitem(last=False)
        return wait


class Guard:
    """Wraps an application.

    Parameters
    ----------
    max_body : int
        bytes of a request's body
    observed : Callable[[str, str, int, float], None]
        called with route, status and seconds of every request
    """

    def __init__(
        self, app: App, max_body: int, observed: Callable[[str, str, int, float], None]
    ) -> None:
        self._app = app
        self._max_body = max_body
        self._observed = observed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it before the application sees it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # ids may hold encoded slashes: segments are told apart before they are decoded
        raw = scope.get("raw_path")
        if raw:
            scope["path"] = raw.decode("ascii", "replace")
        clock = time.perf_counter()
        status = 0

        async def answer(message: AsgiMessage) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", []), *_HEADERS]}
            await send(message)

        try:
            await self._app(scope, self._limited(scope, receive), answer)
        except Exception:
            if not status:
                await _refuse(answer, 500, "Something failed here.")
            # the application has logged and answered its own failures already
            elif "incident" not in scope:
                logger.exception("the answer to %s broke off", scope["path"])
        finally:
            route = scope.get("route")
            name = getattr(route, "path", "other")
            self._observed(name, scope["method"], status, time.perf_counter() - clock)

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        said = dict(scope["headers"]).get(b"content-length", b"0")
        too_long = said.isdigit() and int(said) > self._max_body
        seen = 0

        async def limited() -> AsgiMessage:
            nonlocal seen
            message = {"type": "http.request"} if too_long else await receive()
            seen += len(message.get("body", b""))
            if too_long or seen > self._max_body:
                raise HTTPException(413, f"The body is longer than {self._max_body:,} bytes.")
            return message

        return limited


async def _refuse(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
