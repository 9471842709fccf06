"""What the rack leaders know of their nodes, for lists, capacity and admission.

A cache with an owner (this object) and an invalidation (its age, at most `status_age_s`): asking every rack leader for
every request would cost more than placing it. Requests that come while an answer is under way share it. Who must not
be wrong by old news (a refusal, a cordon) asks with `fresh=True`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from fabric.api.control import ControlPlane
from fabric.messages import NodeStatus
from fabric.records import LayerName, Share, Size
from fabric.resources import DIMENSIONS, Resources
from fabric.roles.advice import KINDS, Case, Kind, advise
from fabric.roles.client import Statuses
from fabric.roles.placement import NodeOffer, Wish


class Inventory:
    def __init__(self, control: ControlPlane) -> None:
        self._control = control
        self._asking: dict[LayerName, asyncio.Task[None]] = {}
        self._known: dict[LayerName, tuple[float, Statuses]] = {}

    async def statuses(self, layer: LayerName, fresh: bool = False) -> Statuses:
        """Of all racks of a layer. `fresh`: asked for after this call began."""
        loop = asyncio.get_running_loop()
        oldest = loop.time() - (0.0 if fresh else self._control.limits.status_age_s)
        while True:
            known = self._known.get(layer)
            if known is not None and known[0] >= oldest:
                return known[1]
            task = self._asking.get(layer)
            if task is None:
                task = self._asking[layer] = loop.create_task(self._ask(layer))
            await asyncio.shield(task)  # others wait for it too; one that began too early is waited for, then another

    async def _ask(self, layer: LayerName) -> None:
        began = asyncio.get_running_loop().time()
        try:
            self._known[layer] = (began, await self._control.rack_status(layer))
        finally:
            del self._asking[layer]

    async def find_node(self, node: str, fresh: bool = False) -> NodeStatus | None:
        """By its id, in either layer."""
        layers: tuple[LayerName, ...] = ("compute", "storage")
        for layer in layers:
            for status in (await self.statuses(layer, fresh)).racks:
                for one in status.nodes:
                    if one.node == node:
                        return one
        return None


@dataclass(frozen=True, slots=True)
class Room:
    """How many of something fit in a rack: now, and if it were empty. `limited_by`: what its nodes run out of first."""

    rack: str
    fits: int
    total: int
    nodes: int
    limited_by: str


def rooms(need: Resources, found: Statuses, max_per_node: int = 0, max_per_rack: int = 0) -> list[Room]:
    """By rack. What is cordoned or silent has room when empty, but not now."""
    answer: list[Room] = []
    for status in found.racks:
        now = [0 if one.cordoned or one.silent else one.free.holds(need) for one in status.nodes]
        empty = [one.total.holds(need) for one in status.nodes]
        answer.append(
            Room(
                status.rack,
                _limited(now, max_per_node, max_per_rack),
                _limited(empty, max_per_node, max_per_rack),
                len(status.nodes),
                _scarcest(need, (one.free for one in status.nodes if not one.cordoned and not one.silent)),
            )
        )
    return sorted(answer, key=lambda room: room.rack)


def why_impossible(
    flavor: str, need: Resources, least: int, max_per_node: int, max_per_rack: int, found: Statuses
) -> tuple[str, ...]:
    """Why not even `least` instances would fit if this fabric were empty, a line for each dimension and limit that is
    too small; empty when they would fit, or when too little is known to say so."""
    if found.silent_racks or not found.racks or _hold_when_empty(need, least, max_per_node, max_per_rack, found):
        return ()
    nodes = [one for status in found.racks for one in status.nodes]
    lines: list[str] = []
    for dimension in DIMENSIONS:
        each = getattr(need, dimension)
        if each:
            fits = sum(getattr(one.total, dimension) // each for one in nodes)
            if fits < least:
                whole = sum(getattr(one.total, dimension) for one in nodes)
                lines.append(
                    f"{dimension}: {flavor} needs {each}, so {least} need {each * least}; {len(nodes)} nodes have "
                    f"{whole} together, room for {fits}"
                )
    alone = sum(room.total for room in rooms(need, found))
    if alone < least and not lines:
        lines.append(f"no single dimension, but all of them together: room for {alone} of {least}")
    if alone >= least:
        if max_per_node:
            fits = sum(room.total for room in rooms(need, found, max_per_node))
            if fits < least:
                lines.append(f"max_per_node {max_per_node}: {len(nodes)} nodes then have room for {fits} of {least}")
        if max_per_rack:
            fits = sum(room.total for room in rooms(need, found, 0, max_per_rack))
            if fits < least:
                racks = len(found.racks)
                lines.append(f"max_per_rack {max_per_rack}: {racks} racks then have room for {fits} of {least}")
        if not lines:
            lines.append(f"max_per_node {max_per_node} and max_per_rack {max_per_rack} together leave too little room")
    lines.extend(
        f"rack {room.rack}: {room.total} fit on its {room.nodes} nodes when empty"
        for room in rooms(need, found, max_per_node, max_per_rack)[:50]
    )
    return tuple(lines)


def what_would_do(
    need: Resources,
    least: int,
    max_per_node: int,
    max_per_rack: int,
    flavors: tuple[Size, ...],
    plan: tuple[Share, ...],
    found: Statuses,
) -> tuple[str, ...]:
    """What would do instead of `least` instances, as far as heartbeats tell, in a sentence each. `plan`: what runs
    already; then only the count can change."""
    there = {share.node: len(share.numbers()) for share in plan}
    have = sum(there.values())
    offers = [
        NodeOffer(
            one.node, one.rack, one.free.holds(need), there.get(one.node, 0), cordoned=one.cordoned, free=one.free
        )
        for status in found.racks
        for one in status.nodes
        if not one.silent
    ]
    wish = Wish(least - have, max_per_node=max_per_node, max_per_rack=max_per_rack)
    kinds: tuple[Kind, ...] = ("fewer", "uncordon") if plan else KINDS
    return tuple(one.sentence for one in advise(Case(wish, need, offers, flavors, have, kinds)))


def _hold_when_empty(need: Resources, least: int, max_per_node: int, max_per_rack: int, found: Statuses) -> bool:
    """Looks no further than it must: every request is admitted by it."""
    fits = 0
    for status in found.racks:
        rack = 0
        for one in status.nodes:
            holds = one.total.holds(need)
            rack += min(holds, max_per_node) if max_per_node else holds
            if max_per_rack and rack >= max_per_rack:
                rack = max_per_rack
                break
            if fits + rack >= least:
                return True
        fits += rack
    return fits >= least


def _limited(counts: list[int], max_per_node: int, max_per_rack: int) -> int:
    fits = sum(min(count, max_per_node) if max_per_node else count for count in counts)
    return min(fits, max_per_rack) if max_per_rack else fits


def _scarcest(need: Resources, free: Iterable[Resources]) -> str:
    """The dimension by which the fewest fit."""
    counts = dict.fromkeys((one for one in DIMENSIONS if getattr(need, one)), 0)
    for one in free:
        for dimension in counts:
            counts[dimension] += getattr(one, dimension) // getattr(need, dimension)
    return min(counts, key=lambda dimension: counts[dimension]) if counts else "vcpus"
