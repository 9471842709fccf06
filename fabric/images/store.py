"""The chunk store of a storage agent: chunks by hash, manifests by digest.

An image becomes held in one step: `commit` makes every chunk durable, then the manifest, then the rename that names
it. A crash before that step leaves chunks that no manifest names, and opening the store removes these; a crash after
it leaves the image whole. So there is no journal and nothing to roll back.

A chunk lives as long as something refers to it: the images that name it, the pushes that brought it, and a `put` that
is writing it. The counts are kept in memory and made again from the manifests at opening. Two pushes that share
chunks, or a push that brings a chunk of an image that is being dropped, therefore need no rule of their own.

What is read is hashed before it is handed out (blake3: 7 GB/s), so a chunk that has rotted is never served: it is
removed, and the images that name it stop being held until some push brings the chunk again. For the same reason `put`
reads a chunk that is already there before it counts it as brought.

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
from fabric.images.manifest import CHUNK_BYTES, HASH_BYTES, Buffer, Manifest, chunk_hash, digest_hex, digest_of
from fabric.images.shelf import Shelf, sync

MAX_PUSHES = 64
"""Pushes that may be open at once: each holds chunks on the disk that nothing else names yet."""
PUSH_IDLE_S = 120.0
"""A push that nobody touched for so long is aborted: its sender is gone."""
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
class _Chunk:
    size: int
    refs: int = 0
    sound: bool = False  # the file is there, and nothing is known against it
    durable: bool = False


@dataclass(slots=True)
class _Push:
    touched: float
    hashes: set[bytes] = field(default_factory=set)
    committing: bool = False


@dataclass(slots=True)
class _Image:
    manifest: Manifest
    file_bytes: int
    missing: set[bytes]  # of its chunks, those that are not sound


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
        self._chunks: dict[bytes, _Chunk] = {}
        self._images: dict[str, _Image] = {}
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
            return [HeldImage(d, i.manifest.size) for d, i in sorted(self._images.items()) if not i.missing]

    def has(self, digest: str) -> bool:
        with self._lock:
            image = self._images.get(digest)
            return image is not None and not image.missing

    def manifest_bytes(self, digest: str) -> bytes:
        """The encoded manifest of a held image. Raises `NotHeld`."""
        with self._lock:
            image = self._images.get(digest)
            if image is None or image.missing:
                raise NotHeld(f"image {digest} is not held here" + ("" if image is None else " whole: it lost chunks"))
            return image.manifest.encode()

    def used_bytes(self) -> int:
        """Bytes of all chunks and manifests, those of open pushes included."""
        return self._shelf.used_bytes()

    def free_bytes(self) -> int:
        """Bytes that could still be put: what the limit leaves, and never more than the disk has."""
        return self._shelf.free_bytes()

    def read_chunk(self, chunk: bytes) -> bytes:
        """The bytes of a chunk, checked against its hash. Raises `NotHeld`, or `ChunkCorrupt` and forgets the chunk."""
        with self._lock:
            entry = self._chunks.get(chunk)
            if entry is None or not entry.sound:
                raise NotHeld(f"chunk {chunk.hex()} is not here")
            size = entry.size
        try:
            data, inode = self._shelf.read_chunk(chunk, size)
        except OSError as error:
            if error.errno not in _LOST:
                raise  # such as too many open files: it says nothing about the chunk
            if not self._is_sound(chunk):
                raise NotHeld(f"chunk {chunk.hex()} was dropped meanwhile") from None
            with self._lock:
                self._mark_lost(chunk)
            raise ChunkCorrupt(f"chunk {chunk.hex()} can't be read ({error.strerror}): repair its images") from None
        if data is not None:
            return data
        path = self._shelf.chunk_path(chunk)
        with self._lock, suppress(OSError):
            if os.stat(path).st_ino == inode:  # else a put has replaced it meanwhile
                os.unlink(path)
                self._mark_lost(chunk)
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
            entry = self._chunks.setdefault(chunk, _Chunk(len(data)))
            entry.refs += 1  # from here on nobody frees it
        try:
            if not self._readable(chunk):
                self._write_chunk(chunk, entry, data)
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
            entry = self._chunks.get(chunk)
            if entry is None or chunk in push.hashes:
                return entry is not None
            entry.refs += 1
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
            idle = [i for i, push in self._pushes.items() if push.touched < limit and not push.committing]
            for push_id in idle:
                self.abort(push_id)
        return idle

    def pushes(self) -> int:
        """How many pushes are open."""
        with self._lock:
            return len(self._pushes)

    def drop(self, digest: str) -> bool:
        """Forgets an image, whole or not, and frees the chunks that nothing else refers to. False if it is not here."""
        with self._lock:
            image = self._images.pop(digest, None)
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

    def _is_sound(self, chunk: bytes) -> bool:
        with self._lock:
            entry = self._chunks.get(chunk)
            return entry is not None and entry.sound

    def _readable(self, chunk: bytes) -> bool:
        try:
            self.read_chunk(chunk)
        except (NotHeld, ChunkCorrupt):
            return False
        return True

    def _mark_lost(self, chunk: bytes) -> None:
        entry = self._chunks.get(chunk)
        if entry is None or not entry.sound:
            return
        log.warning("chunk %s is lost: its images are not held until a push brings it again", chunk.hex())
        entry.sound = entry.durable = False
        self._shelf.count(-entry.size)
        for image in self._images.values():
            if chunk in image.manifest.chunks:
                image.missing.add(chunk)

    def _adopt(self, push_id: str, push: _Push, chunk: bytes) -> None:
        """Hands the reference that the caller took over to the push, if that is still open."""
        with self._lock:
            if self._pushes.get(push_id) is push and chunk not in push.hashes:
                push.hashes.add(chunk)
                return
        self._release([chunk])
        if self._pushes.get(push_id) is not push:
            raise UnknownPush(f"push {push_id} was aborted meanwhile")

    def _release(self, chunks: Iterable[bytes]) -> None:
        pending = iter(chunks)
        while some := list(itertools.islice(pending, _RELEASE_AT_ONCE)):
            with self._lock:
                for chunk in some:
                    entry = self._chunks[chunk]
                    entry.refs -= 1
                    if not entry.refs:
                        del self._chunks[chunk]
                        if entry.sound:
                            self._shelf.count(-entry.size)
                            self._shelf.chunk_path(chunk).unlink(missing_ok=True)

    def _write_chunk(self, chunk: bytes, entry: _Chunk, data: Buffer) -> None:
        with self._shelf.room(len(data)) as kept:
            path = self._shelf.write(data, durable=False)
            with self._lock:
                if entry.sound:  # another push was faster
                    path.unlink()
                    return
                os.rename(path, self._shelf.chunk_path(chunk))
                entry.sound, entry.durable = True, False
                for image in self._images.values():
                    image.missing.discard(chunk)
                kept.append(True)

    def _check_complete(self, push: _Push, manifest: Manifest) -> None:
        with self._lock:
            absent = sum(chunk not in push.hashes for chunk in manifest.chunks)
            if absent:
                raise PushIncomplete(
                    f"expected all {len(manifest.chunks)} chunks of the manifest, found {absent} missing"
                )
            for index, chunk in enumerate(manifest.chunks):
                if self._chunks[chunk].size != manifest.size_of(index):
                    raise ManifestError(
                        f"manifest: chunk {index} should have {manifest.size_of(index)} bytes, "
                        f"found {self._chunks[chunk].size}"
                    )

    def _make_durable(self, chunks: Iterable[bytes]) -> None:
        with self._lock:
            pending = [chunk for chunk in dict.fromkeys(chunks) if not self._chunks[chunk].durable]
        for chunk in pending:
            try:
                sync(self._shelf.chunk_path(chunk))
            except OSError as error:
                with self._lock:  # what a failed fsync left on the disk is anybody's guess
                    self._mark_lost(chunk)
                raise self._shelf.refused(error) from error
        sync(self._shelf.chunks)
        with self._lock:
            for chunk in pending:
                self._chunks[chunk].durable = self._chunks[chunk].sound

    def _write_manifest(self, digest: str, manifest: Manifest, data: bytes) -> None:
        chunks = set(manifest.chunks)
        with self._shelf.room(len(data)) as kept:
            path = self._shelf.write(data, durable=True)
            with self._lock:
                lost = sum(not self._chunks[chunk].sound for chunk in chunks)
                if lost or digest in self._images:
                    path.unlink()
                    if lost:
                        raise PushIncomplete(f"{lost} chunks of {digest} were lost while it was committed")
                    return
                os.rename(path, self._shelf.manifests / digest_hex(digest))
                self._images[digest] = _Image(manifest, len(data), set())
                for chunk in chunks:
                    self._chunks[chunk].refs += 1
                kept.append(True)
            sync(self._shelf.manifests)

    # -- opening -----------------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        sizes = self._shelf.chunk_sizes()
        for path in self._shelf.manifest_paths():
            self._recover_image(path, sizes)
        for chunk in sizes:
            if not self._is_sound(chunk):
                self._shelf.chunk_path(chunk).unlink()

    def _recover_image(self, path: Path, sizes: dict[bytes, int]) -> None:
        data = path.read_bytes()
        digest = digest_of(data)
        if digest_hex(digest) != path.name:
            log.warning("%s no longer has its digest: removed, and the chunks that only it named", path)
            path.unlink()
            return
        manifest = Manifest.decode(data)
        image = self._images[digest] = _Image(manifest, len(data), set())
        self._shelf.count(len(data))
        for index, chunk in enumerate(manifest.chunks):
            entry = self._chunks.get(chunk)
            if entry is None:
                size = manifest.size_of(index)
                sound = sizes.get(chunk) == size
                entry = self._chunks[chunk] = _Chunk(size, 0, sound, sound)
                self._shelf.count(size if sound else 0)
            if not entry.sound:
                image.missing.add(chunk)
        for chunk in set(manifest.chunks):
            self._chunks[chunk].refs += 1
        if image.missing:
            log.warning("image %s lacks %d of its chunks: not held", digest, len(image.missing))
