"""Memory for chunks, while chunks are on their way.

Each chunk that comes or goes takes a block of 1 MiB from the C library's heap. By default such a block is mapped anew
each time and given back at once, so that each of its pages is made, filled with zeros and taken apart again for one
chunk: about half of the kernel's part of a fetch's CPU time. While anybody is in `roomy`, blocks stay in the heap and
are used again; when the last one has left, all that is free is given back, and is from then on as soon as it is free.
That blocks of this size come from the heap stays so: the threshold for it can't be left to the library again, which
would move it with the sizes that it sees.

What the blocks take together is bounded by those who take them (windows and credit), not here. Where the C library has
no such switches, nothing happens.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h
_KEPT_BYTES = 64 << 20
"""Free bytes at the end of a heap that are not given back while chunks are on their way."""
_LARGEST_BYTES = 8 << 20
"""Larger blocks are mapped by themselves all the same: no chunk or manifest is."""
_KEPT_LATER_BYTES = 1 << 20
"""The same, when none are: some pages for what comes and goes."""

_libc = ctypes.CDLL(None)
_lock = threading.Lock()
_users = 0


def enter() -> None:
    global _users
    with _lock:
        _users += 1
        if _users == 1:
            _set(_KEPT_BYTES)


def leave() -> None:
    global _users
    with _lock:
        _users -= 1
        if not _users:
            _set(_KEPT_LATER_BYTES)
            if hasattr(_libc, "malloc_trim"):
                _libc.malloc_trim(0)


@contextmanager
def roomy() -> Iterator[None]:
    enter()
    try:
        yield
    finally:
        leave()


def _set(kept: int) -> None:
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_TRIM_THRESHOLD, kept)
        _libc.mallopt(_MMAP_THRESHOLD, _LARGEST_BYTES)
