"""Connections: how many, of whom, and how long each may take; probes are answered whatever happens.

Who waits (no request in hand) makes room for others, the longest first, and before all others who
has never asked for anything. Where nobody waits, some
connections more are taken, on which probes alone are answered: whether the process lives is not
known before a request says that it asks for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from sparkml_sgdals.serving.http.guard import PROBES, App, Receive, Scope, Send, client_of

__all__ = ["Connection", "Connections", "Limits"]

logger = logging.getLogger(__name__)

_LOOK: Final = 0.5
"""seconds between two looks at who is late"""
_RESERVE: Final = 32
"""connections beyond the limits, for probes"""


@dataclass(frozen=True)
class Limits:
    """What connections may take.

    Attributes
    ----------
    connections : int
        all together
    each : int
        of one client; a trusted proxy has no limit of its own
    waiting : float
        seconds from the end of an answer, or from the beginning, to the end of a request's headers
    body : float
        seconds from there to the end of the body
    reading : float
        seconds in which a client takes nothing of an answer
    """

    connections: int = 1_000
    each: int = 256
    waiting: float = 10.0
    body: float = 30.0
    reading: float = 30.0


class Connections:
    """All connections of a service.

    Parameters
    ----------
    limits : Limits
        what they may take
    trusted : str | None
        addresses of proxies, separated by commas, whose clients tell themselves apart; "*" for all
    """

    def __init__(self, limits: Limits, trusted: str | None = None) -> None:
        self.limits = limits
        self.turned_away = 0
        self._trusted = {one.strip() for one in (trusted or "").split(",") if one.strip()}
        # in the order of their last sign of life
        self._all: OrderedDict[Connection, None] = OrderedDict()
        self._own: dict[str, OrderedDict[Connection, None]] = {}
        self._extra = 0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._all)

    def protocol(self) -> type[Connection]:
        """Return the class of these connections, as uvicorn takes it."""
        return type("Connection", (Connection,), {"among": self})

    def watch(self) -> None:
        """Look after late ones from now on, in the running loop."""
        self._timer = asyncio.get_running_loop().call_later(_LOOK, self._look)

    def end(self) -> None:
        """Look after late ones no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        for one in list(self._all):
            # one that is odd must not keep all others from being looked after
            try:
                one.look(now, self.limits)
            except Exception:
                logger.exception("a connection is cut off")
                one.transport.abort()
        self.watch()

    def opened(self, one: Connection) -> bool:
        """Take a connection in, where there is room or can be made; whether it may stay."""
        host = one.client[0] if one.client else ""
        free = not one.client or host in self._trusted or "*" in self._trusted
        one.owner = None if free else client_of(host)
        full = not _make_room(self._all, self.limits.connections)
        self._all[one] = None
        if one.owner is not None:
            own = self._own.setdefault(one.owner, OrderedDict())
            full = not _make_room(own, self.limits.each) or full
            own[one] = None
        if full:
            self.turned_away += 1
            one.is_extra = self._extra < _RESERVE
            self._extra += one.is_extra
            return one.is_extra
        return True

    def heard(self, one: Connection) -> None:
        """Note a sign of life: others make room before this one."""
        self._all.move_to_end(one)
        if one.owner is not None:
            self._own[one.owner].move_to_end(one)

    def closed(self, one: Connection) -> None:
        """Let a connection go."""
        if one not in self._all:
            return
        del self._all[one]
        self._extra -= one.is_extra
        if one.owner is not None:
            own = self._own[one.owner]
            del own[one]
            if not own:
                del self._own[one.owner]


def _make_room(among: OrderedDict[Connection, None], most: int) -> bool:
    """End who waits longest until there is room for one; False where others have requests."""
    while len(among) >= most:
        silent = (one for one in among if one.is_silent)
        waiting = next(silent, None) or next((one for one in among if one.waits), None)
        if waiting is None:
            return False
        waiting.transport.abort()
        waiting.leave()
    return True


class Connection(H11Protocol):
    """One connection of uvicorn's, which is looked after; made by `Connections.protocol`."""

    among: Connections

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        self.owner: str | None = None
        self.is_extra = False
        self._begun = False
        """whether a part of a request's headers is there"""
        self._stage: tuple[str, object] = ("new", None)
        self._since = 0.0

    @property
    def waits(self) -> bool:
        """Whether there is no request in hand."""
        return self.is_silent or bool(self.cycle.response_complete)

    @property
    def is_silent(self) -> bool:
        """Whether it has not asked for anything yet."""
        # there is none before the first request, whatever uvicorn says of its type
        cycle: Any = self.cycle
        return cycle is None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it in, or close it at once."""
        super().connection_made(transport)
        if not self.among.opened(self):
            transport.abort()
        elif self.is_extra:
            self.app = _ProbesAlone(self.app)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let it go."""
        self.leave()
        super().connection_lost(exc)

    def leave(self) -> None:
        """Count it no more."""
        self.among.closed(self)

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if self.transport.is_closing():
            return
        self.among.heard(self)
        super().data_received(data)
        self._begun = self.waits

    def on_response_complete(self) -> None:
        """Go on with what came meanwhile."""
        super().on_response_complete()
        self._begun = self.waits and bool(self.conn.trailing_data[0])

    def shutdown(self) -> None:
        """Wait for no request that is not there yet, and for nobody who does not take an answer."""
        if self.flow.write_paused:
            self.transport.abort()
        elif self.conn.their_state is h11.SEND_BODY:
            self._give_up()
        else:
            super().shutdown()

    def look(self, now: float, limits: Limits) -> None:
        """End it where what it does has taken too long."""
        name, most = self._doing(limits)
        # the same of another request begins anew
        stage = (name, self.cycle)
        if stage != self._stage:
            self._stage, self._since = stage, now
        if now - self._since < most:
            return
        if name in ("closing", "writing"):
            self.transport.abort()
            return
        self._give_up()

    def _give_up(self) -> None:
        """Close it; the application hears that the client has gone."""
        late = self.conn.their_state is h11.SEND_BODY or self._begun
        if not self.waits:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and late:
            self._say_late()
        self.transport.close()

    def _doing(self, limits: Limits) -> tuple[str, float]:
        """Return what it is at, and the seconds that this may take."""
        if self.transport.is_closing():
            return "closing", limits.reading
        if self.flow.write_paused:
            return "writing", limits.reading
        if self.conn.their_state is h11.SEND_BODY:
            # whether or not the answer has been given
            return "body", limits.body
        if not self.waits:
            return "answering", float("inf")
        return ("headers" if self._begun else "idle"), limits.waiting

    def _say_late(self) -> None:
        body = json.dumps({"detail": "The request came too slowly."}).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))),
                   ("connection", "close")]  # fmt: skip
        with contextlib.suppress(h11.LocalProtocolError):
            answer = h11.Response(status_code=408, headers=headers, reason=b"Request Timeout")
            said = [self.conn.send(event=answer), self.conn.send(event=h11.Data(data=body))]
            self.transport.write(b"".join(part or b"" for part in said))


class _ProbesAlone:
    """Answers probes, and refuses all else: what a connection too many gets."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        body = b'{"detail": "Too many connections: wait a moment, or close some."}'
        headers = [(b"content-type", b"application/json"), (b"retry-after", b"5"),
                   (b"content-length", b"%d" % len(body)), (b"connection", b"close")]  # fmt: skip
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": body})
