"""Bytes that lie in open files, to be given to a socket by the kernel (sendfile) without passing through this process.

Whoever makes a stretch has seen that these bytes are what they should be. They stay so until it is closed: the files
are open, so nothing is lost when one is renamed or removed meanwhile; and who cuts holes into a file waits for those
who read there (`Holes`).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from threading import Lock
from typing import NamedTuple

Cut = Callable[[int, int, int], None]
"""Cuts a hole into an open file, between two offsets (`fabric.images.hollow.punch`)."""
Span = tuple[int, int]
"""From the first offset to before the second."""


class Segment(NamedTuple):
    """`size` bytes of the open file `fd`, from `at` on."""

    fd: int
    at: int
    size: int


class Stretch:
    """Segments one after the other, for one thread."""

    def __init__(self, segments: Iterable[Segment], ended: Callable[[], None] | None = None) -> None:
        """Their files are closed with it; `ended` is called just before."""
        self._left = deque(segments)
        self._files = {one.fd for one in self._left}
        self._ended = ended
        self.size = sum([one.size for one in self._left])

    def __bool__(self) -> bool:
        """Whether there is more to send."""
        return bool(self._left)

    def send(self, socket: int) -> int:
        """Gives the next bytes to a socket. Answers with how many it took. Raises `EOFError` if the file is shorter
        than it was, `BlockingIOError`, `OSError`."""
        first = self._left[0]
        sent = os.sendfile(socket, first.fd, first.at, first.size)
        if not sent:
            raise EOFError(f"expected {first.size} more bytes in a file of an image, found its end: it was cut off")
        if sent == first.size:
            self._left.popleft()
        else:
            self._left[0] = Segment(first.fd, first.at + sent, first.size - sent)
        return sent

    def read(self) -> bytes:
        """All that is left, for who needs it here. Raises `EOFError`, `OSError`."""
        found = []
        for one in self._left:
            at, end = one.at, one.at + one.size
            while at < end:
                data = os.pread(one.fd, end - at, at)
                if not data:
                    raise EOFError(f"expected {end - at} more bytes in a file of an image, found its end")
                found.append(data)
                at += len(data)
        return b"".join(found)

    def close(self) -> None:
        """A repeat does nothing."""
        files, self._files, self._left = self._files, set(), deque()
        if files and self._ended is not None:
            self._ended()
        for fd in files:
            os.close(fd)


class Holes:
    """What is to be cut out of one file, each when nobody reads there any more. For any thread."""

    def __init__(self, cut: Cut) -> None:
        self._cut = cut
        self._lock = Lock()
        self._uses: dict[int, tuple[Span, ...]] = {}
        self._next = 0
        self._waiting: list[Span] = []

    def use(self, spans: Iterable[Span]) -> int:
        """Somebody reads there from now on. Answers with what to `end` it by."""
        with self._lock:
            self._next += 1
            self._uses[self._next] = tuple(spans)
            return self._next

    def end(self, use: int, fd: int) -> None:
        """Cuts what waited for this; `fd`: the file, open for writing."""
        with self._lock:
            del self._uses[use]
            free = [span for span in self._waiting if not self._used(span)]
            self._waiting = [span for span in self._waiting if span not in free]
            for start, end in free:
                self._cut(fd, start, end)

    def cut(self, fd: int, start: int, end: int) -> None:
        """Now, or when the last one who reads there has ended."""
        with self._lock:
            if self._used((start, end)):
                self._waiting.append((start, end))
            else:
                self._cut(fd, start, end)

    def _used(self, span: Span) -> bool:
        return any(a < span[1] and span[0] < b for spans in self._uses.values() for a, b in spans)
