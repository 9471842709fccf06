"""A tree of a few lines for testing roles by seeds: sessions whose connections drop, lose replies, and expire.

Every session has a queue of requests, which the tree carries out one by one, and an inbox, from which its owner takes
one input at a time: outcomes, watches and changes of the session, in the order in which a real session sees them. Who
moves next is the test's choice. An owner that is late may ask in the next session for what it wanted in the last: worse
than a real tree does alone, and what a driver makes of it that holds requests back. Only what election asks for is
here: no versions, and of transactions only "set, if that other one is there".
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from random import Random

from zk.tree import (
    Check,
    Checked,
    Children,
    ConnectionLost,
    Create,
    Created,
    Delete,
    Deleted,
    Done,
    Existed,
    Exists,
    Listed,
    Multi,
    MultiFailed,
    NodeExists,
    NoNode,
    Op,
    Outcome,
    SessionChanged,
    SessionExpired,
    SessionState,
    Set,
    Stat,
    WatchFired,
    Written,
)


@dataclass
class Node:
    czxid: int
    data: bytes
    owner: int
    made: int = 0


@dataclass(eq=False)
class Link:
    """One client's session: `alive` is the server's view of it, `connected` the client's."""

    session: int
    connected: bool = True
    alive: bool = True
    requests: deque[tuple[str, Op]] = field(default_factory=deque)
    inbox: deque[SessionChanged | WatchFired | tuple[str, Outcome]] = field(default_factory=deque)


class SmallTree:
    def __init__(self, *persistent: str) -> None:
        self.zxid = 0
        self.sessions = 0
        self.nodes = {path: Node(0, b"", 0) for path in persistent}
        self.watches: dict[tuple[str, str], set[Link]] = {}

    # --- a client ---------------------------------------------------------------------------------------------------

    def connect(self) -> Link:
        self.sessions += 1
        link = Link(self.sessions)
        link.inbox.append(SessionChanged(SessionState.CONNECTED, link.session))
        return link

    def submit(self, link: Link, token: str, op: Op) -> None:
        link.requests.append((token, op))

    # --- what happens to it -------------------------------------------------------------------------------------------

    def serve(self, link: Link) -> None:
        """Carry out its next request and answer it."""
        token, op = link.requests.popleft()
        link.inbox.append((token, self._apply(link, op)))

    def drop(self, link: Link, random: Random) -> None:
        """Lose its connection: some of its requests were carried out before, none is answered."""
        carried_out = random.randint(0, len(link.requests))
        for number, (token, op) in enumerate(link.requests):
            if link.alive and number < carried_out:
                self._apply(link, op)
            link.inbox.append((token, ConnectionLost("/")))
        link.requests.clear()
        link.connected = False
        link.inbox.append(SessionChanged(SessionState.SUSPENDED, link.session))
        for (_, path), links in self.watches.items():
            if link in links:
                links.remove(link)
                link.inbox.append(WatchFired(path))

    def expire(self, link: Link) -> None:
        """The servers count it as dead; it does not know yet."""
        link.alive = False
        for path in [path for path, node in self.nodes.items() if node.owner == link.session]:
            self._remove(path)

    def reconnect(self, link: Link) -> None:
        link.connected = True
        if not link.alive:
            link.inbox.append(SessionChanged(SessionState.LOST, link.session))
            for token, _ in link.requests:
                link.inbox.append((token, SessionExpired("/")))
            link.requests.clear()
            self.sessions += 1
            link.session, link.alive = self.sessions, True
        link.inbox.append(SessionChanged(SessionState.CONNECTED, link.session))

    # --- the tree -----------------------------------------------------------------------------------------------------

    def names(self, parent: str) -> list[str]:
        return sorted(path.rpartition("/")[2] for path in self.nodes if path.rpartition("/")[0] == parent)

    def _apply(self, link: Link, op: Op) -> Outcome:
        self.zxid += 1
        if isinstance(op, Multi):
            check, write = op.ops
            for index, part in enumerate(op.ops):
                if part.path not in self.nodes:
                    return MultiFailed(part.path, index, NoNode(part.path))
            assert isinstance(check, Check)
            assert isinstance(write, Set)
            outcome = self._apply(link, write)
            assert isinstance(outcome, Written)
            return Done((Checked(), outcome))
        path = op.path
        if isinstance(op, Exists | Children) and op.watch:
            self.watches.setdefault((type(op).__name__, path), set()).add(link)
        if isinstance(op, Exists):
            return Existed(self._stat(path) if path in self.nodes else None)
        if isinstance(op, Create):
            parent = path.rpartition("/")[0]
            if parent not in self.nodes:
                return NoNode(path)
            if op.sequence:
                path = f"{path}{self.nodes[parent].made:010d}"
            elif path in self.nodes:
                return NodeExists(path)
            self.nodes[parent].made += 1
            self.nodes[path] = Node(self.zxid, op.data, link.session if op.ephemeral else 0)
            self._fire("Exists", path)
            return Created(path, self._stat(path))
        if path not in self.nodes:
            return NoNode(path)
        if isinstance(op, Children):
            return Listed(tuple(self.names(path)))
        if isinstance(op, Set):
            self.nodes[path].data = op.data
            self._fire("Exists", path)
            return Written(self._stat(path))
        assert isinstance(op, Delete)
        self._remove(path)
        return Deleted()

    def _remove(self, path: str) -> None:
        del self.nodes[path]
        self._fire("Exists", path)

    def _stat(self, path: str) -> Stat:
        node = self.nodes[path]
        return Stat(node.czxid, node.czxid, 0, 0, node.owner, 0, 0)

    def _fire(self, kind: str, path: str) -> None:
        for link in sorted(self.watches.pop((kind, path), ()), key=lambda link: link.session):
            link.inbox.append(WatchFired(path))
