"""Contents on disk, by digest: what references gave, once for all boot stubs of a process.

Theory of operation. A content is written beside its final name, hashed on the way, and renamed when it is whole and
what its reference said it is: a file under its name is never half. The name is the blake3 digest, so that the same
content is there once, whatever it was called. `hold` ties a file to an object: as long as that lives, the file stays.
Beyond `max_bytes` the file that was used longest ago goes, if nobody holds it. A file that somebody else removed counts
as not there.

The directory is one process's own (a lock says so). A file from an earlier process is hashed again before its first
use. All methods are for one thread; hashing and copying of large files is left to the caller's threads.
"""

from __future__ import annotations

import fcntl
import os
import re
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from deploy.repository.digests import Buffer, Digester
from deploy.resolved import CodeFile, Unresolved

_NAME = re.compile(r"[0-9a-f]{64}")
_LOCK = "lock"
_PARTIAL = ".partial"
_READ_BYTES = 1 << 20


class CacheBusy(Exception):
    """Another process has this directory."""


@dataclass(slots=True)
class _Entry:
    size: int
    verified: bool
    users: list[weakref.ref[CodeFile]] = field(default_factory=list)

    @property
    def used(self) -> bool:
        self.users = [user for user in self.users if user() is not None]
        return bool(self.users)


class ContentCache:
    """Raises CacheBusy, OSError."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.directory = directory
        self.max_bytes = max_bytes
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # by name, the one used longest ago first
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise CacheBusy(f"{directory}: expected a directory of this process alone, found one in use") from None
        self._find()

    def close(self) -> None:
        os.close(self._lock)

    @property
    def bytes(self) -> int:
        return sum(entry.size for entry in self._entries.values())

    def path(self, digest: str) -> Path | None:
        """Of a verified content ("blake3:…"), which is in use now; None: it is not here."""
        name = _name(digest)
        entry = self._entries.get(name)
        if entry is None or not entry.verified:
            return None
        if not os.path.exists(self.directory / name):
            del self._entries[name]
            return None
        self._entries.move_to_end(name)
        return self.directory / name

    def unverified(self, digest: str) -> Path | None:
        """Of a content that an earlier process left: hash it (`digest_of_file`), then tell `verified`."""
        name = _name(digest)
        entry = self._entries.get(name)
        return self.directory / name if entry is not None and not entry.verified else None

    def verified(self, digest: str, found: str) -> None:
        name = _name(digest)
        entry = self._entries.get(name)
        if entry is not None:
            entry.verified = entry.verified or found == digest
            if not entry.verified:
                self._remove(name)

    def hold(self, digest: str, user: CodeFile) -> None:
        """The file stays as long as `user` lives."""
        self._entries[_name(digest)].users.append(weakref.ref(user))

    def incoming(self, declared: str) -> Incoming:
        """Raises Unresolved when the disk refuses it."""
        return Incoming(self, declared)

    def admit(self, partial: Path, digest: str, size: int) -> Path:
        """A whole file takes its name. Raises Unresolved when there is no room for it."""
        name = _name(digest)
        known = self._entries.pop(name, None)
        for oldest in list(self._entries):
            if self.bytes + size <= self.max_bytes:
                break
            if not self._entries[oldest].used:
                self._remove(oldest)
        if self.bytes + size > self.max_bytes:
            if known is not None:
                self._entries[name] = known
            raise Unresolved(
                f"{self.directory}: expected room for {size:,} bytes more, found {self.bytes:,} of {self.max_bytes:,} "
                "in use: let the cache be larger",
                again=True,
            )
        try:
            os.chmod(partial, 0o400)
            os.rename(partial, self.directory / name)
        except OSError as error:
            raise _refused(self.directory, "to name it", error) from None
        self._entries[name] = _Entry(size, True, known.users if known is not None else [])
        return self.directory / name

    def _find(self) -> None:
        found = []
        for entry in os.scandir(self.directory):
            if entry.name.endswith(_PARTIAL):
                os.unlink(entry.path)
            elif _NAME.fullmatch(entry.name):
                found.append((entry.stat().st_mtime, entry.name, entry.stat().st_size))
        for _, name, size in sorted(found):
            self._entries[name] = _Entry(size, False)

    def _remove(self, name: str) -> None:
        del self._entries[name]
        with suppress(FileNotFoundError):
            os.unlink(self.directory / name)


class Incoming:
    """A content on its way in. End it with `commit` or `abort`; several writers at once would mix."""

    def __init__(self, cache: ContentCache, declared: str) -> None:
        self._cache = cache
        self.path = cache.directory / f"{uuid4().hex}{_PARTIAL}"
        try:
            self._file = open(self.path, "xb", buffering=0)  # noqa: SIM115 - closed by commit and abort
        except OSError as error:
            raise _refused(cache.directory, "a new file", error) from None
        self._digester = Digester(declared)
        self._declared = declared

    def write(self, data: Buffer) -> None:
        """Raises Unresolved when the disk refuses it."""
        try:
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise _refused(self._cache.directory, "a write", error) from None
        self._digester.update(data)

    def commit(self, whence: str) -> str:
        """The content's digest; it is in the cache now. `whence`: for the error. Raises Unresolved."""
        if found := self._digester.mismatch():
            raise Unresolved(f"{whence}: expected {self._declared}, found {found}", again=False)
        self._file.close()
        self._cache.admit(self.path, self._digester.digest, self._digester.size)
        return self._digester.digest

    def abort(self) -> None:
        self._file.close()
        with suppress(FileNotFoundError):
            self.path.unlink()


def _refused(directory: Path, what: str, error: OSError) -> Unresolved:
    return Unresolved(f"{directory}: the disk refused {what}: {error.strerror}", again=True)


def chunks_of_file(fd: int) -> Iterator[bytes]:
    at = 0
    while chunk := os.pread(fd, _READ_BYTES, at):
        at += len(chunk)
        yield chunk


def digest_of_file(path: Path) -> str:
    """Blocks. Raises OSError."""
    digester = Digester()
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for chunk in chunks_of_file(fd):
            digester.update(chunk)
    finally:
        os.close(fd)
    return digester.digest


def _name(digest: str) -> str:
    return digest.rpartition(":")[2]
