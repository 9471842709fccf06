"""Manifests: an image as the list of the hashes of its chunks.

An image is cut in chunks of `CHUNK_BYTES`; the last may be shorter. Each chunk is known by its blake3 hash, and the
image by the hash of the manifest that lists them (a hash of hashes): whoever knows the digest can check the manifest,
and whoever has the manifest can check each chunk by itself, in any order, from any holder. That is what lets a node
fetch from two holders at once and believe neither.

The encoding is canonical: one manifest has one encoding, so one content has one digest. It is the MessagePack array

    [format = 1, size in bytes, chunk size in bytes, all chunk hashes one after the other]

in its shortest form. `Manifest.decode` refuses everything else, also another encoding of the same values.

`Chunker` cuts a stream of any pieces; `ContentDigest` hashes it on the way when the user gave a digest to compare
with.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
from blake3 import blake3

from fabric.images.errors import BadDigest, DigestMismatch, EmptyImage, ImageTooLarge, ManifestError

CHUNK_BYTES = 1 << 20
"""1 MiB: with a window of 8 this was as fast as 4 MiB over loopback (bench/RESULTS.md), at a quarter of the memory.
"""
MIN_CHUNK_BYTES = 1 << 12
HASH_BYTES = 32
MAX_CHUNKS = 1 << 17
MAX_IMAGE_BYTES = MAX_CHUNKS * CHUNK_BYTES
"""128 GiB: the largest image that one manifest can name."""
MAX_MANIFEST_BYTES = MAX_CHUNKS * HASH_BYTES + 64
"""4 MiB and the few bytes around the hashes."""

DIGEST_PATTERN = r"^b3:[0-9a-f]{64}\Z"
_FORMAT = 1
_DIGEST = re.compile(DIGEST_PATTERN)
_CONTENT_DIGEST = re.compile(r"^(b3|sha256):([0-9a-f]{64})\Z")
_DECODER = msgspec.msgpack.Decoder(tuple[int, int, int, bytes])

Buffer = bytes | bytearray | memoryview


def chunk_hash(data: Buffer) -> bytes:
    """The 32-byte blake3 hash by which a chunk is known."""
    return blake3(data).digest()


def digest_of(manifest_bytes: Buffer) -> str:
    """The digest of the image whose encoded manifest this is."""
    return "b3:" + blake3(manifest_bytes).hexdigest()


def digest_hex(digest: str) -> str:
    """The 64 hex digits of an image digest. Raises `BadDigest` for anything that is none."""
    if not _DIGEST.match(digest):
        raise BadDigest(f"expected an image digest such as b3:<64 lower-case hex digits>, found {digest[:80]!r}")
    return digest[3:]


@dataclass(frozen=True, slots=True)
class Manifest:
    """`size`: bytes of the image; `chunks[i]`: the hash of its bytes from `i * chunk_bytes` on."""

    size: int
    chunk_bytes: int
    chunks: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if not MIN_CHUNK_BYTES <= self.chunk_bytes <= CHUNK_BYTES:
            raise ManifestError(
                f"manifest: expected a chunk size of {MIN_CHUNK_BYTES} to {CHUNK_BYTES} bytes, found {self.chunk_bytes}"
            )
        if self.size < 1:
            raise ManifestError(f"manifest: expected an image of at least 1 byte, found a size of {self.size}")
        expected = -(-self.size // self.chunk_bytes)
        if expected > MAX_CHUNKS:
            raise ManifestError(f"manifest: expected at most {MAX_CHUNKS} chunks, found a size that takes {expected}")
        if len(self.chunks) != expected:
            raise ManifestError(
                f"manifest: {self.size} bytes in chunks of {self.chunk_bytes} take {expected} hashes, "
                f"found {len(self.chunks)}"
            )
        if any(len(chunk) != HASH_BYTES for chunk in self.chunks):
            raise ManifestError(f"manifest: expected hashes of {HASH_BYTES} bytes, found another length")

    def encode(self) -> bytes:
        return msgspec.msgpack.encode((_FORMAT, self.size, self.chunk_bytes, b"".join(self.chunks)))

    @property
    def digest(self) -> str:
        return digest_of(self.encode())

    def size_of(self, index: int) -> int:
        """Bytes of chunk `index`."""
        return min(self.chunk_bytes, self.size - index * self.chunk_bytes)

    @classmethod
    def decode(cls, data: Buffer) -> Manifest:
        """The manifest that `data` encodes. Raises `ManifestError`; never reads more than `MAX_MANIFEST_BYTES`."""
        if len(data) > MAX_MANIFEST_BYTES:
            raise ManifestError(f"manifest: expected at most {MAX_MANIFEST_BYTES} bytes, found {len(data)}")
        try:
            version, size, chunk_bytes, hashes = _DECODER.decode(data)
        except msgspec.MsgspecError as error:
            raise ManifestError(f"manifest: expected [format, size, chunk size, hashes], found: {error}") from None
        if version != _FORMAT:
            raise ManifestError(f"manifest: expected format {_FORMAT}, found {version}")
        if len(hashes) % HASH_BYTES:
            raise ManifestError(f"manifest: expected hashes of {HASH_BYTES} bytes each, found {len(hashes)} in all")
        manifest = cls(size, chunk_bytes, tuple(hashes[i : i + HASH_BYTES] for i in range(0, len(hashes), HASH_BYTES)))
        if manifest.encode() != bytes(data):
            raise ManifestError("manifest: expected the canonical encoding, found another one of the same values")
        return manifest


@dataclass(frozen=True, slots=True)
class Chunk:
    hash: bytes
    data: Buffer


class Chunker:
    """Cuts a stream into chunks and remembers their hashes. At most one chunk is in its hands at a time."""

    def __init__(self, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.size = 0
        self._chunk_bytes = chunk_bytes
        self._hashes: list[bytes] = []
        self._chunk = bytearray(chunk_bytes)
        self._filled = 0

    def feed(self, data: Buffer) -> Iterator[Chunk]:
        """The chunks that `data` completes, one at a time: each is a buffer of its own, to keep or to send without a
        copy.
        """
        view = memoryview(data)
        while view:
            taken = min(len(view), self._chunk_bytes - self._filled)
            if self.size + taken > MAX_CHUNKS * self._chunk_bytes:
                raise ImageTooLarge(f"expected an image of at most {MAX_CHUNKS * self._chunk_bytes} bytes, found more")
            self._chunk[self._filled : self._filled + taken] = view[:taken]
            self._filled += taken
            self.size += taken
            view = view[taken:]
            if self._filled == self._chunk_bytes:
                yield self._cut()

    def finish(self) -> tuple[Chunk | None, Manifest]:
        """The last, shorter chunk if there is one, and the manifest. Raises `EmptyImage`."""
        if not self.size:
            raise EmptyImage("expected an image of at least 1 byte, found 0 bytes")
        last = self._cut() if self._filled else None
        return last, Manifest(self.size, self._chunk_bytes, tuple(self._hashes))

    def _cut(self) -> Chunk:
        data: Buffer = self._chunk if self._filled == self._chunk_bytes else bytes(self._chunk[: self._filled])
        chunk = Chunk(chunk_hash(data), data)
        self._hashes.append(chunk.hash)
        self._chunk, self._filled = bytearray(self._chunk_bytes), 0
        return chunk


class ContentDigest:
    """Compares a stream with the digest the user gave for it: `sha256:<hex>` or `b3:<hex>` of the whole content.

    A `b3:` digest may also be the image digest, as the API shows it, so that what was read there can be given back.
    """

    def __init__(self, expected: str) -> None:
        match = _CONTENT_DIGEST.match(expected)
        if match is None:
            raise BadDigest(
                f"expected sha256:<64 lower-case hex digits> or b3:<64 lower-case hex digits>, found {expected[:80]!r}"
            )
        self.expected = expected
        self._kind = match[1]
        self._hash = hashlib.sha256() if self._kind == "sha256" else blake3()

    def update(self, data: Buffer) -> None:
        self._hash.update(data)

    def check(self, image_digest: str) -> str:
        """The content digest found, written as the expected one. Raises `DigestMismatch`."""
        found = f"{self._kind}:{self._hash.hexdigest()}"
        if self.expected not in (found, image_digest):
            raise DigestMismatch(
                f"expected content with digest {self.expected}, found {found}: send it again or fix it"
            )
        return found
