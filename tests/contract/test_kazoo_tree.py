"""KazooTree where it is more than a Tree: servers that die, hang and come back, loops that lag, forks, bad networks."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import zookeeper_server
from tests.waiting import wait_until
from tests.zookeeper import LOCAL, KazooSession, Proxy, end_session, eventually, installation, kazoo_session
from zk.client import TreeClient
from zk.kazoo_tree import KazooTree, Unreachable
from zk.server import Ensemble, Server, free_ports
from zk.session_tree import CLOSE_WAIT_S
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
    TreeEvent,
)

CONNECTED, SUSPENDED, LOST = SessionState.CONNECTED, SessionState.SUSPENDED, SessionState.LOST


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with zookeeper_server(tmp_path / "zk") as server:
        yield server


def submit(session: KazooSession, *ops: Op) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for op in ops:
        session.tree.submit(op, outcomes.append)
    return outcomes


# --- servers die and come back ------------------------------------------------------------------------------------


def test_a_server_killed_and_restarted_suspends_the_session_and_what_waits_is_sent(server: Server) -> None:
    async def main() -> None:
        async with kazoo_session(f"{server.hosts}/x") as s:
            first = s.tree.session_id
            await s.client.create("/e", b"e", ephemeral=True)
            assert s.tree.suspended_since is None
            server.pause()
            in_flight = submit(s, Create("/a"), Set("/e", b"f"), Exists("/"))
            assert s.tree.operations["set"] == 1, "it was sent, and is not answered"
            server.kill()
            await eventually(lambda: s.tree.state is SUSPENDED)
            assert [type(outcome) for outcome in in_flight] == [ConnectionLost] * 3
            assert s.tree.suspended_since is not None
            sent = s.tree.operations
            waiting = submit(s, Create("/b"), Exists("/b"))
            assert s.tree.operations == sent, "nothing is sent while SUSPENDED"
            server.start()
            await eventually(lambda: len(waiting) == 2)
            assert s.states() == [CONNECTED, SUSPENDED, CONNECTED]
            assert s.tree.session_id == first
            assert s.tree.suspended_since is None
            assert isinstance(waiting[0], Created)
            assert (await s.client.get("/e")).stat.owner == first, "the ephemeral outlived the outage"

    asyncio.run(main())


def test_a_new_session_refuses_what_waited_and_makes_the_roots_again(server: Server) -> None:
    async def main(proxy: Proxy) -> None:
        async with kazoo_session(f"{proxy.hosts}/deep/chroot") as s, kazoo_session(server.hosts) as other:
            first = s.tree.session_id
            key = s.tree._link.client.client_id  # type: ignore[union-attr]
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


def test_the_session_goes_on_at_another_server_of_the_ensemble(tmp_path: Path) -> None:
    async def main(ensemble: Ensemble) -> None:
        hosts = ensemble.hosts
        async with kazoo_session(f"{hosts}/x", session_timeout_s=5) as s, kazoo_session(hosts) as other:
            for round_ in range(2):
                first = s.tree.session_id
                if round_ == 0:
                    await s.client.create("/e", ephemeral=True)
                link: Any = s.tree._link
                port = link.client._connection._socket.getpeername()[1]
                (connected_to,) = [each for each in ensemble.servers if each.port == port]
                connected_to.kill()
                moved = [CONNECTED, *[SUSPENDED, CONNECTED] * (round_ + 1)]
                await eventually(lambda moved=moved: s.states() == moved)  # type: ignore[misc]
                assert s.tree.session_id == first
                got = await s.client.get("/e")
                assert got.stat.owner == first
                assert await other.client.exists("/x/e") == got.stat
                ensemble.start()
    with Ensemble(installation(), tmp_path) as ensemble:
        assert ensemble.leader() is not None
        asyncio.run(main(ensemble))


def test_replies_that_are_lost_leave_things_done(server: Server) -> None:
    async def main(proxy: Proxy) -> None:
        async with kazoo_session(f"{proxy.hosts}/x") as s:
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


def test_armed_watches_say_look_again_after_a_lost_connection(server: Server) -> None:
    async def main(proxy: Proxy) -> None:
        async with kazoo_session(f"{proxy.hosts}/x") as s:
            await s.client.exists("/none", watch=True)
            await s.client.children("/", watch=True)
            proxy.cut()
            await eventually(lambda: sorted(s.fired()) == ["/", "/none"])
            assert s.states()[:2] == [CONNECTED, SUSPENDED]
            await s.client.create("/none")
            assert len(s.fired()) == 2, "they were disarmed"

    with Proxy((LOCAL, server.port)) as proxy:
        asyncio.run(main(proxy))


# --- loops that lag -----------------------------------------------------------------------------------------------


def test_a_loop_that_lags_behind_sends_nothing_into_the_next_session(server: Server) -> None:
    """kazoo has lost the session and opened the next, before the loop gets to know of either."""

    async def main() -> None:
        async with kazoo_session(f"{server.hosts}/x") as s:
            first = s.tree.session_id
            client = s.tree._link.client  # type: ignore[union-attr]
            end_session((LOCAL, server.port), *client.client_id)
            wait_until(lambda: client.client_id and client.client_id[0] != first, what="kazoo's next session")
            assert s.tree.session_id == first, "this loop has not turned since"
            outcomes = submit(s, Create("/named-by-the-first-session", ephemeral=True))
            await eventually(lambda: outcomes)
            assert isinstance(outcomes[0], SessionExpired)
            assert await s.client.exists("/named-by-the-first-session") is None

    asyncio.run(main())


def test_a_flood_while_the_connection_flaps_neither_blocks_nor_loses_an_outcome(server: Server) -> None:
    async def main(proxy: Proxy) -> None:
        async with kazoo_session(f"{proxy.hosts}/x", max_waiting=20_000) as s:
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

        async with kazoo_session(chroot) as s:
            s.tree.listen(raising)
            s.tree.submit(Exists("/"), raising)
            await s.client.exists("/", watch=True)
            await s.client.set("/", b"")
            await eventually(lambda: s.fired())
            assert isinstance(await s.client.get("/"), Got)
        assert [str(context["exception"]) for context in reported] == ["mine", "mine"]

    asyncio.run(main())


# --- opening and closing ----------------------------------------------------------------------------------------


def test_nobody_there_is_unreachable_within_the_wait(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        tree = KazooTree(f"{LOCAL}:{port}/x")
        messages: list[str] = []
        began = time.monotonic()
        with pytest.raises(Unreachable) as unreachable:
            await tree.open(2.3, messages.append)
        assert 2.2 < time.monotonic() - began < 4
        assert messages == [f"waiting for ZooKeeper at {LOCAL}:{port} (2 of 2 s)"]
        assert f"{LOCAL}:{port}" in str(unreachable.value)
        assert "start one there, or give another connect string" in str(unreachable.value)
        with pytest.raises(SessionExpired):
            await TreeClient(tree).get("/")

    (port,) = free_ports(1)
    with caplog.at_level(logging.DEBUG):
        asyncio.run(main())
    assert {record.name for record in caplog.records if record.name != "asyncio"} == {"fabric.zk.kazoo"}
    assert {record.levelno for record in caplog.records if record.name != "asyncio"} == {logging.WARNING}
    wait_until(lambda: not zookeeper_threads(), what="the end of kazoo's thread")


def test_open_waits_for_a_server_that_comes_later(tmp_path: Path) -> None:
    async def main() -> None:
        tree = KazooTree(late.hosts)
        opening = asyncio.ensure_future(tree.open(20))
        await asyncio.sleep(0)
        late.start()
        await opening
        assert tree.state is CONNECTED
        await tree.close()

    late = Server(installation(), tmp_path, port=free_ports(1)[0])
    try:
        asyncio.run(main())
    finally:
        late.stop()


@pytest.mark.parametrize("server_is", ["gone", "hung"])
def test_close_is_bounded_whatever_the_server_does(server: Server, server_is: str) -> None:
    async def main() -> float:
        async with kazoo_session(f"{server.hosts}/x") as s:
            if server_is == "gone":
                server.kill()
                await eventually(lambda: s.tree.state is SUSPENDED)
            else:
                server.pause()
            outcomes = submit(s, Exists("/"))
            began = time.monotonic()
        assert len(outcomes) == 1
        assert isinstance(outcomes[0], SessionExpired if server_is == "gone" else ConnectionLost)
        return time.monotonic() - began

    took = asyncio.run(main())
    assert took < (1.0 if server_is == "gone" else CLOSE_WAIT_S + 1)
    server.kill()
    wait_until(lambda: not zookeeper_threads(), what="the end of kazoo's threads")


def test_a_closed_session_leaves_no_thread_and_no_descriptor(chroot: str) -> None:
    async def main() -> None:
        async with kazoo_session(chroot):
            assert len(zookeeper_threads()) == 1, "kazoo's workers are not started"

    asyncio.run(main())
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        asyncio.run(main())
    wait_until(lambda: not zookeeper_threads(), what="the end of kazoo's threads")
    assert len(os.listdir("/proc/self/fd")) == before


def zookeeper_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if "zk_loop" in each.name or each.name == "zk-close"]


def test_the_server_has_the_last_word_on_the_session_timeout(server: Server) -> None:
    async def main() -> None:
        tree = KazooTree(server.hosts, session_timeout_s=0.3)
        assert tree.session_timeout_s == 0.3
        await tree.open(10)
        assert tree.session_timeout_s == 1.0, "two ticks"
        await tree.close()

    asyncio.run(main())


def test_a_server_that_accepts_and_says_nothing_does_not_keep_us_from_the_others(chroot: str) -> None:
    async def main() -> None:
        hung = f"{LOCAL}:{listener.getsockname()[1]}"
        for _ in range(3):  # the order in which servers are tried is random
            async with kazoo_session(f"{hung},{chroot}", session_timeout_s=2) as s:
                await s.client.exists("/")

    with socket.create_server((LOCAL, 0)) as listener:
        asyncio.run(main())


def test_a_server_that_is_silent_when_we_come_back_does_not_cost_the_session(server: Server) -> None:
    """As one is that was asked in the wrong moment of its start."""

    async def main(proxy: Proxy) -> None:
        async with kazoo_session(proxy.hosts, session_timeout_s=6) as s:
            first = s.tree.session_id
            proxy.cut()
            proxy.swallow_replies = True
            await eventually(lambda: proxy.swallowed_bytes)
            proxy.swallow_replies = False
            await eventually(lambda: s.states() == [CONNECTED, SUSPENDED, CONNECTED], timeout_s=5)
            assert s.tree.session_id == first

    with Proxy((LOCAL, server.port)) as proxy:
        asyncio.run(main(proxy))


def test_malformed_connect_strings_say_what_was_expected() -> None:
    with pytest.raises(ValueError, match="expected servers as host:port"):
        KazooTree("host:port")


# --- processes ------------------------------------------------------------------------------------------------------

FORKED = """
import asyncio, os, sys
from zk.client import TreeClient
from zk.kazoo_tree import KazooTree

async def main(name):
    tree = KazooTree(sys.argv[1])
    await tree.open(10)
    await TreeClient(tree).create("/" + name, ephemeral=True)
    await tree.close()

asyncio.run(main("parent"))
children = []
for number in range(3):
    pid = os.fork()
    if pid == 0:
        asyncio.run(main(f"child-{number}"))
        os._exit(0)
    children.append(pid)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children))
"""


def test_forked_children_open_sessions_of_their_own(chroot: str) -> None:
    done = subprocess.run([sys.executable, "-c", FORKED, chroot], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_kazoos_thread_dies_a_new_client_takes_over(chroot: str) -> None:
    async def main() -> None:
        async with kazoo_session(chroot, session_timeout_s=1) as s:
            first = s.tree.session_id
            link: Any = s.tree._link

            def broken(*args: Any, **kwargs: Any) -> None:
                raise ValueError("a bug in the client library")

            link.client.handler.select = broken
            outcomes = submit(s, Exists("/"))
            await eventually(lambda: s.tree.state is LOST)
            await eventually(lambda: s.tree.state is CONNECTED)
            assert s.tree.session_id != first
            assert isinstance(await s.client.get("/"), Got)
            assert len(outcomes) == 1

    asyncio.run(main())
