"""What stands before every endpoint: sizes, rates, the token, headers, errors without traces.

Plain ASGI, so that a body is refused while it comes in and streams pass through untouched.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, Final

from starlette.exceptions import HTTPException

__all__ = [
    "PROBES",
    "App",
    "Buckets",
    "Guard",
    "Hosts",
    "Receive",
    "Scope",
    "Send",
    "TokenCheck",
    "client_of",
]

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
PROBES: Final = frozenset(("/health/live", "/health/ready"))
"""asked by whoever looks after the process, under whatever name and however busy it is"""
_CLIENTS: Final = 10_000
_HERE: Final = ("localhost", "*.localhost")


def client_of(host: str | None) -> str:
    """Return what a client is known by: its address, of IPv6 the network that one customer has."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return host or ""
    if address.version == 4:
        return str(address)
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped is not None:
        return str(mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))


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
        """Take from a client's bucket; 0 where there was enough, else seconds to wait.

        More than a burst is given to a full bucket, which then is as far below empty as that was
        more: in the long run nobody has more than `rate`.
        """
        wait, level, now = self._look(client, amount)
        if self.rate > 0:
            self._held.pop(client, None)
            self._held[client] = (level if wait else level - amount, now)
            if len(self._held) > _CLIENTS:
                self._held.popitem(last=False)
        return wait

    def wait(self, client: str, amount: float = 1.0) -> float:
        """Return the seconds to wait before so much can be taken; takes nothing."""
        return self._look(client, amount)[0]

    def _look(self, client: str, amount: float) -> tuple[float, float, float]:
        if self.rate <= 0:
            return 0.0, 0.0, 0.0
        now = time.monotonic()
        level, since = self._held.get(client, (self.burst, now))
        level = min(self.burst, level + (now - since) * self.rate)
        needed = min(amount, self.burst)
        return (0.0 if level >= needed else (needed - level) / self.rate), level, now


class Hosts:
    """Names that a service is asked under.

    A page of another site can give its own name this machine's address, but not another name to its
    requests.

    Parameters
    ----------
    allowed : tuple[str, ...]
        names, `*.example.com` for all below one, `*` for any; none for this machine's own names and
        any address
    """

    def __init__(self, allowed: tuple[str, ...] = ()) -> None:
        self._addresses = not allowed
        self._allowed = tuple(one.lower() for one in allowed or _HERE)

    def fit(self, header: str) -> bool:
        """Whether a Host header names this service."""
        name = header.strip().lower()
        if name.startswith("["):
            name = name[1:].partition("]")[0]
        elif name.count(":") == 1:
            name = name.partition(":")[0]
        name = name.rstrip(".")
        if self._addresses and _is_address(name):
            return True
        return any(
            one in ("*", name) or (one.startswith("*.") and name.endswith(one[1:]))
            for one in self._allowed
        )


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Guard:
    """Wraps an application.

    Parameters
    ----------
    max_body : int
        bytes of a request's body
    observed : Callable[[str, str, int, float], None]
        called with route, status and seconds of every request
    hosts : Hosts | None
        names that it may be asked under, by others than probes; None for any
    """

    def __init__(
        self,
        app: App,
        max_body: int,
        observed: Callable[[str, str, int, float], None],
        hosts: Hosts | None = None,
    ) -> None:
        self._app = app
        self._max_body = max_body
        self._observed = observed
        self._hosts = hosts

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
            host = self._other_host(scope)
            if host is None:
                await self._app(scope, self._limited(scope, receive), answer)
            else:
                said = f"This service is not {host[:100]!r}: start it with allowed-host to be so."
                await _refuse(answer, 400, said)
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

    def _other_host(self, scope: Scope) -> str | None:
        """Return the name under which a request asks for another service, None where it does not.

        What has no Host is no browser, as is a probe.
        """
        if self._hosts is None or scope["path"] in PROBES:
            return None
        for name, value in scope["headers"]:
            host: str = value.decode("latin-1")
            if name == b"host" and not self._hosts.fit(host):
                return host
        return None

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
