"""ZooKeeper and the machines as seen from above: what several checkers need, kept up to date by what happens.

It is the first of the checkers to hear of each event.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fabric.records import Deployment, Share, decode
from fabric.roles.work import split_id
from fabric.sim.checkers.base import Checker
from fabric.sim.driver import Instance
from zk import paths
from zk.znodes import Change

if TYPE_CHECKING:
    from fabric.sim.world import World

Slot = tuple[str, int]
"""(deployment, ordinal)."""

DEPLOYMENTS = paths.DEPLOYMENTS + "/"
_OPEN = paths.OPEN + "/"
MEMBERS = paths.MEMBERS + "/compute/"


@dataclass(slots=True)
class Seen:
    """A deployment's record, taken apart. `planned`: wherever each ordinal was ever planned; `before`: the record that
    this one replaced; `leaving`: also what was leaving when it ceased to be wanted, while it is being stopped."""

    record: Deployment
    before: Deployment | None = None
    plan: dict[int, str] = field(default_factory=dict)
    leaving: dict[int, str] = field(default_factory=dict)
    stopping: set[tuple[int, str]] = field(default_factory=set)
    planned: dict[int, set[str]] = field(default_factory=dict)
    left_drained: set[tuple[int, str]] = field(default_factory=set)
    """(ordinal, node): it was `leaving` that node, and is planned elsewhere since."""
    left_absent: set[tuple[int, str]] = field(default_factory=set)
    """(ordinal, node): it left the plan while the node was not present."""


class View(Checker):
    """`deployments` keeps those whose record is gone too, without plan. `present`: compute nodes by the session that
    holds their member znode. `running`: slot -> machine -> what takes its share there."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.deployments: dict[str, Seen] = {}
        self.removed: set[str] = set()
        self.owners: dict[str, int] = {}
        """Deployment -> the session that owns it, as of the last transaction."""
        self.owned_before: dict[str, int] = {}
        """The same before the transaction that is being looked at."""
        self.present: dict[str, int] = {}
        self.running: dict[Slot, dict[str, Instance]] = {}
        self.on_machine: dict[str, dict[Slot, Instance]] = {}

    def committed(self, zxid: int, session: int, changes: list[Change]) -> None:
        if self.owned_before != self.owners:
            self.owned_before = dict(self.owners)
        for kind, path in changes:
            if path.startswith(MEMBERS):
                node = path.rpartition("/")[2]
                if path.count("/") != 4:
                    continue
                if kind == "delete":
                    self.present.pop(node, None)
                else:
                    self.present[node] = session
            elif path.startswith(_OPEN) and path.endswith("/owner"):
                deployment = path.split("/")[2]
                if kind == "delete":
                    self.owners.pop(deployment, None)
                else:
                    self.owners[deployment] = session
            elif path.startswith(DEPLOYMENTS) and path.count("/") == 2:
                self._record(path[len(DEPLOYMENTS) :], kind)

    def _record(self, deployment: str, kind: str) -> None:
        data = self.world.ensemble.read(paths.deployment(deployment))
        seen = self.deployments.get(deployment)
        if data is None:
            self.removed.add(deployment)
            if seen is not None:
                seen.plan, seen.leaving, seen.stopping = {}, {}, set()
            return
        record = decode(data, Deployment, deployment)
        if seen is None:
            seen = self.deployments[deployment] = Seen(record)
        else:
            seen.before, seen.record = seen.record, record
        before, seen.plan, seen.leaving = seen.plan, places(record.plan), places(record.leaving)
        seen.stopping = {(ordinal, share.node) for share in record.stopping for ordinal in share.numbers()}
        for ordinal, node in before.items():
            if seen.plan.get(ordinal) != node and node not in self.present:
                seen.left_absent.add((ordinal, node))
        seen.left_drained.update(seen.leaving.items())
        for ordinal, node in seen.plan.items():
            seen.left_drained.discard((ordinal, node))
            seen.planned.setdefault(ordinal, set()).add(node)
            seen.left_absent.discard((ordinal, node))

    def may_leave(self, slot: Slot, machine: str) -> bool:
        """It may run there though it is planned elsewhere: the record has it as leaving a node that is drained, or that
        node did not answer when it was to stop it, and the record still has it as stopping there. An exclusive one
        never may."""
        seen = self.deployments.get(slot[0])
        if seen is None or seen.record.exclusive:
            return False
        here = (slot[1], machine)
        return seen.leaving.get(slot[1]) == machine or (here in seen.stopping and here in seen.left_drained)

    def launched(self, machine: str, instance: Instance) -> None:
        slot = split_id(instance.name)
        if slot is not None:
            self.running.setdefault(slot, {})[machine] = instance
            self.on_machine.setdefault(machine, {})[slot] = instance

    def ended(self, machine: str, instance: Instance) -> None:
        slot = split_id(instance.name)
        if slot is not None:
            here = self.running.get(slot, {})
            if here.get(machine) is instance:
                del here[machine]
                del self.on_machine[machine][slot]
            if not here:
                self.running.pop(slot, None)

    def sweep(self) -> None:
        """The increments against a look at everything."""
        ensemble = self.world.ensemble
        racks = ensemble.children(f"{paths.MEMBERS}/compute")
        present = {node for rack in racks for node in ensemble.children(paths.rack_members("compute", rack))}
        assert present == set(self.present), f"present: {sorted(present ^ set(self.present))}"
        live = {
            (machine.name, one.name) for machine in self.world.machines.values() for one in machine.supervisor.live()
        }
        known = {(machine, one.name) for here in self.running.values() for machine, one in here.items()}
        assert live == known, f"running: {sorted(live ^ known)}"
        owners = {one for one in ensemble.children(paths.OPEN) if ensemble.stat(paths.owner(one)) is not None}
        assert owners == set(self.owners), f"owners: {sorted(owners ^ set(self.owners))}"


def places(shares: Iterable[Share]) -> dict[int, str]:
    """Ordinal -> node."""
    return {ordinal: share.node for share in shares for ordinal in share.numbers()}
