"""The launcher of a boot stub's process: programs are started by a helper process (deploy.stub.spawner says why).

Theory of operation. The helper is started with the first program, and serves all boot stubs of the process. Requests go
out and answers come back in order, so any number of programs may be under way while the loop goes on. A program is the
helper's child, and keeps its pid until `ended` is asked for; so signals to it hit nobody else.

Nothing that was started may be forgotten. Who gives up waiting for a program leaves it to be killed when it is there.
When the helper itself ends, what it had been asked may have been done or not: `LauncherLost`, and who asked has to look
for the program; programs that run go on, and the next `start` makes a new helper.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys

from deploy.stub import spawner
from deploy.stub.launcher import LauncherLost, Program
from deploy.stub.processes import how_it_ended, signal_group
from deploy.stub.spawner import ANSWER, HEAD, PID, REAP, START, request_to_start

LOST = "the process that starts programs ended before it said whether this one is there"
_Answer = tuple[int, int]
"""(pid or status, errno)."""

_log = logging.getLogger("deploy.stub")


class Spawner:
    """See deploy.stub.launcher. Made on the loop; `close` it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._link: _Link | None = None
        self._opening = asyncio.Lock()

    async def start(self, program: Program) -> int:
        env = [f"{name}={value}" for name, value in program.env.items()]
        body = request_to_start(str(program.cwd), str(program.log), program.argv, env)
        link = await self._linked()
        pid, error = await link.ask(START, body)
        if error:
            raise OSError(error, os.strerror(error))
        return pid

    async def ended(self, pid: int) -> str:
        link = self._link
        if link is None or pid not in link.children:
            return ""
        link.children.discard(pid)
        try:
            status, error = await link.ask(REAP, PID.pack(pid))
        except LauncherLost:
            return ""
        return "" if error else how_it_ended(status)

    async def close(self) -> None:
        """What was started runs on."""
        link, self._link = self._link, None
        if link is not None:
            await link.close()

    async def _linked(self) -> _Link:
        """Raises OSError."""
        if self._link is None or self._link.lost:
            async with self._opening:
                if self._link is None or self._link.lost:
                    self._link = await self._open()
        return self._link

    async def _open(self) -> _Link:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                link = _Link(_helper(theirs.fileno()))
            except BaseException:
                ours.close()
                raise
        await self._loop.create_connection(lambda: link, sock=ours)
        return link


def _helper(fd: int) -> subprocess.Popen[bytes]:
    """Started on the loop's thread: it is killed when that ends."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", spawner.__file__, str(fd), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=(fd,),
        start_new_session=True,
    )


class _Link(asyncio.Protocol):
    """One helper. `children`: programs that it started and that were not reaped."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.children: set[int] = set()
        self.lost = False
        self._process = process
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._asked: dict[int, tuple[int, asyncio.Future[_Answer]]] = {}
        self._number = 0
        self._begun = b""

    def ask(self, what: int, body: bytes) -> asyncio.Future[_Answer]:
        """May be cancelled: a program is killed then, when it is there."""
        answer: asyncio.Future[_Answer] = self._loop.create_future()
        if self.lost:
            answer.set_exception(LauncherLost(LOST))
            return answer
        self._number = (self._number + 1) & 0xFFFFFFFF
        self._asked[self._number] = (what, answer)
        self._transport.write(HEAD.pack(self._number, what, len(body)) + body)
        return answer

    async def close(self) -> None:
        """Killed, so that nothing that waits in its socket is started any more."""
        self._asked.clear()
        self._process.kill()
        self._transport.abort()
        await asyncio.to_thread(self._process.wait)

    # --- what asyncio calls ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        data = self._begun + data
        whole = len(data) - len(data) % ANSWER.size
        self._begun = data[whole:]
        for number, found, error in ANSWER.iter_unpack(data[:whole]):
            what, answer = self._asked.pop(number)
            if what == START and not error:
                self.children.add(found)
                if answer.cancelled():
                    signal_group(found, signal.SIGKILL)
                    self.children.discard(found)
                    self.ask(REAP, PID.pack(found)).cancel()
            if not answer.cancelled():
                answer.set_result((found, error))

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        if self._asked:
            _log.error("the process that starts programs ended, with %d requests not answered", len(self._asked))
        for _, answer in self._asked.values():
            if not answer.done():
                answer.set_exception(LauncherLost(LOST))
        self._asked.clear()
        self._process.kill()
        self._loop.run_in_executor(None, self._process.wait)
