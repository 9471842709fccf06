"""What a repository is asked over HTTP, and what it answers.

    POST /repository     BRP (deploy.brp): a request as XML, answered by a reply or an error as XML
    GET  /repository     the repository information, with whole URLs, and with digests where the documents are here
    GET  /<document>     any document below the directory; those of the description as they were when it was read

Theory of operation. Every answer about the description carries its generation (`Fabric-Generation`), and while the
directory holds a broken description, of which the last good one is served, what is broken (`Fabric-Broken`). The
directory is looked at before the information is given, and before a BRP request when the last look is `LOOK_S` ago: so
whoever has read a generation gets references of that one or a later. Looking is asking for times, on the loop; reading
what changed is done in a thread.

A reply depends only on which entries match, so it is written once for each such choice; what is left of a request is
HTTP, a small document to parse, and the matching.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable

from deploy.brp import Reply, RequestType, read_request, wants, write_error, write_refs
from deploy.matching import BadMatch, Choice, choose, references
from deploy.repository.files import Document, NoDocument
from deploy.repository.folder import Folder, Snapshot
from deploy.repository.serving import Answer, Asked
from deploy.xml import BadXml

ADDRESS = "repository"
"""The path at which BRP is spoken and the information is given."""
GENERATION = "Fabric-Generation"
BROKEN = "Fabric-Broken"
LOOK_S = 0.1
MAX_REPLIES = 10_000
_XML = ("content-type", "application/xml; charset=utf-8")
_BYTES = (("content-type", "application/octet-stream"), ("x-content-type-options", "nosniff"))
_UNSENDABLE = re.compile(r"[^ -~]")


def refuse(status: int, why: str, code: str = "bad-request") -> Answer:
    return Answer(status, write_error(code, why), (_XML,))


class Repository:
    """Made on the loop. `folder` has been looked at."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._loop = asyncio.get_running_loop()
        self._looked = -LOOK_S
        self._reading = asyncio.Lock()
        self._replies: dict[tuple[RequestType, Choice], bytes] = {}
        self._replies_of: Snapshot | None = None
        self._told: tuple[tuple[str, str], ...] = ()

    def handle(self, asked: Asked) -> Answer | Awaitable[Answer]:
        path = asked.path.removeprefix("/")
        if asked.method == "POST" and path == ADDRESS:
            return self._brp(asked) if self._fresh(LOOK_S) else self._after_look(asked)
        if asked.method not in ("GET", "HEAD"):
            return refuse(405, f"expected GET, or POST to /{ADDRESS}, found {asked.method[:20]} {asked.path[:100]}")
        if path == ADDRESS:
            return self._information(asked) if self._fresh(0.0) else self._after_look(asked)
        return self._document_soon(asked, path)

    # --- freshness ---------------------------------------------------------------------------------------------------

    def _fresh(self, wait_s: float) -> bool:
        now = self._loop.time()
        if now - self._looked < wait_s:
            return True
        if self._reading.locked() or not self._folder.is_current():
            return False
        self._looked = now
        return True

    async def _after_look(self, asked: Asked) -> Answer:
        began = self._loop.time()
        async with self._reading:
            if self._looked < began:  # else somebody looked while this one waited
                now = self._loop.time()
                await asyncio.to_thread(self._folder.look)
                self._looked = now
        return self._brp(asked) if asked.method == "POST" else self._information(asked)

    # --- answers -----------------------------------------------------------------------------------------------------

    def _brp(self, asked: Asked) -> Answer:
        try:
            request = read_request(asked.body, "request")
            choice = choose(self._folder.snapshot.information, request.id)
        except BadXml as error:
            return refuse(400, str(error))
        except BadMatch as error:
            return refuse(422, str(error), "bad-match")
        reply = self._reply(request.type, choice).replace(b"\0", request.id.encode())
        return Answer(200, reply, (_XML, *self._told))

    def _reply(self, type: RequestType, choice: Choice) -> bytes:
        """With a zero byte where the identifier goes."""
        snapshot = self._folder.snapshot
        self._note(snapshot)
        reply = self._replies.get((type, choice))
        if reply is None:
            if len(self._replies) >= MAX_REPLIES:
                self._replies.clear()
            information = snapshot.information
            code, install, managent = (
                references(information, choice, kind) if wants(type, kind) else ()
                for kind in ("code", "install", "managent")
            )
            reply = self._replies[type, choice] = write_refs(Reply(type, "", code, install, managent))
        return reply

    def _note(self, snapshot: Snapshot) -> None:
        """What is kept for one snapshot goes with it."""
        broken = self._folder.broken
        if snapshot is not self._replies_of:
            self._replies_of = snapshot
            self._replies.clear()
            self._told = ()
        if not self._told or (len(self._told) == 2) != bool(broken):
            self._told = ((GENERATION, snapshot.generation),)
            if broken:
                self._told += ((BROKEN, _UNSENDABLE.sub("?", broken)[:500]),)

    def _information(self, asked: Asked) -> Answer:
        snapshot = self._folder.snapshot
        self._note(snapshot)
        etag = f'"{snapshot.generation}"'
        headers = (_XML, ("etag", etag), *self._told)
        if _same(asked, etag):
            return Answer(304, headers=headers[1:])
        return Answer(200, snapshot.xml, headers)

    def _document_soon(self, asked: Asked, path: str) -> Answer | Awaitable[Answer]:
        known = self._folder.snapshot.documents.get(path)
        if known is not None and self._fresh(LOOK_S):
            return _given(asked, known)
        return self._document(asked, path)

    async def _document(self, asked: Asked, path: str) -> Answer:
        async with self._reading:
            if not self._folder.is_current():
                await asyncio.to_thread(self._folder.look)
            try:
                found = await asyncio.to_thread(self._folder.document, path)
            except NoDocument as error:
                return refuse(404, str(error), "not-found")
        return _given(asked, found)


def _given(asked: Asked, document: Document) -> Answer:
    headers = (("etag", document.etag), *((_XML,) if document.path.endswith(".xml") else _BYTES))
    if _same(asked, document.etag):
        return Answer(304, headers=headers[:1])
    if document.held is None:
        return Answer(200, document.data or b"", headers)
    return Answer(200, headers=headers, file=document.held, size=document.size)


def _same(asked: Asked, etag: str) -> bool:
    wanted = asked.headers.get("if-none-match")
    return wanted is not None and any(one.strip().removeprefix("W/") in (etag, "*") for one in wanted.split(","))
