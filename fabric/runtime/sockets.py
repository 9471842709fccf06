"""The sockets of the bus: how they are made, bound and watched, and every limit they are given."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass

import zmq

from fabric.traffic import BindFailed, PortInUse
from fabric.wire import MAX_FRAME_BYTES

SocketContext = zmq.Context[zmq.Socket[bytes]]

_BIND = re.compile(r"tcp://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+|\*):([0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class BusLimits:
    max_peers: int = 6_000
    """Outgoing connections (28 KiB each); over it, the one unused for longest is closed. A rack has at most 5,000."""
    idle_s: float = 120.0
    """An outgoing connection unused for so long is closed. Longer than any call waits for its answer."""
    queue_messages: int = 1_000
    """Per connection and direction; what does not fit is dropped."""
    own_messages: int = 50_000
    """From a bus to itself, as hundreds of initiators may live in one boot stub; what does not fit is dropped."""
    drain_messages: int = 64
    """Received in a row before the loop gets its turn."""
    probe_s: int = 10
    """A connection that carries nothing for so long is probed (by the kernel, which wakes no process for it), and is
    closed when that is not answered."""
    unheard_ms: int = 3_000
    """A connection whose other end does not acknowledge what was sent for so long is closed: behind a cut TCP tries
    again ever less often, so that an old connection would be silent for long after it has healed."""
    reconnect_min_ms: int = 100
    reconnect_max_ms: int = 3_200
    connect_timeout_ms: int = 5_000
    handshake_ms: int = 5_000
    """A stranger that connects and does not speak ZMTP is closed after this."""


def new_context(max_sockets: int = 4_096) -> SocketContext:
    """One a process; `max_sockets`: two for each agent, and some more."""
    context: SocketContext = zmq.Context()
    context.set(zmq.MAX_SOCKETS, max_sockets)
    return context


def router(context: SocketContext, limits: BusLimits, ipv6: bool) -> zmq.Socket[bytes]:
    socket = context.socket(zmq.ROUTER)
    for option, value in (
        (zmq.LINGER, 0),
        (zmq.ROUTER_MANDATORY, 1),
        (zmq.MAXMSGSIZE, MAX_FRAME_BYTES),
        (zmq.SNDHWM, limits.queue_messages),
        (zmq.RCVHWM, limits.queue_messages),
        (zmq.TCP_KEEPALIVE, 1),
        (zmq.TCP_KEEPALIVE_IDLE, limits.probe_s),
        (zmq.TCP_KEEPALIVE_INTVL, max(1, limits.probe_s // 3)),
        (zmq.TCP_KEEPALIVE_CNT, 3),
        (zmq.TCP_MAXRT, limits.unheard_ms),
        (zmq.RECONNECT_IVL, limits.reconnect_min_ms),
        (zmq.RECONNECT_IVL_MAX, limits.reconnect_max_ms),
        (zmq.CONNECT_TIMEOUT, limits.connect_timeout_ms),
        (zmq.HANDSHAKE_IVL, limits.handshake_ms),
        (zmq.BACKLOG, 1_024),
        (zmq.IPV6, int(ipv6)),
    ):
        socket.setsockopt(option, value)
    return socket


def bind_to(socket: zmq.Socket[bytes], bind: str, advertise_host: str | None) -> str:
    """Bind, and return the endpoint that others connect to."""
    match = _BIND.fullmatch(bind)
    if match is None or int(match[2]) > 65_535:
        raise BindFailed(f"listen address: expected tcp://host:port, found {bind!r}")
    host = advertise_host or match[1]
    if host in ("*", "0.0.0.0", "[::]"):
        raise BindFailed(f"listen address {bind}: others can't connect to a wildcard; say which host to advertise")
    try:
        socket.bind(bind)
    except zmq.ZMQError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(
                f"{bind} is in use: another process listens there ('ss -ltnp' names it); stop it or listen on another "
                "port (0: any free one)"
            ) from None
        raise BindFailed(f"can't listen on {bind}: {error.strerror}; give an address of this host") from None
    bound = socket.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(bound, bytes)
    port = bound.rstrip(b"\0").decode().rpartition(":")[2]
    return f"tcp://{host}:{port}"


class Disconnects:
    """The endpoints that a socket was connected to and has lost. Watch `fd` for reading, and `take` when it wakes."""

    def __init__(self, context: SocketContext, watched: zmq.Socket[bytes]) -> None:
        self._watched = watched
        where = f"inproc://disconnects-{os.urandom(8).hex()}"
        watched.monitor(where, zmq.EVENT_DISCONNECTED)
        self._events = context.socket(zmq.PAIR)
        self._events.setsockopt(zmq.LINGER, 0)
        self._events.setsockopt(zmq.RCVHWM, 0)  # no limit: at one, libzmq's own thread would wait here for the loop
        self._events.connect(where)
        self.fd: int = self._events.FD

    def take(self) -> list[str]:
        """All that are known now. Connections of others to our endpoint appear as that endpoint."""
        lost: list[str] = []
        while True:
            try:
                event = self._events.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return lost
            lost.append(event[-1].decode("ascii", "replace"))

    def close(self) -> None:
        self._watched.disable_monitor()
        self._events.close(0)
