"""What all requests that write have in common: who may, how fast, and what becomes of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Final

from fastapi import HTTPException, Request

from sparkml_sgdals.serving.http import schemas as out
from sparkml_sgdals.serving.http.answers import Answers
from sparkml_sgdals.serving.http.gauges import Gauges
from sparkml_sgdals.serving.http.guard import Buckets, Hosts, TokenCheck, client_of
from sparkml_sgdals.serving.http.news import News
from sparkml_sgdals.serving.intake.history import IntakeColumns
from sparkml_sgdals.serving.intake.keys import KeyTakenError
from sparkml_sgdals.serving.intake.posts import Intake, Post, Receipt

__all__ = ["Service", "check_token", "checked_time", "client", "limit", "refusals", "stored"]

_AHEAD: Final = 3600
"""seconds that a posted time may be ahead of now: clocks differ, and a stream's watermark is as far
behind by default"""


@dataclass
class Service:
    """What the endpoints work with.

    Attributes
    ----------
    intake : Intake | None
        where ratings go; None where none are taken
    token : TokenCheck | None
        None where writing needs none
    buckets : Buckets | None
        limits of posting by client, in ratings a second
    rating_range : tuple[float, float] | None
        lowest and highest rating taken; None for those the model has seen
    guesses : Buckets
        wrong tokens that a client may send
    hosts : Hosts | None
        names that it may be asked under; None for any
    columns : IntakeColumns
        names of what is sent to the stream
    gate : bool
        not ready before a version has beaten its baseline
    origins : tuple[str, ...]
        of other sites that may ask from a browser
    """

    answers: Answers
    news: News
    gauges: Gauges
    intake: Intake | None = None
    token: TokenCheck | None = None
    buckets: Buckets | None = None
    guesses: Buckets = field(default_factory=lambda: Buckets(0.2, 10.0))
    hosts: Hosts | None = None
    rating_range: tuple[float, float] | None = None
    columns: IntakeColumns = field(default_factory=IntakeColumns)
    gate: bool = False
    origins: tuple[str, ...] = ()
    max_body: int = 1 << 20


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of these statuses."""
    said = {
        400: "The body cannot be read",
        401: "No token, or not the right one",
        403: "No ratings are taken here",
        409: "An id or a rating does not fit the model, or the key stands for other ratings",
        413: "The body is too long",
        422: "It is not what this document asks for",
        429: "Too fast",
        503: "There is no model to serve, or the ratings cannot be stored now",
    }
    return {s: {"description": said[s], "model": out.Problem} for s in (422, *statuses)}


async def stored(service: Service, posts: list[Post]) -> list[Receipt]:
    """Return what became of posts, once they are durable."""
    assert service.intake is not None
    try:
        return await asyncio.wrap_future(service.intake.put(posts))
    except KeyTakenError as taken:
        service.gauges.refused.labels("key").inc()
        # what stands before the key says which of the two it is
        raise HTTPException(
            409,
            f"The key {str(taken)[2:]!r} was used for other ratings: send a new one. None of "
            "this request's ratings was taken.",
        ) from taken
    except Exception as failure:
        service.gauges.refused.labels("storage").inc()
        raise HTTPException(
            503, "The ratings cannot be stored now.", {"Retry-After": "5"}
        ) from failure


def checked_time(given: int | None, now: int) -> int:
    """Return a posted time, `now` where none was given."""
    time_ = now if given is None else given
    if time_ > now + _AHEAD:
        # a stream that drops repeats would take all later events for late ones
        raise HTTPException(409, f"The timestamp {time_} is more than an hour ahead of now.")
    return time_


def check_token(service: Service, request: Request, sent: str | None) -> None:
    """Raise where a request has not the token that writing needs."""
    if service.token is None:
        return
    asking = client(request)
    wait = service.guesses.wait(asking)
    if wait:
        # nor is a right one taken now: whoever guesses would go on as fast as ever
        service.gauges.refused.labels("guesses").inc()
        raise _too_fast("Too many wrong tokens", wait)
    if not service.token.fits(sent):
        service.guesses.take(asking)
        service.gauges.refused.labels("token").inc()
        raise HTTPException(
            401, "Send the header Authorization: Bearer TOKEN.", {"WWW-Authenticate": "Bearer"}
        )


def limit(service: Service, request: Request, amount: float) -> None:
    """Raise where a client posts too fast."""
    if service.buckets is None:
        return
    wait = service.buckets.take(client(request), amount)
    if wait:
        service.gauges.refused.labels("rate").inc()
        raise _too_fast("Too fast", wait)


def client(request: Request) -> str:
    """Return the client that asks, by its address."""
    return client_of(request.client.host if request.client else None)


def _too_fast(what: str, wait: float) -> HTTPException:
    return HTTPException(
        429, f"{what}: wait {wait:.1f} seconds.", {"Retry-After": str(int(wait) + 1)}
    )
