"""A session on real servers, on the event loop: connects, connects again, pings, and opens a new session after one.

Theory of operation. One task a session goes through the servers in a random order, again and again, until one carries
the session; then it waits for the end of that connection. Between two rounds it waits a little, up to
RECONNECT_MAX_DELAY_S and at random, so that a thousand clients of a server that died do not come back as one. A server
that is silent is left: each has a share of the session's timeout to accept it (`patience`), and later two thirds of it
to say something when asked.

A `_Line` is one connection: a socket's transport, what zk.connection makes of its bytes, and one timer. All that is
sent in one turn of the loop leaves in one write. The timer wakes when a ping may be due; what was sent meanwhile only
moves the time that it finds then, so that a busy session sets no timers and an idle one wakes for its pings alone.

What happens is told at once, in the order in which the server said it: outcomes, and the calls of `Owner`. Nothing is
sent on any line but that of the session it was meant for: a call is handed over only while `takes`, and one that was
in flight when its line broke is answered with ConnectionLost before anything else is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
from collections.abc import Callable
from typing import Protocol, cast

from zk import names
from zk.connect import ConnectString
from zk.connection import PING, Answered, Broken, Connection, Ended, Event, Expired, Fired, Pulse, Welcomed
from zk.kazoo_wire import NO_SESSION, Session
from zk.names import Address
from zk.tree import Op, Outcome, TreeError

RECONNECT_MIN_DELAY_S = 0.1
RECONNECT_MAX_DELAY_S = 1.0
"""Between two rounds of the servers; the half of it at least."""
MIN_PATIENCE_S = 1.0
"""How long one server has to accept a connection and a session: a third of the session's timeout, shared among the
servers, but never less than this. Servers that are silent are no theory: one that is asked in the wrong moment of its
start (ZooKeeper 3.8.0) keeps the connection open and never answers. But what seems silent may be slow: after a round of
all servers in vain each has twice this, or a third of the timeout; or all of it, when there is no session to lose."""
SAY_EVERY_S = 10.0
"""How often at most it is logged that no server can be had."""
CLOSED = "the server closed it"
MAX_UNSENT_BYTES = 256 * 1024
"""What may wait for the socket before no more calls are taken; the last of them may exceed it."""

_log = logging.getLogger("fabric.zk.link")


class Owner(Protocol):
    """Whose session it is. Called on the loop; raises nothing."""

    def linked(self, session_id: int, timeout_s: float) -> None:
        """Connected: with the session as before, or with a new one."""

    def unlinked(self) -> None:
        """The connection is lost, the session may live on. What was in flight has been answered."""

    def expired(self) -> None:
        """The session is over. A new one will follow by itself."""

    def fired(self, path: str) -> None:
        """A watch fired."""

    def drained(self) -> None:
        """`takes` is true again."""


class Link:
    """See the module. `start` it on the loop, and `stop` it there."""

    def __init__(self, owner: Owner, where: ConnectString, session_timeout_s: float) -> None:
        self.owner = owner
        self.session = NO_SESSION
        self._where = where
        self._asked_s = session_timeout_s
        self._timeout_s = session_timeout_s
        """What was granted last: before that, what is asked for."""
        self._silent = False  # one was, in this round of the servers
        self._zxid = 0
        self._left: tuple[str, int] | None = None
        self._line: _Line | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self._said_at = float("-inf")

    # --- calls ----------------------------------------------------------------------------------------------------

    @property
    def takes(self) -> bool:
        """Calls may be handed over: there is a connection with a session, and it keeps up."""
        return self._line is not None and self._line.takes

    @property
    def server(self) -> tuple[str, int] | None:
        """Address and port of the server that the session is at."""
        return self._line.server if self._line is not None else None

    def send(self, op: Op, root: str, done: Callable[[Outcome], None]) -> None:
        """Send `op`, its paths below `root`; only while `takes`. `done` is called exactly once, not from inside."""
        assert self._line is not None
        self._line.send(self._line.connection.ask(op, root, done))

    def sync(self, done: Callable[[TreeError | None], None]) -> None:
        """As `send`: have the server catch up with all that was committed or under way before."""
        assert self._line is not None
        self._line.send(self._line.connection.sync(done))

    def flush(self) -> None:
        """Write what was sent in this turn of the loop now."""
        if self._line is not None:
            self._line.flush()

    def drop(self, why: str) -> None:
        """Hang up, if there is a connection; the session goes on at another one."""
        if self._line is not None:
            self._line.drop(why)

    # --- life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self, wait_s: float) -> None:
        """End the session, and wait for the server's word on it, and all before it, for `wait_s`. After that all that
        was handed over is answered, and no socket is left."""
        self._stopping = True
        line = self._line
        try:
            if line is not None and line.is_welcome:
                line.send(line.connection.goodbye())
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(line.ended.wait(), wait_s)
        finally:
            if self._task is not None:
                self._task.cancel()
                await asyncio.wait([self._task])

    # --- connecting -----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        delay_s, patience_s = RECONNECT_MIN_DELAY_S, self._patience_s
        while not self._stopping:
            refusals: list[str] = []
            self._silent = False
            for host, port in self._in_turn():
                try:
                    found = await names.addresses(host, port, patience_s)
                except OSError as error:
                    refusals.append(str(error))
                    continue
                for address in random.sample(found, len(found)):
                    began = loop.time()
                    refusal = await self._attempt(address, patience_s)
                    if self._stopping:
                        return
                    self._left = host, port
                    if refusal:
                        refusals.append(f"{host}:{port}: {refusal}")
                    else:
                        patience_s = self._patience_s
                        refusals.clear()
                        # One that welcomes and breaks at once, again and again, is no better than one that refuses.
                        if not self.session.session_id or loop.time() - began >= RECONNECT_MAX_DELAY_S:
                            delay_s = RECONNECT_MIN_DELAY_S
            if refusals:
                self._say(refusals)
                if self._silent:
                    at_stake = 3 if self.session.session_id else 1
                    patience_s = max(2 * MIN_PATIENCE_S, self._timeout_s / at_stake)
            await asyncio.sleep(random.uniform(0.5, 1.0) * delay_s)
            delay_s = min(2 * delay_s, RECONNECT_MAX_DELAY_S)

    @property
    def _patience_s(self) -> float:
        return max(MIN_PATIENCE_S, self._timeout_s / 3 / len(self._where.servers))

    def _in_turn(self) -> list[tuple[str, int]]:
        """All servers at random, but the one that was tried or left just now at the end."""
        servers = random.sample(self._where.servers, len(self._where.servers))
        return sorted(servers, key=lambda server: server == self._left)

    async def _attempt(self, address: Address, patience_s: float) -> str:
        """Have this server carry the session, and wait for the end of that. Why it did not come to that; "" when it
        did, or when the server had the last word on the session."""
        line = _Line(self, Connection(self.session, self._asked_s, self._zxid, self._where.chroot))
        try:
            async with asyncio.timeout(patience_s):
                await line.connect(address)
                await line.greeted.wait()
        except TimeoutError:
            self._silent = True
            return f"it did not answer within {patience_s:.1f} s"
        except OSError as error:
            return error.strerror or str(error)
        except Exception:
            _log.exception("connecting to ZooKeeper failed in an unexpected way; trying on")
            return "see above"
        else:
            if line is not self._line:
                return line.why
            await line.ended.wait()
            return ""
        finally:
            await line.end()

    def _say(self, refusals: list[str]) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._said_at >= SAY_EVERY_S:
            self._said_at = now
            _log.warning("no ZooKeeper server can be had: %s; trying on", "; ".join(refusals))

    # --- what the line says -----------------------------------------------------------------------------------------

    def welcomed(self, line: _Line, session: Session, timeout_s: float) -> None:
        self._line = line
        self.session = session
        self._timeout_s = timeout_s
        self.owner.linked(session.session_id, timeout_s)

    def expired(self) -> None:
        _log.warning("session %#x is over: opening a new one", self.session.session_id)
        self.session = NO_SESSION
        self._zxid = 0
        self.owner.expired()

    def lost(self, line: _Line) -> None:
        """It was the session's line."""
        self._line = None
        self._zxid = max(self._zxid, line.connection.zxid)
        lost = line.connection.lose()
        for event in lost:
            if isinstance(event, Answered):
                event.done(event.outcome)
        if not self._stopping:
            _log.warning("lost the connection to ZooKeeper at %s:%d: %s", *line.server, line.why)
            self.owner.unlinked()
            for event in lost:
                if isinstance(event, Fired):
                    self.owner.fired(event.path)


class _Line(asyncio.Protocol):
    """One connection of a Link. `greeted`: the server has said what becomes of the session, or hung up. `ended`: there
    is no connection any more, and `why`."""

    def __init__(self, link: Link, connection: Connection) -> None:
        self.connection = connection
        self.greeted = asyncio.Event()
        self.ended = asyncio.Event()
        self.why = CLOSED
        self.server = ("", 0)
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._pulse: Pulse | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._is_full = False  # the transport's buffer

    @property
    def is_welcome(self) -> bool:
        return self.connection.is_welcome

    @property
    def takes(self) -> bool:
        return self.connection.is_welcome and not self._is_full and self._unsent_bytes < MAX_UNSENT_BYTES

    async def connect(self, address: Address) -> None:
        """Raises OSError."""
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(socket.socket(address.family, socket.SOCK_STREAM))
            sock.setblocking(False)
            await self._loop.sock_connect(sock, address.sockaddr)
            self.server = address.sockaddr[:2]
            await self._loop.create_connection(lambda: self, sock=sock)
            stack.pop_all()  # the socket is the transport's now

    async def end(self) -> None:
        """Hang up, if that has not happened; returns when there is no socket any more."""
        if self._transport is not None:
            self._transport.abort()
            await self.ended.wait()

    def send(self, packet: bytes) -> None:
        if not self._unsent:
            self._loop.call_soon(self.flush)
        self._unsent.append(packet)
        self._unsent_bytes += len(packet)

    def flush(self) -> None:
        if not self._unsent:
            return
        took = self.takes
        packets = b"".join(self._unsent)
        self._unsent.clear()
        self._unsent_bytes = 0
        if self._transport is None or self._transport.is_closing():
            return
        self._transport.write(packets)
        if self._pulse is not None:
            self._pulse.sent(self._loop.time())
        if not took and self.takes:
            self._link.owner.drained()

    def _beat(self) -> None:
        assert self._pulse is not None
        now = self._loop.time()
        if now >= self._pulse.silent_at:
            self.drop("the server has said nothing for too long, though it was asked")
            return
        if now >= self._pulse.ping_at:
            self.send(PING)
            self.flush()
        self._timer = self._loop.call_at(self._pulse.next_at, self._beat)

    def drop(self, why: str) -> None:
        assert self._transport is not None
        self.why = why
        self._transport.abort()

    # --- asyncio's protocol ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # which not every loop's transports inherit from
        self._transport.write(self.connection.greet())

    def data_received(self, data: bytes) -> None:
        if self._pulse is not None:
            self._pulse.heard(self._loop.time())
        for event in self.connection.receive(data):
            self._take(event)

    def _take(self, event: Event) -> None:
        match event:
            case Answered():
                event.done(event.outcome)
            case Fired():
                self._link.owner.fired(event.path)
            case Welcomed():
                self._pulse = Pulse(event.timeout_s, self._loop.time())
                self._timer = self._loop.call_at(self._pulse.next_at, self._beat)
                self._link.welcomed(self, event.session, event.timeout_s)
                self.greeted.set()
            case Expired():
                self.drop("")
                self._link.expired()
            case Ended():
                self.drop("the session was closed")
            case Broken():
                self.drop(event.why)

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        if self.takes:
            self._link.owner.drained()

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            self.why = str(error)
        elif self.why == CLOSED and self._pulse is None and self.connection.zxid:
            # Said to nobody: it only hangs up. Of servers that have lost their data none will ever do.
            self.why += f", as one does that is behind transaction {self.connection.zxid:#x}, which was seen already"
        if self._timer is not None:
            self._timer.cancel()
        if self._pulse is not None:
            self._link.lost(self)
        self.ended.set()
        self.greeted.set()
