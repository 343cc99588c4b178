"""Endpoints that take users and items of which no rating is known, with what is known of them."""

from __future__ import annotations

import time
import uuid
from typing import Annotated

import anyio.to_thread
from fastapi import APIRouter, Header, HTTPException, Request

from sparkml_sgdals.arrays.id_kinds import IdKind
from sparkml_sgdals.serving.http import schemas as out
from sparkml_sgdals.serving.http.writing import (
    Service,
    check_token,
    checked_time,
    limit,
    refusals,
    stored,
)
from sparkml_sgdals.serving.intake.keys import UNNAMED
from sparkml_sgdals.serving.intake.posts import Told
from sparkml_sgdals.serving.model.ids import storable
from sparkml_sgdals.state.feature_values import FeatureNames
from sparkml_sgdals.state.feature_weights import FeatureWeights, feature_names

__all__ = ["newcomer_router"]

_SIDES = ("user", "item")
Key = Annotated[
    str | None,
    Header(
        min_length=1, max_length=128, pattern=r"^[!-~]+$",
        description="the same in each attempt to post these",
    ),
]  # fmt: skip
Authorization = Annotated[str | None, Header(description="Bearer TOKEN")]


def newcomer_router(service: Service) -> APIRouter:
    """Make the endpoints."""
    router = APIRouter(tags=["write"])
    statuses = refusals(400, 401, 403, 409, 413, 429, 503)

    @router.post("/items", status_code=202, responses=statuses)
    async def items(
        request: Request,
        body: out.ItemsIn,
        idempotency_key: Key = None,
        authorization: Authorization = None,
    ) -> out.JoinedOut:
        """Take one new item or up to 1,000: they are ranked at once, and durable when this answers.

        The stream adds them to the model, by what is known of them.
        """
        return await take(1, request, body, idempotency_key, authorization)

    @router.post("/users", status_code=202, responses=statuses)
    async def users(
        request: Request,
        body: out.UsersIn,
        idempotency_key: Key = None,
        authorization: Authorization = None,
    ) -> out.JoinedOut:
        """Take one new user or up to 1,000: they are known at once, and durable when this answers.

        The stream adds them to the model, by what is known of them.
        """
        return await take(0, request, body, idempotency_key, authorization)

    @router.get("/features", responses=refusals(503))
    async def features() -> out.FeaturesOut:
        """Say what may be known of users and of items: names, and of categories their values."""
        with service.answers.holder.reading() as model:
            found = [_values(weights) for weights in model.shell.features]
        return out.FeaturesOut(users=found[0], items=found[1])

    def check(
        request: Request, sent: str | None, side: int, count: int
    ) -> tuple[FeatureWeights, IdKind, str]:
        """Return weights, kind and type of ids; raise where such posts are not taken now."""
        names, what = service.columns, _SIDES[side]
        if service.intake is None:
            service.gauges.refused.labels("closed").inc()
            raise HTTPException(403, f"This service takes no {what}s: start it with an inbox.")
        check_token(service, request, sent)
        limit(service, request, float(count))
        with service.answers.holder.reading() as model:
            weights, kind, id_type = (
                model.shell.features[side], model.kinds[side], model.id_types[side]
            )  # fmt: skip
        if weights is None:
            raise HTTPException(409, f"The model was fitted without features of {what}s.")
        column = (names.user_features, names.item_features)[side]
        read = service.answers.holder.params.get(f"{what}FeaturesCol", "")
        if read != column:
            # its rows would be bad ones to the stream
            raise HTTPException(
                409,
                f"The stream of this model does not read the column {column!r}: begin a model path "
                f"with {what}FeaturesCol={column!r}, and a stream that has it.",
            )
        return weights, kind, id_type

    async def take(
        side: int, request: Request, body: out.ItemsIn | out.UsersIn, key: str | None,
        sent: str | None,
    ) -> out.JoinedOut:  # fmt: skip
        given = body if isinstance(body, list) else [body]
        weights, kind, id_type = check(request, sent, side, len(given))
        now, what = int(time.time()), _SIDES[side]
        names, told, unknown = FeatureNames(weights), [], []
        moments = [checked_time(one.timestamp, now) for one in given]
        for one, moment in zip(given, moments, strict=True):
            said, title = (one.item, one.title) if isinstance(one, out.ItemIn) else (one.user, None)
            id_ = storable(said, kind, id_type)
            if id_ is None:
                raise HTTPException(
                    409, f"The {what} {said!r} is no {id_type}, as the model's are."
                )
            try:
                vector, nothing = names.vector(one.features)
            except ValueError as fault:
                raise HTTPException(409, str(fault)) from fault
            unknown += [name for name in nothing if name not in unknown]
            if not vector:
                raise HTTPException(
                    409,
                    f"Nothing is learned of what is said of the {what} {said!r}: the names are "
                    f"{', '.join(list(_values(weights))[:20])}.",
                )
            full = tuple(vector.get(place, 0.0) for place in range(weights.size))
            told.append(Told(side, id_, one.features, full, title, moment))
        under = f"k:{key}" if key is not None else f"{UNNAMED}{uuid.uuid4().hex}"
        (receipt,) = await stored(service, [(under, told)])
        await anyio.to_thread.run_sync(service.answers.join, told)
        repeated = len(told) if receipt.repeated else 0
        return out.JoinedOut(accepted=len(told), repeated=repeated, unknown=unknown)

    return router


def _values(weights: FeatureWeights | None) -> dict[str, list[str]]:
    """Return names of features, and of categories their values."""
    found: dict[str, list[str]] = {}
    for name in [] if weights is None else feature_names(weights):
        column, equals, value = name.partition("=")
        found.setdefault(column, [])
        if equals:
            found[column].append(value)
    return found
