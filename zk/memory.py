"""ZooKeeper's servers in memory, for simulations: sessions, watches, expiry, outages. Nothing here waits or draws.

Theory of operation. An `Ensemble` is all servers together: one tree of znodes (zk.znodes), the sessions, and the
servers (zk.memory_server) that clients (zk.memory_session.MemoryTree) are connected to (zk.memory_wire). As in
ZooKeeper a request is carried out when it arrives; a write at once for all servers, a read as far as the client's own
server has come, which may be behind: `lag`.

Time is the scheduler's: `schedule(after_s, callback)`, which may be a virtual clock or an asyncio loop's `call_later`.
While a session has a connection on which its client can speak, it lives (pings are not simulated). From when the
servers last heard of it, they count its timeout, and then end it: its ephemerals vanish in one transaction.

During an outage of the quorum every connection is closed, nothing is carried out and nobody expires; when it is over
the servers count every session's timeout anew, and tell the clients, which come back each in its own time.

What real servers do and these do not: a write that was under way when the quorum was lost is never found to have
happened after the outage (those that arrived before have, though their reply may be lost); expiry is exact, not rounded
up to a tick; single servers do not die; there are no ACLs, quotas, and no chroots.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from zk import paths
from zk.client import with_parents
from zk.memory_server import MemoryServer
from zk.memory_wire import Client, Connection, Farewell, Request, Schedule, Welcome
from zk.past import Past
from zk.tree import Create, Delete, Multi, Outcome, Set, Stat
from zk.znodes import Change, Write, Znodes

Observer = Callable[[int, int, list[Change]], None]
"""(zxid, whose session it was, what changed), after each transaction that changed something. Session 0: nobody's."""


@dataclass(slots=True, eq=False)
class _Session:
    timeout_s: float
    connection: Connection | None
    timer: int = 0
    """The number of the timer that counts; those of others are void."""


class Ensemble:
    """`wall_ms`: the servers' clock, for the times in a Stat. `lag()`: how late a server applies the next transaction,
    in seconds, drawn by the caller, for each of `servers` servers; without it none is ever late, and one stands for
    all."""

    def __init__(
        self,
        schedule: Schedule,
        wall_ms: Callable[[], int],
        *,
        lag: Callable[[], float] | None = None,
        servers: int = 3,
    ) -> None:
        self.is_out = False
        self.schedule = schedule
        self._past = None if lag is None else Past()
        self._znodes = Znodes(wall_ms, with_parents(paths.ROOTS), self._past)
        self._servers = [
            MemoryServer(self._znodes, self._past, schedule, lag, self._asked_to_write, self._end)
            for _ in range(1 if lag is None else servers)
        ]
        self._connections_made = 0
        self._sessions: dict[int, _Session] = {}
        self._sessions_made = 0
        self._clients: dict[Client, None] = {}
        self._connections: dict[Connection, None] = {}
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

    def meet(self, client: Client) -> None:
        """It will connect, and wants to hear when an outage is over."""
        self._clients[client] = None

    def connect(self, client: Client, session_id: int) -> Connection:
        """A connection that asks for this session (0: a new one). It says Welcome or Farewell, unless it is cut."""
        self._connections_made += 1
        server = self._servers[self._connections_made % len(self._servers)]
        connection = Connection(client, server, self.schedule, self._serve)
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
        """It was cut."""
        self._connections.pop(connection, None)
        connection.server.drop(connection)
        session = self._sessions.get(connection.session_id)
        if session is not None and session.connection is connection:
            session.connection = None

    def _serve(self, connection: Connection, request: Request) -> None:
        if self.is_out:
            self._close(connection)
        elif isinstance(request, Welcome):
            self._welcome(connection, request.session_id)
        else:
            connection.server.serve(connection, request)

    # --- sessions -------------------------------------------------------------------------------------------------

    def _welcome(self, connection: Connection, wanted: int) -> None:
        session = self._sessions.get(wanted)
        if session is None and wanted:
            connection.tell(Welcome(0))
            connection.closed = True
            return
        if session is None:
            self._sessions_made += 1
            wanted = self._sessions_made
            session = self._sessions[wanted] = _Session(connection.client.session_timeout_s, connection)
        elif session.connection is not None:
            self._close(session.connection)  # the client has left it
        session.connection = connection
        session.timer += 1
        connection.session_id = wanted
        self._connections[connection] = None
        connection.server.catch_up()
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

    # --- transactions ---------------------------------------------------------------------------------------------

    def _asked_to_write(self, connection: Connection, op: Write) -> None:
        self._write(op, connection.session_id, connection)

    def _write(self, op: Write, session_id: int, author: Connection | None = None) -> Outcome:
        outcome, changes = self._znodes.write(op, session_id)
        self._committed(session_id, changes, author, outcome)
        return outcome

    def _committed(
        self,
        session_id: int,
        changes: list[Change],
        author: Connection | None = None,
        outcome: Outcome | None = None,
    ) -> None:
        zxid = self._znodes.zxid
        for server in self._servers:
            if author is not None and server is author.server:
                server.learn(zxid, changes, author, outcome)
            else:
                server.learn(zxid, changes, None, None)
        if self._past is not None:
            self._past.forget(min(server.applied for server in self._servers))
        if changes:
            for observer in self._observers:
                observer(zxid, session_id, changes)
