"""The keeper's processes one by one: when each is to be forked, whether it lives, how it ended, when it comes back.

    WAITING --due, and few enough are starting--> forked --seen by the eyes--> ready
       ^                                            │
       └──── asked for, or `--restart`: with back-off ──── ended

Pure bookkeeping: forking and signals are the keeper's.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

from fabric.local.eyes import Seen
from fabric.local.state import Node, NodeState, NodeView, Process

BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0
STEADY_AFTER_S = 10.0
"""Who lived as long as this starts again with the first back-off."""


@dataclass(slots=True)
class Job:
    """One process that the keeper forks. `name`: that of its first node, "api", or a companion's. `due`: when to fork
    it, None when it runs, is left dead, or waits to be asked for. `ready`: its nodes that are registered, or its name:
    the API's when it answers, a companion's (`unseen`) as soon as it runs. `once`: done when it has ended well.
    `keep`: descriptors that it inherits."""

    name: str
    body: Callable[[], int]
    nodes: tuple[Node, ...] = ()
    due: float | None = 0.0
    process: Process | None = None
    forked_at: float = 0.0
    ended: str = ""
    paused: bool = False
    again: bool = False
    kill_at: float | None = None
    backoff_s: float = BACKOFF_FIRST_S
    ready: frozenset[str] = frozenset()
    unseen: bool = False
    once: bool = False
    keep: tuple[int, ...] = ()

    @property
    def running(self) -> bool:
        return self.process is not None and not self.ended

    @property
    def done(self) -> bool:
        """It did what it was there for."""
        return self.once and self.ended == ENDED_WELL

    @property
    def pid(self) -> int:
        """Of the last process; 0 before the first."""
        return self.process.pid if self.process else 0

    @property
    def expected(self) -> frozenset[str]:
        return frozenset(node.name for node in self.nodes) or frozenset((self.name,))

    @property
    def starting(self) -> bool:
        return self.running and self.ready != self.expected

    def forked(self, process: Process, now: float) -> None:
        self.process, self.forked_at, self.due = process, now, None
        self.ended, self.paused, self.again, self.kill_at = "", False, False, None
        self.ready = self.expected if self.unseen else frozenset()

    def exited(self, how: str, now: float, restart: bool) -> None:
        self.ended, self.paused, self.kill_at, self.ready = how, False, None, frozenset()
        if self.again:
            self.due = now
        elif restart and not self.once:
            if now - self.forked_at > STEADY_AFTER_S:
                self.backoff_s = BACKOFF_FIRST_S
            self.due = now + self.backoff_s
            self.backoff_s = min(BACKOFF_MAX_S, 2 * self.backoff_s)

    def saw(self, seen: Seen) -> bool:
        """The eyes saw this; True when it changes what is ready."""
        if self.nodes:
            fresh = {name for name in self.expected if seen.pids.get(name) == self.pid}
            ready = frozenset((self.ready & frozenset(seen.members)) | fresh)
        elif self.unseen:
            ready = self.ready
        else:
            ready = self.expected if seen.api else frozenset()
        changed, self.ready = ready != self.ready, ready
        return changed

    def views(self) -> list[NodeView]:
        return [NodeView(node, self._state(node), self.process, self.ended) for node in self.nodes]

    def _state(self, node: Node) -> NodeState:
        if self.process is None:
            return "waiting"
        if self.ended:
            return "dead"
        if self.paused:
            return "paused"
        return "registered" if node.name in self.ready else "starting"


ENDED_WELL = "exited with 0"


def how_it_ended(status: int) -> str:
    """`status` as waitpid has it, in words."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exited with {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
