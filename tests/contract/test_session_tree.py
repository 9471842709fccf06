"""SessionTree where it is more than a Tree: servers that die and come back, loops that lag, bad networks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import zookeeper_server
from tests.waiting import wait_until
from tests.zookeeper import LOCAL, Proxy, ServerSession, end_session, eventually, server_session
from zk.server import Server
from zk.tree import (
    ConnectionLost,
    Create,
    Created,
    Exists,
    Got,
    Op,
    Outcome,
    SessionExpired,
    SessionState,
    Set,
    TreeError,
    TreeEvent,
)

CONNECTED, SUSPENDED, LOST = SessionState.CONNECTED, SessionState.SUSPENDED, SessionState.LOST


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with zookeeper_server(tmp_path / "zk") as server:
        yield server


def submit(session: ServerSession, *ops: Op) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for op in ops:
        session.tree.submit(op, outcomes.append)
    return outcomes


# --- servers die and come back ------------------------------------------------------------------------------------


def test_a_server_killed_and_restarted_suspends_the_session_and_what_waits_is_sent(server: Server) -> None:
    async def main() -> None:
        async with server_session(f"{server.hosts}/x") as s:
            first = s.tree.session_id
            await s.client.create("/e", b"e", ephemeral=True)
            server.pause()
            in_flight = submit(s, Create("/a"), Set("/e", b"f"), Exists("/"))
            assert s.tree.operations["set"] == 1, "it was sent, and is not answered"
            server.kill()
            await eventually(lambda: s.tree.state is SUSPENDED)
            assert [type(outcome) for outcome in in_flight] == [ConnectionLost] * 3
            sent = s.tree.operations
            waiting = submit(s, Create("/b"), Exists("/b"))
            assert s.tree.operations == sent, "nothing is sent while SUSPENDED"
            server.start()
            await eventually(lambda: len(waiting) == 2)
            assert s.states() == [CONNECTED, SUSPENDED, CONNECTED]
            assert s.tree.session_id == first
            assert isinstance(waiting[0], Created)
            assert (await s.client.get("/e")).stat.owner == first, "the ephemeral outlived the outage"

    asyncio.run(main())


def test_a_new_session_refuses_what_waited_and_makes_the_roots_again(server: Server) -> None:
    async def main(proxy: Proxy) -> None:
        async with server_session(f"{proxy.hosts}/deep/chroot") as s, server_session(server.hosts) as other:
            first = s.tree.session_id
            key = s.tree._link.session
            proxy.refusing = True
            proxy.cut()
            await eventually(lambda: s.tree.state is SUSPENDED)
            waiting = submit(s, Create("/a", ephemeral=True), Exists("/"))
            await asyncio.to_thread(end_session, (LOCAL, server.port), *key)
            await other.client.delete("/deep/chroot/images")
            proxy.refusing = False
            await eventually(lambda: len(waiting) == 2)
            assert [type(outcome) for outcome in waiting] == [SessionExpired] * 2
            await eventually(lambda: s.tree.state is CONNECTED)
            assert s.states() == [CONNECTED, SUSPENDED, LOST, CONNECTED]
            assert s.tree.session_id != first
            assert await s.client.exists("/a") is None
            await s.client.create("/images/made-again")

    with Proxy((LOCAL, server.port)) as proxy:
        asyncio.run(main(proxy))


def test_replies_that_are_lost_leave_things_done(server: Server) -> None:
    async def main(proxy: Proxy) -> None:
        async with server_session(f"{proxy.hosts}/x") as s:
            proxy.swallow_replies = True
            outcomes = submit(s, *(Create(f"/p/{n}" if n else "/p") for n in range(100)))
            await asyncio.to_thread(wait_until, lambda: proxy.swallowed_bytes > 100 * 80, what="all replies")
            assert outcomes == []
            proxy.cut()
            await eventually(lambda: len(outcomes) == 100)
            assert {type(outcome) for outcome in outcomes} == {ConnectionLost}
            assert len(await s.client.children("/p")) == 99
            assert s.states() == [CONNECTED, SUSPENDED, CONNECTED]

    with Proxy((LOCAL, server.port)) as proxy:
        asyncio.run(main(proxy))


def test_a_server_that_hangs_is_left_by_a_busy_client_too(server: Server) -> None:
    """Requests go out all the time, and nothing comes back."""

    async def main(proxy: Proxy) -> None:
        loop = asyncio.get_running_loop()
        async with server_session(f"{proxy.hosts}/x", session_timeout_s=3.0) as s:
            proxy.swallow_replies = True
            began, asked = loop.time(), 0

            def lost() -> bool:
                nonlocal asked
                if loop.time() - began > asked * 0.1:
                    asked += 1
                    submit(s, Exists("/"))
                return SUSPENDED in s.states()

            await eventually(lost, 8.0, "the silence to be noticed")
            assert asked > 5
            assert loop.time() - began > 1.0, "a moment of silence is none"
            proxy.cut()
            await eventually(lambda: s.tree.state is CONNECTED)

    with Proxy((LOCAL, server.port)) as proxy:
        asyncio.run(main(proxy))


def test_after_a_lost_connection_the_server_catches_up_before_anything_is_asked(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A follower that lags would not show what was done though its reply was lost (tests/unit/zk/test_memory.py)."""

    async def main(proxy: Proxy) -> None:
        async with server_session(f"{proxy.hosts}/x") as s:
            asked: list[str] = []
            link = s.tree._link
            send, sync = link.send, link.sync

            def spy_send(op: Op, root: str, done: Callable[[Outcome], None]) -> None:
                asked.append(type(op).__name__)
                send(op, root, done)

            def spy_sync(done: Callable[[TreeError | None], None]) -> None:
                asked.append("sync")
                sync(done)

            monkeypatch.setattr(link, "send", spy_send)
            monkeypatch.setattr(link, "sync", spy_sync)
            proxy.refusing = True
            proxy.cut()
            await eventually(lambda: s.tree.state is SUSPENDED)
            waiting = submit(s, Exists("/"), Create("/a"))
            proxy.refusing = False
            await eventually(lambda: len(waiting) == 2)
            assert asked == ["sync", "Exists", "Create"]
            assert not any(isinstance(outcome, ConnectionLost) for outcome in waiting)

    with Proxy((LOCAL, server.port)) as proxy:
        asyncio.run(main(proxy))


# --- loops that lag -----------------------------------------------------------------------------------------------


def test_a_loop_that_lags_behind_sends_nothing_into_the_next_session(server: Server) -> None:
    """The server has ended the session before the loop gets to know of it."""

    async def main() -> None:
        async with server_session(f"{server.hosts}/x") as s:
            first = s.tree.session_id
            end_session((LOCAL, server.port), *s.tree._link.session)
            assert (s.tree.session_id, s.tree.state) == (first, CONNECTED), "this loop has not turned since"
            outcomes = submit(s, Create("/named-by-the-first-session", ephemeral=True))
            await eventually(lambda: outcomes)
            assert isinstance(outcomes[0], ConnectionLost), "it was sent, on the connection of the first session"
            await eventually(lambda: s.tree.session_id != first)
            assert await s.client.exists("/named-by-the-first-session") is None

    asyncio.run(main())


def test_a_flood_while_the_connection_flaps_neither_blocks_nor_loses_an_outcome(server: Server) -> None:
    async def main(proxy: Proxy) -> None:
        async with server_session(f"{proxy.hosts}/x", max_waiting=20_000) as s:
            outcomes: list[Outcome] = []
            slowest = 0.0
            for _ in range(10):
                began = time.perf_counter()
                for _ in range(1000):
                    s.tree.submit(Exists("/"), outcomes.append)
                slowest = max(slowest, time.perf_counter() - began)
                await asyncio.sleep(0)
                proxy.cut()
                await eventually(lambda: s.tree.state is CONNECTED)
            await eventually(lambda: len(outcomes) == 10_000, timeout_s=30)
            assert slowest < 1.0
            assert s.tree.session_id
            assert not s.tree._flying

    with Proxy((LOCAL, server.port)) as proxy:
        asyncio.run(main(proxy))


def test_callbacks_that_raise_are_reported_and_stop_nothing(chroot: str) -> None:
    async def main() -> None:
        reported: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))

        def raising(_: Outcome | TreeEvent) -> None:
            raise RuntimeError("mine")

        async with server_session(chroot) as s:
            s.tree.listen(raising)
            s.tree.submit(Exists("/"), raising)
            await s.client.exists("/", watch=True)
            await s.client.set("/", b"")
            await eventually(lambda: s.fired())
            assert isinstance(await s.client.get("/"), Got)
        assert [str(context["exception"]) for context in reported] == ["mine", "mine"]

    asyncio.run(main())
