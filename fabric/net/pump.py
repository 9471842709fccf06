"""One direction of a proxied connection: pieces are read, held until they are to arrive, and written.

What is read and not yet written is bounded by HELD_BYTES; then no more is read, and the sender comes to wait, as it
would before a full window. The end of the stream is a piece like any other: it is held too, so that behind a cut nobody
learns that the other has gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import deque
from typing import Protocol

PIECE_BYTES = 16 * 1024
HELD_BYTES = 1 << 20


class Held(Protocol):
    """What pieces wait for (fabric.net.proxy.Weather)."""

    generation: int

    async def changed(self, at_most_s: float | None = None) -> None: ...
    def cut(self, source: str, target: str) -> bool: ...
    def late_s(self, source: str, target: str, size: int, now: float) -> float: ...


async def pump(weather: Held, source: str, target: str, here: socket.socket, there: socket.socket) -> None:
    """From `here`, which is `source`'s end, to `there`, until the stream has ended or `there` is gone. A connection
    that broke counts as ended."""
    waiting: deque[tuple[bytes, float, int]] = deque()
    size = 0
    moved = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def read() -> None:
        nonlocal size
        data = b"more"
        while data:
            while size >= HELD_BYTES:
                moved.clear()
                await moved.wait()
            try:
                data = await loop.sock_recv(here, PIECE_BYTES)
            except OSError:
                data = b""
            now = time.monotonic()
            waiting.append((data, now + weather.late_s(source, target, len(data), now), weather.generation))
            size += len(data)
            moved.set()

    reading = loop.create_task(read())
    try:
        while True:
            while not waiting:
                moved.clear()
                await moved.wait()
            data, due, generation = waiting[0]
            now = time.monotonic()
            if weather.cut(source, target):
                await weather.changed()
            elif generation != weather.generation:
                late_s = weather.late_s(source, target, len(data), now)
                waiting[0] = (data, now + late_s, weather.generation)
            elif due > now:
                await weather.changed(due - now)
            else:
                waiting.popleft()
                size -= len(data)
                moved.set()
                if not data:
                    with contextlib.suppress(OSError):
                        there.shutdown(socket.SHUT_WR)
                    return
                try:
                    await loop.sock_sendall(there, data)
                except OSError:
                    return
    finally:
        reading.cancel()
