"""/v1/brake: whether lost nodes are replaced."""

from __future__ import annotations

from fastapi import APIRouter

from fabric.api.operator_schemas import BrakeView, ReleaseView
from fabric.api.problems import UNAVAILABLE, documented
from fabric.api.services import ServicesDep

router = APIRouter(prefix="/v1", tags=["operating"])


@router.get(
    "/brake",
    response_model=BrakeView,
    responses=documented(UNAVAILABLE),
    summary="Whether so many nodes vanished at once that none is replaced",
)
async def brake(services: ServicesDep) -> BrakeView:
    return await services.fleet.brake(fresh=True)


@router.post(
    "/brake/release",
    response_model=ReleaseView,
    responses=documented(UNAVAILABLE),
    summary="Replace the nodes that are lost now, however many they are",
)
async def release(services: ServicesDep) -> ReleaseView:
    """What vanishes later is looked at anew."""
    return await services.fleet.release()
