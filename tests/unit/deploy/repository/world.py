"""Real servers on 127.0.0.1: a repository, and others that say exactly what a test wants them to say."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from deploy.messages import Charge
from deploy.repository import client, fetcher, serving
from deploy.repository.client import HttpClient
from deploy.repository.content import ContentCache
from deploy.repository.fetcher import Fetcher
from deploy.repository.images import ImageAccess
from deploy.repository.process import bind, own_url, start
from deploy.repository.resolver import HttpResolver
from deploy.repository.serving import HttpServer
from deploy.resolved import Resolved

R = TypeVar("R")
LEAF = b"<configuration><env-params><env name='A' value='1'/></env-params></configuration>"
INITIATOR = b"<configuration><initiator><children count='10'/></initiator></configuration>"
INFORMATION = b"""<repository-information>
  <managent-code><entry><pattern xpath="/*/*"/><ref url="leaf.py" type="python"/></entry></managent-code>
  <install-config><entry><pattern xpath="/*/*"/><ref url="leaf.xml"/></entry></install-config>
  <managent-config>
    <entry><pattern xpath="/*"/><ref url="sub/initiator.xml"/></entry>
    <entry><pattern xpath="/*/*"/><ref url="leaf.xml"/></entry>
  </managent-config>
</repository-information>"""

QUICK = client.Limits(connect_s=2.0, stall_s=0.3, whole_s=5.0)
IMPATIENT = fetcher.Limits(pause_s=0.01, code_bytes=1 << 22)


def run(main: Coroutine[Any, Any, R]) -> R:
    async def bounded() -> R:
        async with asyncio.timeout(30):
            return await main

    return asyncio.run(bounded())


def rename_over(path: Path, data: bytes) -> None:
    """As one should edit what is served."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_bytes(data)
    os.rename(beside, path)


def described(root: Path, **more: bytes) -> Path:
    """A directory with a description; `more`: other documents, with "_" for the dot."""
    (root / "sub").mkdir(parents=True)
    (root / "repository.xml").write_bytes(INFORMATION)
    (root / "leaf.py").write_bytes(b"class Agent: ...\n")
    (root / "leaf.xml").write_bytes(LEAF)
    (root / "sub" / "initiator.xml").write_bytes(INITIATOR)
    for name, data in more.items():
        (root / name.replace("_", ".")).write_bytes(data)
    return root


@dataclass(slots=True)
class Served:
    root: Path
    server: HttpServer
    url: str

    @property
    def port(self) -> int:
        return int(self.url.rstrip("/").rpartition(":")[2])


@asynccontextmanager
async def serving_at(root: Path, limits: serving.Limits | None = None) -> AsyncIterator[Served]:
    listener = bind("127.0.0.1", 0)
    url = own_url(listener)
    try:
        server = await start(root, listener, url, limits)
    except BaseException:
        listener.close()
        raise
    try:
        yield Served(root, server, url)
    finally:
        await server.close()


Behave = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@dataclass(slots=True)
class Scripted:
    """A server that reads a request and then does what it is told. `asked`: the requests."""

    url: str
    asked: list[bytes] = field(default_factory=list)


@asynccontextmanager
async def scripted(behave: Behave, tls: ssl.SSLContext | None = None) -> AsyncIterator[Scripted]:
    found = Scripted("")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                for line in head.split(b"\r\n"):
                    if line.lower().startswith(b"content-length:"):
                        head += await reader.readexactly(int(line.partition(b":")[2]))
                found.asked.append(head)
                await behave(head, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    found.url = f"http{'s' if tls else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield found
    finally:
        server.close()


def says(*answers: bytes) -> Behave:
    """One answer after the other, the last one again and again."""
    left = list(answers)

    async def behave(head: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(left.pop(0) if len(left) > 1 else left[0])

    return behave


def answer(body: bytes, *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass(slots=True)
class Stack:
    """What a process with boot stubs has."""

    client: HttpClient
    cache: ContentCache
    fetcher: Fetcher
    resolver: HttpResolver

    async def resolve(self, path: str, repository: str, scope: str = "") -> Resolved:
        return await self.resolver.resolve(path, Charge(repository, scope))


@asynccontextmanager
async def stack(
    folder: Path,
    *,
    roots: tuple[Path, ...] = (),
    images: ImageAccess | None = None,
    limits: fetcher.Limits = IMPATIENT,
    quick: client.Limits = QUICK,
    cache_bytes: int = 1 << 24,
) -> AsyncIterator[Stack]:
    asker = HttpClient(quick)
    cache = ContentCache(folder, cache_bytes)
    fetching = Fetcher(asker, cache, roots=roots, images=images, limits=limits)
    resolver = HttpResolver(asker, fetching)
    try:
        yield Stack(asker, cache, fetching, resolver)
    finally:
        await resolver.close()
        await fetching.close()
        await asker.close()
        cache.close()
