"""Asking a repository for one managent and fetching what it refers to: deploy.resolved.Resolver over HTTP.

Theory of operation. One BRP request of type "all" a managent; then its references, at once. Siblings get the same reply
but for their identifiers, and references have digests, so that for all but the first of them this is looking up:
replies are read once, documents parsed once and merged once for each list of digests, and code is in the cache.

The repository may change between its reply and the fetching of what the reply names; then a digest does not match, and
the repository is asked once more. Only if it says the same again it is wrong.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit
from weakref import WeakValueDictionary

from deploy.brp import REPLY_LIMITS, Refusal, Reply, Request, read_reply, without_id, write_request
from deploy.configuration import Configuration
from deploy.documents import ConfigurationDocument, Kind, Reference
from deploy.identity import BadIdentity, relative
from deploy.matching import Conflict, check_deployable, merge, prints, with_told
from deploy.messages import Charge
from deploy.records import Prints
from deploy.repository.client import HttpClient
from deploy.repository.fetcher import Code, Fetcher, Lru
from deploy.resolved import CodeFile, Resolved, Unresolved
from deploy.xml import BadXml

R = TypeVar("R")

MAX_MERGED = 2_000
MAX_REPLIES = 500
MAX_KEPT_BYTES = 65_536
"""Of one reply."""
_XML = (("content-type", "application/xml"),)

Document = tuple[str, ConfigurationDocument]
"""With its digest."""


def repository_url(url: str) -> str:
    """Of a repository: where no path is given, /repository is meant."""
    return f"{url.rstrip('/')}/repository" if urlsplit(url).path in ("", "/") else url


@dataclass(frozen=True, slots=True)
class Fetched:
    """All that the references of one reply gave, in order."""

    code: tuple[Code, ...]
    install: tuple[Document, ...]
    managent: tuple[Document, ...]


@dataclass(frozen=True, slots=True)
class _Known:
    """What a reply comes to, all of whose references have digests, so that it stays so."""

    refs: tuple[Reference, ...]
    code: tuple[Code, ...]
    install: Configuration
    managent: Configuration
    prints: Prints


class HttpResolver:
    """Made on the loop; for all boot stubs of a process. `close` does not close `client` and `fetcher`."""

    def __init__(self, client: HttpClient, fetcher: Fetcher) -> None:
        self._client = client
        self._fetcher = fetcher
        self._merged: Lru[tuple[Kind, tuple[str, ...]], Configuration] = Lru(MAX_MERGED)
        self._replies: Lru[bytes, Reply] = Lru(MAX_REPLIES)
        self._known: Lru[bytes, _Known] = Lru(MAX_REPLIES)
        self._files: WeakValueDictionary[tuple[str, Code], CodeFile] = WeakValueDictionary()

    async def resolve(self, path: str, charge: Charge) -> Resolved:
        """Raises Unresolved."""
        try:
            identifier = relative(path, charge.scope)
        except BadIdentity as error:
            raise Unresolved(str(error), again=False) from None
        began = time.monotonic()
        reply, same = await self._asked(charge.repository, identifier)
        asked = time.monotonic()
        known = self._known.find(same)
        if known is not None and self._is_here(known):
            return self._resolved(known, charge, (int((asked - began) * 1000), 0, 0))
        try:
            fetched, ms = await self._fetch(reply)
        except Unresolved as error:
            if error.again:
                raise
            newer, same = await self._asked(charge.repository, identifier)
            if newer == reply:
                raise
            reply = newer
            fetched, ms = await self._fetch(reply)
        try:
            install = self._merge("install", fetched.install, reply.install)
            managent = self._merge("managent", fetched.managent, reply.managent)
            check_deployable(path, fetched.code, managent)
        except Conflict as error:
            raise Unresolved(str(error), again=False) from None
        known = _Known(
            reply.code,
            fetched.code,
            install,
            managent,
            prints(
                (code.digest for code in fetched.code),
                (digest for digest, _ in fetched.install),
                (digest for digest, _ in fetched.managent),
            ),
        )
        resolved = self._resolved(known, charge, (int((asked - began) * 1000), *ms))
        if same and all(ref.digest.startswith("blake3:") for ref in (*reply.code, *reply.install, *reply.managent)):
            self._known.keep(same, known)
        return resolved

    def _is_here(self, known: _Known) -> bool:
        return all(self._fetcher.known_code(ref) is not None for ref in known.refs)

    def _resolved(self, known: _Known, charge: Charge, ms: tuple[int, int, int]) -> Resolved:
        """Raises Unresolved."""
        code = tuple(self._file(ref, code) for ref, code in zip(known.refs, known.code, strict=True))
        told = with_told(known.prints, charge.start, charge.lease_s)
        return Resolved(code, known.install, known.managent, told, ms)

    async def ask(self, repository: str, identifier: str) -> Reply:
        """BRP's request for all. Raises Unresolved."""
        return (await self._asked(repository, identifier))[0]

    async def close(self) -> None:
        self._merged.clear()
        self._replies.clear()
        self._known.clear()

    async def _asked(self, repository: str, identifier: str) -> tuple[Reply, bytes]:
        """And what is the same in replies for others, empty when that cannot be told. Raises Unresolved."""
        url = repository_url(repository)
        return await self._fetcher.tries(lambda: self._ask(url, identifier))

    async def _ask(self, url: str, identifier: str) -> tuple[Reply, bytes]:
        body = write_request(Request("all", identifier))
        answer = await self._client.ask("POST", url, headers=_XML, body=body, limit_bytes=REPLY_LIMITS.bytes)
        is_small = answer.status == 200 and len(answer.body) <= MAX_KEPT_BYTES
        same = without_id(answer.body, identifier) if is_small else b""
        kept = self._replies.find(same)
        if kept is not None:
            return replace(kept, id=identifier), same
        try:
            reply = read_reply(answer.body, url)
        except BadXml as error:
            if answer.status == 200:
                raise Unresolved(f"expected a reply to a repository request: {error}", again=False) from None
            reply = Refusal(f"HTTP status {answer.status}", "no reason that could be read")
        if isinstance(reply, Refusal):
            again = answer.status >= 500 or answer.status in (408, 425, 429)
            raise Unresolved(f"{url}, asked for {identifier}: {reply.code}: {reply.text}", again)
        if answer.status != 200 or (reply.type, reply.id) != ("all", identifier):
            raise Unresolved(
                f"{url}: expected a reply with status 200 for {identifier} to a request for all, "
                f"found one with status {answer.status} for {reply.id} to a request for {reply.type}",
                again=False,
            )
        if same:
            self._replies.keep(same, reply)
        return reply, same

    async def _fetch(self, reply: Reply) -> tuple[Fetched, tuple[int, int]]:
        """And the ms that code and configuration took; both are fetched at once. Raises Unresolved."""
        fetcher = self._fetcher
        refs = (*reply.install, *reply.managent)
        code = [one for ref in reply.code if (one := fetcher.known_code(ref)) is not None]
        documents = [known for ref in refs if (known := fetcher.known_document(ref)) is not None]
        ms = (0, 0)
        if len(code) < len(reply.code) or len(documents) < len(refs):
            (code, code_ms), (documents, documents_ms) = await asyncio.gather(
                _timed([fetcher.code(ref) for ref in reply.code]),
                _timed([fetcher.document(ref) for ref in refs]),
            )
            ms = (code_ms, documents_ms)
        count = len(reply.install)
        return Fetched(tuple(code), tuple(documents[:count]), tuple(documents[count:])), ms

    def _merge(self, kind: Kind, documents: Sequence[Document], refs: Sequence[Reference]) -> Configuration:
        """Raises Conflict."""
        key = (kind, tuple(digest for digest, _ in documents))
        known = self._merged.find(key)
        if known is None:
            # what was parsed may have come by another reference with the same content
            named = [replace(document, name=ref.url) for (_, document), ref in zip(documents, refs, strict=True)]
            known = merge(kind, named).configuration
            self._merged.keep(key, known)
        return known

    def _file(self, ref: Reference, code: Code) -> CodeFile:
        """The same object for all that have it now: as long as it lives, the cache keeps the file."""
        known = self._files.get((ref.url, code))
        path = self._fetcher.cache.path(code.content)
        if path is None:
            raise Unresolved(f"{ref.url}: expected it in the cache, found it gone", again=True)
        if known is None:
            known = self._files[ref.url, code] = CodeFile(ref.url, file_name(ref.url), code.type, path, code.digest)
            self._fetcher.cache.hold(code.content, known)
        return known


async def _timed(all: list[Coroutine[Any, Any, R]]) -> tuple[list[R], int]:
    began = time.monotonic()
    done = await asyncio.gather(*all)
    return done, int((time.monotonic() - began) * 1000)


def file_name(url: str) -> str:
    """The last part of a reference, as a file name."""
    last = unquote(urlsplit(url).path.rstrip("/").rpartition("/")[2]) or urlsplit(url).netloc
    name = "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "_" for char in last)[:128]
    return name.lstrip(".") or "code"
