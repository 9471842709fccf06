"""Who leads which rack of one layer: a directory kept true by watches. Leaders and API processes have one; agents that
do not lead look a leader up when they need one (`Lookup`), so that ZooKeeper need not tell thousands of every change.

A directory is a cache with an owner (the role that embeds it) and an invalidation (a watch on the list and one on each
entry). What cannot be read is asked again, with a bounded back-off.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from fabric.records import BadRecord, LayerName, Leader, decode
from fabric.roles.outbox import Outbox
from zk import paths
from zk.tree import Children, Get, Got, Listed, NoNode, Outcome, SessionChanged, SessionState


@dataclass(frozen=True, slots=True)
class Seen:
    """A leader znode as read: the record and its epoch (czxid)."""

    leader: Leader
    epoch: int


class LeaderDirectory:
    """Embed it: pass it every SessionChanged, WatchFired and TreeDone; it ignores what is not its own."""

    RETRY_S = 0.5

    def __init__(self, layer: LayerName, out: Outbox) -> None:
        self.layer: LayerName = layer
        self.leaders: dict[str, Seen] = {}
        self.known = False
        """True once the list was read in this session."""
        self._out = out
        self._prefix = f"leaders:{layer}:"
        self._active = False
        self._connected = False
        self._retry: set[str] = set()
        self._retry_at: float | None = None

    def start(self) -> None:
        """Begin to follow. Idempotent."""
        if not self._active:
            self._active = True
            if self._connected:
                self._list()

    def stop(self) -> None:
        """Follow no more: what is known becomes void. Watches that are still armed fire into nothing."""
        self._active = False
        self.known = False
        self.leaders.clear()
        self._retry.clear()

    def on_session(self, event: SessionChanged) -> None:
        was = self._connected
        self._connected = event.state is SessionState.CONNECTED
        if event.state is SessionState.LOST:
            self.known = False
            self.leaders.clear()
        if self._active and self._connected and not was:
            self._list()

    def on_watch(self, path: str) -> None:
        if not self._active:
            return
        base = paths.leaders(self.layer)
        if path == base:
            self._list()
        elif path.startswith(base + "/"):
            self._read(path.rsplit("/", 1)[1])

    def on_tree(self, now: float, token: str, outcome: Outcome) -> bool:
        """True when the token was one of its own."""
        if not token.startswith(self._prefix):
            return False
        if not self._active:
            return True
        rack = token[len(self._prefix) :]
        if isinstance(outcome, Listed):
            self.known = True
            for gone in set(self.leaders) - set(outcome.names):
                del self.leaders[gone]
            for name in outcome.names:
                if name not in self.leaders:
                    self._read(name)
        elif isinstance(outcome, Got):
            try:
                leader = decode(outcome.data, Leader, paths.leader(self.layer, rack))
            except BadRecord as error:
                self._out.note("warning", f"{error}; the rack counts as without leader")
                self.leaders.pop(rack, None)
            else:
                self.leaders[rack] = Seen(leader, outcome.stat.czxid)
        elif isinstance(outcome, NoNode):
            self.leaders.pop(rack, None)
        else:
            self._retry.add(rack)
            self._retry_at = self._retry_at or now + self.RETRY_S
        return True

    def doubt(self, rack: str) -> None:
        """The leader of `rack` did not answer, or said that it does not lead: read its znode again."""
        if self._active and self._connected:
            self._read(rack)

    def tick(self, now: float) -> None:
        if self._retry_at is None or now < self._retry_at:
            return
        self._retry_at = None
        again, self._retry = self._retry, set()
        if self._active and self._connected:
            for rack in sorted(again):
                if rack:
                    self._read(rack)
                else:
                    self._list()

    @property
    def next_deadline(self) -> float | None:
        return self._retry_at

    def _list(self) -> None:
        self._out.tree(self._prefix, Children(paths.leaders(self.layer), watch=True))

    def _read(self, rack: str) -> None:
        self._out.tree(self._prefix + rack, Get(paths.leader(self.layer, rack), watch=True))


def pick(leaders: dict[str, Seen], rng: random.Random, avoid: frozenset[str] = frozenset()) -> Seen | None:
    """Steps 1 and 2: one leader, random among the lightly loaded (the better of two random ones by load hint).
    `avoid`: addresses that just failed; they are taken only if there is nobody else."""
    seen = [leaders[rack] for rack in sorted(leaders)]
    fresh = [one for one in seen if one.leader.address not in avoid] or seen
    if not fresh:
        return None
    two = rng.sample(fresh, min(2, len(fresh)))
    return min(two, key=lambda one: one.leader.load)
