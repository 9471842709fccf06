"""/v1/deployments: make, list, follow, change, explain, delete."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Header, Path, Query
from starlette.responses import Response, StreamingResponse

from fabric.api import events, paging, views
from fabric.api.problems import (
    BAD_HEADER,
    CONFLICT,
    IMPOSSIBLE,
    INVALID,
    KEY_REUSED,
    MEDIA,
    NOT_JSON,
    TOO_LARGE,
    UNAVAILABLE,
    UNKNOWN,
    UNKNOWN_FLAVOR,
    UNKNOWN_IMAGE,
    ProblemError,
    documented,
    invalid,
    not_found,
)
from fabric.api.schemas import DeploymentList, DeploymentRequest, DeploymentView, DryRunView, ScaleRequest
from fabric.api.services import ServicesDep
from fabric.api.store import Versioned
from fabric.records import Deployment
from fabric.roles.trace import BadTrace, unpack

router = APIRouter(prefix="/v1/deployments", tags=["deployments"])

_ID = re.compile(r"d-[0-9a-z]{6,24}")
_WAIT = re.compile(r"([0-9]{1,6})(ms|s|m)?")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, None: 1.0}
MAX_KEY_CHARS = 255
NO_CONTENT = 204

Id = Annotated[str, Path(description="As the API made it.", examples=["d-1l7k0q9x4ab"])]
Key = Annotated[
    str | None,
    Header(description="Any text of 1 to 255 visible characters: the same key and body make the same deployment."),
]
_INDEX: dict[str, Any] = {
    "X-Index": {"description": "Of the record: give it back as ?index=.", "schema": {"type": "integer"}}
}
_WRITES = documented(NOT_JSON, MEDIA, TOO_LARGE, INVALID, UNAVAILABLE)


@router.post(
    "",
    status_code=202,
    response_model=DeploymentView,
    responses={
        **documented(
            *(NOT_JSON, BAD_HEADER, MEDIA, TOO_LARGE, INVALID, UNKNOWN_IMAGE, UNKNOWN_FLAVOR, IMPOSSIBLE, KEY_REUSED),
            UNAVAILABLE,
        ),
        200: {"description": "With dry_run=true: what would be placed, or why not.", "model": DryRunView},
        202: {
            "description": "Written down; it is being placed.",
            "headers": {**_INDEX, "Location": {"schema": {"type": "string"}}},
        },
    },
    summary="Deploy instances of an image",
)
async def create(
    body: DeploymentRequest,
    services: ServicesDep,
    idempotency_key: Key = None,
    dry_run: Annotated[bool, Query(description="Only say what would be placed; reserve nothing.")] = False,
) -> Response:
    if dry_run:
        return Response((await services.deploying.plan(body)).model_dump_json(), media_type="application/json")
    if idempotency_key is not None and not _visible(idempotency_key):
        raise ProblemError(
            BAD_HEADER, f"Idempotency-Key: expected 1 to {MAX_KEY_CHARS} visible ASCII characters, found another text"
        )
    made = await services.deploying.create(body, idempotency_key)
    services.metrics.deployments.labels("create").inc()
    return _answer(made, 202)


@router.get("", response_model=DeploymentList, responses=documented(INVALID, UNAVAILABLE), summary="List deployments")
async def listing(
    services: ServicesDep, limit: paging.Limit = paging.DEFAULT_LIMIT, after: paging.After = ""
) -> DeploymentList:
    """By creation, oldest first. Deployments that ended long ago are forgotten."""
    store = services.control.store
    names = await store.deployment_ids()
    page = paging.page(names, limit, after, str)
    found = await store.deployments(page.items)
    return DeploymentList(items=[views.deployment(one) for one in found], next=page.next)


@router.get(
    "/{id}",
    response_model=DeploymentView,
    responses={**documented(UNKNOWN, INVALID, UNAVAILABLE), 200: {"headers": _INDEX, "description": "The record."}},
    summary="One deployment, at once or when it changes",
)
async def show(
    id: Id,
    services: ServicesDep,
    wait: Annotated[
        str, Query(max_length=16, description="How long to wait for a change, such as 30s, 500ms, 2m.")
    ] = "",
    index: Annotated[int | None, Query(ge=0, description="The X-Index that was seen last.")] = None,
    until: Annotated[
        Literal["change", "rest"], Query(description="rest: changes on the way there are not waited for.")
    ] = "change",
) -> Response:
    """With `index`, the answer comes when the record's index is another than that, and, with `until=rest`, the
    deployment is at rest; or when the wait is over."""
    limits = services.control.limits
    wait_s = _seconds(wait, limits.wait_most_s) if wait else limits.wait_default_s
    if index is None:
        found = await services.control.store.deployment(_checked(id))
    else:
        found = await events.next_change(services.control, _checked(id), index, wait_s, until == "rest")
    return _answer(found, 200)


@router.get(
    "/{id}/events",
    response_class=StreamingResponse,
    responses={
        **documented(UNKNOWN, INVALID, UNAVAILABLE),
        200: {
            "description": "Events `deployment` (id: the index; data: the record) and `gone`.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        204: {"description": "It is at rest, and Last-Event-ID was its last change: nothing will come."},
    },
    summary="Follow a deployment by server-sent events",
)
async def follow(
    id: Id,
    services: ServicesDep,
    last_event_id: Annotated[str | None, Header(description="The index that was seen last.")] = None,
    follow: Annotated[bool, Query(description="Go on when the deployment is at rest.")] = False,
) -> Response:
    found = await services.control.store.deployment(_checked(id))
    services.control.watches.require_room()
    last = _event_id(last_event_id)
    if found.record.final and found.stat.mzxid == last and not follow:
        return Response(status_code=NO_CONTENT)  # tells an EventSource not to come back
    return StreamingResponse(
        events.stream(services.control, id, last, follow),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@router.get(
    "/{id}/trace",
    responses={
        **documented(UNKNOWN, UNAVAILABLE),
        200: {
            "description": "What was done in each of the nine steps, when, by whom, and why; one of `runs` for each "
            "change that was carried out.",
            "content": {"application/json": {"schema": {"type": "object"}}},
        },
    },
    summary="How it went, step by step",
)
async def trace(id: Id, services: ServicesDep) -> Response:
    packed = await services.control.store.trace(_checked(id))
    if not packed:
        raise not_found("trace of deployment", id, "Its coordinator writes it when the deployment is at rest.")
    try:
        return Response(msgspec.json.encode(unpack(packed)), media_type="application/json")
    except BadTrace as error:
        raise not_found("readable trace of deployment", id, str(error)) from error


@router.patch(
    "/{id}",
    status_code=202,
    response_model=DeploymentView,
    responses={**_WRITES, **documented(UNKNOWN, CONFLICT, INVALID, IMPOSSIBLE, UNAVAILABLE)},
    summary="Scale a deployment",
)
async def scale(id: Id, body: ScaleRequest, services: ServicesDep) -> Response:
    changed = await services.deploying.scale(_checked(id), body.count)
    services.metrics.deployments.labels("scale").inc()
    return _answer(changed, 202)


@router.delete(
    "/{id}",
    status_code=202,
    response_model=DeploymentView,
    responses=documented(UNKNOWN, CONFLICT, UNAVAILABLE),
    summary="Stop and remove a deployment's instances",
)
async def delete(id: Id, services: ServicesDep) -> Response:
    changed = await services.deploying.delete(_checked(id))
    spec = changed.record.spec
    services.control.spawn(services.contents.left_by(spec.image, spec.digest), f"content used by {id}")
    services.metrics.deployments.labels("delete").inc()
    return _answer(changed, 202)


# --- helpers ---------------------------------------------------------------------------------------------------------


def _answer(found: Versioned[Deployment], status: int) -> Response:
    view = views.deployment(found)
    headers = {"X-Index": str(view.index)}
    if status == 202:
        headers["Location"] = f"/v1/deployments/{view.id}"
    return Response(view.model_dump_json(), status, headers, "application/json")


def _checked(id: str) -> str:
    """An id that can't be is one that is not there."""
    if not _ID.fullmatch(id):
        raise not_found("deployment", id, "GET /v1/deployments lists them.")
    return id


def _visible(key: str) -> bool:
    return 1 <= len(key) <= MAX_KEY_CHARS and all("!" <= char <= "~" for char in key)


def _seconds(text: str, most_s: float) -> float:
    match = _WAIT.fullmatch(text)
    seconds = int(match[1]) * _UNIT_S[match[2]] if match else -1.0
    if not 0.0 <= seconds <= most_s:
        raise invalid("wait", f"a time such as 30s, 500ms or 2m, at most {most_s:g} s", text)
    return seconds


def _event_id(text: str | None) -> int:
    """A strange id is as good as none: the newest state is sent."""
    return int(text) if text and len(text) <= 19 and text.isascii() and text.isdigit() else 0
