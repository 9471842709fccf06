"""Await a tree: typed calls for asyncio code, that return the result or raise the TreeError.

Theory of operation. A Tree takes operations and calls back, which suits state machines. Code that is a sequence of
steps (the API, commands, tests) awaits a `TreeClient` instead: each call submits one operation and waits for its
outcome. As in the port nothing is retried: ConnectionLost means that a change may or may not have happened, and the
caller looks. A cancelled call is not undone: its outcome is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from zk.tree import (
    Check,
    Children,
    ConnectionLost,
    Create,
    Created,
    Delete,
    Deleted,
    Done,
    Existed,
    Exists,
    Get,
    Got,
    Listed,
    Multi,
    NodeExists,
    Op,
    Outcome,
    SessionExpired,
    Set,
    Stat,
    Tree,
    TreeError,
    Written,
)

R = TypeVar("R")


class TreeClient:
    """Every call raises the TreeErrors that its operation in zk.tree names, besides ConnectionLost, SessionExpired,
    Overloaded and Refused, which any call may raise."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree

    async def create(self, path: str, data: bytes = b"", *, ephemeral: bool = False, sequence: bool = False) -> Created:
        return await self._call(Create(path, data, ephemeral, sequence), Created)

    async def get(self, path: str, watch: bool = False) -> Got:
        return await self._call(Get(path, watch), Got)

    async def exists(self, path: str, watch: bool = False) -> Stat | None:
        return (await self._call(Exists(path, watch), Existed)).stat

    async def children(self, path: str, watch: bool = False) -> tuple[str, ...]:
        return (await self._call(Children(path, watch), Listed)).names

    async def set(self, path: str, data: bytes, version: int = -1) -> Stat:
        return (await self._call(Set(path, data, version), Written)).stat

    async def delete(self, path: str, version: int = -1) -> None:
        await self._call(Delete(path, version), Deleted)

    async def multi(self, *ops: Create | Set | Delete | Check) -> Done:
        """Raises MultiFailed (index and cause of the first that failed) when nothing was done."""
        return await self._call(Multi(ops), Done)

    async def ensure(self, *wanted: str) -> None:
        """Make these paths (persistent, empty) and their parents where they are missing."""
        if trouble := await make_missing(self._outcome, wanted):
            raise trouble

    async def _call(self, op: Op, kind: type[R]) -> R:
        outcome = await self._outcome(op)
        if isinstance(outcome, TreeError):
            raise outcome
        if not isinstance(outcome, kind):
            raise TypeError(f"expected {kind.__name__} as the outcome of {op}, found {outcome}")
        return outcome

    async def _outcome(self, op: Op) -> Outcome:
        answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.tree.submit(op, lambda outcome: None if answer.done() else answer.set_result(outcome))
        return await answer


async def make_missing(ask: Callable[[Op], Awaitable[Outcome]], wanted: Iterable[str]) -> TreeError | None:
    """Make the `wanted` paths and their parents where they are missing; most often that is two round trips of reads at
    no cost to the ensemble's log. Returns what kept it from doing so: trouble with the connection first."""
    everything = with_parents(wanted)
    found = await asyncio.gather(*(ask(Exists(path)) for path in everything))
    missing = [path for path, outcome in zip(everything, found, strict=True) if outcome == Existed(None)]
    made = await asyncio.gather(*(ask(Create(path)) for path in missing))
    troubles = [o for o in (*found, *made) if isinstance(o, TreeError) and not isinstance(o, NodeExists)]
    troubles.sort(key=lambda trouble: not isinstance(trouble, ConnectionLost | SessionExpired))
    return troubles[0] if troubles else None


def with_parents(wanted: Iterable[str]) -> list[str]:
    """The paths and all their parents but "/", each once, parents first."""
    everything: dict[str, None] = {}
    for path in wanted:
        parts = path.strip("/").split("/")
        for depth in range(1, len(parts) + 1):
            if parts[0]:
                everything["/" + "/".join(parts[:depth])] = None
    return list(everything)
