"""What is behind a reference: configuration documents, parsed, and code, as files in the cache.

Theory of operation. A reference with a digest that is known here costs nothing but looking it up. Any other is asked
for: http and https with the ETag that came last time, so that what has not changed is not sent again; files by their
times; images by their record. However many want the same at once, it is asked for once. What came is hashed, compared
with the digest that the reference declares, and kept by its own digest: documents parsed and in memory, code on disk.

A failure that may pass (no answer, half an answer, a server's error) is tried `tries` times, with growing pauses; any
other is told at once.

`file://` is read only below `roots`, symbolic links resolved first; without roots, not at all.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import stat
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import unquote, urlsplit

from deploy.documents import CONFIGURATION_LIMITS, ConfigurationDocument, Reference, read_configuration
from deploy.repository.client import HttpClient
from deploy.repository.content import ContentCache, Incoming, chunks_of_file, digest_of_file
from deploy.repository.digests import Digester
from deploy.repository.files import YOUNG_S
from deploy.repository.images import ImageAccess, ImageSource
from deploy.resolved import Unresolved
from deploy.xml import BadXml

R = TypeVar("R")
K = TypeVar("K")
V = TypeVar("V")
_IMAGE = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Limits:
    code_bytes: int = 1 << 30
    """Of one reference."""
    tries: int = 3
    pause_s: float = 0.2
    """Before the second try, twice as much before each further one, half of it by chance."""
    documents: int = 2_000
    """Kept in memory, parsed."""
    known: int = 10_000
    """References of which is kept what came last time."""
    at_once: int = 64
    """References that are asked for."""


@dataclass(frozen=True, slots=True)
class Code:
    """`digest`: what fingerprints are made of: "blake3:…" of the content, or "b3:…" of an image's manifest. `content`:
    "blake3:…", by which the cache knows the file. `type`: the reference's, or what an image's record says."""

    digest: str
    content: str
    type: str


@dataclass(frozen=True, slots=True)
class _Last:
    """What a reference gave last time, and by what it can be seen that it would give the same now."""

    mark: str
    digest: str


class Lru(OrderedDict[K, V], Generic[K, V]):
    """The `most` used last."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def find(self, key: K) -> V | None:
        value = self.get(key)
        if value is not None:
            self.move_to_end(key)
        return value

    def keep(self, key: K, value: V) -> None:
        self[key] = value
        self.move_to_end(key)
        if len(self) > self._most:
            self.popitem(last=False)


class Fetcher:
    """Made on the loop. `roots`: for `file://`. `images`: None where there is no fabric to ask."""

    def __init__(
        self,
        client: HttpClient,
        cache: ContentCache,
        *,
        roots: tuple[Path, ...] = (),
        images: ImageAccess | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.cache = cache
        self._client = client
        self._roots = tuple(os.path.realpath(root) for root in roots)
        self._images = None if images is None else ImageSource(images)
        self.limits = limits or Limits()
        self._documents: Lru[str, ConfigurationDocument] = Lru(self.limits.documents)
        self._last: Lru[tuple[str, str], _Last] = Lru(self.limits.known)
        self._by_sha256: Lru[str, str] = Lru(self.limits.known)
        self._flights: dict[tuple[str, Reference], asyncio.Task[Any]] = {}
        self._slots = asyncio.Semaphore(self.limits.at_once)
        self._random = random.Random()

    async def close(self) -> None:
        flights = list(self._flights.values())
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)
        if self._images is not None:
            await self._images.close()

    # --- what is asked for -------------------------------------------------------------------------------------------

    def known_document(self, ref: Reference) -> tuple[str, ConfigurationDocument] | None:
        """(its digest, the document) when that needs no asking."""
        digest = self._known_digest(ref)
        document = self._documents.find(digest) if digest else None
        return None if document is None else (digest, document)

    async def document(self, ref: Reference) -> tuple[str, ConfigurationDocument]:
        """(its digest, the document). Raises Unresolved."""
        known = self.known_document(ref)
        return await self._once("document", ref, self._document) if known is None else known

    def known_code(self, ref: Reference) -> Code | None:
        digest = self._known_digest(ref)
        if not digest or _scheme(ref.url) == "image" or self.cache.path(digest) is None:
            return None
        return Code(digest, digest, ref.type)

    async def code(self, ref: Reference) -> Code:
        """Its content is in the cache then. Raises Unresolved."""
        known = self.known_code(ref)
        return await self._once("code", ref, self._code) if known is None else known

    async def code_digest(self, ref: Reference) -> str:
        """As `code(ref).digest`, brought only where there is no other way to know. Raises Unresolved."""
        if _scheme(ref.url) == "image":
            return (await self._image_source(ref).record(_image_name(ref))).digest
        return self._known_digest(ref) or (await self.code(ref)).digest

    def _known_digest(self, ref: Reference) -> str:
        if ref.digest.startswith("sha256:"):
            return self._by_sha256.find(ref.digest) or ""
        return ref.digest

    async def _once(self, what: str, ref: Reference, bring: Callable[[Reference], Coroutine[Any, Any, R]]) -> R:
        """However many ask at once; each of them may go away without the others noticing."""
        key = (what, ref)
        flight: asyncio.Task[R] | None = self._flights.get(key)
        if flight is None:
            flight = asyncio.get_running_loop().create_task(self.tries(lambda: self._bring(bring, ref)))
            self._flights[key] = flight
            flight.add_done_callback(lambda done: self._landed(key, done))
        return await asyncio.shield(flight)

    def _landed(self, key: tuple[str, Reference], flight: asyncio.Task[Any]) -> None:
        del self._flights[key]
        if not flight.cancelled():
            flight.exception()  # whoever asked may be gone; asyncio would complain that nobody looked

    async def _bring(self, bring: Callable[[Reference], Awaitable[R]], ref: Reference) -> R:
        async with self._slots:
            return await bring(ref)

    async def tries(self, ask: Callable[[], Awaitable[R]]) -> R:
        """What `ask` gives, asked again a few times where that may help. Raises Unresolved."""
        for number in range(1, self.limits.tries):
            try:
                return await ask()
            except Unresolved as error:
                if not error.again:
                    raise
            pause_s = self.limits.pause_s * 2 ** (number - 1)
            await asyncio.sleep(pause_s * (0.5 + self._random.random() / 2))
        return await ask()

    # --- documents ---------------------------------------------------------------------------------------------------

    async def _document(self, ref: Reference) -> tuple[str, ConfigurationDocument]:
        last = self._last.find((ref.url, ref.digest))
        if last is not None and last.digest not in self._documents:
            last = None
        pieces: list[bytes] = []
        scheme = _scheme(ref.url)
        if scheme == "file":
            mark = await self._read_file(ref, CONFIGURATION_LIMITS.bytes, last, pieces.append)
        elif scheme == "image":
            mark = await self._read_image(ref, last, pieces)
        else:
            mark = await self._read_http(ref, CONFIGURATION_LIMITS.bytes, last, pieces.append)
        if mark is None:
            assert last is not None
            return last.digest, self._documents[last.digest]
        data = b"".join(pieces)
        digester = Digester(ref.digest)
        digester.update(data)
        if found := digester.mismatch():
            raise Unresolved(f"{ref.url}: expected {ref.digest}, found {found}", again=False)
        try:
            document = read_configuration(data, ref.url)
        except BadXml as error:
            raise Unresolved(str(error), again=False) from None
        self._documents.keep(digester.digest, document)
        self._note(ref, mark, digester.digest)
        return digester.digest, document

    async def _read_image(self, ref: Reference, last: _Last | None, pieces: list[bytes]) -> str | None:
        source = self._image_source(ref)
        record = await source.record(_image_name(ref))
        if last is not None and last.mark == record.digest:
            return None
        if record.size > CONFIGURATION_LIMITS.bytes:
            raise Unresolved(
                f"{ref.url}: expected at most {CONFIGURATION_LIMITS.bytes:,} bytes, found {record.size:,}", again=False
            )
        incoming = self.cache.incoming("")
        incoming.abort()  # its name alone is wanted
        try:
            await source.bring(record, incoming.path)
            pieces.append(incoming.path.read_bytes())
        finally:
            incoming.path.unlink(missing_ok=True)
        return record.digest

    # --- code --------------------------------------------------------------------------------------------------------

    async def _code(self, ref: Reference) -> Code:
        if await self._verified(self._known_digest(ref)):
            return Code(self._known_digest(ref), self._known_digest(ref), ref.type)
        if _scheme(ref.url) == "image":
            return await self._image_code(ref)
        last = self._last.find((ref.url, ref.digest))
        if last is not None and not await self._verified(last.digest):
            last = None
        incoming = self.cache.incoming(ref.digest)
        try:
            if _scheme(ref.url) == "file":
                mark = await self._read_file(ref, self.limits.code_bytes, last, incoming.write)
            else:
                mark = await self._read_http(ref, self.limits.code_bytes, last, incoming.write)
            if mark is None:
                assert last is not None
                return Code(last.digest, last.digest, ref.type)
            digest = incoming.commit(ref.url)
        finally:
            incoming.abort()
        self._note(ref, mark, digest)
        return Code(digest, digest, ref.type)

    async def _image_code(self, ref: Reference) -> Code:
        source = self._image_source(ref)
        record = await source.record(_image_name(ref))
        type = ref.type or ("tar" if record.kind == "tar" else "executable")
        last = self._last.find((ref.url, ref.digest))
        if last is not None and last.mark == record.digest and await self._verified(last.digest):
            return Code(record.digest, last.digest, type)
        if record.size > self.limits.code_bytes:
            raise Unresolved(
                f"{ref.url}: expected at most {self.limits.code_bytes:,} bytes, found {record.size:,}", again=False
            )
        incoming = self.cache.incoming(ref.digest)
        brought = incoming.path.with_name(f"image-{incoming.path.name}")
        try:
            await source.bring(record, brought)
            await asyncio.to_thread(_copy, brought, incoming)
            content = incoming.commit(ref.url)
        finally:
            incoming.abort()
            brought.unlink(missing_ok=True)
        self._note(ref, record.digest, content)
        return Code(record.digest, content, type)

    async def _verified(self, digest: str) -> bool:
        """It is in the cache, and whole: what an earlier process left is hashed first."""
        left = self.cache.unverified(digest) if digest else None
        if left is not None:
            try:
                found = await asyncio.to_thread(digest_of_file, left)
            except OSError:
                found = ""
            self.cache.verified(digest, found)
        return bool(digest) and self.cache.path(digest) is not None

    def _note(self, ref: Reference, mark: str, digest: str) -> None:
        if mark:
            self._last.keep((ref.url, ref.digest), _Last(mark, digest))
        if ref.digest.startswith("sha256:"):
            self._by_sha256.keep(ref.digest, digest)

    # --- the three kinds of places -----------------------------------------------------------------------------------
    # Each returns the mark of what it read ("" when there is none), or None: nothing changed since `last`.

    async def _read_http(
        self, ref: Reference, limit: int, last: _Last | None, sink: Callable[[bytes], None]
    ) -> str | None:
        headers = () if last is None else (("if-none-match", last.mark),)
        answer = await self._client.fetch(ref.url, headers=headers, limit_bytes=limit, sink=sink)
        if answer.status == 304:
            if last is None:
                raise Unresolved(f"{ref.url}: expected the content, found 'not modified' unasked", again=True)
            return None
        return answer.headers.get("etag", "")

    async def _read_file(
        self, ref: Reference, limit: int, last: _Last | None, sink: Callable[[bytes], None]
    ) -> str | None:
        return await asyncio.to_thread(self._copy_file, ref, limit, last, sink)

    def _copy_file(self, ref: Reference, limit: int, last: _Last | None, sink: Callable[[bytes], None]) -> str | None:
        """On a thread."""
        try:
            fd = os.open(self._allowed(ref), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                found = os.fstat(fd)
                if not stat.S_ISREG(found.st_mode):
                    raise Unresolved(f"{ref.url}: expected a file, found something else", again=False)
                if found.st_size > limit:
                    raise Unresolved(
                        f"{ref.url}: expected at most {limit:,} bytes, found {found.st_size:,}", again=False
                    )
                mark = f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"
                if last is not None and last.mark == mark:
                    return None
                for chunk in chunks_of_file(fd):
                    sink(chunk)
                after = os.fstat(fd)
                if (after.st_size, after.st_mtime_ns) != (found.st_size, found.st_mtime_ns):
                    raise Unresolved(f"{ref.url}: expected it to stay as it is while it is read", again=True)
                return mark if time.time() - found.st_mtime > YOUNG_S else ""
            finally:
                os.close(fd)
        except OSError as error:
            raise Unresolved(f"{ref.url}: expected a file that can be read: {error.strerror}", again=False) from None

    def _allowed(self, ref: Reference) -> str:
        """The path, without symbolic links. Raises Unresolved, OSError."""
        parts = urlsplit(ref.url)
        path = unquote(parts.path)
        if parts.netloc not in ("", "localhost") or not path.startswith("/") or "\0" in path:
            raise Unresolved(f"{ref.url}: expected file:///path, found another form", again=False)
        real = os.path.realpath(path, strict=True)
        if not any(real.startswith(f"{root.rstrip('/')}/") for root in self._roots):
            roots = ", ".join(self._roots) or "an allowed root (--allow-root; here none is)"
            raise Unresolved(f"{ref.url}: expected a file below {roots}, found {real}", again=False)
        return real

    def _image_source(self, ref: Reference) -> ImageSource:
        if self._images is None:
            raise Unresolved(f"{ref.url}: expected a fabric to get images from, found none configured", again=False)
        return self._images


def _copy(source: Path, into: Incoming) -> None:
    """On a thread."""
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for chunk in chunks_of_file(fd):
            into.write(chunk)
    finally:
        os.close(fd)


def _scheme(url: str) -> str:
    return url.partition(":")[0]


def _image_name(ref: Reference) -> str:
    name = ref.url.partition("://")[2]
    if not _IMAGE.fullmatch(name):
        raise Unresolved(f"{ref.url}: expected image://name, found another form", again=False)
    return name
