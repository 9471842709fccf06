"""Connections to the chunk servers of some holders, for one thread.

One TCP connection a holder, so that dropping a holder drops all that is still on its way from it. A link that is lost
stays lost: a chunk server that went away has forgotten the requests, and the caller has a better idea of whom to ask
instead. A refused or closed connection is told at once; a peer that is there and says nothing is told by the caller's
own clock, a machine that is gone also by the kernel (`fabric.images.wire`).

Nothing happens between calls: what the kernel did not take at once is sent by the next `poll`.
"""

from __future__ import annotations

import errno
import os
import select
import socket as sockets
import time
from collections.abc import Iterator
from types import TracebackType
from typing import NamedTuple

from fabric.images.manifest import Buffer
from fabric.images.protocol import Answer, Holder, ProtocolError, Request, decode_answer, encode
from fabric.images.wire import Buffers, Closed, Incoming, Outgoing, address_of, set_up

CONNECT_TIMEOUT_S = 3.0
MAX_LINKS = 64
"""Each may have a buffer of a chunk while it receives."""
LEAST_BYTES = 4096
_TAKE_AT_ONCE = 16
_LONGEST_POLL_S = 3600.0
_UNDER_WAY, _REFUSED = errno.EINPROGRESS, errno.ECONNREFUSED
_IN, _IN_AND_OUT = select.EPOLLIN, select.EPOLLIN | select.EPOLLOUT


class Arrived(NamedTuple):
    """An answer of a holder; `data` is what came with it, where the kind has that: to be read before the next event is
    asked for."""

    node: str
    answer: Answer
    data: memoryview


class Lost(NamedTuple):
    """A link that is no more, and why."""

    node: str
    reason: str


class _Link:
    def __init__(self, node: str, socket: sockets.socket, buffers: Buffers) -> None:
        self.node, self.socket, self.fd = node, socket, socket.fileno()
        self.incoming = Incoming(socket, buffers)
        self.outgoing = Outgoing(socket)
        self.connected = False
        self.connect_until = time.monotonic() + CONNECT_TIMEOUT_S
        self.interest = 0
        self.counted = 0
        """Bytes of which `Links.moving` has told."""


class Links:
    def __init__(self) -> None:
        self._links: dict[str, _Link] = {}
        self._by_fd: dict[int, _Link] = {}
        self._broken: list[Lost] = []
        self._connecting: set[_Link] = set()
        self._more: list[_Link] = []
        """From these, answers may be here that the kernel has given already."""
        self._buffers = Buffers(MAX_LINKS)
        self._epoll = select.epoll()

    def __enter__(self) -> Links:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def open(self, holder: Holder) -> None:
        """Starts to connect; that it failed is told by `poll`."""
        self.drop(holder.node)
        socket = None
        try:
            if len(self._links) >= MAX_LINKS:
                raise ValueError(f"{MAX_LINKS} connections are open already")
            family, address = address_of(holder.endpoint)
            socket = sockets.socket(family, sockets.SOCK_STREAM)
            set_up(socket)
            error = socket.connect_ex(address)
            if error not in (0, _UNDER_WAY):
                raise OSError(error, os.strerror(error))
        except ValueError as error:
            self._broken.append(Lost(holder.node, f"can't connect: {error}"))
        except OSError as error:
            if socket is not None:
                socket.close()
            self._broken.append(Lost(holder.node, f"can't connect to {holder.endpoint}: {error.strerror}"))
        else:
            link = _Link(holder.node, socket, self._buffers)
            self._links[holder.node] = self._by_fd[link.fd] = link
            self._connecting.add(link)
            self._epoll.register(link.fd, 0)
            self._watch(link)

    def nodes(self) -> tuple[str, ...]:
        return tuple(self._links)

    def moving(self) -> list[str]:
        """Who sent or took something since this was last asked, though it be a part of an answer or a request; a
        trickle (below `LEAST_BYTES`) is nothing."""
        found = []
        for node, link in self._links.items():
            moved = link.incoming.came() + link.outgoing.arrived()
            if moved - link.counted >= LEAST_BYTES:
                link.counted = moved
                found.append(node)
        return found

    def unsent(self, node: str) -> bool:
        """Whether something for this node is not with the kernel yet."""
        link = self._links.get(node)
        return link is not None and len(link.outgoing) > 0

    def drop(self, node: str) -> None:
        """Closes the link and forgets what is on its way, in either direction: a request counts as heard when it is
        answered, and not before."""
        self._broken = [lost for lost in self._broken if lost.node != node]  # who drops it does not ask any more
        link = self._links.pop(node, None)
        if link is None:
            return
        del self._by_fd[link.fd]
        self._connecting.discard(link)
        self._epoll.unregister(link.fd)
        link.incoming.close()
        link.outgoing.close()
        link.socket.close()

    def close(self) -> None:
        for node in self.nodes():
            self.drop(node)
        self._epoll.close()

    def send(self, node: str, request: Request, data: Buffer | None = None) -> None:
        """Sends a request, or queues it. `data` is not copied: leave it as it is until the answer is here."""
        link = self._links.get(node)
        if link is not None:
            link.outgoing.add(encode(request), data)
            if link.connected:
                self._flush(link)

    def poll(self, timeout_s: float) -> Iterator[Arrived | Lost]:
        """What comes within `timeout_s`, at once if something is there; ends then. A link that was lost is closed
        already. Only what is taken from here happens."""
        more, self._more = self._more, []
        if self._broken or more:
            timeout_s = 0.0
        elif self._connecting:
            timeout_s = min(timeout_s, min(link.connect_until for link in self._connecting) - time.monotonic())
        for link in more:
            if self._by_fd.get(link.fd) is link:
                yield from self._take(link)
        events = self._epoll.poll(min(max(0.0, timeout_s), _LONGEST_POLL_S))
        for link, what in [(self._by_fd[fd], what) for fd, what in events]:
            if self._by_fd.get(link.fd) is not link:
                continue  # dropped by who was told an earlier event
            if what & select.EPOLLOUT or not link.connected:
                if not self._connected(link):
                    continue
                self._flush(link)
            if what & ~select.EPOLLOUT and self._by_fd.get(link.fd) is link:
                yield from self._take(link)
        if self._connecting:
            self._give_up()
        while self._broken:
            yield self._broken.pop(0)

    def _take(self, link: _Link) -> Iterator[Arrived]:
        for _ in range(_TAKE_AT_ONCE):
            try:
                message = link.incoming.next()
                if message is None:
                    return
                answer = decode_answer(message.header, None if message.data is None else len(message.data))
            except ProtocolError as error:
                self._lose(link, f"broke the protocol: {error}")
                return
            except (Closed, OSError):
                self._lose(link, "connection lost")
                return
            yield Arrived(link.node, answer, message.data if message.data is not None else memoryview(b""))
            if self._links.get(link.node) is not link:
                return
            link.incoming.done()
        self._more.append(link)

    def _connected(self, link: _Link) -> bool:
        """Whether it is; if not, the link is lost or still under way."""
        if not link.connected:
            error = link.socket.getsockopt(sockets.SOL_SOCKET, sockets.SO_ERROR)
            if error:
                self._lose(link, "connection refused" if error == _REFUSED else f"can't connect: {os.strerror(error)}")
                return False
            link.connected = True
            self._connecting.discard(link)
        return True

    def _flush(self, link: _Link) -> None:
        try:
            link.outgoing.flush()
        except OSError:
            self._lose(link, "connection lost")
        else:
            self._watch(link)

    def _watch(self, link: _Link) -> None:
        interest = _IN_AND_OUT if len(link.outgoing) or not link.connected else _IN
        if interest != link.interest:
            link.interest = interest
            self._epoll.modify(link.fd, interest)

    def _give_up(self) -> None:
        """Those that did not connect in time."""
        now = time.monotonic()
        for link in [one for one in self._connecting if now >= one.connect_until]:
            self._lose(link, f"can't connect: no answer for {CONNECT_TIMEOUT_S:g} s")

    def _lose(self, link: _Link, reason: str) -> None:
        self.drop(link.node)
        self._broken.append(Lost(link.node, reason))
