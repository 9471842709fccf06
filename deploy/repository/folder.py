"""A repository's directory: repository.xml, and the documents beside and below it.

Theory of operation. `look` compares what `stat` says of repository.xml and of every document that it refers to with
what it said last time, and when anything differs makes a new `Snapshot`: information whose own references have whole
URLs and digests, the documents themselves, and the generation, which changes exactly when one of these does. A snapshot
never changes and holds all that it refers to (small documents in memory, large ones by an open file), so what is served
of it fits together, also while somebody edits. Who edits should write beside and rename; a document that changed while
it was read is read again, and one whose last change is so recent that the next would not show in its times is looked at
again until it has come to rest.

A description that is broken (repository.xml that can't be read, a document that is missing or no configuration, a
digest that is not so) does not replace the last good one: `broken` says what is wrong. Only a first one must be good.

Documents are files below the directory, whatever their depth; names that begin with a dot are nobody's business, and
symbolic links that lead out are refused. `document` also gives those that nothing refers to: installation programs may
fetch more from here.

Everything here blocks; it is called in a thread, except `is_current`, which only asks for times.
"""

from __future__ import annotations

import logging
import os
import re
import stat
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

from blake3 import blake3

from deploy.described import Content
from deploy.documents import (
    CONFIGURATION_LIMITS,
    INFORMATION_LIMITS,
    ConfigurationDocument,
    Entry,
    Information,
    Kind,
    Reference,
    read_configuration,
    read_information,
    write_information,
)
from deploy.repository.digests import Digester, mismatch
from deploy.xml import BadXml

INFORMATION = "repository.xml"
MAX_DOCUMENTS = 1_000
"""That one description may refer to here."""
MAX_DOCUMENT_BYTES = 1 << 30
IN_MEMORY_BYTES = 1 << 18
"""A larger document is held as an open file."""
MAX_PATH_CHARS = 512
MAX_OTHERS = 256
"""Documents that nothing refers to, kept from one request to the next."""
YOUNG_S = 0.1
"""A file that changed so short before it was read may change again without its times telling."""
READ_TRIES = 5
MAX_FILES = 100_000
_READ_BYTES = 1 << 20

_NAME = re.compile(r"[A-Za-z0-9_@+,=~-][A-Za-z0-9_@+,=~ .-]{0,127}", re.ASCII)

log = logging.getLogger(__name__)


class BadFolder(Exception):
    """The description cannot be served: which file, where, what was expected, what was found."""


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


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`information`: with whole URLs. `xml`: the same as a document. `documents`: those it refers to here, by path.
    `contents`: the same by URL, as planners want them."""

    information: Information
    xml: bytes
    generation: str
    documents: dict[str, Document]
    contents: dict[str, Content]


class Folder:
    """`base`: the URL at which the directory is served, with a slash at its end. Not for several threads at once."""

    def __init__(self, root: Path, base: str) -> None:
        self.root = Path(os.path.realpath(root))
        self.base = base
        self.broken = ""
        self._snapshot: Snapshot | None = None
        self._seen: dict[str, Signature | None] = {}
        self._loaded: dict[str, Document] = {}
        self._others: OrderedDict[str, Document] = OrderedDict()

    @property
    def snapshot(self) -> Snapshot:
        assert self._snapshot is not None, "look() comes first"
        return self._snapshot

    def is_current(self) -> bool:
        """Nothing has changed since the last `look`."""
        if any(document.young for document in self._loaded.values()):
            return False
        return all(_signature(self.root / path) == seen for path, seen in self._seen.items())

    def look(self) -> Snapshot:
        """What the directory says now, or said last when it is broken now. Raises BadFolder when it never was good."""
        seen: dict[str, Signature | None] = {}
        loaded: dict[str, Document] = {}
        try:
            self._snapshot = self._read(seen, loaded)
            if self.broken:
                log.info("repository %s is good again", self.root)
            self.broken = ""
        except BadFolder as error:
            if self._snapshot is None:
                raise
            if str(error) != self.broken:
                log.error("repository %s is broken, and is served as it was before: %s", self.root, error)
            self.broken = str(error)
        self._seen, self._loaded = seen, loaded
        return self.snapshot

    def document(self, path: str) -> Document:
        """The document at a URL's path (without the leading slash, still quoted). Raises NoDocument."""
        name = plain(path)
        found = self._snapshot.documents.get(name) if self._snapshot is not None else None
        if found is not None:
            return found
        known = self._others.pop(name, None)
        try:
            if known is None or known.young or _signature(self.root / name) != known.signature:
                known = load(self.root, name, MAX_DOCUMENT_BYTES)
        except BadFolder as error:
            raise NoDocument(str(error)) from None
        self._others[name] = known
        if len(self._others) > MAX_OTHERS:
            self._others.popitem(last=False)
        return known

    def files(self) -> Iterator[str]:
        """Paths of all that could be served, at most `MAX_FILES` of them."""
        left = MAX_FILES
        for folder, folders, files in os.walk(self.root):
            folders[:] = sorted(name for name in folders if _NAME.fullmatch(name))
            for name in sorted(files)[:left]:
                left -= 1
                if _NAME.fullmatch(name):
                    yield os.path.relpath(os.path.join(folder, name), self.root)

    # --- reading -----------------------------------------------------------------------------------------------------

    def _read(self, seen: dict[str, Signature | None], loaded: dict[str, Document]) -> Snapshot:
        """Fills `seen` and `loaded` as far as it comes, so that what is broken is looked at again when it changes."""
        try:
            information = read_information(
                _content(self._get(INFORMATION, INFORMATION_LIMITS.bytes, seen, loaded)), INFORMATION
            )
        except BadXml as error:
            raise BadFolder(str(error)) from None
        documents: dict[str, Document] = {}
        contents: dict[str, Content] = {}

        def whole(entry: Entry, ref: Reference) -> Reference:
            url = self._own_url(entry, ref)
            if not url:
                return ref
            path = self._path_of(entry, ref, url)
            largest = MAX_DOCUMENT_BYTES if entry.kind == "code" else CONFIGURATION_LIMITS.bytes
            documents[path] = document = self._get(path, largest, seen, loaded)
            if len(documents) > MAX_DOCUMENTS:
                raise BadFolder(f"{INFORMATION}: expected at most {MAX_DOCUMENTS:,} documents of its own, found more")
            if found := mismatch(ref.digest, document.digest, lambda: chunks_of(document)):
                raise BadFolder(f"{INFORMATION}, {entry}: {ref.url}: expected {ref.digest}, found {found}")
            if entry.kind == "code":
                contents.setdefault(url, Content(document.digest))
            else:
                contents[url] = Content(document.digest, _configuration(document))
            return replace(ref, url=url, digest=document.digest)

        def all_whole(kind: Kind) -> tuple[Entry, ...]:
            entries = information.entries(kind)
            return tuple(replace(entry, refs=tuple(whole(entry, ref) for ref in entry.refs)) for entry in entries)

        resolved = Information(all_whole("code"), all_whole("install"), all_whole("managent"))
        told = [f"{path} {documents[path].digest}".encode() for path in sorted(documents)]
        generation = blake3(b"\n".join([write_information(information), *told])).hexdigest(length=16)
        if self._snapshot is not None and self._snapshot.generation == generation:
            return self._snapshot
        xml = write_information(resolved)
        if len(xml) > INFORMATION_LIMITS.bytes:
            limit = INFORMATION_LIMITS.bytes
            raise BadFolder(f"{INFORMATION}: expected at most {limit:,} bytes with whole URLs, found {len(xml):,}")
        return Snapshot(resolved, xml, generation, documents, contents)

    def _own_url(self, entry: Entry, ref: Reference) -> str:
        """Where the document of this repository is that is meant; "" when it is somebody else's."""
        if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:", ref.url):
            return ref.url if ref.url.startswith(self.base) else ""
        url = urljoin(self.base, ref.url)
        if not url.startswith(self.base) or ".." in ref.url.split("/"):
            raise BadFolder(f"{INFORMATION}, {entry}: expected a document below {self.base}, found {ref.url!r}")
        return url

    def _path_of(self, entry: Entry, ref: Reference, url: str) -> str:
        try:
            if urlsplit(url).query or urlsplit(url).fragment:
                raise NoDocument("expected no query and no fragment")
            return plain(url[len(self.base) :])
        except NoDocument as error:
            raise BadFolder(f"{INFORMATION}, {entry}: {ref.url}: {error}") from None

    def _get(self, path: str, largest: int, seen: dict[str, Signature | None], loaded: dict[str, Document]) -> Document:
        """As it is now; what has not changed is not read again. Raises BadFolder."""
        known = self._loaded.get(path)
        seen[path] = _signature(self.root / path)
        if known is None or known.young or known.signature != seen[path] or known.size > largest:
            known = load(self.root, path, largest)
            seen[path] = known.signature
        loaded[path] = known
        return known


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
        if digester.size != found.st_size or _signed(os.fstat(held.fd)) != before or _signature(root / path) != before:
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


def _content(document: Document) -> bytes:
    return b"".join(chunks_of(document))


def _configuration(document: Document) -> ConfigurationDocument:
    try:
        return read_configuration(_content(document), document.path)
    except BadXml as error:
        raise BadFolder(str(error)) from None


def _signature(path: Path) -> Signature | None:
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
