"""The bounded image cache of a compute node.

    directory/
      lock              one process at a time
      incoming/         images being fetched; emptied at opening
      making/           entries being made or removed; emptied at opening
      entries/<hex>/    one image each
        root/             the image, unpacked; `root/entrypoint` is what instances run
        blob              the image as fetched, to be given to other nodes, but for large files, which are in root/ only
        complete          the marker, written last: bytes taken, the boot it was written in, and what is in root/ only

An entry is made in `making/` and renamed into place when it is whole, so what is in `entries/` is complete. It is not
made durable: that would cost each node as much again as the fetch, for something that can be fetched again. A machine
that went down may therefore come back with a marker and without the bytes, so an entry of an earlier boot is believed
only after its blob has been hashed and unpacked anew, when it is first asked for.

What is used least recently goes first when there is no room; what is pinned (an instance runs from it) stays. Both
the blob and what is unpacked count; a single executable is one file under two names and counts once.

An image that is here is looked at on the disk (is it still there? noted as used) at most every `LOOK_EVERY_S`: between
these, `ready` is a matter of this module's tables, since what evicts an image goes through them.

Threads: every method may be called from any thread. Images are unpacked and removed outside of the lock, each once;
only `get` and `admit` take long, and wait for another thread that makes the same image. The others may be called from
a loop.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from fabric.images.archive import ENTRYPOINT, Prepared, remove_tree, unpack
from fabric.images.errors import CacheFull, EmptyImage, NotCached, UnpacksTooLarge
from fabric.images.hollow import Moved, Parts, Placed
from fabric.images.manifest import Chunker, digest_hex
from fabric.images.placing import place
from fabric.images.shelf import lock_directory
from fabric.images.tarwalk import Limits

LOOK_EVERY_S = 30.0
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CachedImage:
    """`bytes`: what the entry takes; `pinned`: by how many keys."""

    digest: str
    bytes: int
    pinned: int


class _Marker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    v: Literal[1]
    bytes: int
    boot: str
    moved: tuple[Moved, ...]


@dataclass(slots=True)
class _Entry:
    bytes: int
    boot: str
    pins: set[str] = field(default_factory=set)
    looked_at: float = -LOOK_EVERY_S
    """When it was last seen on the disk, and noted there as used."""


class ImageCache:
    """Images below `directory` that take at most `max_bytes` together."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        """Opens the cache, making what is missing. Raises `StoreBusy` if another process has it open."""
        self.max_bytes = max_bytes
        self.limits = Limits(unpacked_bytes=max_bytes)
        """Of an image."""
        self._directory = directory
        self._incoming, self._making = directory / "incoming", directory / "making"
        self._entry_dir = directory / "entries"
        for folder in (self._incoming, self._making, self._entry_dir):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock_fd = lock_directory(directory)
        self._boot = _BOOT_ID.read_text().strip()
        self._changed = threading.Condition(threading.RLock())
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # least recently used first
        self._busy: set[str] = set()  # digests being made
        self._used = 0
        self._serial = 0
        self._trash: list[Path] = []
        self._recover()

    def close(self) -> None:
        """Gives the directory free. What is cached stays."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def get(self, digest: str, *, pin: str | None = None) -> Prepared | None:
        """The image, if it is here; it becomes the one used last, and is pinned by the key `pin` if that is given.

        May unpack it anew: see the module.
        """
        try:
            return self._get(digest, pin)
        finally:
            self._empty_trash()

    def ready(self, digest: str, pin: str) -> CachedImage | None:
        """The image, pinned by `pin`, if it is here and nothing is to be done for it but what a loop may do. None: it
        is not here, or `get` has to look."""
        with self._changed:
            entry = self._entries.get(digest)
            if entry is None or entry.boot != self._boot or digest in self._busy:
                return None
            if time.monotonic() - entry.looked_at >= LOOK_EVERY_S:
                return None
            entry.pins.add(pin)
            self._entries.move_to_end(digest)
            return CachedImage(digest, entry.bytes, len(entry.pins))

    def where(self, digest: str) -> Prepared:
        """Where an image is unpacked that is here, and pinned by who asks. Raises `NotCached`."""
        with self._changed:
            if digest not in self._entries:
                raise NotCached(f"image {digest} is not in the cache")
            return self._prepared(digest)

    def bytes_of(self, digest: str) -> int:
        """What an image takes; 0 if it is not here."""
        with self._changed:
            entry = self._entries.get(digest)
            return entry.bytes if entry is not None else 0

    def incoming(self, digest: str, size: int) -> Path:
        """Where to fetch an image of `size` bytes to, to be admitted from there. Makes room for it, or raises
        `CacheFull`.

        Fetches of one digest at a time: the path is the same.
        """
        with self._changed:
            self._make_room(digest, size)
        self._empty_trash()
        return self._incoming / digest_hex(digest)

    def admit(self, digest: str, blob: Path, placed: Placed | None = None, *, pin: str | None = None) -> Prepared:
        """Takes over the verified file `blob` (on the same file system), and what of it is `placed` elsewhere there
        already, and unpacks it. What is here already is kept.

        `pin`: a key that pins it at once, so that nothing can evict it before it is used.
        Raises `BadImage`, or `CacheFull`; then what was to be taken over is removed and nothing is left.
        """
        with self._changed:
            self._wait_for(digest)
            if digest in self._entries:
                _discard(blob, placed)
                self._touch(digest)
                if pin is not None:
                    self._entries[digest].pins.add(pin)
                return self._prepared(digest)
            self._busy.add(digest)
        try:
            return self._make(digest, blob, placed, {pin} if pin is not None else set())
        finally:
            _discard(blob, placed)
            self._free(digest)

    def read(self, digest: str) -> Iterator[bytes]:
        """The image as it was fetched, in pieces. Not checked: who reads it has the manifest.

        Raises `NotCached`, at once or when the image is evicted meanwhile.
        """
        try:
            yield from self.parts(digest).pieces()
        except (OSError, EOFError) as error:
            raise NotCached(f"image {digest} is not in the cache any more ({error})") from None

    def parts(self, digest: str) -> Parts:
        """Where the bytes of the image as it was fetched are. Raises `NotCached`."""
        folder = self._path(digest)
        try:
            return Parts(folder / "blob", folder / "root", _read_marker(folder).moved)
        except (OSError, msgspec.MsgspecError) as error:
            raise NotCached(f"image {digest} is not in the cache ({error})") from None

    def pin(self, digest: str, key: str) -> None:
        """Keeps an image from being evicted until each key that pinned it has unpinned it. Raises `NotCached`.

        Pins are not kept over a restart: pin again what runs, before anything is admitted.
        """
        with self._changed:
            entry = self._entries.get(digest)
            if entry is None:
                raise NotCached(f"image {digest} is not in the cache: fetch and admit it before it is pinned")
            entry.pins.add(key)

    def unpin(self, digest: str, key: str) -> None:
        """Takes a pin away; nothing happens if it isn't there."""
        with self._changed:
            entry = self._entries.get(digest)
            if entry is not None:
                entry.pins.discard(key)

    def images(self) -> list[CachedImage]:
        """What is here, the least recently used first."""
        with self._changed:
            return [CachedImage(d, entry.bytes, len(entry.pins)) for d, entry in self._entries.items()]

    def used_bytes(self) -> int:
        """Bytes of all entries, those being made included."""
        with self._changed:
            return self._used

    # -- making --------------------------------------------------------------------------------------------------------

    def _get(self, digest: str, pin: str | None) -> Prepared | None:
        with self._changed:
            self._wait_for(digest)
            entry = self._entries.get(digest)
            if entry is None:
                return None
            if pin is not None:
                entry.pins.add(pin)
            if entry.boot == self._boot:
                prepared = self._prepared(digest)
                if prepared.entrypoint.is_file():
                    self._touch(digest)
                    return prepared
                log.warning("image %s was removed from %s by somebody else", digest, self._directory)
                self._remove(digest)
                return None
            self._busy.add(digest)
        try:
            return self._revive(digest, entry)
        finally:
            self._free(digest)

    def _make(self, digest: str, blob: Path, placed: Placed | None, pins: set[str]) -> Prepared:
        taken = 0

        def room(size: int) -> None:
            nonlocal taken
            with self._changed:
                self._make_room(digest, size)
                self._used += size
                taken += size
            self._empty_trash()

        folder = self._new_folder()
        kept = False
        try:
            room(_on_disk(blob.stat().st_size))
            folder.mkdir()
            os.rename(blob, folder / "blob")
            if placed is None:
                placed = place(folder / "blob", folder / "bodies", self.limits)
            _, moved = unpack(folder / "blob", folder / "root", limits=self.limits, room=room, placed=placed)
            if placed is not None and placed.parts:
                placed.folder.rmdir()
            marker = _Marker(1, taken, self._boot, moved)
            (folder / "complete").write_bytes(msgspec.msgpack.encode(marker))
            _stamp(folder)
            with self._changed:
                os.rename(folder, self._path(digest))
                self._entries[digest] = _Entry(taken, self._boot, pins, time.monotonic())
                kept = True
            return self._prepared(digest)
        except UnpacksTooLarge as error:
            raise CacheFull(f"image {digest} does not fit in a cache of {self.max_bytes} bytes: {error}") from error
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise CacheFull(f"{self._directory}: the disk refused a write ({error.strerror}): make room") from error
            raise
        finally:
            if not kept:
                remove_tree(folder)
                with self._changed:
                    self._used -= taken

    def _revive(self, digest: str, entry: _Entry) -> Prepared | None:
        """An entry of an earlier boot, made again from its blob, if that still has the digest."""
        blob = self._incoming / f"{digest_hex(digest)}.revived"
        chunker = Chunker()
        try:
            with open(blob, "xb") as file:
                for data in self.read(digest):
                    file.write(data)
                    for _ in chunker.feed(data):
                        pass
            sound = chunker.finish()[1].digest == digest
        except (OSError, EmptyImage, NotCached):
            sound = False
        with self._changed:
            self._remove(digest)
        try:
            if not sound:
                log.warning("image %s did not survive the restart of the machine: removed", digest)
                return None
            return self._make(digest, blob, None, entry.pins)
        finally:
            blob.unlink(missing_ok=True)

    def _make_room(self, digest: str, size: int) -> None:
        unused = [d for d, entry in self._entries.items() if not entry.pins and d not in self._busy]
        kept = self._used - sum(self._entries[each].bytes for each in unused)
        if kept + size > self.max_bytes:
            raise CacheFull(
                f"image {digest} does not fit: {size} bytes more are needed, and {kept} of {self.max_bytes} are used "
                "by images that run or are being made: stop instances, or raise the limit of the cache"
            )
        for victim in unused:
            if self._used + size <= self.max_bytes:
                return
            self._remove(victim)

    def _remove(self, digest: str) -> None:
        entry = self._entries.pop(digest)
        self._used -= entry.bytes
        folder = self._new_folder()
        with suppress(FileNotFoundError):  # somebody else was faster
            os.rename(self._path(digest), folder)  # gone at once, whatever happens to the rest
            self._trash.append(folder)

    def _empty_trash(self) -> None:
        """Removes what was evicted. Without the lock: a tree of many files takes its time."""
        while self._trash:
            with suppress(IndexError):  # another thread took the last one
                remove_tree(self._trash.pop())

    # -- inside --------------------------------------------------------------------------------------------------------

    def _path(self, digest: str) -> Path:
        return self._entry_dir / digest_hex(digest)

    def _prepared(self, digest: str) -> Prepared:
        root = self._path(digest) / "root"
        return Prepared(root, root / ENTRYPOINT)

    def _new_folder(self) -> Path:
        with self._changed:
            self._serial += 1
            return self._making / str(self._serial)

    def _touch(self, digest: str) -> None:
        self._entries.move_to_end(digest)
        self._entries[digest].looked_at = time.monotonic()
        _stamp(self._path(digest))

    def _wait_for(self, digest: str) -> None:
        """Until nobody makes this image. Whoever does is bounded by the size of the cache."""
        self._changed.wait_for(lambda: digest not in self._busy)

    def _free(self, digest: str) -> None:
        with self._changed:
            self._busy.discard(digest)
            self._changed.notify_all()

    def _recover(self) -> None:
        for folder in (self._incoming, self._making):
            for leftover in folder.iterdir():
                if leftover.is_dir():
                    remove_tree(leftover)
                else:
                    leftover.unlink()
        found: list[tuple[int, str, _Entry]] = []
        for path in self._entry_dir.iterdir():
            try:
                digest = f"b3:{path.name}"
                digest_hex(digest)
                used_at = (path / "complete").stat().st_mtime_ns
                marker = _read_marker(path)
                found.append((used_at, digest, _Entry(marker.bytes, marker.boot)))
            except Exception as error:
                log.warning("%s has no valid marker (%s): removed", path, error)
                remove_tree(path)
        for _, digest, entry in sorted(found, key=lambda each: each[:2]):
            self._entries[digest] = entry
            self._used += entry.bytes
        while self._used > self.max_bytes and self._entries:  # the limit was lowered
            self._remove(next(iter(self._entries)))
        self._empty_trash()


def _discard(blob: Path, placed: Placed | None) -> None:
    blob.unlink(missing_ok=True)
    if placed is not None:
        remove_tree(placed.folder)


def _stamp(folder: Path) -> None:
    """Notes that an entry is used now. Finer than the kernel's own stamps, which are equal for some milliseconds."""
    now = time.time_ns()
    os.utime(folder / "complete", ns=(now, now))


def _on_disk(size: int) -> int:
    return -(-size // 4096) * 4096


def _read_marker(folder: Path) -> _Marker:
    return msgspec.msgpack.decode((folder / "complete").read_bytes(), type=_Marker)
