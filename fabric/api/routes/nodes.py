"""/v1/nodes and /v1/racks: what the rack leaders know of their agents, and cordons."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Query

from fabric.api import paging, views
from fabric.api.problems import CONFLICT, INVALID, UNAVAILABLE, UNKNOWN, conflict, documented, not_found
from fabric.api.schemas import CordonView, NodeList, NodeView, RackList, RackView
from fabric.api.services import Services, ServicesDep
from fabric.messages import NodeStatus
from fabric.records import LayerName
from fabric.roles.client import Statuses
from zk.paths import LAYERS

router = APIRouter(prefix="/v1", tags=["nodes"])
LOOK_EVERY_S = 0.1

NodeId = Annotated[str, Path(max_length=64, examples=["r1c07"])]
LayerFilter = Annotated[LayerName | None, Query(description="Only this layer.")]
RackFilter = Annotated[str, Query(max_length=64, description="Only this rack.")]


@router.get("/nodes", response_model=NodeList, responses=documented(INVALID, UNAVAILABLE), summary="List nodes")
async def nodes(
    services: ServicesDep,
    layer: LayerFilter = None,
    rack: RackFilter = "",
    limit: paging.Limit = paging.DEFAULT_LIMIT,
    after: paging.After = "",
) -> NodeList:
    """By layer, rack and name, as their rack leaders see them by heartbeats."""
    found = await _statuses(services, layer)
    views_ = [
        views.node(one, status.leader)
        for statuses in found
        for status in statuses.racks
        if not rack or status.rack == rack
        for one in status.nodes
    ]
    views_.sort(key=_node_key)
    page = paging.page(views_, limit, after, _node_key)
    return NodeList(items=list(page.items), next=page.next, silent_racks=_silent(found))


@router.get("/racks", response_model=RackList, responses=documented(INVALID, UNAVAILABLE), summary="List racks")
async def racks(
    services: ServicesDep,
    layer: LayerFilter = None,
    limit: paging.Limit = paging.DEFAULT_LIMIT,
    after: paging.After = "",
) -> RackList:
    """Those that have a leader, with the sums of their nodes."""
    items: list[RackView] = []
    for statuses in await _statuses(services, layer):
        by_name = {status.rack: status for status in statuses.racks}
        leaders = services.control.leaders(statuses.layer)
        items.extend(
            views.rack(statuses.layer, name, leaders.get(name), by_name.get(name))
            for name in sorted({*by_name, *leaders})
        )
    items.sort(key=_rack_key)
    page = paging.page(items, limit, after, _rack_key)
    return RackList(items=list(page.items), next=page.next)


@router.post(
    "/nodes/{id}/cordon",
    response_model=CordonView,
    responses=documented(UNKNOWN, CONFLICT, UNAVAILABLE),
    summary="Give a node nothing new",
)
async def cordon(id: NodeId, services: ServicesDep) -> CordonView:
    """What runs there goes on. It stays so until it is undone, also when the node's agent starts anew."""
    return await _cordon(services, id, True)


@router.post(
    "/nodes/{id}/uncordon",
    response_model=CordonView,
    responses=documented(UNKNOWN, CONFLICT, UNAVAILABLE),
    summary="Let a node have new instances again",
)
async def uncordon(id: NodeId, services: ServicesDep) -> CordonView:
    return await _cordon(services, id, False)


# --- helpers ---------------------------------------------------------------------------------------------------------


async def _statuses(services: Services, layer: LayerName | None) -> list[Statuses]:
    layers = LAYERS if layer is None else (layer,)
    return list(await asyncio.gather(*(services.inventory.statuses(one) for one in layers)))


def _silent(found: list[Statuses]) -> list[str]:
    return sorted(f"{statuses.layer}/{rack}" for statuses in found for rack in statuses.silent_racks)


def _node_key(view: NodeView) -> str:
    return f"{view.layer}/{view.rack}/{view.node}"


def _rack_key(view: RackView) -> str:
    return f"{view.layer}/{view.rack}"


async def _cordon(services: Services, node: str, wanted: bool) -> CordonView:
    """Write it down, then look whether the node knows, for a bounded time."""
    services.control.store.require_session()
    status = await services.inventory.find_node(node) or await services.inventory.find_node(node, fresh=True)
    if status is None:
        raise not_found("node", node, "GET /v1/nodes lists those that are present.")
    if status.layer != "compute":
        raise conflict(f"Node {node} is a {status.layer} node: only compute nodes can be cordoned.")
    await services.control.store.cordon(node, wanted)
    effective = await _knows(services, status, wanted)
    done = "cordoned" if wanted else "uncordoned"
    detail = f"{node} is {done}" if effective else f"{node} is {done}, but has not said so yet; it will when it looks"
    return CordonView(node=node, cordoned=wanted, effective=effective, detail=detail)


async def _knows(services: Services, node: NodeStatus, wanted: bool) -> bool:
    clock = asyncio.get_running_loop()
    deadline = clock.time() + services.control.limits.cordon_wait_s
    while True:
        statuses = await services.control.rack_status("compute", (node.rack,), max(0.1, deadline - clock.time()))
        for status in statuses.racks:
            for one in status.nodes:
                if one.node == node.node and one.cordoned == wanted and one.heard_ms >= 0:
                    return True
        if clock.time() >= deadline:
            return False
        await asyncio.sleep(LOOK_EVERY_S)
