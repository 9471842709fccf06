"""Keeping the blob of an image without keeping its bytes twice.

A plain tar archive and the folder unpacked from it have the same file bodies. So when a cache unpacks one, it moves
the large bodies: a piece is copied to the file, then cut out of the blob (a hole punched: the blocks are free, the
offsets stay), and so on. What the blob lacks is noted as `Moved`, and `Parts` puts it together again from both.
That halves what a cached image takes on the disk, and, because the pages of a piece that was cut out are used again
for the next piece, also the memory that unpacking takes from the page cache (bench/RESULTS.md).

Where the file system can't punch holes nothing is moved and the blob stays whole.
"""

from __future__ import annotations

import ctypes
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MIN_MOVED_BYTES = 1 << 16
"""A smaller body isn't worth the system calls."""
PIECE_BYTES = 1 << 20
_BLOCK_BYTES = 4096
_KEEP_SIZE_AND_PUNCH_HOLE = 0x01 | 0x02  # linux/falloc.h

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Moved:
    """`size` bytes at the offset `at` of the blob are those of the file `path` in the unpacked folder."""

    at: int
    size: int
    path: str


def can_punch(fd: int) -> bool:
    """Whether the file system of this file can punch holes; tried behind its end, where it changes nothing."""
    return _fallocate(fd, os.fstat(fd).st_size, _BLOCK_BYTES)


def punch(fd: int, start: int, end: int) -> None:
    """Frees the whole blocks between two offsets. What can't be freed stays, which harms nobody."""
    start = -(-start // _BLOCK_BYTES) * _BLOCK_BYTES
    end = end // _BLOCK_BYTES * _BLOCK_BYTES
    if end > start:
        _fallocate(fd, start, end - start)


def _fallocate(fd: int, at: int, size: int) -> bool:
    return bool(_libc.fallocate64(fd, _KEEP_SIZE_AND_PUNCH_HOLE, ctypes.c_int64(at), ctypes.c_int64(size)) == 0)


class Parts:
    """A blob and what was moved out of it, as one run of bytes."""

    def __init__(self, blob: Path, root: Path, moved: Sequence[Moved]) -> None:
        self._blob = blob
        self._root = root
        self._moved = sorted(moved, key=lambda each: each.at)
        self._starts = [part.at for part in self._moved]

    def read(self, at: int, size: int) -> bytes:
        """The bytes from `at` on. Raises `OSError`, `EOFError`."""
        return b"".join(self.pieces(at, at + size))

    def pieces(self, start: int, end: int | None = None) -> Iterator[bytes]:
        """The bytes between two offsets, in order; to the end of the blob by default. Raises `OSError`, `EOFError`."""
        with open(self._blob, "rb", buffering=0) as hollow:
            fd = hollow.fileno()
            at, end = start, os.fstat(fd).st_size if end is None else end
            for part in self._moved[max(0, bisect_right(self._starts, start) - 1) :]:
                if part.at >= end:
                    break
                if part.at + part.size <= at:
                    continue
                if at < part.at:
                    yield from _read(fd, at, part.at)
                    at = part.at
                body = os.open(self._root / part.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    stop = min(end, part.at + part.size)
                    yield from _read(body, at - part.at, stop - part.at)
                finally:
                    os.close(body)
                at = stop
            yield from _read(fd, at, end)


def _read(fd: int, start: int, end: int) -> Iterator[bytes]:
    while start < end:
        data = os.pread(fd, min(PIECE_BYTES, end - start), start)
        if not data:
            raise EOFError(f"expected {end - start} more bytes")
        yield data
        start += len(data)
