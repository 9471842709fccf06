"""/v1/instances: what runs, as its nodes say, and what it has printed."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from starlette.responses import Response

from fabric.api import paging
from fabric.api.instances import MAX_LOG_BYTES
from fabric.api.problems import INVALID, UNAVAILABLE, UNKNOWN, documented
from fabric.api.schemas import InstanceItem, InstanceList
from fabric.api.services import ServicesDep

router = APIRouter(prefix="/v1/instances", tags=["instances"])
Id = Annotated[str, Path(max_length=64, description="<deployment>.<ordinal>", examples=["d-1l7k0q9x4ab.17"])]


@router.get(
    "", response_model=InstanceList, responses=documented(UNKNOWN, INVALID, UNAVAILABLE), summary="List instances"
)
async def listing(
    services: ServicesDep,
    deployment: Annotated[str, Query(max_length=64, description="Only those of this deployment, by ordinal.")] = "",
    limit: paging.Limit = paging.DEFAULT_LIMIT,
    after: paging.After = "",
) -> InstanceList:
    """Of one deployment: each ordinal of its plan. Of all: by rack and node."""
    if deployment:
        return await services.instances.of_deployment(deployment, limit, after)
    return await services.instances.of_fabric(limit, after)


@router.get(
    "/{id}", response_model=InstanceItem, responses=documented(UNKNOWN, INVALID, UNAVAILABLE), summary="One instance"
)
async def show(id: Id, services: ServicesDep) -> InstanceItem:
    return await services.instances.one(id)


@router.get(
    "/{id}/log",
    response_class=Response,
    responses={
        **documented(UNKNOWN, INVALID, UNAVAILABLE),
        200: {
            "description": "The end of its output, as it was written.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
    },
    summary="What an instance has printed",
)
async def log(
    id: Id,
    services: ServicesDep,
    bytes: Annotated[int, Query(ge=1, le=MAX_LOG_BYTES, description="The last so many bytes.")] = 64 * 1024,
) -> Response:
    data = await services.instances.log(id, bytes)
    headers = {"X-Content-Type-Options": "nosniff"}  # it may be anything: no browser shall take it for a page
    return Response(data, media_type="text/plain; charset=utf-8", headers=headers)
