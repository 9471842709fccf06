"""Requests for chunks that have not come yet: who waits for which. `MAX_PARKED` in all.

For the chunk server's thread, but for `awaits`, which may be asked on any.
"""

from __future__ import annotations

from fabric.images.errors import StoreBusy
from fabric.images.protocol import GetChunk

MAX_PARKED = 512

Turn = tuple[int, GetChunk]
"""A peer, and what it asks."""


class Parked:
    def __init__(self) -> None:
        self._turns: dict[bytes, list[Turn]] = {}  # by the hash of the chunk
        self._count = 0

    def awaits(self, chunk: bytes | None) -> bool:
        """Whether anybody waits for this chunk, or for any (None)."""
        return bool(self._turns) if chunk is None else chunk in self._turns

    def add(self, turn: Turn) -> None:
        """Raises `StoreBusy`."""
        if self._count >= MAX_PARKED:
            raise StoreBusy(f"{MAX_PARKED} others wait for chunks already: try again later")
        self._turns.setdefault(turn[1].hash, []).append(turn)
        self._count += 1

    def take(self, chunk: bytes | None) -> list[Turn]:
        """Those who wait for this chunk, or for any (None); they wait no more."""
        chunks = list(self._turns) if chunk is None else [chunk]
        taken = [turn for one in chunks for turn in self._turns.pop(one, ())]
        self._count -= len(taken)
        return taken

    def one_each(self) -> list[Turn]:
        """For each peer that waits, one of its requests."""
        return list({turn[0]: turn for turns in self._turns.values() for turn in turns}.values())

    def forget(self, turn: Turn) -> None:
        """One request."""
        waiting = self._turns[turn[1].hash]
        waiting.remove(turn)
        self._count -= 1
        if not waiting:
            del self._turns[turn[1].hash]

    def gone(self, peer: int) -> None:
        """All of a peer that can't be reached."""
        for turn in [one for turns in self._turns.values() for one in turns if one[0] == peer]:
            self.forget(turn)
