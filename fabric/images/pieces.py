"""What a node that fetches images can give to its mates: chunks of what is under way, and of what it fetched lately.

An image comes in with `begin`, when its manifest is known; each chunk is given from when it was verified and written
(`arrived`). While the cache unpacks the image its bytes are on the move (`moving`), and some can't be read for a while;
then they are read from the cache (`settled`), until it evicts it. `KEEP_S` after it was last asked for, the image is
forgotten here; nobody sends others to this node for longer than that (`mates.LEASE_S`).

A chunk that has not come, of an image that is under way, is `NotYet`: the chunk server lets who asks wait. What mates
ask for at the moment it comes is what came from a holder, and what they wait for already: of these, the `HOT_CHUNKS`
that were given last are kept in memory as they were verified.

What is read from a file is hashed before it is handed out, as in the chunk store, so nothing is served that rotted, or
that the cache moved, or evicted, at the wrong moment.

Threads: every method may be called from any thread. The fetch of an image calls `begin`, then `arrived` and `coming`,
then `moving` and `settled`, or `end`.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock, RLock
from typing import Literal, Protocol

from fabric.images.errors import ChunkCorrupt, NotCached, NotHeld, NotYet
from fabric.images.hollow import Parts
from fabric.images.manifest import Buffer, Manifest, chunk_hash
from fabric.images.mates import bits

KEEP_S = 75.0
HOT_CHUNKS = 8
MAX_AWAITED = 512
MAX_IMAGES = 32
"""In all; of those that are whole, the one that was asked for least lately goes."""

State = Literal["coming", "moving", "cached"]


class Source(Protocol):
    """What has come of an image."""

    def read(self, at: int, size: int) -> bytes:
        """Raises `OSError`, `EOFError`: it is elsewhere by now."""

    def close(self) -> None: ...


@dataclass(slots=True)
class _Image:
    manifest: Manifest
    source: Source | None
    """While it comes, and until it is settled."""
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
        if self.source is not None:
            self.source.close()
            self.source = None


class Pieces:
    def __init__(self, parts: Callable[[str], Parts], clock: Callable[[], float] = time.monotonic) -> None:
        """`parts`: where the bytes of a cached image are; raises `NotCached`."""
        self._parts = parts
        self._clock = clock
        self._lock = Lock()
        self._images: dict[str, _Image] = {}
        self._hot: OrderedDict[bytes, Buffer] = OrderedDict()
        """Of images that come; what came or was given last is last."""
        self._awaited: set[bytes] = set()
        """Chunks that somebody asked for before they came."""
        self.changed: Callable[[bytes | None], None] = lambda chunk: None
        """Called when who waits for this chunk may be given it; with None, when who waits for any may be refused."""

    def __len__(self) -> int:
        with self._lock:
            return len(self._images)

    # -- the fetch -----------------------------------------------------------------------------------------------------

    def begin(self, digest: str, manifest: Manifest, source: Source) -> None:
        """`source`: reads the chunks that have arrived; it is closed here, in the end."""
        places = {chunk: index for index, chunk in reversed(list(enumerate(manifest.chunks)))}
        image = _Image(manifest, source, self._clock(), here=bytearray(len(manifest.chunks)), places=places)
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
        """A chunk was verified and written, at the first of its places. `data` may be kept: nobody may change it."""
        image = self._images.get(digest)
        if image is not None:
            chunk = image.manifest.chunks[index]
            with self._lock:
                if index in image.asked or chunk in self._awaited:
                    self._awaited.discard(chunk)
                    self._hot[chunk] = data
                    if len(self._hot) > HOT_CHUNKS:
                        self._hot.popitem(last=False)
                image.here[index] = True
            self.changed(chunk)

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
            self._cool(image)
            self.changed(None)

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
                self._hot.move_to_end(chunk)
                return hot
            images = [(digest, image) for digest, image in self._images.items() if chunk in image.places]
        for digest, image in images:
            index = image.places[chunk]
            if not image.here[index]:
                waits = True
                continue
            before = image.state
            data = self._read(digest, image, index)
            if data is not None and chunk_hash(data) == chunk:
                image.used_at = self._clock()
                return data
            coming = image.state == "coming"  # so it was while its bytes were read
            if before != "cached" and not coming:
                waits = True
                continue
            if data is None and not coming:
                continue
            self._forget(digest, image)
            raise ChunkCorrupt(f"chunk {chunk.hex()}: the bytes that were written no longer have this hash")
        if waits:
            with self._lock:
                if len(self._awaited) < MAX_AWAITED:
                    self._awaited.add(chunk)
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

    def _cool(self, image: _Image) -> None:
        """Nobody waits for an image that is here, or is forgotten, and no memory is kept when nothing comes."""
        with self._lock:
            self._awaited.difference_update(image.places)
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
            try:
                if image.source is not None:
                    return image.source.read(at, size)
                if image.parts is None:
                    image.parts = self._parts(digest)
                return image.parts.read(at, size)
            except (NotCached, OSError, EOFError):
                if image.state == "cached" and image.source is None:
                    self._forget(digest, image)  # evicted
                return None

    def _forget(self, digest: str, image: _Image) -> None:
        with self._lock:
            if self._images.get(digest) is image:
                del self._images[digest]
        with image.lock:
            image.close()
        self._cool(image)
        self.changed(None)
