"""Waiting for ZooKeeper when the connection is lost: for a moment, and not for ever."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from fabric.api.problems import ProblemError
from fabric.api.reading import Records
from fabric.api.settings import ApiLimits
from tests.zookeeper import MemorySession, eventually, memory_servers, memory_session
from zk.tree import ConnectionLost, SessionExpired, SessionState, TreeError


class Reader(Records):
    async def ask(self, read: Callable[[], Awaitable[str]]) -> str:
        return await self._asked(read)


@asynccontextmanager
async def reading(**limits: float) -> AsyncIterator[tuple[MemorySession, Reader]]:
    async with memory_session(memory_servers(), session_timeout_s=10.0) as session:
        yield session, Reader(session.client, ApiLimits(**limits), random.Random(1))  # type: ignore[arg-type]


async def lose(session: MemorySession) -> None:
    session.disconnect()
    await eventually(lambda: session.tree.state is SessionState.SUSPENDED, what="the loss to be seen")


def test_while_connected_nobody_waits() -> None:
    async def main() -> None:
        async with reading() as (_, reader):
            await asyncio.wait_for(reader.require_session(), 0.1)
            reader.require_connection()

    asyncio.run(main())


def test_a_request_waits_for_the_connection_to_be_back() -> None:
    async def main() -> None:
        async with reading(session_wait_s=20.0) as (session, reader):
            await lose(session)
            waiting = asyncio.ensure_future(reader.require_session())
            await asyncio.sleep(0)
            with pytest.raises(ProblemError):
                reader.require_connection()
            assert not waiting.done()
            session.reconnect()
            await asyncio.wait_for(waiting, 5)

    asyncio.run(main())


def test_it_waits_so_long_since_the_loss_and_then_refuses_at_once() -> None:
    async def main() -> None:
        async with reading(session_wait_s=0.2) as (session, reader):
            loop = asyncio.get_running_loop()
            await lose(session)
            began = loop.time()
            with pytest.raises(ProblemError, match="suspended"):
                await reader.require_session()
            assert 0.1 < loop.time() - began < 5
            for _ in range(20):
                with pytest.raises(ProblemError):
                    await asyncio.wait_for(reader.require_session(), 0.1)
            session.reconnect()
            await eventually(lambda: session.tree.state is SessionState.CONNECTED, what="the connection to be back")
            await reader.require_session()

    asyncio.run(main())


@pytest.mark.parametrize("lost", [ConnectionLost, SessionExpired])
def test_a_read_whose_answer_was_lost_is_asked_again(lost: type[TreeError]) -> None:
    answers: list[TreeError | str] = [lost("/x"), lost("/x"), "found"]

    async def read() -> str:
        answer = answers.pop(0)
        if isinstance(answer, TreeError):
            raise answer
        return answer

    async def main() -> None:
        async with reading() as (_, reader):
            assert await reader.ask(read) == "found"

    asyncio.run(main())


def test_a_read_is_asked_again_so_often_and_no_more() -> None:
    asked = []

    async def read() -> str:
        asked.append(1)
        raise ConnectionLost("/x")

    async def main() -> None:
        async with reading(write_tries=3) as (_, reader):
            with pytest.raises(ConnectionLost):
                await reader.ask(read)

    asyncio.run(main())
    assert len(asked) == 3
