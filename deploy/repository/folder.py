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
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from blake3 import blake3

from deploy.documents import (
    CONFIGURATION_LIMITS,
    INFORMATION_LIMITS,
    KINDS,
    Entry,
    Information,
    Reference,
    read_configuration,
    read_information,
    write_information,
)
from deploy.matching import Content
from deploy.repository.digests import mismatch
from deploy.repository.files import (
    BadFolder,
    Document,
    NoDocument,
    Signature,
    chunks_of,
    content_of,
    load,
    plain,
    signature_of,
)
from deploy.xml import BadXml

INFORMATION = "repository.xml"
MAX_DOCUMENTS = 1_000
"""That one description may refer to here."""
MAX_DOCUMENT_BYTES = 1 << 30
MAX_OTHERS = 256
"""Documents that nothing refers to, kept from one request to the next."""

_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")

log = logging.getLogger(__name__)


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
        self._last = _Reading(self.root, base, {})
        self._others: OrderedDict[str, Document] = OrderedDict()

    @property
    def snapshot(self) -> Snapshot:
        assert self._snapshot is not None, "look() comes first"
        return self._snapshot

    def is_current(self) -> bool:
        """Nothing has changed since the last `look`."""
        if any(document.young for document in self._last.loaded.values()):
            return False
        return all(signature_of(self.root / path) == seen for path, seen in self._last.seen.items())

    def look(self) -> Snapshot:
        """What the directory says now, or said last when it is broken now. Raises BadFolder when it never was good."""
        reading = _Reading(self.root, self.base, self._last.loaded)
        try:
            found = reading.snapshot()
            if self._snapshot is None or self._snapshot.generation != found.generation:
                self._snapshot = found
            if self.broken:
                log.info("repository %s is good again", self.root)
            self.broken = ""
        except BadFolder as error:
            if self._snapshot is None:
                raise
            if str(error) != self.broken:
                log.error("repository %s is broken, and is served as it was before: %s", self.root, error)
            self.broken = str(error)
        self._last = reading
        return self.snapshot

    def document(self, path: str) -> Document:
        """The document at a URL's path (without the leading slash, still quoted). Raises NoDocument."""
        name = plain(path)
        found = self._snapshot.documents.get(name) if self._snapshot is not None else None
        if found is not None:
            return found
        known = self._others.pop(name, None)
        try:
            if known is None or known.young or signature_of(self.root / name) != known.signature:
                known = load(self.root, name, MAX_DOCUMENT_BYTES)
        except BadFolder as error:
            raise NoDocument(str(error)) from None
        self._others[name] = known
        if len(self._others) > MAX_OTHERS:
            self._others.popitem(last=False)
        return known


@dataclass(slots=True)
class _Reading:
    """One look. `before`: what was loaded at the last one, by path. `seen`: what there was, None for nothing: what is
    broken is looked at again when it changes."""

    root: Path
    base: str
    before: dict[str, Document]
    loaded: dict[str, Document] = field(default_factory=dict)
    seen: dict[str, Signature | None] = field(default_factory=dict)
    documents: dict[str, Document] = field(default_factory=dict)
    contents: dict[str, Content] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def snapshot(self) -> Snapshot:
        """Raises BadFolder with all that is wrong."""
        try:
            information = read_information(content_of(self._load(INFORMATION, INFORMATION_LIMITS.bytes)), INFORMATION)
        except BadXml as error:
            raise BadFolder(str(error)) from None
        whole = Information(*(tuple(map(self._whole, information.entries(kind))) for kind in KINDS))
        xml = write_information(whole)
        limit = INFORMATION_LIMITS.bytes
        if len(xml) > limit:
            self.problems.append(f"{INFORMATION}: expected at most {limit:,} bytes with whole URLs, found {len(xml):,}")
        if self.problems:
            raise BadFolder(*self.problems)
        told = [f"{path} {self.documents[path].digest}".encode() for path in sorted(self.documents)]
        generation = blake3(b"\n".join([write_information(information), *told])).hexdigest(length=16)
        return Snapshot(whole, xml, generation, self.documents, self.contents)

    def _whole(self, entry: Entry) -> Entry:
        refs = []
        for ref in entry.refs:
            try:
                refs.append(self._own(entry, ref) if self._is_own(ref) else ref)
            except BadFolder as error:
                self.problems += [f"{INFORMATION}, {entry}: {ref.url}: {one}" for one in error.problems]
        return replace(entry, refs=tuple(refs))

    def _is_own(self, ref: Reference) -> bool:
        return not _ABSOLUTE.match(ref.url) or ref.url.startswith(self.base)

    def _own(self, entry: Entry, ref: Reference) -> Reference:
        """A reference to a document of this repository, whole. Raises BadFolder."""
        url = urljoin(self.base, ref.url)
        parts = urlsplit(url)
        if not url.startswith(self.base) or ".." in ref.url.split("/") or parts.query or parts.fragment:
            raise BadFolder(f"expected a document below {self.base}, found another form")
        try:
            path = plain(url[len(self.base) :])
        except NoDocument as error:
            raise BadFolder(str(error)) from None
        if path not in self.documents and len(self.documents) >= MAX_DOCUMENTS:
            raise BadFolder(f"expected at most {MAX_DOCUMENTS:,} documents of its own, found more")
        document = self._load(path, MAX_DOCUMENT_BYTES if entry.kind == "code" else CONFIGURATION_LIMITS.bytes)
        self.documents[path] = document
        if found := mismatch(ref.digest, document.digest, lambda: chunks_of(document)):
            raise BadFolder(f"expected {ref.digest}, found {found}")
        if entry.kind == "code":
            self.contents.setdefault(url, Content(document.digest))
        elif url not in self.contents or self.contents[url].document is None:
            try:
                self.contents[url] = Content(document.digest, read_configuration(content_of(document), path))
            except BadXml as error:
                raise BadFolder(str(error)) from None
        return replace(ref, url=url, digest=document.digest)

    def _load(self, path: str, largest: int) -> Document:
        """As it is now; what has not changed is not read again. Raises BadFolder."""
        known = self.loaded.get(path) or self.before.get(path)
        self.seen[path] = signature_of(self.root / path)
        if known is None or known.young or known.signature != self.seen[path] or known.size > largest:
            known = load(self.root, path, largest)
            self.seen[path] = known.signature
        self.loaded[path] = known
        return known
