"""The endpoints."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Final, TypeVar
from urllib.parse import unquote

import anyio.to_thread
from fastapi import APIRouter, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema
from starlette.routing import compile_path

from sparkml_sgdals.errors import DivergenceError
from sparkml_sgdals.serving.http import schemas as out
from sparkml_sgdals.serving.http.guard import App, Guard
from sparkml_sgdals.serving.http.newcomers import newcomer_router
from sparkml_sgdals.serving.http.news import TooManyError
from sparkml_sgdals.serving.http.writing import (
    Service,
    check_token,
    checked_time,
    client,
    limit,
    refusals,
    stored,
)
from sparkml_sgdals.serving.intake.keys import UNNAMED
from sparkml_sgdals.serving.intake.posts import Post, Posted
from sparkml_sgdals.serving.model.holder import NoModelError
from sparkml_sgdals.serving.model.ids import Key, storable
from sparkml_sgdals.serving.model.ranking import RankBy
from sparkml_sgdals.state.event_scores import table_alone

__all__ = ["Service", "make_app"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_PAGE: Final = Path(__file__).parent / "page"
_INLINE_ITEMS: Final = 200_000
"""up to so many items a ranking takes less than what a thread of its own costs"""
Count = Annotated[int, Query(ge=1, le=1000, description="how many items")]
# each an id, or several with commas between
Ids = Annotated[
    # in a query nothing stands for None
    list[Annotated[str, Field(max_length=1000)]] | SkipJsonSchema[None], Query(max_length=200)
]


def make_app(service: Service) -> App:
    """Make the application: endpoints, the page, and what guards them."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.news.bind()
        yield

    app = FastAPI(
        title="sparkml_sgdals",
        version="1",
        description="Recommendations of a model that goes on learning.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        # ids are taken apart before they are decoded, and a slash more is another id
        redirect_slashes=False,
    )
    app.include_router(_read_router(service))
    app.include_router(_write_router(service))
    app.include_router(newcomer_router(service))
    app.include_router(_watch_router(service))
    app.include_router(_page_router())

    async def no_model(_: Request, failure: Exception) -> Response:
        return JSONResponse({"detail": str(failure)}, 503, {"Retry-After": "1"})

    async def absurd(_: Request, failure: Exception) -> Response:
        return JSONResponse({"detail": str(failure)}, 422)

    async def broken(request: Request, failure: Exception) -> Response:
        incident = request.scope["incident"] = uuid.uuid4().hex[:12]
        place = f"{request.method} {request.url.path}"
        logger.error("incident %s: %s", incident, place, exc_info=failure)
        detail = f"Something failed here; the log has it as {incident}."
        return JSONResponse({"detail": detail}, 500)

    async def invalid(_: Request, failure: Exception) -> Response:
        faults = failure.errors() if isinstance(failure, RequestValidationError) else []
        # a body that is not said to be JSON comes here unread, and would be told to be no object
        if isinstance(getattr(failure, "body", None), bytes):
            faults = [f for f in faults if f["loc"][0] != "body"]
            said_so = "Send Content-Type: application/json with a body of JSON."
            faults += [{"type": "content_type", "loc": ["header", "content-type"], "msg": said_so}]
        # what was sent is not sent back: it need not even be JSON, as NaN is not
        said = [{name: fault[name] for name in ("type", "loc", "msg")} for fault in faults]
        return JSONResponse({"detail": said}, 422)

    async def not_allowed(request: Request, failure: Exception) -> Response:
        # a path may have a route for each method, and the first one alone would be told
        told = getattr(failure, "headers", None) or {}
        paths, path = app.openapi()["paths"], request.url.path
        fits = [path] if path in paths else [p for p in paths if compile_path(p)[0].match(path)]
        methods = {method.upper() for one in fits for method in paths[one]}
        allowed = {"Allow": ", ".join(sorted(methods))} if methods else told
        return JSONResponse({"detail": "Method Not Allowed"}, 405, allowed)

    app.add_exception_handler(405, not_allowed)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, broken)
    app.add_exception_handler(NoModelError, no_model)
    app.add_exception_handler(DivergenceError, absurd)
    inner: App = app
    if service.origins:
        inner = CORSMiddleware(
            app,
            allow_origins=list(service.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key"],
        )
    return Guard(inner, service.max_body, service.gauges.observed, service.hosts)


def _read_router(service: Service) -> APIRouter:
    answers = service.answers
    router = APIRouter(responses=refusals(503), tags=["read"])

    async def work(answer: Callable[[], T]) -> T:
        if answers.holder.num_items <= _INLINE_ITEMS:
            return answer()
        return await anyio.to_thread.run_sync(answer)

    # before the next, whose path fits this one too
    @router.post("/recommendations/anonymous", responses=refusals(400, 409, 413, 429))
    async def anonymous(asked: out.AnonymousIn, request: Request) -> out.Recommendations:
        """Recommend the best items for somebody with these ratings, which are not kept."""
        limit(service, request, 1.0)
        for one in asked.ratings:
            _checked_rating(service, one.rating)
        return await work(lambda: answers.anonymous(asked))

    @router.get("/recommendations/{user}")
    async def recommendations(
        user: str,
        n: Count = 10,
        exclude_seen: Annotated[
            bool | None,
            Query(
                description="leave out what the service knows the user to have rated; by default "
                "so, but where events show that items come again"
            ),
        ] = None,
        rank_by: Annotated[
            RankBy,
            Query(
                description="upper and lower: a standard deviation of the mean away; taste: what "
                "is the user's own counts as much as what everyone thinks, however few ratings "
                "the user gave; everyone: what somebody unknown would be told"
            ),
        ] = "prediction",
        items: Annotated[Ids, Query(description="choose from these only")] = None,
        exclude: Annotated[Ids, Query(description="never these")] = None,
        reasons: Annotated[bool, Query(description="say why, item by item")] = False,
    ) -> out.Recommendations:
        """Recommend the best items for a user; for one not known by mean and bias, marked cold."""
        # pydantic has seen that they are strings; keys may be either
        only: list[Key] | None = None if items is None else list(items)
        never: list[Key] | None = None if exclude is None else list(exclude)
        try:
            return await work(
                lambda: answers.recommendations(
                    unquote(user), n, exclude_seen, rank_by, only, never, reasons
                )
            )
        except ValueError as fault:
            raise HTTPException(422, str(fault)) from fault

    @router.get("/predictions/{user}/{item}")
    async def predictions(user: str, item: str) -> out.Prediction:
        """Predict what a user would give an item, known or not."""
        return answers.prediction(unquote(user), unquote(item))

    @router.get("/explain/{user}/{item}")
    async def explain(user: str, item: str) -> out.Explanation:
        """Why that is predicted: mean, biases, features, and the user's ratings behind it."""
        return answers.explanation(unquote(user), unquote(item))

    @router.get("/similar/{item}")
    async def similar(item: str, n: Count = 10) -> out.Similar:
        """List the items most like one, by the cosine of their features."""
        return await work(lambda: answers.similar(unquote(item), n))

    @router.get("/popular")
    async def popular(n: Count = 10) -> out.Popular:
        """List the items with the most ratings."""
        return await work(lambda: answers.popular(n))

    @router.get("/users/{user}/ratings")
    async def user_ratings(user: str) -> out.UserRatings:
        """List the ratings of a user that the service was started with or was sent."""
        return answers.user_ratings(unquote(user))

    @router.get("/items")
    async def items(
        query: Annotated[str, Query(max_length=200, examples=["toy story"])], n: Count = 10
    ) -> out.Found:
        """Items whose titles hold every word of a query."""
        return await work(lambda: answers.found(query, n))

    return router


def _write_router(service: Service) -> APIRouter:
    router = APIRouter(tags=["write"])
    answers = service.answers

    @router.post("/ratings", status_code=202, responses=refusals(400, 401, 403, 409, 413, 429, 503))
    async def ratings(
        request: Request,
        body: out.RatingsIn,
        idempotency_key: Annotated[
            str | None,
            Header(
                min_length=1, max_length=128, pattern=r"^[!-~]+$",
                description="the same in each attempt to post these ratings",
            ),
        ] = None,
        authorization: Annotated[str | None, Header(description="Bearer TOKEN")] = None,
    ) -> out.ReceiptOut:  # fmt: skip
        """Take one rating or up to 1,000: they are durable when this answers."""
        if service.intake is None:
            service.gauges.refused.labels("closed").inc()
            raise HTTPException(403, "This service takes no ratings: start it with an inbox.")
        check_token(service, request, authorization)
        given = body if isinstance(body, list) else [body]
        limit(service, request, float(len(given)))
        posts = _posts(service, given, idempotency_key)
        receipts = await stored(service, posts)
        repeated = 0
        for (_, posted), receipt in zip(posts, receipts, strict=True):
            repeated += len(posted) if receipt.repeated else 0
            if not receipt.repeated:
                service.gauges.taken.inc(len(posted))
                for one in posted:
                    assert isinstance(one, Posted)
                    answers.history.add(one.user, [one.known()])
        if repeated:
            service.gauges.repeated.inc()
        return out.ReceiptOut(accepted=len(given), repeated=repeated)

    return router


def _posts(service: Service, given: list[out.RatingIn], header: str | None) -> list[Post]:
    """Return what goes to the stream by key: all under the header's, or each under its own."""
    with service.answers.holder.reading() as model:
        kinds, types = model.kinds, model.id_types
    now = int(time.time())
    posted = []
    for one in given:
        user = storable(one.user, kinds[0], types[0])
        item = storable(one.item, kinds[1], types[1])
        for name, key, said, id_type in (
            ("user", user, one.user, types[0]), ("item", item, one.item, types[1])
        ):  # fmt: skip
            if key is None:
                raise HTTPException(
                    409, f"The {name} {said!r} is no {id_type}, as the model's are."
                )
        rating = _checked_rating(service, one.rating)
        assert user is not None
        assert item is not None
        posted.append(Posted(user, item, rating, checked_time(one.timestamp, now)))
    if header is not None:
        return [(f"k:{header}", posted)]
    return [
        (f"e:{one.eventId}" if one.eventId else f"{UNNAMED}{uuid.uuid4().hex}", [p])
        for one, p in zip(given, posted, strict=True)
    ]


def _checked_rating(service: Service, rating: float | None) -> float:
    """Return a rating that the model can learn; 1 where it learns events and none is given."""
    limits = service.rating_range
    with service.answers.holder.reading() as model:
        counters, events = model.shell.counters, model.events is not None
    if rating is None:
        if not events:
            raise HTTPException(409, "This model learns ratings: give one.")
        return 1.0
    if limits is None:
        limits = (counters.low, counters.high) if counters.ratings else (-1e9, 1e9)
    if not limits[0] <= rating <= limits[1]:
        raise HTTPException(
            409, f"The rating {rating:g} is outside {limits[0]:g} to {limits[1]:g}."
        )
    return float(rating)


def _watch_router(service: Service) -> APIRouter:
    answers = service.answers
    router = APIRouter(tags=["watch"])

    @router.get("/versions", responses=refusals(503))
    async def versions(n: Count = 20) -> out.Versions:
        """List the version that serves, and the newest ones kept."""
        return await anyio.to_thread.run_sync(lambda: answers.versions(n))

    @router.get("/curve", responses=refusals(503))
    async def curve(points: Annotated[int, Query(ge=2, le=5000)] = 300) -> out.Curve:
        """RMSE of the micro-batches."""
        return answers.curve(points)

    @router.get("/model", responses=refusals(503))
    async def model_info() -> out.ModelInfo:
        """Describe the version that serves: its sizes, and which ratings are taken."""
        with answers.holder.reading() as model:
            counters = model.shell.counters
            limits = service.rating_range or (counters.low, counters.high)
            known = bool(service.rating_range) or counters.ratings > 0
            return out.ModelInfo(
                version=model.version,
                committed=model.commit.committed,
                users=model.users.size,
                items=model.items.size,
                ratings=counters.ratings,
                user_id=model.id_types[0],
                item_id=model.id_types[1],
                lowest=limits[0] if known else None,
                highest=limits[1] if known else None,
                events=model.events is not None,
                table=table_alone(model.shell),
                titles=len(answers.titles),
                writes=service.intake is not None,
                token=service.token is not None,
            )

    @router.get("/health/live")
    async def live() -> out.Status:
        """Whether the process answers."""
        return out.Status(ready=True, detail="The service answers.")

    @router.get("/health/ready", responses={503: {"model": out.Status}})
    async def ready(response: Response) -> out.Status:
        """Whether there is a whole version to answer by, and the model path is there.

        Where the service was started with a gate, not before a version has beaten its baseline.
        What is known of how well the model does is told, and by /metrics as a number.
        """
        ready, detail = answers.ready(service.gate)
        response.status_code = 200 if ready else 503
        return out.Status(ready=ready, detail=detail)

    @router.get(
        "/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}}
    )
    async def metrics() -> Response:
        """Counters and gauges for Prometheus."""
        return Response(service.gauges.text(), media_type="text/plain; version=0.0.4")

    @router.get(
        "/events",
        response_class=StreamingResponse,
        responses=refusals(429, 503) | {200: {"content": {"text/event-stream": {}}}},
    )
    async def events(request: Request) -> StreamingResponse:
        """Send an event `version` for every version that is taken up, the current first."""
        try:
            news = service.news.listen(answers.news, client(request))
        except TooManyError as full:
            status = 429 if full.own else 503
            raise HTTPException(status, str(full), {"Retry-After": "10"}) from full
        return StreamingResponse(
            news, media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )

    return router


def _page_router() -> APIRouter:
    router = APIRouter(include_in_schema=False)
    kinds = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    parts = {one.name: one for one in _PAGE.iterdir() if one.suffix in kinds}

    @router.get("/")
    async def page() -> FileResponse:
        return FileResponse(_PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    @router.get("/page/{name}")
    async def part(name: str) -> FileResponse:
        if name not in parts:
            raise HTTPException(404)
        return FileResponse(
            parts[name],
            media_type=kinds[parts[name].suffix],
            headers={"Cache-Control": "no-cache"},
        )

    return router
