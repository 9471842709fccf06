"""Instances, as their nodes see them: nobody else knows.

A page costs calls to the nodes on it and to no others. Of one deployment, the plan says which ordinals are where: a
page is the next `limit` ordinals and the nodes that have them. Of the whole fabric, nodes are asked by rack and
name until the page is full; heartbeats say about how many it takes.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable

from fabric.api import views
from fabric.api.control import ControlPlane
from fabric.api.inventory import Inventory
from fabric.api.problems import invalid, not_found, unavailable
from fabric.api.schemas import InstanceItem, InstanceList
from fabric.commands import Command, Describe, Described, InstanceView, LogText, ReadLog
from fabric.messages import NodeCommand
from fabric.ordinals import MAX_COUNT
from fabric.records import Deployment

Place = tuple[str, str]
"""(rack, node)."""
MAX_LOG_BYTES = 1 << 20
BATCH_NODES = 500
"""Asked at a time for a list of all instances."""


class Instances:
    def __init__(self, control: ControlPlane, inventory: Inventory) -> None:
        self._control = control
        self._inventory = inventory

    async def of_deployment(self, deployment_id: str, limit: int, after: str) -> InstanceList:
        """By ordinal. Each ordinal of the plan is there, also when its node has none, or did not answer."""
        record = (await self._control.store.deployment(deployment_id)).record
        first = _ordinal_of(after, deployment_id) + 1 if after else 0
        places = sorted((ordinal, one.rack, one.node) for one in record.plan for ordinal in one.numbers())
        rest = [place for place in places if place[0] >= first]
        shown = rest[:limit]
        told, silent = await self._describe({(rack, node) for _, rack, node in shown}, deployment_id)
        items = [self._item(record, ordinal, rack, node, told, silent) for ordinal, rack, node in shown]
        more = len(rest) > limit
        return InstanceList(
            items=items, next=items[-1].id if more and items else None, silent=sorted(node for _, node in silent)
        )

    async def of_fabric(self, limit: int, after: str) -> InstanceList:
        """By rack, node and id. `after`: "rack/node/instance id"."""
        last = _cursor_of(after)
        statuses = await self._inventory.statuses("compute")
        nodes = [(one.rack, one.node, one.instances) for status in statuses.racks for one in status.nodes]
        rest = deque(sorted(one for one in nodes if one[:2] >= last[:2]))
        found: list[tuple[tuple[str, str, str], InstanceView]] = []
        silent: set[Place] = set()
        while rest and len(found) <= limit:
            batch: list[Place] = []
            expected = len(found)
            while rest and len(batch) < BATCH_NODES and expected <= limit:
                rack, node, count = rest.popleft()
                batch.append((rack, node))
                expected += count
            told, quiet = await self._describe(batch, "")
            silent |= quiet
            rows = [((*place, name), one) for place in batch for name, one in sorted(told.get(place, {}).items())]
            found.extend(row for row in rows if row[0] > last)
        shown = found[:limit]
        more = len(found) > limit
        return InstanceList(
            items=[views.instance(one) for _, one in shown],
            next="/".join(shown[-1][0]) if more else None,
            silent=sorted(node for _, node in silent),
        )

    async def one(self, instance_id: str) -> InstanceItem:
        record, ordinal, rack, node = await self._find(instance_id)
        told, silent = await self._describe([(rack, node)], record.id)
        return self._item(record, ordinal, rack, node, told, silent)

    async def log(self, instance_id: str, max_bytes: int) -> bytes:
        """The end of its output."""
        _, _, rack, node = await self._find(instance_id)
        command: Command = ReadLog(instance_id, max_bytes)
        answer = await self._control.call_node("compute", rack, node, command)
        if not isinstance(answer, LogText):
            raise unavailable(f"Node {node} of rack {rack}, which has {instance_id}, did not answer.")
        if not answer.known:
            raise not_found("log of instance", instance_id, f"Node {node} does not have it (any more, or yet).")
        return answer.data

    async def _find(self, instance_id: str) -> tuple[Deployment, int, str, str]:
        deployment_id, dot, number = instance_id.rpartition(".")
        if not dot or not number.isascii() or not number.isdigit() or len(number) > 5 or "/" in deployment_id:
            raise not_found("instance", instance_id, "An instance is named <deployment>.<ordinal>.")
        found = await self._control.store.find_deployment(deployment_id)
        if found is None:
            raise not_found("instance", instance_id, f"There is no deployment {deployment_id}.")
        ordinal = int(number)
        for share in found.record.plan:
            if ordinal in share.numbers():
                return found.record, ordinal, share.rack, share.node
        raise not_found("instance", instance_id, f"Its deployment ({found.record.state}) has no such ordinal placed.")

    async def _describe(
        self, places: Iterable[Place], deployment_id: str
    ) -> tuple[dict[Place, dict[str, InstanceView]], set[Place]]:
        """What each node has, by instance id; and the nodes that did not answer."""
        commands: dict[str, list[NodeCommand]] = defaultdict(list)
        silent = set(places)
        for rack, node in sorted(silent):
            commands[rack].append(NodeCommand(node, Describe(deployment_id, MAX_COUNT)))
        told: dict[Place, dict[str, InstanceView]] = {}
        if not commands:
            return told, silent
        gathered = await self._control.call_nodes("compute", {rack: tuple(some) for rack, some in commands.items()})
        for reply in gathered.replies:
            for node, answer in reply.results:
                if isinstance(answer, Described):
                    told[reply.rack, node] = {one.id: one for one in answer.instances}
                    silent.discard((reply.rack, node))
        return told, silent

    @staticmethod
    def _item(
        record: Deployment,
        ordinal: int,
        rack: str,
        node: str,
        told: dict[Place, dict[str, InstanceView]],
        silent: set[Place],
    ) -> InstanceItem:
        if (rack, node) in silent:
            return views.planned_instance(record, ordinal, node, rack, "unknown", "its node did not answer")
        found = told.get((rack, node), {}).get(f"{record.id}.{ordinal}")
        if found is None:
            return views.planned_instance(record, ordinal, node, rack, "missing", "its node does not have it")
        return views.instance(found)


def _ordinal_of(after: str, deployment_id: str) -> int:
    name, _, number = after.rpartition(".")
    if name != deployment_id or not number.isascii() or not number.isdigit() or len(number) > 5:
        raise invalid("after", f"an instance of {deployment_id}", after)
    return int(number)


def _cursor_of(after: str) -> tuple[str, str, str]:
    if not after:
        return ("", "", "")
    parts = after.split("/")
    if len(parts) != 3:
        raise invalid("after", "`next` of the page before, as rack/node/instance", after)
    return (parts[0], parts[1], parts[2])
