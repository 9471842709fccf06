"""What a compute agent gives to its rack: the chunks of images that it fetches, or fetched lately.

The chunk server is opened by the first fetch that has something to share, on the fetch's thread, and closed when there
is nothing to give any more: an agent that fetches nothing has neither its thread nor its socket.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

from fabric.images.cache import ImageCache
from fabric.images.desk import Counters
from fabric.images.fetch import Neighbours
from fabric.images.pieces import Pieces
from fabric.images.protocol import Holder
from fabric.images.server import ChunkServer
from fabric.runtime.settings import AgentConfig

LOOK_S = 15.0
"""How often it is looked whether there is anything to give."""


class Sharing:
    """Made and closed on the loop."""

    def __init__(self, config: AgentConfig, cache: ImageCache) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._server: ChunkServer | None = None
        self._here = Holder(config.node, config.rack, "")
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._looking: asyncio.Task[None] | None = None
        """There is one while the server is open."""
        self.pieces = Pieces(cache.parts)
        self.pieces.changed = self._changed
        self.neighbours = Neighbours(self._open, self.pieces)

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        await asyncio.to_thread(self._stop, True)

    def counters(self) -> Counters | None:
        """None: it is not open."""
        with self._lock:
            return self._server.counters() if self._server is not None else None

    def _open(self) -> Holder:
        """On a fetch's thread. Raises `EndpointError`."""
        with self._lock:
            if self._server is None and not self._closed:
                bind = f"tcp://{self._config.data_listen}"
                server = ChunkServer(self.pieces, bind, advertise=self._config.advertise)
                self._here = Holder(self._config.node, self._config.rack, server.start())
                self._server = server
                with suppress(RuntimeError):  # the loop is closed: the agent has left
                    self._loop.call_soon_threadsafe(self._begin_to_look)
            return self._here

    def _changed(self, chunk: bytes | None) -> None:
        """On any thread."""
        server = self._server
        if server is not None:
            server.changed(chunk)

    def _begin_to_look(self) -> None:
        if self._looking is None and not self._closed:
            self._looking = self._loop.create_task(self._look())

    async def _look(self) -> None:
        while self._server is not None:
            await asyncio.sleep(LOOK_S)
            self.pieces.tidy()
            await asyncio.to_thread(self._stop, False)
        self._looking = None

    def _stop(self, for_good: bool) -> None:
        with self._lock:
            self._closed = self._closed or for_good
            if self._server is not None and (for_good or not len(self.pieces)):
                self._server.stop()
                self._server = None
