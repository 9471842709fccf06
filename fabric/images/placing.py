"""Where the bytes of an image go, as they come: large file bodies of a plain archive to files of their own, all else to
the blob. So they are written once, and unpacking renames what is there already.

Chunks come in any order. As far as the bytes from the start are here, the archive's headers are read by the same rules
as when it is unpacked (`fabric.images.tarwalk`), so it is known where its bodies are, up to some offset:

    blob    header | (hole)          | header | small | header | (hole)   | not known yet ...
    bodies           0: large                                    1: large

What comes for a body that is known is written to its file. What had come before it was known is moved there
(`fabric.images.hollow`). Nothing is decided here: a body is placed when its header keeps the rules, and at the first
one that doesn't, placing ends, the rest goes to the blob, and unpacking says what is wrong with it. If all do, they
need not be read again: they are kept (in memory that the rules bound). An image that is no plain archive is all blob.

Threads: `Placer` is for the fetch's; a `Reader` opens, on any thread, what was written. What is being read while it
moves is copied at once, and cut out of the blob when it was read.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from threading import Lock

from fabric.images.archive import is_plain
from fabric.images.errors import BadImage
from fabric.images.hollow import MIN_MOVED_BYTES, Moved, Placed, can_punch, move, parts_in, punch, segments_of
from fabric.images.manifest import CHUNK_BYTES, Buffer
from fabric.images.stretch import Holes, Segment, Stretch
from fabric.images.tarwalk import BLOCK, Body, Layout, Limits, Member, Need, Walked, walk


class Placer:
    """One image that comes. Its methods raise `OSError`; to be closed."""

    def __init__(self, blob: int, bodies: Path | None, size: int, chunk_bytes: int, limits: Limits) -> None:
        """`blob`: a file to read and write, which stays the caller's. `bodies`: a folder that is made when there is
        anything for it; None, or a file system that can't punch holes: all goes to the blob. `limits`: those of
        unpacking it."""
        os.ftruncate(blob, size)
        self._blob, self._size, self._chunk_bytes = blob, size, chunk_bytes
        self._bodies = bodies if bodies is not None and can_punch(blob) else None
        self._parts: list[Moved] = []
        self._body: tuple[Moved, int] | None = None
        self._lock = Lock()
        """Held while it is looked up where bytes are, or they move."""
        self._holes = Holes(punch)
        self._here = bytearray(-(-size // chunk_bytes))
        self._new, self._data = -1, memoryview(b"")
        """The chunk that is about to be written."""
        self._layout = Layout(limits)
        self._members: list[tuple[int, Body]] = []
        self._walk: Generator[Need | Body, bytes, None] | None = None
        self._walked: Walked | None = None
        self._reading = self._bodies is not None
        """There may be more headers, the next one in the `_need` bytes at `_at`."""
        self._at, self._need = 0, BLOCK

    def write(self, index: int, data: Buffer) -> None:
        """The bytes of chunk `index`, once."""
        self._new, self._data = index, memoryview(data)
        self._read_headers()
        at, end, left = index * self._chunk_bytes, index * self._chunk_bytes + len(data), self._data
        for part in parts_in(self._parts, at, end):
            if at < part.at:
                _write(self._blob, at, left[: part.at - at])
                at, left = part.at, left[part.at - at :]
            stop = min(end, part.at + part.size)
            _write(self._body_of(part), at - part.at, left[: stop - at])
            if stop == end:
                break
            at, left = stop, left[stop - at :]
        else:
            _write(self._blob, at, left)
        self._here[index] = True
        self._new, self._data = -1, memoryview(b"")

    def close(self) -> None:
        """The blob stays open. A repeat does nothing."""
        if self._body is not None:
            os.close(self._body[1])
            self._body = None

    def found(self) -> None:
        """All of it is in the blob, from before."""
        self._here = bytearray(b"\1" * len(self._here))
        self._read_headers()

    def placed(self) -> Placed | None:
        """Where the bodies are; complete when all chunks are here."""
        return None if self._bodies is None else Placed(self._bodies, tuple(self._parts), self._walked)

    def reader(self) -> Reader:
        """To be closed by the caller, sooner or later than the blob."""
        return Reader(os.dup(self._blob), self._bodies, self._parts, self._lock, self._holes)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _read_headers(self) -> None:
        """Walks on, as far as the bytes from the start are here."""
        try:
            while self._reading and (answer := self._bytes(self._at, self._need)) is not None:
                self._at += len(answer)
                self._step(answer)
        except StopIteration:
            self._reading, self._walked = False, Walked(self._members, self._layout)
        except BadImage:
            self._reading = False

    def _step(self, answer: bytes) -> None:
        if self._walk is None:
            if not is_plain(answer):
                raise BadImage("no plain archive")
            self._walk = walk(self._layout.limits, self._layout)
            next(self._walk)
        wanted = self._walk.send(answer)
        while isinstance(wanted, Body):
            self._place(wanted.member)
            self._members.append((self._at, wanted))
            self._at += wanted.padded_bytes
            wanted = self._walk.send(b"")
        self._need = wanted.bytes

    def _body_of(self, part: Moved) -> int:
        """Its file, which stays open until another one is written: chunks of a large body come one after the other."""
        if self._body is None or self._body[0] is not part:
            self.close()
            assert self._bodies is not None
            flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            self._body = (part, os.open(self._bodies / part.path, flags))
        return self._body[1]

    def _bytes(self, start: int, size: int) -> bytes | None:
        """What there is of these bytes; None: some have not come. Those of headers are in the blob."""
        at, end = start, min(start + size, self._size)
        found = b""
        while at < end:
            index = at // self._chunk_bytes
            begins, stop = index * self._chunk_bytes, min(end, (index + 1) * self._chunk_bytes)
            if index == self._new:
                found += self._data[at - begins : stop - begins]
            elif self._here[index]:
                found += os.pread(self._blob, stop - at, at)
            else:
                return None
            at = stop
        return found

    def _place(self, member: Member) -> None:
        """A file of its own for a large body, which begins here."""
        if member.size < MIN_MOVED_BYTES:
            return
        if self._at + member.size > self._size:
            raise BadImage("cut off")
        assert self._bodies is not None
        if not self._parts:
            self._bodies.mkdir(0o700)
        part = Moved(self._at, member.size, str(len(self._parts)))
        fd = os.open(self._bodies / part.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with self._lock:
                self._fill(fd, part)
                self._parts.append(part)
        finally:
            os.close(fd)

    def _fill(self, body: int, part: Moved) -> None:
        """With what has come already."""
        at, end = part.at, part.at + part.size
        while at < end:
            index = at // self._chunk_bytes
            stop = min(end, (index + 1) * self._chunk_bytes)
            if self._here[index]:
                move(self._blob, at, body, at - part.at, stop - at, self._holes.cut)
            at = stop
        self._holes.cut(self._blob, part.at, end)  # also the blocks that two chunks share


class Reader:
    """What has come, wherever it is. Once the bodies have been renamed, some of it can't be opened."""

    def __init__(self, blob: int, bodies: Path | None, parts: list[Moved], lock: Lock, holes: Holes) -> None:
        self._blob, self._bodies, self._parts, self._lock, self._holes = blob, bodies, parts, lock, holes

    def open(self, at: int, size: int) -> Stretch:
        """Raises `OSError`."""
        with self._lock:
            found = segments_of(self._blob, self._bodies or Path(), self._parts, at, at + size)
            spans = [(one.at, one.at + one.size) for one in found if one.fd == self._blob]
            if not spans:
                return Stretch(found)
            try:
                blob = os.dup(self._blob)
            except OSError:
                Stretch([one for one in found if one.fd != self._blob]).close()
                raise
            use = self._holes.use(spans)
            mine = [Segment(blob, one.at, one.size) if one.fd == self._blob else one for one in found]
        return Stretch(mine, lambda: self._holes.end(use, blob))

    def close(self) -> None:
        if self._blob >= 0:
            os.close(self._blob)
            self._blob = -1


def place(blob: Path, bodies: Path, limits: Limits) -> Placed | None:
    """Moves the large bodies of the image in the file `blob` to files in the new folder `bodies`. None: they stay,
    because the file system can't punch holes. Raises `OSError`."""
    with open(blob, "r+b", buffering=0) as file:
        placer = Placer(file.fileno(), bodies, blob.stat().st_size, CHUNK_BYTES, limits)
        placer.found()
        return placer.placed()


def _write(fd: int, at: int, data: memoryview) -> None:
    while (written := os.pwrite(fd, data, at)) < len(data):
        at, data = at + written, data[written:]
