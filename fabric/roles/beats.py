"""Heartbeats: what an agent tells the leader of its rack, who said hello first.

Theory of operation. News (capacity taken or given back) is told soon, so that what leaders know is hardly ever old:
with the answer to the command that made it, or in a heartbeat. Who has no news beats rarely: that an agent has died its
leader learns from the connection between them (`effects.PeerLost`), within milliseconds, and that its machine has, from
ZooKeeper; a thousand idle agents that beat every second would keep a core busy.

Everything goes the way that the hello came by. So there is one connection between the two, which the leader made, and
who has lost it is greeted again.

An agent that takes over the registration of an earlier start of its own introduces itself: its leader, who sees the
same names before and after, may not notice that this is another process, and go on talking to the dead one. A heartbeat
from somebody it does not know makes it look who that is.
"""

from __future__ import annotations

import random
from collections.abc import Hashable
from typing import Protocol

from fabric.commands import Answer
from fabric.messages import Heartbeat, LeaderHello, NodeAnswer, Vitals
from fabric.records import BadRecord, Leader, decode
from fabric.roles.outbox import Outbox
from fabric.roles.settings import Identity
from zk.tree import Got, Outcome

SOON_S = 1.0
"""News that no answer has told is not held back for longer, and heartbeats do not come more often, than this."""


class Worker(Protocol):
    """What an agent does besides leading."""

    @property
    def mark(self) -> Hashable:
        """Another one when what matters to a leader of `vitals` has changed. Asked after every input, so it must cost
        nothing."""

    @property
    def vitals(self) -> Vitals: ...


class Beats:
    """Embed it: `on_hello` for each LeaderHello, `beat` after every input, `answer` for every answer to a command.
    `worker` is set before the first of them."""

    def __init__(self, identity: Identity, rng: random.Random, out: Outbox) -> None:
        self.worker: Worker
        self._identity = identity
        self._rng = rng
        self._out = out
        self._leader: LeaderHello | None = None
        self._way = ""
        self._said: Hashable = None
        """The mark of what the leader was told last; None: nothing yet."""
        self._said_at = 0.0
        self._due: float | None = None

    def on_hello(self, now: float, sender: str, hello: LeaderHello) -> None:
        """Of those who say that they lead this rack, the one with the highest epoch does."""
        if hello.rack != self._identity.rack or hello.layer != self._identity.layer:
            return
        if self._leader is None or hello.epoch >= self._leader.epoch:
            self._leader, self._way = hello, sender
            self._said = None
            self._due = now

    def introduce(self, leader: Outcome) -> None:
        """`leader`: what was found at the leader's path. Without one, the next will read all members anyway."""
        if isinstance(leader, Got):
            try:
                address = decode(leader.data, Leader, "the leader of the rack").address
            except BadRecord as error:
                self._out.note("warning", str(error))
                return
            self._out.send(address, self._beat())

    def stop(self) -> None:
        self._leader = self._due = None

    @property
    def next_deadline(self) -> float | None:
        return self._due

    def answer(self, now: float, sender: str, call: str, answer: Answer) -> None:
        """To a command of `sender`. When it is the leader, with what it does not know yet."""
        vitals = None
        if self._leader is not None and sender == self._way:
            mark = self.worker.mark
            if mark != self._said:
                vitals = self.worker.vitals
            self._told(now, mark)
        self._out.send(sender, NodeAnswer(call, self._identity.node, answer, vitals))

    def beat(self, now: float) -> None:
        """Called after every input."""
        if self._leader is None or self._due is None:
            return
        mark = self.worker.mark
        if mark != self._said:
            self._due = min(self._due, max(now, self._said_at + SOON_S))
        if now >= self._due:
            self._out.send(self._way, self._beat())
            self._told(now, mark)

    def _beat(self) -> Heartbeat:
        return Heartbeat(self._identity.node, self._identity.guid, self.worker.vitals)

    def _told(self, now: float, mark: Hashable) -> None:
        assert self._leader is not None
        self._said, self._said_at = mark, now
        self._due = now + self._leader.interval_ms / 1000 * (0.9 + 0.2 * self._rng.random())
