"""The tree in memory and a real server, told the same by seed: every outcome and every watch must be the same.

Transactions are numbered as they come, so only the order of zxids is compared; session ids by whose they are.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from random import Random

import pytest

from tests.zookeeper import Session, eventually, memory_servers, memory_session, server_session
from zk.tree import (
    Check,
    Children,
    Create,
    Created,
    Delete,
    Done,
    Existed,
    Exists,
    Get,
    Got,
    Listed,
    Multi,
    MultiFailed,
    Op,
    Outcome,
    Set,
    Stat,
    TreeError,
    WatchFired,
    Written,
)

SEEDS = 3
STEPS = 240
NAMES = ("a", "b", "c")


class Script:
    """Operations drawn from a seed, on a tree so small that they meet."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)

    def step(self) -> tuple[int, Op]:
        """(which of two sessions, what it asks for)."""
        draw = self.random
        if draw.random() < 0.2:
            parts = tuple(self.write(in_multi=True) for _ in range(draw.randint(0, 4)))
            return draw.randrange(2), Multi(parts)  # type: ignore[arg-type]
        if draw.random() < 0.4:
            kind = draw.choice((Get, Exists, Children))
            return draw.randrange(2), kind(self.path(), watch=draw.random() < 0.8)
        write = self.write(in_multi=False)
        assert not isinstance(write, Check)
        return draw.randrange(2), write

    def path(self) -> str:
        return "/" + "/".join(self.random.choice(NAMES) for _ in range(self.random.choice((1, 1, 2, 2, 3))))

    def write(self, in_multi: bool) -> Create | Set | Delete | Check:
        draw = self.random
        version = draw.choice((-1, -1, 0, 1, 2))
        match draw.randrange(6 if in_multi else 5):
            case 0 | 1 | 2:
                return Create(
                    self.path(), draw.randbytes(draw.randrange(4)), draw.random() < 0.2, sequence=draw.random() < 0.2
                )
            case 3:
                return Set(self.path(), draw.randbytes(draw.randrange(4)), version)
            case 4:
                return Delete(self.path(), version)
            case _:
                return Check(self.path(), version)


class Twin:
    """What one of the trees said, in words that both can say."""

    def __init__(self, sessions: list[Session]) -> None:
        self.sessions = sessions
        self.owners = {0: "nobody"}
        self.zxids: list[int] = []
        for session in sessions:
            self.know(session)

    def know(self, session: Session) -> None:
        self.owners[session.tree.session_id] = f"session {len(self.owners)}"

    async def do(self, who: int, op: Op) -> object:
        return self.words(await self.sessions[who].client._outcome(op))

    async def expire(self, who: int) -> None:
        session = self.sessions[who]
        before = session.tree.session_id
        await session.expire()
        await eventually(lambda: session.tree.session_id != before, what="another session")
        self.know(session)

    async def news(self) -> list[list[str]]:
        """What each session has heard since the last time."""
        found: list[list[str]] = []
        for session in self.sessions:
            await session.client.exists("/")
            heard = [event.path if isinstance(event, WatchFired) else event.state for event in session.events]
            found.append([str(each) for each in heard])
            session.events.clear()
        return found

    def words(self, outcome: Outcome) -> object:
        match outcome:
            case Created(path, stat):
                return "created", path, self.stat(stat)
            case Got(data, stat):
                return "got", data, self.stat(stat)
            case Existed(stat) | Written(stat):
                return type(outcome).__name__, self.stat(stat)
            case Listed(names):
                return "listed", names
            case Done(results):
                return "done", [self.words(result) for result in results]  # type: ignore[arg-type]
            case MultiFailed(index=index, cause=cause):
                return "failed", outcome.path, index, type(cause).__name__, cause.path
            case TreeError(path=path):
                return type(outcome).__name__, path
            case _:
                return type(outcome).__name__

    def stat(self, stat: Stat | None) -> object:
        """Transactions by their place among all that were seen: this needs all, so it is compared in the end."""
        if stat is None:
            return None
        self.zxids += [stat.czxid, stat.mzxid]
        times = stat.ctime_ms <= stat.mtime_ms, stat.ctime_ms == stat.mtime_ms or stat.version > 0
        return stat.version, stat.children, self.owners[stat.owner], times

    def order(self) -> list[int]:
        """Of each zxid that was seen, how many were smaller."""
        ranks = {zxid: rank for rank, zxid in enumerate(sorted(set(self.zxids)))}
        return [ranks[zxid] for zxid in self.zxids]


@pytest.mark.parametrize("seed", range(SEEDS))
def test_memory_says_what_the_server_says(chroot: str, seed: int) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            servers = memory_servers()
            real = Twin([await stack.enter_async_context(server_session(chroot)) for _ in range(2)])
            memory = Twin([await stack.enter_async_context(memory_session(servers)) for _ in range(2)])
            script = Script(seed)
            for number in range(STEPS):
                who, op = script.step()
                where = f"seed {seed}, step {number}: session {who} asks for {op}"
                assert await memory.do(who, op) == await real.do(who, op), where
                if number % 10 == 9:
                    assert await memory.news() == await real.news(), where
                if number % 60 == 59:
                    await asyncio.gather(memory.expire(who), real.expire(who))
                    # Servers delete the ephemerals of a session in no order that can be told.
                    ours, theirs = await memory.news(), await real.news()
                    assert ours[who] == theirs[who], where
                    assert sorted(ours[1 - who]) == sorted(theirs[1 - who]), where
            assert memory.order() == real.order()

    asyncio.run(main())
