"""Promise 1: no agent ever runs or reserves more than it has. By its ledger, and by what really runs.

"room": what an agent starts has its room in the ledger; else that may be given away once more.
"""

from __future__ import annotations

from fabric.effects import Effect, Input
from fabric.resources import ZERO, Resources
from fabric.roles.ledger import Ledger
from fabric.roles.work import split_id
from fabric.sim.checkers.base import Checker
from fabric.sim.driver import Instance
from fabric.sim.host import Process


class Capacity(Checker):
    names = ("capacity",)

    def opened(self, process: Process) -> None:
        self._judge(process)

    def decided(self, process: Process, news: Input | None, effects: list[Effect]) -> None:
        ledger = process.ledger
        if ledger is not None and ledger.used is not process.ledger_seen:
            self._judge(process)

    def launched(self, machine: str, instance: Instance) -> None:
        one = self.world.machines[machine]
        if not within(one.supervisor.used, one.total):
            self.fail("capacity", f"{machine} has {one.total} and runs {one.supervisor.used} with {instance.name}")

    def _judge(self, process: Process) -> None:
        ledger = process.ledger
        if ledger is None:
            return
        process.ledger_seen = ledger.used
        held = total_of(ledger)
        if held != ledger.used:
            self.fail("capacity", f"{process.machine.name}: its ledger counts {ledger.used} and holds {held}")
        if not within(held, ledger.total):
            self.fail("capacity", f"{process.machine.name} has {ledger.total} and gave away {held}")

    def sweep(self) -> None:
        for machine in self.world.machines.values():
            if machine.process is not None and machine.process.ledger is not None:
                self._judge(machine.process)
            used = ZERO
            for one in machine.supervisor.live():
                used = used + one.resources
            assert used == machine.supervisor.used, f"{machine.name}: {used} and {machine.supervisor.used}"


class Room(Checker):
    names = ("room",)

    def launched(self, machine: str, instance: Instance) -> None:
        process = self.world.machines[machine].process
        ledger = process.ledger if process is not None else None
        slot = split_id(instance.name)
        if ledger is not None and slot is not None and slot not in ledger._placed:
            self.fail("room", f"{machine} starts {instance.name}, for which it keeps no room")


def within(used: Resources, total: Resources) -> bool:
    return used.vcpus <= total.vcpus and used.memory_mib <= total.memory_mib and used.disk_mib <= total.disk_mib


def total_of(ledger: Ledger) -> Resources:
    """What its tables add up to."""
    held = ZERO
    for reserved in ledger._reserved.values():
        held = held + reserved.resources
    for placed in ledger._placed.values():
        held = held + placed
    return held
