"""What a node that fetches images can give to its mates: chunks of what is under way, and of what it fetched lately.

An image comes in with `begin`, when its manifest is known; each chunk is given from when it was verified and written
(`arrived`). While the cache unpacks the image its bytes are on the move (`moving`), and some can't be read for a while;
then they are read from the cache (`settled`), until it evicts it. `KEEP_S` after it was last asked for, the image is
forgotten here; nobody sends others to this node for longer than that (`mates.LEASE_S`).

A chunk that has not come, of an image that is under way, is `NotYet`: the chunk server lets who asks wait.

What is given is files (`fabric.images.stretch`), whose bytes pass nobody here who could hash them. So a chunk is read
and hashed first, as in the chunk store, unless it was found sound, or verified when it came, in the last `CHECKED_S`.
Who gets it hashes it in any case.

Threads: every method may be called from any thread. The fetch of an image calls `begin`, then `arrived` and `coming`,
then `moving` and `settled`, or `end`.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock, RLock
from typing import Literal, Protocol

from fabric.images.errors import ChunkCorrupt, NotCached, NotHeld, NotYet
from fabric.images.hollow import Parts
from fabric.images.manifest import Manifest, chunk_hash
from fabric.images.mates import bits
from fabric.images.stretch import Stretch

KEEP_S = 75.0
CHECKED_S = 30.0
_NOT_OF_THE_FILE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
MAX_IMAGES = 32
"""In all; of those that are whole, the one that was asked for least lately goes."""

State = Literal["coming", "moving", "cached"]


class Source(Protocol):
    """What has come of an image."""

    def open(self, at: int, size: int) -> Stretch:
        """Raises `OSError`: it is elsewhere by now."""

    def close(self) -> None: ...


@dataclass(slots=True)
class _Image:
    manifest: Manifest
    source: Source | None
    """While it comes, and until it is settled."""
    used_at: float
    state: State = "coming"
    checked_at: list[float | None] = field(default_factory=list)
    """When each chunk was last known to have its hash; None: it is not here."""
    asked: frozenset[int] = frozenset()
    """Those that come from a holder next."""
    places: dict[bytes, int] = field(default_factory=dict)
    lock: RLock = field(default_factory=RLock)
    """Held while its files are opened, or go elsewhere."""
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
        self.changed: Callable[[bytes | None], None] = lambda chunk: None
        """Called when who waits for this chunk may be given it; with None, when who waits for any may be refused."""

    def __len__(self) -> int:
        with self._lock:
            return len(self._images)

    # -- the fetch -----------------------------------------------------------------------------------------------------

    def begin(self, digest: str, manifest: Manifest, source: Source) -> None:
        """`source`: opens the chunks that have arrived; it is closed here, in the end."""
        places = {chunk: index for index, chunk in reversed(list(enumerate(manifest.chunks)))}
        checked_at: list[float | None] = [None] * len(manifest.chunks)
        image = _Image(manifest, source, self._clock(), checked_at=checked_at, places=places)
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

    def arrived(self, digest: str, index: int) -> None:
        """A chunk was verified and written, at the first of its places."""
        image = self._images.get(digest)
        if image is not None:
            image.checked_at[index] = self._clock()
            self.changed(image.manifest.chunks[index])

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
        return bits(at is not None or index in image.asked for index, at in enumerate(image.checked_at))

    def open_chunk(self, chunk: bytes) -> Stretch:
        """The bytes of a chunk. Raises `NotYet`, `NotHeld`, `ChunkCorrupt`, `OSError` if no file can be opened."""
        waits = False
        with self._lock:
            images = [(digest, image) for digest, image in self._images.items() if chunk in image.places]
        for digest, image in images:
            index = image.places[chunk]
            checked_at = image.checked_at[index]
            if checked_at is None:
                waits = True
                continue
            before = image.state
            found = self._open(digest, image, index)
            if found is not None and self._clock() - checked_at >= CHECKED_S:
                found = self._checked(image, index, found)
            if found is not None:
                image.used_at = self._clock()
                return found
            coming = image.state == "coming"  # so it was while it was opened
            if before != "cached" and not coming:
                waits = True
            elif coming or digest in self._images:
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

    def _image(self, digest: str) -> _Image:
        with self._lock:
            image = self._images.get(digest)
        if image is None:
            raise NotHeld(f"image {digest} is not here")
        return image

    def _open(self, digest: str, image: _Image, index: int) -> Stretch | None:
        """None: its bytes are not where they were; if they can't come back, the image is forgotten. Raises `OSError`
        for a reason that says nothing about them."""
        at, size = index * image.manifest.chunk_bytes, image.manifest.size_of(index)
        with image.lock:
            try:
                if image.source is not None:
                    return image.source.open(at, size)
                if image.parts is None:
                    image.parts = self._parts(digest)
                return image.parts.open(at, size)
            except (NotCached, OSError) as error:
                if isinstance(error, OSError) and error.errno in _NOT_OF_THE_FILE:
                    raise
                if image.state == "cached" and image.source is None:
                    self._forget(digest, image)  # evicted
                return None

    def _checked(self, image: _Image, index: int, found: Stretch) -> Stretch | None:
        """The same, if its bytes have their hash."""
        try:
            if chunk_hash(found.read()) == image.manifest.chunks[index]:
                image.checked_at[index] = self._clock()
                return found
        except (OSError, EOFError):
            pass
        found.close()
        return None

    def _forget(self, digest: str, image: _Image) -> None:
        with self._lock:
            if self._images.get(digest) is image:
                del self._images[digest]
        with image.lock:
            image.close()
        self.changed(None)
