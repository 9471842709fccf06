"""What a node that fetches images can give to its mates: chunks of what is under way, and of what it fetched lately.

An image comes in with `begin`, when its manifest is known; each chunk is given from when it was verified and written
(`arrived`). While the cache unpacks the image its bytes are on the move (`moving`), and some can't be read for a while;
then they are read from the cache (`settled`), until it evicts it. `KEEP_S` after it was last asked for, the image is
forgotten here; nobody sends others to this node for longer than that (`mates.LEASE_S`).

A chunk that has not come, of an image that is under way, is `NotYet`: the chunk server lets who asks wait. Most chunks
are asked for at the moment they come, so the last `HOT_CHUNKS` of them are kept in memory as they were verified. What
is read from the disk is hashed before it is handed out, as in the chunk store, so nothing is served that rotted, or
that the cache moved, or evicted, at the wrong moment.

Threads: every method may be called from any thread. The fetch of an image calls `begin`, then `arrived` and `coming`,
then `moving` and `settled`, or `end`.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock, RLock
from typing import Literal

from fabric.images.errors import ChunkCorrupt, NotCached, NotHeld, NotYet
from fabric.images.hollow import Parts
from fabric.images.manifest import Buffer, Manifest, chunk_hash
from fabric.images.mates import bits

KEEP_S = 75.0
HOT_CHUNKS = 8
MAX_IMAGES = 32
"""In all; of those that are whole, the one that was asked for least lately goes."""

State = Literal["coming", "moving", "cached"]


@dataclass(slots=True)
class _Image:
    manifest: Manifest
    fd: int
    used_at: float
    state: State = "coming"
    here: bytearray = field(default_factory=bytearray)
    asked: frozenset[int] = frozenset()
    """Those that come from a holder next."""
    places: dict[bytes, int] = field(default_factory=dict)
    lock: RLock = field(default_factory=RLock)
    """Held while its bytes are read, or go elsewhere."""
    parts: Parts | None = None

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Pieces:
    def __init__(self, parts: Callable[[str], Parts], clock: Callable[[], float] = time.monotonic) -> None:
        """`parts`: where the bytes of a cached image are; raises `NotCached`."""
        self._parts = parts
        self._clock = clock
        self._lock = Lock()
        self._images: dict[str, _Image] = {}
        self._hot: OrderedDict[bytes, Buffer] = OrderedDict()
        """Of images that come; the newest last."""
        self.changed: Callable[[], None] = lambda: None
        """Called when who waits may be given something, or be refused."""

    def __len__(self) -> int:
        with self._lock:
            return len(self._images)

    # -- the fetch -----------------------------------------------------------------------------------------------------

    def begin(self, digest: str, manifest: Manifest, fd: int) -> None:
        """`fd`: the file that the chunks are written to, each at its place."""
        places = {chunk: index for index, chunk in reversed(list(enumerate(manifest.chunks)))}
        image = _Image(manifest, os.dup(fd), self._clock(), here=bytearray(len(manifest.chunks)), places=places)
        with self._lock:
            old = self._images.pop(digest, None)
            whole = [one for one, kept in self._images.items() if kept.state == "cached"]
            while len(self._images) >= MAX_IMAGES and whole:
                least = min(whole, key=lambda one: self._images[one].used_at)
                whole.remove(least)
                del self._images[least]
            self._images[digest] = image
        if old is not None:
            with old.lock:
                old.close()

    def arrived(self, digest: str, index: int, data: Buffer) -> None:
        """A chunk was verified and written, at the first of its places. `data` is kept: nobody may change it."""
        image = self._images.get(digest)
        if image is not None:
            with self._lock:
                self._hot[image.manifest.chunks[index]] = data
                if len(self._hot) > HOT_CHUNKS:
                    self._hot.popitem(last=False)
            image.here[index] = True
            self.changed()

    def coming(self, digest: str, asked: frozenset[int]) -> None:
        """These chunks were asked of holders, and will be here soon."""
        image = self._images.get(digest)
        if image is not None:
            image.asked = asked

    def moving(self, digest: str) -> None:
        """The file goes to the cache, which moves bytes out of it."""
        image = self._images.get(digest)
        if image is not None:
            image.state = "moving"

    def settled(self, digest: str) -> None:
        """It is in the cache."""
        image = self._images.get(digest)
        if image is not None:
            with image.lock:
                image.used_at, image.asked = self._clock(), frozenset()
                image.state = "cached"
                image.close()
            self._cool()
            self.changed()

    def end(self, digest: str) -> None:
        """It did not come, or it could not be unpacked. Nothing happens if it is settled, or not here."""
        image = self._images.get(digest)
        if image is not None and image.state != "cached":
            self._forget(digest, image)

    # -- the chunk server ----------------------------------------------------------------------------------------------

    def manifest_bytes(self, digest: str) -> bytes:
        """Raises `NotHeld`."""
        return self._image(digest).manifest.encode()

    def have(self, digest: str) -> bytes:
        """One bit a chunk: it is here, or asked of a holder. Raises `NotHeld`."""
        image = self._image(digest)
        return bits(here or index in image.asked for index, here in enumerate(map(bool, image.here)))

    def read_chunk(self, chunk: bytes) -> Buffer:
        """The bytes of a chunk, checked against its hash. Raises `NotYet`, `NotHeld`, `ChunkCorrupt`."""
        waits = False
        with self._lock:
            hot = self._hot.get(chunk)
            if hot is not None:
                return hot
            images = [(digest, image) for digest, image in self._images.items() if chunk in image.places]
        for digest, image in images:
            index = image.places[chunk]
            if not image.here[index]:
                waits = True
                continue
            moving = image.state == "moving"
            data = self._read(digest, image, index)
            if data is None:
                continue
            if chunk_hash(data) == chunk:
                image.used_at = self._clock()
                return data
            if moving:
                waits = True
                continue
            self._forget(digest, image)
            raise ChunkCorrupt(f"chunk {chunk.hex()}: the bytes that were written no longer have this hash")
        if waits:
            raise NotYet(f"chunk {chunk.hex()} has not come yet")
        raise NotHeld(f"chunk {chunk.hex()} is not here")

    def tidy(self) -> None:
        """Forgets what nobody asked for lately."""
        limit = self._clock() - KEEP_S
        with self._lock:
            for digest in [one for one, image in self._images.items() if image.state == "cached"]:
                if self._images[digest].used_at < limit:
                    del self._images[digest]

    # -- inside --------------------------------------------------------------------------------------------------------

    def _cool(self) -> None:
        """No memory is kept when nothing comes."""
        with self._lock:
            if all(image.state == "cached" for image in self._images.values()):
                self._hot.clear()

    def _image(self, digest: str) -> _Image:
        with self._lock:
            image = self._images.get(digest)
        if image is None:
            raise NotHeld(f"image {digest} is not here")
        return image

    def _read(self, digest: str, image: _Image, index: int) -> bytes | None:
        at, size = index * image.manifest.chunk_bytes, image.manifest.size_of(index)
        with image.lock:
            if image.fd >= 0:
                return os.pread(image.fd, size, at)
            try:
                if image.parts is None:
                    image.parts = self._parts(digest)
                return image.parts.read(at, size)
            except (NotCached, OSError, EOFError):  # evicted
                self._forget(digest, image)
                return None

    def _forget(self, digest: str, image: _Image) -> None:
        with self._lock:
            if self._images.get(digest) is image:
                del self._images[digest]
        with image.lock:
            image.close()
        self._cool()
        self.changed()
