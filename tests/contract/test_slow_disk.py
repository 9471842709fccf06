"""A slow disk under one server: what waits for it, and what does not."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.waiting import wait_until
from tests.zookeeper import ServerSession, installation, server_session
from zk.ensemble import Ensemble
from zk.server import Server
from zk.slow_disk import SlowDiskRefused, slow
from zk.tree import SessionState

DELAY_S = 0.5
REFUSED = 77
PROGRAM = f"""
import sys
from zk.slow_disk import SlowDiskRefused, slow
try:
    slow(int(sys.argv[1]), {DELAY_S}, lambda: print("slow", flush=True))
except SlowDiskRefused as refused:
    print(refused, flush=True)
    sys.exit({REFUSED})
"""


@contextmanager
def slowed(server: Server) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PROGRAM, str(server.pid)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        if said != "slow":
            assert process.wait(10) == REFUSED
            pytest.skip(said)
        try:
            yield process
        finally:
            process.kill()


async def write_s(session: ServerSession, *paths: str) -> float:
    """How long the quickest takes."""
    took = []
    for path in paths:
        began = time.monotonic()
        await session.client.create(path)
        took.append(time.monotonic() - began)
    assert session.states() == [SessionState.CONNECTED], "pings were answered"
    return min(took)


def test_writes_wait_for_it_and_then_no_more(tmp_path: Path) -> None:
    with Ensemble(installation(), tmp_path, size=1) as one:
        (server,) = one.servers

        async def main() -> None:
            async with server_session(one.hosts, session_timeout_s=10) as session:
                with slowed(server):
                    assert await write_s(session, "/a", "/b") >= DELAY_S
                    server.pause()
                    server.resume()
                    assert await write_s(session, "/c") >= DELAY_S
                assert await write_s(session, "/d", "/e", "/f") < DELAY_S

        asyncio.run(main())


def test_of_three_one_may_be_slow_the_leader_too(tmp_path: Path) -> None:
    with Ensemble(installation(), tmp_path) as three:
        leader = three.leader()
        assert leader is not None

        async def main() -> None:
            async with server_session(three.hosts, session_timeout_s=10) as session:
                with slowed(leader) as process:
                    assert await write_s(session, "/a", "/b", "/c") < DELAY_S, "two others are enough"
                    leader.kill()
                    wait_until(lambda: process.poll() == 0, what="it to end with its server")

        asyncio.run(main())


def test_who_is_no_server_is_left_alone() -> None:
    with pytest.raises(SlowDiskRefused, match="expected a delay above 0 and up to 60 s, found 0"):
        slow(1, 0.0)
    slow(2**22 - 1, 1.0)  # there is no such process: nothing to do, and no error
