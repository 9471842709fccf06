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
import signal
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import msgspec

from fabric.chaos.script import Act
from fabric.chaos.targets import Scene
from fabric.chaos.watch import Watcher
from fabric.chaos.watching import Watching
from fabric.chaos.world import Outage
from fabric.load.history import Clock
from fabric.local.control import ControlClient, ControlError
from fabric.local.folder import Folder
from fabric.local.network import names_of
from fabric.local.state import LocalState, Node, nodes_of
from fabric.net.rules import API, HEALTHY, OPERATOR, BadRule, Rule, Table

POLL_S = 0.05
FOREVER_S = float("inf")
LEADING = ("leader", "standalone")
BEFORE_S = 0.3
"""A fault is noted a moment after it was done: by a process to itself, or by another who then tells."""


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
    leaving_api: int = 0
    """The pid of the API's process that is to end: while it does it may still answer somebody. 0: none is."""
    outages: list[Outage] = field(default_factory=list)
    down: set[str] = field(default_factory=set)
    """ZooKeeper servers that a fault holds."""
    rules: dict[int, tuple[Rule, ...]] = field(default_factory=dict)
    """What is wrong with the network, by the fault that did it."""
    table: Table = field(default_factory=dict)
    """The same, by pairs of endpoints."""
    holders: tuple[str, ...] = ()
    """Nodes that had the first image first, in that order."""

    @property
    def nodes(self) -> tuple[Node, ...]:
        return nodes_of(self.state.spec)

    @property
    def managents(self) -> bool:
        """Its agents are not started by the keeper, but deployed (and their code comes from a repository)."""
        return self.folder.repository_url.exists()

    def zookeepers(self) -> tuple[str, ...]:
        """Names of the servers that are this fabric's own."""
        return tuple(self.state.zookeepers)

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
            zookeepers=[name for name, one in state.zookeepers.items() if not one.ended and not one.paused],
            zookeeper_leader=next((n for n, one in state.zookeepers.items() if one.mode in LEADING), ""),
        )

    # --- notes -------------------------------------------------------------------------------------------------------

    def hit(self, name: str) -> None:
        """`name` does nothing from now on."""
        now = self.clock.now()
        if name == API:
            self.excused.append((now - BEFORE_S, FOREVER_S))
        elif name in self.zookeepers():
            self.down.add(name)
            self._note_quorum()
        else:
            self.held.setdefault(name, now)
            self.watching.held = self.held

    def back(self, name: str) -> None:
        """`name` may do things again from now on."""
        if name in self.zookeepers():
            self.down.discard(name)
            self._note_quorum()
        elif name != API:
            self.held.pop(name, None)

    def networked(self) -> None:
        """`rules` have changed: they hold from now on. Raises Skipped."""
        rules = tuple(rule for these in self.rules.values() for rule in these)
        try:
            self.table = names_of(self.state.spec).table(rules)
            self.control.network(rules)
        except (ControlError, BadRule) as error:
            raise Skipped(str(error)) from None
        self._note_quorum()
        if self._deaf() and not self.api_held:
            self.excused.append((self.clock.now(), FOREVER_S))

    def _deaf(self) -> bool:
        """Whether something is wrong between the API and who asks it."""
        return any(self.table.get(pair, HEALTHY) != HEALTHY for pair in ((API, OPERATOR), (OPERATOR, API)))

    def _note_quorum(self) -> None:
        now = self.clock.now()
        there = quorum(self.zookeepers(), self.down, self.table)
        if not there and not self.in_outage:
            self.outages.append(Outage(now, FOREVER_S))
            self.watching.outage = self.outages[-1]
        elif there and self.in_outage:
            self.outages[-1] = Outage(self.outages[-1].from_s, now)
            self.watching.outage = None

    def api_answers(self) -> None:
        """It was seen to: what it does not answer from now on is its own fault, unless its network is bad."""
        if self._deaf():
            return
        if self.leaving_api:
            try:
                process = self.control.status().api.process
            except ControlError:
                return
            if process is not None and process.pid == self.leaving_api:
                return
            self.leaving_api = 0
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
        """A new process of `name`, by the keeper; a managent's boot stub starts it again by itself. Raises Skipped."""
        try:
            if not self.managents or name not in {node.name for node in self.nodes}:
                old = self.control.restart(name)
                self.leaving_api = old if name == API else self.leaving_api
            elif self._state_of(name) != "dead":
                self.control.kill(name, signal.SIGKILL)
        except ControlError as error:
            raise Skipped(str(error)) from None
        self.back(name)

    def start_dead(self, name: str) -> None:
        """The same, unless somebody has started it meanwhile. Raises Skipped."""
        state = self.control.status()
        services = {API: state.api.ended, **{server: one.ended for server, one in state.zookeepers.items()}}
        dead = bool(services[name]) if name in services else self._state_of(name) == "dead"
        if dead:
            self.start_again(name)
        else:
            self.back(name)

    def start_all_dead(self) -> bool:
        """Whoever is dead is started. Whether nobody was. Raises Skipped, ControlError."""
        state = self.control.status()
        dead = [view.node.name for view in state.nodes if view.state == "dead"]
        dead += [API] if state.api.ended else []
        dead += [name for name, one in state.zookeepers.items() if one.ended]
        for name in dead:
            self.start_again(name)
        return not dead

    def all_up(self) -> bool:
        """Everybody is registered, each rack led, and the API answers. Raises ControlError."""
        state = self.control.status()
        elected = state.leaders_elected == state.leaders_wanted
        return state.registered == len(state.nodes) and elected and state.api.ready

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


def quorum(servers: Sequence[str], down: Collection[str], table: Table) -> bool:
    """Whether more than half of the servers live and hear each other. Without any of its own nobody can tell: yes."""
    live = [one for one in servers if one not in down]
    best = 0
    for one in live:
        heard = [other for other in live if other == one or _hear(one, other, table)]
        best = max(best, len(heard))
    return not servers or 2 * best > len(servers)


def _hear(one: str, other: str, table: Table) -> bool:
    return all(table.get(pair, HEALTHY).drop < 1 for pair in ((one, other), (other, one)))


Undo = Callable[[], None]
Fault = Callable[[Stage, Act, tuple[str, ...]], Undo | None]
