"""What the boot stubs of a process get from the other parts of deployment, put together.

One HTTP client, cache of code and resolver for all of them; the built-in initiator; the directory in ZooKeeper, where
there is one; discovery, where it is wanted. The session by which they register is closed when they have: a boot stub
needs none to live, and ten thousand idle ones would be a load.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.discovery import Group, Listener, find_directory
from deploy.initiator_host import new_initiator
from deploy.records import StubRecord
from deploy.repository.client import HttpClient
from deploy.repository.content import ContentCache
from deploy.repository.fetcher import Fetcher
from deploy.repository.images import ImageAccess
from deploy.repository.resolver import HttpResolver
from deploy.settings import Settings
from deploy.stub.host import StubHost
from deploy.stub.process import Parts
from deploy.stub.settings import NameInUse
from deploy.stub.shared import Shared
from fabric.runtime.bus import SocketContext

if TYPE_CHECKING:
    from deploy.directory import StubDirectory

SESSION_WAIT_S = 20.0
FIND_WAIT_S = 5.0
ALIVE_WAIT_S = 3.0
"""For a boot stub that has a name to say that it lives."""
ANY_PORT = "tcp://127.0.0.1:0"

log = logging.getLogger("deploy.stub")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """`cache`: a folder for code, `cache_bytes` at most. `roots`: below these `file://` may be read. `directory`: a
    connect string, "" for none. `key`: the cluster's. `answer`: the group whose discovery calls are answered; `find`:
    that which is asked for the directory, when none is named. `initiators`: limits of those that live here."""

    cache: Path
    cache_bytes: int
    roots: tuple[Path, ...] = ()
    directory: str = ""
    key: bytes | None = field(default=None, repr=False)
    answer: Group | None = None
    find: Group | None = None
    initiators: Settings | None = None


@asynccontextmanager
async def assembled(
    shared: Shared, around: Surroundings, listening: Callable[[str, str], None] = lambda name, address: None
) -> AsyncIterator[Parts]:
    """`listening` is told (name, address) of each boot stub that takes commands. Raises CacheBusy, OSError."""
    async with AsyncExitStack() as stack:
        cache = ContentCache(around.cache, around.cache_bytes)
        stack.callback(cache.close)
        client = HttpClient()
        stack.push_async_callback(client.close)
        images = None
        if around.directory:
            images = ImageAccess(partial(shared.tree, around.directory), around.key, shared.context)
        fetcher = Fetcher(client, cache, roots=around.roots, images=images)
        stack.push_async_callback(fetcher.close)
        resolver = HttpResolver(client, fetcher)
        stack.push_async_callback(resolver.close)
        registrar = Registrar(around, shared.context)
        stack.push_async_callback(registrar.close)

        def has_come_up(host: StubHost) -> None:
            listening(host.ref.name, host.ref.address)
            if around.answer is not None and around.key is not None:
                listener = Listener(
                    around.answer, around.key, record=lambda: host.record("discovery"), directory=around.directory
                )
                task = asyncio.get_running_loop().create_task(_opened(listener))
                stack.callback(task.cancel)
                stack.callback(listener.close)

        wanted = around.directory or around.find is not None
        register = registrar.register if wanted else None
        yield Parts(resolver, new_initiator(around.initiators), register, listening=has_come_up)


async def _opened(listener: Listener) -> None:
    try:
        await listener.open()
    except OSError as error:
        log.error("discovery calls are not answered: %s", error)


_Session = tuple["StubDirectory", Callable[[], Awaitable[None]]]
"""The directory, and what closes the session."""


def _has_failed(session: asyncio.Task[_Session] | None) -> bool:
    return session is not None and session.done() and (session.cancelled() or session.exception() is not None)


class Registrar:
    """Registers the boot stubs of a process, over one session that is closed when nobody is registering. A boot stub of
    another host that has the same name is asked whether it lives."""

    def __init__(self, around: Surroundings, context: SocketContext) -> None:
        self._around, self._context = around, context
        self._waiting = 0
        self._session: asyncio.Task[_Session] | None = None

    async def register(self, record: StubRecord) -> None:
        """deploy.stub.settings.Register."""
        from deploy.directory import NameTaken

        self._waiting += 1
        try:
            if self._session is None:
                self._session = asyncio.get_running_loop().create_task(self._open())
            directory, _ = await asyncio.shield(self._session)
            try:
                registered = await directory.register(record, self._lives)
            except NameTaken as error:
                raise NameInUse(str(error)) from None
            if registered.replaced is not None and registered.replaced.host != record.host:
                log.warning(
                    "%s: took the place of a boot stub of this name on %s (%s): give one of them --name",
                    record.name,
                    registered.replaced.host,
                    registered.replaced.address,
                )
        finally:
            self._waiting -= 1
            if not self._waiting or _has_failed(self._session):
                await self.close()

    async def _lives(self, other: StubRecord) -> bool:
        """Rare, so each of these has a bus of its own. It answers where the question came from."""
        from deploy.pinging import Pinger

        pinger = Pinger(self._context, self._around.key, ANY_PORT)
        try:
            return await pinger.ping(other.address, ALIVE_WAIT_S) is not None
        finally:
            pinger.close()

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.cancel()
            for opened in await asyncio.gather(session, return_exceptions=True):
                if not isinstance(opened, BaseException):
                    await opened[1]()

    async def _open(self) -> _Session:
        from deploy.directory import Directory
        from zk.client import TreeClient
        from zk.session_tree import SessionTree

        around = self._around
        where = around.directory
        if not where and around.find is not None and around.key is not None:
            where = await find_directory(around.find, around.key, FIND_WAIT_S)
        tree = SessionTree(where)
        try:
            await tree.open(SESSION_WAIT_S)
        except BaseException:
            await tree.close()
            raise
        return Directory(TreeClient(tree)).stubs, tree.close
