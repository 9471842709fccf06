"""What all boot stubs of one process have in common.

One ZeroMQ context, one thread that writes journals, one bound on installation programs, one pool of threads for Python
classes, one session with each ZooKeeper that an initiator asks for.
"""

from __future__ import annotations

import asyncio

from deploy.stub.settings import StubSettings
from fabric.runtime.bus import SocketContext, new_context
from fabric.runtime.journal import Writer
from zk.tree import Tree


class Shared:
    """Make it on the loop; `close` it after the last host has ended."""

    def __init__(self, settings: StubSettings | None = None, stubs: int = 1) -> None:
        settings = settings or StubSettings()
        self.loop = asyncio.get_running_loop()
        self.context: SocketContext = new_context(max_sockets=1024 + 8 * stubs)
        self.writer = Writer()
        self.installs = asyncio.Semaphore(settings.installs)

    async def tree(self, directory: str) -> Tree:
        """The session with this ensemble (a connect string), opened when it is first asked for. Raises
        zk.connect.Unreachable."""
        raise NotImplementedError

    async def close(self) -> None: ...
