"""How a SessionTree opens and closes, whatever the servers, the process and the library under it do."""

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

import pytest

from tests.conftest import zookeeper_server
from tests.zookeeper import LOCAL, Proxy, ServerSession, eventually, installation, server_session
from zk.client import TreeClient
from zk.connect import Unreachable
from zk.server import Server, free_ports
from zk.session_tree import CLOSE_WAIT_S, SessionTree
from zk.tree import (
    ConnectionLost,
    Exists,
    Op,
    Outcome,
    SessionExpired,
    SessionState,
)

CONNECTED, SUSPENDED, LOST = SessionState.CONNECTED, SessionState.SUSPENDED, SessionState.LOST


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with zookeeper_server(tmp_path / "zk") as server:
        yield server


def submitted(session: ServerSession, op: Op) -> list[Outcome]:
    outcomes: list[Outcome] = []
    session.tree.submit(op, outcomes.append)
    return outcomes


def test_nobody_there_is_unreachable_within_the_wait(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        tree = SessionTree(f"{LOCAL}:{port}/x")
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
    assert {record.name for record in caplog.records if record.name != "asyncio"} == {"fabric.zk.link"}
    assert {record.levelno for record in caplog.records if record.name != "asyncio"} == {logging.WARNING}


def test_open_waits_for_a_server_that_comes_later(tmp_path: Path) -> None:
    async def main() -> None:
        tree = SessionTree(late.hosts)
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
        async with server_session(f"{server.hosts}/x") as s:
            if server_is == "gone":
                server.kill()
                await eventually(lambda: s.tree.state is SUSPENDED)
            else:
                server.pause()
            outcomes = submitted(s, Exists("/"))
            began = time.monotonic()
        assert len(outcomes) == 1
        assert isinstance(outcomes[0], SessionExpired if server_is == "gone" else ConnectionLost)
        return time.monotonic() - began

    took = asyncio.run(main())
    assert took < (1.0 if server_is == "gone" else CLOSE_WAIT_S + 1)


def test_a_session_has_no_thread_and_leaves_no_descriptor(chroot: str) -> None:
    async def main() -> None:
        threads = threading.active_count()
        async with server_session(chroot):
            assert threading.active_count() == threads

    asyncio.run(main())
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        asyncio.run(main())
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_server_has_the_last_word_on_the_session_timeout(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Who configured another one is told, as so long a dead agent stays unnoticed."""

    async def main() -> None:
        tree = SessionTree(server.hosts, session_timeout_s=0.3)
        assert tree.session_timeout_s == 0.3
        await tree.open(10)
        assert tree.session_timeout_s == 1.0, "two ticks"
        await tree.close()

    with caplog.at_level(logging.INFO, "fabric.zk"):
        asyncio.run(main())
    assert "ZooKeeper grants a session of 1 s, and not of 0.3 s" in caplog.text


def test_a_server_that_accepts_and_says_nothing_does_not_keep_us_from_the_others(chroot: str) -> None:
    async def main() -> None:
        hung = f"{LOCAL}:{listener.getsockname()[1]}"
        for _ in range(3):  # the order in which servers are tried is random
            async with server_session(f"{hung},{chroot}", session_timeout_s=2) as s:
                await s.client.exists("/")

    with socket.create_server((LOCAL, 0)) as listener:
        asyncio.run(main())


def test_a_server_that_is_silent_when_we_come_back_does_not_cost_the_session(server: Server) -> None:
    """As one is that was asked in the wrong moment of its start."""

    async def main(proxy: Proxy) -> None:
        async with server_session(proxy.hosts, session_timeout_s=6) as s:
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
        SessionTree("host:port")


# --- processes ------------------------------------------------------------------------------------------------------

FORKED = """
import asyncio, os, sys
from zk.client import TreeClient
from zk.connect import Unreachable
from zk.session_tree import SessionTree

async def main(name):
    tree = SessionTree(sys.argv[1])
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
