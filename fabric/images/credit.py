"""Who may be sent the next chunk: turns, and credit that bounds what is in memory.

A chunk that was handed to ZeroMQ is "flying" until ZeroMQ has given it to the kernel, which its tracker tells. At
most `PEER_CHUNKS` fly to one peer and `ALL_CHUNKS` in all, whatever the peers ask for; a peer that reads slowly waits
for itself alone. Peers have turns, a chunk each.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Protocol

from fabric.images.protocol import GetChunk

PEER_CHUNKS = 4
ALL_CHUNKS = 16
"""16 MiB: the memory that serving may take."""
PEER_REQUESTS = 32
"""Requests of one peer that may wait; a fetch has `transfer.WINDOW` at a time."""
MAX_PEERS = 1024


class Flight(Protocol):
    """What tells that a chunk was given to the kernel: a `zmq.MessageTracker`."""

    @property
    def done(self) -> bool: ...


@dataclass(slots=True)
class _Peer:
    waiting: deque[GetChunk] = field(default_factory=deque)
    flying: list[Flight] = field(default_factory=list)


class ChunkQueue:
    def __init__(self) -> None:
        self._peers: OrderedDict[bytes, _Peer] = OrderedDict()

    def __len__(self) -> int:
        """Peers with requests or chunks under way."""
        return len(self._peers)

    @property
    def waiting(self) -> bool:
        """Whether any request waits."""
        return any(peer.waiting for peer in self._peers.values())

    def add(self, peer: bytes, request: GetChunk) -> bool:
        """Queues a request; False if too many wait already."""
        known = self._peers.get(peer)
        if known is None:
            if len(self._peers) >= MAX_PEERS:
                return False
            known = self._peers[peer] = _Peer()
        if len(known.waiting) >= PEER_REQUESTS:
            return False
        known.waiting.append(request)
        return True

    def next(self) -> tuple[bytes, GetChunk] | None:
        """The request to answer now, or None: nobody waits, or who waits has no credit."""
        flying = 0
        for peer in self._peers.values():
            if peer.flying:
                peer.flying = [flight for flight in peer.flying if not flight.done]
                flying += len(peer.flying)
        if flying >= ALL_CHUNKS:
            return None
        for name, peer in self._peers.items():
            if peer.waiting and len(peer.flying) < PEER_CHUNKS:
                self._peers.move_to_end(name)  # its next turn comes after everybody else's
                return name, peer.waiting.popleft()
        return None

    def sent(self, peer: bytes, flight: Flight) -> None:
        self._peers[peer].flying.append(flight)

    def gone(self, peer: bytes) -> None:
        """Forgets a peer that can't be reached and what it waited for."""
        self._peers.pop(peer, None)

    def tidy(self) -> None:
        """Forgets the peers that have nothing under way."""
        for name in [n for n, p in self._peers.items() if not p.waiting and all(flight.done for flight in p.flying)]:
            del self._peers[name]
