"""ZooKeeper's servers in memory, for simulations: sessions, watches, expiry, outages. Nothing here waits or draws.

Theory of operation. An `Ensemble` is what all servers are to their clients: one tree of znodes (zk.znodes), the
sessions, and who watches what. A client (zk.memory_session.MemoryTree) reaches it over a `Connection`, which is two
queues: requests one way, replies and events the other, each in order and each item late by what the client's `delay`
says. As in ZooKeeper a request is carried out when it arrives; the events that it causes are sent before its reply; a
watch belongs to the connection that armed it and is gone with it.

Time is the scheduler's: `schedule(after_s, callback)`, which may be a virtual clock or an asyncio loop's `call_later`.
While a session has a connection on which its client can speak, it lives (pings are not simulated). From when the
servers last heard of it, they count its timeout, and then end it: its ephemerals vanish in one transaction.

During an outage of the quorum every connection is closed, nothing is carried out and nobody expires; when it is over
the servers count every session's timeout anew, and tell the clients, which come back each in its own time.

What real servers do and these do not: a write that was under way when the quorum was lost is never found to have
happened after the outage (those that arrived before have, though their reply may be lost); expiry is exact, not rounded
up to a tick; there are no ACLs, quotas, and no chroots.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

from zk import paths
from zk.client import with_parents
from zk.tree import (
    Children,
    Create,
    Delete,
    Existed,
    Exists,
    Get,
    Got,
    Listed,
    Multi,
    NoNode,
    Op,
    Outcome,
    Set,
    Stat,
)
from zk.znodes import Change, Write, Znodes

Schedule = Callable[[float, Callable[[], None]], object]
"""Call back after so many seconds; never from inside the call."""
Observer = Callable[[int, int, list[Change]], None]
"""(zxid, whose session it was, what changed), after each transaction that changed something. Session 0: nobody's."""


class Event(NamedTuple):
    """A watch fired: of the znode's data (or existence), or of its children."""

    path: str
    of_children: bool


class Welcome(NamedTuple):
    """The answer to a client that connects: its session, or 0 when the one it asked for is over."""

    session_id: int


class Farewell(NamedTuple):
    """The server has closed the connection. The last item of any."""


Item = Outcome | Event | Welcome | Farewell


class Client(Protocol):
    """What servers know of a client."""

    session_timeout_s: float
    loses_reply: bool
    """Carry out the next write, and tell `reply_lost` instead of replying."""

    @property
    def is_silent(self) -> bool:
        """Its process is stopped, or dead: it sends no pings."""

    def delay(self) -> float:
        """How long the next item takes, in seconds."""

    def take(self, connection: Connection) -> None:
        """An item has arrived: the first of `connection.down`."""

    def reply_lost(self) -> None:
        """Its connection is to break here."""

    def come_back(self) -> None:
        """There is a quorum again."""


class Connection:
    """One connection of a client. `session_id` is 0 until it is welcome. Items are lost once it is `cut`; a server that
    has closed it (`closed`) reads no more of it."""

    __slots__ = ("child_watches", "client", "closed", "cut", "data_watches", "down", "ensemble", "session_id", "up")

    def __init__(self, ensemble: Ensemble, client: Client) -> None:
        self.ensemble = ensemble
        self.client = client
        self.session_id = 0
        self.up: deque[Op | Welcome | Farewell] = deque()
        self.down: deque[Item] = deque()
        self.cut = False
        self.closed = False
        self.data_watches: dict[str, None] = {}
        self.child_watches: dict[str, None] = {}

    def ask(self, request: Op | Welcome | Farewell) -> None:
        """From the client: an operation, a Welcome to the session it wants, or a Farewell that ends its session."""
        if not self.cut:
            self.up.append(request)
            self.ensemble.schedule(self.client.delay(), self._arrive)

    def tell(self, item: Item) -> None:
        """From the server."""
        if not self.cut:
            self.down.append(item)
            self.ensemble.schedule(self.client.delay(), self._deliver)

    def sever(self) -> None:
        """Nothing that is under way arrives."""
        self.cut = True
        self.up.clear()
        self.down.clear()

    def _arrive(self) -> None:
        # The first of the queue, whichever it was scheduled for: so order does not depend on the delays.
        if self.up:
            request = self.up.popleft()
            if not self.closed:
                self.ensemble.serve(self, request)

    def _deliver(self) -> None:
        if self.down:
            self.client.take(self)


@dataclass(slots=True, eq=False)
class _Session:
    timeout_s: float
    connection: Connection | None
    timer: int = 0
    """The number of the timer that counts; those of others are void."""


class Ensemble:
    """All servers. `wall_ms`: their clock, for the times in a Stat."""

    def __init__(self, schedule: Schedule, wall_ms: Callable[[], int]) -> None:
        self.schedule = schedule
        self.is_out = False
        self._znodes = Znodes(wall_ms, with_parents(paths.ROOTS))
        self._sessions: dict[int, _Session] = {}
        self._sessions_made = 0
        self._clients: dict[Client, None] = {}
        self._connections: dict[Connection, None] = {}
        self._data_watches: dict[str, dict[Connection, None]] = {}
        self._child_watches: dict[str, dict[Connection, None]] = {}
        self._observers: list[Observer] = []

    # --- for those who look from above ----------------------------------------------------------------------------

    def observe(self, observer: Observer) -> None:
        self._observers.append(observer)

    @property
    def zxid(self) -> int:
        return self._znodes.zxid

    @property
    def sessions(self) -> tuple[int, ...]:
        """The ids of those that live, oldest first."""
        return tuple(self._sessions)

    def lives(self, session_id: int) -> bool:
        return session_id in self._sessions

    def read(self, path: str) -> bytes | None:
        node = self._znodes.nodes.get(path)
        return None if node is None else node.data

    def stat(self, path: str) -> Stat | None:
        node = self._znodes.nodes.get(path)
        return None if node is None else node.stat()

    def owner(self, path: str) -> int:
        """The session that an ephemeral belongs to; 0: not ephemeral, or not there."""
        node = self._znodes.nodes.get(path)
        return 0 if node is None else node.owner

    def children(self, path: str) -> tuple[str, ...]:
        """Names, sorted; none when there is no such znode."""
        node = self._znodes.nodes.get(path)
        return () if node is None else tuple(sorted(node.children))

    def ephemerals(self, session_id: int) -> tuple[str, ...]:
        """Paths, oldest first."""
        return self._znodes.ephemerals(session_id)

    def carry_out(self, op: Create | Set | Delete | Multi) -> Outcome:
        """A write by nobody's session, at once, an outage or not: to set a scene. Ephemerals are not possible."""
        return self._write(op, 0)

    # --- faults ---------------------------------------------------------------------------------------------------

    def expire(self, session_id: int) -> bool:
        """End a session as if its client had been silent for too long. False: there is none, or no quorum to do it."""
        if self.is_out or session_id not in self._sessions:
            return False
        self._end(session_id)
        return True

    def outage(self, begins: bool) -> None:
        """Lose the quorum, or get it back."""
        if begins == self.is_out:
            return
        self.is_out = begins
        if begins:
            for connection in tuple(self._connections):
                self._close(connection)
            for session in self._sessions.values():
                session.timer += 1
        else:
            for session_id, session in self._sessions.items():
                self._count_down(session_id, session, session.timeout_s)
            for client in tuple(self._clients):
                client.come_back()

    # --- for clients ----------------------------------------------------------------------------------------------

    def connect(self, client: Client, session_id: int) -> Connection:
        """A connection that asks for this session (0: a new one). It says Welcome or Farewell, unless it is cut."""
        self._clients[client] = None
        connection = Connection(self, client)
        connection.ask(Welcome(session_id))
        return connection

    def forget(self, client: Client) -> None:
        """It will not connect again."""
        self._clients.pop(client, None)

    def unheard(self, connection: Connection, since_s: float = 0.0) -> None:
        """Nothing is heard from it any more, for `since_s` already: count its session's timeout."""
        session = self._sessions.get(connection.session_id)
        if session is not None and session.connection is connection and not self.is_out:
            self._count_down(connection.session_id, session, session.timeout_s - since_s)

    def heard(self, connection: Connection) -> None:
        """It speaks again."""
        session = self._sessions.get(connection.session_id)
        if session is not None and session.connection is connection:
            session.timer += 1

    def release(self, connection: Connection) -> None:
        """It was cut: drop its watches."""
        self._connections.pop(connection, None)
        for table, armed in (
            (self._data_watches, connection.data_watches),
            (self._child_watches, connection.child_watches),
        ):
            for path in armed:
                del table[path][connection]
                if not table[path]:
                    del table[path]
            armed.clear()
        session = self._sessions.get(connection.session_id)
        if session is not None and session.connection is connection:
            session.connection = None

    def serve(self, connection: Connection, request: Op | Welcome | Farewell) -> None:
        """A request has arrived."""
        if self.is_out:
            self._close(connection)
        elif isinstance(request, Welcome):
            self._welcome(connection, request.session_id)
        elif isinstance(request, Farewell):
            self._end(connection.session_id)
        elif isinstance(request, Get | Exists | Children):
            connection.tell(self._read(connection, request))
        else:
            outcome = self._write(request, connection.session_id)
            if connection.client.loses_reply:
                connection.client.reply_lost()
            else:
                connection.tell(outcome)

    # --- sessions -------------------------------------------------------------------------------------------------

    def _welcome(self, connection: Connection, wanted: int) -> None:
        session = self._sessions.get(wanted)
        if session is None and wanted:
            connection.tell(Welcome(0))
            connection.closed = True
            return
        if session is None:
            self._znodes.zxid += 1
            self._sessions_made += 1
            wanted = self._sessions_made
            session = self._sessions[wanted] = _Session(connection.client.session_timeout_s, connection)
        elif session.connection is not None:
            self._close(session.connection)  # the client has left it
        session.connection = connection
        session.timer += 1
        connection.session_id = wanted
        self._connections[connection] = None
        connection.tell(Welcome(wanted))
        if connection.client.is_silent:
            self.unheard(connection)

    def _count_down(self, session_id: int, session: _Session, after_s: float) -> None:
        session.timer += 1
        self.schedule(max(0.0, after_s), partial(self._time_out, session_id, session.timer))

    def _time_out(self, session_id: int, timer: int) -> None:
        session = self._sessions.get(session_id)
        if session is not None and session.timer == timer:
            self._end(session_id)

    def _end(self, session_id: int) -> None:
        session = self._sessions.pop(session_id)
        if session.connection is not None:  # as servers do: before its watches tell of its own ephemerals
            self._close(session.connection)
        self._committed(session_id, self._znodes.end_session(session_id))

    def _close(self, connection: Connection) -> None:
        """By the server. What was sent before is seen before."""
        self.release(connection)
        connection.tell(Farewell())
        connection.closed = True

    # --- operations -----------------------------------------------------------------------------------------------

    def _read(self, connection: Connection, op: Get | Exists | Children) -> Outcome:
        path = op.path
        node = self._znodes.nodes.get(path)
        if node is None and not isinstance(op, Exists):
            return NoNode(path)
        if op.watch:
            if isinstance(op, Children):
                self._child_watches.setdefault(path, {})[connection] = None
                connection.child_watches[path] = None
            else:
                self._data_watches.setdefault(path, {})[connection] = None
                connection.data_watches[path] = None
        if isinstance(op, Exists):
            return Existed(None if node is None else node.stat())
        assert node is not None
        return Listed(tuple(sorted(node.children))) if isinstance(op, Children) else Got(node.data, node.stat())

    def _write(self, op: Write, session_id: int) -> Outcome:
        outcome, changes = self._znodes.write(op, session_id)
        self._committed(session_id, changes)
        return outcome

    def _committed(self, session_id: int, changes: list[Change]) -> None:
        if not changes:
            return
        for kind, path in changes:
            if path in self._data_watches:
                for connection in self._data_watches.pop(path):
                    del connection.data_watches[path]
                    connection.tell(Event(path, of_children=False))
            if kind != "set":
                if kind == "delete":
                    self._fire_children(path)
                self._fire_children(path.rpartition("/")[0] or "/")
        for observer in self._observers:
            observer(self._znodes.zxid, session_id, changes)

    def _fire_children(self, path: str) -> None:
        for connection in self._child_watches.pop(path, ()):
            del connection.child_watches[path]
            connection.tell(Event(path, of_children=True))
