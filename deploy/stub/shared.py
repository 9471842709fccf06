"""What all boot stubs of one process have in common.

One ZeroMQ context, one thread that writes journals, one process that starts programs, one bound on installations, one
pool of threads for Python classes and one set of their modules, one session with each ZooKeeper that an initiator asks
for.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from functools import partial
from typing import TYPE_CHECKING

from deploy.stub.classes import Classes
from deploy.stub.limits import StubSettings
from deploy.stub.pool import Pool
from deploy.stub.processes import Strays
from deploy.stub.spawning import Spawner
from fabric.runtime.bus import SocketContext, new_context
from fabric.runtime.journal import Writer
from zk.tree import Tree

if TYPE_CHECKING:
    from zk.session_tree import SessionTree

CONTEXT_WAIT_S = 2.0
SESSION_WAIT_S = 60.0
MAX_DIRECTORIES = 64

log = logging.getLogger("deploy.stub")


class Shared:
    """Make it on the loop; `close` it after the last host has ended. `stubs`: how many the process will host."""

    def __init__(self, settings: StubSettings | None = None, stubs: int = 1) -> None:
        settings = settings or StubSettings()
        self.loop = asyncio.get_running_loop()
        self.context: SocketContext = new_context(max_sockets=1024 + 8 * stubs)
        self.writer = Writer()
        self.installs = asyncio.Semaphore(settings.installs)
        self.pool = Pool()
        self.classes = Classes(self.pool, settings.class_s)
        self.spawner = Spawner()
        self.strays = Strays()
        self._trees: dict[str, asyncio.Task[SessionTree]] = {}

    async def tree(self, directory: str) -> Tree:
        """The session with this ensemble (a connect string), opened when it is first asked for. Raises
        zk.connect.Unreachable; then the next one who asks tries again. ValueError for a malformed one, or one too
        many."""
        opening = self._trees.get(directory)
        if opening is None:
            if len(self._trees) >= MAX_DIRECTORIES:
                raise ValueError(f"expected at most {MAX_DIRECTORIES} directories in one process, found one more")
            opening = self._trees[directory] = self.loop.create_task(_opened(directory))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            raise
        except Exception:
            if self._trees.get(directory) is opening:
                del self._trees[directory]
            raise

    async def close(self) -> None:
        for opening in self._trees.values():
            opening.cancel()
            for tree in await asyncio.gather(opening, return_exceptions=True):
                if not isinstance(tree, BaseException):
                    await tree.close()
        self.pool.close()
        await self.spawner.close()
        await asyncio.to_thread(self.writer.close)
        thread = threading.Thread(target=self.context.term, name="zmq-term", daemon=True)
        thread.start()
        await asyncio.to_thread(thread.join, CONTEXT_WAIT_S)


async def _opened(directory: str) -> SessionTree:
    from zk.session_tree import SessionTree  # most boot stubs host no initiator, and start faster without it

    tree = SessionTree(directory)
    try:
        await tree.open(SESSION_WAIT_S, partial(log.warning, "%s"))
    except BaseException:
        await tree.close()
        raise
    return tree
