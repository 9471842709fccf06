"""Heartbeats: an agent to the leader of its rack, who said hello first.

Regularly, with a tenth of jitter so that a rack does not beat in step; and soon after news (capacity taken or given
back), so that what leaders know is hardly ever old.

An agent that takes over the registration of an earlier start of its own introduces itself: its leader, who sees the
same names before and after, may not notice that this is another process, and go on talking to the dead one. A heartbeat
from somebody it does not know makes it look who that is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable

from fabric.messages import Heartbeat, LeaderHello
from fabric.records import BadRecord, Leader, decode
from fabric.roles.outbox import Outbox
from fabric.roles.settings import Identity
from zk.tree import Got, Outcome

SOON_S = 0.2
"""News is not held back for longer, and does not come more often, than this."""


class Beats:
    """Embed it: `on_hello` for each LeaderHello, `beat` after every input."""

    def __init__(self, identity: Identity, rng: random.Random, out: Outbox) -> None:
        self._identity = identity
        self._rng = rng
        self._out = out
        self._leader: LeaderHello | None = None
        self._said: Hashable = None
        self._said_to = ""
        self._said_at = 0.0
        self._due: float | None = None

    def on_hello(self, now: float, hello: LeaderHello) -> None:
        """Of those who say that they lead this rack, the one with the highest epoch does."""
        if hello.rack != self._identity.rack or hello.layer != self._identity.layer:
            return
        if self._leader is None or hello.epoch >= self._leader.epoch:
            self._leader = hello
            self._due = now

    def introduce(self, leader: Outcome, news: Callable[[], Heartbeat]) -> None:
        """`leader`: what was found at the leader's path. Without one, the next will read all members anyway."""
        if isinstance(leader, Got):
            try:
                address = decode(leader.data, Leader, "the leader of the rack").address
            except BadRecord as error:
                self._out.note("warning", str(error))
                return
            self._out.send(address, news())

    def stop(self) -> None:
        self._leader = self._due = None

    @property
    def next_deadline(self) -> float | None:
        return self._due

    def beat(self, now: float, mark: Hashable, news: Callable[[], Heartbeat]) -> None:
        """Called after every input, so it must cost nothing when nothing is new: `mark` is another one when what `news`
        would say has changed."""
        if self._leader is None:
            return
        if mark != self._said and self._said_to == self._leader.address:
            soon = max(now, self._said_at + SOON_S)
            self._due = soon if self._due is None else min(self._due, soon)
        if self._due is not None and now >= self._due:
            self._out.send(self._leader.address, news())
            self._said, self._said_to, self._said_at = mark, self._leader.address, now
            self._due = now + self._leader.interval_ms / 1000 * (0.9 + 0.2 * self._rng.random())
