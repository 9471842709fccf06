"""Images: their contents, the chunk store of a storage machine, the cache of a compute machine. Both outlive agents.

Theory of operation. An image is a few chunks of random bytes with their real hashes in a real manifest. The store keeps
`fabric.images.ledger.Ledger` beside the bytes, as the real one does, and checks a chunk's hash where the real one does:
when it is read. A chunk that rots (`rot`) has other bytes from then on, and nobody knows until it is read.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from fabric.images.ledger import Ledger
from fabric.images.manifest import MIN_CHUNK_BYTES, Manifest, chunk_hash


@dataclass(frozen=True, slots=True)
class Content:
    """An image: what a push brings."""

    name: str
    digest: str
    manifest: Manifest
    chunks: Mapping[bytes, bytes]

    @property
    def whole(self) -> bytes:
        return b"".join(self.chunks[one] for one in self.manifest.chunks)


def make_content(name: str, chunks: int, rng: random.Random) -> Content:
    """`chunks` full chunks of random bytes."""
    parts = [rng.randbytes(MIN_CHUNK_BYTES) for _ in range(chunks)]
    hashes = tuple(chunk_hash(part) for part in parts)
    manifest = Manifest(MIN_CHUNK_BYTES * chunks, MIN_CHUNK_BYTES, hashes)
    return Content(name, manifest.digest, manifest, dict(zip(hashes, parts, strict=True)))


class Full(Exception):
    """The disk takes no more."""


class Store:
    """The chunks of one storage machine."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.full = False
        """The disk refuses writes, whatever the limit says."""
        self._ledger = Ledger()
        self._data: dict[bytes, bytes] = {}
        self._used = 0

    def held(self) -> tuple[str, ...]:
        return tuple(sorted(digest for digest, image in self._ledger.images.items() if not image.missing))

    def has(self, digest: str) -> bool:
        return self._ledger.whole(digest)

    def damaged(self) -> tuple[str, ...]:
        return tuple(sorted(digest for digest, image in self._ledger.images.items() if image.missing))

    def scrub(self) -> None:
        """Read everything: what has rotted is found out."""
        for chunk in list(self._data):
            self.read(chunk)

    def manifest(self, digest: str) -> Manifest | None:
        """Of an image that is here, whole or damaged."""
        image = self._ledger.images.get(digest)
        return image.manifest if image is not None else None

    @property
    def free_bytes(self) -> int:
        return 0 if self.full else max(0, self.max_bytes - self._used)

    def read(self, chunk: bytes) -> bytes | None:
        """The chunk's bytes if it is here and has its hash; one that has not is forgotten."""
        data = self._data.get(chunk)
        if data is None or not self._ledger.is_sound(chunk):
            return None
        if chunk_hash(data) == chunk:
            return data
        self._ledger.lost(chunk)
        del self._data[chunk]
        self._used -= len(data)
        return None

    def put(self, digest: str, manifest: Manifest, chunks: Mapping[bytes, bytes]) -> None:
        """Hold an image; `chunks`: those that were not here. Raises Full."""
        if self.full or sum(map(len, chunks.values())) > self.free_bytes:
            raise Full
        if digest not in self._ledger.images:
            self._ledger.add_image(digest, manifest, 0)
        for chunk, data in chunks.items():
            if not self._ledger.is_sound(chunk):
                self._data[chunk] = data
                self._used += len(data)
                self._ledger.written(chunk)
        for image in self._ledger.images.values():
            image.missing = {one for one in image.missing if not self._ledger.is_sound(one)}

    def drop(self, digest: str) -> int:
        """Bytes freed."""
        image = self._ledger.images.pop(digest, None)
        if image is None:
            return 0
        before = self._used
        for chunk in sorted(set(image.manifest.chunks)):
            freed = self._ledger.release(chunk)
            if freed is not None and freed.sound:
                self._used -= len(self._data.pop(chunk))
        return before - self._used

    def truly_holds(self, content: Content) -> bool:
        """Whether every byte of it is here and right: for those who look from above."""
        return self.has(content.digest) and all(self._data.get(one) == data for one, data in content.chunks.items())

    def has_sound(self, chunk: bytes) -> bool:
        """As `truly_holds`, of one chunk."""
        data = self._data.get(chunk)
        return data is not None and chunk_hash(data) == chunk

    def rot(self, chunk: bytes) -> bool:
        """One bit of it changes. False when it is not here."""
        data = self._data.get(chunk)
        if data is None:
            return False
        self._data[chunk] = bytes([data[0] ^ 1]) + data[1:]
        return True


@dataclass(slots=True)
class _Entry:
    data: bytes
    pinned: bool = False


@dataclass(slots=True)
class Cache:
    """At most `max_images`, those that are not pinned being evicted, the least recently used first."""

    max_images: int
    full: bool = False
    entries: OrderedDict[str, _Entry] = field(default_factory=OrderedDict)

    def get(self, digest: str) -> bytes | None:
        entry = self.entries.get(digest)
        if entry is None:
            return None
        self.entries.move_to_end(digest)
        return entry.data

    def pin(self, digest: str, pinned: bool) -> None:
        entry = self.entries.get(digest)
        if entry is not None:
            entry.pinned = pinned

    def unpin_all(self) -> None:
        """Pins are not kept over a restart of the agent."""
        for entry in self.entries.values():
            entry.pinned = False

    def make_room(self) -> None:
        """For one more. Raises Full."""
        if self.full:
            raise Full
        while len(self.entries) >= self.max_images:
            victim = next((digest for digest, entry in self.entries.items() if not entry.pinned), None)
            if victim is None:
                raise Full
            del self.entries[victim]

    def admit(self, digest: str, data: bytes) -> None:
        """Pinned. Raises Full."""
        if digest not in self.entries:
            self.make_room()
            self.entries[digest] = _Entry(data)
        self.pin(digest, True)
