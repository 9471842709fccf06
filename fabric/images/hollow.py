"""Keeping the blob of an image without keeping its bytes twice.

A plain tar archive and the folder unpacked from it have the same file bodies. So the large ones are not in the blob: as
an image comes they are written to files of their own (`fabric.images.placing`), and what came before it was known to be
part of one is moved there: copied inside the kernel, then cut out of the blob (a hole punched: the blocks are free, the
offsets stay). What the blob lacks is noted as `Moved`, and `Parts` puts it together again from both. That halves what a
cached image takes on the disk, and the memory that it takes from the page cache (bench/RESULTS.md).

Where the file system can't punch holes nothing is kept apart and the blob is whole.
"""

from __future__ import annotations

import ctypes
import errno
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from fabric.images.stretch import Cut, Segment, Stretch
from fabric.images.tarwalk import Walked

MIN_MOVED_BYTES = 1 << 16
"""A smaller body isn't worth the system calls."""
_PIECE_BYTES = 1 << 20
_NO_KERNEL_COPY = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}
_BLOCK_BYTES = 4096
_KEEP_SIZE_AND_PUNCH_HOLE = 0x01 | 0x02  # linux/falloc.h

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Moved:
    """`size` bytes at the offset `at` of the blob are those of the file `path` in some folder."""

    at: int
    size: int
    path: str


@dataclass(frozen=True, slots=True)
class Placed:
    """The large bodies of a blob, each in a file of its own in `folder`, which need not be there if there are none.
    `walked`: what the headers say, if it was read to the end and keeps the rules, so that it need not be read again."""

    folder: Path
    parts: tuple[Moved, ...] = ()
    walked: Walked | None = None


def can_punch(fd: int) -> bool:
    """Whether the file system of this file can punch holes; tried behind its end, where it changes nothing."""
    return _fallocate(fd, os.fstat(fd).st_size, _BLOCK_BYTES)


def punch(fd: int, start: int, end: int) -> None:
    """Frees the whole blocks between two offsets. What can't be freed stays, which harms nobody."""
    start = -(-start // _BLOCK_BYTES) * _BLOCK_BYTES
    end = end // _BLOCK_BYTES * _BLOCK_BYTES
    if end > start:
        _fallocate(fd, start, end - start)


def copy(source: int, start: int, into: int, at: int, size: int) -> int:
    """Copies bytes from one file to another inside the kernel, at most `size`; answers with how many, 0 at the end of
    the source."""
    try:
        return os.copy_file_range(source, into, size, start, at)
    except OSError as error:
        if error.errno not in _NO_KERNEL_COPY:
            raise
    os.lseek(into, at, os.SEEK_SET)
    return os.sendfile(into, source, start, size)


def move(source: int, start: int, into: int, at: int, size: int, cut: Cut) -> None:
    """The same for all of `size` bytes, which are then cut out of the source. Raises `EOFError` if it has fewer."""
    end = start + size
    while start < end:
        copied = copy(source, start, into, at, min(end - start, _PIECE_BYTES))
        if not copied:
            raise EOFError(f"expected {end - start} more bytes")
        cut(source, start, start + copied)
        start, at = start + copied, at + copied


def parts_in(parts: Sequence[Moved], start: int, end: int) -> Iterator[Moved]:
    """Those of `parts`, which are in order, that have bytes between two offsets."""
    first = bisect_right(parts, start, key=lambda part: part.at) - 1
    for part in islice(parts, max(0, first), None):
        if part.at >= end:
            return
        if part.at + part.size > start:
            yield part


def segments_of(blob: int, folder: Path, parts: Sequence[Moved], start: int, end: int) -> list[Segment]:
    """Where the bytes between two offsets of the whole are; `parts`, in order, are in `folder`. Those in it are opened
    for the caller, who has the blob open. Raises `OSError`, and then none is open."""
    found: list[Segment] = []
    at = start
    try:
        for part in parts_in(parts, start, end):
            if at < part.at:
                found.append(Segment(blob, at, part.at - at))
                at = part.at
            body = os.open(folder / part.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            stop = min(end, part.at + part.size)
            found.append(Segment(body, at - part.at, stop - at))
            at = stop
    except OSError:
        for one in found:
            if one.fd != blob:
                os.close(one.fd)
        raise
    if at < end:
        found.append(Segment(blob, at, end - at))
    return found


def _fallocate(fd: int, at: int, size: int) -> bool:
    return bool(_libc.fallocate64(fd, _KEEP_SIZE_AND_PUNCH_HOLE, ctypes.c_int64(at), ctypes.c_int64(size)) == 0)


class Parts:
    """A blob and what is not in it, as one run of bytes."""

    def __init__(self, blob: Path, root: Path, moved: Sequence[Moved]) -> None:
        self._blob = blob
        self._root = root
        self._moved = sorted(moved, key=lambda each: each.at)

    def open(self, at: int, size: int) -> Stretch:
        """The bytes from `at` on. Raises `OSError`."""
        blob = os.open(self._blob, os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = segments_of(blob, self._root, self._moved, at, at + size)
        except BaseException:
            os.close(blob)
            raise
        if all(one.fd != blob for one in found):
            os.close(blob)
        return Stretch(found)

    def pieces(self) -> Iterator[bytes]:
        """All bytes, in order. Raises `OSError`, `EOFError`."""
        size = self._blob.stat().st_size
        for at in range(0, size, _PIECE_BYTES):
            with closing(self.open(at, min(_PIECE_BYTES, size - at))) as stretch:
                yield stretch.read()
