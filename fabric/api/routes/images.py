"""/v1/images: push, look, delete."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from fabric.api import paging, views
from fabric.api.problems import (
    BAD_IMAGE,
    CONFLICT,
    DIGEST,
    INVALID,
    STALLED,
    STORE_FULL,
    TOO_LARGE,
    UNAVAILABLE,
    UNKNOWN,
    ProblemError,
    conflict,
    documented,
    invalid,
    not_found,
)
from fabric.api.pushing import drained, expected_digest
from fabric.api.schemas import NAME_PATTERN, ImageDeletedView, ImageList, ImageView
from fabric.api.services import ServicesDep

router = APIRouter(prefix="/v1/images", tags=["images"])
MAX_USERS_TOLD = 20
CLOSED = 499
"""What logs of proxies call a request whose client went away."""
_NAME = re.compile(NAME_PATTERN)

Name = Annotated[str, Path(description="Lower-case letters, digits, '.', '_', '-'.", examples=["web"])]


@router.put(
    "/{name}",
    response_model=ImageView,
    status_code=201,
    responses={
        **documented(STALLED, INVALID, BAD_IMAGE, DIGEST, TOO_LARGE, STORE_FULL, UNAVAILABLE),
        201: {"description": "Two holders in different racks have it whole."},
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "A tar archive (plain, gzip or xz) with an executable `entrypoint` at its root, or one "
            "executable file.",
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
    summary="Push an image",
)
async def push(
    name: Name,
    request: Request,
    services: ServicesDep,
    content_digest: Annotated[
        str | None, Header(description="sha256:<hex>, b3:<hex> or sha-256=:<base64>: of the content.")
    ] = None,
    digest: Annotated[str | None, Query(max_length=128, description="The same, for who can't set a header.")] = None,
    content_length: Annotated[int | None, Header(ge=0, include_in_schema=False)] = None,
) -> Response:
    """Streamed: any size, in constant memory. An image of this name is replaced; deployments keep what they have."""
    if not _NAME.fullmatch(name):
        raise invalid("name", "1 to 64 lower-case letters, digits, '.', '_', '-', not at its ends", name)
    content = request.stream()
    try:
        expected = expected_digest(content_digest, digest)
        image = await services.pushing.push(name, content_length, expected, content)
    except ProblemError as error:
        if await drained(content, services.control.limits.upload_drain_s):
            raise
        raise error.closing() from error
    except ClientDisconnect:
        return Response(status_code=CLOSED)
    services.metrics.image_bytes.inc(image.size)
    return Response(
        views.image(image).model_dump_json(), 201, {"Location": f"/v1/images/{name}"}, "application/json"
    )


@router.get("", response_model=ImageList, responses=documented(INVALID, UNAVAILABLE), summary="List images")
async def listing(
    services: ServicesDep, limit: paging.Limit = paging.DEFAULT_LIMIT, after: paging.After = ""
) -> ImageList:
    """By name. `holders` are those that acknowledged the push; one image alone tells who holds it now."""
    store = services.control.store
    page = paging.page(await store.image_names(), limit, after, str)
    return ImageList(items=[views.image(one.record) for one in await store.images(page.items)], next=page.next)


@router.get("/{name}", response_model=ImageView, responses=documented(UNKNOWN, UNAVAILABLE), summary="One image")
async def show(name: Name, services: ServicesDep) -> ImageView:
    """With its holders now, as the storage agents say."""
    found = await services.control.store.image(name) if _NAME.fullmatch(name) else None
    if found is None:
        raise not_found("image", name, "GET /v1/images lists them.")
    holders = await services.contents.holders(found.record.digest)
    return views.image(found.record, holders)


@router.delete(
    "/{name}", response_model=ImageDeletedView, responses=documented(UNKNOWN, CONFLICT, UNAVAILABLE),
    summary="Delete an image",
)  # fmt: skip
async def delete(
    name: Name,
    services: ServicesDep,
    force: Annotated[bool, Query(description="Also when an active deployment uses it.")] = False,
) -> ImageDeletedView:
    """Its content is freed unless another name means the same."""
    store = services.control.store
    await store.require_session()
    found = await store.image(name) if _NAME.fullmatch(name) else None
    if found is None:
        raise not_found("image", name, "GET /v1/images lists them.")
    digest = found.record.digest
    if not force:
        users = await store.active(lambda record: record.spec.image == name and record.spec.digest == digest)
        if users:
            raise conflict(
                f"Image {name} is used by {len(users)} active deployments; delete these first, or use ?force=true.",
                [f"{one.id} ({one.name}): {one.count} instances, {one.state}" for one in users[:MAX_USERS_TOLD]],
            )
    if not await store.delete_image(found):
        raise conflict(f"Image {name} was replaced in this moment; look again, and delete it if you still want to.")
    shared = await services.contents.names_of(digest)
    freed = 0 if shared else await services.contents.drop(digest, force)
    return ImageDeletedView(name=name, digest=digest, freed_bytes=freed, shared_with=shared)
