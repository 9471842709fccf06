"""Files of a repository, read whole and digested, held so that they stay what they were.

A file that changes while it is read is read again. One whose last change is so recent (`YOUNG_S`) that the next might
not show in its times is `young`: whoever keeps what was read looks again later. Large files are not kept in memory but
held open: who edits by renaming leaves them as they were. Everything here blocks.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from deploy.repository.digests import Digester

MAX_PATH_CHARS = 512
IN_MEMORY_BYTES = 1 << 18
"""A larger document is held as an open file."""
YOUNG_S = 0.1
READ_TRIES = 5
MAX_FILES = 100_000
_READ_BYTES = 1 << 20

_NAME = re.compile(r"[A-Za-z0-9_@+,=~-][A-Za-z0-9_@+,=~ .-]{0,127}", re.ASCII)


class BadFolder(Exception):
    """What is there cannot be served: which file, where, what was expected, what was found. `problems`: all of it."""

    def __init__(self, *problems: str) -> None:
        more = f"; and {len(problems) - 3} more problems" if len(problems) > 3 else ""
        super().__init__("; ".join(problems[:3]) + more)
        self.problems = problems


class NoDocument(Exception):
    """Nothing to serve at this path; `str()` says why."""


Signature = tuple[int, int, int, int]
"""Device, inode, size, time of the last change in ns."""


@dataclass(frozen=True, slots=True)
class Document:
    """`path`: below the directory, without a leading slash. `data` is None when it is held by `fd`."""

    path: str
    digest: str
    size: int
    signature: Signature
    young: bool
    data: bytes | None
    held: Held | None = None

    @property
    def etag(self) -> str:
        return f'"{self.digest.rpartition(":")[2]}"'


class Held:
    """An open file, closed when the last document that refers to it is dropped."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        with suppress(OSError):
            os.close(self.fd)


def load(root: Path, path: str, largest: int) -> Document:
    """Read and digest a file, as often as it changes meanwhile. `root` has no symbolic links. Raises BadFolder."""
    for _ in range(READ_TRIES):
        document = _load_once(root, path, largest)
        if document is not None:
            return document
    raise BadFolder(f"{path}: expected it to stay as it is while it is read, found it changed {READ_TRIES} times")


def _load_once(root: Path, path: str, largest: int) -> Document | None:
    real = os.path.realpath(root / path)
    if not real.startswith(f"{root}/".replace("//", "/")):
        raise BadFolder(f"{path}: expected a file below {root}, found a symbolic link to {real}")
    try:
        held = Held(os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC))
        found = os.fstat(held.fd)
        if not stat.S_ISREG(found.st_mode):
            raise BadFolder(f"{path}: expected a file, found something else")
        if found.st_size > largest:
            raise BadFolder(f"{path}: expected at most {largest:,} bytes, found {found.st_size:,}")
        before = _signed(found)
        young = -1.0 < time.time() - found.st_mtime < YOUNG_S  # far in the future: a clock is wrong, not the file
        digester = Digester()
        pieces = []
        for chunk in read_all(held.fd, found.st_size):
            digester.update(chunk)
            if found.st_size <= IN_MEMORY_BYTES:
                pieces.append(chunk)
        if (
            digester.size != found.st_size
            or _signed(os.fstat(held.fd)) != before
            or signature_of(root / path) != before
        ):
            return None
    except OSError as error:
        raise BadFolder(f"{path}: expected a file that can be read: {error.strerror}") from None
    data = b"".join(pieces) if found.st_size <= IN_MEMORY_BYTES else None
    return Document(path, digester.digest, digester.size, before, young, data, held if data is None else None)


def read_all(fd: int, size: int) -> Iterator[bytes]:
    at = 0
    while at < size and (chunk := os.pread(fd, min(_READ_BYTES, size - at), at)):
        at += len(chunk)
        yield chunk


def chunks_of(document: Document) -> Iterator[bytes]:
    """Raises OSError."""
    if document.held is None:
        yield document.data or b""
    else:
        yield from read_all(document.held.fd, document.size)


def content_of(document: Document) -> bytes:
    return b"".join(chunks_of(document))


def signature_of(path: Path) -> Signature | None:
    try:
        return _signed(os.stat(path))
    except OSError:
        return None


def _signed(found: os.stat_result) -> Signature:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def plain(quoted: str) -> str:
    """The path below the directory that a URL's path means. Raises NoDocument."""
    path = unquote(quoted)
    if len(path) > MAX_PATH_CHARS or not all(_NAME.fullmatch(part) for part in path.split("/")):
        raise NoDocument(
            f"expected names of ASCII letters, digits and some signs, not beginning with a dot, found {path[:100]!r}"
        )
    return path


def files_below(root: Path) -> Iterator[str]:
    """Paths of all that could be served, at most `MAX_FILES` of them."""
    left = MAX_FILES
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if _NAME.fullmatch(name))
        for name in sorted(files)[:left]:
            left -= 1
            if _NAME.fullmatch(name):
                yield os.path.relpath(os.path.join(folder, name), root)
