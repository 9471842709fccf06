"""What faults act on: a fabric that is up, and the notes of what was done to it, which the judge needs to be fair.

`Stage` has the control socket, the folder, what the watcher saw last, and three notes:

- `held`: nodes whose agent a fault has killed or stopped, since when: they can't have done anything;
- `excused`: spans of time in which the API was dead or out of reach through a fault: no answer is no wonder then;
- `outages`: spans without a ZooKeeper quorum.

A fault (faults/) is a function of the stage, the act and the names it hits; it returns how it is undone, or None, and
raises `Skipped` where it can't be done here. Undoing twice does nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from fabric.chaos.history import Clock
from fabric.chaos.script import Act
from fabric.chaos.targets import Scene
from fabric.chaos.watch import Watcher
from fabric.chaos.watching import Watching
from fabric.chaos.world import Outage
from fabric.local.control import ControlClient, ControlError
from fabric.local.folder import Folder
from fabric.local.state import LocalState, Node, nodes_of

POLL_S = 0.05
FOREVER_S = float("inf")
API, ZOOKEEPER = "api", "zookeeper"


class Skipped(Exception):
    """This fault can't be done here, and why: no right, nobody there, not this kind of fabric."""


class Deed(msgspec.Struct, frozen=True):
    """A fault as it was done, or why not (`skipped`). `to_s`: when it was undone; None: it has no end."""

    verb: str
    names: tuple[str, ...]
    at_s: float
    to_s: float | None = None
    skipped: str = ""


@dataclass
class Stage:
    control: ControlClient
    folder: Folder
    watcher: Watcher
    watching: Watching
    clock: Clock
    rng: random.Random
    state: LocalState
    own: bool
    """It was brought up for this run, and nobody else's."""
    disks: str = ""
    """Why disks can't be filled here; "" when they can."""
    held: dict[str, float] = field(default_factory=dict)
    excused: list[tuple[float, float]] = field(default_factory=list)
    outages: list[Outage] = field(default_factory=list)
    down: set[str] = field(default_factory=set)
    """ZooKeeper servers that a fault holds."""
    holders: tuple[str, ...] = ()
    """Nodes that had the first image first, in that order."""

    @property
    def nodes(self) -> tuple[Node, ...]:
        return nodes_of(self.state.spec)

    def zookeepers(self) -> tuple[str, ...]:
        """Names of the servers that are this fabric's own."""
        return () if self.state.spec.zk else (ZOOKEEPER,)

    def scene(self) -> Scene:
        """Who is there now. Raises ControlError."""
        state = self.control.status()
        live = {
            view.node.name: (view.node.rack, view.node.layer)
            for view in state.nodes
            if view.state in ("registered", "starting")
        }
        seen = self.watcher.latest
        return Scene(
            nodes=live,
            leaders=seen.leaders,
            owners=seen.owners,
            holders=self.holders,
            instances=sorted({one.name for one in self.watcher.running}),
            zookeepers=[name for name in self.zookeepers() if name not in self.down],
            zookeeper_leader=self.zookeepers()[0] if len(self.zookeepers()) == 1 else "",
        )

    # --- notes -------------------------------------------------------------------------------------------------------

    def hit(self, name: str) -> None:
        """`name` does nothing from now on."""
        now = self.clock.now()
        if name == API:
            self.excused.append((now, FOREVER_S))
        elif name in self.zookeepers():
            self.down.add(name)
            servers = len(self.zookeepers())
            if 2 * (servers - len(self.down)) <= servers and not self.in_outage:
                self.outages.append(Outage(now, FOREVER_S))
                self.watching.outage = self.outages[-1]
        else:
            self.held.setdefault(name, now)
            self.watching.held = self.held

    def back(self, name: str) -> None:
        """`name` may do things again from now on."""
        now = self.clock.now()
        if name in self.zookeepers():
            self.down.discard(name)
            servers = len(self.zookeepers())
            if self.in_outage and 2 * (servers - len(self.down)) > servers:
                self.outages[-1] = Outage(self.outages[-1].from_s, now)
                self.watching.outage = None
        elif name != API:
            self.held.pop(name, None)

    def api_answers(self) -> None:
        """It was seen ready: what it does not answer from now on is its own fault."""
        now = self.clock.now()
        self.excused = [(begin, min(end, now)) for begin, end in self.excused]

    @property
    def in_outage(self) -> bool:
        return bool(self.outages) and self.outages[-1].to_s == FOREVER_S

    @property
    def api_held(self) -> bool:
        return any(end == FOREVER_S for _, end in self.excused)

    # --- what many faults do -----------------------------------------------------------------------------------------

    def send(self, name: str, number: int) -> None:
        """A signal to the process of `name`. Raises Skipped."""
        try:
            self.control.kill(name, number)
        except ControlError as error:
            raise Skipped(str(error)) from None

    def start_again(self, name: str) -> None:
        """A new process of `name`. Raises Skipped."""
        try:
            self.control.restart(name)
        except ControlError as error:
            raise Skipped(str(error)) from None
        self.back(name)

    def wait_dead(self, name: str, timeout_s: float = 10.0) -> None:
        """Until the keeper has noted that the process of a node has ended. Raises Skipped."""
        self.wait(lambda: self._state_of(name) == "dead", f"{name} to be dead", timeout_s)

    def _state_of(self, name: str) -> str:
        return next(view.state for view in self.control.status().nodes if view.node.name == name)

    def wait(self, done: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Raises Skipped."""
        deadline = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() > deadline:
                raise Skipped(f"waited {timeout_s:g} s in vain for {what}")
            time.sleep(POLL_S)


Undo = Callable[[], None]
Fault = Callable[[Stage, Act, tuple[str, ...]], Undo | None]
