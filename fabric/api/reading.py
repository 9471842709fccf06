"""Reading and writing znodes with bounds: what `fabric.api.store` and `fabric.api.noting` have in common.

ZooKeeper is the only place where records live; nothing is cached here. Each operation has a bound (`tree_wait_s`);
while the session is not connected nothing is begun at all, so that a refused request has changed nothing. An ensemble
whose leader died is away for a moment: a request waits for the connection until `session_wait_s` after its loss, so
that it need not fail for that. That is counted from the loss, not from the request: in a long outage nobody waits.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from fabric.api.problems import unavailable
from fabric.api.settings import ApiLimits
from fabric.records import BadRecord, decode
from zk.client import TreeClient
from zk.tree import ConnectionLost, NoNode, SessionChanged, SessionExpired, SessionState, Stat, TreeEvent

R = TypeVar("R", bound=msgspec.Struct)
T = TypeVar("T")
UNANSWERED = (ConnectionLost, SessionExpired)
"""The answer was lost, or the question with its session: look, when there is a connection again."""


@dataclass(frozen=True, slots=True)
class Versioned(Generic[R]):
    """A record with what ZooKeeper knows of its znode; `stat.mzxid` is the record's `index`."""

    record: R
    stat: Stat


class Records:
    """Every method, also of its subclasses, may raise the TreeErrors ConnectionLost, SessionExpired, Overloaded and
    Refused, TimeoutError, and BadRecord; the application turns these into problems."""

    def __init__(self, client: TreeClient, limits: ApiLimits, rng: random.Random) -> None:
        self._client = client
        self._limits = limits
        self._rng = rng
        self._reads = asyncio.Semaphore(limits.list_reads)
        self._connected = asyncio.Event()
        self._lost_at: float | None = None
        client.tree.listen(self._on_tree_event)

    def _on_tree_event(self, event: TreeEvent) -> None:
        if not isinstance(event, SessionChanged):
            return
        if event.state is SessionState.CONNECTED:
            self._lost_at = None
            self._connected.set()
        elif self._lost_at is None:
            self._lost_at = asyncio.get_running_loop().time()
            self._connected.clear()

    async def require_session(self) -> None:
        """503 unless ZooKeeper is connected, or soon is again: nothing is promised during an outage."""
        if self._lost_at is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._lost_at + self._limits.session_wait_s):
                    await self._connected.wait()
        self.require_connection()

    def require_connection(self) -> None:
        """503 unless ZooKeeper is connected now."""
        state = self._client.tree.state
        if state is not SessionState.CONNECTED:
            raise unavailable(f"The session with ZooKeeper is {state.value}; nothing was changed. Try again soon.")

    async def _read(self, path: str, kind: type[R], watch: bool = False) -> Versioned[R] | None:
        try:
            got = await self._asked(lambda: self._client.get(path, watch))
        except NoNode:
            return None
        return Versioned(decode(got.data, kind, path), got.stat)

    async def _read_each(self, all_paths: Sequence[str], kind: type[R]) -> list[Versioned[R] | BadRecord | None]:
        """In the order of the paths, `list_reads` at a time; None: there is none."""

        async def one(path: str) -> Versioned[R] | BadRecord | None:
            async with self._reads:
                try:
                    return await self._read(path, kind)
                except BadRecord as error:
                    return error

        return list(await asyncio.gather(*(one(path) for path in all_paths)))

    async def _read_all(self, all_paths: Sequence[str], kind: type[R]) -> list[Versioned[R]]:
        """Without those that are gone, and without bad ones: one bad znode must not hide the others."""
        return [one for one in await self._read_each(all_paths, kind) if isinstance(one, Versioned)]

    async def _names(self, path: str) -> list[str]:
        names = await self._asked(lambda: self._client.children(path))
        return sorted(names)[: self._limits.list_most]

    async def _asked(self, read: Callable[[], Awaitable[T]]) -> T:
        """The answer to a read, which is asked again when the connection was lost with the question."""
        async with asyncio.timeout(self._limits.tree_wait_s):
            for _ in range(self._limits.write_tries - 1):
                with suppress(*UNANSWERED):
                    return await read()
                await self._pause()
            return await read()

    async def _bounded(self, call: Awaitable[T]) -> T:
        async with asyncio.timeout(self._limits.tree_wait_s):
            return await call

    async def _pause(self) -> None:
        await asyncio.sleep(0.05 + 0.1 * self._rng.random())
