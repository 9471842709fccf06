"""Sessions on an ensemble whose servers die, are restarted, say nothing or lose their quorum; in processes and
containers. What is done to the servers blocks the loop: their sessions have threads of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.ensembles import Servers
from tests.zookeeper import KazooSession, eventually, installation, kazoo_session
from zk.ensemble import Ensemble, ports_needed
from zk.server import free_ports
from zk.tree import SessionState

CONNECTED, SUSPENDED, LOST = SessionState.CONNECTED, SessionState.SUSPENDED, SessionState.LOST
SESSION_S = 5.0
"""Longer than an election, on a busy machine too."""
MOST_S = 60.0


def in_session(ensemble: Servers, chroot: str, body: Callable[[KazooSession], Awaitable[None]]) -> None:
    async def main() -> None:
        async with kazoo_session(f"{ensemble.hosts}/{chroot}", session_timeout_s=SESSION_S) as session:
            await session.client.create("/e", ephemeral=True)
            await body(session)
            got = await session.client.get("/e")
            assert got.stat.owner == session.tree.session_id

    asyncio.run(main())


async def connected(session: KazooSession) -> None:
    await eventually(lambda: session.tree.state is CONNECTED, MOST_S, "the connection to be back")


def connected_to(session: KazooSession, ensemble: Servers) -> str:
    """Which server the session is at."""
    link: Any = session.tree._link
    port = link.client._connection._socket.getpeername()[1]
    return dict(zip((each.rpartition(":")[2] for each in ensemble.hosts.split(",")), ensemble.names, strict=True))[
        str(port)
    ]


def test_the_leader_dies_and_the_session_lives(ensemble: Servers) -> None:
    async def body(session: KazooSession) -> None:
        first = ensemble.leader()
        ensemble.kill(first)
        second = ensemble.leader()
        assert second != first
        await connected(session)
        await session.client.create("/after")
        assert LOST not in session.states()
        assert len({event.session_id for event in session.events if hasattr(event, "session_id")}) == 1

    in_session(ensemble, "dies", body)
    ensemble.start_all()


def test_the_session_goes_on_at_another_server(ensemble: Servers) -> None:
    async def body(session: KazooSession) -> None:
        async with kazoo_session(ensemble.hosts) as other:
            first = connected_to(session, ensemble)
            before = session.tree.session_id
            ensemble.kill(first)
            await eventually(lambda: SUSPENDED in session.states(), MOST_S, "the loss of the connection")
            await connected(session)
            assert connected_to(session, ensemble) != first
            assert session.tree.session_id == before
            got = await session.client.get("/e")
            assert await other.client.exists("/moves/e") == got.stat

    in_session(ensemble, "moves", body)
    ensemble.start_all()


def test_each_server_is_restarted_and_the_session_lives(ensemble: Servers) -> None:
    async def body(session: KazooSession) -> None:
        for name in ensemble.names:
            ensemble.restart(name)
            await connected(session)
            await session.client.create(f"/after-{name}")
        assert LOST not in session.states()

    in_session(ensemble, "rolls", body)


def test_a_server_that_says_nothing_is_left(ensemble: Servers) -> None:
    """It holds its connections: only the silence tells."""

    async def body(session: KazooSession) -> None:
        silent = connected_to(session, ensemble)
        ensemble.pause(silent)
        try:
            await eventually(lambda: SUSPENDED in session.states(), MOST_S, "the silence to be noticed")
            await connected(session)
            assert connected_to(session, ensemble) != silent
        finally:
            ensemble.resume(silent)
        assert LOST not in session.states()

    in_session(ensemble, "silent", body)


def test_without_a_quorum_nobody_is_lost_and_nothing_is_done(ensemble: Servers) -> None:
    """For longer than the session: with no leader there is nobody who could end it."""

    async def body(session: KazooSession) -> None:
        loop = asyncio.get_running_loop()
        for name in ensemble.names[:2]:
            ensemble.kill(name)
        await eventually(lambda: session.tree.state is SUSPENDED, MOST_S, "the loss of the quorum")
        since = loop.time()
        waiting = asyncio.ensure_future(session.client.create("/later"))
        await eventually(lambda: loop.time() - since > 1.2 * SESSION_S, MOST_S, "a time longer than the session")
        assert not waiting.done()
        assert session.states()[-1] is SUSPENDED
        ensemble.start_all()
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
