"""/v1/nodes and /v1/racks: what the rack leaders know of their agents; cordons and drains."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated

from fastapi import APIRouter, Body, Path, Query

from fabric.api import paging, views
from fabric.api.control import wall_ms
from fabric.api.operator_schemas import DrainRequest, DrainView
from fabric.api.problems import (
    CONFLICT,
    INVALID,
    MEDIA,
    NOT_JSON,
    TOO_LARGE,
    UNAVAILABLE,
    UNKNOWN,
    conflict,
    documented,
    not_found,
)
from fabric.api.schemas import NAME_PATTERN, CordonView, NodeList, NodeView, RackList, RackView
from fabric.api.services import Services, ServicesDep
from fabric.messages import NodeStatus
from fabric.records import LayerName
from fabric.roles.client import Statuses
from zk.paths import LAYERS

router = APIRouter(prefix="/v1", tags=["nodes"])
_NAME = re.compile(NAME_PATTERN)
_AN_HOUR = DrainRequest()
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
    """By layer, rack and name, as their rack leaders see them by heartbeats; and those that are lost."""
    found = await _statuses(services, layer)
    notes = await services.fleet.last_known()
    views_ = [
        views.node(one, status.leader, notes.drains.get(one.node))
        for statuses in found
        for status in statuses.racks
        if not rack or status.rack == rack
        for one in status.nodes
    ]
    here = {one.node for one in views_}
    views_.extend(
        views.lost_node(one.record, notes.drains.get(one.record.node))
        for one in notes.lost
        if layer != "storage" and (not rack or one.record.rack == rack) and one.record.node not in here
    )
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
    """Ends its drain, too; what was moved elsewhere stays there. Also of a node that is away."""
    if _NAME.fullmatch(id) and await services.inventory.find_node(id, fresh=True) is None:
        notes = services.control.notes
        if id in await notes.cordoned() or await notes.drain_of(id) is not None:
            await notes.uncordon(id)
            return CordonView(node=id, cordoned=False, effective=False, detail=f"{id} is uncordoned; it is away now")
    return await _cordon(services, id, False)


@router.post(
    "/nodes/{id}/drain",
    response_model=DrainView,
    status_code=202,
    responses={
        **documented(UNKNOWN, CONFLICT, NOT_JSON, MEDIA, TOO_LARGE, INVALID, UNAVAILABLE),
        202: {"description": "Written down; what runs there is being moved."},
    },
    summary="Move off a node what runs there",
)
async def drain(id: NodeId, services: ServicesDep, body: Annotated[DrainRequest, Body()] = _AN_HOUR) -> DrainView:
    """The node gets nothing new. Each of its instances is started elsewhere first, then stopped here (for `exclusive`
    deployments the other way round); what finds no other place by the deadline is stopped. Repeated, it sets another
    deadline. It lasts until the node is uncordoned."""
    await _compute_node(services, id, "drained")
    now_ms = wall_ms()
    found = await services.control.notes.drain(id, now_ms, now_ms + body.deadline_s * 1000)
    return await services.fleet.drain_view(found.record)


@router.get(
    "/nodes/{id}/drain",
    response_model=DrainView,
    responses=documented(UNKNOWN, UNAVAILABLE),
    summary="How far the drain of a node is",
)
async def drained(id: NodeId, services: ServicesDep) -> DrainView:
    if not _NAME.fullmatch(id):
        raise not_found("drain of node", id)
    return await services.fleet.drained(id)


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


async def _compute_node(services: Services, node: str, what: str) -> NodeStatus:
    """A compute node that is present; 404 or 409 when it is none."""
    await services.control.store.require_session()
    status = await services.inventory.find_node(node) or await services.inventory.find_node(node, fresh=True)
    if status is None:
        raise not_found("node", node, "GET /v1/nodes lists those that are present.")
    if status.layer != "compute":
        raise conflict(f"Node {node} is a {status.layer} node: only compute nodes can be {what}.")
    return status


async def _cordon(services: Services, node: str, wanted: bool) -> CordonView:
    """Write it down, then look whether the node knows, for a bounded time."""
    status = await _compute_node(services, node, "cordoned")
    if wanted:
        await services.control.notes.cordon(node)
    else:
        await services.control.notes.uncordon(node)
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
