"""/v1/leaders, /v1/flavors, /v1/capacity: the fabric as a whole."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from fabric.api import paging, views
from fabric.api.inventory import rooms
from fabric.api.problems import INVALID, UNAVAILABLE, UNKNOWN_FLAVOR, documented
from fabric.api.schemas import CapacityView, FlavorList, LeaderList, LeaderView, RackCapacity
from fabric.api.services import ServicesDep
from zk.paths import LAYERS

router = APIRouter(prefix="/v1", tags=["fabric"])


@router.get("/leaders", response_model=LeaderList, responses=documented(INVALID), summary="Who leads which rack")
async def leaders(
    services: ServicesDep, limit: paging.Limit = paging.DEFAULT_LIMIT, after: paging.After = ""
) -> LeaderList:
    """As last read from ZooKeeper; watches keep it true."""
    items = [
        views.leader(layer, seen) for layer in LAYERS for _, seen in sorted(services.control.leaders(layer).items())
    ]
    items.sort(key=_key)
    page = paging.page(items, limit, after, _key)
    return LeaderList(items=list(page.items), next=page.next)


@router.get("/flavors", response_model=FlavorList, summary="The sizes on offer, smallest first")
async def flavors(services: ServicesDep) -> FlavorList:
    return FlavorList(items=[views.flavor(one) for one in services.control.config.flavors.values()])


@router.get(
    "/capacity",
    response_model=CapacityView,
    responses=documented(INVALID, UNKNOWN_FLAVOR, UNAVAILABLE),
    summary="How many more instances fit, by rack",
)
async def capacity(
    services: ServicesDep, flavor: Annotated[str, Query(min_length=1, max_length=64, examples=["Large"])]
) -> CapacityView:
    chosen = services.deploying.flavor(flavor)
    await services.control.require_leaders("compute")
    found = await services.inventory.statuses("compute")
    each = rooms(chosen.resources, found)
    return CapacityView(
        flavor=chosen.name,
        resources=views.resources(chosen.resources),
        fits=sum(room.fits for room in each),
        total=sum(room.total for room in each),
        racks=[
            RackCapacity(
                rack=room.rack, fits=room.fits, total=room.total, nodes=room.nodes, limited_by=room.limited_by
            )
            for room in each
        ],
        silent_racks=list(found.silent_racks),
    )


def _key(view: LeaderView) -> str:
    return f"{view.layer}/{view.rack}"
