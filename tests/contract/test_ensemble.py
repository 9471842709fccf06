"""Sessions on an ensemble whose servers die, are restarted, say nothing or lose their quorum; in processes and
containers. Sessions live on a loop of another thread: what is done to the servers blocks, and must be done on the main
thread (zk.server)."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.ensembles import Servers
from tests.zookeeper import ServerSession, eventually, installation, server_session
from zk.ensemble import Ensemble, ports_needed
from zk.server import SYNC_LIMIT_MS, free_ports
from zk.tree import SessionState

CONNECTED, SUSPENDED, LOST = SessionState.CONNECTED, SessionState.SUSPENDED, SessionState.LOST
SESSION_S = 5.0
"""Longer than an election, on a busy machine too."""
MOST_S = 60.0
NOTICED_S = SYNC_LIMIT_MS / 1000 + 0.5
"""Without a connection for so long, and there is no quorum."""


T = TypeVar("T")


class Main:
    """The main thread, as a loop on another one sees it: `await main.do(call, ...)`."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()

    async def do(self, call: Callable[..., T], *arguments: Any) -> T:
        answer: Future[T] = Future()
        self._asked.put((answer, partial(call, *arguments)))
        return await asyncio.wrap_future(answer)

    def beside(self, body: Coroutine[Any, Any, None]) -> None:
        """Run `body` on a loop of another thread, and here what it asks for, until it ends."""

        def run() -> None:
            try:
                asyncio.run(body)
            finally:
                self._asked.put(None)

        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(run)
            while (asked := self._asked.get()) is not None:
                answer, call = asked
                try:
                    answer.set_result(call())
                except BaseException as error:
                    answer.set_exception(error)
            running.result()


def in_session(ensemble: Servers, chroot: str, body: Callable[[ServerSession, Main], Awaitable[None]]) -> None:
    main = Main()

    async def run() -> None:
        async with server_session(f"{ensemble.hosts}/{chroot}", session_timeout_s=SESSION_S) as session:
            await session.client.create("/e", ephemeral=True)
            await body(session, main)
            got = await session.client.get("/e")
            assert got.stat.owner == session.tree.session_id

    main.beside(run())


async def connected(session: ServerSession) -> None:
    await eventually(lambda: session.tree.state is CONNECTED, MOST_S, "the connection to be back")


def connected_to(session: ServerSession, ensemble: Servers) -> str:
    """Which server the session is at."""
    server = session.tree._link.server
    assert server is not None
    ports = (each.rpartition(":")[2] for each in ensemble.hosts.split(","))
    return dict(zip(ports, ensemble.names, strict=True))[str(server[1])]


def test_the_leader_dies_and_the_session_lives(ensemble: Servers) -> None:
    async def body(session: ServerSession, main: Main) -> None:
        first = await main.do(ensemble.leader)
        await main.do(ensemble.kill, first)
        second = await main.do(ensemble.leader)
        assert second != first
        await connected(session)
        await session.client.create("/after")
        assert LOST not in session.states()
        assert len({event.session_id for event in session.events if hasattr(event, "session_id")}) == 1

    in_session(ensemble, "dies", body)
    ensemble.start_all()


def test_the_session_goes_on_at_another_server(ensemble: Servers) -> None:
    async def body(session: ServerSession, main: Main) -> None:
        async with server_session(ensemble.hosts) as other:
            first = connected_to(session, ensemble)
            before = session.tree.session_id
            await main.do(ensemble.kill, first)
            await eventually(lambda: SUSPENDED in session.states(), MOST_S, "the loss of the connection")
            await connected(session)
            assert connected_to(session, ensemble) != first
            assert session.tree.session_id == before
            got = await session.client.get("/e")
            assert await other.client.exists("/moves/e") == got.stat

    in_session(ensemble, "moves", body)
    ensemble.start_all()


def test_each_server_is_restarted_and_the_session_lives(ensemble: Servers) -> None:
    async def body(session: ServerSession, main: Main) -> None:
        for name in ensemble.names:
            await main.do(ensemble.restart, name)
            await connected(session)
            await session.client.create(f"/after-{name}")
        assert LOST not in session.states()

    in_session(ensemble, "rolls", body)


def test_a_server_that_says_nothing_is_left(ensemble: Servers) -> None:
    """It holds its connections: only the silence tells."""

    async def body(session: ServerSession, main: Main) -> None:
        silent = connected_to(session, ensemble)
        await main.do(ensemble.pause, silent)
        try:
            await eventually(lambda: SUSPENDED in session.states(), MOST_S, "the silence to be noticed")
            await connected(session)
            assert connected_to(session, ensemble) != silent
        finally:
            await main.do(ensemble.resume, silent)
        assert LOST not in session.states()

    in_session(ensemble, "silent", body)


def test_without_a_quorum_nobody_is_lost_and_nothing_is_done(ensemble: Servers) -> None:
    """For longer than the session: with no leader there is nobody who could end it."""

    async def body(session: ServerSession, main: Main) -> None:
        loop = asyncio.get_running_loop()
        for name in ensemble.names[:2]:
            await main.do(ensemble.kill, name)

        since = loop.time()

        def suspended_s() -> float:
            nonlocal since
            if session.tree.state is not SUSPENDED:
                since = loop.time()
            return loop.time() - since

        # The one that is left welcomes clients until it has noticed that it is alone.
        await eventually(lambda: suspended_s() > NOTICED_S, MOST_S, "the loss of the quorum")
        waiting = asyncio.ensure_future(session.client.create("/later"))
        await eventually(lambda: suspended_s() > 1.2 * SESSION_S, MOST_S, "a time longer than the session")
        assert not waiting.done()
        assert session.states()[-1] is SUSPENDED
        await main.do(ensemble.start_all)
        await asyncio.wait_for(waiting, MOST_S)
        assert LOST not in session.states()

    in_session(ensemble, "quorum", body)


def test_an_ensemble_of_processes_starts_and_ends_as_one(tmp_path: Path) -> None:
    with Ensemble(installation(), tmp_path) as one:
        leader = one.leader()
        assert leader is not None
        modes = [status.mode for server in one.servers if (status := server.status())]
        assert sorted(modes) == ["follower", "follower", "leader"]
        assert one.hosts == ",".join(server.hosts for server in one.servers)
        leader.kill()
        one.start()
        assert all(server.status() for server in one.servers)
    assert all(server.pid is None for server in one.servers)


def test_one_alone_is_no_member_of_anything(tmp_path: Path) -> None:
    with Ensemble(installation(), tmp_path, size=1) as one:
        (server,) = one.servers
        status = server.status()
        assert status is not None
        assert status.mode == "standalone"
        assert server.log_path == tmp_path / "zookeeper.log"


def test_ports_are_as_many_as_needed(tmp_path: Path) -> None:
    assert (ports_needed(1), ports_needed(3), ports_needed(5)) == (1, 9, 15)
    with pytest.raises(ValueError, match="expected 9 ports for 3 servers, found 3"):
        Ensemble(installation(), tmp_path, ports=free_ports(3))
