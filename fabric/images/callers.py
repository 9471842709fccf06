"""One connection to a chunk server: what its peer has asked for, and is owed."""

from __future__ import annotations

import math
import select
import socket as sockets
from collections import deque

from fabric.images.protocol import GetChunk
from fabric.images.wire import Buffers, Incoming, Outgoing

PEER_REQUESTS = 32
"""Requests of one peer that may be unanswered, or answered and not read by it; a fetch has `transfer.WINDOW` at a time.
"""
PEER_BYTES = 8 << 20
"""Of answers that are kept in memory for one peer; one may go beyond."""


class Caller:
    """For the chunk server's thread."""

    def __init__(self, peer: int, socket: sockets.socket, buffers: Buffers, max_data_bytes: int) -> None:
        """`peer`: by which it is known; no two connections of one server have the same."""
        self.peer, self.socket, self.fd = peer, socket, socket.fileno()
        self.incoming = Incoming(socket, buffers, max_data_bytes)
        self.outgoing = Outgoing(socket)
        self.waiting: deque[GetChunk] = deque()
        """Chunks that it is to be sent."""
        self.parked = 0
        """Chunks that it asked for and that have not come yet."""
        self.sending: tuple[GetChunk, int] | None = None
        """The chunk that is under way, and its bytes."""
        self.interest = int(select.EPOLLIN)
        self.busy = True
        """It asked for something lately, or is owed something."""
        self.busy_until = math.inf
        """When it was last seen to be busy."""
        self._moved = (0, 0)
        self._moved_at: float | None = None

    @property
    def may_ask(self) -> bool:
        """Whether anything more is read of it."""
        if self.incoming.hungry:
            return False
        owed = len(self.outgoing)
        if owed + len(self.waiting) + self.parked >= PEER_REQUESTS:
            return False
        return not owed or self.outgoing.memory_bytes < PEER_BYTES

    def rest(self, now: float) -> None:
        """Somebody looks after it now and then: is it still busy?"""
        if self.busy:
            self.busy_until = now
        self.busy = bool(len(self.outgoing) or self.waiting or self.parked or self.incoming.partial)

    def moved_at(self, now: float) -> float:
        """Since when it has neither taken what it is owed, nor sent the rest of what it began; `now`: nothing is to be
        moved, or something was."""
        begun = self.incoming.partial and not self.incoming.hungry  # else it is we who keep it waiting
        if not (len(self.outgoing) or begun):
            self._moved_at = now
            return now
        moved = (self.incoming.came(), self.outgoing.arrived())  # a chunk may be with the kernels for longer than that
        if moved != self._moved or self._moved_at is None:
            self._moved, self._moved_at = moved, now
        return self._moved_at

    def close(self) -> None:
        self.incoming.close()
        self.outgoing.close()
        self.socket.close()
