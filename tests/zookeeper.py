"""What tests need of ZooKeeper: a server from somewhere, a session at hand, and ways to hurt both.

Nothing here imports kazoo: `end_session` and `Proxy` speak to servers over plain sockets.
"""

from __future__ import annotations

import asyncio
import random
import select
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from zk.client import TreeClient
from zk.connect import parse
from zk.memory import Ensemble
from zk.memory_session import MemoryTree
from zk.server import Installation, find_zookeeper
from zk.session_tree import SessionTree
from zk.tree import Delete, SessionChanged, SessionState, Tree, TreeEvent, WatchFired

T = TypeVar("T")
LOCAL = "127.0.0.1"


def installation() -> Installation:
    """The machine's ZooKeeper; AssertionError with what to do when there is none."""
    found = find_zookeeper()
    assert found is not None, "no ZooKeeper server was found on this machine: run `make setup`, which installs one"
    return found


async def eventually(probe: Callable[[], T], timeout_s: float = 10.0, what: str = "") -> T:
    """`tests.waiting.wait_until` for code on a loop: poll until `probe` answers something true, and return that."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not (answer := probe()):
        assert loop.time() < deadline, f"waited {timeout_s} s in vain for: {what or 'a condition'}"
        await asyncio.sleep(0.01)
    return answer


# --- sessions -----------------------------------------------------------------------------------------------------


class Session(Protocol):
    """One session on a tree under test, as the contract suite uses it."""

    tree: Tree
    client: TreeClient
    events: list[TreeEvent]

    async def expire(self) -> None:
        """Have the session ended, as its server would after a silence longer than its timeout."""

    def states(self) -> list[SessionState]: ...

    def fired(self) -> list[str]: ...


class ShakySession(Session, Protocol):
    """One whose connection can be hurt."""

    def drop(self) -> None:
        """The connection breaks; another can be made at once."""

    def disconnect(self) -> None:
        """The connection breaks, and no other can be made."""

    def reconnect(self) -> None: ...

    def lose_replies(self) -> None:
        """What is asked for is carried out (of several writes, the first at least), and no reply comes until the
        connection is dropped."""


@dataclass
class _Heard:
    events: list[TreeEvent] = field(default_factory=list, init=False)

    def states(self) -> list[SessionState]:
        return [event.state for event in self.events if isinstance(event, SessionChanged)]

    def fired(self) -> list[str]:
        return [event.path for event in self.events if isinstance(event, WatchFired)]


@dataclass
class ServerSession(_Heard):
    tree: SessionTree
    client: TreeClient

    async def expire(self) -> None:
        await asyncio.to_thread(end_session, self.tree._where.servers[0], *self.tree._link.session)


@dataclass
class ShakyServerSession(ServerSession):
    """Through a proxy of its own."""

    proxy: Proxy

    def drop(self) -> None:
        self.proxy.cut()

    def disconnect(self) -> None:
        self.proxy.refusing = True
        self.proxy.cut()

    def reconnect(self) -> None:
        self.proxy.refusing = False

    def lose_replies(self) -> None:
        self.proxy.swallow_replies = True

    async def expire(self) -> None:
        await asyncio.to_thread(end_session, self.proxy.server, *self.tree._link.session)


@asynccontextmanager
async def server_session(hosts: str, **options: Any) -> AsyncIterator[ServerSession]:
    """An open SessionTree on `hosts`, all its events kept, closed in the end."""
    tree = SessionTree(hosts, **options)
    async with _open(ServerSession(tree, TreeClient(tree))) as session:
        yield session


@asynccontextmanager
async def shaky_server_session(hosts: str, **options: Any) -> AsyncIterator[ShakyServerSession]:
    """The same, of which the connection can be hurt; `hosts` names one server."""
    where = parse(hosts)
    with Proxy(where.servers[0]) as proxy:
        tree = SessionTree(proxy.hosts + where.chroot, **options)
        async with _open(ShakyServerSession(tree, TreeClient(tree), proxy)) as session:
            yield session


K = TypeVar("K", bound=ServerSession)


@asynccontextmanager
async def _open(session: K) -> AsyncIterator[K]:
    session.tree.listen(session.events.append)
    await session.tree.open(wait_s=20)
    try:
        yield session
    finally:
        await session.tree.close()


@dataclass
class MemorySession(_Heard):
    ensemble: Ensemble
    tree: MemoryTree
    client: TreeClient

    async def expire(self) -> None:
        assert self.ensemble.expire(self.tree.session_id)

    def drop(self) -> None:
        self.tree.loses_reply = False
        self.tree.drop()

    def disconnect(self) -> None:
        self.tree.disconnect()

    def reconnect(self) -> None:
        self.tree.reconnect()

    def lose_replies(self) -> None:
        self.tree.lose_reply(noticed_after_s=60.0)


def memory_servers() -> Ensemble:
    """Servers in memory, on whichever loop runs when they are used."""
    return Ensemble(
        lambda after_s, callback: asyncio.get_running_loop().call_later(after_s, callback),
        lambda: time.time_ns() // 1_000_000,
    )


@asynccontextmanager
async def memory_session(ensemble: Ensemble, **options: Any) -> AsyncIterator[MemorySession]:
    """An open MemoryTree, its packets up to 0.5 ms on the way, all its events kept, closed in the end."""
    rng = random.Random(len(ensemble.sessions))
    tree = MemoryTree(ensemble, delay=lambda: rng.uniform(0.0, 0.0005), **options)
    session = MemorySession(ensemble, tree, TreeClient(tree))
    tree.listen(session.events.append)
    tree.open()
    await eventually(lambda: tree.session_id, what="a session on servers in memory")
    try:
        yield session
    finally:
        ended = asyncio.Event()
        tree.close(ended.set)
        await ended.wait()


async def remove_chroot(hosts: str) -> None:
    """Delete the chroot of a connect string, and all below it."""
    async with server_session(hosts) as session:

        async def remove(path: str) -> None:
            for name in await session.client.children(path or "/"):
                await remove(f"{path}/{name}")
            if path:
                await session.client.delete(path)

        await remove("")
        await session.tree._direct(Delete(session.tree._where.chroot))


def end_session(server: tuple[str, int], session_id: int, password: bytes) -> None:
    """Take a session over on a second connection, and close it there: to its owner it has expired. Both is said at
    once; still the owner may take it back in between, and then it is done again."""
    connect = struct.pack("!iqiq", 0, 0, 10_000, session_id) + struct.pack("!i", len(password)) + password + b"\0"
    goodbye = struct.pack("!ii", 1, -11)
    said = b"".join(struct.pack("!i", len(packet)) + packet for packet in (connect, goodbye))
    for _ in range(20):
        with closing(socket.create_connection(server, timeout=10)) as connection, suppress(ConnectionError):
            connection.sendall(said)
            _, timeout_ms, _ = struct.unpack_from("!iiq", _read_packet(connection))
            if timeout_ms > 0:
                _read_packet(connection)
            return
    raise AssertionError(f"session {session_id:#x} can't be ended: its owner takes it back")


def _read_packet(connection: socket.socket) -> bytes:
    """Raises ConnectionError."""
    (length,) = struct.unpack("!i", _read(connection, 4))
    return _read(connection, length)


def _read(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = connection.recv(count - len(data))
        if not chunk:
            raise ConnectionError("the server closed the connection")
        data += chunk
    return data


# --- a bad network --------------------------------------------------------------------------------------------------


class Proxy:
    """Between clients and one server: connections can be cut, and replies be swallowed before that, so that what was
    asked for happens and its reply is lost."""

    def __init__(self, server: tuple[str, int]) -> None:
        self.server = server
        self._listener = socket.create_server((LOCAL, 0))
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.refusing = False
        self.swallow_replies = False
        self.swallowed_bytes = 0

    @property
    def hosts(self) -> str:
        return f"{LOCAL}:{self._listener.getsockname()[1]}"

    def cut(self) -> None:
        """Cut every connection; new ones get their replies, unless `refusing` is set."""
        with self._lock:
            self.swallow_replies = False
            for each in self._pairs:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join(5)
        self._listener.close()

    def _run(self) -> None:
        from_server: set[socket.socket] = set()
        while not self._ended.is_set():
            ready, _, _ = select.select([self._listener, *self._pairs], [], [], 0.05)
            for each in ready:
                if each is self._listener:
                    client, _ = self._listener.accept()
                    if self.refusing:
                        client.close()
                        continue
                    server = socket.create_connection(self.server)
                    from_server.add(server)
                    with self._lock:
                        self._pairs |= {client: server, server: client}
                elif each in self._pairs:
                    self._forward(each, each in from_server)
        for each in self._pairs:
            each.close()

    def _forward(self, each: socket.socket, is_server: bool) -> None:
        data = b""
        with suppress(OSError):
            data = each.recv(65536)
        other = self._pairs[each]
        if not data:
            with self._lock:
                del self._pairs[each], self._pairs[other]
            each.close()
            other.close()
        elif is_server and self.swallow_replies:
            self.swallowed_bytes += len(data)
        else:
            with suppress(OSError):
                other.sendall(data)
