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
from fabric.images.placing import Placer
from fabric.images.tarwalk import Limits
from tests.unit.images.content import Image, image_of, random_image
from tests.unit.images.rack import nothing_cached
from tests.unit.images.test_archive import START, member, tar_of

IMAGE = random_image(5 * 4096 + 9)


class Coming:
    """An image that is being fetched into a file; with `bodies`, large ones are placed there."""

    def __init__(self, pieces: Pieces, image: Image, path: Path, bodies: Path | None = None) -> None:
        self.pieces, self.image = pieces, image
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)
        self.placer = Placer(self.fd, bodies, image.manifest.size, image.manifest.chunk_bytes, Limits())
        pieces.begin(image.digest, image.manifest, self.placer.reader())

    def take(self, *indices: int) -> None:
        for index in indices:
            self.placer.write(index, self.image.chunks[index].data)
            self.pieces.arrived(self.image.digest, index, self.image.chunks[index].data)

    def read(self, index: int) -> bytes:
        return self.pieces.read_chunk(self.image.chunks[index].hash)

    def close(self) -> None:
        os.close(self.fd)


def test_what_has_come_is_given_and_what_comes_is_waited_for(tmp_path: Path) -> None:
    pieces = Pieces(nothing_cached)
    woken: list[bytes | None] = []
    pieces.changed = woken.append
    coming = Coming(pieces, IMAGE, tmp_path / "a")
    coming.take(1, 4)
    coming.close()  # the fetch is done with it
    assert coming.read(4) == IMAGE.chunks[4].data
    assert woken == [IMAGE.chunks[1].hash, IMAGE.chunks[4].hash]
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


def test_what_cannot_be_read_any_more_is_not_given(tmp_path: Path) -> None:
    coming = Coming(Pieces(nothing_cached), IMAGE, tmp_path / "a")
    coming.take(0, 5)
    os.ftruncate(coming.fd, 4096)
    assert coming.read(0) == IMAGE.chunks[0].data
    with pytest.raises(ChunkCorrupt):
        coming.read(5)
    with pytest.raises(NotHeld):
        coming.read(0)
    coming.take(2)  # the fetch goes on, for itself
    coming.close()


def test_what_the_holders_gave_last_or_somebody_waited_for_is_given_from_memory(tmp_path: Path) -> None:
    image = random_image(3 * HOT_CHUNKS * 4096, seed=3)
    pieces = Pieces(nothing_cached)
    coming = Coming(pieces, image, tmp_path / "a")
    last = len(image.chunks) - 1
    with pytest.raises(NotYet):
        coming.read(1)
    pieces.coming(image.digest, frozenset(range(last - HOT_CHUNKS + 1, last)))
    coming.take(*range(len(image.chunks)))
    os.ftruncate(coming.fd, 0)
    for index in (1, *range(last - HOT_CHUNKS + 1, last)):
        assert coming.read(index) == image.chunks[index].data
    pieces.settled(image.digest)
    with pytest.raises(NotHeld):
        coming.read(1)  # nothing comes any more, so nothing is kept
    coming.close()


def test_what_is_kept_in_memory_is_bounded_and_what_was_given_last_stays(tmp_path: Path) -> None:
    image = random_image((HOT_CHUNKS + 2) * 4096, seed=4)
    pieces = Pieces(nothing_cached)
    coming = Coming(pieces, image, tmp_path / "a")
    pieces.coming(image.digest, frozenset(range(len(image.chunks))))
    coming.take(*range(HOT_CHUNKS))
    coming.read(0)
    coming.take(HOT_CHUNKS, HOT_CHUNKS + 1)
    os.ftruncate(coming.fd, 0)
    assert coming.read(0) == image.chunks[0].data
    with pytest.raises(ChunkCorrupt):
        coming.read(1)
    coming.close()


def cached(tmp_path: Path, between: Callable[[Coming], None], place: bool = True) -> tuple[Pieces, ImageCache, Image]:
    """An image that was fetched and unpacked; `between`: while it is unpacked."""
    image = image_of(tar_of(START, member("data", os.urandom(300_000)), member("b", b"b" * 9000)), 4096)
    cache = ImageCache(tmp_path / "cache", 600_000)
    pieces = Pieces(cache.parts)
    blob = cache.incoming(image.digest, 0)
    coming = Coming(pieces, image, blob, tmp_path / "bodies" if place else None)
    coming.take(*range(len(image.chunks)))
    pieces.moving(image.digest)
    if place:
        cache.admit(image.digest, blob, coming.placer.placed())
    else:
        cache.admit(image.digest, blob)
    between(coming)
    pieces.settled(image.digest)
    coming.close()
    return pieces, cache, image


@pytest.mark.parametrize("place", [True, False])
def test_while_it_is_unpacked_nothing_wrong_is_given(tmp_path: Path, place: bool) -> None:
    def look(coming: Coming) -> None:
        waited = 0
        for index, chunk in enumerate(coming.image.chunks):
            try:
                assert coming.read(index) == chunk.data
            except NotYet:
                waited += 1
        assert 0 < waited < len(coming.image.chunks), "the large body has moved out, the rest is there"

    pieces, cache, image = cached(tmp_path, look, place)
    for chunk in image.chunks:
        assert pieces.read_chunk(chunk.hash) == chunk.data
    cache.close()


@pytest.mark.parametrize("where", ["data", "blob"])
def test_bytes_that_rotted_in_the_cache_are_not_given(tmp_path: Path, where: str) -> None:
    pieces, cache, image = cached(tmp_path, lambda coming: None)
    folder = tmp_path / "cache" / "entries" / image.digest[3:]
    path = folder / "blob" if where == "blob" else folder / "root" / "data"
    path.chmod(0o600)
    at = path.stat().st_size - 20
    with open(path, "r+b") as file:
        file.seek(at)
        index = image.data.rindex(file.read(20)) // 4096
        file.seek(at)
        file.write(b"rot")
    assert pieces.read_chunk(image.chunks[0].hash) == image.chunks[0].data
    with pytest.raises(ChunkCorrupt):
        pieces.read_chunk(image.chunks[index].hash)
    with pytest.raises(NotHeld):
        pieces.read_chunk(image.chunks[0].hash)
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
