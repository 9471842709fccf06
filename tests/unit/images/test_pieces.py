"""What a node gives to its mates: what has come and was verified, from wherever it is by now; nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fabric.images.cache import ImageCache
from fabric.images.errors import ChunkCorrupt, NotHeld, NotYet
from fabric.images.mates import bits
from fabric.images.pieces import HOT_CHUNKS, KEEP_S, Pieces
from tests.unit.images.content import Image, image_of, random_image
from tests.unit.images.rack import nothing_cached
from tests.unit.images.test_archive import START, member, tar_of

IMAGE = random_image(5 * 4096 + 9)


class Coming:
    """An image that is being fetched into a file."""

    def __init__(self, pieces: Pieces, image: Image, path: Path) -> None:
        self.pieces, self.image = pieces, image
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)
        pieces.begin(image.digest, image.manifest, self.fd)

    def take(self, *indices: int) -> None:
        for index in indices:
            os.pwrite(self.fd, self.image.chunks[index].data, index * self.image.manifest.chunk_bytes)
            self.pieces.arrived(self.image.digest, index, self.image.chunks[index].data)

    def read(self, index: int) -> bytes:
        return self.pieces.read_chunk(self.image.chunks[index].hash)

    def close(self) -> None:
        os.close(self.fd)


def test_what_has_come_is_given_and_what_comes_is_waited_for(tmp_path: Path) -> None:
    pieces = Pieces(nothing_cached)
    woken: list[int] = []
    pieces.changed = lambda: woken.append(1)
    coming = Coming(pieces, IMAGE, tmp_path / "a")
    coming.take(1, 4)
    coming.close()  # the fetch is done with it
    assert coming.read(4) == IMAGE.chunks[4].data
    assert len(woken) == 2
    with pytest.raises(NotYet):
        coming.read(0)
    with pytest.raises(NotHeld):
        pieces.read_chunk(b"x" * 32)
    pieces.coming(IMAGE.digest, frozenset({0}))
    assert pieces.have(IMAGE.digest) == bits([True, True, False, False, True, False])
    assert pieces.manifest_bytes(IMAGE.digest) == IMAGE.manifest.encode()
    pieces.end(IMAGE.digest)
    for read in (lambda: coming.read(4), lambda: pieces.have(IMAGE.digest)):
        with pytest.raises(NotHeld):
            read()


def test_bytes_that_rotted_after_they_were_written_are_not_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fabric.images.pieces.HOT_CHUNKS", 0)
    coming = Coming(Pieces(nothing_cached), IMAGE, tmp_path / "a")
    coming.take(0, 1)
    os.pwrite(coming.fd, b"rot", 4096)
    assert coming.read(0) == IMAGE.chunks[0].data
    with pytest.raises(ChunkCorrupt):
        coming.read(1)
    with pytest.raises(NotHeld):
        coming.read(0)
    coming.take(2)  # the fetch goes on, for itself
    coming.close()


def test_what_came_last_is_given_from_memory(tmp_path: Path) -> None:
    image = random_image(3 * HOT_CHUNKS * 4096, seed=3)
    pieces = Pieces(nothing_cached)
    coming = Coming(pieces, image, tmp_path / "a")
    coming.take(*range(len(image.chunks)))
    os.ftruncate(coming.fd, 0)
    assert coming.read(len(image.chunks) - HOT_CHUNKS) == image.chunks[-HOT_CHUNKS].data
    pieces.settled(image.digest)
    with pytest.raises(NotHeld):
        coming.read(len(image.chunks) - 1)  # nothing comes any more, so nothing is kept
    coming.close()


def cached(tmp_path: Path, between: Callable[[Coming], None]) -> tuple[Pieces, ImageCache, Image]:
    """An image that was fetched and unpacked; `between`: while it is unpacked."""
    image = image_of(tar_of(START, member("data", os.urandom(300_000)), member("b", b"b" * 9000)), 4096)
    cache = ImageCache(tmp_path / "cache", 600_000)
    pieces = Pieces(cache.parts)
    blob = cache.incoming(image.digest, 0)
    coming = Coming(pieces, image, blob)
    coming.take(*range(len(image.chunks)))
    pieces.moving(image.digest)
    cache.admit(image.digest, blob)
    between(coming)
    pieces.settled(image.digest)
    coming.close()
    return pieces, cache, image


def test_while_it_is_unpacked_nothing_wrong_is_given(tmp_path: Path) -> None:
    def look(coming: Coming) -> None:
        waited = 0
        for index, chunk in enumerate(coming.image.chunks):
            try:
                assert coming.read(index) == chunk.data
            except NotYet:
                waited += 1
        assert 0 < waited < len(coming.image.chunks), "the large body has moved out, the rest is there"

    pieces, cache, image = cached(tmp_path, look)
    for chunk in image.chunks:
        assert pieces.read_chunk(chunk.hash) == chunk.data
    cache.close()


def test_what_was_evicted_is_not_here_any_more(tmp_path: Path) -> None:
    pieces, cache, image = cached(tmp_path, lambda coming: None)
    assert pieces.read_chunk(image.chunks[7].hash) == image.chunks[7].data
    cache.incoming("b3:" + 64 * "0", 500_000)
    with pytest.raises(NotHeld):
        pieces.read_chunk(image.chunks[7].hash)
    assert len(pieces) == 0
    cache.close()


def test_what_nobody_asks_for_is_forgotten(tmp_path: Path) -> None:
    now = 0.0
    pieces = Pieces(nothing_cached, lambda: now)
    first, second = Coming(pieces, IMAGE, tmp_path / "a"), Coming(pieces, random_image(9000, 2), tmp_path / "b")
    pieces.settled(IMAGE.digest)
    now = KEEP_S + 1
    pieces.tidy()
    assert len(pieces) == 1, "one is still under way"
    pieces.end(second.image.digest)
    assert len(pieces) == 0
    first.close()
    second.close()
