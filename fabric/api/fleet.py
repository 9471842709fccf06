"""The state of the fabric's nodes that leaders and operators wrote down: who is lost, who is drained, the brake.

Read from ZooKeeper when it is asked for, and used again for `status_age_s`, as lists of nodes and /metrics ask often.
Where an outage must not turn a list into an error, `last_known` answers with what was read before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fabric.api.control import ControlPlane, wall_ms
from fabric.api.operator_schemas import BrakeView, CrowdView, DrainedDeployment, DrainView, LostView, ReleaseView
from fabric.api.problems import ProblemError, not_found
from fabric.api.reading import Versioned
from fabric.api.views import timestamp
from fabric.records import Deployment, Drain, Lost, Share
from fabric.roles.brake import Brake, Crowd, brake
from zk.tree import TreeError


@dataclass(frozen=True, slots=True)
class Notes:
    """`lost`: of nodes that are not back. `members`: rack -> its compute nodes that are present; only read when a node
    is lost. `brake`: None when it is off."""

    lost: tuple[Versioned[Lost], ...] = ()
    drains: Mapping[str, Drain] = field(default_factory=dict)
    members: Mapping[str, int] = field(default_factory=dict)
    brake: Brake | None = None


class Fleet:
    def __init__(self, control: ControlPlane) -> None:
        self._control = control
        self._known = Notes()
        self._known_at: float | None = None
        self._lock = asyncio.Lock()

    @property
    def known(self) -> Notes:
        """As they were read last."""
        return self._known

    async def notes(self, fresh: bool = False) -> Notes:
        """`fresh`: read after this call began."""
        clock = asyncio.get_running_loop().time
        oldest = clock() - (0.0 if fresh else self._control.limits.status_age_s)
        async with self._lock:
            if self._known_at is None or self._known_at < oldest:
                began = clock()
                self._known = await self._look()
                self._known_at = began
            return self._known

    async def last_known(self) -> Notes:
        """The notes, or, while ZooKeeper can't be read, those from before."""
        try:
            return await self.notes()
        except (TreeError, TimeoutError, ProblemError):
            return self._known

    async def _look(self) -> Notes:
        source = self._control.notes
        source.require_connection()
        lost, drains = await asyncio.gather(source.lost(), source.drains())
        by_node = {one.record.node: one.record for one in drains}
        if not lost:
            return Notes(drains=by_node)
        present = await source.present("compute")
        here = {node for nodes in present.values() for node in nodes}
        gone = tuple(one for one in lost if one.record.node not in here)
        members = {rack: len(nodes) for rack, nodes in present.items()}
        settings = self._control.config.settings
        return Notes(gone, by_node, members, brake([one.record for one in gone], members, wall_ms(), settings))

    # --- the brake -----------------------------------------------------------------------------------------------

    async def brake(self, fresh: bool = False) -> BrakeView:
        found = await self.notes(fresh)
        settings = self._control.config.settings
        on = found.brake
        of = len(found.lost) + sum(found.members.values())
        return BrakeView(
            on=on is not None,
            since=timestamp(on.since_ms) if on else None,
            detail=on.sentence if on else _off(found.lost),
            racks=[_crowd(one) for one in on.racks] if on else [],
            fabric=_crowd(on.fabric) if on else CrowdView(rack="", lost=len(found.lost), of=of),
            nodes=list(on.nodes) if on else [],
            lost=[_lost(one.record) for one in found.lost],
            rack_share=settings.brake_rack_share,
            fabric_share=settings.brake_fabric_share,
            least=settings.brake_least,
            window_s=settings.brake_window_s,
        )

    async def release(self) -> ReleaseView:
        """Every node that is lost now is replaced, and none of them is counted by the brake any more: also those whose
        replacement was decided a moment ago, or the brake would stay on by them."""
        found = await self.notes(fresh=True)
        counted = set(found.brake.nodes) if found.brake else set()
        wanted = [one for one in found.lost if not one.record.accepted_ms or one.record.node in counted]
        now_ms = wall_ms()
        released: list[str] = []
        for one in wanted:
            if await self._control.notes.accept(one, now_ms) and not one.record.accepted_ms:
                released.append(one.record.node)
        return ReleaseView(released=released, brake=await self.brake(fresh=True))

    # --- drains --------------------------------------------------------------------------------------------------

    async def drained(self, node: str) -> DrainView:
        """404 when it is not being drained."""
        found = await self._control.notes.drain_of(node)
        if found is None:
            raise not_found("drain of node", node, "POST /v1/nodes/{id}/drain begins one.")
        return await self.drain_view(found.record)

    async def drain_view(self, drain: Drain) -> DrainView:
        rows: list[DrainedDeployment] = []

        def look(record: Deployment) -> bool:
            row = drained_of(record, drain.node)
            if row is not None:
                rows.append(row)
            return False

        await self._control.store.scan(look)
        left = sum(row.staying + row.leaving + row.stopping for row in rows)
        return DrainView(
            node=drain.node,
            since=timestamp(drain.since_ms),
            deadline=timestamp(drain.deadline_ms),
            overdue=wall_ms() >= drain.deadline_ms,
            left=left,
            done=left == 0,
            deployments=sorted(rows, key=lambda row: row.id),
        )


def drained_of(record: Deployment, node: str) -> DrainedDeployment | None:
    """What `node` still has of a deployment by its record; None: nothing. One that is over has nothing anywhere. What a
    record at rest has as `stopping` is no fact but a doubt, of which nobody hears before the next change: it would keep
    a drain from its end for ever."""
    if record.final and record.state in ("failed", "deleted"):
        return None
    staying = _on(record.plan, node)
    leaving = _on(record.leaving, node) - staying
    stopping = set() if record.final else _on(record.stopping, node) - staying - leaving
    if not staying and not leaving and not stopping:
        return None
    return DrainedDeployment(
        id=record.id,
        name=record.name,
        state=record.state,
        final=record.final,
        exclusive=record.exclusive,
        staying=len(staying),
        leaving=len(leaving),
        stopping=len(stopping),
        lacking=record.lacking,
        reason=record.reason,
        reasons=list(record.reasons),
    )


def _on(shares: Iterable[Share], node: str) -> set[int]:
    return {ordinal for share in shares if share.node == node for ordinal in share.numbers()}


def _crowd(value: Crowd) -> CrowdView:
    return CrowdView(rack=value.rack, lost=value.lost, of=value.of)


def _lost(value: Lost) -> LostView:
    return LostView(
        node=value.node,
        rack=value.rack,
        since=timestamp(value.since_ms),
        accepted=timestamp(value.accepted_ms) if value.accepted_ms else None,
        by=value.by,
    )


def _off(lost: tuple[Versioned[Lost], ...]) -> str:
    if not lost:
        return "the brake is off: no node is lost"
    replaced = sum(one.record.accepted_ms > 0 for one in lost)
    nodes = "1 node is" if len(lost) == 1 else f"{len(lost)} nodes are"
    return f"the brake is off: {nodes} lost, and {replaced} of {len(lost)} replaced"
