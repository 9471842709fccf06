"""Promise 5 while it happens: no byte that fails its hash is cached or started from."""

from __future__ import annotations

from fabric.sim.checkers.base import Checker
from fabric.sim.driver import Instance
from fabric.sim.machine import Machine


class Contents(Checker):
    names = ("rotten",)

    def cached(self, machine: Machine, digest: str) -> None:
        self._judge(machine, digest, "cached")

    def launched(self, machine: str, instance: Instance) -> None:
        self._judge(self.world.machines[machine], instance.digest, f"started as {instance.name}")

    def _judge(self, machine: Machine, digest: str, what: str) -> None:
        entry = machine.cache.entries.get(digest)
        content = self.world.contents.get(digest)
        if entry is None:
            self.fail("rotten", f"{machine.name}: image {digest[:12]} {what}, and it is not in the cache")
        elif content is None or entry.data != content.whole:
            self.fail("rotten", f"{machine.name}: image {digest[:12]} {what} with other bytes than it was pushed with")
