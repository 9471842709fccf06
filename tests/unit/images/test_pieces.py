"""What a node gives to its mates: what has come and was verified, from wherever it is by now; nothing else."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from fabric.images.cache import ImageCache
from fabric.images.errors import ChunkCorrupt, NotHeld, NotYet
from fabric.images.manifest import chunk_hash
from fabric.images.mates import bits
from fabric.images.pieces import CHECKED_S, KEEP_S, Pieces
from fabric.images.placing import Placer
from fabric.images.tarwalk import Limits
from tests.unit.images.content import Image, image_of, random_image
from tests.unit.images.rack import nothing_cached
from tests.unit.images.test_archive import START, member, tar_of

IMAGE = random_image(5 * 4096 + 9)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def read_chunk(pieces: Pieces, chunk: bytes) -> bytes:
    with closing(pieces.open_chunk(chunk)) as stretch:
        return stretch.read()


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
            self.pieces.arrived(self.image.digest, index)

    def read(self, index: int) -> bytes:
        return read_chunk(self.pieces, self.image.chunks[index].hash)

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
        pieces.open_chunk(b"x" * 32)
    pieces.coming(IMAGE.digest, frozenset({0}))
    assert pieces.have(IMAGE.digest) == bits([True, True, False, False, True, False])
    assert pieces.manifest_bytes(IMAGE.digest) == IMAGE.manifest.encode()
    pieces.end(IMAGE.digest)
    for read in (lambda: coming.read(4), lambda: pieces.have(IMAGE.digest)):
        with pytest.raises(NotHeld):
            read()


def test_what_has_rotted_since_it_came_is_not_given(tmp_path: Path) -> None:
    clock = Clock()
    coming = Coming(Pieces(nothing_cached, clock), IMAGE, tmp_path / "a")
    coming.take(0, 4, 5)
    clock.now = CHECKED_S
    os.ftruncate(coming.fd, 3 * 4096)
    assert coming.read(0) == IMAGE.chunks[0].data
    with pytest.raises(ChunkCorrupt):
        coming.read(5)
    with pytest.raises(NotHeld):
        coming.read(0)
    coming.take(2)  # the fetch goes on, for itself
    coming.close()


def test_what_was_found_sound_is_not_read_again_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[int] = []

    def counting(data: bytes) -> bytes:
        hashed.append(len(data))
        return chunk_hash(data)

    monkeypatch.setattr("fabric.images.pieces.chunk_hash", counting)
    clock = Clock()
    coming = Coming(Pieces(nothing_cached, clock), IMAGE, tmp_path / "a")
    coming.take(2)
    for now, times in ((0.0, 0), (CHECKED_S - 1, 0), (CHECKED_S, 1), (2 * CHECKED_S - 1, 1), (2 * CHECKED_S, 2)):
        clock.now = now
        assert coming.read(2) == IMAGE.chunks[2].data
        assert len(hashed) == times
    coming.close()


def test_files_are_closed_with_what_was_given(tmp_path: Path) -> None:
    clock = Clock()
    pieces = Pieces(nothing_cached, clock)
    coming = Coming(pieces, IMAGE, tmp_path / "a")
    coming.take(0, 1)
    before = open_files()
    coming.read(0)
    clock.now = CHECKED_S
    os.pwrite(coming.fd, b"rot", 4096)
    with pytest.raises(ChunkCorrupt):
        coming.read(1)
    assert open_files() == before - 1, "the image is forgotten, and its own file closed"
    coming.close()


def test_too_few_open_files_say_nothing_about_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(fd: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    coming = Coming(Pieces(nothing_cached), IMAGE, tmp_path / "a")
    coming.take(0)
    with monkeypatch.context() as full:
        full.setattr("os.dup", none_left)
        with pytest.raises(OSError, match="Too many open files"):
            coming.read(0)
    assert coming.read(0) == IMAGE.chunks[0].data
    coming.pieces.end(IMAGE.digest)
    coming.close()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def cached(
    tmp_path: Path,
    between: Callable[[Coming], None],
    clock: Callable[[], float] = Clock(),  # noqa: B008
) -> tuple[Pieces, ImageCache, Image]:
    """An image that was fetched and unpacked; `between`: while it is unpacked."""
    image = image_of(tar_of(START, member("data", os.urandom(300_000)), member("b", b"b" * 9000)), 4096)
    cache = ImageCache(tmp_path / "cache", 600_000)
    pieces = Pieces(cache.parts, clock)
    blob = cache.incoming(image.digest, 0)
    coming = Coming(pieces, image, blob, tmp_path / "bodies")
    coming.take(*range(len(image.chunks)))
    pieces.moving(image.digest)
    cache.admit(image.digest, blob, coming.placer.placed())
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
        assert read_chunk(pieces, chunk.hash) == chunk.data
    cache.close()


@pytest.mark.parametrize("where", ["data", "blob"])
def test_bytes_that_rotted_in_the_cache_are_not_given(tmp_path: Path, where: str) -> None:
    clock = Clock()
    pieces, cache, image = cached(tmp_path, lambda coming: None, clock)
    clock.now = CHECKED_S
    folder = tmp_path / "cache" / "entries" / image.digest[3:]
    path = folder / "blob" if where == "blob" else folder / "root" / "data"
    path.chmod(0o600)
    at = path.stat().st_size - 20
    with open(path, "r+b") as file:
        file.seek(at)
        index = image.data.rindex(file.read(20)) // 4096
        file.seek(at)
        file.write(b"rot")
    assert read_chunk(pieces, image.chunks[0].hash) == image.chunks[0].data
    with pytest.raises(ChunkCorrupt):
        read_chunk(pieces, image.chunks[index].hash)
    with pytest.raises(NotHeld):
        read_chunk(pieces, image.chunks[0].hash)
    cache.close()


def test_what_was_evicted_is_not_here_any_more(tmp_path: Path) -> None:
    pieces, cache, image = cached(tmp_path, lambda coming: None)
    assert read_chunk(pieces, image.chunks[7].hash) == image.chunks[7].data
    cache.incoming("b3:" + 64 * "0", 500_000)
    with pytest.raises(NotHeld):
        read_chunk(pieces, image.chunks[7].hash)
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
