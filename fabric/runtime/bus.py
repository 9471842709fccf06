"""The bus: messages between agents over ZeroMQ, one socket an agent.

Theory of operation. Each agent has ONE bound ROUTER for both directions. To reach another agent it connects this same
socket to the other's address, under a local name (`CONNECT_ROUTING_ID`); what comes in by a connection that a peer
opened bears an id that libzmq made up. Either way, a received message is handed on with `sender = "route:<hex>"`, and
sending to that string answers on the same connection. So between two agents there may be two connections, one opened
by each; that is no trouble, as every message is self-contained.

The socket is driven by `loop.add_reader` on its FD, never by zmq.asyncio (measured: half the CPU). That FD is
*edge-triggered*: it says "something changed", once, and sending may swallow the news of something received. Hence the
one rule here: after every wake-up and after every send the socket is drained until it says that it has nothing more;
and when a drain stops early, so that a flood of messages cannot starve the loop, another one is put on the loop at
once. (It is asked for its events before it is read: to be told EAGAIN by an exception costs several times as much.)

Nothing is promised: a message to a peer that is gone, or that does not keep up, is dropped and counted. Addresses carry
the incarnation, "tcp://host:port/guid": libzmq delivers what was queued for a dead process to its successor on the same
port, and that successor drops it here by the guid ("stale").

Names of outgoing connections are random and never used twice: libzmq *aborts the process* when a name is in use
already, so a stranger must not be able to guess one and announce it as its own id.

What a socket is made with is in sockets.py.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic

import zmq

from fabric.runtime.sockets import BusLimits, Disconnects, SocketContext, bind_to, new_context, router
from fabric.traffic import OWN_ROUTE, ROUTE, BindFailed, BusCounters, PortInUse, parse_address
from fabric.wire import BadFrame, FrameCodec, M

__all__ = ["BindFailed", "Bus", "BusCounters", "BusLimits", "PortInUse", "SocketContext", "new_context"]

log = logging.getLogger(__name__)

_NAME_BYTES = 16
_NOBLOCK = int(zmq.NOBLOCK)  # plain integers: arithmetic on pyzmq's enums costs more than a send
_NOBLOCK_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_RCVMORE = int(zmq.RCVMORE)
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)


@dataclass(slots=True)
class _Peer:
    endpoint: str
    name: bytes
    used: float


class Bus(Generic[M]):
    """One agent's socket. Made and used on the loop's thread. `on_message(sender, message)` is called for every message
    that decoded and was meant for this incarnation; an exception from it goes to the loop's exception handler.
    `on_lost(endpoint)`: an outgoing connection broke; the next send there makes another.

    `bind`: "tcp://host:port", port 0 for any free one. `advertise_host`: what others are told to connect to (default:
    the host of `bind`, which must then not be a wildcard). Raises PortInUse, BindFailed.
    """

    def __init__(
        self,
        context: SocketContext,
        codec: FrameCodec[M],
        guid: str,
        bind: str = "tcp://127.0.0.1:0",
        *,
        on_message: Callable[[str, M], None],
        on_lost: Callable[[str], None] = lambda endpoint: None,
        advertise_host: str | None = None,
        limits: BusLimits | None = None,
    ) -> None:
        self.counters = BusCounters()
        self._codec = codec
        self._guid = guid
        self._on_message = on_message
        self._on_lost = on_lost
        self._limits = limits or BusLimits()
        self._loop = asyncio.get_running_loop()
        self._peers: OrderedDict[str, _Peer] = OrderedDict()  # by endpoint, least recently used first
        self._by_name: dict[bytes, _Peer] = {}
        self._to_self: deque[M] = deque()
        self._drain_due = False
        self._closed = False
        self._socket = router(context, self._limits, ipv6="[" in bind)
        try:
            self._endpoint = bind_to(self._socket, bind, advertise_host)
        except BaseException:
            self._socket.close(0)
            raise
        self.address = f"{self._endpoint}/{guid}"
        self._fd: int = self._socket.FD
        self._loop.add_reader(self._fd, self._drain)
        self._disconnects = Disconnects(context, self._socket)
        self._loop.add_reader(self._disconnects.fd, self._drop_lost)
        self._loop.call_soon(self._drop_lost)  # an FD wakes only after a first drain; this drains both
        self._sweep_timer = self._loop.call_later(self._limits.idle_s / 4, self._sweep)

    def send(self, to: str, message: M) -> None:
        """Send to an address ("tcp://host:port/guid") or to the `sender` of a received message. Never raises for what
        the network or a peer does; what could not be sent is counted."""
        if self._closed:
            return
        by_route = to.startswith(ROUTE)
        address = ("", "") if by_route else parse_address(to)
        if address is None:
            self.counters.dropped["address"] += 1
            return
        endpoint, guid = address
        if to == OWN_ROUTE or endpoint == self._endpoint:
            self._send_to_self(guid, message)
            return
        try:
            frame = self._codec.encode(message, guid)
        except ValueError:
            self.counters.dropped["large"] += 1
            return
        except (OverflowError, TypeError) as error:  # a fault of ours, as a number of over 64 bits; not worth the agent
            if not self.counters.dropped["encoding"]:
                log.error("%s to %s was not sent: expected what msgpack can say: %s", type(message).__name__, to, error)
            self.counters.dropped["encoding"] += 1
            return
        if by_route:
            failure = self._send_frame(_route_name(to), frame)
        else:
            failure = self._send_to(endpoint, frame)
            if failure == "gone":  # libzmq gave this connection up, as after talking to something that is no ZeroMQ
                self._disconnect(endpoint)
                failure = self._send_to(endpoint, frame)
                self._loop.call_soon(self._on_lost, endpoint)
        if failure is not None:
            self.counters.dropped[failure] += 1
        else:
            self.counters.sent[type(message).__name__] += 1
            self.counters.bytes_sent += len(frame)
        self._schedule_drain()

    def close(self) -> None:
        """Stop listening and drop every connection; what is still queued is lost. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._sweep_timer.cancel()
        self._loop.remove_reader(self._fd)
        self._loop.remove_reader(self._disconnects.fd)
        self._disconnects.close()
        self._peers.clear()
        self._by_name.clear()
        self._to_self.clear()
        self._socket.close(0)

    # --- sending -----------------------------------------------------------------------------------------------------

    def _send_to(self, endpoint: str, frame: bytes) -> str | None:
        peer = self._peers.get(endpoint) or self._connect(endpoint)
        if peer is None:
            return "address"
        self._touch(peer)
        return self._send_frame(peer.name, frame)

    def _send_frame(self, name: bytes, frame: bytes) -> str | None:
        """None, or why it was dropped."""
        try:
            self._socket.send(name, _NOBLOCK_MORE)
            self._socket.send(frame, _NOBLOCK)
        except zmq.Again:
            return "full"
        except zmq.ZMQError as error:
            if error.errno == errno.EHOSTUNREACH:
                return "gone"
            raise
        return None

    def _send_to_self(self, guid: str, message: M) -> None:
        """Messages are immutable, so what is sent is what is received."""
        if guid and guid != self._guid:
            self.counters.stale += 1
        elif len(self._to_self) >= self._limits.own_messages:
            self.counters.dropped["full"] += 1
        else:
            self.counters.sent[type(message).__name__] += 1
            self._to_self.append(message)
            self._loop.call_soon(self._deliver_own)

    def _deliver_own(self) -> None:
        if self._to_self:
            message = self._to_self.popleft()
            self.counters.received[type(message).__name__] += 1
            self._on_message(OWN_ROUTE, message)

    def _connect(self, endpoint: str) -> _Peer | None:
        """None: there can be no such endpoint. Whether somebody is there shows later, or never."""
        if len(self._peers) >= self._limits.max_peers:
            self.counters.evicted += 1
            self._disconnect(next(iter(self._peers)))
        peer = _Peer(endpoint, os.urandom(_NAME_BYTES), 0.0)
        self._socket.setsockopt(zmq.CONNECT_ROUTING_ID, peer.name)
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError:
            return None
        self._peers[endpoint] = peer
        self._by_name[peer.name] = peer
        self.counters.peers = len(self._peers)
        return peer

    def _touch(self, peer: _Peer) -> None:
        peer.used = time.monotonic()
        self._peers.move_to_end(peer.endpoint)

    def _disconnect(self, endpoint: str) -> None:
        peer = self._peers.pop(endpoint)
        del self._by_name[peer.name]
        self.counters.peers = len(self._peers)
        try:
            self._socket.disconnect(endpoint)
        except zmq.ZMQError as error:
            if error.errno != errno.ENOENT:  # ENOENT: libzmq gave it up before us
                raise

    def _drop_lost(self) -> None:
        """Connections that broke. libzmq would connect again by itself, but not always: a session that ended over the
        handshake never does, and its name may swallow what is sent to it for ever. So each connection is used once; the
        next send makes a new one."""
        if self._closed:
            return
        for endpoint in self._disconnects.take():
            if endpoint in self._peers:
                self.counters.lost += 1
                self._disconnect(endpoint)
                self._loop.call_soon(self._on_lost, endpoint)
        self._schedule_drain()

    def _sweep(self) -> None:
        oldest_kept = time.monotonic() - self._limits.idle_s
        while self._peers:
            peer = next(iter(self._peers.values()))
            if peer.used > oldest_kept:
                break
            self._disconnect(peer.endpoint)
        self._schedule_drain()
        self._sweep_timer = self._loop.call_later(self._limits.idle_s / 4, self._sweep)

    # --- receiving ---------------------------------------------------------------------------------------------------

    def _schedule_drain(self) -> None:
        if not self._drain_due:
            self._drain_due = True
            self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        self._drain_due = True  # for what is sent from in here: this looks again after each message
        nothing_more = False
        try:
            nothing_more = self._drain_some()
        finally:
            self._drain_due = False
            if not nothing_more:
                self._schedule_drain()

    def _drain_some(self) -> bool:
        """True: there is nothing more, or nobody to read it."""
        for _ in range(self._limits.drain_messages):
            if self._closed or not int(self._socket.getsockopt(_EVENTS)) & _POLLIN:
                return True
            name = self._socket.recv(_NOBLOCK)
            frame = self._socket.recv(_NOBLOCK)  # a message arrives whole, and a ROUTER's has at least two parts
            parts = 2
            while self._socket.getsockopt(_RCVMORE):
                self._socket.recv(_NOBLOCK)
                parts += 1
            peer = self._by_name.get(name)
            if peer is not None:
                self._touch(peer)
            if parts > 2:
                self.counters.bad["parts"] += 1
            elif not frame:
                self.counters.bad["empty"] += 1
            else:
                self._take(f"{ROUTE}{name.hex()}", frame)
        return False

    def _take(self, sender: str, frame: bytes) -> None:
        try:
            to, message = self._codec.decode(frame)
        except BadFrame as bad:
            self.counters.bad[bad.cause] += 1
            return
        if to and to != self._guid:
            self.counters.stale += 1
            return
        self.counters.received[type(message).__name__] += 1
        self.counters.bytes_received += len(frame)
        self._on_message(sender, message)


def _route_name(to: str) -> bytes:
    try:
        return bytes.fromhex(to[len(ROUTE) :])
    except ValueError:
        return b""  # nobody has the empty name: "gone"
