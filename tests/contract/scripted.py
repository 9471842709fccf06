"""A ZooKeeper server that says what a test wants, on the loop of the test: for what no real one can be brought to do.

It welcomes everybody, and answers as if each znode that is asked for were there, unless a test has set something else.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

from tests.packets import STAT, greeting, reply
from tests.zookeeper import LOCAL

PING_XID = -2
EXISTS, SET, SYNC, CLOSE = 3, 5, 9, -11


class Asked(NamedTuple):
    """`kind` is None for a greeting; `session_id` and `zxid` are those that it asked for."""

    xid: int
    kind: int | None
    session_id: int = 0
    zxid: int = 0


class Scripted:
    """`answer(asked)`: what to say to it, as bytes; b"" is nothing, None hangs up. `reading`: cleared, it reads no
    more. `asked`: all that it was, in order."""

    def __init__(self, timeout_ms: int = 3000) -> None:
        self.timeout_ms = timeout_ms
        self.answer: Callable[[Asked], bytes | None] = self.plain
        self.asked: list[Asked] = []
        self.reading = asyncio.Event()
        self.reading.set()
        self.port = 0
        self._connections: set[asyncio.StreamWriter] = set()

    def plain(self, asked: Asked) -> bytes | None:
        if asked.kind is None:
            return greeting(asked.session_id or 77, self.timeout_ms)
        return reply(asked.xid, STAT if asked.kind in (EXISTS, SET) else b"")

    def greetings(self) -> list[Asked]:
        return [each for each in self.asked if each.kind is None]

    def say(self, data: bytes) -> None:
        """To all that are connected."""
        for each in self._connections:
            each.write(data)

    def cut(self) -> None:
        for each in self._connections:
            each.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        with suppress(asyncio.IncompleteReadError, OSError):
            await self._talk(reader, writer)
        self._connections.discard(writer)
        writer.transport.abort()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greeted = False
        while True:
            await self.reading.wait()
            (length,) = struct.unpack("!i", await reader.readexactly(4))
            body = await reader.readexactly(length)
            if greeted:
                asked = Asked(*struct.unpack_from("!ii", body))
            else:
                _, zxid, _, session_id = struct.unpack_from("!iqiq", body)
                asked = Asked(0, None, session_id, zxid)
            greeted = True
            self.asked.append(asked)
            said = self.answer(asked)
            if said is None:
                return
            writer.write(said)


@asynccontextmanager
async def scripted(timeout_ms: int = 3000, host: str = LOCAL) -> AsyncIterator[Scripted]:
    server = Scripted(timeout_ms)
    listening = await asyncio.start_server(server.serve, host, 0)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        server.cut()
        server.reading.set()
        await asyncio.sleep(0)
