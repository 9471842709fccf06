"""Promise 2: each ordinal runs at most once among the nodes that ZooKeeper counts as present, and where the plan says.

An ordinal that the record's `leaving` names at its old node may run there too (drain), unless it is `exclusive`; also
when that node was silent when it should have stopped it, and the record has it as `stopping` there until it has. A node
that comes back while its ordinals run elsewhere by now is a promise of its own, "returning": what runs there from
before is then left out of "once".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fabric.records import Deployment
from fabric.roles.work import split_id
from fabric.sim.checkers.base import Checker
from fabric.sim.checkers.view import DEPLOYMENTS, MEMBERS, Slot, View
from fabric.sim.driver import Instance
from zk.znodes import Change

if TYPE_CHECKING:
    from fabric.sim.world import World


class Exactly(Checker):
    names = ("once", "returning", "planned")

    def __init__(self, world: World, view: View) -> None:
        super().__init__(world)
        self._view = view
        self._from_before: set[tuple[str, Slot]] = set()
        """(machine, slot): it ran there already when the node registered last."""

    def launched(self, machine: str, instance: Instance) -> None:
        slot = split_id(instance.name)
        if slot is None:
            return
        seen = self._view.deployments.get(slot[0])
        if seen is None or machine not in seen.planned.get(slot[1], ()):
            self.fail("planned", f"{instance.name} starts on {machine}, where no record has ever planned it")
        if seen is not None and (slot[1], machine) in seen.left_absent:
            self._from_before.add((machine, slot))  # by orders from before it was away
        elif seen is not None and seen.plan.get(slot[1]) == machine:
            self._from_before.discard((machine, slot))
        self._judge(slot, f"{machine} starts it")

    def committed(self, zxid: int, session: int, changes: list[Change]) -> None:
        for kind, path in changes:
            if kind == "create" and path.startswith(MEMBERS) and path.count("/") == 4:
                self._came(path.rpartition("/")[2])
            elif kind == "set" and path.startswith(DEPLOYMENTS):
                seen = self._view.deployments.get(path[len(DEPLOYMENTS) :])
                if seen is None or seen.before is None or _leaves(seen.before) == _leaves(seen.record):
                    continue
                for ordinal in sorted({*seen.leaving, *seen.plan}):
                    self._judge((seen.record.id, ordinal), "its record changed")

    def _came(self, node: str) -> None:
        for slot in tuple(self._view.on_machine.get(node, ())):
            self._from_before.add((node, slot))
            self._judge(slot, f"{node} is present again")

    def _judge(self, slot: Slot, why: str) -> None:
        here = self._view.running.get(slot, {})
        if len(here) < 2:
            return
        at = [one for one in here if one in self._view.present and not self._view.may_leave(slot, one)]
        fresh = [one for one in at if (one, slot) not in self._from_before]
        if len(fresh) > 1:
            self.fail("once", f"{slot[0]}.{slot[1]} runs on {', '.join(sorted(fresh))}: {why}")
        if len(at) > 1:
            self.fail("returning", f"{slot[0]}.{slot[1]} runs on {', '.join(sorted(at))}: {why}")

    def sweep(self) -> None:
        for slot in tuple(self._view.running):
            self._judge(slot, "seen in a sweep")


def _leaves(record: Deployment) -> tuple[object, ...]:
    return record.leaving, record.stopping
