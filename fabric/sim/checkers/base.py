"""What a checker is: it hears of what happens, and raises `Violation` when a promise is broken.

Theory of operation. The world tells its checkers of every transaction in ZooKeeper, every decision of a role, every
instance that begins or ends, every image that came whole. Each event costs what it touches, not what there is. `sweep`
looks at everything, as a check of the increments; `settled` once at the end, when nothing more should change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fabric.effects import Effect, Input
from fabric.sim.driver import Instance
from zk.znodes import Change

if TYPE_CHECKING:
    from fabric.sim.host import Process
    from fabric.sim.machine import Machine
    from fabric.sim.world import World


class Violation(Exception):
    """A promise was broken: which, and what was found."""

    def __init__(self, promise: str, found: str) -> None:
        super().__init__(f"{promise}: {found}")
        self.promise = promise
        self.found = found


class Checker:
    """`world.watches(name)` says whether a promise is looked at; `fail` is silent about those that are not."""

    names: tuple[str, ...] = ()
    """The promises that it may find broken."""

    def __init__(self, world: World) -> None:
        self.world = world

    def fail(self, promise: str, found: str) -> None:
        if promise in self.world.promises:
            raise Violation(promise, found)

    def committed(self, zxid: int, session: int, changes: list[Change]) -> None:
        """A transaction of `session` changed this; it is done."""

    def decided(self, process: Process, news: Input | None, effects: list[Effect]) -> None:
        """A role answered `news` (None: time passed) with `effects`, none of which is performed yet."""

    def opened(self, process: Process) -> None:
        """A role has been made from its journal."""

    def gone(self, process: Process) -> None:
        """A process has ended."""

    def launched(self, machine: str, instance: Instance) -> None:
        """An instance takes its share of the machine from now on."""

    def ended(self, machine: str, instance: Instance) -> None:
        """It is gone."""

    def cached(self, machine: Machine, digest: str) -> None:
        """An image is in the machine's cache, whole."""

    def sweep(self) -> None:
        """Look at everything."""

    def settled(self) -> None:
        """The faults are over and time enough has passed."""
