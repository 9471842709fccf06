"""The children of one znode, read and decoded, kept true by watches: leaders, drains, lost nodes.

A listing is a cache with an owner (the role that embeds it) and an invalidation (a watch on the list and one on each
entry). What cannot be read is asked again, with a pause; what is no record is said and left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from fabric.records import BadRecord, decode
from fabric.roles.outbox import Outbox
from zk.tree import Children, Get, Got, Listed, NoNode, Outcome, SessionChanged, SessionState, Stat

R = TypeVar("R", bound=msgspec.Struct)
V = TypeVar("V")


class Listing(Generic[R, V]):
    """Embed it: pass it every SessionChanged, WatchFired and TreeDone; it ignores what is not its own. `entries` are
    the names with what `make` makes of record and stat. `prefix` begins its tokens, and nobody else's."""

    RETRY_S = 0.5

    def __init__(self, path: str, kind: type[R], make: Callable[[R, Stat], V], prefix: str, out: Outbox) -> None:
        self.entries: dict[str, V] = {}
        self.known = False
        """True once the list was read in this session."""
        self._path = path
        self._kind = kind
        self._make = make
        self._prefix = prefix
        self._out = out
        self._active = False
        self._connected = False
        self._reading: set[str] = set()
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
        self._void()
        self._retry.clear()

    @property
    def complete(self) -> bool:
        """The list was read in this session, and each of its entries: what is not here is not there."""
        return self.known and not self._reading and not self._retry

    def on_session(self, event: SessionChanged) -> None:
        was = self._connected
        self._connected = event.state is SessionState.CONNECTED
        if event.state is SessionState.LOST:
            self._void()
        if self._active and self._connected and not was:
            self._list()
            again, self._retry = self._retry, set()
            for name in sorted(again - {""}):  # a list says nothing about an entry that has changed
                self._read(name)

    def on_watch(self, path: str) -> None:
        if not self._active:
            return
        if path == self._path:
            self._list()
        elif path.startswith(self._path + "/"):
            self._read(path.rsplit("/", 1)[1])

    def on_tree(self, now: float, token: str, outcome: Outcome) -> bool:
        """True when the token was one of its own."""
        if not token.startswith(self._prefix):
            return False
        if not self._active:
            return True
        name = token[len(self._prefix) :]
        self._reading.discard(name)
        if isinstance(outcome, Listed):
            self.known = True
            for gone in set(self.entries) - set(outcome.names):
                del self.entries[gone]
            for one in outcome.names:
                if one not in self.entries:
                    self._read(one)
        elif isinstance(outcome, Got):
            try:
                record = decode(outcome.data, self._kind, f"{self._path}/{name}")
            except BadRecord as error:
                self._out.note("warning", f"{error}; it counts as if it were not there")
                self.entries.pop(name, None)
            else:
                self.entries[name] = self._make(record, outcome.stat)
        elif isinstance(outcome, NoNode):
            self.entries.pop(name, None)
        else:
            self._retry.add(name)
            self._retry_at = self._retry_at or now + self.RETRY_S
        return True

    def doubt(self, name: str) -> None:
        """What is known of `name` turned out wrong: read its znode again."""
        if self._active and self._connected:
            self._read(name)

    def tick(self, now: float) -> None:
        if self._retry_at is None or now < self._retry_at:
            return
        self._retry_at = None
        if not self._active or not self._connected:
            return  # what is to be read again is, when the session is connected
        again, self._retry = self._retry, set()
        for name in sorted(again):
            if name:
                self._read(name)
            else:
                self._list()

    @property
    def next_deadline(self) -> float | None:
        return self._retry_at

    def _void(self) -> None:
        self.known = False
        self.entries.clear()
        self._reading.clear()

    def _list(self) -> None:
        self._out.tree(self._prefix, Children(self._path, watch=True))

    def _read(self, name: str) -> None:
        self._reading.add(name)
        self._out.tree(self._prefix + name, Get(f"{self._path}/{name}", watch=True))
