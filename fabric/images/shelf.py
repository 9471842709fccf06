"""The files of a chunk store and the room they take. Knows names and bytes; what refers to what is the store's
affair.

    directory/
      lock              one process at a time
      chunks/<hex>      one file a chunk, named by its hash
      manifests/<hex>   one file an image, named by its digest
      partial/          files being written; renamed into place when whole

Room is reserved before anything is written, so `max_bytes` is never passed, not even by two writers at once. A disk
that refuses a write leaves nothing behind and raises `StoreFull`, like the limit does.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

from fabric.images.errors import StoreBusy, StoreFull
from fabric.images.manifest import Buffer, chunk_hash

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG}
_NAME = re.compile(r"^[0-9a-f]{64}\Z")


class Shelf:
    def __init__(self, directory: Path, max_bytes: int | None) -> None:
        """Makes what is missing and removes what was being written. Raises `StoreBusy` if another process is here."""
        self.directory = directory
        self.max_bytes = max_bytes
        self.chunks, self.manifests = directory / "chunks", directory / "manifests"
        self._partial = directory / "partial"
        for folder in (self.chunks, self.manifests, self._partial):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock = Lock()
        self._used = 0
        self._names = itertools.count()
        self._lock_fd = lock_directory(directory)
        for leftover in self._partial.iterdir():
            leftover.unlink()

    def close(self) -> None:
        """Lets another process open the directory. A repeat does nothing."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def chunk_path(self, chunk: bytes) -> Path:
        return self.chunks / chunk.hex()

    def used_bytes(self) -> int:
        return self._used

    def free_bytes(self) -> int:
        """What the limit leaves, and never more than the disk has."""
        disk = os.statvfs(self.directory)
        room = disk.f_bavail * disk.f_frsize
        return room if self.max_bytes is None else max(0, min(room, self.max_bytes - self._used))

    def count(self, size: int) -> None:
        """Counts bytes that are there anyway (found at opening), or with a negative size, bytes that went."""
        with self._lock:
            self._used += size

    @contextmanager
    def room(self, size: int) -> Iterator[list[bool]]:
        """Reserves `size` bytes for the block, for good if it says so by appending to the list it is given."""
        with self._lock:
            if self.max_bytes is not None and self._used + size > self.max_bytes:
                raise StoreFull(
                    f"{self.directory}: {size} bytes do not fit, {self._used} of {self.max_bytes} bytes are used: "
                    "drop images or raise the limit"
                )
            self._used += size
        kept: list[bool] = []
        try:
            yield kept
        finally:
            if not kept:
                self.count(-size)

    def write(self, data: Buffer, *, durable: bool) -> Path:
        """A new file with `data`, to be renamed into place. Leaves nothing when it fails; raises `StoreFull`."""
        path = self._partial / str(next(self._names))
        try:
            with open(path, "xb", buffering=0) as file:
                view = memoryview(data)
                while view:
                    view = view[file.write(view) :]
                if durable:
                    os.fsync(file.fileno())
        except OSError as error:
            with suppress(OSError):
                path.unlink()
            raise self.refused(error) from error
        return path

    def refused(self, error: OSError) -> Exception:
        """The error to raise for a failed write: `StoreFull` if the disk is to blame, else what it was."""
        if error.errno not in _NO_ROOM:
            return error
        return StoreFull(f"{self.directory}: the disk refused a write ({error.strerror}): make room or drop images")

    def read_chunk(self, chunk: bytes, size: int, from_disk: bool = False) -> tuple[bytes | None, int]:
        """The bytes of a chunk file, or None if they are not `size` bytes with this hash; and the inode they are in.
        `from_disk`: not what the kernel remembers of it, as far as that has been written."""
        fd = self.open_chunk(chunk)
        try:
            if from_disk:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            data = os.pread(fd, size + 1, 0)
            sound = len(data) == size and chunk_hash(data) == chunk
            return (data if sound else None), os.fstat(fd).st_ino
        finally:
            os.close(fd)

    def open_chunk(self, chunk: bytes) -> int:
        """A file descriptor, to be closed by the caller. Raises `OSError`."""
        return os.open(self.chunk_path(chunk), os.O_RDONLY | os.O_CLOEXEC)

    def remove_chunk(self, chunk: bytes, size: int) -> None:
        """Removes a chunk file, if it is there, and gives back the `size` bytes that were counted for it."""
        self.count(-size)
        self.chunk_path(chunk).unlink(missing_ok=True)

    def chunk_sizes(self) -> dict[bytes, int]:
        """Every chunk file and its size in bytes. Files that are not ours by their names are left alone."""
        with os.scandir(self.chunks) as files:
            return {bytes.fromhex(f.name): f.stat().st_size for f in files if _NAME.match(f.name)}

    def manifest_paths(self) -> list[Path]:
        return sorted(path for path in self.manifests.iterdir() if _NAME.match(path.name))


def lock_directory(directory: Path) -> int:
    """An open file descriptor that keeps other processes out until it is closed. Raises `StoreBusy`."""
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise StoreBusy(f"{directory} is in use by another process: stop it, or use another directory") from None
    return fd


def sync(path: Path) -> None:
    """Makes a file, or the names in a folder, durable."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
