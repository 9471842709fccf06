"""A session on servers that lie, stall, lag or come under names: what no real server can be brought to do.

The servers are tests/contract/scripted.py's. What sessions do on real ones is in test_session_tree.py.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.contract.scripted import CLOSE, EXISTS, PING_XID, SYNC, Asked, Scripted, scripted
from tests.packets import greeting, packet, reply
from tests.zookeeper import LOCAL, ServerSession, eventually
from zk import link, names
from zk.client import TreeClient
from zk.connect import Unreachable
from zk.server import free_ports
from zk.session_tree import SessionTree
from zk.tree import ConnectionLost, Created, Exists, Outcome, SessionState, Set

CONNECTED, SUSPENDED, LOST = SessionState.CONNECTED, SessionState.SUSPENDED, SessionState.LOST
SESSION_MOVED = -118


@asynccontextmanager
async def session(hosts: str, **options: Any) -> AsyncIterator[ServerSession]:
    tree = SessionTree(hosts, **options)
    s = ServerSession(tree, TreeClient(tree))
    tree.listen(s.events.append)
    await tree.open(20)
    try:
        yield s
    finally:
        await tree.close()


@asynccontextmanager
async def on_scripted(**options: Any) -> AsyncIterator[tuple[Scripted, ServerSession]]:
    async with scripted() as server, session(f"{LOCAL}:{server.port}", **options) as s:
        yield server, s


def quietly(main: Callable[[], Any]) -> None:
    """Run it, and nothing may reach the loop's handler of exceptions."""
    trouble: list[dict[str, Any]] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: trouble.append(context))
        await main()

    asyncio.run(watched())
    assert trouble == []


# --- servers that talk nonsense --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nonsense", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "expected a packet of at most"),
        (packet(b"?"), "expected a reply's header, found 1 bytes that can't be read"),
        (reply(4711), "expected the answer to request"),
        (reply(-1, b"\0\0\0\1\0\0\0\3\0\0\0\2\xff\xff"), "expected a watch's event"),
    ],
    ids=["http", "short", "out of turn", "event"],
)
def test_nonsense_costs_the_connection_and_no_more(nonsense: bytes, why: str, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with on_scripted() as (server, s):
            server.answer = lambda asked: nonsense
            outcome = await s.client._outcome(Exists("/a"))
            server.answer = server.plain
            assert isinstance(outcome, ConnectionLost)
            assert await s.client.exists("/a") is not None
            assert s.states() == [CONNECTED, SUSPENDED, CONNECTED]
            assert [each.session_id for each in server.greetings()] == [0, 77], "the session goes on"
            assert server.greetings()[1].zxid == 5, "on a server that has seen what it has"

    quietly(main)
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said.startswith(f"lost the connection to ZooKeeper at {LOCAL}:")
    assert why in said


def test_random_bytes_from_a_server_never_reach_the_loop(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(11)

    async def main() -> None:
        async with on_scripted(session_timeout_s=1.0) as (server, s):
            for _ in range(20):
                await eventually(lambda: s.tree.state is CONNECTED)
                size = rng.randrange(4, 200)
                server.say(packet(rng.randbytes(size)) if rng.random() < 0.7 else rng.randbytes(4) + bytes(size))
                server.cut()
                await s.client._outcome(Exists("/a"))
            await eventually(lambda: s.tree.state is CONNECTED)

    caplog.set_level(logging.CRITICAL, "fabric.zk.link")
    monkeypatch.setattr(link, "RECONNECT_MAX_DELAY_S", link.RECONNECT_MIN_DELAY_S)
    quietly(main)


def test_a_server_that_breaks_each_session_at_once_is_asked_less_and_less_often() -> None:
    """Or else thousands of clients would keep it, and the disk with their logs, busy."""

    def answer(server: Scripted, asked: Asked) -> bytes | None:
        return server.plain(asked) if asked.kind is None else None

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with on_scripted() as (server, s):
            server.answer = lambda asked: answer(server, asked)
            server.cut()
            began, before = loop.time(), len(server.greetings())
            await eventually(lambda: loop.time() - began > 2.5)
            assert 2 <= len(server.greetings()) - before <= 8
            server.answer = server.plain
            assert await s.client.exists("/a") is not None

    quietly(main)


def test_servers_that_are_behind_hang_up_and_it_is_said_why_they_may(caplog: pytest.LogCaptureFixture) -> None:
    """As all do that have lost their data: then nobody but an operator can help."""

    async def main() -> None:
        async with on_scripted() as (server, s):
            server.answer = lambda asked: None if asked.zxid else server.plain(asked)
            server.cut()
            await eventually(lambda: "no ZooKeeper server can be had" in caplog.text)
            assert f"{LOCAL}:{server.port}: the server closed it, as one does that is behind" in caplog.text
            assert "transaction 0x5, which was seen already" in caplog.text
            server.answer = server.plain
            await eventually(lambda: s.tree.state is CONNECTED)

    quietly(main)


def test_a_silent_server_is_left_in_time_for_the_session_that_was_granted() -> None:
    """Which may be much shorter than the one that was asked for."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with on_scripted(session_timeout_s=60.0) as (server, s):
            welcomed = len(server.greetings())

            def answer(asked: Asked) -> bytes | None:
                return b"" if len(server.greetings()) == welcomed + 1 else server.plain(asked)

            server.answer = answer
            server.cut()
            began = loop.time()
            await eventually(lambda: s.states() == [CONNECTED, SUSPENDED, CONNECTED])
            assert loop.time() - began < 3.0

    quietly(main)


@pytest.mark.parametrize("bad", ["malformed", "silent", "hangs up", "read-only"])
def test_a_server_that_does_not_welcome_is_left_for_the_others(bad: str) -> None:
    def answer(asked: Asked) -> bytes | None:
        said = {"malformed": packet(b"no greeting"), "silent": b"", "read-only": greeting(1, 3000, tail=b"\1")}
        return said.get(bad)

    async def main() -> None:
        async with scripted() as good, scripted() as other:
            other.answer = answer
            for _ in range(20):  # the order in which servers are tried is random
                async with session(f"{LOCAL}:{other.port},{LOCAL}:{good.port}") as s:
                    assert await s.client.exists("/a") is not None
                    assert s.tree._link.server == (LOCAL, good.port)
                if other.asked:
                    break
            assert other.asked

    quietly(main)


def test_a_server_that_is_slow_to_welcome_is_given_more_time() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with scripted() as server:

            def welcome(number: int) -> None:
                if len(server.greetings()) == number:
                    server.say(greeting(77, 3000))

            def answer(asked: Asked) -> bytes | None:
                if asked.kind is not None:
                    return server.plain(asked)
                loop.call_later(1.4, welcome, len(server.greetings()))
                return b""

            server.answer = answer
            async with session(f"{LOCAL}:{server.port}", session_timeout_s=1.0) as s:
                assert await s.client.exists("/a") is not None
            assert len(server.greetings()) == 2, "a second was not enough"

    quietly(main)


def test_a_server_that_can_not_catch_up_is_left() -> None:
    """It says so, and keeps the connection: nobody must wait for more."""

    async def main() -> None:
        async with on_scripted() as (server, s):
            moved = 0

            def answer(asked: Asked) -> bytes | None:
                nonlocal moved
                if asked.kind == SYNC and moved < 2:
                    moved += 1
                    return reply(asked.xid, error=SESSION_MOVED)
                return server.plain(asked)

            server.answer = answer
            server.cut()
            await eventually(lambda: SUSPENDED in s.states())
            assert await s.client.exists("/a") is not None
            assert moved == 2
            assert LOST not in s.states()

    quietly(main)


def test_a_session_that_is_over_is_followed_by_one_that_has_seen_nothing() -> None:
    async def main() -> None:
        async with on_scripted() as (server, s):
            server.answer = lambda asked: greeting(0, 0) if asked.session_id else server.plain(asked)
            server.cut()
            await eventually(lambda: LOST in s.states())
            await eventually(lambda: s.tree.state is CONNECTED)
            assert [(each.session_id, each.zxid) for each in server.greetings()] == [(0, 0), (77, 5), (0, 0)]
            assert await s.client.exists("/a") is not None

    quietly(main)


# --- time -----------------------------------------------------------------------------------------------------------


def test_an_idle_session_pings_every_third_of_its_timeout_and_a_busy_one_never() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with on_scripted() as (server, s):

            def pings() -> int:
                return sum(each.xid == PING_XID for each in server.asked)

            def busy() -> bool:
                s.tree.submit(Exists("/a"), lambda _: None)
                return loop.time() - began < 1.2

            began = loop.time()
            await eventually(lambda: not busy())
            assert pings() == 0
            began = loop.time()
            await eventually(lambda: pings() == 3)
            assert loop.time() - began > 2.5, "3 s, but for the moments that pings are sooner"
            assert s.states() == [CONNECTED]

    quietly(main)


def test_a_server_that_stops_answering_pings_is_left_after_two_thirds() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with on_scripted() as (server, s):
            server.answer = lambda asked: b""
            began = loop.time()
            await eventually(lambda: SUSPENDED in s.states())
            assert loop.time() - began > 1.5
            server.answer = server.plain
            await eventually(lambda: s.tree.state is CONNECTED)

    quietly(main)


def test_a_loop_that_stood_still_does_not_blame_the_server() -> None:
    async def main() -> None:
        async with on_scripted() as (server, s):
            threading.Event().wait(2.2)  # longer than two thirds of the session
            await eventually(lambda: any(each.xid == PING_XID for each in server.asked))
            assert await s.client.exists("/a") is not None
            assert s.states() == [CONNECTED]

    quietly(main)


# --- servers that do not read -----------------------------------------------------------------------------------------


def test_what_a_server_does_not_read_is_bounded_here() -> None:
    async def main() -> None:
        async with on_scripted() as (server, s):
            server.reading.clear()
            outcomes: list[Outcome] = []
            for _ in range(120):
                s.tree.submit(Set("/a", bytes(200_000)), outcomes.append)
            await eventually(lambda: not s.tree._link.takes)
            line: Any = s.tree._link._line
            held = line._unsent_bytes + line._transport.get_write_buffer_size()
            assert held < 1_000_000
            assert s.tree.operations["set"] < 100, "the others wait"
            assert outcomes == []
            server.reading.set()
            await eventually(lambda: len(outcomes) == 120)
            assert not any(isinstance(outcome, Exception) for outcome in outcomes)
            assert s.states() == [CONNECTED]

    quietly(main)


def test_what_is_asked_in_one_turn_of_the_loop_leaves_in_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with on_scripted() as (_, s):
            line: Any = s.tree._link._line
            written: list[bytes] = []
            write = line._transport.write
            line._transport.write = lambda data: (written.append(data), write(data))
            await asyncio.gather(*(s.client.exists(f"/{number}") for number in range(50)))
            assert len(written) == 1
            s.tree.submit(Exists("/a"), lambda _: None)
            assert len(written) == 1
            s.tree.flush()
            assert len(written) == 2, "it has left"

    quietly(main)


# --- names ------------------------------------------------------------------------------------------------------------


def resolve_as(
    monkeypatch: pytest.MonkeyPatch, name: str, *addresses: str, until: threading.Event | None = None
) -> None:
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *args: Any, flags: int = 0, **options: Any) -> Any:
        if host != name or flags & socket.AI_NUMERICHOST:
            return real(host, port, *args, flags=flags, **options)
        if until is not None:
            until.wait()
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_all_addresses_of_a_name_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with scripted() as server:
            resolve_as(monkeypatch, "ensemble.test", "127.0.0.2", "127.0.0.3", LOCAL)
            async with session(f"ensemble.test:{server.port}") as s:
                assert await s.client.exists("/a") is not None
                assert s.tree._link.server == (LOCAL, server.port)

    quietly(main)


def test_a_name_that_nobody_knows_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        with pytest.raises(Unreachable):
            await SessionTree(f"nowhere.test,{'x' * 64}.test").open(0.5)

    resolve_as(monkeypatch, "nowhere.test")
    quietly(main)
    assert "the name nowhere.test can't be resolved" in caplog.text
    assert f"{'x' * 64}.test can't be the name of a machine" in caplog.text


def test_name_servers_that_say_nothing_hold_up_neither_the_loop_nor_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """And those who ask for the same name at the same time share one thread."""
    answered = threading.Event()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with scripted() as server:
            resolve_as(monkeypatch, "slow.test", LOCAL, until=answered)
            trees = [SessionTree(f"slow.test:{server.port}") for _ in range(20)]
            opening = [asyncio.ensure_future(tree.open(1.5)) for tree in trees]
            began = loop.time()
            await asyncio.sleep(0)
            assert loop.time() - began < 1.0
            await asyncio.wait(opening, timeout=10)
            assert {type(each.exception()) for each in opening} == {Unreachable}
            assert sum(each.name == "zk-name" for each in threading.enumerate()) == 1
            async with session(f"slow.test:{server.port},{LOCAL}:{server.port}") as s:
                assert await s.client.exists("/a") is not None

    try:
        quietly(main)
    finally:
        answered.set()


def test_a_process_without_another_thread_to_be_had_asks_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        async with scripted() as server:
            resolve_as(monkeypatch, "crowded.test", LOCAL)
            with monkeypatch.context() as crowded:
                crowded.setattr(threading.Thread, "start", start)
                asked = (names.addresses("crowded.test", server.port, 1.0) for _ in range(3))
                for refused in await asyncio.gather(*asked, return_exceptions=True):
                    assert "the name crowded.test can't be looked up" in str(refused)
                tree = SessionTree(f"crowded.test:{server.port}")
                opening = asyncio.ensure_future(tree.open(10))
                await eventually(lambda: tree._link._said_at > 0)
            await opening
            await tree.close()

    quietly(main)


def test_servers_have_addresses_of_version_6_too() -> None:
    async def main() -> None:
        async with scripted(host="::1") as server, session(f"[::1]:{server.port}/below") as s:
            assert await s.client.exists("/a") is not None
            assert s.tree._link.server == ("::1", server.port)

    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("this machine has no ::1")
    quietly(main)


# --- the end ---------------------------------------------------------------------------------------------------------


def test_closing_says_goodbye_behind_what_was_asked_for() -> None:
    async def main() -> None:
        async with on_scripted() as (server, s):
            outcomes: list[Outcome] = []
            s.tree.submit(Exists("/a"), outcomes.append)
            await s.tree.close()
            assert len(outcomes) == 1
            assert not isinstance(outcomes[0], Exception | Created)
            assert [each.kind for each in server.asked[-2:]] == [EXISTS, CLOSE]

    quietly(main)


def test_closing_while_it_connects_is_at_once() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        (port,) = free_ports(1)
        async with scripted() as silent:
            silent.answer = lambda asked: b""
            for hosts in (f"{LOCAL}:{port}", f"{LOCAL}:{silent.port}"):
                tree = SessionTree(hosts)
                opening = asyncio.ensure_future(tree.open(20))
                await eventually(lambda: silent.asked or tree._link._said_at > 0)  # noqa: B023
                began = loop.time()
                await tree.close()
                assert loop.time() - began < 1.0
                opening.cancel()

    quietly(main)
