"""One session's calls as the directory makes them: reads a window at a time, again after what may pass.

Theory of operation. A call may end in doubt (ConnectionLost), in a session that is over, or with no room in the queue:
all of that passes, so the whole step is taken again, TRIES times; each step here begins by looking, or is one that the
tree refuses the second time. After that the TreeError is the caller's. While the connection is lost, calls wait in the
session, as long as it takes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

from zk.client import TreeClient
from zk.tree import ConnectionLost, NoNode, Overloaded, SessionExpired, Stat, TreeError

TRIES = 8
RETRY_FIRST_S = 0.05
RETRY_MAX_S = 2.0
"""Between tries: doubled from the first to the most."""
READS_AT_ONCE = 96
"""Of the 128 calls that a session has in flight at most."""

A = TypeVar("A")
B = TypeVar("B")


class Access:
    """`window`: reads in flight at once."""

    def __init__(self, client: TreeClient, window: int = READS_AT_ONCE) -> None:
        self.client = client
        self._reads = asyncio.Semaphore(window)
        self._missing: set[str] = set()
        self._making = asyncio.Lock()

    async def create(self, path: str, data: bytes) -> Stat:
        """Create a znode in a shard, and what is missing above it. Raises NodeExists. One operation, once there is the
        shard."""
        try:
            made = await self.client.create(path, data)
        except NoNode:
            await self._make_shard(path.rpartition("/")[0])
            made = await self.client.create(path, data)
        assert made.stat is not None, "a create by itself is answered with a stat"
        return made.stat

    async def _make_shard(self, shard: str) -> None:
        """Many come at once, most often: one makes what all who wait then are missing."""
        self._missing.add(shard)
        async with self._making:
            if shard in self._missing:
                missing, self._missing = self._missing, set()
                await self.client.ensure(*sorted(missing))

    async def data(self, path: str) -> bytes | None:
        """None when there is no such znode."""

        async def once() -> bytes | None:
            try:
                async with self._reads:
                    return (await self.client.get(path)).data
            except NoNode:
                return None

        return await self.settled(once)

    async def names(self, path: str) -> tuple[str, ...]:
        """Of its children; none when there is no such znode."""

        async def once() -> tuple[str, ...]:
            try:
                async with self._reads:
                    return await self.client.children(path)
            except NoNode:
                return ()

        return await self.settled(once)

    async def settled(self, once: Callable[[], Awaitable[A]], *races: type[TreeError]) -> A:
        """`once`, again after what may pass, and after `races`: the errors that say that somebody was faster."""
        passing: tuple[type[TreeError], ...] = (ConnectionLost, SessionExpired, Overloaded, *races)
        delay_s = RETRY_FIRST_S
        for _ in range(TRIES - 1):
            try:
                return await once()
            except passing:
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, RETRY_MAX_S)
        return await once()


async def in_turn(items: Iterable[A], work: Callable[[A], Awaitable[B]], width: int) -> AsyncIterator[B]:
    """The results in the order of `items`, `width` of them worked on at once."""
    running: deque[asyncio.Future[B]] = deque()
    try:
        for item in items:
            running.append(asyncio.ensure_future(work(item)))
            if len(running) >= width:
                yield await running.popleft()
        while running:
            yield await running.popleft()
    finally:
        for task in running:
            task.cancel()
