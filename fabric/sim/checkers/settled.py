"""What must be so when the faults are over: everything ends, nothing is left over, every image is redundant; where
there is room nothing lacks, and nodes that are drained are empty.

`unsettled` says what is not so yet; the simulation goes on until it says nothing, within a bound of virtual time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from fabric.records import Drain, Image, decode
from fabric.sim.checkers.base import Checker
from fabric.sim.checkers.view import Seen, View
from fabric.sim.machine import Machine
from zk import paths

if TYPE_CHECKING:
    from fabric.sim.world import World

Trouble = tuple[str, str]
"""(promise, what is not as it should be)."""


class Settled(Checker):
    names = ("ends", "orphans", "heal", "repair", "drain", "rest")

    def __init__(self, world: World, view: View) -> None:
        super().__init__(world)
        self._view = view

    def settled(self) -> None:
        for promise, found in self.unsettled():
            self.fail(promise, found)

    def unsettled(self) -> Iterator[Trouble]:
        """Of the promises that are looked at."""
        for promise, found in self._all():
            if promise in self.world.promises:
                yield promise, found

    def _all(self) -> Iterator[Trouble]:
        yield from self._agents()
        yield from self._requests()
        for deployment, seen in self._view.deployments.items():
            if deployment not in self._view.removed:
                yield from self._deployment(deployment, seen)
        yield from self._leftovers()
        yield from self._images()
        yield from self._notes()
        yield from self._drained()

    def _agents(self) -> Iterator[Trouble]:
        ensemble = self.world.ensemble
        racks: dict[tuple[str, str], list[Machine]] = {}
        for machine in self.world.machines.values():
            racks.setdefault((machine.layer, machine.rack), []).append(machine)
            process = machine.process
            if process is None or process.agent is None or not process.agent.present:
                yield "ends", f"{machine.name} is not present"
                continue
            owner = ensemble.owner(paths.member(machine.layer, machine.rack, machine.name))
            if process.tree is None or owner != process.tree.session_id:
                yield "ends", f"the member znode of {machine.name} is not its own"
        for (layer, rack), machines in racks.items():
            leaders = [one.name for one in machines if one.process is not None and one.process.leads]
            if len(leaders) != 1:
                yield "ends", f"{layer} rack {rack} is led by {', '.join(leaders) or 'nobody'}"

    def _requests(self) -> Iterator[Trouble]:
        users = self.world.users
        if users.open:
            yield "ends", f"{users.open} requests of users have no answer"
        for wanted in users.wanted.values():
            seen = self._view.deployments.get(wanted.deployment)
            if wanted.created and seen is None:
                yield "ends", f"{wanted.deployment} was accepted, and there is no record of it"
            elif wanted.gone and seen is not None and seen.record.state != "deleted":
                yield "ends", f"{wanted.deployment} is to be deleted, and is {seen.record.state}"

    def _deployment(self, deployment: str, seen: Seen) -> Iterator[Trouble]:
        record = seen.record
        if not record.final:
            yield "ends", f"{deployment} is {record.state}: {len(seen.plan)} of {record.count} planned"
            return
        if record.state != "running":
            if seen.plan:
                yield "ends", f"{deployment} is {record.state}, and its plan names {len(seen.plan)} ordinals"
            return
        if record.leaving:
            yield "ends", f"{deployment} is settled, and ordinals are still leaving"
        least = record.count if not record.reason else min(record.count, max(1, record.min_count))
        if len(seen.plan) < least and not record.lacking and not _was_cut(seen):
            yield "ends", f"{deployment} is running, with {len(seen.plan)} of {record.count} planned"
        yield from self._rest(seen)
        for ordinal, node in seen.plan.items():
            here = self._view.running.get((deployment, ordinal), {})
            if node in here and here[node].state == "running":
                continue
            if not self._has_ended(node, deployment, ordinal):
                at = ", ".join(sorted(here)) or "nowhere"
                yield "heal", f"{deployment}.{ordinal} is planned on {node} and runs {at}"

    def _rest(self, seen: Seen) -> Iterator[Trouble]:
        """What the record says beside its plan."""
        record, missing = seen.record, seen.record.count - len(seen.plan)
        if record.moved:
            yield "rest", f"{record.id} is settled, and ordinals {record.moved} have moved"
        if record.lacking > missing:
            yield "rest", f"{record.id} lacks {record.lacking}, and {missing} have no place"
        for share in record.stopping:
            if here := [ordinal for ordinal in share.numbers() if seen.plan.get(ordinal) == share.node]:
                yield "rest", f"{record.id} has {here} on {share.node}, where they are to stop"
        if record.lacking and (node := self._room(seen)):
            yield "heal", f"{record.id} lacks {record.lacking}, and {node} has room"

    def _room(self, seen: Seen, ordinal: int | None = None) -> str:
        """A node that could take one more of it, or (with `ordinal`) that one; empty: there is none."""
        record = seen.record
        others = [node for one, node in seen.plan.items() if one != ordinal]
        nodes, racks = Counter(others), Counter(self.world.machines[node].rack for node in others)
        for name, machine in self.world.machines.items():
            ledger = machine.process.ledger if machine.process is not None else None
            if ledger is None or self.world.ensemble.stat(paths.cordon(name)) is not None:
                continue
            if seen.plan.get(-1 if ordinal is None else ordinal) == name or not ledger.fits(record.spec.resources):
                continue
            in_node = not record.max_per_node or nodes[name] < record.max_per_node
            if in_node and (not record.max_per_rack or racks[machine.rack] < record.max_per_rack):
                return name
        return ""

    def _notes(self) -> Iterator[Trouble]:
        for node in self.world.ensemble.children(paths.LOST):
            yield "rest", f"{node} is noted as lost, and is {'' if node in self._view.present else 'not '}present"

    def _drained(self) -> Iterator[Trouble]:
        """Its leader may have a clock that is wrong: the deadline is over when it is by all of them."""
        ensemble = self.world.ensemble
        late_ms = max(0, *(-machine.skew_s * 1000 for machine in self.world.machines.values()))
        for node in ensemble.children(paths.DRAINS):
            drain = decode(ensemble.read(paths.drain(node)) or b"", Drain, node)
            over = self.world.wall_ms() > drain.deadline_ms + late_ms
            for deployment, ordinal in self._view.on_machine.get(node, ()):
                seen = self._view.deployments.get(deployment)
                other = self._room(seen, ordinal) if seen is not None else ""
                if over or other:
                    why = "the deadline is over" if over else f"{other} has room"
                    yield "drain", f"{node} is drained and runs {deployment}.{ordinal}: {why}"

    def _has_ended(self, node: str, deployment: str, ordinal: int) -> bool:
        """By its restart policy it need not run any more."""
        machine = self.world.machines[node]
        agent = machine.process.agent if machine.process is not None else None
        compute = agent._compute if agent is not None else None
        work = compute.instances.works.get(deployment) if compute is not None else None
        entry = work.entries.get(ordinal) if work is not None else None
        return entry is not None and entry.state == "exited"

    def _leftovers(self) -> Iterator[Trouble]:
        for (deployment, ordinal), here in self._view.running.items():
            seen = self._view.deployments.get(deployment)
            for machine in here:
                if seen is None or seen.plan.get(ordinal) != machine:
                    yield "orphans", f"{machine} runs {deployment}.{ordinal}, which is planned elsewhere or not at all"
        for name, one in self.world.machines.items():
            ledger = one.process.ledger if one.process is not None else None
            if ledger is None:
                continue
            if ledger.reserved_count:
                yield "orphans", f"{name} holds {ledger.reserved_count} reservations"
            for deployment, ordinal in ledger._placed:
                seen = self._view.deployments.get(deployment)
                if seen is None or seen.plan.get(ordinal) != name:
                    yield "orphans", f"{name} keeps room for {deployment}.{ordinal}, which is not planned there"
        for deployment in self.world.ensemble.children(paths.OPEN):
            yield "ends", f"{deployment} is still marked as open"

    def _images(self) -> Iterator[Trouble]:
        ensemble = self.world.ensemble
        for name in ensemble.children(paths.IMAGES):
            data = ensemble.read(paths.image(name))
            content = self.world.contents[decode(data or b"", Image, name).digest]
            racks = {one.rack for one in self.world.machines.values() if one.store.truly_holds(content)}
            if len(racks) < self.world.settings.redundancy:
                yield "repair", f"image {name} is whole in {len(racks)} racks"


def _was_cut(seen: Seen) -> bool:
    """It was placed short, and then less was wanted, but more than it has: what it has is kept, and the reason says how
    much that is. `min_count` is about what is wanted beyond what was settled before."""
    return seen.before is not None and seen.before.had >= seen.record.count and bool(seen.record.reason)
