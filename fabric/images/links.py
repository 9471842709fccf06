"""Connections to the chunk servers of some holders, for one thread.

One DEALER socket a holder, so that dropping a holder drops all that is still on its way from it. A link that is lost
stays lost: libzmq would reconnect in silence, but a chunk server that went away has forgotten the requests, and the
caller has a better idea of whom to ask instead. A socket monitor tells at once of a refused or closed connection; a
peer that is there and says nothing is told by the caller's own clock, or by ZeroMQ's heartbeat.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

import zmq
from zmq.utils.monitor import parse_monitor_message

from fabric.images.frames import receive, send
from fabric.images.manifest import Buffer
from fabric.images.protocol import MAX_DATA_BYTES, Answer, Holder, ProtocolError, Request, decode_answer, encode

CONNECT_TIMEOUT_MS = 3_000
HEARTBEAT_MS = 2_000
HEARTBEAT_TIMEOUT_MS = 10_000
_QUEUED_MESSAGES = 64
"""High-water mark of one link; what callers have in flight is far less."""
_DRAIN_AT_ONCE = 16
_GONE = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)


@dataclass(frozen=True, slots=True)
class Arrived:
    """An answer of a holder; `data` is the second frame, to be used without a copy, where the kind has one."""

    node: str
    answer: Answer
    data: memoryview


@dataclass(frozen=True, slots=True)
class Lost:
    """A link that is no more, and why."""

    node: str
    reason: str


@dataclass(slots=True)
class _Link:
    socket: zmq.Socket[bytes]
    monitor: zmq.Socket[bytes]


class Links:
    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._context = context
        self._links: dict[str, _Link] = {}
        self._broken: list[Lost] = []
        self._poller = zmq.Poller()

    def __enter__(self) -> Links:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def open(self, holder: Holder) -> None:
        """Starts to connect; that it failed is told by `poll`."""
        self.drop(holder.node)
        if not holder.endpoint.startswith("tcp://"):
            self._broken.append(Lost(holder.node, f"expected an endpoint tcp://host:port, found {holder.endpoint!r}"))
            return
        socket = self._context.socket(zmq.DEALER)
        socket.linger = 0
        socket.sndhwm = socket.rcvhwm = _QUEUED_MESSAGES
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_DATA_BYTES)
        socket.setsockopt(zmq.RECONNECT_IVL, -1)
        socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_TIMEOUT_MS)
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        link = _Link(socket, socket.get_monitor_socket(_GONE))
        link.monitor.linger = 0
        self._links[holder.node] = link
        try:
            socket.connect(holder.endpoint)
        except zmq.ZMQError as error:
            self.drop(holder.node)
            self._broken.append(Lost(holder.node, f"can't connect to {holder.endpoint}: {error}"))
            return
        self._poller.register(link.socket, zmq.POLLIN)
        self._poller.register(link.monitor, zmq.POLLIN)

    def nodes(self) -> tuple[str, ...]:
        return tuple(self._links)

    def drop(self, node: str) -> None:
        """Closes the link and forgets what is on its way, in either direction: a request counts as heard when it is
        answered, and not before."""
        link = self._links.pop(node, None)
        if link is None:
            return
        for socket in (link.socket, link.monitor):
            if socket in self._poller:
                self._poller.unregister(socket)
        link.socket.disable_monitor()
        link.monitor.close(linger=0)
        link.socket.close(linger=0)

    def close(self) -> None:
        for node in self.nodes():
            self.drop(node)

    def send(self, node: str, request: Request, data: Buffer | None = None) -> None:
        """Queues a request; a link that takes none is lost. `data` is not copied: leave it as it is."""
        link = self._links.get(node)
        if link is None:
            return
        try:
            send(link.socket, (encode(request),), data)
        except zmq.Again:  # a DEALER without a connection takes nothing; callers have too little in flight to fill one
            self.drop(node)
            self._broken.append(Lost(node, "connection lost"))

    def poll(self, timeout_s: float) -> list[Arrived | Lost]:
        """What came within `timeout_s`, at once if something is there. A link that was lost is closed already."""
        found: list[Arrived | Lost] = []
        if not self._broken:
            ready = {socket for socket, _ in self._poller.poll(max(0, round(timeout_s * 1000)))}
            for node, link in list(self._links.items()):
                if link.socket in ready or link.monitor in ready:
                    self._drain(node, link, found)
                if link.monitor in ready and node in self._links:
                    event = parse_monitor_message(link.monitor.recv_multipart())["event"]
                    self.drop(node)
                    refused = event in (zmq.EVENT_CLOSED, zmq.EVENT_CONNECT_RETRIED)
                    found.append(Lost(node, "connection refused" if refused else "connection lost"))
        found += self._broken
        self._broken.clear()
        return found

    def _drain(self, node: str, link: _Link, found: list[Arrived | Lost]) -> None:
        for _ in range(_DRAIN_AT_ONCE):
            frames = receive(link.socket, 1)
            if frames is None:
                return
            (header,), rest = frames
            try:
                if len(rest) > 1:
                    raise ProtocolError(f"expected 1 or 2 frames, found {1 + len(rest)}")
                data = rest[0] if rest else None
                answer = decode_answer(header, None if data is None else len(data))
            except ProtocolError as error:
                self.drop(node)
                found.append(Lost(node, f"broke the protocol: {error}"))
                return
            found.append(Arrived(node, answer, data if data is not None else memoryview(b"")))
