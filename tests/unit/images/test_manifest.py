"""Manifests: one content has one encoding and one digest, and nothing else decodes."""

from __future__ import annotations

import hashlib
import random
from contextlib import suppress

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from fabric.images.errors import BadDigest, DigestMismatch, EmptyImage, ImageTooLarge, ManifestError
from fabric.images.manifest import (
    CHUNK_BYTES,
    MAX_CHUNKS,
    MAX_MANIFEST_BYTES,
    MIN_CHUNK_BYTES,
    Chunk,
    Chunker,
    ContentDigest,
    Manifest,
    chunk_hash,
    digest_hex,
    digest_of,
)


def cut(data: bytes, pieces: list[int], chunk_bytes: int = MIN_CHUNK_BYTES) -> tuple[list[Chunk], Manifest]:
    chunker = Chunker(chunk_bytes)
    chunks: list[Chunk] = []
    at = 0
    for piece in [*pieces, len(data)]:
        chunks += chunker.feed(data[at : at + piece])
        at = min(len(data), at + piece)
    last, manifest = chunker.finish()
    return chunks + ([last] if last else []), manifest


@given(size=st.integers(1, 5 * MIN_CHUNK_BYTES), pieces=st.lists(st.integers(1, 9000), max_size=20), seed=st.integers())
def test_however_a_stream_is_fed_it_has_the_same_chunks(size: int, pieces: list[int], seed: int) -> None:
    data = random.Random(seed).randbytes(size)
    chunks, manifest = cut(data, pieces)
    assert b"".join(bytes(chunk.data) for chunk in chunks) == data
    assert [chunk.hash for chunk in chunks] == [chunk_hash(chunk.data) for chunk in chunks] == list(manifest.chunks)
    assert [len(chunk.data) for chunk in chunks] == [manifest.size_of(i) for i in range(len(chunks))]
    assert manifest == cut(data, [])[1]
    assert Manifest.decode(manifest.encode()) == manifest
    assert digest_of(manifest.encode()) == manifest.digest


@given(st.binary(max_size=200))
def test_random_bytes_are_no_manifest(data: bytes) -> None:
    with pytest.raises(ManifestError):
        Manifest.decode(data)


@given(position=st.integers(0), bit=st.integers(0, 7))
def test_one_flipped_bit_is_refused_or_changes_the_digest(position: int, bit: int) -> None:
    manifest = cut(b"x" * 10_000, [])[1]
    data = bytearray(manifest.encode())
    data[position % len(data)] ^= 1 << bit
    with suppress(ManifestError):
        assert Manifest.decode(data).digest != manifest.digest


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ((2, 10, CHUNK_BYTES, b"h" * 32), "format 1"),
        ((1, 0, CHUNK_BYTES, b""), "at least 1 byte"),
        ((1, 10, CHUNK_BYTES, b"h" * 31), "hashes of 32"),
        ((1, 10, CHUNK_BYTES, b"h" * 64), "take 1 hashes, found 2"),
        ((1, 10, CHUNK_BYTES * 2, b"h" * 32), "chunk size"),
        ((1, 10, MIN_CHUNK_BYTES - 1, b"h" * 32), "chunk size"),
        ((1, MAX_CHUNKS * CHUNK_BYTES + 1, CHUNK_BYTES, b"h" * 32), f"at most {MAX_CHUNKS}"),
        ((1, "10", CHUNK_BYTES, b"h" * 32), "found"),
        ((1, 10, CHUNK_BYTES), "found"),
    ],
)
def test_out_of_bounds_is_refused_with_what_was_expected(fields: tuple[object, ...], expected: str) -> None:
    with pytest.raises(ManifestError, match=expected):
        Manifest.decode(msgspec.msgpack.encode(fields))


def test_another_encoding_of_the_same_values_is_refused() -> None:
    canonical = Manifest(10, CHUNK_BYTES, (b"h" * 32,)).encode()
    assert canonical[:2] == b"\x94\x01"
    with pytest.raises(ManifestError, match="canonical"):
        Manifest.decode(b"\x94\xcc\x01" + canonical[2:])  # the format as a two-byte integer
    with pytest.raises(ManifestError):
        Manifest.decode(canonical + b"\x00")


def test_a_huge_manifest_is_not_even_parsed() -> None:
    with pytest.raises(ManifestError, match="at most"):
        Manifest.decode(bytes(MAX_MANIFEST_BYTES + 1))


def test_the_largest_manifest_fits_its_bound() -> None:
    largest = Manifest(MAX_CHUNKS * CHUNK_BYTES, CHUNK_BYTES, (b"h" * 32,) * MAX_CHUNKS)
    assert len(largest.encode()) <= MAX_MANIFEST_BYTES
    assert Manifest.decode(largest.encode()) == largest


def test_an_empty_stream_is_no_image() -> None:
    with pytest.raises(EmptyImage):
        Chunker().finish()


def test_an_image_of_too_many_chunks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fabric.images.manifest.MAX_CHUNKS", 2)
    chunker = Chunker(MIN_CHUNK_BYTES)
    assert len(list(chunker.feed(bytes(2 * MIN_CHUNK_BYTES)))) == 2
    with pytest.raises(ImageTooLarge, match=str(2 * MIN_CHUNK_BYTES)):
        list(chunker.feed(b"x"))


@pytest.mark.parametrize(
    "digest", ["", "b3:", "b3:" + "g" * 64, "sha256:" + "a" * 64, "b3:" + "A" * 64, "b3:" + "a" * 64 + "\n"]
)
def test_a_bad_image_digest_is_named(digest: str) -> None:
    with pytest.raises(BadDigest, match="expected an image digest"):
        digest_hex(digest)


def test_a_content_digest_is_compared() -> None:
    data = b"some content"
    image = "b3:" + "0" * 64
    for expected in ("sha256:" + hashlib.sha256(data).hexdigest(), "b3:" + blake3(data).hexdigest()):
        digest = ContentDigest(expected)
        digest.update(data[:5])
        digest.update(data[5:])
        assert digest.check(image) == expected
    with pytest.raises(DigestMismatch, match="expected content"):
        ContentDigest("sha256:" + "0" * 64).check(image)
    ContentDigest(image).check(image)
    with pytest.raises(BadDigest):
        ContentDigest("md5:" + "0" * 32)
