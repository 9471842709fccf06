"""Images to test with: bytes, and what they are cut into."""

from __future__ import annotations

import random
from dataclasses import dataclass

from fabric.images.manifest import Chunk, Chunker, Manifest
from fabric.images.store import ChunkStore


@dataclass(frozen=True, slots=True)
class Image:
    data: bytes
    manifest: Manifest
    chunks: tuple[Chunk, ...]

    @property
    def digest(self) -> str:
        return self.manifest.digest


def image_of(data: bytes, chunk_bytes: int = 4096) -> Image:
    chunker = Chunker(chunk_bytes)
    chunks = list(chunker.feed(data))
    last, manifest = chunker.finish()
    return Image(data, manifest, (*chunks, last) if last else tuple(chunks))


def random_image(size: int, seed: int = 1, chunk_bytes: int = 4096) -> Image:
    return image_of(random.Random(seed).randbytes(size), chunk_bytes)


def put_image(store: ChunkStore, image: Image, push_id: str = "push") -> str:
    """The whole push, in one go."""
    store.begin(push_id)
    for chunk in image.chunks:
        store.put(push_id, chunk.hash, chunk.data)
    return store.commit(push_id, image.manifest.encode())


def read_image(store: ChunkStore, digest: str) -> bytes:
    manifest = Manifest.decode(store.manifest_bytes(digest))
    return b"".join(store.read_chunk(chunk) for chunk in manifest.chunks)
