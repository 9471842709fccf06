"""The audit: looks, what two of them have found, and, if so wished, the repair and a look at what is left.

    look -> nothing found: clean
         '- found: wait as long as that may take to go away by itself -> look again -> what is in both looks counts
                     |- something is in the second look only: once more, up to `audit_looks` in all
                     |- only to look: report
                     '- repair: each remedy once -> look again until it is gone or `audit_repair_wait_s` is over

What the remedies are, and why none of them can do harm, is in `fabric.roles.audit`. One audit at a time: it asks every
node of the fabric.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence

import msgspec

from fabric.api.control import ControlPlane, wall_ms
from fabric.api.looking import Tell, look
from fabric.api.mending import Mending
from fabric.api.operator_schemas import AuditView, FindingView
from fabric.api.problems import ProblemError, conflict
from fabric.commands import Cancel, Command, Stale, Verify
from fabric.messages import NodeCommand
from fabric.records import Deployment
from fabric.roles.audit import REMEDIES, Facts, Finding, Place, braked, compare, confirmed, grouped, settle_s
from fabric.roles.settings import Settings
from zk.client import TreeClient


class Auditing:
    def __init__(self, control: ControlPlane) -> None:
        self._control = control
        self._mending = Mending(TreeClient(control.tree), control.limits, control.rng)
        self._running = False

    async def run(self, repair: bool, tell: Tell) -> AuditView:
        """409 while another one runs; 503 when nothing could be compared."""
        self.require_idle()
        self._running = True
        try:
            return await self._run(repair, tell)
        finally:
            self._running = False

    def require_idle(self) -> None:
        """409 while an audit runs."""
        if self._running:
            raise conflict("An audit is running at this API already; wait for its end.")

    async def _run(self, repair: bool, tell: Tell) -> AuditView:
        began_ms = wall_ms()
        limits, settings = self._control.limits, self._control.config.settings
        facts = await look(self._control, self._mending, tell)
        seen = compare(facts, settings)
        found: Sequence[Finding] = ()
        looks = 1
        while len(found) < len(seen) and looks < limits.audit_looks:  # something was there in this look only
            fresh = [one for one in seen if one not in found]
            wait_s = min(limits.audit_gap_most_s, max(limits.audit_gap_s, settle_s(fresh)))
            tell(f"looking again in {wait_s:.0f} s at what does not fit", 0, 0)
            await asyncio.sleep(wait_s)
            facts = await look(self._control, self._mending, tell)
            before, seen = seen, compare(facts, settings)
            found = confirmed(before, seen)
            looks += 1
        left: Sequence[Finding] = found
        if repair and found:
            tell(f"repairing {len(found)} findings", 0, len(found))
            await self._repair(found, facts)
            left, more = await self._wait_repaired(found, tell)
            looks += more
        return _view(facts, settings, found, left, repair, looks, wall_ms() - began_ms, limits.audit_most)

    # --- repair --------------------------------------------------------------------------------------------------

    async def _repair(self, found: Sequence[Finding], facts: Facts) -> None:
        """Each remedy once. What goes wrong with one does not keep back the others; the look afterwards tells."""
        verify = {(one.place, one.deployment) for one in found if one.remedy == "verify"}
        await self._tell_nodes({(place, Verify(deployment)) for place, deployment in verify})
        cancel = {(one.place, one.deployment) for one in found if one.remedy == "cancel"}
        await self._give_back(cancel)
        for deployment in sorted({one.deployment for one in found if one.remedy == "reconcile"}):
            await self._reconcile(deployment, facts.records[deployment][0])
        for one in found:
            match one.remedy:
                case "delete":
                    await self._mending.delete(one.path, one.version)
                case "unmark":
                    await self._mending.unmark(one.deployment, one.version)
                case "mark":
                    await self._mending.mark(one.deployment, one.version)
                    self._control.submit(one.deployment)
                case "cordon":
                    await self._mending.cordon_drained(one.subject, one.version)
                case _:
                    pass

    async def _tell_nodes(self, commands: set[tuple[Place, Command]]) -> dict[Place, list[object]]:
        """The answers by node. One command a node in a call, so that none hides another."""
        answers: dict[Place, list[object]] = defaultdict(list)
        queues: dict[Place, list[Command]] = defaultdict(list)
        for place, command in sorted(commands, key=str):
            queues[place].append(command)
        while queues:
            batch: dict[str, list[NodeCommand]] = defaultdict(list)
            for place in list(queues):
                batch[place[0]].append(NodeCommand(place[1], queues[place].pop()))
                if not queues[place]:
                    del queues[place]
            call = {rack: tuple(some) for rack, some in batch.items()}
            for reply in (await self._control.call_nodes("compute", call)).replies:
                for node, answer in reply.results:
                    answers[reply.rack, node].append(answer)
        return answers

    async def _give_back(self, wanted: set[tuple[Place, str]]) -> None:
        """The order must be as late as the latest that the node has seen, and no later: a coordinator that claims the
        deployment in this moment has a later epoch, and what it reserves stays."""
        for place, deployment in sorted(wanted):
            for answer in (await self._tell_nodes({(place, Cancel(deployment, 0, 0))}))[place]:
                if isinstance(answer, Stale):
                    await self._tell_nodes({(place, Cancel(deployment, answer.epoch, answer.step))})

    async def _reconcile(self, deployment: str, seen: Deployment) -> None:
        """As after a change by a user, though nothing is changed: a coordinator confirms the plan anew."""

        def again(record: Deployment) -> Deployment | None:
            if record.gone or not record.final or record.generation != seen.generation:
                return None
            changes = {"generation": record.generation + 1, "state": "accepted", "updated_ms": wall_ms()}
            return msgspec.structs.replace(record, **changes)

        try:
            await self._control.store.change(deployment, again)
        except ProblemError:
            return  # gone, or others change it all the time
        self._control.submit(deployment)

    async def _wait_repaired(self, found: Sequence[Finding], tell: Tell) -> tuple[list[Finding], int]:
        """What is left of it, and the number of looks that it took to know."""
        clock = asyncio.get_running_loop().time
        limits, settings = self._control.limits, self._control.config.settings
        deadline = clock() + limits.audit_repair_wait_s
        repairable = {one.identity for one in found if one.remedy != "none"}
        looks = 0
        while True:
            await asyncio.sleep(limits.audit_poll_s)
            facts = await look(self._control, self._mending, tell)
            looks += 1
            still = {one.identity for one in compare(facts, settings)}
            left = [one for one in found if one.identity in still or not _at_rest(facts, one)]
            over = clock() >= deadline or not any(one.identity in repairable for one in left)
            if over:
                return left, looks
            tell("waiting for the repair", len(found) - len(left), len(found))


def _at_rest(facts: Facts, one: Finding) -> bool:
    """A deployment that is reconciled is not compared; so it is not well before it is at rest again."""
    known = facts.records.get(one.deployment)
    return known is None or known[0].final


def _view(
    facts: Facts,
    settings: Settings,
    found: Sequence[Finding],
    left: Sequence[Finding],
    repair: bool,
    looks: int,
    took_ms: int,
    most: int,
) -> AuditView:
    """Found and repaired are told apart before ordinals are put together to lines."""
    remain = {one.identity for one in left}
    rows = [
        (one, repaired)
        for repaired, some in (
            (False, [one for one in found if one.identity in remain]),
            (True, [one for one in found if one.identity not in remain]),
        )
        for one in grouped(some)
    ]
    return AuditView(
        clean=not found,
        complete=not any(one.kind == "unreachable" for one in found),
        brake=held.sentence if (held := braked(facts, settings)) is not None else "",
        repairing=repair,
        findings=[
            FindingView(
                kind=one.kind,
                subject=one.subject,
                where=one.where,
                detail=one.detail,
                repair=REMEDIES[one.remedy],
                repaired=repaired,
            )
            for one, repaired in rows[:most]
        ],
        omitted=max(0, len(rows) - most),
        left=sum(not repaired for _, repaired in rows),
        deployments=len(facts.records),
        nodes=len(facts.told),
        instances=sum(len(told.instances) for told in facts.told.values()),
        images=sum(len(content.names) for content in facts.contents),
        looks=looks,
        took_ms=took_ms,
    )
