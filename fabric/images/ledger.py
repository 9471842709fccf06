"""What refers to which chunk, and which images are whole. Tables only: no files, no lock; the store has both.

A chunk is in the ledger as long as something refers to it: each image that names it counts once, each push that
brought it, and each `put` that is writing it. Two pushes that share chunks, or a push that brings a chunk of an image
that is being dropped, therefore need no rule of their own.

A chunk is sound when its file is there and nothing is known against it. An image is whole when all its chunks are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fabric.images.manifest import Manifest


@dataclass(slots=True)
class ChunkEntry:
    """`size` in bytes; `durable`: it survives a loss of power; `writes`: how often it was written, to tell files
    apart; `checked_at`: when it was last read and had its hash, by the store's clock.
    """

    size: int
    refs: int = 0
    sound: bool = False
    durable: bool = False
    writes: int = 0
    checked_at: float = -math.inf


@dataclass(slots=True)
class ImageEntry:
    """`missing`: those of its chunks that are not sound."""

    manifest: Manifest
    file_bytes: int
    missing: set[bytes]


class Ledger:
    def __init__(self) -> None:
        self.chunks: dict[bytes, ChunkEntry] = {}
        self.images: dict[str, ImageEntry] = {}

    def whole(self, digest: str) -> bool:
        image = self.images.get(digest)
        return image is not None and not image.missing

    def is_sound(self, chunk: bytes) -> bool:
        entry = self.chunks.get(chunk)
        return entry is not None and entry.sound

    def refer(self, chunk: bytes, size: int) -> ChunkEntry:
        """One reference more; the chunk is not sound if it is new."""
        entry = self.chunks.setdefault(chunk, ChunkEntry(size))
        entry.refs += 1
        return entry

    def release(self, chunk: bytes) -> ChunkEntry | None:
        """One reference less; the chunk, if that was the last one: it is forgotten, and its file is to be removed."""
        entry = self.chunks[chunk]
        entry.refs -= 1
        if entry.refs:
            return None
        del self.chunks[chunk]
        return entry

    def add_image(
        self, digest: str, manifest: Manifest, file_bytes: int, found: Mapping[bytes, int] | None = None
    ) -> ImageEntry:
        """`found`: chunk files that are there from before, with their sizes; they count as sound if the size is
        right.
        """
        sizes = {chunk: manifest.size_of(index) for index, chunk in enumerate(manifest.chunks)}
        missing: set[bytes] = set()
        for chunk, size in sizes.items():
            entry = self.refer(chunk, size)
            if found is not None and found.get(chunk) == size:
                entry.sound = entry.durable = True
            if not entry.sound:
                missing.add(chunk)
        image = self.images[digest] = ImageEntry(manifest, file_bytes, missing)
        return image

    def lost(self, chunk: bytes) -> bool:
        """The chunk's file is no good. False if that was known."""
        if not self.is_sound(chunk):
            return False
        entry = self.chunks[chunk]
        entry.sound = entry.durable = False
        for image in self.images.values():
            if chunk in image.manifest.chunks:
                image.missing.add(chunk)
        return True

    def written(self, chunk: bytes) -> None:
        """The chunk has a new file, which is not durable yet."""
        entry = self.chunks[chunk]
        entry.sound, entry.durable, entry.checked_at = True, False, -math.inf
        entry.writes += 1
        if entry.refs > 1:  # else only who wrote it knows it
            for image in self.images.values():
                image.missing.discard(chunk)
