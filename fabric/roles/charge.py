"""What the phases of one coordination share: whose deployment, under which epoch and step, and how to ask racks.

While the session is SUSPENDED nothing may be awarded: answers that come in then are kept, and the phase goes on when
the session is CONNECTED again (`hold`, `release`). After LOST a charge is dropped whole.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from fabric.commands import Answer, Command, Stale
from fabric.messages import NodeCommand
from fabric.records import Deployment
from fabric.roles.calls import Gathered, RackCalls
from fabric.roles.census import Census
from fabric.roles.outbox import Outbox
from fabric.roles.plans import Place
from fabric.roles.recorder import Recorder
from fabric.roles.recordkeeper import RecordKeeper
from fabric.roles.settings import Identity, Settings
from zk import paths
from zk.tree import Children, Exists

MAX_HELD = 256
MEMBERS = "members:"
"""Part of the token of a question to ZooKeeper for the members of a rack."""
GONE = "gone:"
"""Part of the token of a question to ZooKeeper whether a node is a member of its rack."""


@dataclass(slots=True)
class Charge:
    """One deployment in one coordinator's charge. `abdicate` ends it because another epoch has taken over."""

    identity: Identity
    settings: Settings
    rng: random.Random
    out: Outbox
    calls: RackCalls
    census: Census
    keeper: RecordKeeper
    recorder: Recorder
    abdicate: Callable[[float, str], None]
    step: int = 0
    held: bool = False
    _waiting: list[Callable[[float], None]] = field(default_factory=list)
    _gather: str = ""

    @property
    def record(self) -> Deployment:
        return self.keeper.record

    @property
    def epoch(self) -> int:
        return self.keeper.epoch

    def next_step(self) -> int:
        self.step += 1
        return self.step

    def may_run_on(self, now: float, place: Place) -> bool:
        """Of a node that ZooKeeper does not count as present: what it was told may run there still, and must not run
        elsewhere meanwhile. With `stop_after_s` that is so until the node is to be replaced: then it has stopped it."""
        record = self.record
        return record.spec.stop_after_s > 0 and not self.census.is_replaced(now, place, record.lost_after_s)

    def ask_racks(
        self,
        now: float,
        command: Command,
        wait_s: float,
        done: Callable[[float, Gathered], None],
        racks: tuple[str, ...] | None = None,
    ) -> None:
        """The same for every agent of these racks, or (None) of every rack that has a leader (steps 4 and 5)."""
        self._gather = self.calls.gather(now, self.record.id, wait_s, self._kept(done), everyone=command, racks=racks)

    def ask_nodes(
        self,
        now: float,
        commands: Iterable[tuple[Place, Command]],
        done: Callable[[float, Gathered], None],
    ) -> None:
        """One command for each of some nodes, by way of their rack leaders."""
        by_rack: dict[str, list[NodeCommand]] = {}
        for (node, rack), command in commands:
            by_rack.setdefault(rack, []).append(NodeCommand(node, command))
        self._gather = self.calls.gather(
            now,
            self.record.id,
            self.settings.command_wait_s,
            self._kept(done),
            commands={rack: tuple(entries) for rack, entries in by_rack.items()},
        )

    def ask_members(self, racks: Iterable[str]) -> None:
        """Racks that did not answer may have nobody left to say so: ZooKeeper is asked who is there (`on_members`)."""
        for rack in sorted(racks):
            self.out.tree(f"{self.keeper.prefix}{MEMBERS}{rack}", Children(paths.rack_members("compute", rack)))

    def ask_gone(self, places: Iterable[Place]) -> None:
        """A leader's list of its rack may be older than what was written just now; ZooKeeper's answer to this session
        is not."""
        for node, rack in sorted(places):
            self.out.tree(f"{self.keeper.prefix}{GONE}{node}/{rack}", Exists(paths.member("compute", rack, node)))

    def results(self, now: float, gathered: Gathered) -> list[tuple[Place, Answer]] | None:
        """All answers; None when one of them says that a later epoch has taken over, and this charge is at its end."""
        answers: list[tuple[Place, Answer]] = []
        for reply in gathered.replies:
            for node, answer in reply.results:
                if isinstance(answer, Stale) and answer.epoch > self.epoch:
                    self.abdicate(now, f"node {node} has orders of a later epoch, {answer.epoch}")
                    return None
                answers.append(((node, reply.rack), answer))
        return answers

    # --- nothing is awarded while SUSPENDED -----------------------------------------------------------------------

    def hold(self) -> None:
        self.held = True

    def release(self, now: float) -> None:
        self.held = False
        waiting, self._waiting = self._waiting, []
        for go_on in waiting:
            go_on(now)

    def drop(self) -> None:
        """Nobody waits for answers any more."""
        self._waiting.clear()
        self.calls.forget(self._gather)

    def _kept(self, done: Callable[[float, Gathered], None]) -> Callable[[float, Gathered], None]:
        def arrived(now: float, gathered: Gathered) -> None:
            if not self.held:
                done(now, gathered)
            elif len(self._waiting) < MAX_HELD:
                self._waiting.append(lambda later: done(later, gathered))

        return arrived
