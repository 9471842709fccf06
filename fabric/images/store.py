"""The chunk store of a storage agent: chunks by hash, manifests by digest.

An image becomes held in one step: `commit` makes every chunk durable, then the manifest, then the rename that names
it. A crash before that step leaves chunks that no manifest names, and opening the store removes these; a crash after
it leaves the image whole. So there is no journal and nothing to roll back.

A chunk lives as long as something refers to it (`fabric.images.ledger`). The references are kept in memory and made
again from the manifests at opening.

What is read is hashed before it is handed out (blake3: 7 GB/s): a chunk that has rotted is removed, and the images that
name it stop being held until some push brings the chunk again. For the same reason `put` reads a chunk that is already
there before it counts it as brought. Bytes that the kernel gives to a socket pass nobody here who could hash them:
there, a chunk is read first unless it was found sound in the last `CHECKED_S`. Who gets it hashes it in any case. At
opening the sizes of the files alone are looked at; `fabric.images.scrub` reads them all soon after, and again and
again.

Threads: every method may be called from any thread. The lock guards the tables; files are written and read outside of
it.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock

from fabric.images.errors import (
    BadChunk,
    ChunkCorrupt,
    ManifestError,
    NotHeld,
    PushIncomplete,
    StoreBusy,
    StoreFull,
    UnknownPush,
)
from fabric.images.ledger import Ledger
from fabric.images.manifest import CHUNK_BYTES, HASH_BYTES, Buffer, Manifest, chunk_hash, digest_hex, digest_of
from fabric.images.mates import bits
from fabric.images.shelf import Shelf, sync
from fabric.images.stretch import Segment, Stretch

MAX_PUSHES = 64
"""Pushes that may be open at once: each holds chunks on the disk that nothing else names yet."""
PUSH_IDLE_S = 120.0
"""A push that nobody touched for so long is aborted: its sender is gone."""
CHECKED_S = 30.0
"""A chunk that was read and had its hash is given to others for so long before it is read again."""
_RELEASE_AT_ONCE = 256
"""Chunk files removed under one hold of the lock, so that dropping a large image doesn't stop the serving of others.
"""
_LOST = {errno.ENOENT, errno.EIO}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HeldImage:
    """`size`: bytes of the image (its chunks may take less, where they repeat or are shared)."""

    digest: str
    size: int


@dataclass(slots=True)
class _Push:
    touched: float
    hashes: set[bytes] = field(default_factory=set)
    committing: bool = False


class ChunkStore:
    """Chunks and manifests below `directory`, at most `max_bytes` of them (None: what the disk holds)."""

    def __init__(
        self,
        directory: Path,
        max_bytes: int | None = None,
        *,
        push_idle_s: float = PUSH_IDLE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Opens the store, making what is missing. Raises `StoreBusy` if another process has it open."""
        self._push_idle_s = push_idle_s
        self._clock = clock
        self._lock = RLock()
        self._ledger = Ledger()
        self._pushes: dict[str, _Push] = {}
        self._shelf = Shelf(directory, max_bytes)
        self._recover()

    def close(self) -> None:
        """Aborts every push and gives the directory free. Held images stay."""
        with self._lock:
            for push_id in list(self._pushes):
                self.abort(push_id)
            self._shelf.close()

    # -- what is here ------------------------------------------------------------------------------------------------

    def held(self) -> list[HeldImage]:
        """The images that are here whole, by digest."""
        with self._lock:
            images = sorted(self._ledger.images.items())
            return [HeldImage(digest, image.manifest.size) for digest, image in images if not image.missing]

    def has(self, digest: str) -> bool:
        with self._lock:
            return self._ledger.whole(digest)

    def damaged(self) -> list[str]:
        """The digests of images that are here but for chunks that were lost."""
        with self._lock:
            return sorted(digest for digest, image in self._ledger.images.items() if image.missing)

    def manifest_bytes(self, digest: str) -> bytes:
        """The encoded manifest of an image, whole or damaged: another holder may need just the chunks that are here.
        Raises `NotHeld`."""
        with self._lock:
            image = self._ledger.images.get(digest)
            if image is None:
                raise NotHeld(f"image {digest} is not held here")
            return image.manifest.encode()

    def have(self, digest: str) -> bytes:
        """One bit for each chunk of an image: it is here, as far as is known. Raises `NotHeld`."""
        with self._lock:
            image = self._ledger.images.get(digest)
            if image is None:
                raise NotHeld(f"image {digest} is not held here")
            return bits(chunk not in image.missing for chunk in image.manifest.chunks)

    def used_bytes(self) -> int:
        """Bytes of all chunks and manifests, those of open pushes included."""
        return self._shelf.used_bytes()

    def free_bytes(self) -> int:
        """Bytes that could still be put: what the limit leaves, and never more than the disk has."""
        return self._shelf.free_bytes()

    def chunks(self) -> list[bytes]:
        """The hashes of all chunks that count as sound, in no order."""
        with self._lock:
            return [chunk for chunk, entry in self._ledger.chunks.items() if entry.sound]

    def open_chunk(self, chunk: bytes) -> Stretch:
        """A chunk's bytes for a socket; they had its hash at most `CHECKED_S` ago. Raises what `read_chunk` does."""
        with self._lock:
            entry = self._ledger.chunks.get(chunk)
            size = entry.size if entry is not None else 0
            known = entry is not None and entry.sound and self._clock() - entry.checked_at < CHECKED_S
        if not known:
            size = len(self.read_chunk(chunk))
        try:
            fd = self._shelf.open_chunk(chunk)
        except FileNotFoundError:
            self.read_chunk(chunk)  # says what is wrong, unless a push has brought it again just now
            fd = self._shelf.open_chunk(chunk)
        return Stretch([Segment(fd, 0, size)])

    def read_chunk(self, chunk: bytes, from_disk: bool = False) -> bytes:
        """The bytes of a chunk, checked against its hash. Raises `NotHeld`, or `ChunkCorrupt` and forgets the chunk.
        `from_disk`: see `Shelf`."""
        with self._lock:
            if not self._ledger.is_sound(chunk):
                raise NotHeld(f"chunk {chunk.hex()} is not here")
            entry = self._ledger.chunks[chunk]
            size = entry.size
        try:
            data, inode = self._shelf.read_chunk(chunk, size, from_disk)
        except OSError as error:
            if error.errno not in _LOST:
                raise  # such as too many open files: it says nothing about the chunk
            with self._lock:
                again = error.errno == errno.ENOENT and self._shelf.chunk_path(chunk).exists()  # dropped and put again
                if again or not self._ledger.is_sound(chunk):
                    raise NotHeld(f"chunk {chunk.hex()} was dropped meanwhile") from None
                self._lose(chunk)
            raise ChunkCorrupt(f"chunk {chunk.hex()} can't be read ({error.strerror}): repair its images") from None
        if data is not None:
            with self._lock:
                if entry is self._ledger.chunks.get(chunk):
                    entry.checked_at = self._clock()
            return data
        with self._lock, suppress(FileNotFoundError):
            if os.stat(self._shelf.chunk_path(chunk)).st_ino == inode:  # else a put has replaced it meanwhile
                self._lose(chunk)
        raise ChunkCorrupt(f"chunk {chunk.hex()}: the stored bytes no longer have this hash: repair its images")

    # -- pushing -----------------------------------------------------------------------------------------------------

    def begin(self, push_id: str) -> None:
        """Opens a push, or touches the one that is open. Raises `StoreBusy` when too many are."""
        self.abort_idle()
        with self._lock:
            push = self._pushes.get(push_id)
            if push is not None:
                push.touched = self._clock()
                return
            if len(self._pushes) >= MAX_PUSHES:
                raise StoreBusy(f"{MAX_PUSHES} pushes are open, which is the limit: try again when one is done")
            self._pushes[push_id] = _Push(self._clock())

    def put(self, push_id: str, chunk: bytes, data: Buffer) -> None:
        """Adds a chunk to a push; one that is here already is read again instead of written. A repeat changes
        nothing.

        Raises `BadChunk`, `UnknownPush`, or `StoreFull`, which also aborts the push.
        """
        if not 1 <= len(data) <= CHUNK_BYTES or len(chunk) != HASH_BYTES or chunk_hash(data) != chunk:
            raise BadChunk(f"expected 1 to {CHUNK_BYTES} bytes with hash {chunk.hex()}, found {len(data)} other bytes")
        with self._lock:
            push = self._push(push_id)
            if chunk in push.hashes:
                return
            self._ledger.refer(chunk, len(data))  # from here on nobody frees it
        try:
            if not self._readable(chunk):
                self._write_chunk(chunk, data)
        except BaseException as error:
            self._release([chunk])
            if isinstance(error, StoreFull):
                self.abort(push_id)
            raise
        self._adopt(push_id, push, chunk)

    def claim(self, push_id: str, chunk: bytes) -> bool:
        """Adds a chunk to a push without its bytes, if it is here and still has its hash."""
        with self._lock:
            push = self._push(push_id)
            if chunk in push.hashes:
                return True
            if not self._ledger.is_sound(chunk):
                return False
            self._ledger.refer(chunk, self._ledger.chunks[chunk].size)
        try:
            readable = self._readable(chunk)
        except BaseException:
            self._release([chunk])
            raise
        if readable:
            self._adopt(push_id, push, chunk)
        else:
            self._release([chunk])
        return readable

    def commit(self, push_id: str, manifest_bytes: Buffer) -> str:
        """Makes the image held, durably, and ends the push; answers with its digest. A repeat answers the same.

        Raises `ManifestError`, `PushIncomplete`, `UnknownPush`, `StoreFull`. After any of them but `UnknownPush` the
        push is aborted.
        """
        digest = digest_of(manifest_bytes)
        with self._lock:
            if push_id not in self._pushes and self.has(digest):
                return digest  # the repeat of a commit whose answer was lost
            push = self._push(push_id)
            if push.committing:
                raise StoreBusy(f"push {push_id} is being committed")
            push.committing = True
        try:
            manifest = Manifest.decode(manifest_bytes)
            self._check_complete(push, manifest)
            self._make_durable(manifest.chunks)
            self._write_manifest(digest, manifest, bytes(manifest_bytes))
        finally:
            with self._lock:
                push.committing = False
            self.abort(push_id)  # the image has its own references by now
        return digest

    def abort(self, push_id: str) -> None:
        """Ends a push and frees what only it referred to. Nothing happens if there is none, or if it is being
        committed.
        """
        with self._lock:
            push = self._pushes.get(push_id)
            if push is None or push.committing:
                return
            del self._pushes[push_id]
        self._release(push.hashes)

    def abort_idle(self) -> list[str]:
        """Aborts the pushes that nobody touched for `push_idle_s`, and says which."""
        limit = self._clock() - self._push_idle_s
        with self._lock:
            idle = {i: push for i, push in self._pushes.items() if push.touched < limit and not push.committing}
            for push_id in idle:
                del self._pushes[push_id]
        for push in idle.values():
            self._release(push.hashes)
        return list(idle)

    def pushes(self) -> int:
        """How many pushes are open."""
        with self._lock:
            return len(self._pushes)

    def drop(self, digest: str) -> bool:
        """Forgets an image, whole or not, and frees the chunks that nothing else refers to. False if it is not here."""
        with self._lock:
            image = self._ledger.images.pop(digest, None)
            if image is None:
                return False
            (self._shelf.manifests / digest_hex(digest)).unlink(missing_ok=True)
            self._shelf.count(-image.file_bytes)
        sync(self._shelf.manifests)  # before its chunks go, or a crash could bring back a manifest without them
        self._release(set(image.manifest.chunks))
        return True

    # -- inside ------------------------------------------------------------------------------------------------------

    def _push(self, push_id: str) -> _Push:
        push = self._pushes.get(push_id)
        if push is None:
            raise UnknownPush(f"push {push_id} is not open: never begun, aborted, or idle for {self._push_idle_s:g} s")
        push.touched = self._clock()
        return push

    def _readable(self, chunk: bytes) -> bool:
        try:
            self.read_chunk(chunk)
        except (NotHeld, ChunkCorrupt):
            return False
        return True

    def _lose(self, chunk: bytes) -> None:
        """Removes a chunk whose file is no good, but not what refers to it."""
        if self._ledger.lost(chunk):
            log.warning("chunk %s is lost: its images are not held until a push brings it again", chunk.hex())
            self._shelf.remove_chunk(chunk, self._ledger.chunks[chunk].size)

    def _adopt(self, push_id: str, push: _Push, chunk: bytes) -> None:
        """Hands the reference that the caller took over to the push, if that is still open."""
        with self._lock:
            if self._pushes.get(push_id) is push and chunk not in push.hashes:
                push.hashes.add(chunk)
                return
            gone = self._pushes.get(push_id) is not push
        self._release([chunk])
        if gone:
            raise UnknownPush(f"push {push_id} was aborted meanwhile")

    def _release(self, chunks: Iterable[bytes]) -> None:
        pending = iter(chunks)
        while some := list(itertools.islice(pending, _RELEASE_AT_ONCE)):
            with self._lock:
                for chunk in some:
                    freed = self._ledger.release(chunk)
                    if freed is not None and freed.sound:
                        self._shelf.remove_chunk(chunk, freed.size)

    def _write_chunk(self, chunk: bytes, data: Buffer) -> None:
        with self._shelf.room(len(data)) as kept:
            path = self._shelf.write(data, durable=False)
            with self._lock:
                if self._ledger.is_sound(chunk):  # another push was faster
                    path.unlink()
                    return
                os.rename(path, self._shelf.chunk_path(chunk))
                self._ledger.written(chunk)
                kept.append(True)

    def _check_complete(self, push: _Push, manifest: Manifest) -> None:
        with self._lock:
            absent = sum(chunk not in push.hashes for chunk in manifest.chunks)
            if absent:
                raise PushIncomplete(
                    f"expected all {len(manifest.chunks)} chunks of the manifest, found {absent} missing"
                )
            for index, chunk in enumerate(manifest.chunks):
                if self._ledger.chunks[chunk].size != manifest.size_of(index):
                    raise ManifestError(
                        f"manifest: chunk {index} should have {manifest.size_of(index)} bytes, "
                        f"found {self._ledger.chunks[chunk].size}"
                    )

    def _make_durable(self, chunks: Iterable[bytes]) -> None:
        while pending := self._not_durable(chunks):
            for chunk in pending:
                try:
                    sync(self._shelf.chunk_path(chunk))
                except OSError as error:
                    with self._lock:  # what a failed fsync left on the disk is anybody's guess
                        self._lose(chunk)
                    raise self._shelf.refused(error) from error
            sync(self._shelf.chunks)
            with self._lock:
                for chunk, writes in pending.items():
                    entry = self._ledger.chunks[chunk]
                    entry.durable = entry.sound and entry.writes == writes  # else it was lost, and brought again

    def _not_durable(self, chunks: Iterable[bytes]) -> dict[bytes, int]:
        """Those that are sound but not durable, and which write of each that is."""
        with self._lock:
            entries = {chunk: self._ledger.chunks[chunk] for chunk in chunks}
            return {chunk: entry.writes for chunk, entry in entries.items() if entry.sound and not entry.durable}

    def _write_manifest(self, digest: str, manifest: Manifest, data: bytes) -> None:
        chunks = set(manifest.chunks)
        with self._shelf.room(len(data)) as kept:
            path = self._shelf.write(data, durable=True)
            with self._lock:
                lost = sum(not self._ledger.is_sound(chunk) for chunk in chunks)
                if lost or digest in self._ledger.images:
                    path.unlink()
                    if lost:
                        raise PushIncomplete(f"{lost} chunks of {digest} were lost while it was committed")
                    return
                os.rename(path, self._shelf.manifests / digest_hex(digest))
                self._ledger.add_image(digest, manifest, len(data))
                kept.append(True)
            sync(self._shelf.manifests)

    # -- opening -----------------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        sizes = self._shelf.chunk_sizes()
        for path in self._shelf.manifest_paths():
            data = path.read_bytes()
            digest = digest_of(data)
            if digest_hex(digest) != path.name:
                log.warning("%s no longer has its digest: removed, and the chunks that only it named", path)
                path.unlink()
                continue
            try:
                manifest = Manifest.decode(data)
            except ManifestError as error:  # whole, so of another version of this program: nothing to throw away
                self._shelf.close()
                raise ManifestError(f"{path}: {error}; open it with the version that wrote it, or remove it") from None
            image = self._ledger.add_image(digest, manifest, len(data), sizes)
            self._shelf.count(len(data))
            if image.missing:
                log.warning("image %s lacks %d of its chunks: not held", digest, len(image.missing))
        for chunk, size in sizes.items():
            if self._ledger.is_sound(chunk):
                self._shelf.count(size)
            else:
                self._shelf.remove_chunk(chunk, 0)
