"""The agent's end of the connection to its supervisor, and how a supervisor is started.

Theory of operation. One connection, many calls in flight, each with an id and a time limit. Messages are handed on in
the order in which the supervisor sent them: an event by `call_soon`, an answer by its future, which asyncio wakes by
`call_soon` as well. So whoever awaits the answer to "start" runs before the exit that follows it is reported, unless it
waits in a task of its own.

The socket is reached through /proc/self/fd, because a path into a deep state directory would not fit the 108 bytes of a
socket's address.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fabric
from fabric.drivers.base import DriverError
from fabric.drivers.supervisor import SOCKET

SPAWN_WAIT_S = 20.0
ANSWER_LIMIT_BYTES = 64 * 1024
BOOT = "import sys; sys.path.append(sys.argv.pop(1)); from fabric.drivers.detach import main; main()"

Message = dict[str, Any]


class LinkLost(DriverError):
    """The supervisor, or the connection to it, is gone: what was asked may or may not have happened. Ask again."""


class NoAnswer(DriverError):
    """The supervisor did not answer in time; what was asked may still happen."""


class Link:
    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_event: Callable[[Message], None],
        on_lost: Callable[[Link], None],
    ) -> None:
        self._reader, self._writer = reader, writer
        self._on_event, self._on_lost = on_event, on_lost
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self.lost = False
        self._task = asyncio.create_task(self._read(), name="supervisor link")

    @classmethod
    async def connect(
        cls, state: Path, on_event: Callable[[Message], None], on_lost: Callable[[Link], None]
    ) -> Link | None:
        """None when no supervisor listens."""
        directory = os.open(state, os.O_PATH | os.O_DIRECTORY)
        end = socket.socket(socket.AF_UNIX)
        end.setblocking(False)
        try:
            end.connect(f"/proc/self/fd/{directory}/{SOCKET}")
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
            end.close()
            return None
        finally:
            os.close(directory)
        return cls(*await asyncio.open_unix_connection(sock=end, limit=ANSWER_LIMIT_BYTES), on_event, on_lost)

    async def call(self, timeout_s: float, **request: object) -> Message:
        """The whole answer. Raises LinkLost, or NoAnswer."""
        if self.lost:
            raise LinkLost("the supervisor is gone")
        number = next(self._ids)
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            async with asyncio.timeout(timeout_s):
                self._writer.write(encode(id=number, **request))
                return await answer
        except TimeoutError:
            raise NoAnswer(f"the supervisor did not answer {request['op']!r} within {timeout_s:g} s") from None
        finally:
            self._waiting.pop(number, None)

    async def close(self) -> None:
        self._on_lost = lambda _: None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while line := await self._reader.readline():
                message = json.loads(line)
                if "event" in message:
                    loop.call_soon(self._on_event, message)
                elif (answer := self._waiting.get(message["id"])) and not answer.done():
                    answer.set_result(message)
        except (OSError, ValueError):
            pass  # reset, or a line cut off or too long: the connection is of no more use
        finally:
            self.lost = True
            self._writer.close()
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(LinkLost("the supervisor is gone"))
            self._on_lost(self)


def encode(**message: object) -> bytes:
    return json.dumps(message).encode() + b"\n"


async def spawn_supervisor(state: Path, lifeline_fd: int | None, log_bytes: int, linger_s: float) -> None:
    """Returns when it listens. Raises DriverError with what it said."""
    root = str(Path(fabric.__file__).parent.parent)
    lifeline = "-" if lifeline_fd is None else str(lifeline_fd)
    command = [sys.executable, "-I", "-S", "-c", BOOT, root, str(state), lifeline, str(log_bytes), str(linger_s)]

    def run() -> tuple[int, str]:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd="/",
            env={key: os.environ[key] for key in ("LD_LIBRARY_PATH",) if key in os.environ},
            pass_fds=() if lifeline_fd is None else (lifeline_fd,),
            timeout=SPAWN_WAIT_S,
            check=False,
        )
        return done.returncode, done.stderr.decode("utf-8", "replace").strip()

    try:
        # A thread of its own: the wait is some 25 ms, too long for a loop that may host many agents.
        code, said = await asyncio.get_running_loop().run_in_executor(None, run)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DriverError(f"cannot start the supervisor of {state}: {error}") from None
    if code:
        reason = said.splitlines()[-1] if said else f"exit status {code}"
        raise DriverError(f"the supervisor of {state} did not start: {reason}")
