"""What a chunk server (`fabric.images.server`) deals with: who has chunks, takes some in, looks on; and its figures.

All but `Desk.wake` is called on the server's thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fabric.images.protocol import Answer, GetChunk, GetManifest, Intake
from fabric.images.stretch import Stretch


@dataclass(slots=True)
class Counters:
    """Since the start, but for `peers` (with requests or chunks under way), `jobs` and `pushes`, which are of now.
    `rejected`: connections that were closed because they broke the protocol, were silent, or too many."""

    chunks_out: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    rejected: int = 0
    refused: int = 0
    peers: int = 0
    jobs: int = 0
    pushes: int = 0


class Source(Protocol):
    """What has chunks. Methods raise `ImageError`s; called on the server's thread."""

    def manifest_bytes(self, digest: str) -> bytes: ...

    def have(self, digest: str) -> bytes:
        """One bit a chunk."""

    def open_chunk(self, chunk: bytes) -> Stretch:
        """Its bytes, which have this hash. `NotYet` is only for a source that calls `ChunkServer.changed`."""


class TakesIn(Protocol):
    """Who does what is asked of storage agents alone (`fabric.images.intake`); called on the server's thread."""

    def open(self, desk: Desk) -> None: ...

    def handle(self, peer: int, request: Intake, data: memoryview) -> None: ...

    def gone(self, peer: int) -> None:
        """Its connection is closed."""

    def look(self) -> None:
        """Somebody has called `Desk.wake`."""

    def sweep(self) -> None: ...

    def count(self) -> tuple[int, int]:
        """Jobs and pushes."""

    def close(self) -> None:
        """Once the server's thread has ended."""


class Desk(Protocol):
    """What the server does for who takes in."""

    def answer(self, peer: int, answer: Answer) -> None:
        """Nothing happens if the peer is gone."""

    def wake(self) -> None:
        """From any thread: call `look` soon."""


class Watcher(Protocol):
    """Sees what is fetched, on the server's thread."""

    def before(self, request: GetManifest | GetChunk) -> None:
        """It came, and is not answered yet."""

    def after(self, request: GetManifest | GetChunk) -> None:
        """Its answer was handed to the kernel."""
